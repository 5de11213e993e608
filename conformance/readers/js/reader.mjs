// The API: everything takes and gives Uint8Array and runs in a browser as it does in Node.
import { Base, makeAll, makeTensor, verifyBase, verifyOne } from './apply.mjs';
import { headLength, readContainer } from './container.mjs';
import { Refusal, refuse } from './errors.mjs';
import { layoutFiles } from './layout.mjs';
import { makeLimits } from './limits.mjs';
import { readManifest } from './manifest.mjs';
import { readSafetensors, writeSafetensors } from './safetensors.mjs';
import { readContent, readStorage } from './storage.mjs';
import { check, open, rendering } from './wire.mjs';

export { Base, Refusal };
export { writeSafetensors } from './safetensors.mjs';

/** Stages 1 to 12. */
export function openPack(file, { limits: given, size } = {}) {
  const limits = makeLimits(given);
  const { packId, manifest: manifestBytes, storage: storageBytes, data, dataLength } = readContainer(file, limits, size);
  check(manifestBytes, limits, 'MANIFEST');
  check(storageBytes, limits, 'STORAGE');
  const manifest = readManifest(manifestBytes, limits);
  const storage = readStorage(storageBytes, manifest, dataLength, limits);
  return { packId, manifestBytes, storageBytes, manifest, storage, data, limits };
}

/** A base from one safetensors file. */
export function openBase(file, { limits: given } = {}) {
  return new Base(readSafetensors(file, makeLimits(given)));
}

/** A base may be given as a function, which is called when stage 13 comes. */
const given = (base) => (typeof base === 'function' ? base() : base);

/** How many of a pack's `size` bytes `inspect` needs, from its first 128. */
export const headOf = (preamble, size, { limits: given } = {}) => headLength(preamble, size, makeLimits(given));

/** The documents of a pack in their JSON rendering, as objects for JSON.stringify. `file` may be its head, with `size` in the options. */
export function inspect(file, options = {}) {
  const pack = openPack(file, options);
  return { pack_id: pack.packId, manifest: rendering(open(pack.manifestBytes)), storage: rendering(open(pack.storageBytes)) };
}

/** All checks of stages 1 to 12 and 14; with a base also 13 and 15. */
export function validate(file, base = null, options = {}) {
  const pack = openPack(file, options);
  base = given(base);
  if (base) verifyBase(pack.manifest, base);
  makeAll(pack, base, () => {});
  for (const each of pack.manifest.layout) readContent(each, pack.storage, pack.data, pack.limits);
  return pack;
}

/** The whole verified result: {tensors: Map of name to {dtype, shape, bytes}, files: [{name, bytes}]}. */
export function apply(file, base, options = {}) {
  const pack = openPack(file, options);
  base = given(base);
  const listing = verifyBase(pack.manifest, base);
  const made = new Map();
  makeAll(pack, base, (entry, bytes) => made.set(entry.name, bytes));
  const bytesOf = (name) => made.get(name) ?? base.tensors.get(name).bytes;                     // [apply.unchanged]
  const tensors = new Map();
  for (const [, name, { dtype, shape }] of listing) {
    const alias = pack.manifest.entries.get(name)?.alias ?? null;
    tensors.set(name, { dtype, shape, bytes: bytesOf(alias ?? name) });                         // [apply.alias]
  }
  const files = pack.manifest.files.map((f) => ({ name: f.name, bytes: readContent(f, pack.storage, pack.data, pack.limits) }));
  return { tensors, files, pack };
}

/**
 * What stands in the folder of a result that packs, one after the other, make: Map of name to pieces. `tensors` of the last
 * pack's result without layout are one file. [apply.layout], [apply.side-files]
 */
export function applyFolder(packs, base, options = {}) {
  const files = new Map();
  let made = null;
  for (const pack of packs) {
    const before = made && new Base(made.tensors);
    made = apply(pack(), before ?? base, options);
    for (const { name, bytes } of made.files) files.set(name, [bytes]);
  }
  const shards = layoutFiles(made.pack, made.tensors);
  if (shards.size === 0) shards.set('model.safetensors', writeSafetensors(made.tensors));
  return new Map([...files, ...shards]);
}

/**
 * One tensor of the result: {dtype, shape, bytes}, with only its own entry, base tensor and contents checked
 * (apply.md, "Applying to loaded tensors"; the base as a whole is not verified).
 */
export function decode(file, base, name, options = {}) {
  const pack = openPack(file, options);
  base = given(base);
  const { entries } = pack.manifest;
  let entry = entries.get(name);
  if (entry) verifyOne(entry, pack.manifest, base);
  if (entry && entry.alias !== null) {
    name = entry.alias;
    entry = entries.get(name);
    if (entry) verifyOne(entry, pack.manifest, base);
  }
  if (!entry) {
    const tensor = base.tensors.get(name);
    if (!tensor) refuse('usage.argument', 'the result has no such tensor', `tensor ${name.slice(0, 100)}`);
    return { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes };
  }
  if (!entry.result) refuse('usage.argument', 'the pack removes it', `tensor ${name.slice(0, 100)}`);
  return { dtype: entry.result.dtype, shape: entry.result.shape, bytes: makeTensor(entry, pack, base) };
}

/** Rows from to to (exclusive) of the first dimension of a tensor as `decode` gives it. */
export function sliceRows({ dtype, shape, bytes }, from, to) {
  const integers = Number.isInteger(from) && Number.isInteger(to);
  if (shape.length === 0 || !integers || from < 0 || from > to || to > shape[0]) {
    refuse('usage.argument', `rows ${from} to ${to} of ${shape.length ? shape[0] : 'a single value'}`);
  }
  const bits = shape[0] === 0 ? 0 : bytes.length * 8 / shape[0];
  if ((bits * from) % 8 || (bits * to) % 8) refuse('unsupported.operation', 'rows that do not fill whole bytes');
  return { dtype, shape: [to - from, ...shape.slice(1)], bytes: bytes.subarray(bits * from / 8, bits * to / 8) };
}
