"""From a delta matrix to the integer slices of ``lowrank`` (spec/encodings/lowrank.md).

The one rule: be unbiased. Rounding noise averages out over a layer's inputs, a shrunken direction does not, so every
slice gets the scale that keeps its inner product with what it codes, not the least-squares one, which shrinks; except
where an exact difference follows, which is the shorter the nearer the slices come.

The delta is decomposed, its components are grouped by octave of singular value, and the factors of a group are
rounded to integers. One ``lambda`` serves the whole matrix: the noise a component may carry is the same for all, so
strong components get many levels and weak ones few. A component whose code no longer resembles it is dropped, for
rescaling it would be rescaling noise.

The factor with the longer vectors is rounded first and held. The other is then fitted to the whole delta, given the
codes that are held, and rounded in its turn: so it makes up for what rounding did within their span (decision 0032).
Writers only: no reader needs this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skillpack_format import linalg
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, NUMPY_BENCH, SMALLEST_SCALE, Bench
from skillpack_format.errors import error

Matrix = NDArray[np.float32]
Values = NDArray[np.float64]
Codes = NDArray[np.int8]
Places = NDArray[np.int64]

DEAD_ZONE: Final = 0.1
MAX_CODE: Final = 127
MAX_RANK: Final = EXACT_PRODUCT // 128**2  # of one slice: its sums stay exact even with 8-bit codes
BLOCK_ITEMS: Final = 1 << 20  # of what is rounded at a time
COARSER: Final = 0.75  # times as many levels for the factor that is held, for the other makes up for it;
COARSE: Final = 4.0  # from this step on as many, for codes are few
RIDGE: Final = 1e-4  # of a component's codes, so that no two alike make the fit singular


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

    def only(self, chosen: Places) -> Components:
        """Some of them, by their ascending places; a run of them is not copied."""
        is_run = chosen.size and chosen[-1] - chosen[0] + 1 == chosen.size
        at = slice(chosen[0], chosen[-1] + 1) if is_run else chosen
        return Components(self.u[at], self.s[at], self.v[at], self.peak_u[at], self.peak_v[at])

    @property
    def transposed(self) -> Components:
        """Those of the transposed matrix."""
        return Components(self.v, self.s, self.u, self.peak_v, self.peak_u)


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
    """Slices, and what they do to the delta.

    ``energy``: squared singular values, all and those ``kept``. ``noise``: squared norm of what is made less the delta.
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


def sliced(
    matrix: Decomposed, *, step: float, cosine: float, dead_zone: float = DEAD_ZONE, is_nearest: bool = False
) -> Sliced:
    """The slices that stand for a matrix, strongest first; none for a zero matrix or when nothing survives.

    ``step``: rounding step in units of a typical entry; more is smaller and worse. ``cosine``: least resemblance of a
    coded component to its original, below which it is dropped. ``dead_zone``: how much of a step rounding leans
    towards zero. ``is_nearest``: scales of least error, for what an exact code goes on from; biased.
    """
    _require_settings(step, cosine, dead_zone)
    whole = matrix.components
    is_wide = whole.u.shape[1] < whole.v.shape[1]
    if is_wide:
        whole = whole.transposed
    coarser = min(1.0, max(COARSER, step / COARSE))
    rounding = _Rounding(step * matrix.typical, coarser, cosine, np.float32(0.5 - dead_zone))
    groups = list(islice(_groups(whole, rounding), MAX_SLICES))
    if not groups:
        return Sliced((), matrix.energy, 0.0, matrix.energy)
    held = np.concatenate([each.held for each in groups])
    ends = np.cumsum([each.members.size for each in groups])
    parts = [slice(end - each.members.size, end) for each, end in zip(groups, ends, strict=True)]
    of_held = _inner(held, whole.u)
    fitted = _fitted(of_held, whole)
    rounded = [
        _rounded_like(fitted[part], each.amplitude, rounding.lean) for each, part in zip(groups, parts, strict=True)
    ]
    codes = np.concatenate(rounded)
    of_codes = _inner(codes, whole.v)
    agreement = of_held.along * of_codes.along * whole.s  # (r, k): of what is coded with every component
    scales, kept = np.zeros(len(held)), 0.0
    found: list[Slice] = []
    for group, part in zip(groups, parts, strict=True):
        energy = float(np.sum(whole.s[group.members] ** 2))
        if is_nearest:
            scale = _scale(agreement[part].sum(), (of_held.gram[part, part] * of_codes.gram[part, part]).sum())
        else:
            scale = _scale(energy, agreement[part, group.members].sum())
        if scale is None:
            continue
        alive = codes[part].any(axis=1)
        u, v = held[part][alive], codes[part][alive]
        found.append(Slice(scale, v, u) if is_wide else Slice(scale, u, v))
        scales[part] = scale
        kept += energy
    made = scales @ (of_held.gram * of_codes.gram) @ scales
    noise = float(made - 2 * scales @ agreement.sum(axis=1)) + matrix.energy
    return Sliced(tuple(found), matrix.energy, min(kept, matrix.energy), max(0.0, noise))


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


