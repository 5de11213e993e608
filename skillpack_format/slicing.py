"""From a delta matrix to the integer slices of ``lowrank`` (spec/encodings/lowrank.md).

The one rule: be unbiased. Rounding noise averages out over a layer's inputs, a shrunken direction does not, so every
slice gets the scale that keeps its inner product with what it codes, never the least-squares one, which shrinks.

The delta is decomposed, its components are grouped by octave of singular value, and the factors of a group are
rounded to integers. One ``lambda`` serves the whole matrix: the noise a component may carry is the same for all, so
strong components get many levels and weak ones few. A component whose code no longer resembles it is dropped, for
rescaling it would be rescaling noise. Writers only: no reader needs this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format import linalg
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, NUMPY_BENCH, SMALLEST_SCALE, Bench
from skillpack_format.errors import error

Matrix = NDArray[np.float32]
Values = NDArray[np.float64]
Codes = NDArray[np.int8]

DEAD_ZONE: Final = 0.1
MAX_CODE: Final = 127
MAX_RANK: Final = EXACT_PRODUCT // 128**2  # of one slice: its sums stay exact even with 8-bit codes
BLOCK_ITEMS: Final = 1 << 20  # of what is rounded at a time


@dataclass(frozen=True, slots=True)
class Slice:
    """``scale`` * (u^T v), with u: (r, m), v: (r, n), row k being component k."""

    scale: np.float32
    u: Codes
    v: Codes


@dataclass(frozen=True, slots=True)
class Components:
    """Components of a decomposition, one a row: u (r, m), s (r,) descending, v (r, n); largest magnitudes of each u
    and v (r,)."""

    u: Matrix
    s: Values
    v: Matrix
    peak_u: Matrix
    peak_v: Matrix

    def only(self, chosen: NDArray[np.int64]) -> Components:
        """Some of them, by their ascending places; a run of them is not copied."""
        is_run = chosen.size and chosen[-1] - chosen[0] + 1 == chosen.size
        at = slice(chosen[0], chosen[-1] + 1) if is_run else chosen
        return Components(self.u[at], self.s[at], self.v[at], self.peak_u[at], self.peak_v[at])


@dataclass(frozen=True, slots=True)
class Decomposed:
    """A delta's components, and the root mean square of its typical entry, which a step is a multiple of.

    ``energy``: its squared norm. ``reach``: components may be missing whose singular value is below
    reach * typical * sqrt(the longer side).
    """

    components: Components
    typical: float
    energy: float
    reach: float


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


def reach(step: float, cosine: float) -> float:
    """How weak a component may be to be kept by a code, if barely; see ``Decomposed``.

    The larger factor's codes must resemble it by the cosine alone: entries of a dense vector then have at least
    0.1 + 0.45 cosine of a step. Half of that leaves room for vectors that are not dense.
    """
    return step * (0.05 + 0.225 * cosine)


def decomposed(delta: NDArray[Any], reach: float = 0.0, bench: Bench = NUMPY_BENCH) -> Decomposed:
    """``delta``: (m, n) finite float32. The costly half of coding a matrix; the same for all steps down to a reach."""
    energy = np.einsum("mn,mn->m", delta, delta, dtype=np.float64)
    typical = _typical(energy, delta.shape[1])
    longer = max(np.count_nonzero(energy), np.count_nonzero(delta.any(axis=0)))
    u, s, vt = linalg.svd(delta, reach * typical * math.sqrt(longer), bench)
    total = float(energy.sum())
    is_whole = float(s @ s) >= (1 - 1e-5) * total
    components = Components(u.T, s, vt, _peaks(u.T), _peaks(vt))
    return Decomposed(components, typical, total, 0.0 if is_whole else reach)


def sliced(matrix: Decomposed, *, step: float, cosine: float, dead_zone: float = DEAD_ZONE) -> Sliced:
    """The slices that stand for a matrix, strongest first; none for a zero matrix or when nothing survives.

    ``step``: rounding step in units of a typical entry; more is smaller and worse. ``cosine``: least resemblance of a
    coded component to its original, below which it is dropped. ``dead_zone``: how much of a step rounding leans
    towards zero.
    """
    _require_settings(step, cosine, dead_zone)
    whole = matrix.components
    kept = noise = 0.0
    found: list[Slice] = []
    for group in _groups(whole, step * matrix.typical) if whole.s.size else ():
        coded = _coded(group, step * matrix.typical, cosine, dead_zone) if len(found) < MAX_SLICES else None
        if coded is None:
            continue
        found.append(coded.slice)
        kept += coded.energy
        noise += coded.noise
    return Sliced(tuple(found), matrix.energy, min(kept, matrix.energy), noise + max(0.0, matrix.energy - kept))


def _typical(energy: Values, cols: int) -> float:
    """The root mean square of an entry, every row weighted by its energy (m,).

    For a dense delta this is close to the plain root mean square. In an embedding only the rows of tokens that were
    seen have changed, and the step must suit those rows, however many others there are.
    """
    total = float(energy.sum())
    return float(np.sqrt(float(energy @ energy) / total / cols)) if total else 0.0


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
    peak = np.maximum(whole.peak_u, whole.peak_v)  # (k,)
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
    largest = float((np.maximum(group.peak_u, group.peak_v) * amplitude).max())
    amplitude = (amplitude * min(1.0, MAX_CODE / largest)).astype(np.float32)
    lean = np.float32(0.5 - dead_zone)
    survives = np.flatnonzero(np.minimum(group.peak_u, group.peak_v) * amplitude + lean >= 1)  # not only zeros
    group, amplitude = group.only(survives), amplitude[survives]
    u, lengths_u, inner_u = _rounded(group.u, amplitude, lean)
    v, lengths_v, inner_v = _rounded(group.v, amplitude, lean)
    lengths, inner = np.sqrt(lengths_u * lengths_v), inner_u * inner_v
    kept = np.flatnonzero((lengths > 0) & (inner >= cosine * lengths))
    u, v, group, lengths, inner = u[kept], v[kept], group.only(kept), lengths[kept], inner[kept]
    agreement = _agreement(u, v, group)
    if agreement <= 0:
        return None
    with np.errstate(over="ignore"):
        scale = np.float32(float(group.s @ group.s) / agreement)
    if not SMALLEST_SCALE <= scale < np.inf:
        return None
    squares = group.s**2
    lengths, inner = float(scale) * lengths, float(scale) * inner
    noise = float(np.sum(lengths**2 - 2 * group.s * inner + squares))
    return _Coded(Slice(scale, u, v), float(squares.sum()), noise)


def _rounded(vectors: Matrix, amplitude: Matrix, lean: np.float32) -> tuple[Codes, Values, Values]:
    """Codes (r, m) of amplitude times ``vectors`` (r, m); of each its squared length and inner product with it: (r,).

    Nearest integers, the border between two levels moved away from zero: ``lean`` is what is added before cutting off.
    """
    codes = np.empty(vectors.shape, np.int8)
    lengths, inner = np.empty(len(vectors)), np.empty(len(vectors))
    for some in _blocks(vectors):
        values = vectors[some] * amplitude[some, None]
        values += np.copysign(lean, values)
        np.trunc(values, out=values)
        codes[some] = values
        lengths[some] = np.einsum("rm,rm->r", values, values)  # of small integers
        inner[some] = np.einsum("rm,rm->r", values, vectors[some])
    return codes, lengths, inner


def _agreement(u: Codes, v: Codes, group: Components) -> float:
    """<u^T v, U^T S V>: the inner product of codes and components, all with all."""
    total = 0.0
    for some in _blocks(u if u.size > v.size else v):
        both = (u[some].astype(np.float32) @ group.u.T) * (v[some].astype(np.float32) @ group.v.T)  # (some, r)
        total += float(both.sum(axis=0, dtype=np.float64) @ group.s)
    return total


def _peaks(vectors: Matrix) -> Matrix:
    """The largest magnitude of each of ``vectors`` (r, m): (r,)."""
    if not vectors.size:
        return np.zeros(len(vectors), np.float32)
    peaks: Matrix = np.maximum(vectors.max(axis=1), -vectors.min(axis=1))
    return peaks


def _blocks(vectors: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows of at most about BLOCK_ITEMS items, which cover ``vectors`` in order."""
    step = max(1, BLOCK_ITEMS // max(1, vectors.shape[1]))
    for first in range(0, len(vectors), step):
        yield slice(first, first + step)
