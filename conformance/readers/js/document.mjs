// The rules of fields that MANIFEST, STORAGE and the components' parameters share (manifest.md, "Requirements: fields").
import { refuse } from './errors.mjs';
import { pairs, raw } from './wire.mjs';

/**
 * The values of a map by key. `table` says what keys there may be: {key: 'int'} required, {key: 'int?'} optional.
 */
export function fields(value, table, where) {
  if (value.type !== 'map') refuse('manifest.type', `a map expected, not ${value.type}`, where);          // [manifest.type]
  const out = Object.create(null);
  for (const [key, child] of pairs(value)) {
    if (!Object.hasOwn(table, key)) refuse('manifest.unknown-key', key.slice(0, 80), where);              // [manifest.unknown-key]
    const type = table[key].replace('?', '');
    if (child.type !== type) refuse('manifest.type', `${key} is ${child.type}, not ${type}`, where);      // [manifest.type]
    out[key] = child;
  }
  for (const [key, type] of Object.entries(table)) {
    if (!type.endsWith('?') && !(key in out)) refuse('manifest.missing-key', key, where);                 // [manifest.missing-key]
  }
  return out;
}

/** The bytes of a bin of that length. */
export function bin(value, length, where) {
  if (BigInt(value.n) !== BigInt(length)) {
    refuse('manifest.value', `a bin of ${value.n} bytes, not ${length}`, where);                          // [manifest.value]
  }
  return raw(value);
}
