"""The file: preamble, MANIFEST, STORAGE, DATA."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from builders import Parts, hexed, put_together, refused

from skillpack_format.container import Header, read_header, write_header
from skillpack_format.limits import DEFAULT_LIMITS, Limits

PARTS = Parts(b"\x81\xa1m\x01", b"\x82" * 70, b"data")


def read(blob: bytes, limits: Limits = DEFAULT_LIMITS) -> Header:
    def read_at(offset: int, count: int) -> bytes:
        assert 0 <= offset <= offset + count <= len(blob), "reads outside the file"
        return blob[offset : offset + count]

    return read_header(read_at, len(blob), limits)


def test_reads_what_was_put_together() -> None:
    assert read(put_together(PARTS)) == Header(0, PARTS.manifest, PARTS.storage, 128 + 64 + 128, 4)


def test_writes_what_the_specification_lays_out() -> None:
    assert write_header(PARTS.manifest, PARTS.storage, 4) + PARTS.data == put_together(PARTS)


@pytest.mark.parametrize("sizes", [(0, 0), (63, 64), (64, 65), (65, 1)])
def test_pads_both_documents_to_64(sizes: tuple[int, int]) -> None:
    header = write_header(bytes([1]) * sizes[0], bytes([2]) * sizes[1], 0)
    assert len(header) == 128 + sum(-(-size // 64) * 64 for size in sizes)
    assert read(header).manifest == bytes([1]) * sizes[0]
    assert read(header).storage == bytes([2]) * sizes[1]


def test_the_preamble_by_hand() -> None:
    head = write_header(b"\x80", b"\x80", 5)[:128]
    assert head[:40] == hexed("89534b500d0a1a0a 0100 0000 00000000 0100000000000000 0100000000000000 0500000000000000")
    assert head[40:72] == head[72:104] == hexed("76be8b528d0075f7aae98d6fa57a6d3c83ae480a8469e668d7b0af968995ac71")
    assert head[104:124] == bytes(20)
    assert head[124:] == zlib.crc32(head[:124]).to_bytes(4, "little") == hexed("7b107dc4")


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
    "another version and reserved bytes": ({"major": 2, "reserved": b"\1\0\0\0"}, "unsupported.version"),
    "reserved bytes and a length": ({"reserved": b"\1\0\0\0", "manifest_length": 1 << 40}, "framing.reserved"),
    "a manifest above the limit": ({"manifest_length": (1 << 26) + 1}, "limit.exceeded"),
    "a manifest of 2^64-1": ({"manifest_length": (1 << 64) - 1}, "limit.exceeded"),
    "a storage above the limit": ({"storage_length": (1 << 26) + 1}, "limit.exceeded"),
    "a manifest at the limit": ({"manifest_length": 1 << 26}, "framing.truncated"),
    "a storage at the limit": ({"storage_length": 1 << 26}, "framing.truncated"),
    "no manifest": ({"manifest_length": 0}, "framing.trailing-bytes"),
    "data of 2^64-1": ({"data_length": (1 << 64) - 1}, "framing.truncated"),
    "one byte less data than promised": ({"data_length": 5}, "framing.truncated"),
    "one byte more data than promised": ({"data_length": 3}, "framing.trailing-bytes"),
    "a longer manifest within its padding": ({"manifest_length": 5}, "integrity.manifest"),
    "a shorter manifest": ({"manifest_length": 3}, "integrity.manifest"),
    "a longer storage within its padding": ({"storage_length": 71}, "integrity.storage"),
    "another manifest digest": ({"manifest_digest": bytes(32)}, "integrity.manifest"),
    "another storage digest": ({"storage_digest": bytes(32)}, "integrity.storage"),
    "both digests": ({"storage_digest": bytes(32), "manifest_digest": bytes(32)}, "integrity.manifest"),
    "a digest of ff": ({"manifest_digest": b"\xff" * 32}, "integrity.manifest"),
    "padding after the manifest": ({"manifest_padding": bytes(59) + b"\1"}, "framing.padding"),
    "padding after the storage": ({"storage_padding": b"\1" + bytes(57)}, "framing.padding"),
    "padding and storage digest": (
        {"manifest_padding": b"\1" + bytes(59), "storage_digest": bytes(32)},
        "framing.padding",
    ),
    "a byte after": ({"tail": b"\0"}, "framing.trailing-bytes"),
    "a pack after": ({"tail": put_together(PARTS)}, "framing.trailing-bytes"),
    "big-endian lengths": ({"manifest_length": 4 << 56, "storage_length": 70 << 56}, "limit.exceeded"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refuses_a_header_with(name: str) -> None:
    changes, code = CHANGES[name]
    refused(code, read, put_together(PARTS, **changes))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_refuses_each_reserved_byte_in_front(index: int) -> None:
    refused("framing.reserved", read, put_together(PARTS, reserved=bytes(index) + b"\x80" + bytes(3 - index)))


@pytest.mark.parametrize("index", range(20))
def test_refuses_each_reserved_byte_at_the_end(index: int) -> None:
    refused("framing.reserved", read, put_together(PARTS, reserved_end=bytes(index) + b"\x01" + bytes(19 - index)))


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
    blob = put_together(PARTS, manifest_length=1 << 26)
    asked = []

    def read_at(offset: int, count: int) -> bytes:
        asked.append((offset, count))
        return blob[offset : offset + count]

    refused("framing.truncated", read_header, read_at, len(blob), DEFAULT_LIMITS)
    assert asked == [(0, 128)]


def test_lengths_are_little_endian() -> None:
    assert struct.unpack_from("<QQQ", put_together(PARTS), 16) == (4, 70, 4)


def test_a_zip_archive_with_a_brace_at_byte_8_looks_like_a_zip_archive() -> None:
    assert "a zip archive" in refused("framing.magic", read, b"PK\x03\x04\0\0\0\0{").message
