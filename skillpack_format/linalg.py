"""The one decomposition that encoders need: a thin singular value decomposition, fast for tall matrices.

The one rule: the answer is a function of the matrix alone. Signs are fixed by the right factor, values descend, and
numpy does all the arithmetic. (A BLAS may sum in another order with another number of threads: the same bytes need
the same machine and one thread.) No reader needs this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Values = NDArray[np.float64]

# Eigenvalues of a Gram matrix are good to about 1e-16 of the largest, so singular values to 1e-8 and their vectors to
# far less; what lies below this share of the largest is under the precision of the float32 it came from.
SMALLEST_SHARE: Final = 1e-6
_BLOCK_ITEMS: Final = 1 << 22  # 32 MiB of float64: a tall matrix is never widened whole


def svd(delta: NDArray[Any]) -> tuple[Matrix, Values, Matrix]:
    """``delta`` = U diag(s) Vt to about 1e-6 of its norm, by the eigenvectors of the smaller Gram matrix.

    ``delta``: (m, n) finite floats. U: (m, k), s: (k,) positive and descending, Vt: (k, n), where k is the numerical
    rank: a zero matrix has k = 0. The largest entry of each row of Vt is positive.
    """
    m, n = delta.shape
    largest = float(np.abs(delta).max()) if delta.size else 0.0
    if largest == 0:
        return np.zeros((m, 0), np.float32), np.zeros(0), np.zeros((0, n), np.float32)
    scaled = (delta / largest).astype(np.float32, copy=False)  # squares of subnormals would vanish
    u, s, v = _by_columns(scaled) if m >= n else _by_columns(np.ascontiguousarray(scaled.T))[::-1]
    peak = np.take_along_axis(v, np.abs(v).argmax(axis=0)[None, :], axis=0)[0]  # (k,)
    sign = np.where(peak < 0, np.float32(-1), np.float32(1))
    u *= sign
    v *= sign
    return u, s * largest, v.T


def _by_columns(tall: Matrix) -> tuple[Matrix, Values, Matrix]:
    """U (m, k), s, V (n, k) of ``tall`` (m, n), m >= n, without a sign convention."""
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for rows in _blocks(tall):
        wide = tall[rows].astype(np.float64)
        gram += wide.T @ wide
    values, vectors = np.linalg.eigh(gram)  # ascending, (n, n)
    s = np.sqrt(np.maximum(values[::-1], 0))
    kept = int(np.count_nonzero(s > SMALLEST_SHARE * s[0]))
    v = vectors[:, ::-1][:, :kept].astype(np.float32)
    image = tall @ v  # (m, k): U diag(s), with a better s than the root of the eigenvalue
    s = np.sqrt(sum(np.einsum("mk,mk->k", image[rows], image[rows], dtype=np.float64) for rows in _blocks(image)))
    order = np.argsort(-s, kind="stable")
    if (order[1:] < order[:-1]).any():
        image, s, v = image[:, order], s[order], v[:, order]
    image /= s.astype(np.float32)
    return image, s, v


def _blocks(matrix: Matrix) -> Iterator[slice]:
    """Slices of rows of at most about _BLOCK_ITEMS items, which cover the matrix in order."""
    step = max(1, _BLOCK_ITEMS // matrix.shape[1])
    for first in range(0, matrix.shape[0], step):
        yield slice(first, first + step)
