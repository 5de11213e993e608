"""``blockq``: integer codes with a scale a group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import F32_BASE, added, f32, kind, made_directly, opened, refused, same_kind, u16

from skillpack_format.contents import target_of
from skillpack_format.encodings._base import Encoded, PartSpec
from skillpack_format.encodings.blockq import ENCODING, rounded

TARGET = target_of(kind("F32", 2, 2, 5))


def parse(**changes: Any) -> Any:
    plain = {"bits": 3, "group": 2, "packing": "stream", "scale": "BF16", "zero": 7, **changes}
    return ENCODING.parse({k: v for k, v in plain.items() if v is not None}, TARGET, "here")


def zeros(codes: list[int], scales: list[float], zero_points: list[int]) -> Encoded:
    """3-bit codes in lanes for a (1, 2) tensor in groups of 1."""
    packed = np.array([codes[0] | codes[1] << 3], np.uint8)
    params = {"bits": 3, "group": 1, "packing": "lanes", "scale": "F32"}
    return Encoded(
        "blockq", params, {"codes": packed, "scales": np.array(scales, "<f4").view("<u4"), "zeros": u16(*zero_points)}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 0}, {"bits": 9}, {"bits": 255}, {"group": 0}, {"group": (1 << 32) + 1}, {"packing": "rows"},
        {"bits": 0, "zero": None}, {"scale": "F64"}, {"scale": "I8"}, {"scale": ""}, {"zero": 15}, {"zero": -1},
        {"bits": 1, "zero": 3}, {"bits": 8, "zero": 511},
    ],
)  # fmt: skip
def test_refuses_parameters_out_of_range(changes: dict[str, Any]) -> None:
    assert refused("manifest.parameter", parse, **changes).where == "here"


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 1, "zero": 2},
        {"bits": 8, "zero": 510},
        {"group": 1 << 32},
        {"zero": 0},
        {"zero": 14},
        {"zero": None},
        {"packing": "lanes"},
        {"scale": "F16"},
    ],
)
def test_takes_parameters_at_their_ends(changes: dict[str, Any]) -> None:
    assert ENCODING.adds(parse(**changes))


@pytest.mark.parametrize("key", ["bits", "group", "packing", "scale"])
def test_refuses_a_missing_parameter(key: str) -> None:
    refused("manifest.missing-key", parse, **{key: None})


def test_refuses_an_unknown_parameter() -> None:
    refused("manifest.unknown-key", parse, axis=0)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, [("codes", 1, 8), ("scales", 2, 12)]),  # 20 codes of 3 bits; 4 rows of 3 groups
        ({"packing": "lanes"}, [("codes", 1, 10), ("scales", 2, 12)]),
        ({"zero": None, "scale": "F32"}, [("codes", 1, 8), ("scales", 4, 12), ("zeros", 2, 12)]),
        ({"group": 1 << 32}, [("codes", 1, 8), ("scales", 2, 4)]),
        ({"group": 5}, [("codes", 1, 8), ("scales", 2, 4)]),
    ],
)
def test_parts_follow_the_parameters(changes: dict[str, Any], parts: list[tuple[str, int, int]]) -> None:
    assert ENCODING.parts(parse(**changes), TARGET) == tuple(PartSpec(*each) for each in parts)


def test_a_value_is_twice_the_code_less_the_zero_point_times_the_scale() -> None:
    case = same_kind("t", kind("F32", 1, 2), f32(1.0, 1.0), zeros([7, 0], [0.5, -0.25], [6, 14]))
    assert made_directly(case) == f32(1.0 + 8 * 0.5, 1.0 + 14 * 0.25)


def test_one_bit_codes_are_signs() -> None:
    case = same_kind(
        "t", kind("F32", 2, 3), F32_BASE, rounded(np.array([[0.5, -0.5, 0.25], [0, 0, 0]], np.float32), 1, 3, "stream")
    )
    scale = np.float32(0.44921875)  # (0.5^2 + 0.5^2 + 0.25^2) / (0.5 + 0.5 + 0.25) = 0.45, in BF16
    start = np.frombuffer(F32_BASE, "<f4")
    assert made_directly(case) == f32(*(start[:3] + np.float32([scale, -scale, scale])), *start[3:])


@pytest.mark.parametrize(
    ("value", "scale"), [(2.0**126, 0x7E80), (2.0**127, 0), (2.0**-100, 0x0D80), (2.0**-101, 0), (0.0, 0)]
)
def test_a_scale_that_cannot_be_used_becomes_zero(value: float, scale: int) -> None:
    encoded = rounded(np.array([[value]], np.float32), 1, 1, "stream")
    assert encoded.parts["scales"].view("<u2").tolist() == [scale]


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_group_keeps_its_inner_product_with_what_it_codes(bits: int) -> None:
    delta = np.random.default_rng(bits).standard_normal((4, 200)).astype(np.float32)
    case = same_kind("t", kind("F32", 4, 200), bytes(3200), rounded(delta, bits, 64, "lanes"))
    made = np.frombuffer(made_directly(case), "<f4").reshape(4, 200)
    for first in range(0, 200, 64):
        group = slice(first, first + 64)
        agreement, energy = (made[:, group] * delta[:, group]).sum(axis=1), (delta[:, group] ** 2).sum(axis=1)
        np.testing.assert_allclose(agreement, energy, rtol=2**-8)  # scales are BF16


def test_a_scale_of_zero_adds_nothing() -> None:
    case = same_kind("t", kind("F32", 1, 2), f32(1.0, -0.0), zeros([7, 7], [0.0, 0.0], [0, 14]))
    assert made_directly(case) == f32(1.0, 0.0)


@pytest.mark.parametrize("zero", [15, 16, 0x8000, 0xFFFF])
def test_refuses_a_zero_point_above_the_levels(zero: int) -> None:
    assert refused("payload.code", opened, zeros([0, 0], [1, 1], [14, zero]), kind("F32", 1, 2)).where == "here"


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -0.0, 2.0**-101])
def test_refuses_a_scale_that_is_not_allowed(scale: float) -> None:
    refused("payload.scale", opened, zeros([0, 0], [1, scale], [7, 7]), kind("F32", 1, 2))


def test_refuses_a_spare_bit() -> None:
    encoded = zeros([0, 0], [1, 1], [7, 7])
    encoded.parts["codes"][0] |= 0x80
    refused("payload.padding-bits", opened, encoded, kind("F32", 1, 2))


@pytest.mark.parametrize("packing", ["stream", "lanes"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_rounding_to_nearest_is_within_one_scale(bits: int, packing: str) -> None:
    delta = np.random.default_rng(bits).standard_normal((4, 10)).astype(np.float32)
    made = np.frombuffer(
        made_directly(added("t", kind("F32", 4, 10), rounded(delta, bits, 4, packing))), "<f4"
    ).reshape(4, 10)
    largest = np.abs(np.pad(delta, ((0, 0), (0, 2))).reshape(4, 3, 4)).max(axis=2).repeat(4, axis=1)[:, :10]
    assert (np.abs(made - delta) <= 1.01 * largest / ((1 << bits) - 1) + largest * 2.0**-8).all()
