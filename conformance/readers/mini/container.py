"""container.md: preamble, sections, padding; stages 1 to 9 of container.order."""

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from .errors import Limits, Refusal, within

MAGIC = bytes.fromhex("89 53 4B 50 0D 0A 1A 0A")
PREAMBLE = struct.Struct("<8s HH 4s QQQ 32s 32s 20s I")
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


def align64(x: int) -> int:
    return (x + 63) // 64 * 64


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
    _, major, minor, reserved1, m, s, d, manifest_digest, storage_digest, reserved2, checksum = fields
    # Stage 3. framing.preamble-crc
    if zlib.crc32(head[:124]) != checksum:
        raise Refusal("framing.preamble-crc", "the CRC-32 of the preamble's bytes 0 to 123 is another")
    # Stage 4. unsupported.version: naming both versions
    if major != MAJOR or minor > MINOR:
        raise Refusal("unsupported.version", f"the pack needs {major}.{minor}, this reader knows {MAJOR}.{MINOR}")
    # Stage 5. framing.reserved
    if any(reserved1) or any(reserved2):
        raise Refusal("framing.reserved", "a reserved byte of the preamble is not zero")
    # Stage 6. limit.exceeded/sections
    within(limits, "manifest_bytes", m, "manifest length")
    within(limits, "storage_bytes", s, "storage length")
    # container.layout
    manifest_start = 128
    storage_start = align64(128 + m)
    data_start = align64(storage_start + s)
    total = data_start + d
    # Stage 7. framing.truncated, framing.trailing-bytes
    if size < total:
        raise Refusal("framing.truncated", f"the file has {size} bytes, its preamble says {total}")
    if size > total:
        raise Refusal("framing.trailing-bytes", f"the file has {size} bytes, its preamble says {total}")
    # Stage 8. integrity.manifest, then the padding after it
    manifest = read_at(file, manifest_start, m)
    if hashlib.sha256(manifest).digest() != manifest_digest:
        raise Refusal("integrity.manifest", "the SHA-256 of MANIFEST is not the manifest digest")
    check_padding(read_at(file, manifest_start + m, storage_start - manifest_start - m), "MANIFEST")
    # Stage 9. integrity.storage, then the padding after it
    storage = read_at(file, storage_start, s)
    if hashlib.sha256(storage).digest() != storage_digest:
        raise Refusal("integrity.storage", "the SHA-256 of STORAGE is not the storage digest")
    check_padding(read_at(file, storage_start + s, data_start - storage_start - s), "STORAGE")
    return Container(file, manifest_digest, manifest, storage, data_start, d)


def check_padding(padding: bytes, after: str) -> None:
    """framing.padding, and framing.padding/segments"""
    if any(padding):
        raise Refusal("framing.padding", f"a padding byte after {after} is not zero")
