"""What one tensor could cost and keep: the options that a plan chooses from, and the choice where the price is known.

Bytes of an option are those of quick compression, which is never below what is stored in the end, or told from a sample
of the rows of a large tensor; its error is what the code does to the change, rounding to the tensor's dtype left out.
``measured`` options are facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format import encoders, sensitivity, slicing, wire
from skillpack_format.arithmetic import Grid
from skillpack_format.coding import (
    Candidate,
    Coded,
    Job,
    change_of,
    code,
    coded,
    entry_of,
    exact_candidates,
    lossy_candidates,
    made_of,
    pair_of,
    sliced_candidate,
    stored,
)
from skillpack_format.encoders import Pair
from skillpack_format.errors import PayloadError
from skillpack_format.making import delta_of
from skillpack_format.manifest import Component, Entry, entry_to_plain
from skillpack_format.planning import Option, Survey
from skillpack_format.recipes import (
    VECTOR_CLASSES,
    Blocks,
    Coding,
    Lossless,
    Planned,
    Priced,
    Prune,
    Slices,
    Unchanged,
)

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
        (0.18, 0.92),
        (0.12, 0.94),
        (0.08, 0.96),
        (0.05, 0.97),
    )
)
OTHERS: Final = (Blocks(1, 128), Blocks(3, 128), Prune(0.01))
VECTORS: Final = tuple(Blocks(bits, 512) for bits in (1, 2, 3, 4, 5, 6, 8))  # what a norm or a bias may get
BETWEEN: Final = 7  # rungs put between two, where a budget asks for them
SMALL_ITEMS: Final = 1 << 14  # of a tensor whose bytes are too few to fall evenly from rung to rung
SEGMENT_BYTES: Final = 22  # of a segment's map in STORAGE beside its chunk table
AS_IN_BASE: Final = "as in the base"
FIGURES: Final = ("energy", "error", "norm", "projection")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tensor as it was coded: the option that is, measured, and those that were looked at."""

    option: Option
    options: tuple[Option, ...]
    coded: Coded


def figures(job: Job, weight: float | None = None) -> Survey:
    """How much a tensor changes and how much that matters, no code tried; nothing where only exact codes apply.

    ``weight``: the harm of a unit of squared error, where the caller has measured it. Pure; runs in any thread.
    """
    pair = pair_of(job)
    is_vector = not encoders.is_matrix(pair)
    is_of_kind = is_vector == (job.tensor_class in VECTOR_CLASSES)  # what else there is stays exact
    if not isinstance(job.treatment, Planned) or not is_of_kind or not encoders.is_lossy_possible(pair):
        return Survey(job.name, 0.0, 0.0)
    delta = pair.delta()
    energy = _inner(delta, delta)
    if not energy:
        return Survey(job.name, 0.0, 0.0)
    if weight is None:
        weight = _weight(job, pair, delta)
    return Survey(job.name, energy, weight, is_vector=is_vector)


def _weight(job: Job, pair: Pair, delta: NDArray[np.float32]) -> float:
    """The harm of a unit of squared error, told without data."""
    if not encoders.is_matrix(pair):
        return sensitivity.of_vector(job.name)
    if job.tensor_class == "head":
        return sensitivity.HEAD
    if job.tensor_class != "embedding":
        return sensitivity.of_name(job.name)
    rows = sensitivity.of_rows(delta.reshape(-1, Grid.of(pair.kind.shape).cols), encoders.mean_square(pair))
    return rows + sensitivity.HEAD if job.is_head else rows


def survey(job: Job, most: float, *, weight: float | None = None) -> Survey:
    """The options of one tensor, the exact one first. ``job.treatment``: Planned, or the one coding there is.

    ``most``: bytes above which no lossy code of a matrix is looked for. Pure; runs in any thread.
    """
    found = figures(job, weight)
    tensor = _Tensor(job)
    if not found.energy:
        return replace(found, options=(tensor.only(),))
    exact, *others = tensor.others()
    if found.is_vector:
        return replace(found, options=(exact, *tensor.unchanged(), *others))
    most = min(most, exact.nbytes)
    rungs = []
    for coding in LADDER:
        rung = tensor.rung(coding)
        if rung is not None and rung.nbytes > most:
            break
        rungs += [rung] if rung else []
    lossy = [*rungs, *(each for each in others if each.nbytes <= most)]
    return replace(found, options=(exact, *tensor.unchanged(), *lossy))


def between(job: Job, coarse: Option, fine: Option) -> list[Option]:
    """Options between two rungs of the ladder, for a budget that falls between them; none for other codings."""
    if not (isinstance(coarse.coding, Slices) and isinstance(fine.coding, Slices)):
        return []
    first, last = coarse.coding, fine.coding
    shares = [k / (BETWEEN + 1) for k in range(1, BETWEEN + 1)]
    rungs = [
        Slices(first.step * (last.step / first.step) ** part, first.cosine + part * (last.cosine - first.cosine))
        for part in shares
    ]
    tensor = _Tensor(job)
    return [option for each in rungs if (option := tensor.rung(each))]


