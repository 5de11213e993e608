// node selftest.mjs [folder of the specification]: the examples of the specification, every single-bit flip and every cut of
// its packs, refusals of packs built here, and zstd frames. Exits with 1 if anything fails.
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeBits } from './apply.mjs';
import { crc32 } from './crc32.mjs';
import { fields } from './document.mjs';
import { ENCODINGS } from './encodings.mjs';
import { CODES, Refusal } from './errors.mjs';
import { makeLimits } from './limits.mjs';
import { checkpointDigest } from './manifest.mjs';
import { dtypeOf, matrixView } from './numerics.mjs';
import { packedBytes, unpack } from './packing.mjs';
import * as reader from './reader.mjs';
import { hex, sha256hex, unhex } from './sha256.mjs';
import { itemsOf } from './storage.mjs';
import { check, open, utf8, wireArray, wireBin, wireInt, wireStr } from './wire.mjs';
import { FRAMES, REFUSED_FRAMES } from './zstd-frames.mjs';
import { decodeFrame } from './zstd.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));
const spec = process.argv[2] ?? path.join(here, '../../../spec');
const limits = makeLimits();
let done = 0;
let failed = 0;

function expect(what, ok, detail = '') {
  done++;
  if (ok) return;
  failed++;
  console.log(`FAIL ${what} ${detail}`);
}

const equal = (what, found, wanted) => expect(what, found === wanted, `\n  found  ${found}\n  wanted ${wanted}`);

/** The code of the refusal of `action`; null if there is none; another exception is a failure. */
function codeOf(what, action) {
  try {
    action();
    return null;
  } catch (e) {
    const fine = e instanceof Refusal && CODES.has(e.code) && /^[ -~]{0,500}$/.test(e.message);
    expect(what, fine, e.stack);
    return fine ? e.code : 'crash';
  }
}

const refused = (what, code, action) => equal(what, codeOf(what, action), code);

// --- the blocks of the pages ---------------------------------------------------------------------------------------

