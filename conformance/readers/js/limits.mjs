// limits.md: every cap and its default.
import { refuse } from './errors.mjs';

export const DEFAULTS = Object.freeze({
  manifest_bytes: 67108864,
  storage_bytes: 67108864,
  header_nodes: 8388608,
  header_depth: 8,
  tensors: 262144,
  tensor_rank: 8,
  tensor_bytes: 68719476736,
  name_bytes: 512,
  components: 8,
  tensor_products: 17592186044416,
  chunk_bytes: 16777216,
  metadata_entries: 256,
  metadata_bytes: 1048576,
  side_files: 64,
  side_file_bytes: 67108864,
  shards: 4096,
  layout_bytes: 134217728,
  checkpoint_header_bytes: 100000000,
  // Not of limits.md: the largest array this reader makes at once, reported as [reader.limits] says.
  memory_bytes: 2147483648,
});

// Deepest nesting this reader walks, whatever header_depth is raised to ([reader.limits]).
const DEEPEST = 500;

export function makeLimits(given = {}) {
  const limits = { ...DEFAULTS };
  for (const [name, value] of Object.entries(given ?? {})) {
    if (!Object.hasOwn(DEFAULTS, name)) refuse('usage.argument', `there is no limit ${name}`);
    if (!Number.isSafeInteger(value) || value < 0) refuse('usage.argument', `limit ${name} is no size`);
    limits[name] = value;
  }
  limits.header_depth = Math.min(limits.header_depth, DEEPEST);
  return limits;
}

/** [limit.exceeded]: names the limit, its value and what was asked. A Number or a BigInt, which JavaScript compares exactly. */
export function within(limits, name, asked, where) {
  if (asked > limits[name]) refuse('limit.exceeded', `${name} is ${limits[name]}, asked for ${asked}`, where);
}

/** [safe.size-first]: bytes for a size that has passed its checks, within what this machine gives. */
export function allocate(limits, size, where) {
  within(limits, 'memory_bytes', size, where);
  try {
    return new Uint8Array(size);
  } catch (e) {
    if (!(e instanceof RangeError)) throw e;
    return refuse('limit.exceeded', `this machine has no ${size} bytes in one piece`, where);
  }
}
