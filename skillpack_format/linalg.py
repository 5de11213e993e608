"""The one decomposition that encoders need: a thin singular value decomposition, fast for tall matrices.

The one rule: the answer is a function of the matrix alone. Signs are fixed by the right factor, values descend, and
numpy does all the arithmetic. (A BLAS may sum in another order with another number of threads: the same bytes need
the same machine and one thread.) No reader needs this module.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Eigenvalues of a Gram matrix are good to about 1e-16 of the largest, so singular values to 1e-8 and their vectors to
# far less; what lies below this share of the largest is under the precision of the float32 it came from.
SMALLEST_SHARE: Final = 1e-6


def svd(delta: NDArray[Any]) -> tuple[Matrix, Matrix, Matrix]:
    """``delta`` = U diag(s) Vt to about 1e-6 of its norm, by the eigenvectors of the smaller Gram matrix.

    ``delta``: (m, n) finite floats. U: (m, k), s: (k,) positive and descending, Vt: (k, n), where k is the numerical
    rank: a zero matrix has k = 0. The largest entry of each row of Vt is positive.
    """
    m, n = delta.shape
    largest = float(np.abs(delta).max()) if delta.size else 0.0
    if largest == 0:
        return np.zeros((m, 0)), np.zeros(0), np.zeros((0, n))
    scaled = delta.astype(np.float64) / largest  # squares of subnormals would vanish
    if m < n:
        v, s, ut = _by_columns(scaled.T)  # (n, k), (k,), (k, m)
        u, vt = ut.T, v.T
    else:
        u, s, vt = _by_columns(scaled)
    peak = np.take_along_axis(vt, np.abs(vt).argmax(axis=1)[:, None], axis=1)[:, 0]  # (k,)
    sign = np.where(peak < 0, -1.0, 1.0)
    return u * sign, s * largest, vt * sign[:, None]


def _by_columns(tall: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """The decomposition of ``tall`` (m, n), m >= n, without a sign convention."""
    values, vectors = np.linalg.eigh(tall.T @ tall)  # ascending, (n, n)
    s = np.sqrt(np.maximum(values[::-1], 0))
    kept = int(np.count_nonzero(s > SMALLEST_SHARE * s[0]))
    v = vectors[:, ::-1][:, :kept]
    image = tall @ v  # (m, k): U diag(s), with a better s than the root of the eigenvalue
    s = np.sqrt(np.einsum("mk,mk->k", image, image))
    order = np.argsort(-s, kind="stable")
    return image[:, order] / s[order], s[order], v[:, order].T
