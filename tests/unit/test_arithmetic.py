"""Blocks, the reference bench, and the checks of values."""

from __future__ import annotations

import numpy as np
import pytest
from builders import refused

from skillpack_format.arithmetic import NUMPY_BENCH, Block, Grid, require_finite, require_scales, round_to_bits
from skillpack_format.dtypes import DTYPES

SHAPES = [(), (5,), (2, 3), (4, 1), (3, 2, 5), (2, 2, 3, 4), (0,), (3, 0), (0, 3), (2, 0, 4)]


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((), (1, 1, 1)),
        ((5,), (1, 1, 5)),
        ((2, 3), (1, 2, 3)),
        ((4, 2, 3), (4, 2, 3)),
        ((2, 3, 4, 5), (6, 4, 5)),
        ((7, 0, 3), (7, 0, 3)),
    ],
)
def test_a_shape_is_a_stack_of_matrices(shape: tuple[int, ...], grid: tuple[int, int, int]) -> None:
    assert Grid.of(shape) == Grid(*grid)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 4, 7, 1 << 20])
def test_blocks_hold_every_element_once_and_in_order(shape: tuple[int, ...], size: int) -> None:
    grid = Grid.of(shape)
    blocks = list(grid.blocks(size))
    assert [x for block in blocks for x in range(block.items.start, block.items.stop)] == list(range(grid.items))
    for block in blocks:
        rows, cols = block.shape
        assert rows * cols == block.items.stop - block.items.start
        assert rows == 1 or rows * cols <= size


def test_a_block_knows_its_rows_and_elements() -> None:
    block = Block(Grid(2, 4, 3), 1, 1, 3)
    assert (block.shape, block.rows, block.items) == ((2, 3), slice(5, 7), slice(15, 21))


def test_the_reference_bench_widens_exactly_and_rounds_to_even() -> None:
    values = np.array([[1, 0x80000001], [0x3F800000, 0x80000000]], "<u4")
    acc = NUMPY_BENCH.accumulator(values, DTYPES["F32"], (2, 2), "")
    assert acc.tolist() == [[2.0**-149, -(2.0**-149)], [1.0, 0.0]]
    assert not np.signbit(acc[1, 1])
    acc = np.array([[1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e300, -1e-300]])
    assert NUMPY_BENCH.float32(acc).view(np.uint32).tolist() == [[0x3F800000, 0x3F800002, 0x7F800000, 0x80000000]]


def test_the_reference_bench_multiplies_integers_exactly_up_to_two_to_the_24() -> None:
    left, right = np.full((2, 1024), -128, np.int8), np.full((3, 1024), -128, np.int8)
    acc = np.ones((2, 3))
    NUMPY_BENCH.add_product(acc, NUMPY_BENCH.left(left), NUMPY_BENCH.right(right), 0.5)
    assert np.unique(acc).tolist() == [float(1 << 23) + 1]


@pytest.mark.parametrize(
    ("dtype", "largest", "bits"),
    [("F32", 3.4028234663852886e38, 0x7F7FFFFF), ("F16", 65519.0, 0x7BFF), ("BF16", 3.3895313892515355e38, 0x7F7F)],
)
def test_rounds_the_largest_value_of_a_dtype(dtype: str, largest: float, bits: int) -> None:
    assert round_to_bits(np.array([largest], np.float32), DTYPES[dtype], "").tolist() == [bits]


@pytest.mark.parametrize(
    ("dtype", "value"), [("F32", np.inf), ("F32", -np.inf), ("F16", 65520.0), ("F16", -1e30), ("BF16", 3.3961775e38)]
)
def test_refuses_a_value_beyond_the_dtype(dtype: str, value: float) -> None:
    values = np.array([0.0, value], np.float32)
    assert refused("payload.overflow", round_to_bits, values, DTYPES[dtype], "here").where == "here"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    require_finite(np.array([1e308, -1e308, 5e-324]), "here", "X")
    found = refused("payload.nonfinite", require_finite, np.array([1.0, value]), "here", "X")
    assert found.message.startswith("X holds")


@pytest.mark.parametrize("scale", [0.0, 2.0**-100, -(2.0**-100), 1.0, 3.4028234663852886e38])
def test_takes_scales_of_zero_and_from_two_to_the_minus_100(scale: float) -> None:
    require_scales(np.array([scale], np.float32), "")


@pytest.mark.parametrize(
    "scale",
    [-0.0, 2.0**-101, -(2.0**-101), np.nextafter(np.float32(2.0**-100), np.float32(0)), 1e-45, np.nan, np.inf, -np.inf],
)
def test_refuses_any_other_scale(scale: float) -> None:
    assert refused("payload.scale", require_scales, np.array([1.0, scale], np.float32), "here").where == "here"


def test_refuses_a_signalling_nan_without_a_warning_of_numpy() -> None:
    refused("payload.scale", require_scales, np.array([0x7F800001], "<u4").view("<f4"), "here")


def test_no_scale_is_fine() -> None:
    require_scales(np.array([], np.float32), "")
