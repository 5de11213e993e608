"""Laws of skillpack_format/linalg.py, checked against numpy's own decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skillpack_format.linalg import svd

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (40, 12), (12, 40), (64, 64)]


def gaussian(shape: tuple[int, int], seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_numpy(shape: tuple[int, int]) -> None:
    delta = gaussian(shape)
    _, s, _ = svd(delta)
    np.testing.assert_allclose(s, np.linalg.svd(delta.astype(np.float64), compute_uv=False), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_orthonormal_and_restore_the_matrix(shape: tuple[int, int]) -> None:
    delta = gaussian(shape)
    u, s, vt = svd(delta)
    np.testing.assert_allclose(u.T @ u, np.eye(s.size), atol=1e-5)
    np.testing.assert_allclose(vt @ vt.T, np.eye(s.size), atol=1e-5)
    np.testing.assert_allclose((u * s) @ vt, delta, atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_finds_the_rank_of_a_deficient_matrix(shape: tuple[int, int]) -> None:
    delta = gaussian((shape[0], 3)).astype(np.float64) @ gaussian((3, shape[1]), 2).astype(np.float64)
    u, s, vt = svd(delta)
    assert (u.shape, s.shape, vt.shape) == ((shape[0], 3), (3,), (3, shape[1]))
    np.testing.assert_allclose((u * s) @ vt, delta, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4, 0), (0, 0)])
def test_a_zero_matrix_has_no_components(shape: tuple[int, int]) -> None:
    u, s, vt = svd(np.zeros(shape, np.float32))
    assert (u.shape, s.shape, vt.shape) == ((shape[0], 0), (0,), (0, shape[1]))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_values_descend_and_the_largest_entry_of_each_right_vector_is_positive(shape: tuple[int, int]) -> None:
    _, s, vt = svd(gaussian(shape))
    assert np.all(np.diff(s) <= 0)
    assert np.all(vt.max(axis=1) == np.abs(vt).max(axis=1))


def test_the_answer_does_not_depend_on_the_memory_layout() -> None:
    delta = gaussian((30, 20))
    for ours, theirs in zip(svd(delta), svd(np.asfortranarray(delta)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-40, 1e-20, 1e30])
def test_scales_with_the_matrix(factor: float) -> None:
    delta: NDArray[Any] = gaussian((9, 6)).astype(np.float64)
    np.testing.assert_allclose(svd(delta * factor)[1], svd(delta)[1] * factor, rtol=1e-9)
