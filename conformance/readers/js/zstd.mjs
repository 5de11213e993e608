// One Zstandard frame of RFC 8878 under the profile of codecs.md, decoded into an output of known size.
// Every read is bounded by the stored bytes, every write by the output; whatever else there is gives payload.frame.
import { refuse } from './errors.mjs';

const BLOCK_MAX = 131072;
const WINDOW_MAX = 2 ** 24;

function bad(why) {
  refuse('payload.frame', why);                                                                 // [payload.frame]
}

// --- bits read backwards (RFC 8878, 4.1, 4.2.2) --------------------------------------------------------------------

class Backward {
  /** The bytes [from, to): the highest set bit of the last one ends the stream. */
  constructor(bytes, from, to) {
    if (to <= from || bytes[to - 1] === 0) bad('a bitstream without its final bit');
    this.bytes = bytes;
    this.from = from;
    this.to = to;
    this.left = (to - from) * 8 - 1 - Math.clz32(bytes[to - 1]) + 24;
  }

  /** `count` bits (0 to 31) that lie at bit `at` of the stream. */
  at(at, count) {
    if (count === 0) return 0;
    let i = this.from + Math.floor(at / 8);
    const shift = at & 7;
    let value = 0;
    let scale = 1;
    for (let got = 0; got < count + shift && i < this.to; got += 8, i++) {
      value += this.bytes[i] * scale;                     // at most 5 bytes: below 2^40, exact
      scale *= 256;
    }
    return Math.floor(value / (1 << shift)) % (2 ** count);
  }

  read(count) {
    this.left -= count;
    if (this.left < 0) bad('a bitstream is too short');
    if (count > 16) return this.at(this.left, count);
    const at = this.left;
    const i = this.from + (at >>> 3);
    if (i + 2 < this.to) {
      return ((this.bytes[i] | (this.bytes[i + 1] << 8) | (this.bytes[i + 2] << 16)) >>> (at & 7)) & ((1 << count) - 1);
    }
    return this.at(at, count);
  }

  done() {
    if (this.left !== 0) bad('a bitstream is not consumed exactly');
  }
}

// --- FSE (4.1) -----------------------------------------------------------------------------------------------------

/** The distribution at `from`: [probabilities, accuracy log, where it ends]. */
function readDistribution(bytes, from, to, maxLog, maxSymbol) {
  const end = (to - from) * 8;
  let at = 0;
  const bits = (count) => {
    if (at + count > end) bad('an FSE table is cut');
    let value = 0;
    for (let i = 0; i < count; i++, at++) value |= ((bytes[from + (at >>> 3)] >>> (at & 7)) & 1) << i;
    return value;
  };
  const log = bits(4) + 5;
  if (log > maxLog) bad('the accuracy of an FSE table is too high');
  const probabilities = [];
  const add = (p) => {
    if (probabilities.length > maxSymbol) bad('an FSE table has a symbol too many');
    probabilities.push(p);
  };
  let left = 1 << log;
  while (left > 0) {
    const width = 32 - Math.clz32(left + 1);
    const few = (1 << width) - 1 - (left + 1);            // so many values take a bit less
    let value = bits(width - 1);
    if (value >= few) {
      value += bits(1) << (width - 1);
      if (value >= 1 << (width - 1)) value -= few;
    }
    const p = value - 1;
    left -= Math.abs(p);
    if (left < 0) bad('the probabilities of an FSE table add up to too much');
    add(p);
    if (p === 0) {
      for (let repeat = 3; repeat === 3;) {
        repeat = bits(2);
        for (let i = 0; i < repeat; i++) add(0);
      }
    }
  }
  return [probabilities, log, from + ((at + 7) >>> 3)];
}

/** The decoding table of a distribution (4.1.1). */
function makeTable(probabilities, log) {
  const size = 1 << log;
  const symbol = new Uint8Array(size);
  const width = new Uint8Array(size);
  const base = new Uint16Array(size);
  const next = new Uint16Array(probabilities.length);
  let high = size;
  probabilities.forEach((p, s) => {
    next[s] = Math.abs(p);
    if (p === -1) symbol[--high] = s;
  });
  const step = (size >> 1) + (size >> 3) + 3;
  let at = 0;
  probabilities.forEach((p, s) => {
    for (let i = 0; i < p; i++) {
      symbol[at] = s;
      do at = (at + step) & (size - 1); while (at >= high);
    }
  });
  for (let state = 0; state < size; state++) {
    const n = next[symbol[state]]++;
    width[state] = log - (31 - Math.clz32(n));
    base[state] = (n << width[state]) - size;
  }
  return { log, symbol, width, base };
}

