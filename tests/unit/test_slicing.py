"""Laws of skillpack_format/slicing.py: what a reader may count on, and what the coder promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skillpack_format import linalg
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, SMALLEST_SCALE
from skillpack_format.bits import bits_needed
from skillpack_format.errors import UsageError
from skillpack_format.slicing import COARSER, DEAD_ZONE, Slice, decomposed, sliced

SHAPES = [(1, 1), (1, 9), (9, 1), (48, 48), (200, 24), (24, 200)]


def slices(delta: NDArray[Any], *, step: float, cosine: float, dead_zone: float = DEAD_ZONE) -> tuple[Slice, ...]:
    return sliced(decomposed(delta), step=step, cosine=cosine, dead_zone=dead_zone).slices


def decaying(shape: tuple[int, int], seed: int = 1) -> NDArray[np.float32]:
    """A matrix like a fine-tune's delta: dense, singular values that fall slowly, small entries."""
    rng = np.random.default_rng(seed)
    u, s, vt = linalg.svd(rng.standard_normal(shape))
    return np.asarray(2e-4 * (u * (s / np.sqrt(1 + np.arange(s.size)))) @ vt, np.float32)


def restored(found: tuple[Slice, ...], shape: tuple[int, int]) -> NDArray[np.float64]:
    total = np.zeros(shape)
    for each in found:
        total += float(each.scale) * (each.u.T.astype(np.float64) @ each.v)
    return total


def spiky(shape: tuple[int, int]) -> NDArray[np.float32]:
    delta = decaying(shape)
    delta[0, 0] = 3.0  # one component whose codes would not fit eight bits
    return delta


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [decaying, spiky])
@pytest.mark.parametrize("step", [0.02, 0.5, 2.0])
def test_keeps_the_bounds_of_the_format(shape: tuple[int, int], make: Any, step: float) -> None:
    found = slices(make(shape), step=step, cosine=0.5)
    assert len(found) <= MAX_SLICES
    for each in found:
        assert each.u.dtype == each.v.dtype == np.int8
        assert (each.u.shape[1], each.v.shape[1]) == shape
        assert each.u.shape[0] == each.v.shape[0] >= 1
        assert each.u.shape[0] << (bits_needed(each.u) + bits_needed(each.v) - 2) <= EXACT_PRODUCT
        assert isinstance(each.scale, np.float32)
        assert np.isfinite(each.scale)
        assert abs(each.scale) >= SMALLEST_SCALE


@pytest.mark.parametrize("make", [decaying, spiky])
def test_a_slice_agrees_with_the_components_it_codes(make: Any) -> None:
    delta = make((60, 40))
    u, s, vt = linalg.svd(delta)
    for each in slices(delta, step=1.0, cosine=0.5):
        # the components a slice codes are those its rows resemble most
        origin = np.abs((each.u @ u) * (each.v @ vt.T)).argmax(axis=1)  # (r,)
        own = (u[:, origin] * s[origin]) @ vt[origin]
        coded = restored((each,), delta.shape)
        assert float((coded * own).sum()) == pytest.approx(float((own * own).sum()), rel=1e-6)


@pytest.mark.parametrize("make", [decaying, spiky])
def test_is_a_function_of_its_arguments(make: Any) -> None:
    first, again = (slices(make((60, 40)), step=1.0, cosine=0.5) for _ in range(2))
    assert len(first) == len(again)
    for one, other in zip(first, again, strict=True):
        assert one.scale == other.scale
        assert np.array_equal(one.u, other.u)
        assert np.array_equal(one.v, other.v)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (0, 3), (3, 0)])
def test_a_zero_delta_has_no_slices(shape: tuple[int, int]) -> None:
    assert slices(np.zeros(shape, np.float32), step=1.0, cosine=0.5) == ()


def test_a_delta_too_small_for_any_scale_has_no_slices() -> None:
    assert slices(decaying((20, 20)) * np.float32(1e-36), step=1.0, cosine=0.5) == ()


def test_a_hopeless_step_gives_no_slices() -> None:
    assert slices(decaying((40, 40)), step=1e6, cosine=0.5) == ()


def test_one_number_is_kept_to_float32() -> None:
    delta = np.full((1, 1), -0.3, np.float32)
    found = slices(delta, step=0.5, cosine=0.5)
    assert len(found) == 1
    np.testing.assert_allclose(restored(found, (1, 1)), delta, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES[3:])