class _Rounding(NamedTuple):
    """``lam``: singular value of a component whose unit vectors are multiplied by 1. ``coarser``: times as many levels
    for the factor that is held. ``cosine``: see ``sliced``. ``lean``: what is added before cutting off."""

    lam: float
    coarser: float
    cosine: float
    lean: np.float32


@dataclass(frozen=True, slots=True)
class _Group:
    """Components that share a slice: their places, codes of the vectors that are held (r, m), and what unit vectors of
    the other factor are multiplied by before they are rounded (r,)."""

    members: Places
    held: Codes
    amplitude: Matrix


def _groups(whole: Components, rounding: _Rounding) -> Iterator[_Group]:
    """What survives of every octave of singular value, at most MAX_RANK at a time, all or none too large to code.

    A component with codes above MAX_CODE makes its whole slice coarser, so it must not share one with those that fit.
    """
    if not whole.s.size:
        return
    octave = np.floor(np.log2(whole.s[0] / whole.s))
    peak = np.maximum(whole.peak_u, whole.peak_v)  # (k,)
    highest = MAX_CODE / np.sqrt(2) * rounding.lam  # the mean of an octave may be sqrt(2) times as much as s
    fits = whole.s * peak <= highest
    for each in np.unique(octave):
        for kind in (False, True):
            members = np.flatnonzero((octave == each) & (fits == kind))
            for first in range(0, members.size, MAX_RANK):
                group = _group(whole, members[first : first + MAX_RANK], rounding)
                if group.members.size:
                    yield group


def _group(whole: Components, members: Places, rounding: _Rounding) -> _Group:
    """Those of ``members`` whose codes, both factors rounded by themselves, resemble them."""
    lam, coarser, cosine, lean = rounding
    group = whole.only(members)
    amplitude = np.sqrt(group.s * np.exp(np.log(group.s).mean())) / lam  # (r,): what a unit vector is multiplied by
    largest = float((np.maximum(group.peak_u, group.peak_v) * amplitude).max())
    of_held = (amplitude * min(coarser, MAX_CODE / largest)).astype(np.float32)
    amplitude = (amplitude * min(1.0, MAX_CODE / largest)).astype(np.float32)
    survives = np.flatnonzero(np.minimum(group.peak_u, group.peak_v) * amplitude + lean >= 1)  # not only zeros
    group, amplitude, members = group.only(survives), amplitude[survives], members[survives]
    held, lengths_u, inner_u = _rounded(group.u, of_held[survives], lean)
    _, lengths_v, inner_v = _rounded(group.v, amplitude, lean)
    lengths, inner = np.sqrt(lengths_u * lengths_v), inner_u * inner_v
    kept = np.flatnonzero((lengths > 0) & (inner >= cosine * lengths))
    return _Group(members[kept], held[kept], amplitude[kept])


class _Inner(NamedTuple):
    """Inner products of codes with one another (r, r), and with the vectors of all components (r, k)."""

    gram: Values
    along: Values


def _inner(codes: Codes, vectors: Matrix) -> _Inner:
    """``codes``: (r, m); ``vectors``: (k, m)."""
    gram, along = np.zeros((len(codes), len(codes))), np.zeros((len(codes), len(vectors)))
    for some in _blocks(codes.T):
        part = codes[:, some].astype(np.float32)
        gram += part @ part.T
        along += part @ vectors[:, some].T
    return _Inner(gram, along)


def _fitted(held: _Inner, whole: Components) -> Matrix:
    """The other factor (r, n), up to its size, that times the codes held is as near to the delta as can be."""
    gram = held.gram + RIDGE * np.diag(np.diag(held.gram))
    s = np.ldexp(whole.s, -math.frexp(whole.s[0])[1])  # or a float32 might not hold what comes of it
    fitted: Matrix = np.linalg.solve(gram, held.along * s).astype(np.float32) @ whole.v
    return fitted


def _rounded_like(vectors: Matrix, amplitude: Matrix, lean: np.float32) -> Codes:
    """Codes of a slice's ``vectors`` (r, n), as dense as those of unit vectors times ``amplitude`` (r,).

    Fitting shrinks what the held codes hardly resemble; with fewer levels for it, the scale would enlarge the noise.
    """
    length = float(np.sqrt(np.einsum("rn,rn->", vectors, vectors, dtype=np.float64)))
    peak = float(np.abs(vectors).max())
    if not peak:
        return np.zeros(vectors.shape, np.int8)
    largest = np.float32(min(float(np.linalg.norm(amplitude)) / length * peak, MAX_CODE))
    return _rounded(vectors / np.float32(peak), np.full(len(vectors), largest), lean)[0]


def _scale(wanted: float, coded: float) -> np.float32 | None:
    """What takes one inner product to the other; None where F32 has no such scale."""
    if coded <= 0:
        return None
    with np.errstate(over="ignore"):
        scale = np.float32(wanted / coded)
    return scale if SMALLEST_SCALE <= scale < np.inf else None


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
