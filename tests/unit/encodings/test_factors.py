"""``factors``: U S V^T in bands of floats or group codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import f32, kind, made_directly, opened, refused, same_kind, u32
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.contents import target_of
from skillpack_format.encodings._base import Encoded, PartSpec
from skillpack_format.encodings.factors import CODES, ENCODING
from skillpack_format.errors import ManifestError

TARGET = target_of(kind("F32", 2, 4, 6))


def one_band(**changes: Any) -> dict[str, Any]:
    plain = {"code": "Q3", "rank": 3, **changes}
    return {k: v for k, v in plain.items() if v is not None}


def parse(*bands: Any, **changes: Any) -> Any:
    plain = {"bands": list(bands), "group": 4, "packing": "stream", "scale": "F16", **changes}
    return ENCODING.parse({k: v for k, v in plain.items() if v is not None}, TARGET, "here")


def floats(s: list[float], u: list[list[float]], v: list[list[float]]) -> Encoded:
    """One F32 band of one matrix; u and v have a row a rank."""
    params = {"bands": [{"code": "F32", "rank": len(s)}], "group": 1, "packing": "lanes", "scale": "F32"}
    parts = {"s0": s, "u0": u, "v0": v}
    return Encoded(
        "factors", params, {k: np.array(values, "<f4").reshape(-1).view("<u4") for k, values in parts.items()}
    )


def coded(u_codes: list[int], u_scale: float, v_codes: list[int], v_scales: list[float]) -> Encoded:
    """One Q2 band of rank 1 for (2, 3): codes in lanes, groups of 2, F32 scales, s = 1."""
    params = {"bands": [{"code": "Q2", "rank": 1}], "group": 2, "packing": "lanes", "scale": "F32"}
    parts = {
        "s0": f32(1.0), "u0": bytes([u_codes[0] | u_codes[1] << 2]), "u_scales0": f32(u_scale),
        "v0": bytes([v_codes[0] | v_codes[1] << 2 | v_codes[2] << 4]), "v_scales0": f32(*v_scales),
    }  # fmt: skip
    width = {"u0": "u1", "v0": "u1"}
    return Encoded(
        "factors", params, {k: np.frombuffer(bytearray(raw), width.get(k, "<u4")) for k, raw in parts.items()}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"code": "Q0"},
        {"code": "Q9"},
        {"code": "F64"},
        {"code": "q4"},
        {"rank": 0},
        {"rank": 5},
        {"rank": (1 << 64) - 1},
    ],
)
def test_refuses_a_band_out_of_range(changes: dict[str, Any]) -> None:
    assert refused("manifest.parameter", parse, one_band(), one_band(**changes)).where == "here band 1"


def test_bands_at_the_ends_of_the_range_are_not_named_in_the_place_of_a_wrong_one() -> None:
    assert refused("manifest.type", parse, one_band(rank=1), one_band(rank=4), 7).where == "here band 2"


@pytest.mark.parametrize(
    "changes", [{"group": 0}, {"group": (1 << 32) + 1}, {"packing": "rows"}, {"scale": "F64"}, {"scale": "Q4"}]
)
def test_refuses_parameters_out_of_range(changes: dict[str, Any]) -> None:
    assert refused("manifest.parameter", parse, one_band(), **changes).where == "here"


@pytest.mark.parametrize("code", CODES)
def test_takes_every_code(code: str) -> None:
    assert ENCODING.adds(parse(one_band(code=code)))


VALUES = st.integers(0, 5) | st.sampled_from([*CODES, "Q9", "", b"Q3", [], {}])
MAPS = st.fixed_dictionaries({"code": VALUES, "rank": VALUES}, optional={"x": VALUES})


def is_band(plain: Any) -> bool:
    if not isinstance(plain, dict) or plain.keys() != {"code", "rank"}:
        return False
    return plain["code"] in CODES and isinstance(plain["rank"], int) and 1 <= plain["rank"] <= 4


@given(st.lists(MAPS | st.sampled_from([7, "ab", b"ab", [1, 2], {}]), min_size=1, max_size=4))
def test_of_several_bands_the_first_that_is_wrong_is_named(bands: list[Any]) -> None:
    wrong = [k for k, each in enumerate(bands) if not is_band(each)]
    if wrong:
        with pytest.raises(ManifestError) as found:
            parse(*bands)
        assert found.value.where == f"here band {wrong[0]}"
    else:
        assert parse(*bands).bands == [(each["code"], each["rank"]) for each in bands]


def test_has_one_to_64_bands() -> None:
    assert len(parse(*[one_band()] * 64).bands) == 64
    refused("manifest.parameter", parse)
    refused("manifest.parameter", parse, *[one_band()] * 65)


def test_a_group_may_have_two_to_the_32_columns() -> None:
    assert parse(one_band(), group=1 << 32).group == 1 << 32
    refused("manifest.parameter", parse, one_band(), group=(1 << 32) + 1)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: parse(one_band(), group=None), "manifest.missing-key"),
        (lambda: parse(one_band(), scale=None), "manifest.missing-key"),
        (lambda: parse(one_band(), extra=1), "manifest.unknown-key"),
        (lambda: parse(one_band(extra=1)), "manifest.unknown-key"),
        (lambda: parse(one_band(rank=None)), "manifest.missing-key"),
        (lambda: parse([]), "manifest.type"),
        (lambda: parse(one_band(code=4)), "manifest.type"),
        (lambda: parse(one_band(), bands={}), "manifest.type"),
    ],
)
def test_refuses_what_are_no_parameters(call: Any, code: str) -> None:
    refused(code, call)


def test_parts_follow_the_parameters() -> None:
    params = parse(one_band(), one_band(code="BF16", rank=1))
    assert ENCODING.parts(params, TARGET) == (
        PartSpec("s0", 4, 6), PartSpec("u0", 1, 9), PartSpec("u_scales0", 2, 6), PartSpec("v0", 1, 14),
        PartSpec("v_scales0", 2, 12), PartSpec("s1", 4, 2), PartSpec("u1", 2, 8), PartSpec("v1", 2, 12),
    )  # fmt: skip


def test_a_product_of_floats_by_hand() -> None:
    encoded = floats([0.5, -1.0], [[1.0, 2.0], [0.25, 0.0]], [[1.0, -1.0, 4.0], [2.0, 0.0, 1.0]])
    case = same_kind("t", kind("F32", 2, 3), f32(0, 0, 0, 0, 0, 1), encoded)
    assert made_directly(case) == f32(0.0, -0.5, 1.75, 1.0, -1.0, 5.0)


def test_a_product_of_codes_by_hand() -> None:
    # levels are 2q - 3: u = (3, -1) * 0.5; v = (1 * 2, 3 * 2 | -3 * 1)
    case = same_kind("t", kind("F32", 2, 3), bytes(24), coded([3, 1], 0.5, [2, 3, 0], [2.0, 1.0]))
    assert made_directly(case) == f32(3.0, 9.0, -4.5, -1.0, -3.0, 1.5)


def test_no_product_is_fused_with_its_sum() -> None:
    # spec/encodings/factors.md, factors-order: fused multiply-add would give A8800001
    encoded = floats([1.0 + 2.0**-23], [[1.0 - 2.0**-23]], [[1.0 + 2.0**-23]])
    case = same_kind("t", kind("F32", 1, 1), u32(0xBF800001).tobytes(), encoded)
    assert made_directly(case) == u32(0xA8800000).tobytes()


def test_ranks_reach_the_accumulator_one_by_one() -> None:
    # 2^60 + 1 - 2^60: summed in this order the 1 is lost, in another it is not
    ones = [[1.0]] * 3
    case = same_kind("t", kind("F32", 1, 1), bytes(4), floats([2.0**60, 1.0, -(2.0**60)], ones, ones))
    refused("manifest.parameter", made_directly, case)  # rank 3 of a 1 x 1 matrix
    wide = floats([2.0**60, 1.0, -(2.0**60)], [[1.0] * 3] * 3, [[1.0] * 3] * 3)
    other = floats([2.0**60, -(2.0**60), 1.0], [[1.0] * 3] * 3, [[1.0] * 3] * 3)
    what = kind("F32", 3, 3)
    assert made_directly(same_kind("t", what, bytes(36), wide)) == bytes(36)
    assert made_directly(same_kind("t", what, bytes(36), other)) == f32(*[1.0] * 9)


@pytest.mark.parametrize("part", ["s0", "u0", "v0"])
@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000])
def test_refuses_a_factor_that_is_not_finite(part: str, bits: int) -> None:
    encoded = floats([1.0], [[1.0, 1.0]], [[1.0, 1.0, 1.0]])
    encoded.parts[part][-1] = bits
    assert refused("payload.nonfinite", opened, encoded, kind("F32", 2, 3)).where == "here"


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -3.0])
def test_s_may_be_any_finite_number(value: float) -> None:
    opened(floats([value], [[1.0, 1.0]], [[1.0, 1.0, 1.0]]), kind("F32", 2, 3))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -0.0, 2.0**-101])
def test_refuses_a_scale_that_is_not_allowed(scale: float) -> None:
    refused("payload.scale", opened, coded([0, 0], scale, [0, 0, 0], [1.0, 1.0]), kind("F32", 2, 3))
    refused("payload.scale", opened, coded([0, 0], 1.0, [0, 0, 0], [1.0, scale]), kind("F32", 2, 3))


@pytest.mark.parametrize("part", ["u0", "v0"])
def test_refuses_a_spare_bit(part: str) -> None:
    encoded = coded([0, 0], 1.0, [0, 0, 0], [1.0, 1.0])
    encoded.parts[part][0] |= 0x80
    refused("payload.padding-bits", opened, encoded, kind("F32", 2, 3))
