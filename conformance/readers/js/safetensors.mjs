// A strict little reader and writer of safetensors, for bases and results. Its refusals are codes of tools (errors.md):
// when they occur is not defined by the specification.
import { refuse } from './errors.mjs';
import { parseJson } from './json.mjs';
import { within } from './limits.mjs';
import { compareBytes } from './manifest.mjs';
import { dtypeOf } from './numerics.mjs';
import { utf8 } from './wire.mjs';

const where = 'safetensors header';
const wrong = (what) => refuse('checkpoint.header', what, where);

const isSize = (n) => typeof n === 'bigint' && n < 1n << 64n;
const plain = (n) => (n <= Number.MAX_SAFE_INTEGER ? Number(n) : n);

/** The tensors of a header in the order of their data: [name, {dtype, shape, from, to}]. */
export function readHeader(bytes, limits) {
  if (bytes[0] !== 0x7b) wrong('no object');
  const header = parseJson(bytes);
  if (header.has('__metadata__')) {
    const metadata = header.get('__metadata__');
    if (!(metadata instanceof Map) || ![...metadata.values()].every((v) => typeof v === 'string')) wrong('__metadata__');
    header.delete('__metadata__');
  }
  within(limits, 'tensors', header.size, where);                                                 // [limit.exceeded/base]
  const found = [];
  for (const [name, value] of header) {
    if (!/^[!-~]+$/.test(name)) refuse('checkpoint.name', 'a name no pack can hold', where);     // [apply.base-names]
    within(limits, 'name_bytes', name.length, where);                                            // [limit.exceeded/base]
    if (!(value instanceof Map) || value.size !== 3) wrong('a tensor without its three keys');
    const dtypeName = value.get('dtype');
    const shape = value.get('shape');
    const offsets = value.get('data_offsets');
    if (typeof dtypeName !== 'string') wrong('a dtype');
    if (!Array.isArray(shape) || !shape.every(isSize)) wrong('a shape');
    if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) wrong('data_offsets');
    const dtype = dtypeOf(dtypeName, where);
    const [from, to] = offsets;
    within(limits, 'tensor_rank', shape.length, where);                                          // [limit.exceeded/base]
    const bits = shape.reduce((a, b) => a * b, BigInt(dtype.bits));
    within(limits, 'tensor_bytes', (bits + 7n) / 8n, where);                                     // [limit.exceeded/base]
    if (bits !== (to - from) * 8n) refuse('checkpoint.layout', 'data of another size than the shape', where);
    found.push([name, { dtype, shape: shape.map(plain), from, to }]);
  }
  found.sort((a, b) => (a[1].from === b[1].from ? Number(a[1].to - b[1].to) : a[1].from < b[1].from ? -1 : 1));
  let end = 0n;
  for (const [, { from, to }] of found) {
    if (from !== end) refuse('checkpoint.layout', 'data with a hole or an overlap', where);
    end = to;
  }
  return found;
}

/** Map of name to {dtype, shape, bytes}, bytes being views into `file`. */
export function readSafetensors(file, limits) {
  if (file.length < 8) wrong('no header length');
  const length = new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true);
  within(limits, 'checkpoint_header_bytes', length, where);
  if (length > file.length - 8) wrong('the header is cut');
  const data = file.subarray(8 + Number(length));
  const found = readHeader(file.subarray(8, 8 + Number(length)), limits);
  const end = found.length ? found[found.length - 1][1].to : 0n;
  if (end !== BigInt(data.length)) refuse('checkpoint.layout', `the tensors end at ${end}, the data at ${data.length}`, where);
  return new Map(found.map(([name, { dtype, shape, from, to }]) => [name, { dtype, shape, bytes: data.subarray(Number(from), Number(to)) }]));
}

/** The pieces of a safetensors file of the tensors (Map of name to {dtype, shape, bytes}), widest dtype first. */
export function writeSafetensors(tensors) {
  const sorted = [...tensors].map(([name, t]) => [utf8(name), name, t])
    .sort((a, b) => b[2].dtype.bits - a[2].dtype.bits || compareBytes(a[0], b[0]));
  let end = 0;
  const entries = [];
  for (const [, name, { dtype, shape, bytes }] of sorted) {
    const begin = end;
    end += bytes.length;
    entries.push(`${JSON.stringify(name)}:{"dtype":"${dtype.name}","shape":[${shape.join(',')}],"data_offsets":[${begin},${end}]}`);
  }
  let header = utf8(`{${entries.join(',')}}`);
  const padded = new Uint8Array(8 + Math.ceil(header.length / 8) * 8).fill(0x20);
  padded.set(header, 8);
  header = padded;
  new DataView(header.buffer).setBigUint64(0, BigInt(header.length - 8), true);
  return [header, ...sorted.map(([, , t]) => t.bytes)];
}
