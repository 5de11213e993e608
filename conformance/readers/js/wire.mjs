// wire.md: the strict msgpack of the two documents. `check` passes over a document without building anything; `open` and its
// kin then walk the checked bytes as far as someone asks, so a document never costs more memory than what is made of it.
import { refuse } from './errors.mjs';
import { within } from './limits.mjs';
import { hex, unhex } from './sha256.mjs';

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const TO_UTF8 = new TextEncoder();
export const utf8 = (text) => TO_UTF8.encode(text);

const FORMS = new Map([
  [0xcc, ['int', 1]], [0xcd, ['int', 2]], [0xce, ['int', 4]], [0xcf, ['int', 8]],
  [0xd9, ['str', 1]], [0xda, ['str', 2]], [0xdb, ['str', 4]],
  [0xc4, ['bin', 1]], [0xc5, ['bin', 2]], [0xc6, ['bin', 4]],
  [0xdc, ['array', 2]], [0xdd, ['array', 4]], [0xde, ['map', 2]], [0xdf, ['map', 4]],
]);
// The largest value of the form before: a value up to it has a shorter one.
const BELOW = {
  int: { 1: 127, 2: 255, 4: 65535, 8: 4294967295 },
  str: { 1: 31, 2: 255, 4: 65535 },
  bin: { 1: -1, 2: 255, 4: 65535 },
  array: { 2: 15, 4: 65535 },
  map: { 2: 15, 4: 65535 },
};
const NEEDS = { str: 1, bin: 1, array: 1, map: 2 };

/** The first bytes of a value at `at`: {type, n, start}; n is the integer, or the length. */
function head(bytes, at, where) {
  if (at >= bytes.length) refuse('wire.truncated', `nothing at byte ${at}`, where);            // [wire.truncated]
  const first = bytes[at];
  if (first < 0x80) return { type: 'int', n: first, start: at + 1 };
  if (first < 0x90) return { type: 'map', n: first & 15, start: at + 1 };
  if (first < 0xa0) return { type: 'array', n: first & 15, start: at + 1 };
  if (first < 0xc0) return { type: 'str', n: first & 31, start: at + 1 };
  const form = FORMS.get(first);
  if (!form) refuse('wire.type', `byte ${first.toString(16)} at ${at}`, where);                // [wire.type]
  const [type, width] = form;
  if (bytes.length - at - 1 < width) refuse('wire.truncated', `cut at byte ${at}`, where);     // [wire.truncated]
  let n = 0;
  if (width < 8) {
    for (let i = 1; i <= width; i++) n = n * 256 + bytes[at + i];
  } else {
    let big = 0n;
    for (let i = 1; i <= 8; i++) big = (big << 8n) | BigInt(bytes[at + i]);
    n = big <= Number.MAX_SAFE_INTEGER ? Number(big) : big;
  }
  if (n <= BELOW[type][width]) refuse('wire.not-shortest', `at byte ${at}`, where);            // [wire.not-shortest]
  return { type, n, start: at + 1 + width };
}

