"""Element types, and values from bits and back."""

from __future__ import annotations

import numpy as np
import pytest
from builders import refused
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.dtypes import (
    DTYPES,
    bits_to_float32,
    bits_to_float64,
    convert_bits,
    dtype_named,
    float32_to_bits,
    largest_magnitude,
    numel,
    require_bool,
    tensor_nbytes,
)

ARITHMETIC = ("F32", "F16", "BF16")
TABLE = """
F64 64 float no yes|F32 32 float yes yes|F16 16 float yes yes|BF16 16 float yes yes|F8_E4M3 8 float no yes
F8_E5M2 8 float no yes|F8_E8M0 8 uint no yes|F8_E4M3FNUZ 8 float no yes|F8_E5M2FNUZ 8 float no yes
F6_E2M3 6 float no no|F6_E3M2 6 float no no|F4 4 float no no|I64 64 int no yes|I32 32 int no yes|I16 16 int no yes
I8 8 int no yes|U64 64 uint no yes|U32 32 uint no yes|U16 16 uint no yes|U8 8 uint no yes|BOOL 8 bool no no
C64 64 complex no no
"""  # numerics.md, "Element types"


def patterns(dtype: str, *bits: int) -> np.ndarray:
    return np.array(bits, DTYPES[dtype].bit_pattern)


def converted(source: str, target: str, *bits: int) -> list[str]:
    return [f"{each:x}" for each in convert_bits(patterns(source, *bits), DTYPES[source], DTYPES[target])]


def test_the_table_is_that_of_the_specification() -> None:
    rows = [row.split() for row in TABLE.replace("\n", "|").split("|") if row]
    found = [
        [
            each.name,
            str(each.bits),
            each.kind,
            "yes" if each.is_arithmetic else "no",
            "yes" if each.is_ordered else "no",
        ]
        for each in DTYPES.values()
    ]
    assert found == rows


@pytest.mark.parametrize(
    ("name", "itemsize", "pattern"),
    [
        ("F64", 8, "<u8"),
        ("BF16", 2, "<u2"),
        ("BOOL", 1, "u1"),
        ("F4", 0, "u1"),
        ("F6_E2M3", 0, "u1"),
        ("C64", 8, "<u8"),
    ],
)
def test_items_are_unsigned_integers_of_the_width(name: str, itemsize: int, pattern: str) -> None:
    assert (DTYPES[name].itemsize, DTYPES[name].bit_pattern) == (itemsize, np.dtype(pattern))


@pytest.mark.parametrize("name", ["", "f32", "F8", "object", "V16", "F32 "])
def test_refuses_an_unknown_dtype_and_says_which_are_known(name: str) -> None:
    found = refused("unsupported.dtype", dtype_named, name, "here")
    assert found.where == "here"
    assert found.message.endswith(", ".join(DTYPES))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("F32", (), 4),
        ("F32", (2, 3), 24),
        ("F4", (2, 3), 3),
        ("F6_E2M3", (4,), 3),
        ("U8", (0, 1 << 62), 0),
        ("C64", (1 << 40, 1 << 40), 8 << 80),
    ],
)
def test_counts_the_bytes_of_a_tensor_without_wrapping(name: str, shape: tuple[int, ...], expected: int) -> None:
    assert tensor_nbytes(DTYPES[name], shape) == expected


@pytest.mark.parametrize(("name", "shape"), [("F4", ()), ("F4", (3,)), ("F6_E2M3", (2,)), ("F6_E3M2", (5, 5))])
def test_refuses_a_tensor_that_does_not_fill_whole_bytes(name: str, shape: tuple[int, ...]) -> None:
    refused("manifest.shape", tensor_nbytes, DTYPES[name], shape)


def test_counts_elements_without_wrapping() -> None:
    assert [numel(shape) for shape in [(), (2, 3), (0, 9), (1 << 32, 1 << 32)]] == [1, 6, 0, 1 << 64]


def test_a_bool_is_0_or_1() -> None:
    require_bool(np.array([0, 1], np.uint8), DTYPES["BOOL"], "here")
    assert refused("payload.value", require_bool, np.array([1, 2], np.uint8), DTYPES["BOOL"], "here").where == "here"


def test_other_dtypes_take_every_pattern() -> None:
    require_bool(np.array([255], np.uint8), DTYPES["U8"], "")


