// numerics.md: element types, matrix view, START, conversion, rounding. float64 is JavaScript's number.
import { refuse } from './errors.mjs';
import { allocate } from './limits.mjs';

export const DTYPES = new Map();
for (const line of `
  F64 64 float - ulp|F32 32 float add ulp|F16 16 float add ulp|BF16 16 float add ulp|F8_E4M3 8 float - ulp|
  F8_E5M2 8 float - ulp|F8_E8M0 8 uint - ulp|F8_E4M3FNUZ 8 float - ulp|F8_E5M2FNUZ 8 float - ulp|F6_E2M3 6 float - -|
  F6_E3M2 6 float - -|F4 4 float - -|I64 64 int - ulp|I32 32 int - ulp|I16 16 int - ulp|I8 8 int - ulp|U64 64 uint - ulp|
  U32 32 uint - ulp|U16 16 uint - ulp|U8 8 uint - ulp|BOOL 8 bool - -|C64 64 complex - -`.split('|')) {
  const [name, bits, kind, add, ulp] = line.trim().split(' ');
  const b = Number(bits);
  // width: bytes of an item; 0 for the sub-byte types, which are handled as the bytes they fill
  DTYPES.set(name, { name, bits: b, kind, add: add === 'add', ulp: ulp === 'ulp', width: b >= 8 ? b / 8 : 0 });
}

export function dtypeOf(name, where) {
  return DTYPES.get(name) ?? refuse('unsupported.dtype', name.slice(0, 80), where);             // [unsupported.dtype]
}

/** [num.matrix]: E matrices of m rows and n columns. Only for tensors with elements, whose dimensions are small Numbers. */
export function matrixView(shape) {
  const n = shape.length > 0 ? shape[shape.length - 1] : 1;
  const m = shape.length > 1 ? shape[shape.length - 2] : 1;
  return { E: shape.slice(0, -2).reduce((a, b) => a * b, 1), m, n };
}

// --- reading numbers: [num.widen] ----------------------------------------------------------------------------------

const F32 = new Float32Array(1);
const U32 = new Uint32Array(F32.buffer);                  // same machine order as F32: only the value is seen

function fromF16(h) {
  const e = (h >>> 10) & 31;
  const m = h & 1023;
  const v = e === 31 ? (m ? NaN : Infinity) : e === 0 ? m * 2 ** -24 : (1024 + m) * 2 ** (e - 25);
  return h & 0x8000 ? -v : v;
}

function fromBF16(h) {
  U32[0] = h << 16;
  return F32[0];
}

/** Items [from, to) of dtype F32, F16 or BF16, as float64, into `out` from 0. */
export function readNumbers(dtype, bytes, from, to, out) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (dtype.name === 'F32') for (let x = from; x < to; x++) out[x - from] = view.getFloat32(4 * x, true);
  else if (dtype.name === 'F16') for (let x = from; x < to; x++) out[x - from] = fromF16(view.getUint16(2 * x, true));
  else for (let x = from; x < to; x++) out[x - from] = fromBF16(view.getUint16(2 * x, true));
  return out;
}

export function allNumbers(dtype, bytes, limits, where) {
  const count = bytes.length / dtype.width;
  return readNumbers(dtype, bytes, 0, count, new Float64Array(allocate(limits, 8 * count, where).buffer));
}

/** [payload.scale] and its kin on the pages of the encodings. */
export function checkScales(scales, where) {
  for (let i = 0; i < scales.length; i++) {
    const s = scales[i];
    if (!Number.isFinite(s) || Object.is(s, -0) || (s !== 0 && Math.abs(s) < 2 ** -100)) {
      refuse('payload.scale', `scale ${i} is ${Object.is(s, -0) ? '-0' : s}`, where);
    }
  }
  return scales;
}

/** [payload.nonfinite] for stored numbers. */
export function checkFinite(numbers, where) {
  for (let i = 0; i < numbers.length; i++) {
    if (!Number.isFinite(numbers[i])) refuse('payload.nonfinite', `item ${i} is ${numbers[i]}`, where);
  }
  return numbers;
}

// --- rounding: [num.round], [num.convert] --------------------------------------------------------------------------

/** The bits in BF16 of an F32 value that is no NaN: to nearest, ties to even; an infinity where it does not fit. */
function toBF16(f) {
  F32[0] = f;
  const u = U32[0];
  return Math.floor((u + 0x7fff + ((u >>> 16) & 1)) / 65536);
}

