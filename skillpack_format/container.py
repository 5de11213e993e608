"""The file: preamble, header, DATA (spec/container.md).

off  size  field
  0     8  magic 89 53 4B 50 0D 0A 1A 0A
  8     2  major version, 1
 10     2  minor version: the lowest that can read this file
 12     4  CRC-32 of the header as it is stored
 16     8  length of MANIFEST
 24     8  length of STORAGE
 32     8  length of the header as it is stored
 40     8  length of DATA
 48    32  SHA-256 of MANIFEST: the pack_id
 80    32  SHA-256 of STORAGE
112    12  reserved, zero
124     4  CRC-32 of bytes 0 to 123

All integers are little-endian. The header is MANIFEST and STORAGE one after the other, stored like a chunk of the codec
``zstd``. DATA follows at once, and nothing follows DATA.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from skillpack_format.catalog import CODECS
from skillpack_format.digest import sha256
from skillpack_format.errors import error
from skillpack_format.limits import Limits

MAGIC: Final = b"\x89SKP\r\n\x1a\n"
MAJOR: Final = 1
MINOR: Final = 0
PREAMBLE_BYTES: Final = 128
FRAMED_BYTES: Final = 1 << 20  # a header of more is stored as it is: what a byte of it asks for in work stays bounded
_PREAMBLE: Final = struct.Struct("<8sHHIQQQQ32s32s12sI")

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
    _, major, minor, checksum, *lengths, pack_id, storage_id, rest, _ = _PREAMBLE.unpack(head)
    manifest_bytes, storage_bytes, header_bytes, data_bytes = lengths
    if major != MAJOR or minor > MINOR:
        message = f"the pack needs a reader of version {major}.{minor}, this one reads up to {MAJOR}.{MINOR}"
        raise error("unsupported.version", "preamble", message)
    if any(rest):
        raise error("framing.reserved", "preamble", "reserved bytes are not zero")
    limits.require("manifest_bytes", manifest_bytes, "preamble")
    limits.require("storage_bytes", storage_bytes, "preamble")
    _check_header_length(header_bytes, manifest_bytes + storage_bytes)
    data_offset = PREAMBLE_BYTES + header_bytes
    _check_size(file_bytes, data_offset + data_bytes)
    stored = read_at(PREAMBLE_BYTES, header_bytes)
    if zlib.crc32(stored) != checksum:
        raise error("integrity.header", "header", "its CRC-32 is not the one in the preamble")
    documents = bytes(CODECS["zstd"].decompress(stored, manifest_bytes + storage_bytes, "header"))
    manifest, storage = documents[:manifest_bytes], documents[manifest_bytes:]
    for name, document, digest in (("manifest", manifest, pack_id), ("storage", storage, storage_id)):
        if sha256(document) != digest:
            raise error(f"integrity.{name}", name.upper(), "its SHA-256 is not the one in the preamble")
    return Header(minor, manifest, storage, data_offset, data_bytes)


def write_header(manifest: bytes, storage: bytes, data_length: int) -> bytes:
    """Everything before DATA."""
    documents = manifest + storage
    stored = CODECS["zstd"].compress(documents, thorough=True) if len(documents) <= FRAMED_BYTES else documents
    lengths = (len(manifest), len(storage), len(stored), data_length)
    digests = (sha256(manifest), sha256(storage))
    head = _PREAMBLE.pack(MAGIC, MAJOR, MINOR, zlib.crc32(stored), *lengths, *digests, bytes(12), 0)[:124]
    return head + zlib.crc32(head).to_bytes(4, "little") + stored


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


def _check_header_length(found: int, decoded: int) -> None:
    if 0 < found == decoded or (0 < found < decoded <= FRAMED_BYTES):
        return
    due = f"1 to {decoded}" if decoded <= FRAMED_BYTES else str(decoded)
    message = f"the header is stored in {found} bytes, and with documents of {decoded} bytes that has to be {due}"
    raise error("framing.header-length", "preamble", message)
