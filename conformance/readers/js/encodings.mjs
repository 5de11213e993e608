// encodings/*.md. Each encoding has
//   keys        its parameters, besides `encoding` and `sha256` (document.mjs, fields)
//   read        parameters from the document, checked against the result tensor t = {dtype, shape, elements, bytes, E, m, n}
//   additive    whether the component adds
//   parts       its parts in order: {name, width, count}; counts are BigInts, since nothing has bounded them yet
//   decode      from the items of the parts: checks every value, gives {add(acc, from, to), positions, mark} or {rewrite(bits)}
// A name is looked up in the closed table ENCODINGS and nowhere else ([safe.no-code]).
import { fields } from './document.mjs';
import { refuse } from './errors.mjs';
import { allocate } from './limits.mjs';
import { allNumbers, checkFinite, checkScales, dtypeOf, DTYPES } from './numerics.mjs';
import { packedBytes, unpack } from './packing.mjs';
import { items as itemsOf, text } from './wire.mjs';

const parameter = (what, where) => refuse('manifest.parameter', what, where);                   // [manifest.parameter]

function integer(value, least, most, name, where) {
  if (value.n < least || value.n > most) parameter(`${name} is ${value.n}, not ${least} to ${most}`, where);
  return Number(value.n);
}

function choice(value, allowed, name, where) {
  const word = text(value);
  if (!allowed.includes(word)) parameter(`${name} is ${word.slice(0, 80)}`, where);
  return word;
}

const MODES = ['add', 'replace'];
const PACKINGS = ['stream', 'lanes'];
const NUMBERS = ['F32', 'F16', 'BF16'];

/** The dtype of values to be added or put in place. */
function valueDtype(value, mode, t, where) {
  const dtype = dtypeOf(text(value), where);
  if (mode === 'add' ? !dtype.add : dtype !== t.dtype) parameter(`dtype ${dtype.name} in mode ${mode}`, where);
  return dtype;
}

function checkBool(dtype, values, where) {
  if (dtype.name !== 'BOOL') return;
  for (let i = 0; i < values.length; i++) {
    if (values[i] > 1) refuse('payload.value', `item ${i} of BOOL is ${values[i]}`, where);     // [payload.value]
  }
}

/** Calls each(row, from column, to column, index of the first in acc) for the parts of rows in [from, to). */
function rows(n, from, to, each) {
  for (let x = from; x < to;) {
    const row = Math.floor(x / n);
    const j = x - row * n;
    const end = Math.min(n, j + to - x);
    each(row, j, end, x - from);
    x += end - j;
  }
}

// --- dense ---------------------------------------------------------------------------------------------------------

const dense = {
  keys: { dtype: 'str', mode: 'str' },
  read(f, t, where) {
    const mode = choice(f.mode, MODES, 'mode', where);                                          // [manifest.parameter/dense-mode]
    return { mode, dtype: valueDtype(f.dtype, mode, t, where) };                                // [manifest.parameter/dense-dtype]
  },
  additive: (p) => p.mode === 'add',
  *parts(p, t) {
    yield { name: 'values', width: p.dtype.width || 1, count: BigInt(p.dtype.width ? t.elements : t.bytes) };
  },
  decode(p, t, { values }, limits, where) {
    checkBool(p.dtype, values, where);
    if (p.mode === 'replace') return { rewrite: (bits) => bits.set(values) };                   // [dense.replace]
    const numbers = checkFinite(allNumbers(p.dtype, values, limits, where), where);             // [payload.nonfinite/dense]
    return {
      positions: null,
      add(acc, from, to) {                                                                      // [dense.add]
        for (let x = from; x < to; x++) acc[x - from] += numbers[x];
      },
    };
  },
};

// --- sparse --------------------------------------------------------------------------------------------------------

const ESCAPES = { gap8: 255, gap16: 65535 };

function gapPositions(p, t, index, positions, where) {                                          // [sparse.gaps]
  const escape = ESCAPES[p.index];
  const width = p.index === 'gap8' ? 1 : 2;
  let position = 0;
  let found = 0;
  let v = 0;
  for (let i = 0; i < index.length; i += width) {
    v = width === 1 ? index[i] : index[i] | (index[i + 1] << 8);
    if (v === escape) {
      position += escape;
      continue;
    }
    position += v;
    if (found === p.count) refuse('payload.position', `more than ${p.count} elements listed`, where); // [payload.position]
    if (position >= t.elements) refuse('payload.position', `position ${position} of ${t.elements}`, where); // [payload.position/range]
    positions[found++] = position++;
  }
  if (index.length && v === escape) refuse('payload.position', 'the last item is an escape', where); // [payload.position/escape]
  return found;
}

