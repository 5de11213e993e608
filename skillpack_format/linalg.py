"""The one decomposition that encoders need: a thin singular value decomposition, or the strong part of one.

The one rule: the answer is a function of the arguments alone. Signs are fixed by the right factor, values descend, the
random start is always the same. (A BLAS may sum in another order with another number
of threads: the same bytes need the same machine, the same device and one thread.) No reader needs this module.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format.arithmetic import NUMPY_BENCH, Bench, runs_of_rows

Matrix = NDArray[np.float32]
Values = NDArray[np.float64]

# Eigenvalues of a Gram matrix are good to about 1e-16 of the largest, so singular values to 1e-8 and their vectors to
# far less; what lies below this share of the largest is under the precision of the float32 it came from.
SMALLEST_SHARE: Final = 1e-6
LEAST_SIZE: Final = 512  # of the smaller side, from which on looking for the strong part alone saves anything
FIRST_COUNT: Final = 64  # components first looked for; then twice as many
MOST_SHARE: Final = 8  # of the smaller side, one over: more components than that and all of them are found
PASSES: Final = 3  # of the power iteration
SEED: Final = 20251125


def svd(delta: NDArray[Any], least: float = 0.0, bench: Bench = NUMPY_BENCH) -> tuple[Matrix, Values, Matrix]:
    """``delta`` = U diag(s) Vt to about 1e-6 of its norm; without components whose singular value is below ``least``.

    ``delta``: (m, n) finite floats. U: (m, k), s: (k,) positive and descending, Vt: (k, n), where k is the numerical
    rank, or the number of strong components: a zero matrix has k = 0. The largest entry of each row of Vt is positive.
    Rows and columns of zeros cost nothing. ``bench`` finds eigenvectors, which take most of the time.
    """
    m, n = delta.shape
    largest = max(float(delta.max()), -float(delta.min())) if delta.size else 0.0
    if largest == 0:
        return np.zeros((m, 0), np.float32), np.zeros(0), np.zeros((0, n), np.float32)
    rows, cols = (np.flatnonzero(delta.any(axis=axis)) for axis in (1, 0))
    dense = delta if (rows.size, cols.size) == (m, n) else delta[np.ix_(rows, cols)]
    scaled = (dense / largest).astype(np.float32, copy=False)  # squares of subnormals would vanish
    least /= largest
    is_tall = rows.size >= cols.size
    ut, s, vt = _of_tall(scaled, least, bench) if is_tall else _of_tall(scaled.T, least, bench)[::-1]
    peak = np.take_along_axis(vt, np.abs(vt).argmax(axis=1)[:, None], axis=1)  # (k, 1)
    sign = np.where(peak < 0, np.float32(-1), np.float32(1))
    ut *= sign
    vt *= sign
    return _spread(ut, rows, m).T, s * largest, _spread(vt, cols, n)


def _spread(factor: Matrix, places: NDArray[np.int64], size: int) -> Matrix:
    """(k, places) to (k, size), zero elsewhere."""
    if places.size == size:
        return factor
    whole = np.zeros((factor.shape[0], size), np.float32)
    whole[:, places] = factor
    return whole


def _of_tall(tall: Matrix, least: float, bench: Bench) -> tuple[Matrix, Values, Matrix]:
    """Ut (k, m), s, Vt (k, n) of ``tall`` (m, n), m >= n, without a sign convention."""
    n, count = tall.shape[1], FIRST_COUNT
    while least > 0 and n >= LEAST_SIZE and count * MOST_SHARE <= n:
        ut, s, vt = _strongest(tall, count, bench)
        if s.size < count or s[-1] < least:  # what is missing is weaker than all that was found
            kept = int(np.count_nonzero(s >= least))
            return ut[:kept], s[:kept], vt[:kept]
        missing = float(np.einsum("mn,mn->", tall, tall, dtype=np.float64)) - float(s @ s)
        if missing > (n - count) * (least / 2) ** 2:  # spread evenly, that would about reach ``least`` everywhere
            break
        count *= 2
    return _factors(tall, _right_vectors(tall, bench))


def _strongest(tall: Matrix, count: int, bench: Bench) -> tuple[Matrix, Values, Matrix]:
    """About the ``count`` strongest components: a randomised range finder with power iterations (Halko et al. 2011).

    They are the exact components of ``tall`` projected on a subspace, so what they leave out of the matrix is all the
    error there is. An error of a singular value shrinks with the (4 PASSES + 2)th power of how much stronger the
    component is than the strongest one that is missing.
    """
    basis = np.random.default_rng(SEED).standard_normal((tall.shape[1], count), np.float32)
    for _ in range(PASSES):
        image, _ = np.linalg.qr(tall @ basis)
        basis, _ = np.linalg.qr(tall.T @ image)
    return _factors(tall, _right_vectors(tall @ basis, bench) @ basis.T)


def _right_vectors(tall: Matrix, bench: Bench) -> Matrix:
    """Vt (k, n) of ``tall`` (m, n), m >= n, by the eigenvectors of its Gram matrix, the strongest first."""
    values, vectors = bench.spectrum(tall)
    s = np.sqrt(np.maximum(values[::-1], 0))
    kept = int(np.count_nonzero(s > SMALLEST_SHARE * s[0]))
    return np.ascontiguousarray(vectors[:, ::-1][:, :kept].T, np.float32)


def _factors(tall: Matrix, vt: Matrix) -> tuple[Matrix, Values, Matrix]:
    """Ut (k, m), s, Vt (k, n) for right vectors (k, n): the image of each, and its length."""
    image = vt @ tall.T  # (k, m): diag(s) Ut, with a better s than the root of the eigenvalue
    s = np.concatenate([np.linalg.norm(image[some].astype(np.float64), axis=1) for some in runs_of_rows(image)])
    order = np.argsort(-s, kind="stable")
    if (order[1:] < order[:-1]).any():
        image, s, vt = image[order], s[order], vt[order]
    image /= s.astype(np.float32)[:, None]
    return image, s, vt