const single = (s) => ({ log: 0, symbol: Uint8Array.of(s), width: new Uint8Array(1), base: new Uint16Array(1) });

const run = (...pairs) => pairs.flatMap(([value, times]) => Array(times).fill(value));
const KINDS = [
  { name: 'literal lengths', maxLog: 9, maxSymbol: 35,
    preset: makeTable(run([4, 1], [3, 1], [2, 11], [1, 3], [2, 9], [3, 1], [2, 1], [1, 5], [-1, 4]), 6) },
  { name: 'offsets', maxLog: 8, maxSymbol: 31,
    preset: makeTable(run([1, 6], [2, 3], [1, 15], [-1, 5]), 5) },
  { name: 'match lengths', maxLog: 9, maxSymbol: 52,
    preset: makeTable(run([1, 1], [4, 1], [3, 1], [2, 6], [1, 37], [-1, 7]), 6) },
];

/** Baselines from the numbers of extra bits: each code begins where the one before it ends. */
function baselines(first, widths) {
  const base = [first];
  for (let i = 1; i < widths.length; i++) base.push(base[i - 1] + 2 ** widths[i - 1]);
  return [Int32Array.from(base), Uint8Array.from(widths)];
}
const [LL_BASE, LL_BITS] = baselines(0, [...run([0, 16], [1, 4], [2, 2], [3, 2], [4, 1]), 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const [ML_BASE, ML_BITS] = baselines(3, [...run([0, 32], [1, 4], [2, 2], [3, 2], [4, 2]), 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

// --- Huffman (4.2) -------------------------------------------------------------------------------------------------

function readWeights(bytes, from, to) {
  const header = bytes[from++];
  if (header >= 128) {
    const count = header - 127;
    const end = from + ((count + 1) >> 1);
    if (end > to) bad('Huffman weights are cut');
    const weights = Array.from({ length: count }, (_, i) => {
      const byte = bytes[from + (i >> 1)];
      return i & 1 ? byte & 15 : byte >> 4;
    });
    return [weights, end];
  }
  const end = from + header;
  if (end > to) bad('Huffman weights are cut');
  const [probabilities, log, start] = readDistribution(bytes, from, end, 6, 255);
  const table = makeTable(probabilities, log);
  const stream = new Backward(bytes, start, end);
  const weights = [];
  let now = stream.read(log);
  let other = stream.read(log);
  for (;;) {
    if (weights.length > 253) bad('too many Huffman weights');
    weights.push(table.symbol[now]);
    if (table.width[now] > stream.left) {                 // the bits that are missing end it
      weights.push(table.symbol[other]);
      return [weights, end];
    }
    [now, other] = [other, table.base[now] + stream.read(table.width[now])];
  }
}

function readTree(bytes, from, to) {
  if (from >= to) bad('a Huffman tree is missing');
  const [weights, end] = readWeights(bytes, from, to);
  let sum = 0;
  for (const w of weights) {
    if (w > 11) bad('a Huffman weight is too high');
    if (w) sum += 1 << (w - 1);
  }
  if (sum === 0) bad('a Huffman tree of one symbol');
  const log = 32 - Math.clz32(sum);
  if (log > 11) bad('a Huffman tree is too deep');
  const rest = (1 << log) - sum;
  if (rest & (rest - 1)) bad('Huffman weights do not make a power of 2');
  weights.push(32 - Math.clz32(rest));
  if (!weights.includes(1)) bad('no Huffman weight is 1');

  const symbol = new Uint8Array(1 << log);
  const width = new Uint8Array(1 << log);
  let at = 0;
  for (let w = 1; w <= log; w++) {
    for (let s = 0; s < weights.length; s++) {
      if (weights[s] !== w) continue;
      const next = at + (1 << (w - 1));
      symbol.fill(s, at, next);
      width.fill(log + 1 - w, at, next);
      at = next;
    }
  }
  return [{ log, symbol, width }, end];
}

function huffmanStream(tree, bytes, from, to, out, first, last) {
  const stream = new Backward(bytes, from, to);
  const { log, symbol, width } = tree;
  for (let i = first; i < last; i++) {
    const missing = log - stream.left;
    const index = missing > 0 ? stream.at(0, stream.left) << missing : stream.read(log);
    if (missing <= 0) stream.left += log;
    stream.left -= width[index];
    if (stream.left < 0) bad('a Huffman stream is too short');
    out[i] = symbol[index];
  }
  stream.done();
}

// --- the frame -----------------------------------------------------------------------------------------------------

class Frame {
  constructor(bytes, out) {
    this.bytes = bytes;
    this.out = out;                                       // [codec.bounded]: its length is the chunk's decoded length
    this.written = 0;
    this.tree = null;
    this.tables = [null, null, null];
    this.recent = [1, 4, 8];
    this.literals = null;
  }

  decode() {
    const { bytes, out } = this;
    if (bytes.length < 5) bad('no frame header');
    if (bytes[0] !== 0x28 || bytes[1] !== 0xb5 || bytes[2] !== 0x2f || bytes[3] !== 0xfd) {
      bad('another magic');                                                                     // [payload.frame/magic]
    }
    const descriptor = bytes[4];
    const sizeFlag = descriptor >> 6;
    const singleSegment = (descriptor >> 5) & 1;
    if (descriptor & 8) bad('the reserved bit of the descriptor is set');
    if (descriptor & 4) bad('a content checksum');                                              // [payload.frame/checksum]
    if (descriptor & 3) bad('a dictionary ID');                                                 // [payload.frame/dictionary]
    if (sizeFlag === 0 && !singleSegment) bad('no content size');                               // [payload.frame/content-size]
    const sizeWidth = [1, 2, 4, 8][sizeFlag];
    let at = 5;
    if (bytes.length < at + (singleSegment ? 0 : 1) + sizeWidth) bad('the frame header is cut');
    let window = 0;
    if (!singleSegment) {
      const w = bytes[at++];
      const base = 2 ** (10 + (w >> 3));
      window = base + (base / 8) * (w & 7);
    }
    let size = sizeFlag === 1 ? 256 : 0;
    for (let i = 0; i < sizeWidth; i++) size += bytes[at++] * 256 ** i;   // above 2^53 it may be rounded, and is wrong anyway
    if (size !== out.length) bad('another content size');                                       // [payload.frame/content-size]
    if (singleSegment) window = size;
    if (window > WINDOW_MAX) bad('a window above 2^24');                                        // [payload.frame/window]
    this.window = window;
    this.blockMax = Math.min(window, BLOCK_MAX);

    for (let last = 0; !last;) {
      if (at + 3 > bytes.length) bad('a block header is cut');
      const header = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
      at += 3;
      last = header & 1;
      const type = (header >> 1) & 3;
      const length = header >> 3;
      if (length > this.blockMax) bad('a block above the largest size');
      const stored = type === 1 ? 1 : length;
      if (type === 3) bad('a block of the reserved type');
      if (at + stored > bytes.length) bad('a block is cut');
      if (type === 2) {
        this.compressed(at, at + length);
      } else {
        if (length > out.length - this.written) bad('more bytes than the chunk has');
        if (type === 0) out.set(bytes.subarray(at, at + length), this.written);
        else out.fill(bytes[at], this.written, this.written + length);
        this.written += length;
      }
      at += stored;
    }
    if (this.written !== out.length) bad('fewer bytes than the chunk has');
    if (at !== bytes.length) bad('bytes after the frame');                                      // [payload.frame/trailing]
  }

  compressed(from, to) {
    const [literals, count, at] = this.literalsSection(from, to);
    this.sequencesSection(at, to, literals, count);
  }

  literalsSection(from, to) {
    const { bytes } = this;
    if (from >= to) bad('an empty compressed block');
    const type = bytes[from] & 3;
    const format = (bytes[from] >> 2) & 3;
    const headerBytes = type < 2 ? [1, 2, 1, 3][format] : [3, 3, 4, 5][format];
    if (from + headerBytes > to) bad('a literals header is cut');
    let value = 0;
    for (let i = 0; i < headerBytes; i++) value += bytes[from + i] * 256 ** i;
    let at = from + headerBytes;

    const size = type < 2
      ? Math.floor(value / (format & 1 ? 16 : 8))
      : Math.floor(value / 16) % 2 ** [10, 10, 14, 18][format];
    if (size > this.blockMax) bad('more literals than a block may have');
    if (type === 0) {
      if (size > to - at) bad('literals are cut');
      return [bytes.subarray(at, at + size), size, at + size];
    }
    this.literals ??= new Uint8Array(this.blockMax);
    const out = this.literals;
    if (type === 1) {
      if (at >= to) bad('literals are cut');
      out.fill(bytes[at], 0, size);
      return [out, size, at + 1];
    }
    const end = at + Math.floor(value / 2 ** [14, 14, 18, 22][format]);
    if (end > to) bad('literals are cut');
    if (type === 2) [this.tree, at] = readTree(bytes, at, end);
    else if (!this.tree) bad('literals without a tree to repeat');
    if (format === 0) {
      huffmanStream(this.tree, bytes, at, end, out, 0, size);
      return [out, size, end];
    }
    if (size < 6) bad('four streams for less than 6 literals');
    if (end - at < 6) bad('a jump table is cut');
    const part = (size + 3) >> 2;
    let start = at + 6;
    for (let i = 0; i < 4; i++) {
      const stop = i < 3 ? start + (bytes[at + 2 * i] | (bytes[at + 2 * i + 1] << 8)) : end;
      if (stop > end) bad('a literals stream is cut');
      huffmanStream(this.tree, bytes, start, stop, out, i * part, i < 3 ? (i + 1) * part : size);
      start = stop;
    }
    return [out, size, end];
  }

  sequencesSection(at, to, literals, literalCount) {
    const { bytes, out, tables, recent, window } = this;
    if (at >= to) bad('no sequences section');
    let count = bytes[at++];
    if (count >= 128) {
      if (at + (count === 255 ? 2 : 1) > to) bad('a number of sequences is cut');
      if (count === 255) {
        count = bytes[at] + (bytes[at + 1] << 8) + 0x7f00;
        at += 2;
      } else {
        count = ((count - 128) << 8) + bytes[at++];
      }
    }
    const limit = Math.min(out.length, this.written + this.blockMax);
    let pos = this.written;
    let used = 0;
    if (count === 0) {
      if (at !== to) bad('bytes after an empty sequences section');
    } else {
      if (at >= to) bad('compression modes are missing');
      const modes = bytes[at++];
      if (modes & 3) bad('the reserved bits of the compression modes are set');
      for (let i = 0; i < 3; i++) {
        const kind = KINDS[i];
        const mode = (modes >> (6 - 2 * i)) & 3;
        if (mode === 0) {
          tables[i] = kind.preset;
        } else if (mode === 1) {
          if (at >= to) bad('an RLE symbol is missing');
          if (bytes[at] > kind.maxSymbol) bad(`a symbol out of range for ${kind.name}`);
          tables[i] = single(bytes[at++]);
        } else if (mode === 2) {
          const [probabilities, log, end] = readDistribution(bytes, at, to, kind.maxLog, kind.maxSymbol);
          tables[i] = makeTable(probabilities, log);
          at = end;
        } else if (!tables[i]) {
          bad(`no table of ${kind.name} to repeat`);
        }
      }
      const [ll, of, ml] = tables;
      const stream = new Backward(bytes, at, to);
      let llState = stream.read(ll.log);
      let ofState = stream.read(of.log);
      let mlState = stream.read(ml.log);
      while (count-- > 0) {
        const ofCode = of.symbol[ofState];
        const mlCode = ml.symbol[mlState];
        const llCode = ll.symbol[llState];
        const value = 2 ** ofCode + stream.read(ofCode);
        const matchLength = ML_BASE[mlCode] + stream.read(ML_BITS[mlCode]);
        const literalLength = LL_BASE[llCode] + stream.read(LL_BITS[llCode]);
        if (count > 0) {
          llState = ll.base[llState] + stream.read(ll.width[llState]);
          mlState = ml.base[mlState] + stream.read(ml.width[mlState]);
          ofState = of.base[ofState] + stream.read(of.width[ofState]);
        }

        let offset;
        if (value > 3) {
          offset = value - 3;
          recent[2] = recent[1];
          recent[1] = recent[0];
          recent[0] = offset;
        } else {
          const which = value - 1 + (literalLength === 0 ? 1 : 0);
          offset = which === 3 ? recent[0] - 1 : recent[which];
          if (offset === 0) bad('an offset of 0');
          if (which > 1) recent[2] = recent[1];
          if (which > 0) recent[1] = recent[0];
          recent[0] = offset;
        }

        if (literalLength > literalCount - used) bad('more literals than there are');
        if (literalLength + matchLength > limit - pos) bad('a block with too many bytes');
        for (const end = pos + literalLength; pos < end;) out[pos++] = literals[used++];
        if (offset > pos || offset > window) bad('an offset before the start or outside the window');
        if (offset >= matchLength && matchLength > 32) {
          out.copyWithin(pos, pos - offset, pos - offset + matchLength);
          pos += matchLength;
        } else {
          for (const end = pos + matchLength; pos < end; pos++) out[pos] = out[pos - offset];
        }
      }
      stream.done();
    }
    const rest = literalCount - used;
    if (rest > limit - pos) bad('a block with too many bytes');
    out.set(literals.subarray(used, literalCount), pos);
    this.written = pos + rest;
  }
}

/** [codec.zstd]: decodes the frame `bytes` into `out`, filling it whole, or refuses payload.frame. */
export function decodeFrame(bytes, out) {
  new Frame(bytes, out).decode();
}
