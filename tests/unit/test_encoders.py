"""From two tensors and a treatment to components."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import Case, bf16, f32, kind, made_directly, nbytes, random_bytes, refused

from skillpack_format import encoders
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import DTYPES, bits_to_float64
from skillpack_format.encoders import Pair, banded, blocked, is_lossy_possible, lossless, pruned
from skillpack_format.encodings._base import Encoded
from skillpack_format.making import start_of
from skillpack_format.recipes import Bands, Blocks, Prune, Slices

SLICES = Slices(0.5, 0.5)
BANDS = Bands(((8, 0.25), (4, 0.75)), 16, rank=1.0)


def sliced(pair: Pair, treatment: Slices) -> list[Encoded]:
    return list(encoders.sliced(pair, encoders.decomposed(pair), treatment).encoded)


LOSSY = [(sliced, SLICES), (pruned, Prune(0.5)), (banded, BANDS), (blocked, Blocks(2, 5))]


def pair_of(result: TensorKind, wanted: bytes, base: TensorKind | None = None, raw: bytes | None = None) -> Pair:
    dtype = DTYPES[result.dtype]
    old = 0 if base is None else int(min(np.prod(base.shape), np.prod(result.shape)))
    return Pair("t", result, start_of(raw, base, result), np.frombuffer(wanted, dtype.bit_pattern), old)


def same(result: TensorKind, raw: bytes, wanted: bytes) -> Pair:
    return pair_of(result, wanted, result, raw)


def made(pair: Pair, encoded: list[Encoded], base: TensorKind | None, raw: bytes | None) -> np.ndarray:
    case = Case("t", pair.kind, tuple(encoded), base, raw)
    return np.frombuffer(made_directly(case), DTYPES[pair.kind.dtype].bit_pattern)


def tuned(shape: tuple[int, ...], seed: int = 1) -> tuple[bytes, bytes]:
    """F32 bytes before and after a small change of low rank."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape).astype("<f4")
    delta = 1e-2 * rng.standard_normal((*shape[:-1], 3)) @ rng.standard_normal((*shape[:-2], 3, shape[-1]))
    return base.tobytes(), (base + delta.astype("<f4")).tobytes()


def share_lost(pair: Pair, found: np.ndarray, base: bytes) -> float:
    start = np.frombuffer(base, "<f4").astype(np.float64)
    wanted = bits_to_float64(pair.wanted, DTYPES["F32"]) - start
    kept = bits_to_float64(found, DTYPES["F32"]) - start
    return float(np.sum((kept - wanted) ** 2) / np.sum(wanted**2))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("BF16", ["sparse", "ulp", "dense"]),
        ("U8", ["sparse", "ulp", "dense"]),
        ("BOOL", ["sparse", "dense"]),
        ("C64", ["sparse", "dense"]),
        ("F4", ["dense"]),
    ],
)
def test_offers_every_exact_code_that_applies(dtype: str, expected: list[str]) -> None:
    what = kind(dtype, 4, 4)
    raw = bytes(nbytes(what))
    assert [each.encoding for each in lossless(same(what, raw, b"\1" + raw[1:]))] == expected


@pytest.mark.parametrize(("changed", "offers"), [(7, True), (8, False), (16, False)])
def test_offers_sparse_where_less_than_half_changes(changed: int, offers: bool) -> None:
    found = lossless(same(kind("U8", 16), bytes(16), b"\1" * changed + bytes(16 - changed)))
    assert ("sparse" in [each.encoding for each in found]) == offers


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "I8", "F8_E4M3", "F4", "C64"])
def test_every_exact_code_is_exact(dtype: str) -> None:
    what = kind(dtype, 4, 6)
    raw, wanted = random_bytes(nbytes(what), 1), random_bytes(nbytes(what), 2)
    pair = same(what, raw, wanted)
    for each in lossless(pair):
        assert made(pair, [each], what, raw).tobytes() == wanted