function bitmapPositions(p, t, index, positions, where) {                                       // [sparse.bitmap]
  let found = 0;
  for (let i = 0; i < index.length; i++) {
    for (let byte = index[i]; byte; byte &= byte - 1) {
      const x = i * 8 + 31 - Math.clz32(byte & -byte);
      if (x >= t.elements) refuse('payload.padding-bits', `bit ${x} of ${t.elements}`, where);  // [payload.padding-bits/bitmap]
      if (found === p.count) refuse('payload.position', `more than ${p.count} elements listed`, where); // [payload.position]
      positions[found++] = x;
    }
  }
  return found;
}

const sparse = {
  keys: { count: 'int', dtype: 'str', gaps: 'int', index: 'str', mode: 'str' },
  read(f, t, where) {
    const index = choice(f.index, ['gap8', 'gap16', 'bitmap'], 'index', where);                 // [manifest.parameter/sparse-values]
    const mode = choice(f.mode, MODES, 'mode', where);
    const count = integer(f.count, 0, t.elements, 'count', where);
    const dtype = valueDtype(f.dtype, mode, t, where);                                          // [manifest.parameter/sparse-dtype]
    if (!dtype.width) parameter(`dtype ${dtype.name} is sub-byte`, where);
    const gaps = index === 'bitmap'                                                             // [manifest.parameter/sparse-gaps]
      ? integer(f.gaps, 0, 0, 'gaps', where)
      : integer(f.gaps, count, count + Math.floor(t.elements / ESCAPES[index]), 'gaps', where);
    return { index, mode, count, dtype, gaps };
  },
  additive: (p) => p.mode === 'add',
  *parts(p, t) {
    if (p.index === 'bitmap') yield { name: 'index', width: 1, count: BigInt(Math.ceil(t.elements / 8)) };
    else yield { name: 'index', width: p.index === 'gap8' ? 1 : 2, count: BigInt(p.gaps) };
    yield { name: 'values', width: p.dtype.width, count: BigInt(p.count) };
  },
  decode(p, t, { index, values }, limits, where) {
    const positions = new Float64Array(allocate(limits, 8 * p.count, where).buffer);
    const found = (p.index === 'bitmap' ? bitmapPositions : gapPositions)(p, t, index, positions, where);
    if (found !== p.count) refuse('payload.position', `${found} elements listed, not ${p.count}`, where); // [payload.position]
    checkBool(p.dtype, values, where);
    if (p.mode === 'replace') {
      const { width } = p.dtype;
      return {
        rewrite(bits) {                                                                         // [sparse.replace]
          for (let k = 0; k < positions.length; k++) {
            for (let b = 0; b < width; b++) bits[positions[k] * width + b] = values[k * width + b];
          }
        },
      };
    }
    const numbers = checkFinite(allNumbers(p.dtype, values, limits, where), where);             // [payload.nonfinite/sparse]
    const firstFrom = (x) => {
      let low = 0;
      let high = positions.length;
      while (low < high) {
        const mid = Math.floor((low + high) / 2);
        if (positions[mid] < x) low = mid + 1; else high = mid;
      }
      return low;
    };
    return {
      positions,
      mark(addressed, from, to) {
        for (let k = firstFrom(from); k < positions.length && positions[k] < to; k++) addressed[positions[k] - from] = 1;
      },
      add(acc, from, to) {                                                                      // [sparse.add]
        for (let k = firstFrom(from); k < positions.length && positions[k] < to; k++) acc[positions[k] - from] += numbers[k];
      },
    };
  },
};

// --- blockq --------------------------------------------------------------------------------------------------------

