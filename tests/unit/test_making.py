"""The decode rule, with every expected bit written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import (
    Case,
    bf16,
    change_of,
    f32,
    hexed,
    int_slice,
    kind,
    made_directly,
    random_bytes,
    refused,
    same_kind,
    u16,
    u32,
    ulp_of,
)

from skillpack_format.arithmetic import NUMPY_BENCH, Grid
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings import dense, factors, lowrank, sparse
from skillpack_format.encodings._base import Encoded
from skillpack_format.making import delta_of, start_of


def add(dtype: str, *patterns: int) -> Encoded:
    return Encoded("dense", {"dtype": dtype, "mode": "add"}, {"values": np.array(patterns, DTYPES[dtype].bit_pattern)})


def add_f32(*values: float) -> Encoded:
    return add("F32", *np.array(values, "<f4").view("<u4").tolist())


def at(dtype: str, shape: tuple[int, ...], positions: list[int], *patterns: int) -> Encoded:
    """A sparse component that adds."""
    values = np.array(patterns, DTYPES[dtype].bit_pattern)
    return sparse.placed(np.array(positions, np.int64), values, DTYPES[dtype], int(np.prod(shape)), "add")


def made(case: Case) -> str:
    return made_directly(case).hex()


def of_bf16(raw: bytes, *encoded: Encoded) -> Case:
    return same_kind("t", kind("BF16", 1, len(raw) // 2), raw, *encoded)


def test_a_low_rank_slice_by_hand() -> None:
    # u = (1, -2), v = (3, -4, 0), scale 1/2: rows (1.5, -2, 0) and (-3, 4, 0)
    slice_ = int_slice([0.5], [[[1, -2]]], [[[3, -4, 0]]])
    base = f32(1.0, 1.0, 1.0, 0.25, 0.25, -0.0)
    assert (
        made(same_kind("t", kind("F32", 2, 3), base, lowrank.packed([slice_], "stream")))
        == f32(2.5, -1.0, 1.0, -2.75, 4.25, 0.0).hex()
    )


def test_slices_are_summed_in_order_each_rounded_to_float64() -> None:
    # 2^54 + 1 rounds to 2^54, so adding 1 and then -2^54 gives 0 in this order and 1 in the other
    large, one = int_slice([2.0**40], [[[1]]], [[[1]]]), int_slice([1.0], [[[1]]], [[[1]]])
    minus = int_slice([2.0**40], [[[-1]]], [[[1]]])
    base = f32(0.0)
    up = [int_slice([2.0**60], [[[1]]], [[[1]]]), one, int_slice([2.0**60], [[[-1]]], [[[1]]])]
    other = [up[0], up[2], one]
    assert made(same_kind("t", kind("F32", 1, 1), base, lowrank.packed(up, "stream"))) == f32(0.0).hex()
    assert made(same_kind("t", kind("F32", 1, 1), base, lowrank.packed(other, "stream"))) == f32(1.0).hex()
    assert (
        made(same_kind("t", kind("F32", 1, 1), base, lowrank.packed([large, one, minus], "stream"))) == f32(1.0).hex()
    )


def test_ties_go_to_the_even_neighbour() -> None:
    # in BF16 1 + 2^-8 lies midway between 1 (even) and 1 + 2^-7, and 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6 (even)
    assert made(of_bf16(bf16(1.0, 1.0), add_f32(2.0**-8, 3 * 2.0**-8))) == u16(0x3F80, 0x3F82).tobytes().hex()


def test_results_are_rounded_twice_by_way_of_float32() -> None:
    # 1 + 2^-8 + 2^-30: float32 drops 2^-30, the rest is a tie and goes to 1; one rounding would give 3F81
    assert made(of_bf16(bf16(1.0), add_f32(2.0**-8 + 2.0**-30))) == u16(0x3F80).tobytes().hex()
    assert made(of_bf16(bf16(1.0), add_f32(2.0**-8), add_f32(2.0**-30))) == u16(0x3F80).tobytes().hex()
    assert made(of_bf16(bf16(1.0), add_f32(2.0**-8 + 2.0**-22))) == u16(0x3F81).tobytes().hex()


def test_an_addressed_minus_zero_counts_as_plus_zero() -> None:
    assert made(of_bf16(u16(0x8000, 0x8000).tobytes(), add("BF16", 0x8000, 0x0000))) == "00000000"


def test_minus_zero_stays_where_nothing_is_added() -> None:
    case = of_bf16(u16(0x8000, 0x8000, 0x3F80).tobytes(), at("BF16", (1, 3), [0, 2], 0x0000, 0x3F80))
    assert made(case) == u16(0x0000, 0x8000, 0x4000).tobytes().hex()


def test_nan_payloads_and_infinities_stay_where_nothing_is_added() -> None:
    raw = u16(0x7F81, 0xFFFF, 0x7F80, 0x3F80, 0xFF80).tobytes()
    assert (
        made(of_bf16(raw, at("BF16", (1, 5), [3], 0x3F80)))
        == u16(0x7F81, 0xFFFF, 0x7F80, 0x4000, 0xFF80).tobytes().hex()
    )


def test_a_signalling_nan_stays_where_nothing_is_added_in_f32() -> None:
    case = same_kind("t", kind("F32", 1, 2), u32(0x7F800001, 0x3F800000).tobytes(), at("F32", (1, 2), [1], 0x3F800000))
    assert made(case) == u32(0x7F800001, 0x40000000).tobytes().hex()


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_refuses_to_add_to_what_is_not_finite(bits: int) -> None:
    raw = u16(0x3F80, bits).tobytes()
    refused("payload.nonfinite", made, of_bf16(raw, add("BF16", 0, 0)))
    assert refused("payload.nonfinite", made, of_bf16(raw, at("BF16", (1, 2), [1], 0))).where == "here"


@pytest.mark.parametrize(("dtype", "largest"), [("F32", 0x7F7FFFFF), ("F16", 0x7BFF), ("BF16", 0x7F7F)])
def test_refuses_a_result_beyond_the_dtype(dtype: str, largest: int) -> None:
    raw = np.array([largest], DTYPES[dtype].bit_pattern).tobytes()
    refused("payload.overflow", made, same_kind("t", kind(dtype, 1, 1), raw, add(dtype, largest)))


def test_a_sum_may_leave_float32_on_the_way() -> None:
    raw = u32(0x7F7FFFFF).tobytes()
    case = same_kind("t", kind("F32", 1, 1), raw, add("F32", 0x7F7FFFFF), add("F32", 0xFF7FFFFF))
    assert made(case) == raw.hex()


def test_a_negative_sum_that_rounds_to_zero_is_minus_zero() -> None:
    # -2^-149 / 2 by way of a low-rank slice would need a scale below 2^-100; BF16 has a coarser least subnormal
    assert made(of_bf16(bf16(0.0), add_f32(-(2.0**-140)))) == u16(0x8000).tobytes().hex()


def test_subnormal_results_are_kept() -> None:
    assert made(same_kind("t", kind("F32", 1, 1), u32(1).tobytes(), add("F32", 2))) == u32(3).tobytes().hex()


def test_a_rewriting_component_works_on_what_was_added() -> None:
    summed = bf16(2.0, 3.0)
    wanted = bf16(2.0, -3.0)
    assert made(of_bf16(bf16(1.0, 2.0), add("BF16", 0x3F80, 0x3F80), ulp_of("BF16", summed, wanted))) == wanted.hex()


# ------------------------------------------------------------------------------------------------------------- START


def test_start_is_the_base_itself_where_the_kind_stays() -> None:
    raw = random_bytes(12)
    start = start_of(raw, kind("BF16", 2, 3), kind("BF16", 2, 3))
    assert (start.bits.tobytes(), start.dtype.name) == (raw, "BF16")


@pytest.mark.parametrize(
    ("base", "raw"),
    [
        (None, None),
        (kind("BF16", 2, 2), None),
        (kind("I16", 2, 2), random_bytes(8)),
        (kind("BF16", 2, 3), random_bytes(12)),
        (kind("BF16", 4), random_bytes(8)),
    ],
)
def test_start_is_zeros_where_nothing_can_be_made_from_the_base(base: Any, raw: Any) -> None:
    start = start_of(raw, base, kind("BF16", 2, 2))
    assert (start.bits.tobytes(), start.dtype.name) == (bytes(8), "BF16")


def test_rows_are_cut() -> None:
    assert made(Case("t", kind("F32", 1, 2), (), kind("F32", 3, 2), f32(1, 2, 3, 4, 5, 6))) == f32(1, 2).hex()


def test_zero_rows_are_appended() -> None:
    assert made(Case("t", kind("F32", 3, 2), (), kind("F32", 1, 2), f32(1, -0.0))) == f32(1, -0.0, 0, 0, 0, 0).hex()


def test_rows_of_integers_are_resized_too() -> None:
    assert made(Case("t", kind("I16", 3), (), kind("I16", 2), u16(1, 2).tobytes())) == u16(1, 2, 0).tobytes().hex()


def test_rows_of_a_sub_byte_tensor_are_resized_too() -> None:
    assert made(Case("t", kind("F4", 4, 2), (), kind("F4", 2, 2), hexed("1234"))) == "12340000"


def test_appended_rows_can_be_added_to() -> None:
    case = Case("t", kind("F32", 2, 1), (add_f32(0.5, 0.25),), kind("F32", 1, 1), f32(1.0))
    assert made(case) == f32(1.5, 0.25).hex()


def test_a_conversion_rounds_to_nearest_even_and_canonicalises_nan() -> None:
    raw = u32(0x3F808000, 0x3F818000, 0x80000000, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0x7F7FFFFF).tobytes()
    expected = u16(0x3F80, 0x3F82, 0x8000, 0x7FC0, 0x7FC0, 0x7F80, 0x7F80)
    assert made(Case("t", kind("BF16", 7), (), kind("F32", 7), raw)) == expected.tobytes().hex()


def test_what_is_added_is_added_to_the_value_before_its_conversion() -> None:
    # 1 + 2^-8 is a tie in BF16; adding 2^-9 to the F32 value lifts it over, adding it to the converted 1 would not
    raw = f32(1.0 + 2.0**-8, 1.0 + 2.0**-8)
    case = Case("t", kind("BF16", 1, 2), (at("F32", (1, 2), [0], 0x3B000000),), kind("F32", 1, 2), raw)
    assert made(case) == u16(0x3F81, 0x3F80).tobytes().hex()


def test_a_converted_element_that_is_not_addressed_may_be_nan() -> None:
    raw = u32(0x7F800001, 0x3F800000).tobytes()
    case = Case("t", kind("F16", 1, 2), (at("F32", (1, 2), [1], 0x3F800000),), kind("F32", 1, 2), raw)
    assert made(case) == u16(0x7E00, 0x4000).tobytes().hex()


@pytest.mark.parametrize(("what", "raw"), [(kind("F32", 0, 4), b""), (kind("F4", 0), b"")])
def test_a_tensor_without_elements_is_made_of_nothing(what: Any, raw: bytes) -> None:
    assert made_directly(Case("t", what, ())) == raw


def test_a_single_value_is_a_matrix_of_one() -> None:
    assert made(same_kind("t", kind("F32"), f32(1.0), add_f32(0.5))) == f32(1.5).hex()


def test_sub_byte_values_are_replaced_as_bytes() -> None:
    wanted = np.array([0x21, 0x43], np.uint8)
    assert made(same_kind("t", kind("F4", 2, 2), b"ab", dense.replacement(wanted, DTYPES["F4"]))) == "2143"


# ------------------------------------------------------------------------------------------------------------- deltas


def test_a_delta_is_the_sum_of_additive_components_in_float32() -> None:
    case = of_bf16(bf16(1.0, 2.0), add_f32(0.5, 2.0**-30), add_f32(2.0**-40, 1.0))
    delta = delta_of(Grid(1, 1, 2), change_of(case).additive, NUMPY_BENCH)
    assert delta.dtype == np.float32
    assert delta.tolist() == [0.5, 1.0]


def test_factors_are_summed_one_rank_after_the_other() -> None:
    # (2^-23 - 1)(1 + 2^-23) and so on: the order of rounding shows (spec/encodings/factors.md, factors-order)
    band = factors.Band(
        "F32",
        *(
            u32(bits).view("<f4").reshape(shape)
            for bits, shape in ((0x3F800001, (1, 1)), (0x3F7FFFFE, (1, 1, 1)), (0x3F800001, (1, 1, 1)))
        ),
    )
    case = same_kind("t", kind("F32", 1, 1), hexed("010080bf"), factors.banded([band], 1, "lanes"))
    assert made(case) == "000080a8"
