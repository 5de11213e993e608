// The conformance adapter, SKP-CP/1: a JSON object a line on stdin, one a line on stdout, in order. Node only.
import fs from 'node:fs';
import readline from 'node:readline';
import { Refusal, refuse } from './errors.mjs';
import * as reader from './reader.mjs';

const NAME = 'js';
const VERSION = '1';
const OPS = ['validate', 'inspect', 'decode', 'slice', 'apply', 'folder'];

function load(path, what) {
  if (typeof path !== 'string') refuse('usage.argument', `${what} is not a path`);
  try {
    const bytes = fs.readFileSync(path);
    return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  } catch (e) {
    if (e.code === 'ERR_FS_FILE_TOO_LARGE') refuse('limit.exceeded', `${what} is larger than Node reads at once`);
    return refuse(e.code === 'ENOENT' && what === 'base' ? 'checkpoint.missing' : 'input.failed', `${what}: ${e.code}`);
  }
}

/** What stands before DATA, and the size of the file: all that inspect looks at ([reader.levels]). */
function loadHead(path, options) {
  if (typeof path !== 'string') refuse('usage.argument', 'pack is not a path');
  try {
    const file = fs.openSync(path, 'r');
    try {
      const { size } = fs.fstatSync(file);
      const read = (count) => {
        const found = new Uint8Array(count);
        return found.subarray(0, fs.readSync(file, found, 0, count, 0));
      };
      return { head: read(reader.headOf(read(Math.min(size, 128)), size, options)), size };
    } finally {
      fs.closeSync(file);
    }
  } catch (e) {
    if (e instanceof Refusal) throw e;
    return refuse('input.failed', `pack: ${e.code}`);
  }
}

/** [apply.complete]: writes beside the place and moves. */
function store(path, pieces) {
  if (typeof path !== 'string') refuse('usage.argument', 'out is not a path');
  const temporary = `${path}.${process.pid}.part`;
  try {
    const file = fs.openSync(temporary, 'w');
    try {
      for (const piece of pieces) for (let at = 0; at < piece.length;) at += fs.writeSync(file, piece, at);
    } finally {
      fs.closeSync(file);
    }
    fs.renameSync(temporary, path);
  } catch (e) {
    fs.rmSync(temporary, { force: true });
    refuse('output.failed', `out: ${e.code}`);
  }
}

/** [apply.complete], [safe.no-paths]: a new folder, so without links, that gets its name when it holds everything. */
function storeFolder(path, files) {
  const temporary = `${path}.${process.pid}.part`;
  try {
    fs.mkdirSync(temporary);
    for (const [name, pieces] of files) store(`${temporary}/${name}`, pieces);
    fs.renameSync(temporary, path);
  } catch (e) {
    fs.rmSync(temporary, { recursive: true, force: true });
    if (e instanceof Refusal) throw e;
    refuse('output.failed', `out: ${e.code}`);
  }
}

const shown = ({ dtype, shape }) => ({ dtype: dtype.name, shape: shape.map((n) => (typeof n === 'bigint' ? String(n) : n)) });

function answer(request) {
  const { op, limits } = request;
  const options = { limits };
  const pack = () => load(request.pack, 'pack');
  const base = () => reader.openBase(load(request.base, 'base'), options);
  switch (op) {
    case 'hello':
      return { name: NAME, version: VERSION, language: 'JavaScript', protocol: 1, ops: OPS, codecs: ['raw', 'zstd'] };
    case 'stop':
      return {};
    case 'validate': {
      const { packId } = reader.validate(pack(), request.base === undefined ? null : base, options);
      return { pack_id: packId };
    }
    case 'inspect': {
      const { head, size } = loadHead(request.pack, options);
      return reader.inspect(head, { ...options, size });
    }
    case 'decode':
    case 'slice': {
      let tensor = reader.decode(pack(), base, String(request.tensor), options);
      if (op === 'slice') {
        if (!Array.isArray(request.rows)) refuse('usage.argument', 'rows is no pair');
        tensor = reader.sliceRows(tensor, ...request.rows);
      }
      store(request.out, [tensor.bytes]);
      return shown(tensor);
    }
    case 'apply':
      store(request.out, reader.writeSafetensors(reader.apply(pack(), base, options).tensors));
      return {};
    case 'folder': {
      const given = () => reader.openBase(load(`${request.base}/model.safetensors`, 'base'), options);
      storeFolder(request.out, reader.applyFolder(request.packs.map((path) => () => load(path, 'pack')), given, options));
      return {};
    }
    default:
      return null;
  }
}

function respond(line) {
  let request = {};
  try {
    try {
      request = JSON.parse(line);
    } catch {
      refuse('usage.argument', 'the line is not JSON');
    }
    if (request === null || typeof request !== 'object') {
      request = {};
      refuse('usage.argument', 'the line is no object');
    }
    const found = answer(request);
    if (found === null) return [{ id: request.id ?? null, unsupported: `operation ${String(request.op).slice(0, 40)}` }, false];
    return [{ id: request.id ?? null, ok: true, ...found }, request.op === 'stop'];
  } catch (e) {
    if (!(e instanceof Refusal)) return [{ id: request.id ?? null, crash: String(e.stack) }, false];    // not an answer: it counts as a crash
    return [{ id: request.id ?? null, ok: false, class: e.class, code: e.code, message: e.message }, false];
  }
}

for await (const line of readline.createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  if (line.trim() === '') continue;
  const [found, stop] = respond(line);
  await new Promise((resolve) => { process.stdout.write(`${JSON.stringify(found)}\n`, resolve); });
  if (stop) process.exit(0);
}
