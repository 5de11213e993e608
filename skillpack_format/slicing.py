"""From a delta matrix to the integer slices of ``lowrank`` (spec/encodings/lowrank.md).

The one rule: be unbiased. Rounding noise averages out over a layer's inputs, a shrunken direction does not, so every
slice gets the scale that keeps its inner product with what it codes, never the least-squares one, which shrinks.

The delta is decomposed, its components are grouped by octave of singular value, and the factors of a group are
rounded to integers. One ``lambda`` serves the whole matrix: the noise a component may carry is the same for all, so
strong components get many levels and weak ones few. A component whose code no longer resembles it is dropped, for
rescaling it would be rescaling noise. Writers only: no reader needs this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format import linalg
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, SMALLEST_SCALE
from skillpack_format.errors import error

Matrix = NDArray[np.float32]
Values = NDArray[np.float64]
Codes = NDArray[np.int8]

DEAD_ZONE: Final = 0.1
MAX_CODE: Final = 127
MAX_RANK: Final = EXACT_PRODUCT // 128**2  # of one slice: its sums stay exact even with 8-bit codes


@dataclass(frozen=True, slots=True)
class Slice:
    """``scale`` * (u^T v), with u: (r, m), v: (r, n), row k being component k."""

    scale: np.float32
    u: Codes
    v: Codes


@dataclass(frozen=True, slots=True)
class Components:
    """Components of a decomposition, one a column: u (m, r), s (r,) descending, v (n, r)."""

    u: Matrix
    s: Values
    v: Matrix

    def only(self, chosen: NDArray[Any]) -> Components:
        return Components(self.u[:, chosen], self.s[chosen], self.v[:, chosen])


@dataclass(frozen=True, slots=True)
class Decomposed:
    """A delta's components, and the root mean square of its typical entry, which a step is a multiple of."""

    components: Components
    typical: float


@dataclass(frozen=True, slots=True)
class Sliced:
    """Slices, and what they do to the delta, in sums over its components (spec/manifest.md, "stats").

    ``energy``: squared singular values, all and kept. ``noise``: squared norm of what was made minus what was meant,
    coded components taken one by one.
    """

    slices: tuple[Slice, ...]
    energy: float
    kept: float
    noise: float


def decomposed(delta: NDArray[Any]) -> Decomposed:
    """``delta``: (m, n) finite float32. The costly half of coding a matrix; the same for every step."""
    u, s, vt = linalg.svd(delta)
    return Decomposed(Components(u, s, vt.T), typical_entry(delta))


def sliced(matrix: Decomposed, *, step: float, cosine: float, dead_zone: float = DEAD_ZONE) -> Sliced:
    """The slices that stand for a matrix, strongest first; none for a zero matrix or when nothing survives.

    ``step``: rounding step in units of a typical entry; more is smaller and worse. ``cosine``: least resemblance of a
    coded component to its original, below which it is dropped. ``dead_zone``: how much of a step rounding leans
    towards zero.
    """
    _require_settings(step, cosine, dead_zone)
    whole = matrix.components
    energy = float(whole.s @ whole.s)
    kept = noise = 0.0
    found: list[Slice] = []
    for group in _groups(whole, step * matrix.typical) if whole.s.size else ():
        coded = _coded(group, step * matrix.typical, cosine, dead_zone) if len(found) < MAX_SLICES else None
        if coded is None:
            continue
        found.append(coded.slice)
        kept += coded.energy
        noise += coded.noise
    return Sliced(tuple(found), energy, kept, noise + energy - kept)


def typical_entry(delta: NDArray[Any]) -> float:
    """The root mean square of an entry, every row weighted by its energy. ``delta``: (m, n).

    For a dense delta this is close to the plain root mean square. In an embedding only the rows of tokens that were
    seen have changed, and the step must suit those rows, however many others there are.
    """
    energy = np.einsum("mn,mn->m", delta, delta, dtype=np.float64)  # (m,)
    total = float(energy.sum())
    return float(np.sqrt(float(energy @ energy) / total / delta.shape[1])) if total else 0.0