def test_exact_codes_of_a_converted_tensor_start_from_the_conversion() -> None:
    before, after = kind("F32", 2, 2), kind("BF16", 2, 2)
    raw, wanted = f32(1.0, 2.0, 3.0, 4.0), bf16(1.0, 2.0, 3.0, 5.0)
    pair = pair_of(after, wanted, before, raw)
    assert pair.converted.tobytes() == bf16(1.0, 2.0, 3.0, 4.0)
    for each in lossless(pair):
        assert made(pair, [each], before, raw).tobytes() == wanted
    assert next(lossless(pair)).params["count"] == 1


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (same(kind("F32", 2, 2), bytes(16), bytes(16)), True),
        (same(kind("F32", 4), bytes(16), bytes(16)), True),
        (same(kind("F32"), bytes(4), bytes(4)), False),
        (same(kind("F64", 2, 2), bytes(32), bytes(32)), False),
        (pair_of(kind("F32", 2, 2), bytes(16)), False),
        (pair_of(kind("F32", 2, 2), bytes(16), kind("BF16", 2, 2), bytes(8)), True),
    ],
)
def test_lossy_codes_are_for_vectors_and_matrices_of_floats_that_change(pair: Pair, expected: bool) -> None:
    assert is_lossy_possible(pair) is expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_refuses_a_lossy_code_for_what_is_not_finite(value: float, side: str) -> None:
    odd, even = f32(1.0, value, 0.0, 0.0), f32(1.0, 2.0, 0.0, 0.0)
    pair = same(kind("F32", 2, 2), *((odd, even) if side == "base" else (even, odd)))
    for call, treatment in LOSSY:
        assert refused("convert.nonfinite", call, pair, treatment).where == "tensor 't'"


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (3, 20, 30)])
def test_slices_keep_most_of_a_change_of_low_rank(shape: tuple[int, ...]) -> None:
    raw, wanted = tuned(shape)
    pair = same(kind("F32", *shape), raw, wanted)
    encoded = sliced(pair, SLICES)
    assert [each.encoding for each in encoded] == ["lowrank"]
    assert share_lost(pair, made(pair, encoded, pair.kind, raw), raw) < 0.02


def test_slices_of_no_change_are_no_component() -> None:
    raw, _ = tuned((8, 8))
    assert sliced(same(kind("F32", 8, 8), raw, raw), SLICES) == []


