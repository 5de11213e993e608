"""Codes with one scale a group of columns."""

from __future__ import annotations

import numpy as np
import pytest

from skillpack_format.codes import spread
from skillpack_format.dtypes import DTYPES, bits_to_float32
from skillpack_format.groups import symmetric_codes


def test_codes_by_hand() -> None:
    # 2 bits: levels -3 -1 1 3 times a scale of largest / 3: exactly 1 here; 0 lies midway and goes to the even code
    codes, scales = symmetric_codes(np.array([[3.0, -1.0, 0.0, -3.0]], np.float32), 2, 4, DTYPES["BF16"])
    assert codes.tolist() == [[3, 1, 2, 0]]
    assert scales.tolist() == [0x3F80]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [1, 3, 64, 1 << 32])
def test_no_value_is_more_than_a_scale_away(bits: int, group: int) -> None:
    values = np.random.default_rng(bits).standard_normal((5, 7)).astype(np.float32)
    codes, scales = symmetric_codes(values, bits, group, DTYPES["F32"])
    zero = (1 << bits) - 1
    steps = spread(bits_to_float32(scales, DTYPES["F32"]).reshape(5, -1).astype(np.float64), group, 7)
    decoded = (2.0 * codes - zero) * steps
    assert int(codes.max()) <= zero
    assert (np.abs(decoded - values) <= steps * (1 + 1e-6)).all()


def test_a_group_of_zeros_has_scale_zero_and_code_zero() -> None:
    codes, scales = symmetric_codes(np.zeros((1, 4), np.float32), 4, 2, DTYPES["BF16"])
    assert codes.tolist() == [[0, 0, 0, 0]]
    assert scales.tolist() == [0, 0]


def test_a_scale_below_two_to_the_minus_100_becomes_zero() -> None:
    # the largest value a group may have with scale 2^-100 and 1-bit codes is 2^-100 itself
    values = np.array([[2.0**-100, 2.0**-101]], np.float32)
    codes, scales = symmetric_codes(values, 1, 1, DTYPES["BF16"])
    assert bits_to_float32(scales, DTYPES["BF16"]).tolist() == [2.0**-100, 0.0]
    assert codes.tolist() == [[1, 0]]
