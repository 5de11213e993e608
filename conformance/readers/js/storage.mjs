// storage.md and codecs.md: STORAGE, stage 12; contents, stage 14.
import { crc32 } from './crc32.mjs';
import { fields } from './document.mjs';
import { refuse } from './errors.mjs';
import { allocate, within } from './limits.mjs';
import { partsOf } from './manifest.mjs';
import { sha256hex } from './sha256.mjs';
import { items, open, raw, text } from './wire.mjs';
import { decodeFrame } from './zstd.mjs';

const CODECS = new Set(['raw', 'zstd']);

/** The decoded length of every chunk of a content, in order. */
function* chunkLengths(parts, chunkBytes) {
  for (const { width, count } of parts) {
    for (let plane = 0; plane < width; plane++) {                                               // [layout.planes]
      for (let first = 0; first < count; first += chunkBytes) yield Math.min(chunkBytes, count - first);
    }
  }
}

/** Stage 12. */
export function readStorage(bytes, manifest, dataLength, limits) {
  const where = 'STORAGE';
  const root = fields(open(bytes), { chunk_bytes: 'int', segments: 'array' }, where);
  const chunkBytes = Number(root.chunk_bytes.n);
  const k = Math.log2(chunkBytes);
  if (!Number.isInteger(k) || k < 12 || k > 24) {                                               // [storage.chunk-bytes]
    refuse('storage.chunk-bytes', `${root.chunk_bytes.n}`, where);
  }
  within(limits, 'chunk_bytes', chunkBytes, where);                                             // [limit.exceeded/chunk]
  if (root.segments.n !== manifest.contents.length) {                                           // [storage.segments]
    refuse('storage.segments', `${root.segments.n} for ${manifest.contents.length} contents`, where);
  }

  const tensors = new Map();
  for (const entry of manifest.tensors) for (const c of entry.components) tensors.set(c, entry.result);

  const segments = [];
  let end = 0;
  for (const value of items(root.segments)) {
    const content = manifest.contents[segments.length];
    const here = `segment ${segments.length} (${content.where})`;
    const f = fields(value, { chunks: 'bin', codec: 'str' }, here);
    const codec = text(f.codec);
    if (!CODECS.has(codec)) refuse('unsupported.codec', codec.slice(0, 80), here);              // [unsupported.codec]
    const parts = [...partsOf(content, tensors.get(content))];
    const chunks = parts.reduce((sum, p) => sum + p.width * Math.ceil(p.count / chunkBytes), 0);
    if (f.chunks.n !== 8 * chunks) {                                                            // [storage.chunk-table]
      refuse('storage.chunk-table', `${f.chunks.n} bytes for ${chunks} chunks`, here);
    }
    const table = raw(f.chunks);
    const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
    const start = end;                                                                          // [layout.segments]
    let at = start;
    let record = 0;
    for (const decoded of chunkLengths(parts, chunkBytes)) {
      const stored = view.getUint32(record, true);
      if (stored === 0 || stored > decoded || (codec === 'raw' && stored !== decoded)) {        // [storage.chunk-length], [storage.chunk-length/raw]
        refuse('storage.chunk-length', `chunk ${record / 8} stores ${decoded} bytes in ${stored}`, here);
      }
      at += stored;
      record += 8;
    }
    segments.push({ codec, table: view, start, parts });
    end = at;
  }
  if (end !== dataLength) refuse('storage.data-length', `the chunks end at ${end}, DATA at ${dataLength}`, where); // [storage.data-length]
  return { chunkBytes, segments };
}

/** Stage 14: a content, decoded and found to have its digest ([content.use]). */
export function readContent(content, storage, data, limits) {
  const { codec, table, start, parts } = storage.segments[content.index];
  const { where } = content;
  const out = allocate(limits, content.size, where);
  let at = start;
  let done = 0;
  let record = 0;
  for (const decoded of chunkLengths(parts, storage.chunkBytes)) {
    const here = `${where}, chunk ${record / 8}`;
    const stored = table.getUint32(record, true);
    const bytes = data.subarray(at, at + stored);
    if (crc32(bytes) !== table.getUint32(record + 4, true)) refuse('integrity.chunk', 'wrong CRC-32', here); // [integrity.chunk]
    if (codec === 'raw' || stored === decoded) out.set(bytes, done);                            // [codec.raw], [codec.as-is]
    else decodeFrame(bytes, out.subarray(done, done + decoded));                                // [codec.zstd]
    at += stored;
    done += decoded;
    record += 8;
  }
  if (sha256hex(out) !== content.sha256) refuse('integrity.content', 'wrong digest', where);    // [integrity.content]
  return out;
}

/** The items of every part of a decoded content, by name, least significant byte first. */
export function itemsOf(content, bytes, storage, limits) {
  const out = Object.create(null);
  let at = 0;
  for (const { name, width, count } of storage.segments[content.index].parts) {
    if (width === 1) {
      out[name] = bytes.subarray(at, at + count);
    } else {
      const joined = allocate(limits, width * count, content.where);
      for (let p = 0; p < width; p++) {                                                         // [layout.planes]
        const plane = at + p * count;
        for (let x = 0; x < count; x++) joined[x * width + p] = bytes[plane + x];
      }
      out[name] = joined;
    }
    at += width * count;
  }
  return out;
}