@pytest.mark.parametrize(
    ("name", "bits", "value"),
    [
        ("F32", 0x3F800000, 1.0), ("F32", 1, 2.0**-149), ("F32", 0x7F7FFFFF, 3.4028234663852886e38),
        ("F16", 0x3C00, 1.0), ("F16", 1, 2.0**-24), ("F16", 0x7BFF, 65504.0), ("F16", 0xFC00, -np.inf),
        ("BF16", 0x3F80, 1.0), ("BF16", 1, 2.0**-133), ("BF16", 0x7F7F, 3.3895313892515355e38),
    ],
)  # fmt: skip
def test_values_are_exact_subnormals_included(name: str, bits: int, value: float) -> None:
    assert bits_to_float64(patterns(name, bits), DTYPES[name]).tolist() == [value]
    assert bits_to_float32(patterns(name, bits), DTYPES[name]).tolist() == [value]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_signalling_nans_are_read_without_a_warning(name: str) -> None:
    quiet_bit = {"F32": 22, "F16": 9, "BF16": 6}[name]
    top = {"F32": 0x7F800001, "F16": 0x7C01, "BF16": 0x7F81}[name]
    assert not top & (1 << quiet_bit)
    bits = patterns(name, *[top] * 64)
    assert np.isnan(bits_to_float32(bits, DTYPES[name])).all()
    assert np.isnan(bits_to_float64(bits, DTYPES[name])).all()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_value_survives_float32(name: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits_to_float32(bits, DTYPES[name])
    finite = ~np.isnan(values)
    assert np.array_equal(float32_to_bits(values, DTYPES[name])[finite], bits[finite])
    assert np.array_equal(values[finite].astype(np.float64), bits_to_float64(bits[finite], DTYPES[name]))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0x3F800000, 0x3F80),  # 1
        (0x3F808000, 0x3F80),  # midway, to even: down
        (0x3F818000, 0x3F82),  # midway, to even: up
        (0x3F808001, 0x3F81),  # just above midway
        (0x3F807FFF, 0x3F80),  # just below midway
        (0x00008000, 0x0000),  # half of the smallest subnormal
        (0x00008001, 0x0001),
        (0x80000001, 0x8000),  # rounds to -0
        (0x7F7F7FFF, 0x7F7F),  # the largest that stays finite
        (0x7F7F8000, 0x7F80),  # rounds to infinity
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # NaN
        (0xFFFFFFFF, 0x7FC0),
    ],
)
def test_rounds_to_bf16_to_nearest_even(value: int, bits: int) -> None:
    assert float32_to_bits(np.array([value], "<u4").view("<f4"), DTYPES["BF16"]).tolist() == [bits]


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0 + 2.0**-11, 0x3C00),  # midway, to even: down
        (1.0 + 3 * 2.0**-11, 0x3C02),  # midway, to even: up
        (2.0**-25, 0x0000),  # half of the smallest subnormal
        (1.5 * 2.0**-24, 0x0002),  # midway between subnormals
        (65519.996, 0x7BFF),
        (65520.0, 0x7C00),  # rounds to infinity
        (-1e-30, 0x8000),
    ],
)
def test_rounds_to_f16_to_nearest_even(value: float, bits: int) -> None:
    assert float32_to_bits(np.array([value], np.float32), DTYPES["F16"]).tolist() == [bits]


def test_f32_bits_are_the_float_itself() -> None:
    assert float32_to_bits(np.array([-0.0], np.float32), DTYPES["F32"]).tolist() == [0x80000000]


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=50))
def test_bf16_is_nearest_by_integers(bits: list[int]) -> None:
    values = np.array(bits, "<u4")
    for each, found in zip(bits, float32_to_bits(values.view("<f4"), DTYPES["BF16"]).tolist(), strict=True):
        if (each & 0x7FFFFFFF) > 0x7F800000:
            assert found == 0x7FC0
            continue
        low, rest = each >> 16, each & 0xFFFF
        assert found == low + (rest > 0x8000 or (rest == 0x8000 and low & 1))


NANS = {"F32": (0x7F800001, 0xFFC00000, 0xFFFFFFFF), "F16": (0x7C01, 0xFE00, 0xFFFF), "BF16": (0x7F81, 0xFFC0, 0xFFFF)}
QUIET = {"F32": "7fc00000", "F16": "7e00", "BF16": "7fc0"}


@pytest.mark.parametrize("source", ARITHMETIC)
@pytest.mark.parametrize("target", ARITHMETIC)
def test_every_nan_converts_to_the_positive_quiet_one(source: str, target: str) -> None:
    assert converted(source, target, *NANS[source]) == [QUIET[target]] * 3


@pytest.mark.parametrize(
    ("source", "target", "bits", "expected"),
    [
        ("F32", "BF16", 0x80000000, "8000"),
        ("F32", "BF16", 0x7F7FFFFF, "7f80"),  # out of range becomes infinity
        ("F32", "F16", 0x477FF000, "7c00"),  # 65520
        ("F32", "F16", 0xC77FEFFF, "fbff"),
        ("F16", "BF16", 0x7BFF, "4780"),  # 65504 has no BF16
        ("F16", "F32", 0x0001, "33800000"),
        ("BF16", "F16", 0x3F81, "3c08"),
        ("BF16", "F16", 0xFF80, "fc00"),
        ("BF16", "F32", 0x8001, "80010000"),
    ],
)
def test_converts_by_float32_to_nearest_even(source: str, target: str, bits: int, expected: str) -> None:
    assert converted(source, target, bits) == [expected]


def test_conversion_keeps_the_width_of_the_target() -> None:
    for target in ARITHMETIC:
        assert convert_bits(patterns("F32", 0), DTYPES["F32"], DTYPES[target]).dtype == DTYPES[target].bit_pattern


@pytest.mark.parametrize("dtype", ARITHMETIC)
def test_the_largest_magnitude_is_that_of_either_sign(dtype: str) -> None:
    sign = 1 << (DTYPES[dtype].bits - 1)
    for bits, largest in (
        ((), 0),
        ((0, sign), 0),
        ((1, 2), 2),
        ((sign | 1, sign | 2), 2),
        ((3, sign | 2), 3),
        ((2, sign | 3), 3),
        ((sign - 1, 0), sign - 1),
        ((sign - 1, sign), sign - 1),
    ):
        assert largest_magnitude(patterns(dtype, *bits)) == largest
