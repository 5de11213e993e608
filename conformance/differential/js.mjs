// The reader `js` as one of the readers of the differential run: batches on stdin, a line of answers on stdout.
// A batch is u32 n | n bytes of JSON | blob, little-endian; JSON is {limits, size, bases: [[from, to]], packs: [[op, base, from, to]]}
// with positions in the blob of `size` bytes. The line is an array of [code, what was made].
import fs from 'node:fs';
import { createHash } from 'node:crypto';
import * as reader from '../readers/js/reader.mjs';

const hash = (data) => createHash('sha256').update(data).digest('hex');
const ascending = (a, b) => (a < b ? -1 : a > b ? 1 : 0); // names are ASCII

function read(size) {
  const found = Buffer.alloc(size);
  for (let at = 0; at < size;) {
    const count = fs.readSync(0, found, at, size - at, null);
    if (count === 0) process.exit(0);
    at += count;
  }
  return found;
}

/** JSON as Python's json.dumps writes it: keys sorted, no white space, ASCII. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (value !== null && typeof value === 'object') {
    return `{${Object.keys(value).sort(ascending).map((key) => `${canonical(key)}:${canonical(value[key])}`).join(',')}}`;
  }
  return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function applied({ tensors, files }) {
  const lines = [...tensors].sort((a, b) => ascending(a[0], b[0]))
    .map(([name, t]) => `${name} ${t.dtype.name} ${t.shape.join(',')} ${hash(t.bytes)}`);
  return [...lines, ...files.map((f) => `file ${f.name} ${hash(f.bytes)}`)].join('\n');
}

function answer(op, pack, base, limits) {
  try {
    if (op === 'apply') return ['', applied(reader.apply(pack, base, { limits }))];
    if (op === 'inspect') return ['', hash(canonical(reader.inspect(pack, { limits })))];
    reader.validate(pack, null, { limits });
    return ['', 'valid'];
  } catch (e) {
    return e instanceof reader.Refusal ? [e.code, ''] : ['crash', String(e.stack)];
  }
}

for (;;) {
  const { limits, size, bases, packs } = JSON.parse(read(read(4).readUInt32LE(0)).toString('utf8'));
  const blob = new Uint8Array(read(size));
  const opened = new Map();
  const open = (k) => () => {
    if (!opened.has(k)) opened.set(k, reader.openBase(blob.subarray(...bases[k]), { limits }));
    return opened.get(k);
  };
  const answers = packs.map(([op, base, from, to]) => answer(op, blob.subarray(from, to), open(base), limits));
  const line = Buffer.from(`${JSON.stringify(answers)}\n`);
  for (let at = 0; at < line.length;) at += fs.writeSync(1, line, at);
}
