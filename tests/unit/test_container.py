"""The file: preamble, header, DATA."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
import zstandard
from builders import Parts, hexed, put_together, refused

from skillpack_format.container import FRAMED_BYTES, Header, read_header, write_header
from skillpack_format.limits import DEFAULT_LIMITS, Limits

PARTS = Parts(b"\x81\xa1m\x01", b"\x82" * 70, b"data")


def read(blob: bytes, limits: Limits = DEFAULT_LIMITS) -> Header:
    def read_at(offset: int, count: int) -> bytes:
        assert 0 <= offset <= offset + count <= len(blob), "reads outside the file"
        return blob[offset : offset + count]

    return read_header(read_at, len(blob), limits)


def framed(parts: Parts, level: int = 19, **settings: Any) -> bytes:
    """The documents of ``parts`` as one zstd frame."""
    return zstandard.ZstdCompressor(level=level, **settings).compress(parts.manifest + parts.storage)


def test_reads_what_was_put_together() -> None:
    assert read(put_together(PARTS)) == Header(0, PARTS.manifest, PARTS.storage, 128 + 74, 4)


def test_reads_documents_that_are_compressed() -> None:
    frame = framed(PARTS)
    assert len(frame) < 74
    found = read(put_together(PARTS, header=frame))
    assert found == Header(0, PARTS.manifest, PARTS.storage, 128 + len(frame), 4)


def test_writes_what_the_specification_lays_out() -> None:
    parts = Parts(b"\x81\xa1m\x01", b"\x80", b"data")  # too little to compress
    assert write_header(parts.manifest, parts.storage, 4) + parts.data == put_together(parts)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (63, 64), (5000, 65)])
def test_compresses_both_documents_together(sizes: tuple[int, int]) -> None:
    manifest, storage = bytes([1]) * sizes[0], bytes([2]) * sizes[1]
    header = write_header(manifest, storage, 0)
    found = read(header)
    assert (found.manifest, found.storage, found.data_offset) == (manifest, storage, len(header))
    assert len(header) - 128 <= min(sum(sizes), 40)


def test_documents_above_a_mebibyte_are_stored_as_they_are() -> None:
    manifest = bytes(FRAMED_BYTES - 1)
    assert len(write_header(manifest, b"\x80", 0)) < 1 << 10
    header = write_header(manifest, b"\x80\x80", 0)
    assert len(header) == 128 + FRAMED_BYTES + 1
    assert read(header).manifest == manifest


def test_a_frame_for_documents_above_a_mebibyte_is_refused() -> None:
    parts = Parts(bytes(FRAMED_BYTES - 4), b"\x80" * 4, b"")
    assert read(put_together(parts, header=framed(parts))).storage == parts.storage
    parts = Parts(bytes(FRAMED_BYTES - 4), b"\x80" * 5, b"")
    found = refused("framing.header-length", read, put_together(parts, header=framed(parts)))
    assert "has to be 1048577" in found.message
    parts = Parts(bytes(FRAMED_BYTES - 4), b"\x80" * 4, b"")
    found = refused("framing.header-length", read, put_together(parts, header=bytes(FRAMED_BYTES + 1)))
    assert "has to be 1 to 1048576" in found.message


FRAME = framed(PARTS)
FRAMES: dict[str, bytes] = {
    "no frame": b"\x27" + FRAME[1:],
    "a checksum": framed(PARTS, write_checksum=True),
    "no content size": zstandard.ZstdCompressor(write_content_size=False).compress(PARTS.manifest + PARTS.storage),
    "a byte less": zstandard.compress((PARTS.manifest + PARTS.storage)[:-1]),
    "a byte more": zstandard.compress(PARTS.manifest + PARTS.storage + b"\x82"),
    "a cut frame": FRAME[:-1],
    "a byte behind it": FRAME + b"\0",
}


@pytest.mark.parametrize("name", FRAMES)
def test_refuses_a_header_of(name: str) -> None:
    refused("payload.frame", read, put_together(PARTS, header=FRAMES[name]))


def test_a_frame_is_not_opened_before_its_checksum_is_right() -> None:
    refused("integrity.header", read, put_together(PARTS, header=FRAMES["no frame"], header_crc32=1))


def test_the_preamble_by_hand() -> None:
    head = write_header(b"\x80", b"\x80", 5)[:128]
    assert head[:12] == hexed("89534b500d0a1a0a 0100 0000")
    assert head[12:16] == zlib.crc32(b"\x80\x80").to_bytes(4, "little") == hexed("9409e297")
    assert head[16:48] == hexed("0100000000000000 0100000000000000 0200000000000000 0500000000000000")
    assert head[48:80] == head[80:112] == hexed("76be8b528d0075f7aae98d6fa57a6d3c83ae480a8469e668d7b0af968995ac71")
    assert head[112:124] == bytes(12)
    assert head[124:] == zlib.crc32(head[:124]).to_bytes(4, "little")


def test_an_empty_file_is_truncated() -> None:
    refused("framing.truncated", read, b"")


@pytest.mark.parametrize("length", range(1, 128))
def test_a_file_shorter_than_its_preamble_is_truncated(length: int) -> None:
    refused("framing.truncated", read, put_together(PARTS)[:length])


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"PK\x03\x04", "zip"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a', "safetensors"),
        (b"GGUF", "GGUF"),
        (b"\x80\x02}", "pickle"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x7fELF", "executable"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"version https://git-lfs.github.com/spec/v1", "LFS"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"<html>", "HTML"),
        (b"\x09SKP\r\n\x1a\n", "7-bit"),
        (b"\x89SKP\n\x1a\n", "text-mode"),
        (b"\x89SKP\r\r\n\x1a\r\n", "text-mode"),
        (hexed("fffeff0e53006b006500740063006800"), "SketchUp"),
    ],
)
@pytest.mark.parametrize("tail", [0, 300])
def test_says_what_a_file_that_is_no_pack_looks_like(begin: bytes, says: str, tail: int) -> None:
    assert says in refused("framing.magic", read, begin + bytes(tail)).message


@pytest.mark.parametrize(
    "blob",
    [b"\xef\xbb\xbf" + put_together(PARTS), b"x" + put_together(PARTS), b"x", b"\x89SKQ", bytes(500), b"\x00" * 9],
)
def test_refuses_a_file_that_begins_otherwise(blob: bytes) -> None:
    assert "looks like" not in refused("framing.magic", read, blob).message


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another checksum": ({"crc32": 1}, "framing.preamble-crc"),
    "another checksum and another version": ({"crc32": 1, "major": 2}, "framing.preamble-crc"),
    "major 2": ({"major": 2}, "unsupported.version"),
    "major 0": ({"major": 0}, "unsupported.version"),
    "minor 1": ({"minor": 1}, "unsupported.version"),
    "version 65535.65535": ({"major": 65535, "minor": 65535}, "unsupported.version"),
    "another version and reserved bytes": ({"major": 2, "reserved": b"\1" * 12}, "unsupported.version"),
    "reserved bytes and a length": ({"reserved": b"\1" * 12, "manifest_length": 1 << 40}, "framing.reserved"),
    "a manifest above the limit": ({"manifest_length": (1 << 26) + 1}, "limit.exceeded"),
    "a manifest of 2^64-1": ({"manifest_length": (1 << 64) - 1}, "limit.exceeded"),
    "a storage above the limit": ({"storage_length": (1 << 26) + 1}, "limit.exceeded"),
    "a manifest above the limit and no header": (
        {"manifest_length": (1 << 26) + 1, "header_length": 0},
        "limit.exceeded",
    ),
    "a manifest at the limit": ({"manifest_length": 1 << 26}, "framing.header-length"),
    "a manifest and a header at the limit": (
        {"manifest_length": 1 << 26, "header_length": (1 << 26) + 70},
        "framing.truncated",
    ),
    "no manifest": ({"manifest_length": 0}, "framing.header-length"),
    "no header": ({"header_length": 0}, "framing.header-length"),
    "no documents and no header": (
        {"manifest_length": 0, "storage_length": 0, "header_length": 0},
        "framing.header-length",
    ),
    "a header of 2^64-1": ({"header_length": (1 << 64) - 1}, "framing.header-length"),
    "a byte less of the header": ({"header_length": 73}, "framing.trailing-bytes"),
    "a byte more of the header": ({"header_length": 75}, "framing.header-length"),
    "data of 2^64-1": ({"data_length": (1 << 64) - 1}, "framing.truncated"),
    "one byte less data than promised": ({"data_length": 5}, "framing.truncated"),
    "one byte more data than promised": ({"data_length": 3}, "framing.trailing-bytes"),
    "a checksum of the header that is 0": ({"header_crc32": 0}, "integrity.header"),
    "a checksum of the header and a digest": ({"header_crc32": 0, "manifest_digest": bytes(32)}, "integrity.header"),
    "a manifest longer by what storage is shorter": (
        {"manifest_length": 5, "storage_length": 69},
        "integrity.manifest",
    ),
    "a shorter manifest": ({"manifest_length": 3, "storage_length": 71}, "integrity.manifest"),
    "another manifest digest": ({"manifest_digest": bytes(32)}, "integrity.manifest"),
    "another storage digest": ({"storage_digest": bytes(32)}, "integrity.storage"),
    "both digests": ({"storage_digest": bytes(32), "manifest_digest": bytes(32)}, "integrity.manifest"),
    "a digest of ff": ({"manifest_digest": b"\xff" * 32}, "integrity.manifest"),
    "a byte after": ({"tail": b"\0"}, "framing.trailing-bytes"),
    "a pack after": ({"tail": put_together(PARTS)}, "framing.trailing-bytes"),
    "big-endian lengths": ({"manifest_length": 4 << 56, "storage_length": 70 << 56}, "limit.exceeded"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refuses_a_header_with(name: str) -> None:
    changes, code = CHANGES[name]
    refused(code, read, put_together(PARTS, **changes))


@pytest.mark.parametrize("index", range(12))
def test_refuses_each_reserved_byte(index: int) -> None:
    refused("framing.reserved", read, put_together(PARTS, reserved=bytes(index) + b"\x01" + bytes(11 - index)))


def test_the_caller_may_lower_the_limits() -> None:
    read(put_together(PARTS), Limits(manifest_bytes=4, storage_bytes=70))
    refused("limit.exceeded", read, put_together(PARTS), Limits(manifest_bytes=3))
    refused("limit.exceeded", read, put_together(PARTS), Limits(storage_bytes=69))


def test_the_version_that_is_needed_is_named() -> None:
    assert (
        "version 1.1, this one reads up to 1.0"
        in refused("unsupported.version", read, put_together(PARTS, minor=1)).message
    )


def test_reads_nothing_beyond_the_file() -> None:
    blob = put_together(PARTS, manifest_length=1 << 26, header_length=(1 << 26) + 70)
    asked = []

    def read_at(offset: int, count: int) -> bytes:
        asked.append((offset, count))
        return blob[offset : offset + count]

    refused("framing.truncated", read_header, read_at, len(blob), DEFAULT_LIMITS)
    assert asked == [(0, 128)]


def test_lengths_are_little_endian() -> None:
    assert struct.unpack_from("<QQQQ", put_together(PARTS), 16) == (4, 70, 74, 4)


def test_a_zip_archive_with_a_brace_at_byte_8_looks_like_a_zip_archive() -> None:
    assert "a zip archive" in refused("framing.magic", read, b"PK\x03\x04\0\0\0\0{").message
