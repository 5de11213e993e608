// manifest.md: MANIFEST, stage 11; the checkpoint digest.
import { bin, fields } from './document.mjs';
import { ENCODINGS } from './encodings.mjs';
import { refuse } from './errors.mjs';
import { within } from './limits.mjs';
import { compatible, dtypeOf, matrixView } from './numerics.mjs';
import { hex, Sha256, unhex } from './sha256.mjs';
import { items, open, pairs, text, utf8, wireArray, wireBin, wireInt, wireStr } from './wire.mjs';

const CLASSES = new Set('embedding head attention mlp expert router norm bias other'.split(' '));
const FILE_NAMES = new Set(`README.md added_tokens.json chat_template.jinja config.json generation_config.json merges.txt
  preprocessor_config.json special_tokens_map.json tokenizer.json tokenizer.model tokenizer_config.json vocab.json
  vocab.txt`.split(/\s+/));

const VISIBLE = /^[!-~]*$/;
const UNNAMED = new Set(['', '__metadata__']); // what no tensor is called
const show = (name) => `tensor ${name.slice(0, 100)}`;

/** A tensor's {dtype, shape, sha256}; elements, bytes, and the matrix view (E, m, n) where it has elements. */
function readTensor(value, limits, where) {
  const f = fields(value, { dtype: 'str', sha256: 'bin', shape: 'array' }, where);
  const dtype = dtypeOf(text(f.dtype), where);
  const sha256 = hex(bin(f.sha256, 32, where));
  within(limits, 'tensor_rank', f.shape.n, where);                                              // [limit.exceeded/rank]
  const shape = [];
  let elements = 1n;
  for (const dim of items(f.shape)) {
    if (dim.type !== 'int') refuse('manifest.type', `a dimension is ${dim.type}`, where);       // [manifest.type]
    shape.push(dim.n);
    elements *= BigInt(dim.n);                                                                  // [reader.arithmetic]
  }
  const bits = elements * BigInt(dtype.bits);
  within(limits, 'tensor_bytes', (bits + 7n) / 8n, where);                                      // [limit.exceeded/tensor-bytes]
  if (bits % 8n !== 0n) refuse('manifest.shape', `${bits} bits`, where);                        // [manifest.shape]
  const tensor = { dtype, sha256, shape, elements: Number(elements), bytes: Number(bits / 8n) };
  return elements > 0n ? Object.assign(tensor, matrixView(shape)) : tensor;
}

export function sameKind(a, b) {
  return a.dtype === b.dtype && a.shape.length === b.shape.length && a.shape.every((dim, i) => dim === b.shape[i]);
}

const same = (a, b) => sameKind(a, b) && a.sha256 === b.sha256;

function readComponent(value, t, limits, where) {
  if (value.type !== 'map') refuse('manifest.type', `a component is ${value.type}`, where);     // [manifest.type]
  let name = null;
  for (const [key, child] of pairs(value)) if (key === 'encoding') name = child;
  if (name === null) refuse('manifest.missing-key', 'encoding', where);                         // [manifest.missing-key]
  if (name.type !== 'str') refuse('manifest.type', `encoding is ${name.type}`, where);          // [manifest.type]
  const word = text(name);
  const encoding = ENCODINGS.get(word);
  if (!encoding) refuse('unsupported.encoding', word.slice(0, 80), where);                      // [unsupported.encoding]
  const f = fields(value, { encoding: 'str', sha256: 'bin', ...encoding.keys }, where);
  const sha256 = hex(bin(f.sha256, 32, where));
  if (t.elements === 0) refuse('manifest.components', 'a component for no elements', where);    // [manifest.components/empty-tensor]
  const parameters = encoding.read(f, t, where);
  const additive = encoding.additive(parameters);
  if (additive && !t.dtype.add) refuse('manifest.components', `${word} on ${t.dtype.name}`, where); // [manifest.components/arithmetic]
  let size = 0n;
  for (const part of encoding.parts(parameters, t)) size += part.count * BigInt(part.width);
  within(limits, 'tensor_bytes', size, where);                                                  // [limit.exceeded/tensor-bytes]
  return { name: word, encoding, parameters, additive, sha256, size: Number(size), where };
}

function readStats(value, where) {
  const figures = { energy: 4, error: 4, norm: 4, projection: 4, spectrum: 16 };
  const f = fields(value, { changed: 'int?', energy: 'bin?', error: 'bin?', norm: 'bin?', projection: 'bin?', spectrum: 'bin?' }, where);
  for (const [key, length] of Object.entries(figures)) if (f[key]) bin(f[key], length, where);  // [manifest.value]
}

