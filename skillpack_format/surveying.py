"""What one tensor could cost and keep: the options that a plan chooses from.

Nothing is written and nothing of the tensor is kept: an option names a coding, and coding the tensor that way later
gives exactly the bytes that were counted here (of an exact code, at most).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format import encoders, sensitivity, wire
from skillpack_format.arithmetic import Grid
from skillpack_format.coding import (
    Candidate,
    Job,
    change_of,
    entry_of,
    exact_candidates,
    lossy_candidates,
    made_of,
    pair_of,
    sliced_candidate,
    stats_of,
    stored,
)
from skillpack_format.encoders import Pair
from skillpack_format.making import delta_of
from skillpack_format.manifest import Component, entry_to_plain
from skillpack_format.planning import Option, Survey
from skillpack_format.recipes import Blocks, Coding, Lossless, Planned, Prune, Slices, Unchanged

# Step, and the resemblance below which a component is dropped: a coarse code belongs to a low price of harm, where
# leaving out costs more than noise, and the other way round (decision 0021)
LADDER: Final = tuple(
    Slices(step, cosine)
    for step, cosine in (
        (8.0, 0.30),
        (6.7, 0.32),
        (5.6, 0.34),
        (4.7, 0.36),
        (4.0, 0.38),
        (3.4, 0.41),
        (2.8, 0.44),
        (2.4, 0.47),
        (2.0, 0.50),
        (1.7, 0.54),
        (1.4, 0.58),
        (1.0, 0.66),
        (0.7, 0.74),
        (0.5, 0.80),
        (0.35, 0.85),
        (0.25, 0.90),
    )
)
# A step is a multiple of the typical change of a row that changed: few rows of a table may carry most of what it does
TABLE_LADDER: Final = (*LADDER, Slices(0.18, 0.92), Slices(0.12, 0.94), Slices(0.08, 0.96), Slices(0.05, 0.97))
OTHERS: Final = (Blocks(1, 128), Blocks(3, 128), Prune(0.01))
BETWEEN: Final = 7  # rungs put between two, where a budget asks for them
SEGMENT_BYTES: Final = 22  # of a segment's map in STORAGE beside its chunk table
FIGURES: Final = ("energy", "error", "norm", "projection")


def survey(job: Job, most: float, *, measured: bool = False, weight: float | None = None) -> Survey:
    """The options of one tensor, the exact one first. ``job.treatment``: Planned, or the one coding there is.

    ``most``: bytes above which no lossy code is looked for. ``measured``: noise is that of the tensor as it will be
    made, rounding to its dtype included, and not that of the delta alone: slower, for those who promise a bound.
    ``weight``: the harm of a unit of squared error, where the caller has measured it. Pure; runs in any thread.
    """
    pair = pair_of(job)
    if not isinstance(job.treatment, Planned) or not encoders.is_lossy_possible(pair):
        return Survey(job.name, pair.wanted.size, 0.0, 0.0, (_only(job, pair),))
    grid = Grid.of(pair.kind.shape)
    delta = pair.delta()
    energy = _inner(delta, delta)
    exact = _exact(job, pair)
    if not energy:
        return Survey(job.name, pair.wanted.size, 0.0, 0.0, (exact,))
    if weight is None and job.tensor_class == "embedding":
        weight = sensitivity.of_rows(delta.reshape(-1, grid.cols), encoders.mean_square(pair))
    elif weight is None:
        weight = sensitivity.of_name(job.name)
    options = [exact]
    if job.old is not None and job.old.kind == job.new.kind:
        options.append(Option(Unchanged(), "as in the base", 0, (), 1.0, 1.0))
    options += _lossy(job, pair, delta, energy, min(most, exact.nbytes), measured)
    return Survey(job.name, pair.wanted.size, energy, weight, tuple(options))


def _only(job: Job, pair: Pair) -> Option:
    """The one coding that the recipe gives."""
    if isinstance(job.treatment, Planned | Lossless | Unchanged):
        return _exact(job, pair)
    candidates = [*exact_candidates(pair), *lossy_candidates(pair, job.treatment)]
    return min(
        (_option(job, pair, job.treatment, each, 0.0, 0.0, False) for each in candidates), key=lambda o: o.nbytes
    )


def _exact(job: Job, pair: Pair) -> Option:
    candidates = exact_candidates(pair) or [Candidate(())]
    found = [_option(job, pair, Lossless(), each, 0.0, 0.0, thorough=False) for each in candidates]
    return min(found, key=lambda option: option.nbytes)


def between(job: Job, coarse: Option, fine: Option, *, measured: bool = False) -> list[Option]:
    """Options between two rungs of the ladder, for a budget that falls between them; none for other codings."""
    if not (isinstance(coarse.coding, Slices) and isinstance(fine.coding, Slices)):
        return []
    first, last = coarse.coding, fine.coding
    shares = [k / (BETWEEN + 1) for k in range(1, BETWEEN + 1)]
    rungs = [
        Slices(first.step * (last.step / first.step) ** part, first.cosine + part * (last.cosine - first.cosine))
        for part in shares
    ]
    pair = pair_of(job)
    return list(_rungs(job, pair, rungs, float("inf"), measured))


def _lossy(
    job: Job, pair: Pair, delta: NDArray[np.float32], energy: float, most: float, measured: bool
) -> Iterator[Option]:
    """Lossy options of at most ``most`` bytes: low rank from coarse to fine, and codes of single elements."""
    ladder = TABLE_LADDER if job.tensor_class in ("embedding", "head") else LADDER
    yield from _rungs(job, pair, ladder, most, measured)
    for other in OTHERS:
        for candidate in lossy_candidates(pair, other):
            noise, lost = _figures(job, pair, candidate, delta, energy)
            option = _option(job, pair, other, candidate, noise, lost, thorough=False)
            if option.nbytes <= most:
                yield replace(option, noise=_noise_made(job, pair, candidate)) if measured else option


def _rungs(job: Job, pair: Pair, ladder: Sequence[Slices], most: float, measured: bool) -> Iterator[Option]:
    matrices = encoders.decomposed(pair)
    for coding in ladder:
        found = encoders.sliced(pair, matrices, coding)
        if not found.encoded:
            continue
        candidate = sliced_candidate(found)
        option = _option(job, pair, coding, candidate, found.noise, _loss(1 - found.energy), thorough=True)
        if option.nbytes > most:
            return
        yield replace(option, noise=_noise_made(job, pair, candidate)) if measured else option


def _noise_made(job: Job, pair: Pair, candidate: Candidate) -> float:
    """The squared error of the tensor that a reader makes, as a share of the squared change."""
    _, found = stats_of(pair, made_of(pair, candidate.encoded, job.bench))
    return 1.0 if found is None else found


def _figures(
    job: Job, pair: Pair, candidate: Candidate, delta: NDArray[np.float32], energy: float
) -> tuple[float, float]:
    """Noise and loss of a code of single elements: loss is what it does not keep on average."""
    additive = change_of(pair.kind, candidate.encoded, f"tensor {pair.name!r}").additive
    made = delta_of(Grid.of(pair.kind.shape), additive, job.bench)
    along = _inner(made, delta) / energy
    return max(0.0, _inner(made, made) / energy - 2 * along + 1), _loss(max(0.0, 1 - along))


def _loss(dropped: float) -> float:
    """The share of what a matrix does that goes with a share of its energy, the weakest part of it (decision 0021)."""
    return 0.3 * dropped**2 if dropped < 1 else 1.0


def _option(
    job: Job, pair: Pair, coding: Coding, candidate: Candidate, noise: float, lost: float, thorough: bool
) -> Option:
    contents = stored(pair, candidate, job.codec, thorough=thorough)
    stats: dict[str, int | bytes] = {"changed": pair.wanted.size, "spectrum": bytes(16)}
    stats |= {key: bytes(4) for key in FIGURES}
    components = [Component(e.encoding, e.params, c.sha256) for e, c in zip(candidate.encoded, contents, strict=True)]
    header = len(wire.write(entry_to_plain(entry_of(job, job.new, components, stats))))
    header += sum(SEGMENT_BYTES + len(content.table) for content in contents)
    sizes = tuple(content.nbytes for content in contents)
    return Option(coding, _label(coding, candidate), header, sizes, noise, lost)


def _label(coding: Coding, candidate: Candidate) -> str:
    names = " + ".join(each.encoding for each in candidate.encoded) or "nothing"
    if isinstance(coding, Slices):
        return f"{names}, step {coding.step:g}"
    if isinstance(coding, Blocks):
        return f"{names}, {coding.bits} bit{'s' if coding.bits > 1 else ''}"
    return f"{names}, exact" if isinstance(coding, Lossless) else names


def _inner(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.einsum("i,i->", one, other, dtype=np.float64))