const blockq = {
  keys: { bits: 'int', group: 'int', packing: 'str', scale: 'str', zero: 'int?' },
  read(f, t, where) {                                                                           // [manifest.parameter/blockq]
    const bits = integer(f.bits, 1, 8, 'bits', where);
    return {
      bits,
      group: integer(f.group, 1, 2 ** 32, 'group', where),
      packing: choice(f.packing, PACKINGS, 'packing', where),
      scale: DTYPES.get(choice(f.scale, NUMBERS, 'scale', where)),
      zero: f.zero ? integer(f.zero, 0, 2 ** (bits + 1) - 2, 'zero', where) : null,
    };
  },
  additive: () => true,
  *parts(p, t) {
    const groups = BigInt(t.E) * BigInt(t.m) * BigInt(Math.ceil(t.n / p.group));
    yield { name: 'codes', width: 1, count: packedBytes(BigInt(t.elements), p.bits, p.packing) };
    yield { name: 'scales', width: p.scale.width, count: groups };
    if (p.zero === null) yield { name: 'zeros', width: 2, count: groups };
  },
  decode(p, t, parts, limits, where) {
    const codes = unpack(parts.codes, t.elements, p.bits, p.packing, limits, where);
    const scales = checkScales(allNumbers(p.scale, parts.scales, limits, where), where);        // [payload.scale/blockq]
    const { zeros } = parts;
    const most = 2 ** (p.bits + 1) - 2;
    if (zeros) {
      for (let g = 0; g < scales.length; g++) {
        const z = zeros[2 * g] | (zeros[2 * g + 1] << 8);
        if (z > most) refuse('payload.code', `zero point ${g} is ${z}`, where);                 // [payload.code]
      }
    }
    const G = Math.ceil(t.n / p.group);
    return {
      positions: null,
      add(acc, from, to) {                                                                      // [blockq.contribution]
        rows(t.n, from, to, (row, j0, j1, at) => {
          for (let j = j0; j < j1; j++) {
            const g = row * G + Math.floor(j / p.group);
            const zero = zeros ? zeros[2 * g] | (zeros[2 * g + 1] << 8) : p.zero;
            acc[at + j - j0] += (2 * codes[row * t.n + j] - zero) * scales[g];
          }
        });
      },
    };
  },
};

// --- lowrank -------------------------------------------------------------------------------------------------------

const lowrank = {
  keys: { packing: 'str', slices: 'array' },
  terms: (p) => p.slices.reduce((sum, { rank }) => sum + rank, 0),
  read(f, t, where) {                                                                           // [manifest.parameter/lowrank]
    const packing = choice(f.packing, PACKINGS, 'packing', where);
    if (f.slices.n < 1 || f.slices.n > 64) parameter(`${f.slices.n} slices`, where);
    const slices = Array.from(itemsOf(f.slices), (value) => {
      const s = fields(value, { bits_u: 'int', bits_v: 'int', rank: 'int' }, where);
      const bitsU = integer(s.bits_u, 1, 8, 'bits_u', where);
      const bitsV = integer(s.bits_v, 1, 8, 'bits_v', where);
      const rank = integer(s.rank, 1, Math.min(t.m, t.n), 'rank', where);
      if (rank * 2 ** (bitsU + bitsV - 2) > 2 ** 24) parameter(`rank ${rank} is too high for exact products`, where); // [manifest.parameter/lowrank-product]
      return { bitsU, bitsV, rank };
    });
    return { packing, slices };
  },
  additive: () => true,
  *parts(p, t) {
    const E = BigInt(t.E);
    yield { name: 'scales', width: 4, count: E * BigInt(p.slices.length) };
    for (const [s, { bitsU, bitsV, rank }] of p.slices.entries()) {
      yield { name: `u${s}`, width: 1, count: packedBytes(E * BigInt(rank) * BigInt(t.m), bitsU, p.packing) };
      yield { name: `v${s}`, width: 1, count: packedBytes(E * BigInt(rank) * BigInt(t.n), bitsV, p.packing) };
    }
  },
  decode(p, t, parts, limits, where) {
    const { E, m, n } = t;
    const scales = checkScales(allNumbers(DTYPES.get('F32'), parts.scales, limits, where), where); // [payload.scale/lowrank]
    const slices = p.slices.map(({ bitsU, bitsV, rank }, s) => ({
      rank,
      midU: 2 ** (bitsU - 1),                                                                   // [lowrank.value]
      midV: 2 ** (bitsV - 1),
      u: unpack(parts[`u${s}`], E * rank * m, bitsU, p.packing, limits, where),
      v: unpack(parts[`v${s}`], E * rank * n, bitsV, p.packing, limits, where),
    }));
    return {
      positions: null,
      add(acc, from, to) {                                                                      // [lowrank.contribution]
        const dot = new Int32Array(Math.min(n, to - from));                                     // [num.exact-product]
        rows(n, from, to, (row, j0, j1, at) => {
          const e = Math.floor(row / m);
          const i = row - e * m;
          for (const [s, { rank, midU, midV, u, v }] of slices.entries()) {
            const left = (e * m + i) * rank;
            for (let j = j0; j < j1; j++) {
              const right = (e * n + j) * rank;
              let sum = 0;
              for (let k = 0; k < rank; k++) sum += (u[left + k] - midU) * (v[right + k] - midV);
              dot[j - j0] = sum;
            }
            for (let j = j0; j < j1; j++) acc[at + j - j0] += dot[j - j0] * scales[e * slices.length + s];
          }
        });
      },
    };
  },
};