/** Stage 10 for one document. */
export function check(bytes, limits, where) {
  let nodes = 0;
  const most = 4096 + Math.floor(bytes.length / 5);
  const count = (values) => {
    within(limits, 'header_nodes', nodes += values, where);                                    // [limit.exceeded/nodes]
    if (nodes > most) refuse('limit.exceeded', `${nodes} values, its bytes allow ${most}`, where); // [limit.exceeded/density]
  };

  function key(at, before) {
    const h = head(bytes, at, where);
    if (h.type !== 'str') refuse('wire.key-type', `a key at byte ${at} is not a str`, where);  // [wire.key-type]
    const end = value(at, 0);
    for (let i = h.start; i < end; i++) {
      if (bytes[i] > 0x7f) refuse('wire.key-type', `a key at byte ${at} is not ASCII`, where); // [wire.key-type]
    }
    if (before) {                                                                              // [wire.key-order]
      const length = Math.min(before.n, h.n);
      let i = 0;
      while (i < length && bytes[before.start + i] === bytes[h.start + i]) i++;
      const after = i < length ? bytes[h.start + i] > bytes[before.start + i] : h.n > before.n;
      if (!after) refuse('wire.key-order', `at byte ${at}`, where);
    }
    return [h, end];
  }

  function value(at, depth) {
    const { type, n, start } = head(bytes, at, where);
    if (type === 'int') return start;
    if (n * NEEDS[type] > bytes.length - start) {                                              // [wire.truncated]
      refuse('wire.truncated', `${type} of ${n} at byte ${at}`, where);
    }
    if (type === 'bin') return start + n;
    if (type === 'str') {
      let i = start;
      while (i < start + n && bytes[i] < 0x80) i++;
      try {
        if (i < start + n) UTF8.decode(bytes.subarray(i, start + n));
      } catch {
        refuse('wire.utf8', `at byte ${at}`, where);                                           // [wire.utf8]
      }
      return start + n;
    }
    within(limits, 'header_depth', depth + 1, where);                                          // [limit.exceeded/depth]
    count(type === 'map' ? 2 * n : n);
    let next = start;
    if (type === 'array') {
      for (let i = 0; i < n; i++) next = value(next, depth + 1);
      return next;
    }
    let before = null;
    for (let i = 0; i < n; i++) {
      [before, next] = key(next, before);
      next = value(next, depth + 1);
    }
    return next;
  }

  count(1);
  const end = value(0, 0);
  if (end !== bytes.length) refuse('wire.trailing', `${bytes.length - end} bytes after it`, where); // [wire.trailing]
}

// --- walking a checked document -----------------------------------------------------------------------------------

export function open(bytes, at = 0) {
  return { ...head(bytes, at, ''), bytes };
}

function skip(bytes, at) {
  for (let left = 1; left > 0; left--) {
    const { type, n, start } = head(bytes, at, '');
    at = type === 'str' || type === 'bin' ? start + n : start;
    if (type === 'array') left += n;
    if (type === 'map') left += 2 * n;
  }
  return at;
}

export function text(value) {
  return UTF8.decode(raw(value));
}

export function raw(value) {
  return value.bytes.subarray(value.start, value.start + value.n);
}

export function* items(value) {
  for (let i = 0, at = value.start; i < value.n; i++) {
    yield open(value.bytes, at);
    if (i + 1 < value.n) at = skip(value.bytes, at);
  }
}

export function* pairs(value) {
  for (let i = 0, at = value.start; i < value.n; i++) {
    const key = open(value.bytes, at);
    at = key.start + key.n;
    yield [text(key), open(value.bytes, at)];
    if (i + 1 < value.n) at = skip(value.bytes, at);
  }
}

/** [json.rendering], as what JSON.stringify renders. */
export function rendering(value) {
  switch (value.type) {
    case 'int': return typeof value.n === 'bigint' ? String(value.n) : value.n;
    case 'str': return text(value);
    case 'bin': return hex(raw(value));
    case 'array': return Array.from(items(value), rendering);
    default: {
      const out = Object.create(null);
      for (const [key, child] of pairs(value)) out[key] = rendering(child);
      return out;
    }
  }
}

// --- writing (for the checkpoint digest) --------------------------------------------------------------------------

function form(n, fix, limit, codes) {
  if (n < limit) return Uint8Array.of(fix | Number(n));
  const widths = codes.length === 2 ? [2, 4] : [1, 2, 4, 8];
  for (let i = 0; i < codes.length; i++) {
    const width = widths[i];
    if (BigInt(n) >> BigInt(8 * width) !== 0n) continue;
    return unhex(codes[i].toString(16) + BigInt(n).toString(16).padStart(2 * width, '0'));
  }
  throw new RangeError('no form holds it');
}

export const wireInt = (n) => form(n, 0, 128, [0xcc, 0xcd, 0xce, 0xcf]);
export const wireArray = (n) => form(n, 0x90, 16, [0xdc, 0xdd]);

export function wireStr(bytes) {
  return [form(bytes.length, 0xa0, 32, [0xd9, 0xda, 0xdb]), bytes];
}

export function wireBin(bytes) {
  return [form(bytes.length, 0, 0, [0xc4, 0xc5, 0xc6]), bytes];
}
