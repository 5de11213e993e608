// packing.md: codes of 1 to 8 bits in bytes.
import { refuse } from './errors.mjs';
import { allocate } from './limits.mjs';

const lanesOf = (bits) => Math.floor(8 / bits);

/** Bytes of `count` codes; BigInts, because counts come from parameters that nothing has bounded yet. */
export function packedBytes(count, bits, packing) {
  if (packing === 'stream') return (count * BigInt(bits) + 7n) / 8n;
  const lanes = BigInt(lanesOf(bits));
  return (count + lanes - 1n) / lanes;
}

/** The `count` codes of a part, one a byte; spare bits have been checked. */
export function unpack(bytes, count, bits, packing, limits, where) {
  const out = allocate(limits, count, where);
  const mask = (1 << bits) - 1;
  const spare = (i) => refuse('payload.padding-bits', `a spare bit of byte ${i} is set`, where); // [payload.padding-bits]
  if (packing === 'stream') {                                                                   // [packing.stream]
    let held = 0;
    let have = 0;
    let at = 0;
    for (let k = 0; k < count; k++) {
      if (have < bits) {
        held |= bytes[at++] << have;
        have += 8;
      }
      out[k] = held & mask;
      held >>>= bits;
      have -= bits;
    }
    if (held !== 0) spare(at - 1);
  } else {                                                                                      // [packing.lanes]
    const lanes = lanesOf(bits);
    for (let i = 0, k = 0; i < bytes.length; i++) {
      let byte = bytes[i];
      for (let lane = 0; lane < lanes && k < count; lane++, k++) {
        out[k] = byte & mask;
        byte >>>= bits;
      }
      if (byte !== 0) spare(i);
    }
  }
  return out;
}
