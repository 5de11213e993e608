"""The file: preamble, MANIFEST, STORAGE, DATA (spec/container.md).

off  size  field
  0     8  magic 89 53 4B 50 0D 0A 1A 0A
  8     2  major version, 1
 10     2  minor version: the lowest that can read this file
 12     4  reserved, zero
 16     8  length of MANIFEST
 24     8  length of STORAGE
 32     8  length of DATA
 40    32  SHA-256 of MANIFEST: the pack_id
 72    32  SHA-256 of STORAGE
104    20  reserved, zero
124     4  CRC-32 of bytes 0 to 123

All integers are little-endian. MANIFEST and STORAGE are padded with zeros to a multiple of 64; nothing follows DATA.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from skillpack_format.digest import sha256
from skillpack_format.errors import error
from skillpack_format.limits import Limits
from skillpack_format.storage import align

MAGIC: Final = b"\x89SKP\r\n\x1a\n"
MAJOR: Final = 1
MINOR: Final = 0
PREAMBLE_BYTES: Final = 128
_PREAMBLE: Final = struct.Struct("<8sHHIQQQ32s32s20sI")

ReadAt = Callable[[int, int], bytes]  # (offset, count) -> exactly count bytes, or an error

_LOOKALIKES: Final = (
    (b"PK\x03\x04", "a zip archive (a torch .pt or .bin file?)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"GGUF", "a GGUF model"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x89PNG", "a PNG image"),
    (b"\x7fELF", "an executable"),
    (b"\x28\xb5\x2f\xfd", "a bare zstd frame"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not fetched"),
    (b"<!DOCTYPE", "an HTML page: a download that failed?"),
    (b"<html", "an HTML page: a download that failed?"),
    (b"\x09SKP", "a pack damaged by a 7-bit transfer"),
    (b"\x89SKP\n", "a pack damaged by a text-mode transfer"),
    (b"\x89SKP\r\r", "a pack damaged by a text-mode transfer"),
    (b"\xff\xfe\xff\x0eS\x00k\x00e\x00t\x00c\x00h", "a SketchUp model, which also ends in .skp"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """The two header documents, their digests checked, and where DATA lies."""

    minor: int
    manifest: bytes
    storage: bytes
    data_offset: int
    data_length: int


def read_header(read_at: ReadAt, file_bytes: int, limits: Limits) -> Header:
    """Read and check everything before DATA. Nothing is interpreted before the checksum over it has been compared."""
    head = read_at(0, min(file_bytes, PREAMBLE_BYTES))
    _check_magic(head)
    if len(head) < PREAMBLE_BYTES:
        raise error(
            "framing.truncated", "preamble", f"the file has {file_bytes} bytes, the preamble alone {PREAMBLE_BYTES}"
        )
    if zlib.crc32(head[:124]) != int.from_bytes(head[124:], "little"):
        raise error("framing.preamble-crc", "preamble", "the CRC-32 of bytes 0 to 123 does not match")
    _, major, minor, zero, manifest_bytes, storage_bytes, data_bytes, pack_id, storage_id, rest, _ = _PREAMBLE.unpack(
        head
    )
    if major != MAJOR or minor > MINOR:
        message = f"the pack needs a reader of version {major}.{minor}, this one reads up to {MAJOR}.{MINOR}"
        raise error("unsupported.version", "preamble", message)
    if zero or any(rest):
        raise error("framing.reserved", "preamble", "reserved bytes are not zero")
    limits.require("manifest_bytes", manifest_bytes, "preamble")
    limits.require("storage_bytes", storage_bytes, "preamble")
    storage_offset = PREAMBLE_BYTES + align(manifest_bytes)
    data_offset = storage_offset + align(storage_bytes)
    _check_size(file_bytes, data_offset + data_bytes)
    manifest = _read_document(read_at, PREAMBLE_BYTES, manifest_bytes, pack_id, "manifest")
    storage = _read_document(read_at, storage_offset, storage_bytes, storage_id, "storage")
    return Header(minor, manifest, storage, data_offset, data_bytes)


def write_header(manifest: bytes, storage: bytes, data_length: int) -> bytes:
    """Everything before DATA."""
    head = _PREAMBLE.pack(
        MAGIC,
        MAJOR,
        MINOR,
        0,
        len(manifest),
        len(storage),
        data_length,
        sha256(manifest),
        sha256(storage),
        bytes(20),
        0,
    )[:124]
    parts = [head, zlib.crc32(head).to_bytes(4, "little")]
    for document in (manifest, storage):
        parts += [document, bytes(align(len(document)) - len(document))]
    return b"".join(parts)


def _check_magic(head: bytes) -> None:
    if head[:8] == MAGIC[: len(head)]:  # an empty file begins like anything
        return
    looks = next((what for start, what in _LOOKALIKES if head.startswith(start)), None)
    if looks is None and head[8:9] == b"{":
        looks = "a safetensors file"
    hint = f"; it looks like {looks}" if looks else ""
    raise error("framing.magic", "preamble", f"the file does not begin with the magic of a pack{hint}")


def _check_size(found: int, due: int) -> None:
    if found < due:
        raise error("framing.truncated", "file", f"{found} bytes, the preamble's lengths add up to {due}")
    if found > due:
        raise error(
            "framing.trailing-bytes",
            "file",
            f"{found - due} bytes follow the {due} that the preamble's lengths add up to",
        )


def _read_document(read_at: ReadAt, offset: int, length: int, digest: bytes, name: str) -> bytes:
    """One header document; its digest and its zero padding are checked before it is handed on."""
    stored = read_at(offset, align(length))
    document, padding = stored[:length], stored[length:]
    if sha256(document) != digest:
        raise error(f"integrity.{name}", name.upper(), "its SHA-256 is not the one in the preamble")
    if any(padding):
        raise error("framing.padding", name.upper(), "the padding after it is not zero")
    return document