def _require_settings(step: float, cosine: float, dead_zone: float) -> None:
    if not 0 < step < float("inf"):
        raise error("usage.argument", "", f"step {step}, it must be positive and finite")
    if not 0 <= cosine < 1:
        raise error("usage.argument", "", f"cosine {cosine}, it must be at least 0 and below 1")
    if not 0 <= dead_zone < 0.5:
        raise error("usage.argument", "", f"dead zone {dead_zone}, it must be at least 0 and below 0.5")


def _groups(whole: Components, lam: float) -> Iterator[Components]:
    """Components that share a slice: one octave of singular value, at most MAX_RANK, all or none too large to code.

    A component with codes above MAX_CODE makes its whole slice coarser, so it must not share one with those that fit.
    """
    octave = np.floor(np.log2(whole.s[0] / whole.s))
    peak = np.maximum(np.abs(whole.u).max(axis=0), np.abs(whole.v).max(axis=0))  # (k,)
    fits = whole.s * peak <= MAX_CODE / np.sqrt(2) * lam  # sqrt(2): the mean of an octave may be that much above s
    for each in np.unique(octave):
        for kind in (False, True):
            members = np.flatnonzero((octave == each) & (fits == kind))
            for first in range(0, members.size, MAX_RANK):
                yield whole.only(members[first : first + MAX_RANK])


@dataclass(frozen=True, slots=True)
class _Coded:
    """A slice; the energy of the components it holds, and the squared error of each of them, summed."""

    slice: Slice
    energy: float
    noise: float


def _coded(group: Components, lam: float, cosine: float, dead_zone: float) -> _Coded | None:
    """The slice of one group, None when none of its components survives."""
    amplitude = np.sqrt(group.s * np.exp(np.log(group.s).mean())) / lam  # (r,): what a unit vector is multiplied by
    largest = float((np.maximum(np.abs(group.u).max(axis=0), np.abs(group.v).max(axis=0)) * amplitude).max())
    amplitude = (amplitude * min(1.0, MAX_CODE / largest)).astype(np.float32)
    u = _rounded(group.u * amplitude, dead_zone)  # (m, r)
    v = _rounded(group.v * amplitude, dead_zone)  # (n, r)
    lengths = np.sqrt(_inner(u, u) * _inner(v, v))
    inner = _inner(u, group.u) * _inner(v, group.v)
    kept = np.flatnonzero((lengths > 0) & (inner >= cosine * lengths))
    u, v, group = u[:, kept], v[:, kept], group.only(kept)
    agreement = float(((u.T @ group.u) * (v.T @ group.v)).sum(axis=0, dtype=np.float64) @ group.s)  # <u v^T, U S V^T>
    if agreement <= 0:
        return None
    with np.errstate(over="ignore"):
        scale = np.float32(float(group.s @ group.s) / agreement)
    if not SMALLEST_SCALE <= scale < np.inf:
        return None
    codes_u, codes_v = (np.ascontiguousarray(each.T.astype(np.int8)) for each in (u, v))
    squares = group.s**2
    lengths, inner = float(scale) * lengths[kept], float(scale) * inner[kept]
    noise = float(np.sum(lengths**2 - 2 * group.s * inner + squares))
    return _Coded(Slice(scale, codes_u, codes_v), float(squares.sum()), noise)


def _inner(one: Matrix, other: Matrix) -> Values:
    """The inner product of every column of one with its like: (k,)."""
    inner: Values = np.einsum("mk,mk->k", one, other, dtype=np.float64)
    return inner


def _rounded(values: Matrix, dead_zone: float) -> Matrix:
    """Nearest integers, the border between two levels moved ``dead_zone`` away from zero."""
    return np.copysign(np.floor(np.abs(values) + np.float32(0.5 - dead_zone)), values)
