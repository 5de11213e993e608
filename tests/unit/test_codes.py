"""Codes as they are stored, seen as matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import refused

from skillpack_format.bits import PACKINGS, pack, packed_run
from skillpack_format.codes import CodeMatrix, Levels, spread

EVERY = pytest.mark.parametrize(("bits", "packing"), list(itertools.product(range(1, 9), PACKINGS)))


def matrix(codes: np.ndarray, bits: int, packing: str, first: int = 0) -> CodeMatrix:
    """The rows from ``first`` on, of codes that are stored whole."""
    rows, cols = codes.shape
    run = slice(first * cols, rows * cols)
    packed = pack(codes, bits, packing)[packed_run(run, codes.size, bits, packing)]
    return CodeMatrix.of_run(packed, run, codes.size, (rows - first, cols), bits, packing, "here")


def drawn(bits: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, shape).astype(np.uint8)


@EVERY
def test_rows_and_columns_are_those_of_the_codes(bits: int, packing: str) -> None:
    codes = drawn(bits, (7, 5))
    for first, start, stop in itertools.product((0, 3), range(4), range(5)):
        found = matrix(codes, bits, packing, first).take(slice(start, max(start, stop)))
        wanted = codes[first + start : first + max(start, stop)]
        assert found.shape == wanted.shape
        assert np.array_equal(found.unpacked(), wanted)
        assert np.array_equal(found.narrow(slice(1, 4)).narrow(slice(1, 3)).unpacked(), wanted[:, 2:4])
        assert np.array_equal(found.signed(), wanted.astype(np.int16) - (1 << (bits - 1)))


@EVERY
def test_a_row_is_cut_off_without_its_neighbours(bits: int, packing: str) -> None:
    codes = drawn(bits, (9, 8))
    assert matrix(codes, bits, packing).take(slice(2, 4)).packed.size == pack(codes[2:4], bits, packing).size


@EVERY
def test_a_spare_bit_is_refused_before_anything_is_unpacked(bits: int, packing: str) -> None:
    packed = pack(np.zeros(5, np.uint8), bits, packing)
    packed[-1] |= 0x80
    args = packed, slice(0, 5), 5, (1, 5), bits, packing, "here"
    last = 5 * bits if packing == "stream" else ((4 % (8 // bits)) + 1) * bits
    if last % 8:
        assert refused("payload.padding-bits", CodeMatrix.of_run, *args).where == "here"
    else:
        assert np.count_nonzero(CodeMatrix.of_run(*args).unpacked()) == 1


@pytest.mark.parametrize("zeros", [3, np.array([[0, 6], [1, 5], [2, 4]], np.int16)], ids=["one", "a group"])
@pytest.mark.parametrize("group", [3, 4, 1 << 32])
def test_levels_are_twice_the_code_less_the_zero_point_times_the_scale(zeros: int | np.ndarray, group: int) -> None:
    groups = 1 if group > 5 else 2
    scales = np.array([[0.5, -3.0], [1e-3, 7.0], [2.0, 0.1]], np.float32)[:, :groups]
    if not isinstance(zeros, int):
        zeros = zeros[:, :groups]
    codes = drawn(2, (3, 5))
    levels = Levels(matrix(codes, 2, "lanes"), zeros, scales, group)
    column = [min(k // group, groups - 1) for k in range(5)]
    steps = 2 * codes.astype(np.int64) - (zeros if isinstance(zeros, int) else zeros[:, column])
    wanted = steps * scales[:, column].astype(np.float64)
    assert np.array_equal(levels.half_steps(), steps)
    assert np.array_equal(levels.numbers(), wanted)
    assert np.array_equal(levels.take(slice(1, 3)).numbers(), wanted[1:])
    assert np.array_equal(levels.take(slice(1, 3)).narrow(slice(2, 4)).numbers(), wanted[1:, 2:4])


@pytest.mark.parametrize(
    ("group", "cols", "expected"), [(1, 3, [1, 2, 3]), (2, 3, [1, 1, 2]), (3, 3, [1, 1, 1]), (1 << 40, 3, [1, 1, 1])]
)
def test_spreads_a_scale_over_its_group(group: int, cols: int, expected: list[int]) -> None:
    groups = -(-cols // group)
    assert spread(np.arange(1, groups + 1), group, cols).tolist() == expected


def test_spreads_the_last_axis_only() -> None:
    assert spread(np.array([[[1, 2]], [[3, 4]]]), 2, 3).tolist() == [[[1, 1, 2]], [[3, 3, 4]]]
