// manifest.md, Layout: the files of a folder, from heads, index and result ([payload.layout], [apply.layout]).
import { Refusal, refuse } from './errors.mjs';
import { parseJson } from './json.mjs';
import { readHeader } from './safetensors.mjs';
import { readContent } from './storage.mjs';

const wrong = (what) => refuse('payload.layout', what, 'layout');

/** What makes a file no checkpoint makes a head no head; a limit stays one. */
function translated(read) {
  try {
    return read();
  } catch (e) {
    if (!(e instanceof Refusal) || e.code === 'limit.exceeded') throw e;
    return wrong(e.message);
  }
}

/** The pieces that follow a head: its tensors in the order of their offsets. `home` gets the shard of each. */
function dataOf(name, head, tensors, home, limits) {
  const length = head.length < 8 ? -1n : new DataView(head.buffer, head.byteOffset, 8).getBigUint64(0, true);
  if (length !== BigInt(head.length - 8)) wrong(`${name} does not begin with the length of its header`);
  return translated(() => readHeader(head.subarray(8), limits)).map(([tensor, { dtype, shape }]) => {
    const made = tensors.get(tensor);                                                            // [payload.layout/tensors]
    if (!made || made.dtype !== dtype || String(made.shape) !== String(shape)) wrong(`${name}: ${tensor} is not of the result`);
    if (home.has(tensor)) wrong(`${name}: ${tensor} is there twice`);
    home.set(tensor, name);
    return made.bytes;
  });
}

/** [payload.layout/index] */
function checkIndex(bytes, home) {
  const index = translated(() => parseJson(bytes));
  const map = index instanceof Map ? index.get('weight_map') : null;
  if (!(map instanceof Map) || map.size !== home.size || ![...map].every(([tensor, shard]) => home.get(tensor) === shard)) {
    wrong('the weight_map of the index is not what the heads say');
  }
}

/** The index and the shards of a pack's layout: Map of name to pieces; empty where it has none. `tensors` is the result. */
export function layoutFiles({ manifest, storage, data, limits }, tensors) {
  const contents = manifest.layout.map((each) => [each.name, readContent(each, storage, data, limits)]);
  const home = new Map();
  const files = new Map(contents.map(([name, bytes]) => [name, [bytes]]));
  for (const [name, bytes] of contents) {
    if (name.endsWith('.safetensors')) files.get(name).push(...dataOf(name, bytes, tensors, home, limits));
  }
  if (contents.length && home.size !== tensors.size) wrong(`${home.size} tensors instead of ${tensors.size}`); // [payload.layout/tensors]
  for (const [name, bytes] of contents) if (name.endsWith('.index.json')) checkIndex(bytes, home);
  return files;
}
