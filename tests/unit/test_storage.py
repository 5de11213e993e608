"""STORAGE: chunk tables and where every segment lies."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from builders import refused

from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.storage import (
    Chunk,
    Extent,
    Segment,
    Storage,
    chunk_count,
    chunk_record,
    chunk_sizes,
    lay_out,
    parse,
)


def plain(**changes: Any) -> dict[str, Any]:
    return {"chunk_bytes": 4096, "segments": [{"chunks": b"", "codec": "raw"}], **changes}


def table(*records: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<II", *each) for each in records)


@pytest.mark.parametrize("chunk_bytes", [1 << k for k in range(12, 25)])
def test_chunk_bytes_is_a_power_of_two_from_4_kib_to_16_mib(chunk_bytes: int) -> None:
    assert parse(plain(chunk_bytes=chunk_bytes)).chunk_bytes == chunk_bytes


@pytest.mark.parametrize("chunk_bytes", [0, 1, 2048, 4095, 4097, 6144, (1 << 24) + 1, 1 << 25, 1 << 63, (1 << 64) - 1])
def test_refuses_any_other_chunk_bytes(chunk_bytes: int) -> None:
    refused("storage.chunk-bytes", parse, plain(chunk_bytes=chunk_bytes))


@pytest.mark.parametrize("chunk_bytes", [4095, (1 << 24) + 1])
def test_says_what_chunk_bytes_may_be(chunk_bytes: int) -> None:
    message = f"chunk_bytes is {chunk_bytes}, it must be 4096 to 16777216"
    assert refused("storage.chunk-bytes", parse, plain(chunk_bytes=chunk_bytes)).message == message


def test_the_caller_may_lower_the_limit_on_chunks() -> None:
    assert parse(plain(chunk_bytes=8192), Limits(chunk_bytes=8192)).chunk_bytes == 8192
    refused("limit.exceeded", parse, plain(chunk_bytes=16384), Limits(chunk_bytes=16383))


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ([], "manifest.type"),
        ({"chunk_bytes": 4096}, "manifest.missing-key"),
        (plain(offset=1), "manifest.unknown-key"),
        (plain(chunk_bytes="4096"), "manifest.type"),
        (plain(segments={}), "manifest.type"),
        (plain(segments=[7]), "manifest.type"),
        (plain(segments=[{"chunks": b""}]), "manifest.missing-key"),
        (plain(segments=[{"chunks": b"", "codec": "raw", "offset": 0}]), "manifest.unknown-key"),
        (plain(segments=[{"chunks": [], "codec": "raw"}]), "manifest.type"),
        (plain(segments=[{"chunks": b"", "codec": b"raw"}]), "manifest.type"),
    ],
)
def test_refuses_what_is_no_storage_document(document: Any, code: str) -> None:
    refused(code, parse, document)


def test_a_parsed_document_prints_as_it_stood() -> None:
    document = plain(segments=[{"chunks": table((1, 2)), "codec": "zstd"}])
    assert parse(document).to_plain() == document


def test_cuts_every_plane_by_itself() -> None:
    assert list(chunk_sizes([10, 0, 8, 3], 4)) == [4, 4, 2, 4, 4, 3]
    assert chunk_count([10, 0, 8, 3], 4) == 6


def test_a_record_is_two_little_endian_words() -> None:
    assert chunk_record(0x01020304, 0xA0B0C0D0).hex() == "04030201" + "d0c0b0a0"


def test_segments_follow_each_other_without_a_gap() -> None:
    storage = Storage(
        4096, (Segment("raw", table((5, 1), (5, 2))), Segment("zstd", b""), Segment("zstd", table((3, 3))))
    )
    extents = lay_out(storage, [[5, 5], [0], [9]], 13)
    assert extents == (
        Extent(0, 10, "raw", (5, 1, 5, 2), (5, 5)),
        Extent(10, 0, "zstd", (), ()),
        Extent(10, 3, "zstd", (3, 3), (9,)),
    )
    assert list(extents[0].chunks) == [Chunk(5, 1, 5), Chunk(5, 2, 5)]
    assert [each.end for each in extents] == [10, 10, 13]


def test_no_segment_takes_no_byte() -> None:
    assert lay_out(Storage(4096, ()), [], 0) == ()
    refused("storage.data-length", lay_out, Storage(4096, ()), [], 1)


def test_data_longer_or_shorter_than_its_segments_is_refused() -> None:
    storage = Storage(4096, (Segment("raw", table((5, 1))), Segment("raw", b"")))
    assert lay_out(storage, [[5], [0]], 5)[1] == Extent(5, 0, "raw", (), ())
    for wrong in (4, 6, 64):
        refused("storage.data-length", lay_out, storage, [[5], [0]], wrong)


@pytest.mark.parametrize("segments", [0, 2])
def test_refuses_another_number_of_segments(segments: int) -> None:
    storage = Storage(4096, (Segment("raw", table((5, 1))),) * segments)
    parse(storage.to_plain(), contents=segments)
    refused("storage.segments", parse, storage.to_plain(), contents=1)
    refused("storage.segments", parse, {"chunk_bytes": 4096, "segments": [0] * segments}, contents=1)


@pytest.mark.parametrize(
    ("codec", "stored", "named"),
    [
        ("zstd", (4096, 0, 809), "4096 bytes is stored in 0 by zstd"),
        ("zstd", (1, 4095, 809), "808 bytes is stored in 809 by zstd"),
        ("raw", (4096, 4095, 0), "4096 bytes is stored in 4095 by raw"),
        ("raw", (4096, 4096, 809), "808 bytes is stored in 809 by raw"),
    ],
)
def test_names_the_first_chunk_whose_length_cannot_be(codec: str, stored: tuple[int, ...], named: str) -> None:
    storage = Storage(4096, (Segment(codec, table(*((each, 0) for each in stored))),))
    assert named in refused("storage.chunk-length", lay_out, storage, [[9000]], sum(stored)).message


@pytest.mark.parametrize("chunks", [b"", table((5, 1))[:-1], table((5, 1)) + b"\0", table((5, 1), (5, 1))])
def test_refuses_a_chunk_table_of_another_length(chunks: bytes) -> None:
    refused("storage.chunk-table", lay_out, Storage(4096, (Segment("raw", chunks),)), [[5]], 5)


@pytest.mark.parametrize(
    ("codec", "stored"), [("raw", 0), ("raw", 4), ("raw", 6), ("zstd", 0), ("zstd", 6), ("zstd", 0xFFFFFFFF)]
)
def test_refuses_a_stored_length_out_of_range(codec: str, stored: int) -> None:
    storage = Storage(4096, (Segment(codec, table((stored, 1))),))
    refused("storage.chunk-length", lay_out, storage, [[5]], stored)


@pytest.mark.parametrize("length", [4, 6, (1 << 64) - 1])
def test_refuses_another_data_length(length: int) -> None:
    refused("storage.data-length", lay_out, Storage(4096, (Segment("raw", table((5, 1))),)), [[5]], length)


def test_a_claim_of_a_huge_content_costs_nothing() -> None:
    storage = Storage(4096, (Segment("raw", b""),))
    refused("storage.chunk-table", lay_out, storage, [[DEFAULT_LIMITS.tensor_bytes]], 0)
