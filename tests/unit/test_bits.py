"""Packed codes and byte planes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import hexed, refused
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skillpack_format.bits import (
    PACKINGS,
    codes_beside,
    join_planes,
    pack,
    packed_nbytes,
    packed_run,
    require_spare_bits_zero,
    split_planes,
    unpack,
)

WIDTHS = st.integers(1, 8)
PACKED = st.sampled_from(PACKINGS)


def unpacked(packed: NDArray[np.uint8], count: int, bits: int, packing: str) -> NDArray[np.uint8]:
    """What a reader makes of packed codes, once their spare bits have been looked at."""
    require_spare_bits_zero(packed, count, bits, packing, "here")
    return unpack(packed, count, bits, packing)


@st.composite
def codes(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    width = draw(WIDTHS)
    return np.array(draw(st.lists(st.integers(0, (1 << width) - 1), max_size=70)), np.uint8), width


@given(codes(), PACKED)
def test_unpacks_what_it_packed(drawn: tuple[np.ndarray, int], packing: str) -> None:
    values, width = drawn
    packed = pack(values, width, packing)
    assert packed.nbytes == packed_nbytes(values.size, width, packing)
    assert unpacked(packed, values.size, width, packing).tolist() == values.tolist()


@given(codes())
def test_a_stream_is_one_little_endian_integer(drawn: tuple[np.ndarray, int]) -> None:
    values, width = drawn
    whole = sum(int(code) << (k * width) for k, code in enumerate(values))
    assert pack(values, width, "stream").tobytes() == whole.to_bytes((values.size * width + 7) // 8, "little")


@pytest.mark.parametrize(
    ("bits", "packing", "listed", "expected"),
    [
        (3, "stream", [1, 2, 3, 4, 5], "d158"),
        (3, "lanes", [1, 2, 3, 4, 5], "112305"),
        (1, "stream", [1, 0, 0, 1, 1], "19"),
        (1, "lanes", [1, 0, 0, 1, 1], "19"),
        (5, "lanes", [31, 1], "1f01"),
        (5, "stream", [31, 1], "3f00"),
        (8, "lanes", [255, 1], "ff01"),
        (8, "stream", [255, 1], "ff01"),
        (2, "lanes", [], ""),
        (7, "stream", [127, 127], "ff3f"),
    ],
)
def test_codes_lie_where_the_page_says(bits: int, packing: str, listed: list[int], expected: str) -> None:
    packed = pack(np.array(listed, np.uint8), bits, packing)
    assert packed.tobytes() == hexed(expected)
    assert unpacked(packed, len(listed), bits, packing).tolist() == listed


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_spare_bit_must_be_zero(bits: int, packing: str) -> None:
    count = 5
    clean = pack(np.zeros(count, np.uint8), bits, packing)
    lanes = 8 // bits
    for bit in range(8 * clean.size):
        if packing == "stream":
            used = bit < count * bits
        else:
            lane = (bit // 8) * lanes + (bit % 8) // bits
            used = (bit % 8) < lanes * bits and lane < count
        dirty = clean.copy()
        dirty[bit // 8] |= 1 << (bit % 8)
        if used:
            assert np.count_nonzero(unpacked(dirty, count, bits, packing)) == 1
        else:
            assert refused("payload.padding-bits", unpacked, dirty, count, bits, packing).where == "here"


def test_packs_any_shape_in_c_order() -> None:
    square = np.array([[1, 2], [3, 0]], np.uint8)
    assert pack(square.T, 2, "lanes").tobytes() == pack(np.array([1, 3, 2, 0], np.uint8), 2, "lanes").tobytes()


def test_splits_items_into_planes_least_significant_first() -> None:
    items = np.array([0x0102, 0x0304, 0x0506], "<u2")
    assert [plane.tobytes() for plane in split_planes(items, 2)] == [hexed("020406"), hexed("010305")]


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_joins_the_planes_it_split(width: int, count: int) -> None:
    items = np.random.default_rng(1).integers(0, 1 << (8 * width - 1), count).astype(f"<u{width}")
    assert join_planes(split_planes(items, width), items.dtype).tolist() == items.tolist()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_run_of_codes_needs_a_run_of_bytes(bits: int, packing: str) -> None:
    random = np.random.default_rng(bits)
    for count in (1, 7, 8, 61):
        codes = random.integers(0, 1 << bits, count).astype(np.uint8)
        packed = pack(codes, bits, packing)
        for first, last in itertools.combinations(range(count + 1), 2):
            wanted = packed_run(slice(first, last), count, bits, packing)
            assert wanted.stop - wanted.start <= packed_nbytes(last - first + 14, bits, packing)
            begin, end = codes_beside(slice(first, last), count)
            found = unpacked(packed[wanted], end - begin, bits, packing)
            assert np.array_equal(found, codes[begin:end])
            assert begin <= first < begin + 8