function readEntry(value, limits, before) {
  let where = 'MANIFEST tensors';
  const f = fields(value, {
    alias: 'str?', base: 'map?', class: 'str', components: 'array?', module: 'str', name: 'str', result: 'map?', stats: 'map?',
  }, where);
  within(limits, 'name_bytes', f.name.n, where);                                                // [limit.exceeded/name]
  within(limits, 'name_bytes', f.module.n, where);
  const name = text(f.name);
  if (UNNAMED.has(name) || !VISIBLE.test(name)) refuse('manifest.name', `the name ${name}`, where);   // [manifest.name]
  where = show(name);
  if (!VISIBLE.test(text(f.module))) refuse('manifest.name', 'the module', where);              // [manifest.name/module]
  if (f.alias) {
    within(limits, 'name_bytes', f.alias.n, where);
    const alias = text(f.alias);
    if (UNNAMED.has(alias) || !VISIBLE.test(alias)) refuse('manifest.name', 'the alias', where);      // [manifest.name/alias]
  }
  if (before !== null && !(name > before)) refuse('manifest.order', `after ${before}`, where);  // [manifest.order]
  const kind = text(f.class);
  if (!CLASSES.has(kind)) refuse('manifest.value', `class ${kind.slice(0, 80)}`, where);        // [manifest.value/class]
  if (f.stats) readStats(f.stats, where);

  const base = f.base ? readTensor(f.base, limits, `${where}, base`) : null;
  const result = f.result ? readTensor(f.result, limits, `${where}, result`) : null;
  if (!base && !result) refuse('manifest.tensor', 'neither base nor result', where);            // [manifest.tensor]
  if (base && result && same(base, result)) refuse('manifest.tensor', 'unchanged', where);      // [manifest.tensor/unchanged]
  if (f.alias && !result) refuse('manifest.alias', 'an alias without result', where);           // [manifest.alias]
  if (Boolean(f.components) !== Boolean(result && !f.alias)) {                                  // [manifest.components]
    refuse('manifest.components', f.components ? 'not expected' : 'missing', where);
  }
  const components = [];
  if (f.components) {
    within(limits, 'components', f.components.n, where);                                        // [limit.exceeded/components]
    for (const child of items(f.components)) {
      if (components.length && !components[components.length - 1].additive) {                   // [manifest.components/order]
        refuse('manifest.components', 'a component after a rewriting one', where);
      }
      components.push(readComponent(child, result, limits, `${where}, component ${components.length}`));
    }
    const products = components.reduce((sum, c) => sum + BigInt(c.encoding.terms?.(c.parameters) ?? 0), 0n);
    within(limits, 'tensor_products', products * BigInt(result.elements), where);               // [limit.exceeded/products]
    if (components.length === 0 && result.elements > 0
        && !(base && compatible(base, result) && !sameKind(base, result))) {                    // [manifest.components/none]
      refuse('manifest.components', 'none', where);
    }
  }
  return { name, base, result, alias: f.alias ? text(f.alias) : null, components };
}

function readMetadata(value, limits) {
  const where = 'MANIFEST metadata';
  within(limits, 'metadata_entries', value.n, where);                                           // [limit.exceeded/metadata]
  let size = 0;
  for (const [key, child] of pairs(value)) {
    if (child.type !== 'str') refuse('manifest.type', `a value is ${child.type}`, where);       // [manifest.type]
    size += key.length + child.n;                          // keys are ASCII, so characters are bytes
  }
  within(limits, 'metadata_bytes', size, where);                                                // [limit.exceeded/metadata]
}

function readFile(value, limits, before) {
  const where = 'MANIFEST files';
  const f = fields(value, { length: 'int', name: 'str', sha256: 'bin' }, where);
  const name = text(f.name);
  if (!FILE_NAMES.has(name)) refuse('manifest.file-name', name.slice(0, 80), where);            // [manifest.file-name]
  if (before !== null && !(name > before)) refuse('manifest.order', `${name} after ${before}`, where); // [manifest.order]
  within(limits, 'side_file_bytes', f.length.n, `file ${name}`);                                // [limit.exceeded/side-files]
  return { name, size: Number(f.length.n), sha256: hex(bin(f.sha256, 32, where)), where: `file ${name}` };
}

const SHARD = /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$/;
const INDEX = /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors\.index\.json$/;

function readLayoutFile(value, form) {
  const where = 'MANIFEST layout';
  const f = fields(value, { length: 'int', name: 'str', sha256: 'bin' }, where);
  const name = text(f.name);
  if (name.length > 128 || !form.test(name)) refuse('manifest.file-name', name.slice(0, 80), where); // [manifest.file-name/layout]
  return { name, size: f.length.n, sha256: hex(bin(f.sha256, 32, where)), where: `layout ${name}` };
}