def choose(job: Job) -> Chosen:
    """The tensor coded as its treatment asks: of all options the one of least cost, where that is ``Priced``.

    What seems best is coded to the end, and then whatever still seems better than that turned out. Pure; runs in any
    thread.
    """
    rates = job.treatment
    if not isinstance(rates, Priced):
        done = code(job)
        only = measured(Lossless() if isinstance(rates, Planned) else rates, done)
        return Chosen(only, (only,), done)
    tensor = _Tensor(job)
    options = [*tensor.others(), *tensor.unchanged()]
    if encoders.is_matrix(tensor.pair):
        options += tensor.rungs_around_the_best(rates)
    options.sort(key=lambda option: option.cost(rates))

    def attempt(option: Option) -> tuple[float, Option, Coded]:
        done = tensor.code(option.coding)
        found = measured(option.coding, done, option.lost)
        return replace(found, noise=option.noise).cost(rates), found, done  # rounding to the dtype is not the code's

    best = attempt(options[0])
    for each in options[1:]:
        if best[0] <= each.cost(rates):
            break
        best = min(best, attempt(each), key=lambda found: found[0])
    _, option, done = best
    return Chosen(option, (option, *(each for each in options if each.coding != option.coding)), done)


def measured(coding: Coding, done: Coded, lost: float = 0.0) -> Option:
    """The option that a tensor is when it has been coded."""
    if done.entry.result == done.entry.base:
        return Option(coding, AS_IN_BASE, 0, (), done.error or 0.0, lost, is_measured=True)
    header = _header_bytes(done.entry, [content.table for content in done.contents])
    names = tuple(each.encoding for each in done.entry.components)
    sizes = tuple(content.nbytes for content in done.contents)
    return Option(coding, _label(coding, names), header, sizes, done.error or 0.0, lost, is_measured=True)


class _Tensor:
    """A tensor whose codes are looked at. What all rungs of the ladder share is found once, when it is first needed."""

    def __init__(self, job: Job) -> None:
        self.job, self.pair = job, pair_of(job)
        self._matrices: list[slicing.Decomposed] = []

    def only(self) -> Option:
        """The one coding that the recipe gives."""
        coding = self.job.treatment
        if isinstance(coding, Planned | Priced):
            coding = Lossless()
        lossy = lossy_candidates(self.pair, coding, self.job.bench)
        candidates = [*exact_candidates(self.pair), *lossy] or [Candidate(())]
        return min((_option(self.job, self.pair, coding, each) for each in candidates), key=lambda o: o.nbytes)

    def unchanged(self) -> list[Option]:
        """The base's own tensor, where that is one of the kind wanted."""
        is_there = self.job.old is not None and self.job.old.kind == self.job.new.kind
        return [Option(Unchanged(), AS_IN_BASE, 0, (), 1.0, 1.0)] if is_there else []

    def others(self) -> list[Option]:
        """The exact code, then codes of single elements; told from a sample of the rows of a large matrix."""
        part, times = encoders.sample(self.pair)
        exact = [_option(self.job, part, Lossless(), each, times=times) for each in exact_candidates(part)]
        found = [min(exact, key=lambda option: option.nbytes)]
        delta = part.delta()
        energy = _inner(delta, delta) or 1.0
        for coding in OTHERS if encoders.is_matrix(part) else VECTORS:
            here: Coding = coding
            if isinstance(coding, Prune):  # a share of all elements, and the sample is of rows that change
                here = Prune(min(1.0, coding.keep * self.pair.wanted.size / (times * part.wanted.size)))
            for candidate in lossy_candidates(part, here, self.job.bench):
                made = _made(self.job, part, candidate)
                if made is not None:
                    noise, along = _figures(made, delta, energy)
                    dropped = max(0.0, 1 - along)
                    lost = _loss(dropped) if encoders.is_matrix(part) else dropped  # no part of a vector is a weak one
                    found.append(_option(self.job, part, coding, candidate, noise, lost, times))
        return found

    def rung(self, coding: Slices) -> Option | None:
        """Low rank at a step; None where nothing survives it."""
        found = self._sliced(coding)
        if not found.encoded:
            return None
        return _option(self.job, self.pair, coding, sliced_candidate(found), found.noise, _loss(1 - found.energy))

    def rungs_around_the_best(self, rates: Priced) -> list[Option]:
        """The rungs looked at on the way to that of least cost; all rungs of a small tensor.

        From the expected one finer, or else coarser, until costs rise. On the way to finer codes two in a row must be
        worse, for what a table keeps can fall for one step, or bytes alone must cost more than the best.
        """
        if self.pair.wanted.size <= SMALL_ITEMS:
            return [option for coding in LADDER if (option := self.rung(coding))]
        start = _expected(rates, self.pair.wanted.nbytes)
        found: list[Option] = []
        least = math.inf
        for places, patience in ((range(start, len(LADDER)), 2), (range(start - 1, -1, -1), 1)):
            worse = 0
            for option in map(self.rung, (LADDER[place] for place in places)):
                if option is None:  # nothing survives: finer ones may have something, coarser ones have not
                    continue
                found.append(option)
                cost = option.cost(rates)
                worse = 0 if cost < least else worse + 1
                least = min(least, cost)
                if worse == patience or (patience == 2 and rates.byte * option.nbytes > least):
                    break
            if found and found[0].cost(rates) > least:
                break
        return found

    def code(self, coding: Coding) -> Coded:
        """The tensor coded to the end."""
        if isinstance(coding, Slices):
            return coded(self.job, self.pair, sliced_candidate(self._sliced(coding)))
        return code(replace(self.job, treatment=coding))

    def _sliced(self, coding: Slices) -> encoders.SlicedPair:
        reach = slicing.reach(coding.step, coding.cosine)
        if not self._matrices or reach < max(each.reach for each in self._matrices):
            self._matrices = encoders.decomposed(self.pair, reach, self.job.bench)
        return encoders.sliced(self.pair, self._matrices, coding)


