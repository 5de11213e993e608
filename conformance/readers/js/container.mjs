// container.md: preamble and header, stages 1 to 9.
import { crc32 } from './crc32.mjs';
import { refuse } from './errors.mjs';
import { allocate, within } from './limits.mjs';
import { hex, sha256hex } from './sha256.mjs';
import { decodeFrame } from './zstd.mjs';

const MAGIC = [0x89, 0x53, 0x4b, 0x50, 0x0d, 0x0a, 0x1a, 0x0a];
const MAJOR = 1;
const MINOR = 0;                       // the highest minor version this reader knows
const FRAMED = 1n << 20n;              // decoded bytes of a header that may be a frame

const LOOKS = [
  ['a pack damaged by text-mode transfer', [0x89, 0x53, 0x4b, 0x50]], ['a pack with bit 7 cleared', [0x09, 0x53, 0x4b, 0x50]],
  ['zip', [0x50, 0x4b, 3, 4]], ['gzip', [0x1f, 0x8b]], ['GGUF', [0x47, 0x47, 0x55, 0x46]], ['PNG', [0x89, 0x50, 0x4e, 0x47]],
  ['ELF', [0x7f, 0x45, 0x4c, 0x46]], ['a Git LFS pointer', [...'version https://git-lfs'].map((c) => c.charCodeAt(0))],
  ['HTML', [0x3c]], ['pickle', [0x80]],
];

function looksLike(file) {
  for (const [name, first] of LOOKS) if (first.every((b, i) => file[i] === b)) return name;
  return file.length > 8 && file[8] === 0x7b ? 'safetensors' : 'none of the usual files';
}

function zeros(file, from, to, code, where) {
  for (let i = from; i < to; i++) if (file[i] !== 0) refuse(code, `byte ${i} is not zero`, where);
}

/**
 * How many bytes stand before DATA as far as a preamble says, at most `size` and never more than the limits allow: what
 * an inspecting reader reads ([reader.levels]). 128 where the preamble is no good; readContainer says why.
 */
export function headLength(preamble, size, limits) {
  if (preamble.length < 128) return preamble.length;
  const view = new DataView(preamble.buffer, preamble.byteOffset, 128);
  const [M, S, H] = [16, 24, 32].map((at) => view.getBigUint64(at, true));
  if (M > limits.manifest_bytes || S > limits.storage_bytes || H > M + S) return 128;
  return Math.min(Number(128n + H), size);
}

/** Stages 1 to 9. `file` may be only what stands before DATA; `size` is then the size of the whole. */
export function readContainer(file, limits, size = file.length) {
  const begins = MAGIC.every((b, i) => i >= file.length || file[i] === b);
  if (!begins) refuse('framing.magic', `no pack: it looks like ${looksLike(file)}`);            // [framing.magic]
  if (file.length < 128) refuse('framing.truncated', `${file.length} bytes, less than a preamble`); // [framing.truncated]

  const view = new DataView(file.buffer, file.byteOffset, 128);
  if (view.getUint32(124, true) !== crc32(file.subarray(0, 124))) {                             // [framing.preamble-crc]
    refuse('framing.preamble-crc', 'the checksum of the preamble is wrong', 'preamble');
  }
  const major = view.getUint16(8, true);
  const minor = view.getUint16(10, true);
  if (major !== MAJOR || minor > MINOR) {                                                       // [unsupported.version]
    refuse('unsupported.version', `the pack needs ${major}.${minor}, this reader knows ${MAJOR}.${MINOR}`, 'preamble');
  }
  zeros(file, 112, 124, 'framing.reserved', 'preamble');                                        // [framing.reserved]

  const [M, S, H, D] = [16, 24, 32, 40].map((at) => view.getBigUint64(at, true));
  within(limits, 'manifest_bytes', M, 'preamble');                                              // [limit.exceeded/sections]
  within(limits, 'storage_bytes', S, 'preamble');

  if (H === 0n || H > M + S || (M + S > FRAMED && H !== M + S)) {                               // [framing.header-length]
    refuse('framing.header-length', `${M + S} bytes of documents cannot be stored in ${H}`, 'preamble');
  }

  const dataStart = 128n + H;                                                                   // [container.layout]
  const total = dataStart + D;
  if (size < total) refuse('framing.truncated', `${size} bytes of ${total}`);                   // [framing.truncated]
  if (size > total) refuse('framing.trailing-bytes', `${size} bytes, ${total} expected`);       // [framing.trailing-bytes]

  const stored = file.subarray(128, Number(dataStart));
  if (crc32(stored) !== view.getUint32(12, true)) refuse('integrity.header', 'wrong CRC-32', 'header'); // [integrity.header]
  let header = stored;                                                                          // [container.header]
  if (H < M + S) {
    header = allocate(limits, Number(M + S), 'header');
    decodeFrame(stored, header);                                                                // [payload.frame/header]
  }
  const manifest = header.subarray(0, Number(M));
  const storage = header.subarray(Number(M));
  const packId = hex(file.subarray(48, 80));
  if (sha256hex(manifest) !== packId) refuse('integrity.manifest', 'wrong digest', 'MANIFEST'); // [integrity.manifest]
  if (sha256hex(storage) !== hex(file.subarray(80, 112))) {                                     // [integrity.storage]
    refuse('integrity.storage', 'wrong digest', 'STORAGE');
  }

  return { packId, manifest, storage, data: file.subarray(Number(dataStart)), dataLength: Number(D) };
}
