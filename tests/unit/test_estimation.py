"""The fast way to a BF16 sum: the same bits as the exact rule, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from builders import change_of, fault_of, int_slice, kind, same_kind
from hypothesis import given, settings
from hypothesis import strategies as st

from skillpack_format import estimation
from skillpack_format.arithmetic import NUMPY_BENCH, NumpyBench
from skillpack_format.encodings import lowrank
from skillpack_format.making import make, start_of


class ExactBench(NumpyBench):
    """The reference bench, without the short cut."""

    estimates = False


def made_both_ways(raw: bytes, shape: tuple[int, int], slices: list[object]) -> tuple[object, object]:
    """Bits or the code of the refusal, by estimates and by exact sums."""
    case = same_kind("t", kind("BF16", *shape), raw, lowrank.packed(slices, "lanes"))

    def made(bench: NumpyBench) -> object:
        start = start_of(case.raw, case.base, case.result)
        fault = fault_of(make, start, case.result, change_of(case), bench, "here")
        return fault.code if fault else make(start, case.result, change_of(case), bench, "here").tobytes()

    return made(NUMPY_BENCH), made(ExactBench())


def random_slices(random: np.random.Generator, shape: tuple[int, int], scales: list[float]) -> list[object]:
    rows, cols = shape
    found = []
    for scale in scales:
        rank = int(random.integers(1, min(rows, cols) + 1))
        most = int(random.integers(1, 9))
        u, v = (random.integers(-most, most + 1, (1, rank, dim)) for dim in (rows, cols))
        found.append(int_slice([scale], u, v))
    return found


@pytest.mark.parametrize("exponent", [-90, -40, -20, -12, -8, -4, 0, 20, 100])
@pytest.mark.parametrize("seed", range(6))
def test_the_bits_are_those_of_the_exact_rule(exponent: int, seed: int) -> None:
    random = np.random.default_rng([exponent + 100, seed])
    shape = (40, 70)
    scales = [float(np.float32(2.0**exponent * random.uniform(0.5, 2))) for _ in range(1 + seed)]
    values = (random.standard_normal(shape) * 0.02).astype(np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    ours, exact = made_both_ways(raw, shape, random_slices(random, shape, scales))
    assert ours == exact


@settings(max_examples=150, deadline=None)
@given(
    patterns=st.lists(st.integers(0, 0xFFFF), min_size=32, max_size=32),
    scales=st.lists(st.floats(2.0**-100, 2.0**120, width=32), min_size=1, max_size=3),
    seed=st.integers(0, 1 << 16),
)
def test_every_base_and_scale_gives_the_same_bits_or_the_same_refusal(
    patterns: list[int], scales: list[float], seed: int
) -> None:
    finite = [each if each & 0x7F80 != 0x7F80 else each & 0x80FF for each in patterns]
    slices = random_slices(np.random.default_rng(seed), (4, 8), scales)
    ours, exact = made_both_ways(np.array(finite, "<u2").tobytes(), (4, 8), slices)
    assert ours == exact


@settings(max_examples=300, deadline=None)
@given(
    exponent=st.integers(1, 254),  # of the base; scales are 2^-100 at least, so that small ones meet no ties
    beside=st.integers(-3, 3),
    least=st.integers(8, 60),
    seed=st.integers(0, 1 << 16),
)
def test_sums_on_and_beside_ties_have_the_bits_of_the_exact_rule(
    exponent: int, beside: int, least: int, seed: int
) -> None:
    half = exponent - 127 - 8  # of the last place of a BF16 with this exponent, as a power of two
    random = np.random.default_rng(seed)
    raw = (random.integers(0, 128, 32) | exponent << 7 | random.integers(0, 2, 32) << 15).astype("<u2").tobytes()
    u, v = (random.choice([-2, -1, 1, 2], (1, 1, dim)) for dim in (4, 8))
    slices = [int_slice([2.0 ** max(half, -99) * (1 + beside * 2.0**-23)], u, v)]
    slices += [int_slice([2.0 ** max(half - least, -99)], *(random.choice([-1, 0, 1], (1, 1, dim)) for dim in (4, 8)))]
    ours, exact = made_both_ways(raw, (4, 8), slices)
    assert ours == exact


@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80, 0x7F81, 0xFFC0])
def test_a_base_that_is_not_finite_is_refused_either_way(pattern: int) -> None:
    raw = np.array([0x3F80, 0xBF80, 0, pattern], "<u2").tobytes()
    slices = [int_slice([2.0**-5], [[[1, 1]]], [[[1, 0]]])]
    assert made_both_ways(raw, (2, 2), slices) == ("payload.nonfinite", "payload.nonfinite")


def addend(left: list[float], right: list[float], scale: float | None = None) -> estimation.Addend:
    """An outer product."""
    u, v = np.array([left], np.float32).T, np.array([right], np.float32)
    lengths = np.abs(u[:, 0]).astype(np.float64) * (1 if scale is None else scale), np.abs(v[0]).astype(np.float64)
    return estimation.Addend(u, v, None if scale is None else np.float32(scale), *lengths)


def settled(start: list[int], *addends: estimation.Addend) -> tuple[list[int], list[int]]:
    estimate = estimation.summed(addends)
    assert estimate is not None
    found = estimation.settle(np.array(start, np.uint16), estimate)
    assert found is not None
    return found[0].tolist(), found[1].tolist()


ONE = 0x3F80


@pytest.mark.parametrize("scale", [None, 2.0**-8])
@pytest.mark.parametrize("step", range(-1, 2))
def test_sums_at_and_beside_a_tie_are_not_settled_by_an_estimate(step: int, scale: float | None) -> None:
    # 1 + 2^-8 lies midway between two BF16; a neighbour in float32 of the sum decides which
    near = [2.0**-8 + step * 2.0**-23] if scale is None else [1 + step * 2.0**-15]
    _, positions = settled([ONE] * 4, addend([1, 1], near * 2, scale))
    assert positions == [0, 1, 2, 3]


@pytest.mark.parametrize("scale", [None, 2.0**-9])
def test_what_is_far_from_a_tie_is_settled(scale: float | None) -> None:
    assert settled([ONE] * 4, addend([1, 1], [2.0**-9 if scale is None else 1] * 2, scale)) == ([ONE] * 4, [])


def test_a_zero_is_never_settled_for_its_sign_has_rules() -> None:
    assert settled([0, 0x8000], addend([0], [1, 1]))[1] == [0, 1]


def test_an_element_is_not_left_over_for_the_size_of_another() -> None:
    assert settled([ONE, ONE, 0x7F00, 0], addend([1, 2.0**-20], [2.0**-10, 2.0**100]))[1] == []


def test_infinity_is_settled_where_it_is_certain() -> None:
    assert settled([0x7F7F, 0xFF7F], addend([1], [2.0**125, -(2.0**125)])) == ([0x7F80, 0xFF80], [])


def test_nothing_is_settled_where_the_start_is_not_finite() -> None:
    estimate = estimation.summed([addend([1], [1, 1])])
    assert estimate is not None
    assert estimation.settle(np.array([ONE, 0xFF80], np.uint16), estimate) is None


@pytest.mark.parametrize("magnitude", [2.0**126, np.inf, np.nan])
def test_there_is_no_estimate_where_a_sum_could_overflow(magnitude: float) -> None:
    ones = np.ones((1, 1), np.float32)
    assert estimation.summed([estimation.Addend(ones, ones, None, np.array([magnitude]), np.ones(1))]) is None


@pytest.mark.parametrize("ranks", [(40, 40), (100, 100, 20, 8), (1, 200)])
def test_a_large_model_like_tensor_is_made_by_estimates_and_equals_the_exact_rule(
    monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...]
) -> None:
    left_over: list[int] = []
    real = estimation.settle

    def settle(start: np.ndarray, estimate: estimation.Estimate) -> tuple[np.ndarray, np.ndarray] | None:
        found = real(start, estimate)
        assert found is not None
        left_over.append(found[1].size)
        return found

    monkeypatch.setattr(estimation, "settle", settle)
    monkeypatch.setattr(estimation, "RUN_ITEMS", 1 << 14)
    random = np.random.default_rng(5)
    shape = (256, 512)
    slices = [
        int_slice([3e-6], *(np.rint(random.normal(0, 1 + k, (1, rank, dim))) for dim in shape))
        for k, rank in enumerate(ranks)
    ]
    values = (random.standard_normal(shape) * 0.02).astype(np.float32)
    ours, exact = made_both_ways((values.view(np.uint32) >> 16).astype("<u2").tobytes(), shape, slices)
    assert ours == exact
    assert 0 < sum(left_over) < 2 * values.size // 50  # made twice: for the fault it might be, and for the bits


def test_an_overflow_is_refused_either_way() -> None:
    raw = np.full(4, 0x7F7F, "<u2").tobytes()
    slices = [int_slice([2.0**119], [[[1, 1]]], [[[1, 0]]])]
    assert made_both_ways(raw, (2, 2), slices) == ("payload.overflow", "payload.overflow")
