"""``zstd``: one frame under a pinned profile, or the chunk as it is."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import zstandard
from builders import hexed, random_bytes, refused

from skillpack_format.codecs.zstd import CODEC, ENTROPY

ZEROS = bytes(1000)
RLE = hexed("28b52ffd 60 e802 431f00 07")  # single segment, content size 1000 = 256 + 0x02e8, one RLE block of 1000


def frame(data: bytes, **options: Any) -> bytes:
    checksum = options.pop("checksum", False)
    flags = {} if checksum is None else {"write_checksum": checksum}  # parameters have a flag of their own
    return zstandard.ZstdCompressor(**flags, **options).compress(data)


def decompress(stored: bytes, nbytes: int = 1000) -> bytes:
    return bytes(CODEC.decompress(stored, nbytes, "here"))


def with_size(size: int) -> bytes:
    """A frame that declares ``size`` in eight bytes and holds 1000 zeros."""
    return hexed("28b52ffd e0") + size.to_bytes(8, "little") + hexed("431f00 00")


def with_window(size: int) -> bytes:
    """As ``with_size``, with a window of 16 MiB whatever the size is."""
    return hexed("28b52ffd c0 70") + size.to_bytes(8, "little") + hexed("431f00 00")


def test_decodes_a_frame_made_by_hand() -> None:
    assert decompress(RLE) == b"\x07" * 1000


@pytest.mark.parametrize("data", [b"", b"a", b"ab" * 30, ZEROS, random_bytes(5000), bytes(1 << 20)])
@pytest.mark.parametrize("thorough", [True, False])
def test_decodes_what_it_stored(data: bytes, thorough: bool) -> None:
    stored = CODEC.compress(data, thorough=thorough)
    assert len(stored) <= len(data)
    assert decompress(stored, len(data)) == data


def test_stores_what_does_not_shrink_as_it_is() -> None:
    data = random_bytes(300)
    assert CODEC.compress(data, thorough=True) == data


def test_a_chunk_of_its_own_length_is_taken_as_it_is_whatever_it_looks_like() -> None:
    assert decompress(RLE, len(RLE)) == RLE


TEXT = "\n".join(f"token {k}: {k * k % 50021}" for k in range(20_000)).encode()


def test_thorough_is_never_larger_than_quick_nor_than_the_highest_level() -> None:
    assert len(CODEC.compress(TEXT, thorough=True)) < len(CODEC.compress(TEXT, thorough=False))
    assert len(CODEC.compress(TEXT, thorough=True)) <= len(frame(TEXT, level=19))


def test_quick_looks_for_repeats_too() -> None:
    settings = zstandard.ZstdCompressionParameters(strategy=zstandard.STRATEGY_FAST, **ENTROPY)
    assert len(CODEC.compress(TEXT, thorough=False)) < len(frame(TEXT, compression_params=settings, checksum=None))


def test_refuses_more_stored_than_decoded() -> None:
    refused("storage.chunk-length", decompress, ZEROS, 999)


FRAMES = {
    "nothing": b"",
    "three bytes": b"\x28\xb5\x2f",
    "the magic alone": b"\x28\xb5\x2f\xfd",
    "no frame": b"x" * 30,
    "a frame of version 0.7": b"\x27\xb5\x2f\xfd" + RLE[4:],
    "a skippable frame": hexed("50 2a4d18 04000000 00000000"),
    "a skippable frame in front": hexed("50 2a4d18 00000000") + RLE,
    "a skippable frame after": RLE + hexed("502a4d18 00000000"),
    "two frames": RLE + RLE,
    "a byte after": RLE + b"\0",
    "a checksum": frame(ZEROS, checksum=True),
    "no content size": frame(ZEROS, write_content_size=False),
    "one byte less than due": frame(bytes(999)),
    "one byte more than due": frame(bytes(1001)),
    "a content size below what its blocks hold": with_size(999)[:-4] + RLE[7:],
    "a content size of 8 GiB": with_size(1 << 33),
    "a content size of 2^64-1": with_size((1 << 64) - 1),
    "a content size of 8 GiB and a small window": with_window((1 << 33) - 1),
    "a dictionary id": hexed("28b52ffd 61 01 e802 431f00 07"),
    "the reserved bit": hexed("28b52ffd 68 e802 431f00 07"),
    "a window of 2^25": hexed("28b52ffd 40 78 e802 431f00 07"),
    "a window of 2^41": hexed("28b52ffd 40 f8 e802 431f00 07"),
    "a reserved block type": hexed("28b52ffd 60 e802 471f00 07"),
    "blocks that hold less": hexed("28b52ffd 60 e802 3b1f00 07"),
    "blocks that hold more": hexed("28b52ffd 60 e802 4b1f00 07"),
    "a block above 128 KiB": hexed("28b52ffd 60 e802 030018 07"),
    "no last block": hexed("28b52ffd 60 e802 421f00 07"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_refuses_a_frame_with(name: str) -> None:
    assert refused("payload.frame", decompress, FRAMES[name]).where == "here"


def test_says_that_what_begins_otherwise_is_no_frame() -> None:
    for name in ("no frame", "a skippable frame", "a frame of version 0.7"):
        assert "does not begin with a zstd frame" in refused("payload.frame", decompress, FRAMES[name]).message


def test_a_frame_as_long_as_its_chunk_is_not_kept() -> None:
    """What has the length of its chunk is read as it is, so a frame of that length would be read as something else."""
    settings = zstandard.ZstdCompressionParameters(strategy=zstandard.STRATEGY_FAST, write_checksum=False, **ENTROPY)
    more = set()
    for zeros in range(10, 25):
        data = random_bytes(60) + bytes(zeros)
        more.add(len(frame(data, compression_params=settings, checksum=None)) - len(data))
        assert decompress(CODEC.compress(data, thorough=False), len(data)) == data
    assert 0 in more


@pytest.mark.parametrize("cut", range(1, len(RLE)))
def test_refuses_a_frame_cut_short(cut: int) -> None:
    refused("payload.frame", decompress, RLE[:-cut])


def test_takes_a_window_of_two_to_the_24() -> None:
    assert decompress(hexed("28b52ffd 40 70 e802 431f00 07")) == b"\x07" * 1000


def test_takes_the_unused_bit() -> None:
    assert decompress(hexed("28b52ffd 70 e802 431f00 07")) == b"\x07" * 1000


def test_takes_many_blocks() -> None:
    half = hexed("a20f00 07")  # 500 bytes, another block follows
    assert decompress(hexed("28b52ffd 60 e802") + half + hexed("a30f00 08")) == b"\x07" * 500 + b"\x08" * 500


def test_a_lie_about_the_size_allocates_nothing() -> None:
    tracemalloc.start()
    try:
        for size in (1 << 30, 1 << 33, (1 << 64) - 1):
            refused("payload.frame", decompress, with_size(size))
            refused("payload.frame", decompress, with_window(size))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
