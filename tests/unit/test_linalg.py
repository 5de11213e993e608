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


def strong_and_weak(rows: int = 700, cols: int = 600) -> NDArray[np.float32]:
    """Three strong components, and noise whose singular values are at most about 51."""
    strong = sum(
        size * gaussian((rows, 1), seed) @ gaussian((1, cols), seed + 10) for seed, size in ((2, 4), (3, 2), (4, 1))
    )
    return np.asarray(strong + gaussian((rows, cols)), np.float32)


@pytest.mark.parametrize("shape", [(700, 600), (600, 700)])
def test_the_strong_part_alone_is_that_of_the_whole(shape: tuple[int, int]) -> None:
    delta = strong_and_weak(*shape)
    u, s, vt = svd(delta, least=100.0)
    whole_u, whole_s, whole_vt = svd(delta)
    assert s.size == 3
    np.testing.assert_allclose(s, whole_s[:3], rtol=1e-6)
    np.testing.assert_allclose(u, whole_u[:, :3], atol=1e-5)
    np.testing.assert_allclose(vt, whole_vt[:3], atol=1e-5)


def test_where_much_is_strong_all_is_found() -> None:
    delta = strong_and_weak()
    for ours, whole in zip(svd(delta, least=10.0), svd(delta), strict=True):
        np.testing.assert_array_equal(ours, whole)


def test_nothing_is_strong_enough() -> None:
    u, s, vt = svd(strong_and_weak(), least=1e9)
    assert (u.shape, s.shape, vt.shape) == ((700, 0), (0,), (0, 600))


def test_the_strong_part_of_a_matrix_of_low_rank_is_all_of_it() -> None:
    delta = gaussian((700, 5)) @ gaussian((5, 600), 2)
    u, s, vt = svd(delta, least=1e-3)
    assert s.size == 5
    np.testing.assert_allclose((u * s) @ vt, delta, atol=1e-4)


def test_the_strong_part_is_the_same_every_time() -> None:
    for one, other in zip(*(svd(strong_and_weak(), least=100.0) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_and_columns_of_zeros_change_nothing_else() -> None:
    small = gaussian((30, 20))
    delta = np.zeros((200, 90), np.float32)
    delta[np.ix_(np.arange(30) * 6, np.arange(20) * 4)] = small
    u, s, vt = svd(delta)
    small_u, small_s, small_vt = svd(small)
    np.testing.assert_array_equal(s, small_s)
    np.testing.assert_array_equal(u[np.arange(30) * 6], small_u)
    np.testing.assert_array_equal(vt[:, np.arange(20) * 4], small_vt)
    assert np.count_nonzero(u) == np.count_nonzero(small_u)
    assert np.count_nonzero(vt) == np.count_nonzero(small_vt)