def test_the_error_falls_with_the_step(shape: tuple[int, int]) -> None:
    delta = decaying(shape)
    errors = [
        float(np.square(restored(slices(delta, step=step, cosine=0.5), shape) - delta).sum())
        for step in (2.0, 1.0, 0.5, 0.25, 0.1)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * float(np.square(delta).sum())


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_one_factor_makes_up_for_the_rounding_of_the_other(shape: tuple[int, int]) -> None:
    u, _, vt = linalg.svd(np.random.default_rng(3).standard_normal(shape))
    s = np.linspace(1.9, 1.0, 40)  # one octave: one slice
    delta = np.asarray(u * s @ vt, np.float32)
    amplitude = np.sqrt(s * np.exp(np.log(s).mean())) / 0.05
    held = COARSER if shape[0] > shape[1] else 1.0, 1.0 if shape[0] > shape[1] else COARSER
    apart = np.rint(u * amplitude * held[0]) @ np.rint(vt * amplitude[:, None] * held[1])  # each factor by itself
    apart *= float(np.sum(delta**2)) / float(np.sum(apart * delta))
    found = sliced(decomposed(delta), step=0.05 / decomposed(delta).typical, cosine=0.5, dead_zone=0.0)
    error = float(np.square(restored(found.slices, shape) - delta).sum())
    assert len(found.slices) == 1
    assert error < 0.75 * float(np.square(apart - delta).sum())


@pytest.mark.parametrize("is_nearest", [False, True])
@pytest.mark.parametrize("strength", [1e-37, 1.0, 3e38])
@pytest.mark.parametrize("name", ["ones", "rank one", "one entry", "signs", "spread", "identity"])
def test_what_is_said_of_the_error_is_so_of_odd_matrices(name: str, strength: float, is_nearest: bool) -> None:
    rng = np.random.default_rng(7)
    wild = rng.standard_normal((21, 13)) * np.exp(6 * rng.standard_normal((21, 13)))
    plain = {
        "ones": np.ones((21, 13)),
        "rank one": np.outer(rng.standard_normal(21), rng.standard_normal(13)),
        "one entry": np.eye(1, 21).T @ np.eye(1, 13),
        "signs": rng.choice([-1.0, 0.0, 1.0], (21, 13)),  # some of its components have the same codes
        "spread": wild,
        "identity": np.eye(21, 13),
    }
    delta = np.asarray(plain[name] / np.abs(plain[name]).max() * strength, np.float32)
    matrix = decomposed(delta)
    for step, cosine in ((4.0, 0.3), (1.0, 0.6), (0.1, 0.9)):
        found = sliced(matrix, step=step, cosine=cosine, is_nearest=is_nearest)
        error = float(np.sum((restored(found.slices, delta.shape) - delta) ** 2))
        assert found.noise == pytest.approx(error, rel=1e-2, abs=1e-5 * matrix.energy)
        assert error <= 1.02 * matrix.energy or not is_nearest  # no slices at all would have that of the delta


def test_a_higher_cosine_keeps_fewer_components() -> None:
    ranks = [
        sum(each.u.shape[0] for each in slices(decaying((80, 60)), step=1.5, cosine=cosine))
        for cosine in (0.2, 0.5, 0.8)
    ]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]


def test_untouched_rows_get_no_codes_and_do_not_move_the_step() -> None:
    touched = decaying((30, 20))
    delta = np.zeros((300, 20), np.float32)
    delta[::10] = touched
    assert decomposed(delta).typical == pytest.approx(decomposed(touched).typical)
    expected = restored(slices(touched, step=1.0, cosine=0.5), touched.shape)
    actual = restored(slices(delta, step=1.0, cosine=0.5), delta.shape)
    assert not np.delete(actual, np.s_[::10], axis=0).any()
    np.testing.assert_allclose(actual[::10], expected, rtol=1e-5)


def test_a_component_too_large_to_code_leaves_the_others_their_step() -> None:
    block = decaying((32, 32))
    delta = np.zeros((64, 64), np.float32)
    delta[:32, :32] = block
    strongest = float(linalg.svd(block)[1][0])
    delta[40, 40] = 1.2 * strongest  # the same octave, all in one entry
    found = slices(delta, step=strongest / 200 / decomposed(delta).typical, cosine=0.5)
    lonely = [each for each in found if each.u.shape[0] == 1 and each.u[0, 40] == 127]
    assert len(lonely) == 1
    restored_block = restored(found, delta.shape)[:32, :32]
    assert float(np.square(restored_block - block).sum()) < 0.02 * float(np.square(block).sum())


@pytest.mark.parametrize(
    "settings",
    [
        {"step": 0.0, "cosine": 0.5},
        {"step": float("nan"), "cosine": 0.5},
        {"step": 1.0, "cosine": 1.0},
        {"step": 1.0, "cosine": 0.5, "dead_zone": 0.5},
    ],
)
def test_refuses_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        slices(decaying((4, 4)), **settings)


def test_what_is_said_of_the_energy_and_the_error_is_so() -> None:
    delta = decaying((60, 40))
    matrix = decomposed(delta)
    for step, cosine in ((4.0, 0.3), (1.0, 0.6), (0.2, 0.9)):
        found = sliced(matrix, step=step, cosine=cosine)
        error = float(np.sum((restored(found.slices, delta.shape) - delta) ** 2))
        assert found.energy == pytest.approx(float(np.sum(delta.astype(np.float64) ** 2)), rel=1e-5)
        assert 0 < found.kept <= found.energy * (1 + 1e-9)
        assert found.noise == pytest.approx(error, rel=1e-3)
