"""``dense``: values as they are, added or replacing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import added, f32, kind, made_directly, nbytes, opened, refused, same_kind, u16

from skillpack_format.contents import target_of
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings._base import Encoded, PartSpec
from skillpack_format.encodings.dense import ENCODING, replacement


def parse(result: str, /, **plain: Any) -> Any:
    return ENCODING.parse(plain, target_of(kind(result, 2, 4)), "here")


def component(mode: str, dtype: str, values: np.ndarray) -> Encoded:
    return Encoded("dense", {"dtype": dtype, "mode": mode}, {"values": values})


@pytest.mark.parametrize("mode", ["", "Add", "multiply", "xor"])
def test_refuses_another_mode(mode: str) -> None:
    assert refused("manifest.parameter", parse, "F32", dtype="F32", mode=mode).where == "here"


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"F32", "F16", "BF16"}))
def test_refuses_to_add_values_that_are_no_numbers(dtype: str) -> None:
    refused("manifest.parameter", parse, "F32", dtype=dtype, mode="add")


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"BF16"}))
def test_refuses_to_replace_by_another_dtype(dtype: str) -> None:
    refused("manifest.parameter", parse, "BF16", dtype=dtype, mode="replace")


@pytest.mark.parametrize(
    ("plain", "code"),
    [
        ({"mode": "add"}, "manifest.missing-key"),
        ({"dtype": "F32"}, "manifest.missing-key"),
        ({"dtype": "F32", "mode": "add", "scale": 1}, "manifest.unknown-key"),
        ({"dtype": 1, "mode": "add"}, "manifest.type"),
        ({"dtype": "F32", "mode": b"add"}, "manifest.type"),
        ({"dtype": "F33", "mode": "add"}, "unsupported.dtype"),
    ],
)
def test_refuses_what_are_no_parameters(plain: dict[str, Any], code: str) -> None:
    refused(code, parse, "F32", **plain)


def test_only_adding_adds() -> None:
    assert ENCODING.adds(parse("F32", dtype="BF16", mode="add"))
    assert not ENCODING.adds(parse("F32", dtype="F32", mode="replace"))


@pytest.mark.parametrize(
    ("dtype", "part"),
    [("F64", (8, 8)), ("BF16", (2, 8)), ("BOOL", (1, 8)), ("C64", (8, 8)), ("F4", (1, 4)), ("F6_E2M3", (1, 6))],
)
def test_has_one_part_of_items(dtype: str, part: tuple[int, int]) -> None:
    params = parse(dtype, dtype=dtype, mode="replace")
    assert ENCODING.parts(params, target_of(kind(dtype, 2, 4))) == (PartSpec("values", *part),)
    assert ENCODING.planes(params, target_of(kind(dtype, 2, 4))) == [part[1]] * part[0]


def test_the_parts_of_an_addition_follow_the_dtype_of_the_values() -> None:
    assert ENCODING.parts(parse("F32", dtype="F16", mode="add"), target_of(kind("F32", 2, 4))) == (
        PartSpec("values", 2, 8),
    )


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0x7C01])
def test_refuses_to_add_what_is_not_finite(bits: int) -> None:
    found = refused("payload.nonfinite", opened, component("add", "F16", u16(0, bits)), kind("F32", 1, 2))
    assert found.where == "here"


def test_replaces_by_what_is_not_finite() -> None:
    case = same_kind("t", kind("F16", 2), bytes(4), replacement(u16(0x7C01, 0xFC00), DTYPES["F16"]))
    assert made_directly(case) == u16(0x7C01, 0xFC00).tobytes()


@pytest.mark.parametrize("value", [2, 0x80, 0xFF])
def test_refuses_a_bool_that_is_neither_0_nor_1(value: int) -> None:
    refused("payload.value", opened, replacement(np.array([1, value], np.uint8), DTYPES["BOOL"]), kind("BOOL", 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_replaces_every_dtype(dtype: str) -> None:
    what = kind(dtype, 2, 4)
    wanted = (np.arange(nbytes(what)) % 2).astype(np.uint8).view(DTYPES[dtype].bit_pattern)
    assert made_directly(added("t", what, replacement(wanted, DTYPES[dtype]))) == wanted.tobytes()


def test_adds_values_of_another_dtype_by_hand() -> None:
    case = same_kind("t", kind("F32", 1, 3), f32(1.0, 2.0, -0.0), component("add", "BF16", u16(0x3F80, 0xBF80, 0x8000)))
    assert made_directly(case) == f32(2.0, 1.0, 0.0)
