"""Coding one tensor: from its bytes in base and tuned to an entry of MANIFEST and stored contents.

What the components make is made here too, by the reader's own rule, so that the digest in MANIFEST is a fact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from skillpack_format import encoders
from skillpack_format.arithmetic import Bench
from skillpack_format.catalog import encoding_named
from skillpack_format.classes import module_of
from skillpack_format.contents import StoredContent, is_compatible, store_encoded, target_of
from skillpack_format.digest import Bytes, TensorIdentity, TensorKind, sha256_of
from skillpack_format.dtypes import Array, bits_to_float64, dtype_named, numel
from skillpack_format.encoders import Pair
from skillpack_format.encodings._base import Encoded
from skillpack_format.errors import ConvertError, PayloadError
from skillpack_format.making import Change, make, start_of
from skillpack_format.manifest import Component, Entry
from skillpack_format.recipes import Bands, Blocks, Prune, Slices, Treatment, Unchanged
from skillpack_format.slicing import reach

CHUNK_BYTES: Final = 1 << 16  # small enough for a slice to read little more than it needs, large enough for zstd
FAR_LARGER: Final = 0.5  # one over: times by which a sample must say that an exact code is larger to be believed
WIDE: Final = 2.0  # bits of an exact code for each element above which some low rank may pay for itself
LEAST_NOISE: Final = 1e-9
REFINED: Final = tuple(Slices(step, 0.8) for step in (11.0, 8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One tensor of ``tuned`` and what it is in the base, with the bytes of both."""

    name: str
    tensor_class: str
    old: TensorIdentity | None
    base: Bytes | None
    new: TensorIdentity
    tuned: Bytes
    treatment: Treatment
    codec: str
    chunk_bytes: int
    bench: Bench
    is_head: bool = False  # an embedding that is the head too: a tied one


@dataclass(frozen=True, slots=True)
class Coded:
    """An entry, its stored contents in order, and ||D'-D||^2 / ||D||^2 where that is a number."""

    entry: Entry
    contents: tuple[StoredContent, ...]
    error: float | None

    @property
    def nbytes(self) -> int:
        return sum(content.nbytes for content in self.contents)


def pair_of(job: Job) -> Pair:
    """The tensor as encoders see it: START and the bits wanted."""
    old, new = job.old, job.new
    start = start_of(job.base, old.kind if old else None, new.kind)
    wanted = np.frombuffer(job.tuned, target_of(new.kind).dtype.bit_pattern)
    is_resized = old is not None and is_compatible(old.kind, new.kind)
    old_items = min(numel(old.kind.shape), numel(new.kind.shape)) if old and is_resized else 0
    return Pair(job.name, new.kind, start, wanted, old_items)


def code(job: Job) -> Coded:
    """Code one tensor by its treatment, or exactly where that takes no more bytes. Pure; runs in any thread.

    A lossy code that keeps nothing of a change gives an entry whose result is its base: it need not be listed.
    """
    pair = pair_of(job)
    if isinstance(job.treatment, Unchanged) and job.old is not None:
        return Coded(entry_of(job, job.old, (), {}), (), 1.0)  # all of the change is missing
    return coded(job, pair, _cheapest(pair, job))


def coded(job: Job, pair: Pair, candidate: Candidate) -> Coded:
    """The tensor as ``candidate`` codes it, made again to learn what a reader gets."""
    contents = stored(pair, candidate, job, thorough=True)
    made = made_of(pair, candidate.encoded, job.bench)
    stats, error = stats_of(pair, made)
    result = TensorIdentity(job.new.kind, sha256_of(made))
    if result == job.old:
        return Coded(entry_of(job, result, (), stats), (), error)
    components = [Component(e.encoding, e.params, c.sha256) for e, c in zip(candidate.encoded, contents, strict=True)]
    return Coded(entry_of(job, result, components, {**stats, **candidate.stats}), contents, error)


class Named(Protocol):
    """A job: which tensor, and what it is in the base."""

    @property
    def name(self) -> str: ...
    @property
    def tensor_class(self) -> str: ...
    @property
    def old(self) -> TensorIdentity | None: ...


