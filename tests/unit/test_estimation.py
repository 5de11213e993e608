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


@pytest.mark.parametrize("step", range(-1, 2))
def test_sums_at_and_beside_a_tie_are_not_settled_by_an_estimate(step: int) -> None:
    # 1 + 2^-8 lies midway between two BF16; a neighbour in float32 of the sum decides which
    values = np.full((2, 2), 1 + step * 2.0**-23, np.float32)
    tie = estimation.product(np.full((2, 1), 2.0**-8, np.float32), np.ones((1, 2), np.float32), 2.0**-8)
    assert tie is not None
    _, positions = estimation.settle(values, tie)
    assert positions.tolist() == [0, 1, 2, 3]


def test_what_is_far_from_a_tie_is_settled() -> None:
    sure = estimation.product(np.full((2, 1), 2.0**-9, np.float32), np.ones((1, 2), np.float32), 2.0**-9)
    assert sure is not None
    bits, positions = estimation.settle(np.full((2, 2), 1, np.float32), sure)
    assert positions.size == 0
    assert bits.tolist() == [0x3F80] * 4


def test_a_zero_is_never_settled_for_its_sign_has_rules() -> None:
    nothing = estimation.product(np.zeros((1, 1), np.float32), np.ones((1, 2), np.float32), 0.0)
    assert nothing is not None
    _, positions = estimation.settle(np.array([[0.0, -0.0]], np.float32), nothing)
    assert positions.tolist() == [0, 1]


@pytest.mark.parametrize("magnitude", [2.0**126, np.inf, np.nan])
def test_there_is_no_estimate_where_a_sum_could_overflow(magnitude: float) -> None:
    assert estimation.product(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), magnitude) is None


def test_a_large_model_like_tensor_is_made_by_estimates_and_equals_the_exact_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left_over: list[int] = []
    real = estimation.settle

    def settle(values: np.ndarray, estimate: estimation.Estimate) -> tuple[np.ndarray, np.ndarray]:
        bits, positions = real(values, estimate)
        left_over.append(positions.size)
        return bits, positions

    monkeypatch.setattr(estimation, "settle", settle)
    random = np.random.default_rng(5)
    shape = (256, 512)
    slices = [
        int_slice([3e-6], np.rint(random.normal(0, each, (1, 40, 256))), np.rint(random.normal(0, each, (1, 40, 512))))
        for each in (1, 3)
    ]
    values = (random.standard_normal(shape) * 0.02).astype(np.float32)
    ours, exact = made_both_ways((values.view(np.uint32) >> 16).astype("<u2").tobytes(), shape, slices)
    assert ours == exact
    assert 0 < sum(left_over) < 2 * values.size // 50  # made twice: for the fault it might be, and for the bits


def test_an_overflow_is_refused_either_way() -> None:
    raw = np.full(4, 0x7F7F, "<u2").tobytes()
    slices = [int_slice([2.0**119], [[[1, 1]]], [[[1, 0]]])]
    assert made_both_ways(raw, (2, 2), slices) == ("payload.overflow", "payload.overflow")
