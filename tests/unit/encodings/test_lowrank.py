"""``lowrank``: slices of integer factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import f32, int_slice, kind, made_directly, opened, refused, same_kind
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format import bits as room
from skillpack_format.contents import target_of
from skillpack_format.encodings._base import Encoded, PartSpec
from skillpack_format.encodings.lowrank import ENCODING, packed
from skillpack_format.errors import ManifestError

TARGET = target_of(kind("F32", 2, 4, 6))


def one_slice(**changes: Any) -> dict[str, Any]:
    plain = {"bits_u": 2, "bits_v": 3, "rank": 3, **changes}
    return {k: v for k, v in plain.items() if v is not None}


def parse(*slices: Any, target: Any = TARGET, **changes: Any) -> Any:
    return ENCODING.parse({"packing": "stream", "slices": list(slices), **changes}, target, "here")


@pytest.mark.parametrize(
    "changes",
    [{"bits_u": 0}, {"bits_u": 9}, {"bits_v": 0}, {"bits_v": 255}, {"rank": 0}, {"rank": 5}, {"rank": (1 << 64) - 1}],
)
def test_refuses_a_slice_out_of_range(changes: dict[str, Any]) -> None:
    assert refused("manifest.parameter", parse, one_slice(), one_slice(**changes)).where == "here slice 1"


def test_slices_at_the_ends_of_every_range_are_not_named_in_the_place_of_a_wrong_one() -> None:
    ends = one_slice(bits_u=1, bits_v=1, rank=1), one_slice(bits_u=8, bits_v=8, rank=4)
    assert refused("manifest.type", parse, *ends, 7).where == "here slice 2"
    large = target_of(kind("F32", 1 << 25, 1 << 25))
    exact = one_slice(bits_u=8, bits_v=8, rank=1024), one_slice(bits_u=1, bits_v=1, rank=1 << 24)
    assert refused("manifest.type", parse, *exact, 7, target=large).where == "here slice 2"


@pytest.mark.parametrize(("bits", "rank"), [((8, 8), 1024), ((8, 1), 131072), ((1, 1), 1 << 24), ((4, 6), 1 << 16)])
def test_sums_of_products_stay_within_two_to_the_24(bits: tuple[int, int], rank: int) -> None:
    target = target_of(kind("F32", 1 << 25, 1 << 25))
    parse(one_slice(bits_u=bits[0], bits_v=bits[1], rank=rank), target=target)
    refused("manifest.parameter", parse, one_slice(bits_u=bits[0], bits_v=bits[1], rank=rank + 1), target=target)


NUMBERS = st.integers(0, 9) | st.sampled_from(["", "2", b"\2", [], {}])
MAPS = st.fixed_dictionaries({"bits_u": NUMBERS, "bits_v": NUMBERS, "rank": NUMBERS}, optional={"x": NUMBERS})


def is_slice(plain: Any) -> bool:
    if not isinstance(plain, dict) or plain.keys() != {"bits_u", "bits_v", "rank"}:
        return False
    return all(isinstance(value, int) and 1 <= value <= 8 for value in plain.values()) and plain["rank"] <= 4


@given(st.lists(MAPS | st.sampled_from([7, "abc", b"abc", [1, 2, 3], {}]), min_size=1, max_size=4))
def test_of_several_slices_the_first_that_is_wrong_is_named(slices: list[Any]) -> None:
    wrong = [k for k, each in enumerate(slices) if not is_slice(each)]
    if wrong:
        with pytest.raises(ManifestError) as found:
            parse(*slices)
        assert found.value.where == f"here slice {wrong[0]}"
    else:
        assert parse(*slices).slices == [(each["bits_u"], each["bits_v"], each["rank"]) for each in slices]


def test_has_one_to_64_slices() -> None:
    assert len(parse(*[one_slice()] * 64).slices) == 64
    refused("manifest.parameter", parse)
    refused("manifest.parameter", parse, *[one_slice()] * 65)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: parse(one_slice(), packing="rows"), "manifest.parameter"),
        (lambda: parse(one_slice(), packing=1), "manifest.type"),
        (lambda: parse(one_slice(), extra=1), "manifest.unknown-key"),
        (lambda: parse(one_slice(scale=1)), "manifest.unknown-key"),
        (lambda: parse(one_slice(rank=None)), "manifest.missing-key"),
        (lambda: parse(7), "manifest.type"),
        (lambda: parse(one_slice(rank="1")), "manifest.type"),
        (lambda: ENCODING.parse({"packing": "lanes", "slices": {}}, TARGET, ""), "manifest.type"),
        (lambda: ENCODING.parse({"packing": "lanes"}, TARGET, ""), "manifest.missing-key"),
    ],
)
def test_refuses_what_are_no_parameters(call: Any, code: str) -> None:
    refused(code, call)


def test_parts_follow_the_parameters() -> None:
    params = parse(one_slice(), one_slice(bits_u=8, bits_v=1, rank=1))
    assert ENCODING.adds(params)
    assert ENCODING.parts(params, TARGET) == (
        PartSpec("scales", 4, 4), PartSpec("u0", 1, 6), PartSpec("v0", 1, 14),
        PartSpec("u1", 1, 8), PartSpec("v1", 1, 2),
    )  # fmt: skip


def test_a_product_by_hand() -> None:
    # k = 0: (1, -2)^T (3, -4, 0), k = 1: (0, 1)^T (1, 1, -1); the sum times -1/4
    encoded = packed([int_slice([-0.25], [[[1, -2], [0, 1]]], [[[3, -4, 0], [1, 1, -1]]])], "lanes")
    case = same_kind("t", kind("F32", 2, 3), f32(0, 0, 0, 1, 1, 1), encoded)
    assert made_directly(case) == f32(-0.75, 1.0, 0.0, 2.25, -1.25, 1.25)


def test_every_matrix_of_a_stack_has_its_scale() -> None:
    encoded = packed([int_slice([0.5, 2.0, 0.0], [[[1]]] * 3, [[[-1]]] * 3)], "stream")
    assert made_directly(same_kind("t", kind("F32", 3, 1, 1), f32(1, 1, 1), encoded)) == f32(0.5, -1.0, 1.0)


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([0, -1], 1), ([1, 0], 2), ([-2, 0], 2), ([2, 0], 4), ([7, -8], 4), ([8, 0], 8), ([127, -128], 8)],
)
def test_takes_the_fewest_bits_that_hold_the_codes(codes: list[int], bits: int) -> None:
    encoded = packed([int_slice([1.0], [[codes]], [[[0, 0, 0]]])], "stream")
    assert encoded.params["slices"] == [{"bits_u": bits, "bits_v": 1, "rank": 1}]


@pytest.mark.parametrize("packing", ["stream", "lanes"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_code_of_any_width_is_itself_less_half_the_range(bits: int, packing: str) -> None:
    codes = np.array([0, 1, (1 << bits) - 1, 1 << (bits - 1)], np.uint8) & ((1 << bits) - 1)
    params = {"packing": packing, "slices": [{"bits_u": bits, "bits_v": 1, "rank": 1}]}
    parts = {
        "scales": np.array([-1.0], "<f4").view("<u4"),
        "u0": room.pack(codes, bits, packing),
        "v0": room.pack(np.zeros(1, np.uint8), 1, packing),  # 0 - 1 = -1
    }
    made = np.frombuffer(
        made_directly(same_kind("t", kind("F32", 4, 1), bytes(16), Encoded("lowrank", params, parts))), "<f4"
    )
    assert made.tolist() == [float(int(code) - (1 << (bits - 1))) for code in codes]


@pytest.mark.parametrize("scale", [float("nan"), float("-inf"), -0.0, 2.0**-101])
def test_refuses_a_scale_that_is_not_allowed(scale: float) -> None:
    encoded = packed([int_slice([1.0, scale], [[[1]]] * 2, [[[1]]] * 2)], "stream")
    assert refused("payload.scale", opened, encoded, kind("F32", 2, 1, 1)).where == "here"


@pytest.mark.parametrize("part", ["u0", "v0"])
def test_refuses_a_spare_bit(part: str) -> None:
    encoded = packed([int_slice([1.0], [[[1, -2]]], [[[3, -4, 0]]])], "stream")
    encoded.parts[part][-1] |= 0x80
    refused("payload.padding-bits", opened, encoded, kind("F32", 2, 3))