def entry_of(
    job: Named, result: TensorIdentity, components: Sequence[Component], stats: dict[str, int | bytes]
) -> Entry:
    """What MANIFEST says of a tensor that components make."""
    return Entry(
        name=job.name,
        tensor_class=job.tensor_class,
        module=module_of(job.name),
        base=job.old,
        result=result,
        components=tuple(components),
        stats=stats or None,
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """Components that could stand for a tensor's change; what their making tells of it, for ``stats``."""

    encoded: tuple[Encoded, ...]
    stats: dict[str, int | bytes] = field(default_factory=dict)


def exact_candidates(pair: Pair) -> list[Candidate]:
    """Every exact code; none for a tensor without elements."""
    return [Candidate((exact,)) for exact in encoders.lossless(pair)] if pair.wanted.size else []


def lossy_candidates(pair: Pair, coding: Treatment, bench: Bench) -> list[Candidate]:
    """The code that ``coding`` asks for, where it applies."""
    if not encoders.is_lossy_possible(pair):
        return []
    if isinstance(coding, Blocks):
        return [Candidate(tuple(encoders.blocked(pair, coding)))]
    if not encoders.is_matrix(pair):
        return []
    if isinstance(coding, Slices):
        matrices = encoders.decomposed(pair, reach(coding.step, coding.cosine), bench)
        return [sliced_candidate(encoders.sliced(pair, matrices, coding))]
    if isinstance(coding, Prune):
        return [Candidate(tuple(encoders.pruned(pair, coding)))]
    if isinstance(coding, Bands):
        return [Candidate(tuple(encoders.banded(pair, coding, bench)))]
    return []


def refined_candidate(pair: Pair, nbytes: float, job: Job) -> Candidate | None:
    """Low rank, and the exact difference of what that leaves; None where it promises nothing.

    ``nbytes``: of the exact code alone. It spends some bits on every element that changes; low rank that makes the
    change smaller by a factor saves the factor's logarithm, as long as changes are many steps of what they change.
    """
    is_whole = pair.old_items == pair.wanted.size  # new rows are replaced, and only one component can rewrite
    is_possible = is_whole and encoders.is_lossy_possible(pair) and encoders.is_matrix(pair)
    if nbytes * 8 < WIDE * pair.wanted.size or not is_possible:
        return None
    changed = int(np.count_nonzero(pair.converted != pair.wanted))
    best: tuple[float, tuple[Encoded, ...]] = (nbytes, ())
    try:
        matrices = encoders.decomposed(pair, reach(REFINED[-1].step, REFINED[-1].cosine), job.bench)
        for coding in REFINED:
            part = encoders.sliced(pair, matrices, coding, is_nearest=True)
            saved = changed / 16 * -math.log2(max(part.noise, LEAST_NOISE))  # bytes: noise is a square
            promised = nbytes - saved + quick_nbytes(pair, sliced_candidate(part), job)
            best = min(best, (promised, part.encoded), key=lambda found: found[0])
        made = made_of(pair, best[1], job.bench) if best[1] else None
    except (ConvertError, PayloadError):  # NaN or infinity, now or once low rank is added; a difference needs no delta
        return None
    if made is None:
        return None
    finished = [Candidate((*best[1], each)) for each in encoders.differences(pair, made)]
    return min(finished, key=lambda each: quick_nbytes(pair, each, job)) if len(finished) > 1 else finished[0]


def sliced_candidate(found: encoders.SlicedPair) -> Candidate:
    spectrum = (*found.spectrum, 0.0, 0.0, 0.0, 0.0)[:4]
    return Candidate(found.encoded, {"energy": _float32(found.energy), "spectrum": b"".join(map(_float32, spectrum))})


def stored(pair: Pair, candidate: Candidate, job: Job, *, thorough: bool) -> tuple[StoredContent, ...]:
    """Contents as the pack of ``job`` stores them. ``pair``: its tensor, or a sample of it."""
    target = target_of(pair.kind)
    return tuple(
        store_encoded(each, target, job.codec, job.chunk_bytes, thorough=thorough) for each in candidate.encoded
    )


def _cheapest(pair: Pair, job: Job) -> Candidate:
    """The candidate that is smallest once stored; quick compression is near enough to tell.

    Exact codes are not made where a sample of the tensor says that they would be far larger than a lossy one.
    """
    candidates = lossy_candidates(pair, job.treatment, job.bench) if pair.wanted.size else []
    sizes = [quick_nbytes(pair, each, job) for each in candidates]
    if not sizes or min(sizes) > FAR_LARGER * exact_nbytes_about(pair, job):
        exact = exact_candidates(pair)
        candidates, sizes = [*exact, *candidates], [quick_nbytes(pair, each, job) for each in exact] + sizes
        refined = refined_candidate(pair, min(sizes), job) if sizes else None
        if refined is not None:
            candidates, sizes = [*candidates, refined], [*sizes, quick_nbytes(pair, refined, job)]
    return candidates[sizes.index(min(sizes))] if candidates else Candidate(())


def quick_nbytes(pair: Pair, candidate: Candidate, job: Job) -> int:
    """Stored bytes of a candidate, at most: what quick compression gives."""
    return sum(content.nbytes for content in stored(pair, candidate, job, thorough=False))


def exact_nbytes_about(pair: Pair, job: Job) -> float:
    """Stored bytes of the smallest exact code, told from a sample. The tensor has elements in the base."""
    part, times = encoders.sample(pair)
    return times * min(quick_nbytes(part, each, job) for each in exact_candidates(part))


def _float32(value: float) -> bytes:
    """The bits of an F32, little-endian; the largest where ``value`` is above it."""
    return np.float32(min(value, float(np.finfo(np.float32).max))).tobytes()


def made_of(pair: Pair, encoded: Sequence[Encoded], bench: Bench) -> Array:
    """What a reader will make of the components."""
    where = f"tensor {pair.name!r}"
    return make(pair.start, pair.kind, change_of(pair.kind, encoded, where), bench, where)


def change_of(kind: TensorKind, encoded: Sequence[Encoded], where: str) -> Change:
    """Components of a tensor of ``kind``, opened as a reader opens them."""
    target = target_of(kind)
    additive: list[Any] = []
    rewriting: Any = None
    for each in encoded:
        encoding = encoding_named(each.encoding, where)
        params = encoding.parse(each.params, target, where)
        specs = encoding.parts(params, target)
        parts = {spec.name: each.parts[spec.name].reshape(-1).view(np.uint8).view(spec.item) for spec in specs}
        opened = encoding.open(params, target, parts, where)
        if encoding.adds(params):
            additive.append(opened)
        else:
            rewriting = opened
    return Change(additive, rewriting)


def stats_of(pair: Pair, made: Array) -> tuple[dict[str, int | bytes], float | None]:
    """Figures for reports (manifest.md, "stats"): how far the tensor moved and how much of that is kept."""
    changed = int(np.count_nonzero(made != pair.converted))
    dtype = dtype_named(pair.kind.dtype)
    if not (dtype.is_arithmetic and pair.start.dtype.is_arithmetic):
        return {"changed": changed}, None
    energy = lost = along = 0.0
    for run in encoders.runs(made.size):  # in runs, so that float64 copies of a large tensor never exist whole
        start = bits_to_float64(pair.start.bits[run], pair.start.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = bits_to_float64(pair.wanted[run], dtype) - start
            kept = bits_to_float64(made[run], dtype) - start
            energy += float(np.sum(delta * delta))
            lost += float(np.sum((kept - delta) ** 2))
            along += float(np.sum(kept * delta))
    if not np.isfinite([energy, lost, along]).all() or energy == 0:
        return {"changed": changed}, None
    figures = {"error": lost / energy, "norm": energy**0.5, "projection": along / energy}
    return {"changed": changed, **{key: _float32(value) for key, value in figures.items()}}, lost / energy