def test_a_stack_pads_the_matrices_that_need_fewer_ranks() -> None:
    raw, wanted = tuned((2, 12, 12))
    half = wanted[: len(wanted) // 2] + raw[len(raw) // 2 :]  # the second matrix does not change
    pair = same(kind("F32", 2, 12, 12), raw, half)
    found = made(pair, sliced(pair, SLICES), pair.kind, raw)
    assert found.tobytes()[len(raw) // 2 :] == raw[len(raw) // 2 :]
    assert share_lost(pair, found, raw) < 0.05


@pytest.mark.parametrize(("keep", "count"), [(0.25, 4), (1.0, 5), (0.01, 1)])
def test_pruning_keeps_the_largest_changes(keep: float, count: int) -> None:
    raw = bytes(64)
    wanted = f32(*[0.0] * 10, 0.5, -4.0, 1.0, 2.0, -3.0, 0.0)
    pair = same(kind("F32", 4, 4), raw, wanted)
    (encoded,) = pruned(pair, Prune(keep))
    found = np.frombuffer(made(pair, [encoded], pair.kind, raw).tobytes(), "<f4")
    kept = sorted([0.5, -4.0, 1.0, 2.0, -3.0], key=abs, reverse=True)[:count]
    assert sorted(found[found != 0].tolist(), key=abs, reverse=True) == kept


def test_ties_in_pruning_go_to_the_lower_position() -> None:
    pair = same(kind("F32", 1, 4), bytes(16), f32(1.0, -1.0, 1.0, 1.0))
    assert (
        made(pair, pruned(pair, Prune(0.5)), pair.kind, bytes(16)).tolist()
        == np.frombuffer(f32(1, -1, 0, 0), "<u4").tolist()
    )


@pytest.mark.parametrize("treatment", [BANDS, Bands(((8, 1.0),), 8, energy=0.999)])
def test_bands_keep_most_of_a_change_of_low_rank(treatment: Bands) -> None:
    raw, wanted = tuned((20, 30))
    pair = same(kind("F32", 20, 30), raw, wanted)
    encoded = banded(pair, treatment)
    assert [each.encoding for each in encoded] == ["factors"]
    assert share_lost(pair, made(pair, encoded, pair.kind, raw), raw) < 0.05


@pytest.mark.parametrize("treatment", [BANDS, Bands(((8, 0.02), (4, 0.18), (2, 0.8)), 128, rank=0.25)])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_bands_have_no_more_rank_than_the_change(treatment: Bands, rank: int) -> None:
    rng = np.random.default_rng(rank)
    delta = (rng.standard_normal((24, rank)) @ rng.standard_normal((rank, 24))).astype("<f4")
    pair = same(kind("F32", 24, 24), bytes(delta.nbytes), delta.tobytes())
    (encoded,) = banded(pair, treatment)
    assert sum(band["rank"] for band in encoded.params["bands"]) <= rank
    made(pair, [encoded], pair.kind, bytes(delta.nbytes))


@pytest.mark.parametrize("treatment", [BANDS, Bands(((8, 1.0),), 8, energy=0.9)])
def test_bands_of_no_change_are_no_component(treatment: Bands) -> None:
    raw, _ = tuned((8, 8))
    assert banded(same(kind("F32", 8, 8), raw, raw), treatment) == []


def test_bands_of_a_stack_are_as_wide_as_its_widest_matrix() -> None:
    raw, wanted = tuned((2, 12, 16))
    half = wanted[: len(wanted) // 2] + raw[len(raw) // 2 :]  # the second matrix does not change
    pair = same(kind("F32", 2, 12, 16), raw, half)
    found = made(pair, banded(pair, BANDS), pair.kind, raw)
    assert found.tobytes()[len(raw) // 2 :] == raw[len(raw) // 2 :]
    assert share_lost(pair, found, raw) < 0.05


@pytest.mark.parametrize(("call", "treatment"), LOSSY)
def test_rows_the_base_does_not_have_are_exact(call: object, treatment: object) -> None:
    before, after = kind("F32", 8, 6), kind("F32", 10, 6)
    raw, wanted = tuned((8, 6))
    new = random_bytes(48).replace(b"\x7f", b"\x00").replace(b"\xff", b"\x00")
    pair = pair_of(after, wanted + new, before, raw)
    found = made(pair, call(pair, treatment), before, raw)  # type: ignore[operator]
    assert found.tobytes()[len(raw) :] == new


@pytest.mark.parametrize(("call", "treatment"), LOSSY)
def test_rows_that_are_cut_take_nothing_with_them(call: object, treatment: object) -> None:
    before, after = kind("F32", 8, 6), kind("F32", 5, 6)
    raw, wanted = tuned((8, 6))
    pair = pair_of(after, wanted[: 5 * 24], before, raw)
    assert made(pair, call(pair, treatment), before, raw).size == 30  # type: ignore[operator]


@pytest.mark.parametrize(("call", "treatment"), LOSSY)
def test_a_change_too_large_for_float32_is_refused_in_words(call: object, treatment: object) -> None:
    # both ends are finite, their difference is not: 6e38
    raw, wanted = f32(-3e38, 1.0, 1.0, 1.0), f32(3e38, 1.0, 1.0, 2.0)
    refused("convert.nonfinite", call, same(kind("F32", 2, 2), raw, wanted), treatment)  # type: ignore[arg-type]


@pytest.mark.parametrize(("call", "treatment"), LOSSY)
def test_encoding_is_a_function_of_its_arguments(call: object, treatment: object) -> None:
    raw, wanted = tuned((16, 12))
    one, other = (call(same(kind("F32", 16, 12), raw, wanted), treatment) for _ in range(2))  # type: ignore[operator]
    assert [each.params for each in one] == [each.params for each in other]
    for first, second in zip(one, other, strict=True):
        assert {k: v.tobytes() for k, v in first.parts.items()} == {k: v.tobytes() for k, v in second.parts.items()}


def test_a_pair_of_one_dtype_is_not_converted() -> None:
    pair = same(kind("F32", 1, 1), f32(1.0), f32(2.0))
    assert pair.converted is pair.start.bits
    assert replace(pair, name="x").name == "x"