// --- factors -------------------------------------------------------------------------------------------------------

const CODES = [...NUMBERS, 'Q1', 'Q2', 'Q3', 'Q4', 'Q5', 'Q6', 'Q7', 'Q8'];

/** [factors.value]: all of U (or V) as exact float64; `length` is m (or n). */
function factor(p, band, bytes, scaleBytes, E, length, limits, where) {
  if (!band.bits) return checkFinite(allNumbers(DTYPES.get(band.code), bytes, limits, where), where); // [payload.nonfinite/factors]
  const vectors = E * band.rank;
  const codes = unpack(bytes, vectors * length, band.bits, p.packing, limits, where);
  const scales = checkScales(allNumbers(p.scale, scaleBytes, limits, where), where);            // [payload.scale/factors]
  const out = new Float64Array(allocate(limits, 8 * codes.length, where).buffer);
  const groups = Math.ceil(length / p.group);
  const most = 2 ** band.bits - 1;
  for (let row = 0, x = 0; row < vectors; row++) {
    for (let i = 0; i < length; i++, x++) out[x] = (2 * codes[x] - most) * scales[row * groups + Math.floor(i / p.group)];
  }
  return out;
}

const factors = {
  keys: { bands: 'array', group: 'int', packing: 'str', scale: 'str' },
  terms: (p) => p.bands.reduce((sum, { rank }) => sum + rank, 0),
  read(f, t, where) {                                                                           // [manifest.parameter/factors]
    const group = integer(f.group, 1, 2 ** 32, 'group', where);
    const packing = choice(f.packing, PACKINGS, 'packing', where);
    const scale = DTYPES.get(choice(f.scale, NUMBERS, 'scale', where));
    if (f.bands.n < 1 || f.bands.n > 64) parameter(`${f.bands.n} bands`, where);
    const bands = Array.from(itemsOf(f.bands), (value) => {
      const b = fields(value, { code: 'str', rank: 'int' }, where);
      const code = choice(b.code, CODES, 'code', where);
      return { code, bits: code[0] === 'Q' ? Number(code[1]) : 0, rank: integer(b.rank, 1, Math.min(t.m, t.n), 'rank', where) };
    });
    return { group, packing, scale, bands };
  },
  additive: () => true,
  *parts(p, t) {
    for (const [b, { code, bits, rank }] of p.bands.entries()) {
      const vectors = BigInt(t.E) * BigInt(rank);
      yield { name: `s${b}`, width: 4, count: vectors };
      for (const [name, length] of [['u', t.m], ['v', t.n]]) {
        const count = vectors * BigInt(length);
        if (!bits) {
          yield { name: `${name}${b}`, width: DTYPES.get(code).width, count };
        } else {
          yield { name: `${name}${b}`, width: 1, count: packedBytes(count, bits, p.packing) };
          yield { name: `${name}_scales${b}`, width: p.scale.width, count: vectors * BigInt(Math.ceil(length / p.group)) };
        }
      }
    }
  },
  decode(p, t, parts, limits, where) {
    const { E, m, n } = t;
    const bands = p.bands.map((band, b) => ({
      rank: band.rank,
      s: checkFinite(allNumbers(DTYPES.get('F32'), parts[`s${b}`], limits, where), where),      // [payload.nonfinite/factors]
      u: factor(p, band, parts[`u${b}`], parts[`u_scales${b}`], E, m, limits, where),
      v: factor(p, band, parts[`v${b}`], parts[`v_scales${b}`], E, n, limits, where),
    }));
    return {
      positions: null,
      add(acc, from, to) {                                                                      // [factors.contribution]
        rows(n, from, to, (row, j0, j1, at) => {
          const e = Math.floor(row / m);
          const i = row - e * m;
          for (const { rank, s, u, v } of bands) {
            for (let k = 0; k < rank; k++) {
              const vector = e * rank + k;
              const a = u[vector * m + i] * s[vector];
              const first = vector * n;
              for (let j = j0; j < j1; j++) {
                const c = a * v[first + j];                // JavaScript rounds every operation by itself: [factors.fma]
                acc[at + j - j0] += c;
              }
            }
          }
        });
      },
    };
  },
};

// --- ulp -----------------------------------------------------------------------------------------------------------