/** The contents of a layout: the index, where there is one, then the heads. */
function readLayout(value, limits) {
  const where = 'MANIFEST layout';
  const f = fields(value, { shards: 'array', index: 'map?' }, where);
  within(limits, 'shards', f.shards.n, where);                                                  // [limit.exceeded/layout]
  const shards = Array.from(items(f.shards), (each) => readLayoutFile(each, SHARD));
  const index = f.index ? [readLayoutFile(f.index, INDEX)] : [];
  if (shards.length === 0 || (shards.length > 1 && index.length === 0)) {                       // [manifest.value/layout]
    refuse('manifest.value', `${shards.length} shards, ${index.length ? 'an' : 'no'} index`, where);
  }
  shards.forEach(({ name }, i) => {
    if (i > 0 && !(name > shards[i - 1].name)) refuse('manifest.order', `${name} after ${shards[i - 1].name}`, where); // [manifest.order/layout]
  });
  const all = [...index, ...shards];
  within(limits, 'layout_bytes', all.reduce((sum, { size }) => sum + BigInt(size), 0n), where); // [limit.exceeded/layout]
  return all.map((each) => ({ ...each, size: Number(each.size) }));
}

/** Stage 11. `bytes` have passed stages 8 and 10. */
export function readManifest(bytes, limits) {
  const where = 'MANIFEST';
  const root = fields(open(bytes), {
    base: 'map', files: 'array', format: 'str', layout: 'map?', metadata: 'map', result: 'map', tensors: 'array',
  }, where);
  if (text(root.format) !== 'skillpack/1') refuse('manifest.value', 'format', where);           // [manifest.value/format]

  const b = fields(root.base, { count: 'int', digest: 'bin', prints: 'bin' }, `${where} base`);
  const r = fields(root.result, { count: 'int', digest: 'bin' }, `${where} result`);
  within(limits, 'tensors', b.count.n, `${where} base`);                                        // [limit.exceeded/tensors]
  within(limits, 'tensors', r.count.n, `${where} result`);
  within(limits, 'tensors', root.tensors.n, where);
  const base = {
    count: Number(b.count.n),
    digest: hex(bin(b.digest, 32, `${where} base`)),
    prints: bin(b.prints, 4n * BigInt(b.count.n), `${where} base`),                             // [manifest.value]
  };
  const result = { count: Number(r.count.n), digest: hex(bin(r.digest, 32, `${where} result`)) };

  readMetadata(root.metadata, limits);

  within(limits, 'side_files', root.files.n, where);                                            // [limit.exceeded/side-files]
  const files = [];
  for (const value of items(root.files)) files.push(readFile(value, limits, files.length ? files[files.length - 1].name : null));

  const layout = root.layout ? readLayout(root.layout, limits) : [];

  const tensors = [];
  const entries = new Map();
  for (const value of items(root.tensors)) {
    const entry = readEntry(value, limits, tensors.length ? tensors[tensors.length - 1].name : null);
    tensors.push(entry);
    entries.set(entry.name, entry);
  }

  for (const entry of tensors) {
    if (entry.alias === null) continue;
    const target = entries.get(entry.alias);
    if (!target) continue;                                 // stage 13: [manifest.alias/unlisted]
    if (!target.result || target.alias !== null || !same(target.result, entry.result)) {        // [manifest.alias/target]
      refuse('manifest.alias', `${entry.alias.slice(0, 100)} is no target`, show(entry.name));
    }
  }
  const added = tensors.filter((e) => !e.base).length;
  const removed = tensors.filter((e) => !e.result).length;
  if (base.count < tensors.length - added) {                                                    // [manifest.value/base-count]
    refuse('manifest.value', `base.count ${base.count} for ${tensors.length - added} entries with base`, where);
  }
  if (result.count !== base.count + added - removed) {                                          // [manifest.value/result-count]
    refuse('manifest.value', `result.count ${result.count}, not ${base.count + added - removed}`, where);
  }

  // [layout.contents]
  const contents = [...tensors.flatMap((e) => e.components), ...files, ...layout];
  contents.forEach((content, i) => { content.index = i; });
  return { base, result, files, layout, tensors, entries, contents };
}

/** The parts of a content: a component's, or the one part of a side file. */
export function* partsOf(content, t) {
  if (!content.encoding) {
    yield { name: 'bytes', width: 1, count: content.size };
    return;
  }
  for (const { name, width, count } of content.encoding.parts(content.parameters, t)) yield { name, width, count: Number(count) };
}

/** [digest.checkpoint]: `listing` is [name as UTF-8 bytes, {dtype, shape, sha256}] ascending by name. */
export function checkpointDigest(listing) {
  const sha = new Sha256().update(wireArray(listing.length));
  for (const [name, { dtype, shape, sha256 }] of listing) {
    sha.update(wireArray(4));
    for (const piece of wireStr(name)) sha.update(piece);
    for (const piece of wireStr(utf8(dtype.name))) sha.update(piece);
    sha.update(wireArray(shape.length));
    for (const dim of shape) sha.update(wireInt(dim));
    for (const piece of wireBin(unhex(sha256))) sha.update(piece);
  }
  return sha.hex();
}

export function compareBytes(a, b) {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}
