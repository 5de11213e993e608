// apply.md: stage 13 (the base, the result as a listing) and the making of tensors (stages 14 and 15).
import { Refusal, refuse } from './errors.mjs';
import { checkpointDigest, compareBytes, sameKind } from './manifest.mjs';
import { addComponents, makeStart } from './numerics.mjs';
import { hex, sha256hex } from './sha256.mjs';
import { itemsOf, readContent } from './storage.mjs';
import { utf8 } from './wire.mjs';

/** A base: Map of name to {dtype, shape, bytes}. Digests are computed once. */
export class Base {
  constructor(tensors) {
    this.tensors = tensors;
    this.listing = [...tensors].map(([name, t]) => [utf8(name), name, t]).sort((a, b) => compareBytes(a[0], b[0]));
  }

  sha256(tensor) {
    tensor.sha256 ??= sha256hex(tensor.bytes);
    return tensor.sha256;
  }
}

/** [apply.report]: raises the first of the failures, ascending by name, and says how many there are. */
function report(failures) {
  if (failures.length === 0) return;
  const { code, name, what } = failures[0];
  refuse(code, `${what} (${failures.length} ${failures.length === 1 ? 'tensor fails' : 'tensors fail'} so)`, `tensor ${name.slice(0, 100)}`);
}

function stepOne(entry, base) {
  const { name } = entry;
  const found = base.tensors.get(name);
  if (!entry.base) return found ? { code: 'base.extra', name, what: 'the base has it already' } : null; // [base.extra]
  if (!found) return { code: 'base.missing', name, what: 'the base does not have it' };         // [base.missing]
  return sameKind(entry.base, found) ? null : { code: 'base.kind', name, what: 'another dtype or shape' }; // [base.kind]
}

function wrongContent(entry, found, base) {
  return base.sha256(found) === entry.base.sha256 ? null : { code: 'base.content', name: entry.name, what: 'other bytes' }; // [base.content]
}

function checkUnlistedAlias(entry, manifest, base) {
  if (entry.alias === null || manifest.entries.has(entry.alias)) return;
  const target = base.tensors.get(entry.alias);
  if (!target || !sameKind(target, entry.result) || base.sha256(target) !== entry.result.sha256) { // [manifest.alias/unlisted]
    refuse('manifest.alias', `the base has no such ${entry.alias.slice(0, 100)}`, `tensor ${entry.name.slice(0, 100)}`);
  }
}

/** Stage 13: [apply.verify], then the listing of the result. Returns that listing: [UTF-8 name, name, tensor]. */
export function verifyBase(manifest, base) {
  report(manifest.tensors.map((entry) => stepOne(entry, base)).filter(Boolean));

  const count = base.listing.length;
  if (count > manifest.base.count) refuse('base.extra', `${count} tensors, not ${manifest.base.count}`, 'base'); // [base.extra/count]
  if (count < manifest.base.count) refuse('base.missing', `${count} tensors, not ${manifest.base.count}`, 'base'); // [base.missing/count]

  const failures = [];
  base.listing.forEach(([, name, tensor], i) => {
    const print = hex(manifest.base.prints.subarray(4 * i, 4 * i + 4));
    const entry = manifest.entries.get(name);
    if (!base.sha256(tensor).startsWith(print)) failures.push({ code: 'base.content', name, what: 'other bytes' }); // [base.content]
    else if (entry && wrongContent(entry, tensor, base)) failures.push(wrongContent(entry, tensor, base));
  });
  report(failures);

  if (checkpointDigest(base.listing.map(([bytes, , t]) => [bytes, t])) !== manifest.base.digest) { // [base.content/digest]
    refuse('base.content', 'the name or the kind of a tensor that does not change differs', 'base');
  }

  for (const entry of manifest.tensors) checkUnlistedAlias(entry, manifest, base);

  const listing = base.listing.filter(([, name]) => !manifest.entries.has(name));               // [apply.removed]
  for (const entry of manifest.tensors) if (entry.result) listing.push([utf8(entry.name), entry.name, entry.result]);
  listing.sort((a, b) => compareBytes(a[0], b[0]));
  if (listing.length !== manifest.result.count
      || checkpointDigest(listing.map(([bytes, , t]) => [bytes, t])) !== manifest.result.digest) { // [integrity.result/checkpoint]
    refuse('integrity.result', 'the result does not have its checkpoint digest', 'MANIFEST result');
  }
  return listing;
}

/** What a reader checks of the base where only one tensor is asked for ("Applying to loaded tensors"). */
export function verifyOne(entry, manifest, base) {
  report([stepOne(entry, base)].filter(Boolean));
  if (entry.base) report([wrongContent(entry, base.tensors.get(entry.name), base)].filter(Boolean));
  checkUnlistedAlias(entry, manifest, base);
}

/** Stage 14 for one component: the content, found right, and its values, checked. */
export function decodeComponent(component, t, pack) {
  const bytes = readContent(component, pack.storage, pack.data, pack.limits);
  const items = itemsOf(component, bytes, pack.storage, pack.limits);
  return component.encoding.decode(component.parameters, t, items, pack.limits, component.where);
}

/** The bytes of a result tensor from decoded components. `base` is null or {dtype, shape, bytes}. */
export function makeBits(base, result, components, limits, where) {
  const made = makeStart(base, result, limits, where);
  const additive = components.filter((c) => c.add);
  if (additive.length) addComponents(made, result, additive, limits, where);
  for (const c of components) if (c.rewrite) c.rewrite(made.start);
  return made.start;
}

/** Stages 14 and 15: the verified bytes of the tensor of an entry that has components. */
export function makeTensor(entry, pack, base) {
  const where = `tensor ${entry.name.slice(0, 100)}`;
  const components = entry.components.map((c) => decodeComponent(c, entry.result, pack));
  const before = entry.base ? base.tensors.get(entry.name) : null;
  const bytes = makeBits(before, entry.result, components, pack.limits, where);
  if (sha256hex(bytes) !== entry.result.sha256) refuse('integrity.result', 'wrong digest', where); // [integrity.result]
  return bytes;
}

const LAST_STAGE = new Set(['payload.nonfinite', 'payload.overflow', 'integrity.result']);

/**
 * Stages 14 and 15 for the whole pack. Each tensor goes to `put(entry, bytes)`. A failure of stage 15 is held back until all
 * contents have passed stage 14, so that the earliest stage decides ([container.order]).
 */
export function makeAll(pack, base, put) {
  const { manifest, storage, data, limits } = pack;
  let late = null;
  for (const entry of manifest.tensors) {
    if (entry.components.length === 0 && (!entry.result || entry.alias !== null)) continue;
    try {
      if (late || !base) entry.components.forEach((c) => decodeComponent(c, entry.result, pack));
      else put(entry, makeTensor(entry, pack, base));
    } catch (e) {
      if (late || !(e instanceof Refusal) || !LAST_STAGE.has(e.code)) throw e;
      late = e;
    }
  }
  for (const file of manifest.files) readContent(file, storage, data, limits);                  // [apply.side-files]
  if (late) throw late;
}