def _expected(rates: Priced, nbytes: int) -> int:
    """About which rung of the ladder has the least cost, for a tensor of ``nbytes``.

    At the least cost, bytes and noise change by as much; the best steps of the tensors of one fine-tune went with the
    cube root of what all bytes cost over what all noise does.
    """
    step = 0.55 * (rates.byte * nbytes / rates.noise) ** (1 / 3) if rates.noise else math.inf
    return min(sum(rung.step > 1.1 * step for rung in LADDER), len(LADDER) - 1)


def _made(job: Job, pair: Pair, candidate: Candidate) -> NDArray[np.float32] | None:
    """The change that a code of single elements makes; None where a vector would leave the numbers of its dtype.

    A vector's is that of the result, rounding to its dtype included: much of it may be below half a step.
    """
    if encoders.is_matrix(pair):
        additive = change_of(pair.kind, candidate.encoded, f"tensor {pair.name!r}").additive
        return delta_of(Grid.of(pair.kind.shape), additive, job.bench)
    try:
        return replace(pair, wanted=made_of(pair, candidate.encoded, job.bench)).delta()
    except PayloadError:
        return None


def _figures(made: NDArray[np.float32], delta: NDArray[np.float32], energy: float) -> tuple[float, float]:
    """Noise of a code of single elements, and how much of the change it makes on average."""
    missed = made - delta
    return _inner(missed, missed) / energy, _inner(made, delta) / energy


def _loss(dropped: float) -> float:
    """The share of what a matrix does that goes with a share of its energy, the weakest part of it (decision 0021)."""
    return 0.3 * dropped**2 if dropped < 1 else 1.0


def _option(
    job: Job,
    pair: Pair,
    coding: Coding,
    candidate: Candidate,
    noise: float = 0.0,
    lost: float = 0.0,
    times: float = 1.0,
) -> Option:
    """``candidate`` of ``pair``, which is that part of the tensor of which there are so many ``times``."""
    contents = stored(pair, candidate, job, thorough=False)
    stats: dict[str, int | bytes] = {"changed": pair.wanted.size, "spectrum": bytes(16)}
    stats |= {key: bytes(4) for key in FIGURES}
    components = [Component(e.encoding, e.params, c.sha256) for e, c in zip(candidate.encoded, contents, strict=True)]
    header = _header_bytes(entry_of(job, job.new, components, stats), [content.table for content in contents])
    names = tuple(each.encoding for each in candidate.encoded)
    sizes = tuple(int(content.nbytes * times) for content in contents)
    return Option(coding, _label(coding, names), header, sizes, noise, lost)


def _header_bytes(entry: Entry, tables: list[bytes]) -> int:
    """What an entry adds to MANIFEST and its contents to STORAGE."""
    return len(wire.write(entry_to_plain(entry))) + sum(SEGMENT_BYTES + len(table) for table in tables)


def _label(coding: Coding, encodings: tuple[str, ...]) -> str:
    names = " + ".join(encodings) or "nothing"
    if isinstance(coding, Slices):
        return f"{names}, step {coding.step:g}"
    if isinstance(coding, Blocks):
        return f"{names}, {coding.bits} bit{'s' if coding.bits > 1 else ''}"
    return f"{names}, exact" if isinstance(coding, Lossless) else names


def _inner(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.einsum("i,i->", one, other, dtype=np.float64))
