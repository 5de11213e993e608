"""container.md: preamble and header; stages 1 to 9 of container.order."""

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from .codec import decode_chunk
from .errors import Limits, Refusal, within

MAGIC = bytes.fromhex("89 53 4B 50 0D 0A 1A 0A")
PREAMBLE = struct.Struct("<8s HH I QQQQ 32s 32s 12s I")
FRAMED = 2**20  # decoded bytes of a header that may be a frame
MAJOR, MINOR = 1, 0

# What files that are no packs begin with (a SHOULD of container.order).
LOOKS_LIKE = [
    (b"PK\x03\x04", "a zip file or a PyTorch checkpoint"),
    (b"\x1f\x8b", "a gzip file"),
    (b"GGUF", "a GGUF file"),
    (b"\x80", "a pickle"),
    (b"\x89PNG", "a PNG image"),
    (b"\x7fELF", "an ELF program"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"<", "HTML"),
    (b"\x89SKP\x0a", "a pack damaged by text-mode transfer (CR LF made LF)"),
    (b"\x89SKP\x0d\x0d", "a pack damaged by text-mode transfer (LF made CR LF)"),
    (b"\x89SKP\x0d\x0a", "a pack damaged by text-mode transfer (LF made CR LF, or cut at 1A)"),
    (b"\x09SKP", "a pack damaged by text-mode transfer (bit 7 cleared)"),
]


@dataclass
class Container:
    file: BinaryIO
    pack_id: bytes
    manifest: bytes
    storage: bytes
    data_start: int
    data_length: int

    def read(self, start: int, length: int) -> bytes:
        """Bytes of DATA, positions relative to data_start."""
        return read_at(self.file, self.data_start + start, length)


def read_at(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) != length:  # the size of the file was checked in stage 7
        raise Refusal("integrity.source-changed", f"the pack has become shorter: no {length} bytes at {start}")
    return data


def looks_like(head: bytes) -> str:
    if head[8:9] == b"{":
        return "; it looks like a safetensors file"
    return next((f"; it looks like {what}" for begin, what in LOOKS_LIKE if head.startswith(begin)), "")


def open_container(file: BinaryIO, limits: Limits) -> Container:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(128)
    # Stages 1 and 2. framing.magic: of a file shorter than 8 bytes, the bytes that are there count
    if head[:8] != MAGIC[: len(head)]:
        raise Refusal("framing.magic", f"the file begins with {head[:8].hex(' ')}{looks_like(head)}")
    if len(head) < 128:  # framing.truncated
        raise Refusal("framing.truncated", f"the file has {size} bytes, a preamble 128")
    fields = PREAMBLE.unpack(head)
    _, major, minor, header_checksum, m, s, h, d, manifest_digest, storage_digest, reserved, checksum = fields
    # Stage 3. framing.preamble-crc
    if zlib.crc32(head[:124]) != checksum:
        raise Refusal("framing.preamble-crc", "the CRC-32 of the preamble's bytes 0 to 123 is another")
    # Stage 4. unsupported.version: naming both versions
    if major != MAJOR or minor > MINOR:
        raise Refusal("unsupported.version", f"the pack needs {major}.{minor}, this reader knows {MAJOR}.{MINOR}")
    # Stage 5. framing.reserved
    if any(reserved):
        raise Refusal("framing.reserved", "a reserved byte of the preamble is not zero")
    # Stage 6. limit.exceeded/sections, framing.header-length
    within(limits, "manifest_bytes", m, "manifest length")
    within(limits, "storage_bytes", s, "storage length")
    if not 0 < h <= m + s or (m + s > FRAMED and h != m + s):
        raise Refusal("framing.header-length", f"{m + s} bytes of documents cannot be stored in {h}")
    # container.layout
    header_start = 128
    data_start = 128 + h
    total = data_start + d
    # Stage 7. framing.truncated, framing.trailing-bytes
    if size < total:
        raise Refusal("framing.truncated", f"the file has {size} bytes, its preamble says {total}")
    if size > total:
        raise Refusal("framing.trailing-bytes", f"the file has {size} bytes, its preamble says {total}")
    stored = read_at(file, header_start, h)
    manifest, storage = open_header(stored, m, s, header_checksum, (manifest_digest, storage_digest))
    return Container(file, manifest_digest, manifest, storage, data_start, d)


def open_header(stored: bytes, m: int, s: int, checksum: int, digests: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Stages 8 and 9: MANIFEST and STORAGE from the header as it is stored."""
    # Stage 8. integrity.header
    if zlib.crc32(stored) != checksum:
        raise Refusal("integrity.header", "the CRC-32 of the header is not the header checksum")
    # Stage 9. container.header, payload.frame/header, integrity.manifest, integrity.storage
    header = decode_chunk("zstd", stored, m + s, "header")
    manifest, storage = header[:m], header[m:]
    if hashlib.sha256(manifest).digest() != digests[0]:
        raise Refusal("integrity.manifest", "the SHA-256 of MANIFEST is not the manifest digest")
    if hashlib.sha256(storage).digest() != digests[1]:
        raise Refusal("integrity.storage", "the SHA-256 of STORAGE is not the storage digest")
    return manifest, storage