const blocks = new Map();
function readPage(file) {
  for (const [, info, body] of fs.readFileSync(file, 'utf8').matchAll(/^```(\w+ [^\n]+)\n(.*?)^```$/gms)) {
    const [language, key] = info.split(' ');
    const bytes = () => unhex(body.replace(/#.*$/gm, '').replace(/\s+/g, ''));
    blocks.set(`${language} ${key}`, language === 'hex' ? bytes() : language === 'json' ? JSON.parse(body) : body.trim());
  }
}
for (const name of fs.readdirSync(path.join(spec, 'encodings'))) readPage(path.join(spec, 'encodings', name));
for (const name of ['packing.md', 'examples.md']) readPage(path.join(spec, name));
const named = (prefix) => [...blocks.keys()].filter((k) => k.startsWith(prefix)).map((k) => k.slice(prefix.length));

/** The wire form of a JSON rendering; `bins` are the keys whose strings are bins. */
const BINS = new Set(['sha256', 'digest', 'prints', 'chunks', 'error', 'norm', 'projection']);
function wire(value, key = '') {
  if (value instanceof Uint8Array) return value;
  if (typeof value === 'number' || typeof value === 'bigint') return wireInt(value);
  if (typeof value === 'string') return join(BINS.has(key) ? wireBin(unhex(value)) : wireStr(utf8(value)));
  if (Array.isArray(value)) return join([wireArray(value.length), ...value.map((v) => wire(v))]);
  const keys = Object.keys(value).sort();
  const head = keys.length < 16 ? Uint8Array.of(0x80 | keys.length) : Uint8Array.of(0xde, keys.length >> 8, keys.length & 255);
  return join([head, ...keys.flatMap((k) => [...wireStr(utf8(k)), wire(value[k], k)])]);
}

function join(pieces) {
  const out = new Uint8Array(pieces.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of pieces) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

function tensorOf({ dtype, shape }) {
  const d = dtypeOf(dtype);
  const elements = shape.reduce((a, b) => a * b, 1);
  return { dtype: d, shape, elements, bytes: elements * d.bits / 8, ...matrixView(shape) };
}

// --- worked examples -----------------------------------------------------------------------------------------------

{
  const { bits, codes, lanes, stream } = blocks.get('json packing=example');
  for (const [packing, bytes] of Object.entries({ lanes, stream })) {
    equal(`packing ${packing}`, String(unpack(unhex(bytes), codes.length, bits, packing, limits)), String(codes));
    equal(`packing ${packing}, bytes`, packedBytes(BigInt(codes.length), bits, packing), BigInt(bytes.length / 2));
  }
}

for (const name of named('json example=')) {
  const example = blocks.get(`json example=${name}`);
  const content = blocks.get(`hex example=${name}`);
  const t = tensorOf(example.tensor);
  const encoding = ENCODINGS.get(example.component.encoding);
  const document = wire(example.component);
  check(document, limits, name);
  const parameters = encoding.read(fields(open(document), { encoding: 'str', sha256: 'bin', ...encoding.keys }, name), t, name);
  const parts = [...encoding.parts(parameters, t)].map((p) => ({ ...p, count: Number(p.count) }));
  equal(`example ${name}: content`, hex(content), example.content);
  equal(`example ${name}: digest`, sha256hex(content), example.component.sha256);
  const wanted = example.parts.map(({ name: n, width, count }) => ({ name: n, width, count }));
  equal(`example ${name}: parts`, JSON.stringify(parts), JSON.stringify(wanted));
  const items = itemsOf({ index: 0, where: name }, content, { segments: [{ parts }] }, limits);
  for (const part of example.parts) equal(`example ${name}: items of ${part.name}`, hex(items[part.name]), part.items);
  const decoded = encoding.decode(parameters, t, items, limits, name);
  const made = makeBits({ ...t, bytes: unhex(example.start) }, t, [decoded], limits, name);
  equal(`example ${name}: result`, hex(made), example.result);
}

// --- a stack above the block size, element by element ----------------------------------------------------------------
{
  let seed = 1;
  const random = (n) => Math.floor((seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) / 2 ** 32 * n);
  const [E, m, n] = [2, 300, 257];
  const t = tensorOf({ dtype: 'F32', shape: [E, m, n] });
  const floats = (count) => Float32Array.from({ length: count }, () => (random(2000) - 1000) / 4096);
  const codesOf = (count, bits) => Uint8Array.from({ length: count }, () => random(2 ** bits));
  const bytesOf = (a) => new Uint8Array(a.buffer);
  const base = floats(E * m * n);
  base[5] = -0;
  base[70000] = -0;

  const group = 100;
  const G = Math.ceil(n / group);
  const q = codesOf(E * m * n, 8);
  const qScales = floats(E * m * G).map((v) => v || 1);
  const u = codesOf(E * 3 * m, 8);
  const v = codesOf(E * 3 * n, 8);
  const lScales = floats(E).map((x) => x || 1);
  const s = floats(E * 2);
  const fu = codesOf(E * 2 * m, 8);
  const fuScales = floats(E * 2 * Math.ceil(m / group)).map((x) => x || 1);
  const fv = codesOf(E * 2 * n, 8);
  const fvScales = floats(E * 2 * G).map((x) => x || 1);
  const listed = Array.from({ length: E * m * n }, (_, x) => x).filter((x) => x === 5 || x === 65535 || x === 65536 || random(500) === 0);
  const added = floats(listed.length);
  const gaps = [];
  let before = 0;
  for (const x of listed) {
    let gap = x - before;
    for (; gap >= 255; gap -= 255) gaps.push(255);
    gaps.push(gap);
    before = x + 1;
  }
  const all = [
    ['sparse', { index: 'gap8', mode: 'add', count: listed.length, dtype: t.dtype, gaps: gaps.length },
      { index: Uint8Array.from(gaps), values: bytesOf(added) }, (x, acc) => (listed.includes(x) ? acc + added[listed.indexOf(x)] : acc)],
    ['blockq', { bits: 8, group, packing: 'lanes', scale: t.dtype, zero: 77 }, { codes: q, scales: bytesOf(qScales) },
      (x, acc) => acc + (2 * q[x] - 77) * qScales[Math.floor(x / n) * G + Math.floor((x % n) / group)]],
    ['lowrank', { packing: 'lanes', slices: [{ bitsU: 8, bitsV: 8, rank: 3 }] }, { scales: bytesOf(lScales), u0: u, v0: v },
      (x, acc, e, i, j) => {
        let dot = 0;
        for (let k = 0; k < 3; k++) dot += (u[(e * m + i) * 3 + k] - 128) * (v[(e * n + j) * 3 + k] - 128);
        return acc + dot * lScales[e];
      }],
    ['factors', { group, packing: 'lanes', scale: t.dtype, bands: [{ code: 'Q8', bits: 8, rank: 2 }] },
      { s0: bytesOf(s), u0: fu, u_scales0: bytesOf(fuScales), v0: fv, v_scales0: bytesOf(fvScales) },
      (x, acc, e, i, j) => {
        for (let k = 0; k < 2; k++) {
          const w = e * 2 + k;
          const a = (2 * fu[w * m + i] - 255) * fuScales[w * Math.ceil(m / group) + Math.floor(i / group)] * s[w];
          acc += a * ((2 * fv[w * n + j] - 255) * fvScales[w * G + Math.floor(j / group)]);
        }
        return acc;
      }],
  ];
  for (const chosen of [[0], [1], [2], [3], [0, 1, 2, 3]]) {
    const decoded = chosen.map((c) => ENCODINGS.get(all[c][0]).decode(all[c][1], t, all[c][2], limits, 'stack'));
    const found = new Float32Array(makeBits({ ...t, bytes: bytesOf(base) }, t, decoded, limits, 'stack').buffer);
    let wrong = 0;
    for (let y = 0; y < 4000; y++) {
      const x = y < listed.length ? listed[y] : y < 2000 ? 65536 - 1000 + y - listed.length : random(E * m * n);
      let acc = base[x];
      if (chosen[0] || chosen.length > 1 || listed.includes(x)) acc += 0;
      for (const c of chosen) acc = all[c][3](x, acc, Math.floor(x / (m * n)), Math.floor(x / n) % m, x % n);
      if (!Object.is(found[x], Math.fround(acc))) wrong++;
    }
    equal(`stack ${chosen}`, wrong, 0);
  }
}

// --- the four packs ------------------------------------------------------------------------------------------------

const packs = named('hex pack=');
expect('four packs', packs.length === 4);
for (const name of packs) {
  const pack = blocks.get(`hex pack=${name}`);
  const base = () => reader.openBase(blocks.get(`hex base=${name}`));
  const wanted = blocks.get(`json result=${name}`);
  const found = reader.inspect(pack);
  equal(`${name}: pack_id`, found.pack_id, blocks.get(`text pack_id=${name}`));
  for (const document of ['manifest', 'storage']) {
    const rendering = blocks.get(`json ${document}=${name}`);
    equal(`${name}: ${document}`, JSON.stringify(found[document]), JSON.stringify(rendering));
    equal(`${name}: ${document} in wire form`, sha256hex(wire(rendering)), sha256hex(reader.openPack(pack)[`${document}Bytes`]));
  }
  const { tensors, files } = reader.apply(pack, base());
  const shown = [...tensors].map(([n, t]) => ({ name: n, dtype: t.dtype.name, shape: t.shape, hex: hex(t.bytes) }));
  equal(`${name}: result`, JSON.stringify(shown), JSON.stringify(wanted.tensors));
  const sides = files.map((f) => ({ name: f.name, length: f.bytes.length, sha256: sha256hex(f.bytes) }));
  equal(`${name}: side files`, JSON.stringify(sides), JSON.stringify(wanted.files));
  const again = reader.openBase(join(reader.writeSafetensors(tensors)));
  equal(`${name}: written and read`, checkpointDigest(again.listing.map(([b, n, t]) => [b, { ...t, sha256: again.sha256(t) }])),
    found.manifest.result.digest);
  for (const t of wanted.tensors) {
    const one = reader.decode(pack, base(), t.name);
    equal(`${name}: decode ${t.name}`, hex(one.bytes), t.hex);
    if (t.shape.length) {
      const rows = reader.sliceRows(one, 1, t.shape[0]);
      equal(`${name}: slice ${t.name}`, hex(rows.bytes), t.hex.slice(t.hex.length / t.shape[0]));
    }
  }
  refused(`${name}: no such tensor`, 'usage.argument', () => reader.decode(pack, base(), 'none'));

  let flips = 0;
  for (let bit = 0; bit < 8 * pack.length; bit++) {
    const other = pack.slice();
    other[bit >> 3] ^= 1 << (bit & 7);
    if (codeOf(`${name}: flip of bit ${bit}`, () => reader.validate(other)) !== null) flips++;
  }
  equal(`${name}: flips refused`, flips, 8 * pack.length);
  for (let length = 0; length < pack.length; length++) {
    refused(`${name}: cut at ${length}`, 'framing.truncated', () => reader.validate(pack.subarray(0, length)));
  }
  refused(`${name}: longer`, 'framing.trailing-bytes', () => reader.validate(join([pack, Uint8Array.of(0)])));
  const baseBytes = blocks.get(`hex base=${name}`);
  for (let bit = 0; bit < 8 * baseBytes.length; bit++) {
    const other = baseBytes.slice();
    other[bit >> 3] ^= 1 << (bit & 7);
    const code = codeOf(`${name}: base, flip of bit ${bit}`, () => reader.apply(pack, reader.openBase(other)));
    const blank = bit < 64 || baseBytes[bit >> 3] === 0x20;   // white space after the header may change into other white space
    expect(`${name}: base, flip of bit ${bit} refused`, code !== null || blank, code);
  }
}

// --- packs built here ----------------------------------------------------------------------------------------------

const SHA = (bytes) => sha256hex(bytes);
function planes(parts) {
  return join(parts.flatMap(([width, bytes]) => Array.from({ length: width }, (_, p) => bytes.filter((_b, i) => i % width === p))));
}

/**
 * A pack of one tensor `w` and a base for it. `edit(manifest, storage)` changes the renderings, `bytes` the file's bytes.
 * contents: [[component without sha256, [[width, item bytes], ...]], ...]
 */
function build({ base, result, contents = [], chunk = 4096, edit = () => {}, codec = 'raw', chunks = null, entry = {} }) {
  const kind = ({ dtype, shape, bytes }) => ({ dtype, shape, sha256: SHA(bytes) });
  const digest = (t) => checkpointDigest(t ? [[utf8('w'), { dtype: dtypeOf(t.dtype), shape: t.shape, sha256: SHA(t.bytes) }]] : []);
  const bodies = contents.map(([, parts]) => planes(parts));
  const e = { class: 'other', module: '', name: 'w', ...entry };
  if (base) e.base = kind(base);
  if (result) {
    e.result = kind(result);
    e.components = contents.map(([c], i) => ({ ...c, sha256: SHA(bodies[i]) }));
  }
  const manifest = {
    base: { count: base ? 1 : 0, digest: digest(base), prints: base ? SHA(base.bytes).slice(0, 8) : '' },
    files: [], format: 'skillpack/1', metadata: {},
    result: { count: result ? 1 : 0, digest: digest(result) }, tensors: [e],
  };
  const pieces = [];
  const segments = contents.map(([, parts], i) => {
    const stored = chunks ? chunks[i] : parts.flatMap(([width, bytes]) => Array.from({ length: width }, (_, p) =>
      bytes.filter((_b, x) => x % width === p))).filter((p) => p.length);
    let table = '';
    for (const s of stored) {
      const record = new Uint8Array(8);
      new DataView(record.buffer).setUint32(0, s.length, true);
      new DataView(record.buffer).setUint32(4, crc32(s), true);
      table += hex(record);
      pieces.push(s);
    }
    return { chunks: table, codec };
  });
  const storage = { chunk_bytes: chunk, segments };
  edit(manifest, storage, pieces);
  const file = assemble(wire(manifest), wire(storage), join(pieces));
  const tensors = new Map(base ? [['w', { ...base, dtype: dtypeOf(base.dtype) }]] : []);
  return { file, base: new reader.Base(tensors) };
}

function assemble(m, s, d) {
  const header = join([m, s]);
  const file = new Uint8Array(128 + header.length + d.length);
  file.set(unhex('89534b500d0a1a0a0100'));
  const view = new DataView(file.buffer);
  view.setUint32(12, crc32(header), true);
  [m, s, header, d].forEach((b, i) => view.setBigUint64(16 + 8 * i, BigInt(b.length), true));
  file.set(unhex(sha256hex(m)), 48);
  file.set(unhex(sha256hex(s)), 80);
  view.setUint32(124, crc32(file.subarray(0, 124)), true);
  file.set(header, 128);
  file.set(d, 128 + header.length);
  return file;
}

const f32 = (...v) => new Uint8Array(new Float32Array(v).buffer);   // the test runs on little-endian machines
const u16 = (...v) => new Uint8Array(Uint16Array.from(v).buffer);
const T = (dtype, shape, bytes) => ({ dtype, shape, bytes });
const ONE = { base: T('F32', [2], f32(1, 2)), result: T('F32', [2], f32(2, 4)) };
const ADD = [{ dtype: 'F32', encoding: 'dense', mode: 'add' }, [[4, f32(1, 2)]]];

function both(what, code, options) {
  const { file, base } = build(options);
  if (code === null) equal(what, codeOf(what, () => reader.apply(file, base, { limits: options.limits })), null);
  else refused(what, code, () => reader.validate(file, base, { limits: options.limits }));
}

both('a pack built here', null, { ...ONE, contents: [ADD] });
both('two additive components and ulp', null, { ...ONE, contents: [ADD, ADD, [{ encoding: 'ulp', sort: 'none' }, [[4, new Uint8Array(8)]]]],
  result: T('F32', [2], f32(3, 6)) });
for (const [what, code, edit] of [
  ['unknown key', 'manifest.unknown-key', (m) => { m.more = 1; }],
  ['missing key', 'manifest.missing-key', (m) => { delete m.files; }],
  ['type', 'manifest.type', (m) => { m.files = 1; }],
  ['format', 'manifest.value', (m) => { m.format = 'skillpack/2'; }],
  ['class', 'manifest.value', (m) => { m.tensors[0].class = 'x'; }],
  ['prints', 'manifest.value', (m) => { m.base.prints = '00'; }],
  ['a huge base.count', 'limit.exceeded', (m) => { m.base.count = 2n ** 64n - 1n; }],
  ['base.count', 'manifest.value', (m) => { m.base = { count: 0, digest: m.base.digest, prints: '' }; m.result.count = 0; }],
  ['result.count', 'manifest.value', (m) => { m.result.count = 2; }],
  ['name', 'manifest.name', (m) => { m.tensors[0].name = 'a b'; }],
  ['module', 'manifest.name', (m) => { m.tensors[0].module = '\u00e9'; }],
  ['a long name', 'limit.exceeded', (m) => { m.tensors[0].name = 'x'.repeat(513); }],
  ['order', 'manifest.order', (m) => { m.tensors.push(m.tensors[0]); }],
  ['side file', 'manifest.file-name', (m) => { m.files.push({ length: 1, name: '../x', sha256: '0'.repeat(64) }); }],
  ['dtype', 'unsupported.dtype', (m) => { m.tensors[0].base.dtype = 'F99'; }],
  ['encoding', 'unsupported.encoding', (m) => { m.tensors[0].components[0] = { encoding: 'x-y', odd: [] }; }],
  ['component without encoding', 'manifest.missing-key', (m) => { delete m.tensors[0].components[0].encoding; }],
  ['rank', 'limit.exceeded', (m) => { m.tensors[0].base.shape = [1, 1, 1, 1, 1, 1, 1, 1, 2]; }],
  ['a huge shape', 'limit.exceeded', (m) => { m.tensors[0].base.shape = [2n ** 63n, 2n ** 63n, 8]; }],
  ['half a byte', 'manifest.shape', (m) => { Object.assign(m.tensors[0].base, { dtype: 'F4', shape: [3] }); }],
  ['no tensor', 'manifest.tensor', (m) => { const [e] = m.tensors; delete e.base; delete e.result; delete e.components; }],
  ['unchanged', 'manifest.tensor', (m) => { m.tensors[0].base = m.tensors[0].result; }],
  ['alias without result', 'manifest.alias', (m) => { const [e] = m.tensors; delete e.result; delete e.components; e.alias = 'w'; }],
  ['alias of itself', 'manifest.alias', (m) => { delete m.tensors[0].components; m.tensors[0].alias = 'w'; }],
  ['no components', 'manifest.components', (m) => { delete m.tensors[0].components; }],
  ['empty components', 'manifest.components', (m) => { m.tensors[0].components = []; }],
  ['too many components', 'limit.exceeded', (m) => { m.tensors[0].components = Array(9).fill(m.tensors[0].components[0]); }],
  ['order of components', 'manifest.components', (m) => {
    const [c] = m.tensors[0].components;
    m.tensors[0].components = [{ encoding: 'ulp', sha256: c.sha256, sort: 'none' }, c];
  }],
  ['additive on integers', 'manifest.components', (m) => { m.tensors[0].result.dtype = 'I32'; }],
  ['mode', 'manifest.parameter', (m) => { m.tensors[0].components[0].mode = 'x'; }],
  ['stats', 'manifest.value', (m) => { m.tensors[0].stats = { norm: '00' }; }],
  ['chunk_bytes', 'storage.chunk-bytes', (m, s) => { s.chunk_bytes = 4097; }],
  ['chunk_bytes above 2^24', 'storage.chunk-bytes', (m, s) => { s.chunk_bytes = 2 ** 25; }],
  ['segments', 'storage.segments', (m, s) => { s.segments = []; }],
  ['codec', 'unsupported.codec', (m, s) => { s.segments[0].codec = 'lz4'; }],
  ['chunk table', 'storage.chunk-table', (m, s) => { s.segments[0].chunks += '00'; }],
  ['stored length 0', 'storage.chunk-length', (m, s) => { s.segments[0].chunks = s.segments[0].chunks.replace(/^02/, '00'); }],
  ['stored length above', 'storage.chunk-length', (m, s) => { s.segments[0].chunks = s.segments[0].chunks.replace(/^02/, '03'); }],
  ['data length', 'storage.data-length', (m, s, pieces) => { pieces.push(Uint8Array.of(0)); }],
  ['CRC-32', 'integrity.chunk', (m, s, pieces) => { pieces[0] = Uint8Array.of(1, 1); }],
  ['content', 'integrity.content', (m) => { m.tensors[0].components[0].sha256 = '0'.repeat(64); }],
  ['digest of the result', 'integrity.result', (m) => { m.result.digest = '0'.repeat(64); }],
  ['digest of the base', 'base.content', (m) => { m.base.digest = '0'.repeat(64); }],
  ['print', 'base.content', (m) => { m.base.prints = '00000000'; }],
]) both(what, code, { ...ONE, contents: [ADD], edit });
both('payload.nonfinite of a value', 'payload.nonfinite', { ...ONE, contents: [[ADD[0], [[4, f32(NaN, 0)]]]] });
both('payload.nonfinite of the base', 'payload.nonfinite', { ...ONE, base: T('F32', [2], f32(Infinity, 0)), contents: [ADD] });
both('payload.overflow in F32', 'payload.overflow', { ...ONE, base: T('F32', [2], f32(3e38, 0)), contents: [[ADD[0], [[4, f32(3e38, 0)]]]] });
both('payload.overflow in F16', 'payload.overflow', { base: T('F16', [1], u16(0x7bff)), result: T('F16', [1], u16(0)), contents: [[ADD[0], [[4, f32(16)]]]] });
both('no overflow in F16', null, { base: T('F16', [2], u16(0x7bff, 0)), result: T('F16', [2], u16(0x7bff, 0x3c00)),
  contents: [[ADD[0], [[4, f32(15.9, 1)]]]] });
both('wrong result', 'integrity.result', { ...ONE, contents: [[ADD[0], [[4, f32(1, 3)]]]] });
both('BOOL', 'payload.value', { base: T('BOOL', [1], u16(0).subarray(1)), result: T('BOOL', [1], Uint8Array.of(2)),
  contents: [[{ dtype: 'BOOL', encoding: 'dense', mode: 'replace' }, [[1, Uint8Array.of(2)]]]] });
both('converted, rows appended', null, { base: T('F16', [1, 2], u16(0x0001, 0xfe00)), contents: [],
  result: T('BF16', [2, 2], u16(0x3380, 0x7fc0, 0, 0)) });
both('converted with infinity, rows cut', null, { base: T('F32', [3, 1], join([f32(65520, -65519.9), f32(1)])), contents: [],
  result: T('F16', [2, 1], u16(0x7c00, 0xfbff)) });

const SPARSE = { count: 1, dtype: 'F32', encoding: 'sparse', gaps: 1, index: 'gap8', mode: 'add' };
const sparse = (code, more, index, values = f32(1), result = f32(2, 2)) => both(`sparse ${code} ${JSON.stringify(more)}`, code,
  { base: T('F32', [2], f32(1, 2)), result: T('F32', [2], result), contents: [[{ ...SPARSE, ...more }, [[more.index === 'gap16' ? 2 : 1, index], [4, values]]]] });
sparse(null, {}, Uint8Array.of(0));
sparse('payload.position', {}, Uint8Array.of(2));
sparse('payload.position', { gaps: 1 }, Uint8Array.of(255));
sparse('manifest.parameter', { gaps: 2 }, Uint8Array.of(0, 0));
sparse('manifest.parameter', { count: 3, gaps: 3 }, Uint8Array.of(0, 0, 0));
sparse('payload.padding-bits', { index: 'bitmap', gaps: 0 }, Uint8Array.of(4));
sparse('payload.position', { index: 'bitmap', gaps: 0 }, Uint8Array.of(3));
sparse('payload.position', { index: 'bitmap', gaps: 0 }, Uint8Array.of(0));
sparse(null, { index: 'bitmap', gaps: 0 }, Uint8Array.of(1));

const BLOCKQ = { bits: 3, encoding: 'blockq', group: 2, packing: 'stream', scale: 'F32', zero: 7 };
const blockq = (code, more, parts) => both(`blockq ${code} ${JSON.stringify(more)}`, code, { ...ONE, contents: [[{ ...BLOCKQ, ...more }, parts]] });
blockq('payload.padding-bits', {}, [[1, Uint8Array.of(0x40)], [4, f32(1)]]);
blockq('payload.padding-bits', { packing: 'lanes' }, [[1, Uint8Array.of(0x80)], [4, f32(1)]]);
blockq('payload.scale', {}, [[1, Uint8Array.of(0)], [4, f32(-0)]]);
blockq('payload.scale', {}, [[1, Uint8Array.of(0)], [4, f32(2 ** -101)]]);
blockq('payload.scale', {}, [[1, Uint8Array.of(0)], [4, f32(NaN)]]);
blockq('manifest.parameter', { zero: 15 }, [[1, Uint8Array.of(0)], [4, f32(1)]]);
blockq('manifest.parameter', { bits: 9 }, [[1, Uint8Array.of(0)], [4, f32(1)]]);
blockq('manifest.parameter', { group: 0 }, [[1, Uint8Array.of(0)], [4, f32(1)]]);
blockq('manifest.parameter', { scale: 'F64' }, [[1, Uint8Array.of(0)], [4, f32(1)]]);
{
  const { zero, ...noZero } = BLOCKQ;
  both('blockq payload.code', 'payload.code', { ...ONE, contents: [[noZero, [[1, Uint8Array.of(0)], [4, f32(1)], [2, u16(15)]]]] });
}
const LOWRANK = (slice) => [{ encoding: 'lowrank', packing: 'stream', slices: [{ bits_u: 8, bits_v: 8, rank: 1, ...slice }] },
  [[4, f32(1)], [1, Uint8Array.of(129)], [1, Uint8Array.of(129, 130)]]];
both('lowrank', null, { ...ONE, contents: [LOWRANK({})] });
both('lowrank rank', 'manifest.parameter', { ...ONE, contents: [LOWRANK({ rank: 2 })] });
both('lowrank bits', 'manifest.parameter', { ...ONE, contents: [LOWRANK({ bits_u: 0 })] });
both('factors rank 0', 'manifest.parameter', { ...ONE, contents: [[{ bands: [{ code: 'F32', rank: 0 }], encoding: 'factors', group: 1,
  packing: 'lanes', scale: 'F32' }, []]] });
both('factors nonfinite', 'payload.nonfinite', { ...ONE, contents: [[{ bands: [{ code: 'F32', rank: 1 }], encoding: 'factors', group: 1,
  packing: 'lanes', scale: 'F32' }, [[4, f32(Infinity)], [4, f32(1)], [4, f32(1, 1)]]]] });
both('ulp on BOOL', 'manifest.parameter', { base: T('BOOL', [1], Uint8Array.of(0)), result: T('BOOL', [1], Uint8Array.of(1)), contents: [[{ encoding: 'ulp', sort: 'none' }, [[1, Uint8Array.of(2)]]]] });
for (const kind of ['F64', 'I64', 'U64']) {               // 8 bytes: the pattern 0 one step up
  const up = { F64: 1n, I64: 1n, U64: 1n }[kind];
  both(`ulp ${kind}`, null, { base: T(kind, [1], new Uint8Array(8)), result: T(kind, [1], new Uint8Array(BigUint64Array.of(up).buffer)),
    contents: [[{ encoding: 'ulp', sort: 'none' }, [[8, new Uint8Array(BigUint64Array.of(2n).buffer)]]]] });
  const down = { F64: 1n << 63n, I64: 2n ** 64n - 1n, U64: 2n ** 64n - 1n }[kind];
  both(`ulp ${kind} down`, null, { base: T(kind, [1], new Uint8Array(8)), result: T(kind, [1], new Uint8Array(BigUint64Array.of(down).buffer)),
    contents: [[{ encoding: 'ulp', sort: 'none' }, [[8, new Uint8Array(BigUint64Array.of(1n).buffer)]]]] });
}
for (const [name, value] of [['tensors', 0], ['tensor_bytes', 7], ['tensor_rank', 0], ['components', 0], ['name_bytes', 0], ['header_nodes', 10],
  ['header_depth', 3], ['manifest_bytes', 10], ['storage_bytes', 10], ['chunk_bytes', 4095]]) {
  both(`limit ${name}`, 'limit.exceeded', { ...ONE, contents: [ADD], limits: { [name]: value } });
}

// Every single-bit flip of a document, with right digests: accepted or refused, never anything else.
const flipCodes = new Map();
for (const name of packs) {
  const pack = blocks.get(`hex pack=${name}`);
  const { manifestBytes, storageBytes, data } = reader.openPack(pack);
  const base = reader.openBase(blocks.get(`hex base=${name}`));
  for (const which of [0, 1]) {
    for (let bit = 0; bit < 8 * [manifestBytes, storageBytes][which].length; bit++) {
      const documents = [manifestBytes.slice(), storageBytes.slice()];
      documents[which][bit >> 3] ^= 1 << (bit & 7);
      const code = codeOf(`${name}: document ${which}, flip of bit ${bit}`, () => reader.validate(assemble(...documents, data), base));
      flipCodes.set(code, (flipCodes.get(code) ?? 0) + 1);
    }
  }
}
expect('flips within documents reach many codes', flipCodes.size > 25);
if (process.env.VERBOSE) console.log([...flipCodes].sort().map(([c, n]) => `${c} ${n}`).join('\n'));

// Wire
for (const [bytes, code] of [['cc07', 'wire.not-shortest'], ['d007', 'wire.type'], ['ff', 'wire.type'], ['a261', 'wire.truncated'],
  ['82a16290a16101', 'wire.key-order'], ['82a16101a16101', 'wire.key-order'], ['c5000200ff', 'wire.not-shortest'], ['8080', 'wire.trailing'],
  ['', 'wire.truncated'], ['c0', 'wire.type'], ['ddffffffff', 'wire.truncated'], ['a1ff', 'wire.utf8'], ['a3eda080', 'wire.utf8'], ['a2c080', 'wire.utf8'],
  ['810101', 'wire.key-type'], ['81a2c3a901', 'wire.key-type'], ['919191919191919190', 'limit.exceeded'], ['cf00000000ffffffff', 'wire.not-shortest'],
  ['d91f', 'wire.not-shortest'], ['cfffffffffffffff', 'wire.truncated'], ['82a261620', 'wire.truncated']]) {
  refused(`wire ${bytes}`, code, () => check(unhex(bytes), limits, 'wire'));
}
for (const bytes of ['07', 'cd012c', 'a26162', '82a16101a16290', 'c40200ff', '80', '9191919191919190', 'cfffffffffffffffff', 'a3efbbbf', 'a4f48fbfbf']) {
  equal(`wire ${bytes}`, codeOf(`wire ${bytes}`, () => check(unhex(bytes), limits, 'wire')), null);
}

// --- zstd ----------------------------------------------------------------------------------------------------------

for (const { what, frame, size, sha256 } of FRAMES) {
  const bytes = unhex(frame);
  const out = new Uint8Array(size);
  equal(`zstd ${what}`, codeOf(`zstd ${what}`, () => decodeFrame(bytes, out)), null);
  equal(`zstd ${what}: bytes`, sha256hex(out), sha256);
  refused(`zstd ${what}: other size`, 'payload.frame', () => decodeFrame(bytes, new Uint8Array(size + 1)));
  refused(`zstd ${what}: trailing`, 'payload.frame', () => decodeFrame(join([bytes, Uint8Array.of(0)]), out));
  for (let length = 0; length < bytes.length; length++) {
    refused(`zstd ${what}: cut at ${length}`, 'payload.frame', () => decodeFrame(bytes.subarray(0, length), out));
  }
  for (let bit = 0; bit < 8 * bytes.length; bit++) {
    const other = bytes.slice();
    other[bit >> 3] ^= 1 << (bit & 7);
    const code = codeOf(`zstd ${what}: flip of bit ${bit}`, () => decodeFrame(other, out));
    expect(`zstd ${what}: flip of bit ${bit}`, code === null || code === 'payload.frame', code);
  }
}
for (const { what, frame, size } of REFUSED_FRAMES) refused(`zstd ${what}`, 'payload.frame', () => decodeFrame(unhex(frame), new Uint8Array(size)));

console.log(`${done} checks, ${failed} failed`);
process.exit(failed ? 1 : 0);
