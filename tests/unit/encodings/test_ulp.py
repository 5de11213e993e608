"""``ulp``: steps on the line of all values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import hexed, kind, made_directly, random_bytes, refused, same_kind, u16, ulp_of
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.contents import target_of
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings import ulp
from skillpack_format.encodings._base import Encoded, PartSpec
from skillpack_format.encodings.ulp import ENCODING, difference

ORDERED = [name for name, each in DTYPES.items() if each.kind in ("float", "int", "uint") and each.bits >= 8]


@pytest.mark.parametrize("dtype", ORDERED)
def test_takes_every_ordered_dtype(dtype: str) -> None:
    target = target_of(kind(dtype, 3))
    params = ENCODING.parse({"sort": "none"}, target, "here")
    assert not ENCODING.adds(params)
    assert ENCODING.parts(params, target) == (PartSpec("diff", DTYPES[dtype].itemsize, 3),)


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(ORDERED)))
def test_refuses_every_other_dtype(dtype: str) -> None:
    assert (
        refused("manifest.parameter", ENCODING.parse, {"sort": "none"}, target_of(kind(dtype, 4)), "here").where
        == "here"
    )


def test_has_no_parameters() -> None:
    refused("manifest.unknown-key", ENCODING.parse, {"order": 1, "sort": "none"}, target_of(kind("U8", 1)), "here")


@pytest.mark.parametrize(
    ("dtype", "start", "wanted", "zigzag"),
    [
        ("BF16", "803f0080807f0100", "7e3f0000c07f0180", "0300020080000500"),  # spec/encodings/ulp.md
        ("I8", "7fff80", "800181", "020402"),
        ("U8", "00ff80", "ff007f", "010201"),  # the line is a ring: 0 to 255 is one step down
        ("BF16", "0000", "0080", "0100"),  # +0 to -0 is one step down
        ("BF16", "ff7f", "ffff", "0200"),  # the highest NaN to the lowest: one step up
        ("I16", "ff7f", "0080", "0200"),
        ("U8", "00", "80", "ff"),  # half the ring counts as down
        ("F64", "000000000000f03f", "010000000000f03f", "0200000000000000"),
    ],
)
def test_steps_by_hand(dtype: str, start: str, wanted: str, zigzag: str) -> None:
    encoded = ulp_of(dtype, hexed(start), hexed(wanted))
    assert encoded.parts["diff"].tobytes() == hexed(zigzag)
    what = kind(dtype, len(hexed(start)) // DTYPES[dtype].itemsize)
    assert made_directly(same_kind("t", what, hexed(start), encoded)) == hexed(wanted)


@pytest.mark.parametrize("dtype", ["F32", "F64", "I32", "I64", "U32", "U64"])
@given(data=st.data())
def test_gives_back_every_pair_of_patterns(dtype: str, data: st.DataObject) -> None:
    width = DTYPES[dtype].bits
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, (1 << width) - 1), st.integers(0, (1 << width) - 1)), min_size=1, max_size=20)
    )
    start, wanted = (np.array(each, DTYPES[dtype].bit_pattern) for each in zip(*pairs, strict=True))
    case = same_kind("t", kind(dtype, len(pairs)), start.tobytes(), difference(start, wanted, DTYPES[dtype], "none"))
    assert made_directly(case) == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_the_order_of_patterns_is_the_order_of_values(dtype: str) -> None:
    # from -inf upwards, one step at a time, the values never fall
    infinity = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    steps = 2 * infinity + 2  # both zeros count
    start = np.full(steps, 0x8000 | infinity, "<u2")
    signed = np.arange(steps)
    signed[signed >= 1 << 15] -= 1 << 16  # the line is a ring: far up is a little down
    zigzag = np.where(signed >= 0, 2 * signed, -2 * signed - 1).astype("<u2")
    made = np.frombuffer(
        made_directly(
            same_kind("t", kind(dtype, steps), start.tobytes(), Encoded("ulp", {"sort": "none"}, {"diff": zigzag}))
        ),
        "<u2",
    )
    values = (made.astype("<u4") << 16).view("<f4") if dtype == "BF16" else made.view("<f2")
    assert (np.diff(values.astype(np.float64)[1:-1]) >= 0).all()
    assert values[-1] == np.inf
    assert len(set(made.tolist())) == steps


def test_no_difference_is_all_zeros() -> None:
    assert not difference(u16(1, 0x7FC1), u16(1, 0x7FC1), DTYPES["BF16"], "none").parts["diff"].any()


@pytest.mark.parametrize("sort", ["magnitude", "rows"])
@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "I32", "U8"])
def test_refuses_to_sort_what_has_no_key_of_the_table(dtype: str, sort: str) -> None:
    refused("manifest.parameter", ENCODING.parse, {"sort": sort}, target_of(kind(dtype, 4)), "here")


@pytest.mark.parametrize("sort", ["element", "", "Magnitude", "exponent"])
def test_refuses_another_sort(sort: str) -> None:
    refused("manifest.parameter", ENCODING.parse, {"sort": sort}, target_of(kind("F32", 4)), "here")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_sorted_items_stand_in_the_order_of_keys_within_a_span(dtype: str) -> None:
    count = ulp.SPAN + 1000  # a second span begins anew
    pattern = DTYPES[dtype].bit_pattern
    start = np.frombuffer(random_bytes(count * pattern.itemsize), pattern)
    wanted = np.frombuffer(random_bytes(count * pattern.itemsize, 2), pattern)
    plain, moved = (difference(start, wanted, DTYPES[dtype], sort) for sort in ("none", "magnitude"))
    key = keys_of(start, dtype)
    order = sorted(range(count), key=lambda x: (x // ulp.SPAN, key[x]))
    assert moved.parts["diff"].tolist() == plain.parts["diff"][order].tolist()
    assert made_directly(same_kind("t", kind(dtype, count), start.tobytes(), moved)) == wanted.tobytes()


def keys_of(bits: np.ndarray, dtype: str) -> np.ndarray:
    pattern = DTYPES[dtype].bit_pattern
    lowest = {"BF16": 7, "F16": 10, "F32": 15}[dtype]
    return (bits & pattern.type((1 << (DTYPES[dtype].bits - 1)) - 1)) >> pattern.type(lowest)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_items_by_rows_stand_in_the_order_of_classes_and_then_of_keys(dtype: str) -> None:
    shape, pattern = (2, 150, 1000), DTYPES[dtype].bit_pattern  # a second span begins within a row
    count = 300_000
    start = np.frombuffer(random_bytes(count * pattern.itemsize), pattern)
    wanted = np.frombuffer(random_bytes(count * pattern.itemsize, 2), pattern)
    classes = np.frombuffer(random_bytes(300, 3), np.uint8) % 3 * 120
    plain = difference(start, wanted, DTYPES[dtype])
    moved = difference(start, wanted, DTYPES[dtype], "rows", classes)
    key = keys_of(start, dtype)
    order = sorted(range(count), key=lambda x: (x // ulp.SPAN, classes[x // 1000], key[x]))
    assert moved.parts["diff"].tolist() == plain.parts["diff"][order].tolist()
    assert moved.parts["classes"].tolist() == classes.tolist()
    assert made_directly(same_kind("t", kind(dtype, *shape), start.tobytes(), moved)) == wanted.tobytes()


def test_a_run_of_whole_spans_can_be_rewritten_alone() -> None:
    start, wanted = (np.frombuffer(random_bytes(2 * (2 * ulp.SPAN + 10), seed), "<u2") for seed in (1, 2))
    what = kind("BF16", start.size)
    params, parts = {"sort": "magnitude"}, difference(start, wanted, DTYPES["BF16"], "magnitude").parts
    opened: Any = ENCODING.open(ENCODING.parse(params, target_of(what), ""), target_of(what), parts, "")
    assert opened.span == ulp.SPAN
    for first, last in ((0, ulp.SPAN), (ulp.SPAN, start.size), (2 * ulp.SPAN, start.size)):
        assert opened.rewrite(start[first:last], first).tolist() == wanted[first:last].tolist()