/** The bits in F16 of an F32 value that is no NaN: as above, with gradual underflow. */
function toF16(f) {
  F32[0] = f;
  const u = U32[0];
  const sign = (u >>> 16) & 0x8000;
  const e = ((u >>> 23) & 255) - 112;                     // the exponent field in F16
  if (e >= 31) return sign | 0x7c00;
  if (e < -10) return sign;
  const m = (u & 0x7fffff) | (e > 0 ? 0 : 0x800000);      // a normal F32: the smallest F16 is far above its subnormals
  const shift = e > 0 ? 13 : 14 - e;
  const kept = (e > 0 ? e << 10 : 0) + (m >>> shift);
  const rest = m & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return sign | (kept + (rest > half || (rest === half && kept & 1) ? 1 : 0));   // a carry goes into the exponent, as it must
}

const NAN = { F32: 0x7fc00000, BF16: 0x7fc0, F16: 0x7e00 };

/** Writes F32 value `f` as item x of the dtype; returns false if rounding made it infinite. */
function writeNumber(dtype, view, x, f) {
  if (dtype.name === 'F32') {
    view.setFloat32(4 * x, f, true);
    return true;
  }
  const bits = dtype.name === 'F16' ? toF16(f) : toBF16(f);
  view.setUint16(2 * x, bits, true);
  return (bits & 0x7fff) !== (dtype.name === 'F16' ? 0x7c00 : 0x7f80);
}

/** [num.convert]. */
function convert(bytes, from, to, elements, limits, where) {
  const out = allocate(limits, elements * to.width, where);
  const view = new DataView(out.buffer);
  const block = new Float64Array(Math.min(elements, 65536));
  for (let x = 0; x < elements; x += block.length) {
    const end = Math.min(elements, x + block.length);
    readNumbers(from, bytes, x, end, block);
    for (let y = x; y < end; y++) {
      const v = block[y - x];                              // an F32 value exactly, whatever of the three it came from
      if (!Number.isNaN(v)) writeNumber(to, view, y, v);
      else if (to.width === 4) view.setUint32(4 * y, NAN[to.name], true);
      else view.setUint16(2 * y, NAN[to.name], true);
    }
  }
  return out;
}

// --- START ---------------------------------------------------------------------------------------------------------

/** Whether a base is compatible with a result; both {dtype, shape}. */
export function compatible(base, result) {
  if (base.dtype !== result.dtype && !(base.dtype.add && result.dtype.add)) return false;
  const a = base.shape;
  const b = result.shape;
  if (a.length !== b.length) return false;
  return a.every((dim, i) => dim === b[i] || i === 0);    // rank 0: equal; first dimensions may differ
}

/**
 * [num.start], [num.source]: START as bytes of the result, and the source as bytes in a dtype.
 * `base` is null or {dtype, shape, bytes}.
 */
export function makeStart(base, result, limits, where) {
  if (!base || !compatible(base, result)) {
    return { start: allocate(limits, result.bytes, where), source: null, sourceDtype: result.dtype };
  }
  const size = base.dtype === result.dtype ? result.bytes : result.elements * base.dtype.width;
  const source = allocate(limits, size, where);
  source.set(base.bytes.subarray(0, size));
  const start = base.dtype === result.dtype ? source.slice() : convert(source, base.dtype, result.dtype, result.elements, limits, where);
  return { start, source, sourceDtype: base.dtype };
}

const BLOCK = 65536;

/**
 * "Additive components": adds `components` (each {add(acc, from, to), positions or null}) and writes the bits into `start`.
 */
export function addComponents({ start, source, sourceDtype }, result, components, limits, where) {
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
  const acc = new Float64Array(Math.min(BLOCK, result.elements));
  const everywhere = components.some((c) => c.positions === null);
  const addressed = new Uint8Array(acc.length);
  for (let from = 0; from < result.elements; from += BLOCK) {
    const to = Math.min(result.elements, from + BLOCK);
    if (source) readNumbers(sourceDtype, source, from, to, acc); else acc.fill(0);
    addressed.fill(everywhere ? 1 : 0);                                                         // [num.addressed]
    for (const c of components) if (c.positions) c.mark(addressed, from, to);
    for (let i = 0; i < to - from; i++) {
      if (!addressed[i]) continue;
      if (!Number.isFinite(acc[i])) refuse('payload.nonfinite', `element ${from + i} of the base is ${acc[i]}`, where); // [payload.nonfinite]
      acc[i] += 0;                                         // [num.zero]: -0 + +0 is +0
    }
    for (const c of components) c.add(acc, from, to);                                           // [num.order]
    for (let i = 0; i < to - from; i++) {
      if (!addressed[i]) continue;
      const f = Math.fround(acc[i]);                                                            // [num.round]
      if (!Number.isFinite(f) || !writeNumber(result.dtype, view, from + i, f)) {
        refuse('payload.overflow', `element ${from + i} would be ${acc[i]}`, where);            // [payload.overflow]
      }
    }
  }
}
