"""``sparse``: positions and values. Indices are data that becomes addresses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import f32, hexed, kind, made_directly, opened, refused, same_kind, u16
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.contents import target_of
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings._base import Encoded, PartSpec
from skillpack_format.encodings.sparse import ENCODING, placed

U8 = DTYPES["U8"]


def parse(numel: int = 600, dtype: str | None = "U8", **changes: Any) -> Any:
    plain = {"count": 2, "dtype": dtype, "gaps": 2, "index": "gap8", "mode": "replace", **changes}
    return ENCODING.parse(
        {k: v for k, v in plain.items() if v is not None}, target_of(kind(dtype or "U8", numel)), "here"
    )


def component(
    index: str, codes: bytes, count: int, *, gaps: int | None = None, mode: str = "replace", dtype: str = "U8"
) -> Encoded:
    width = {"gap16": 2}.get(index, 1)
    items = np.frombuffer(codes, f"<u{width}")
    params = {
        "count": count,
        "dtype": dtype,
        "gaps": items.size if gaps is None else gaps,
        "index": index,
        "mode": mode,
    }
    values = np.arange(1, count + 1).astype(DTYPES[dtype].bit_pattern)
    return Encoded("sparse", params, {"index": items, "values": values})


def places(encoded: Encoded, numel: int) -> list[int]:
    found = np.frombuffer(made_directly(same_kind("t", kind("U8", numel), bytes(numel), encoded)), np.uint8)
    assert found[found > 0].tolist() == list(range(1, encoded.params["count"] + 1))
    return np.flatnonzero(found).tolist()


@pytest.mark.parametrize(
    ("index", "codes", "numel", "expected"),
    [
        ("gap8", "0200ff00", 260, [2, 3, 259]),
        ("gap8", "", 4, []),
        ("gap8", "fe", 255, [254]),
        ("gap8", "ff00", 256, [255]),
        ("gap8", "ffff0100", 513, [511, 512]),
        ("gap16", "0200", 3, [2]),
        ("gap16", "feff0000", 65536, [65534, 65535]),
        ("gap16", "ffff0000", 65536, [65535]),
        ("bitmap", "8102", 10, [0, 7, 9]),
        ("bitmap", "00", 8, []),
        ("bitmap", "ff", 8, list(range(8))),
    ],
)
def test_finds_the_positions_by_hand(index: str, codes: str, numel: int, expected: list[int]) -> None:
    gaps = 0 if index == "bitmap" else None
    assert places(component(index, hexed(codes), len(expected), gaps=gaps), numel) == expected


@pytest.mark.parametrize(
    ("index", "codes", "count", "numel"),
    [
        ("gap8", "04", 1, 4),  # position 4 of 4
        ("gap8", "0003", 2, 4),
        ("gap8", "ff00", 1, 255),
        ("gap8", "00ff", 1, 600),  # an escape at the end
        ("gap8", "0000ff", 2, 600),
        ("gap8", "ff0000", 1, 600),  # two elements, one is promised
        ("gap8", "ffffff00", 2, 800),  # one element, two are promised
        ("gap8", "ff", 0, 600),  # an escape and nothing else
        ("gap16", "0400", 1, 4),
        ("gap16", "ffff0000", 1, 65535),
        ("bitmap", "03", 1, 8),
        ("bitmap", "00", 1, 8),
    ],
)
def test_refuses_an_index_that_does_not_fit(index: str, codes: str, count: int, numel: int) -> None:
    encoded = component(index, hexed(codes), count, gaps=0 if index == "bitmap" else None)
    assert refused("payload.position", opened, encoded, kind("U8", numel)).where == "here"


@pytest.mark.parametrize(("codes", "numel"), [("80", 7), ("02", 1), ("0080", 15), ("0002", 9)])
def test_refuses_a_spare_bit_of_a_bitmap(codes: str, numel: int) -> None:
    refused("payload.padding-bits", opened, component("bitmap", hexed(codes), 0, gaps=0), kind("U8", numel))


def test_positions_cannot_wrap() -> None:
    codes = b"\xff\xff" * 15 + b"\xfe\xff"
    refused("payload.position", opened, component("gap16", codes, 1), kind("U8", 1_000_000))


def test_refuses_to_add_what_is_not_finite() -> None:
    encoded = placed(np.array([1]), u16(0x7F80), DTYPES["BF16"], 4, "add")
    refused("payload.nonfinite", opened, encoded, kind("F32", 4))


def test_refuses_a_bool_that_is_neither_0_nor_1() -> None:
    encoded = placed(np.array([1]), np.array([2], np.uint8), DTYPES["BOOL"], 4, "replace")
    refused("payload.value", opened, encoded, kind("BOOL", 4))


@pytest.mark.parametrize("count", [0, 600])
def test_lists_none_up_to_all_elements(count: int) -> None:
    assert parse(count=count, gaps=count).count == count


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 601, "gaps": 601}, {"count": -1}, {"count": (1 << 64) - 1},
        {"count": -1, "gaps": 0, "index": "bitmap"},
        {"gaps": 1}, {"gaps": 5}, {"gaps": (1 << 64) - 1},
        {"index": "gap16", "gaps": 3}, {"index": "bitmap", "gaps": 1}, {"index": "bitmap", "gaps": 2},
        {"index": "gap32"}, {"index": ""}, {"mode": "xor"}, {"mode": "add"},
    ],
)  # fmt: skip
def test_refuses_parameters_out_of_range(changes: dict[str, Any]) -> None:
    assert refused("manifest.parameter", parse, **changes).where == "here"


@pytest.mark.parametrize(
    ("index", "numel", "gaps"),
    [
        ("gap8", 600, 4),
        ("gap8", 254, 2),
        ("gap8", 255, 3),
        ("gap16", 65534, 2),
        ("gap16", 65535, 3),
        ("bitmap", 600, 0),
    ],
)
def test_takes_as_many_gaps_as_escapes_can_fill(index: str, numel: int, gaps: int) -> None:
    assert parse(numel, index=index, gaps=gaps).gaps == gaps
    refused("manifest.parameter", parse, numel, index=index, gaps=gaps + 1)


@pytest.mark.parametrize("key", ["count", "dtype", "gaps", "index", "mode"])
def test_refuses_a_missing_parameter(key: str) -> None:
    refused("manifest.missing-key", parse, **{key: None})


def test_refuses_an_unknown_parameter() -> None:
    refused("manifest.unknown-key", parse, order="row")


@pytest.mark.parametrize(
    ("target", "dtype", "mode"),
    [
        ("BF16", "F16", "replace"),
        ("F32", "F64", "add"),
        ("F32", "I32", "add"),
        ("F4", "F4", "replace"),
        ("F6_E2M3", "F6_E2M3", "replace"),
    ],
)
def test_refuses_a_dtype_that_does_not_fit(target: str, dtype: str, mode: str) -> None:
    plain = {"count": 0, "dtype": dtype, "gaps": 0, "index": "gap8", "mode": mode}
    refused("manifest.parameter", ENCODING.parse, plain, target_of(kind(target, 8)), "here")


@pytest.mark.parametrize(
    ("changes", "index"),
    [
        ({}, PartSpec("index", 1, 2)),
        ({"index": "gap16"}, PartSpec("index", 2, 2)),
        ({"index": "bitmap", "gaps": 0}, PartSpec("index", 1, 76)),
    ],
)
def test_parts_follow_the_parameters(changes: dict[str, Any], index: PartSpec) -> None:
    params = parse(601, dtype="BF16", **changes)
    assert ENCODING.parts(params, target_of(kind("BF16", 601))) == (index, PartSpec("values", 2, 2))


@pytest.mark.parametrize(
    ("count", "numel", "index"),
    [
        (0, 600, "gap16"),
        (1, 8, "gap8"),
        (2, 8, "bitmap"),
        (1, 251, "gap16"),
        (1, 250, "gap8"),
        (13, 104, "gap8"),
        (14, 104, "bitmap"),
    ],
)
def test_chooses_the_index_by_density(count: int, numel: int, index: str) -> None:
    assert placed(np.arange(count), np.zeros(count, np.uint8), U8, numel, "replace").params["index"] == index


@given(st.sets(st.integers(0, 3000), max_size=60), st.sampled_from(["gap8", "gap16", "bitmap"]))
def test_every_set_of_positions_comes_back(wanted: set[int], index: str) -> None:
    positions = np.array(sorted(wanted), np.int64)
    numel = {"gap8": 3001, "gap16": 70_000, "bitmap": max(3001, 1)}[index]
    encoded = placed(positions, (np.arange(positions.size) + 1).astype(np.uint8), U8, numel, "replace")
    assert places(encoded, numel) == positions.tolist()


def test_adds_at_its_positions_only() -> None:
    encoded = placed(np.array([0, 2]), u16(0x3F80, 0x0000), DTYPES["BF16"], 3, "add")
    case = same_kind("t", kind("F32", 3), f32(1.0, -0.0, -0.0), encoded)
    assert made_directly(case) == f32(2.0, -0.0, 0.0)