/** order(bits) and its inverse for w up to 32, in Numbers; `half` is 2^(w-1). */
const ORDERS = {
  float: [(b, half) => (b >= half ? 2 * half - 1 - b : b + half), (o, half) => (o >= half ? o - half : 2 * half - 1 - o)],
  int: [(b, half) => (b >= half ? b - half : b + half), (o, half) => (o >= half ? o - half : o + half)],
  uint: [(b) => b, (o) => o],
};

const ORDERS64 = (() => {
  const half = 1n << 63n;
  return {
    float: [(b) => (b >= half ? 2n * half - 1n - b : b + half), (o) => (o >= half ? o - half : 2n * half - 1n - o)],
    int: [(b) => b ^ half, (o) => o ^ half],
    uint: [(b) => b, (o) => o],
  };
})();

function ulp64(kind, bits, diff) {
  const [order, bitsOf] = ORDERS64[kind];
  for (let x = 0; x < bits.byteLength; x += 8) {
    const z = diff.getBigUint64(x, true);
    const d = z & 1n ? -((z + 1n) / 2n) : z / 2n;
    bits.setBigUint64(x, bitsOf(BigInt.asUintN(64, order(bits.getBigUint64(x, true)) + d)), true);
  }
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

const KEY_AT = { F32: 15, F16: 10, BF16: 7 };

/** [ulp.sort]: the element that each place of `diff` belongs to. `classes` may be null; rows have `cols` elements. */
function sortedElements(bits, { name, width }, classes, cols) {
  const get = `getUint${8 * width}`;
  const key = (x) => (bits[get](x * width, true) % 2 ** (8 * width - 1)) >>> KEY_AT[name];
  const count = bits.byteLength / width;
  const elements = new Uint32Array(count).map((_, x) => x);
  for (let first = 0; first < count; first += 2 ** 18) {
    const span = elements.subarray(first, Math.min(count, first + 2 ** 18));
    sortStably(span, key, 2 ** 16);                          // the less important one first: equal ones stay in order
    if (classes) sortStably(span, (x) => classes[Math.floor(x / cols)], 256);
  }
  return elements;
}

/** Sorts by counting. `of` gives integers from 0 to values - 1. */
function sortStably(elements, of, values) {
  const places = new Uint32Array(values + 1);                // where the elements of each value begin
  for (const x of elements) places[of(x) + 1]++;
  for (let k = 1; k < values; k++) places[k] += places[k - 1];
  for (const x of elements.slice()) elements[places[of(x)]++] = x;
}

const ulp = {
  keys: { sort: 'str' },
  read(f, t, where) {
    if (!t.dtype.ulp) parameter(`ulp on ${t.dtype.name}`, where);                               // [manifest.parameter/ulp]
    const sort = choice(f.sort, ['magnitude', 'none', 'rows'], 'sort', where);                  // [manifest.parameter/ulp-sort]
    if (sort !== 'none' && !(t.dtype.name in KEY_AT)) parameter(`sort ${sort} of ${t.dtype.name}`, where);
    return { sort };
  },
  additive: () => false,
  *parts(p, t) {
    if (p.sort === 'rows') yield { name: 'classes', width: 1, count: BigInt(t.E) * BigInt(t.m) };
    yield { name: 'diff', width: t.dtype.width, count: BigInt(t.elements) };
  },
  decode(p, t, parts) {
    const { kind, width } = t.dtype;
    return {
      rewrite(bytes) {                                                                          // [ulp.decode]
        const bits = viewOf(bytes);
        const diff = viewOf(parts.diff);
        if (width === 8) {
          ulp64(kind, bits, diff);
          return;
        }
        const [order, bitsOf] = ORDERS[kind];
        const half = 2 ** (8 * width - 1);
        const get = `getUint${8 * width}`;
        const set = `setUint${8 * width}`;
        const classes = p.sort === 'rows' ? parts.classes : null;
        const elements = p.sort === 'none' ? null : sortedElements(bits, t.dtype, classes, t.n);
        for (let place = 0; place < bytes.length; place += width) {
          const x = elements ? elements[place / width] * width : place;
          const z = diff[get](place, true);
          const d = z % 2 ? -(z + 1) / 2 : z / 2;
          let o = order(bits[get](x, true), half) + d;
          if (o < 0) o += 2 * half; else if (o >= 2 * half) o -= 2 * half;
          bits[set](x, bitsOf(o, half), true);
        }
      },
    };
  },
};

export const ENCODINGS = new Map([
  ['dense', dense], ['sparse', sparse], ['blockq', blockq], ['lowrank', lowrank], ['factors', factors], ['ulp', ulp],
]);
