// A strict little reader and writer of safetensors, for bases and results. Its refusals are codes of tools (errors.md):
// when they occur is not defined by the specification.
import { refuse } from './errors.mjs';
import { within } from './limits.mjs';
import { compareBytes } from './manifest.mjs';
import { dtypeOf } from './numerics.mjs';
import { utf8 } from './wire.mjs';

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const where = 'safetensors header';
const wrong = (what) => refuse('checkpoint.header', what, where);

/** JSON as the header needs it: objects as arrays of pairs, so that a key that comes twice is seen. Integers as BigInt. */
function parseJson(text) {
  let at = 0;
  const space = () => { while (at < text.length && ' \t\n\r'.includes(text[at])) at++; };
  const take = (c) => {
    if (text[at] !== c) wrong(`'${c}' expected at character ${at}`);
    at++;
  };
  const string = () => {
    if (text[at] !== '"') wrong(`a string expected at character ${at}`);
    let end = at + 1;
    while (end < text.length && text[end] !== '"') end += text[end] === '\\' ? 2 : 1;
    let value;
    try {
      value = JSON.parse(text.slice(at, end + 1));
    } catch {
      wrong(`a bad string at character ${at}`);
    }
    if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(value)) wrong('half a character');
    at = end + 1;
    return value;
  };
  const list = (open, close, item) => {
    take(open);
    const out = [];
    space();
    if (text[at] === close) { at++; return out; }
    for (;;) {
      space();
      out.push(item());
      space();
      if (text[at] === close) { at++; return out; }
      take(',');
    }
  };
  const value = (depth) => {
    if (depth > 4) wrong('nested too deep');
    if (text[at] === '"') return string();
    if (text[at] === '[') return list('[', ']', () => value(depth + 1));
    if (text[at] === '{') return object(depth);
    const digits = /^(0|[1-9][0-9]{0,19})(?![0-9.eE])/.exec(text.slice(at, at + 24));
    if (!digits) wrong(`no value of a header at character ${at}`);
    at += digits[0].length;
    return BigInt(digits[0]);
  };
  const object = (depth) => {
    const pairs = list('{', '}', () => {
      const key = string();
      space();
      take(':');
      space();
      return [key, value(depth + 1)];
    });
    const map = new Map(pairs);
    if (map.size !== pairs.length) refuse('checkpoint.duplicate', 'a key comes twice', where);
    return map;
  };
  const out = object(0);
  space();
  if (at !== text.length) wrong('something after the object');
  return out;
}

const isSize = (n) => typeof n === 'bigint' && n < 1n << 64n;
const plain = (n) => (n <= Number.MAX_SAFE_INTEGER ? Number(n) : n);

/** Map of name to {dtype, shape, bytes}, bytes being views into `file`. */
export function readSafetensors(file, limits) {
  if (file.length < 8) wrong('no header length');
  const length = new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true);
  within(limits, 'checkpoint_header_bytes', length, where);
  if (length > file.length - 8) wrong('the header is cut');
  const dataStart = 8 + Number(length);
  let text;
  try {
    text = UTF8.decode(file.subarray(8, dataStart));
  } catch {
    wrong('not UTF-8');
  }
  if (text[0] !== '{') wrong('no object');
  const header = parseJson(text);
  if (header.has('__metadata__')) {
    const metadata = header.get('__metadata__');
    if (!(metadata instanceof Map) || ![...metadata.values()].every((v) => typeof v === 'string')) wrong('__metadata__');
    header.delete('__metadata__');
  }
  const data = file.subarray(dataStart);
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
    if (from > to || to > data.length) refuse('checkpoint.layout', 'data outside of the file', where);
    within(limits, 'tensor_rank', shape.length, where);                                          // [limit.exceeded/base]
    const bits = shape.reduce((a, b) => a * b, BigInt(dtype.bits));
    within(limits, 'tensor_bytes', (bits + 7n) / 8n, where);                                     // [limit.exceeded/base]
    if (bits !== (to - from) * 8n) refuse('checkpoint.layout', 'data of another size than the shape', where);
    found.push([name, { dtype, shape: shape.map(plain), from: Number(from), to: Number(to) }]);
  }
  found.sort((a, b) => a[1].from - b[1].from || a[1].to - b[1].to);
  let end = 0;
  const tensors = new Map();
  for (const [name, { dtype, shape, from, to }] of found) {
    if (from !== end) refuse('checkpoint.layout', 'data with a hole or an overlap', where);
    end = to;
    tensors.set(name, { dtype, shape, bytes: data.subarray(from, to) });
  }
  if (end !== data.length) refuse('checkpoint.layout', 'data that no tensor has', where);
  return tensors;
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
