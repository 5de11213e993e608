"""Coding one tensor: from its bytes in base and tuned to an entry of MANIFEST and stored contents.

What the components make is made here too, by the reader's own rule, so that the digest in MANIFEST is a fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from skillpack_format import encoders
from skillpack_format.arithmetic import Bench
from skillpack_format.catalog import encoding_named
from skillpack_format.classes import module_of
from skillpack_format.contents import StoredContent, is_compatible, store_encoded, target_of
from skillpack_format.digest import Bytes, TensorIdentity, sha256_of
from skillpack_format.dtypes import Array, bits_to_float64, dtype_named, numel
from skillpack_format.encoders import Pair
from skillpack_format.encodings._base import Encoded
from skillpack_format.making import Change, make, start_of
from skillpack_format.manifest import Component, Entry
from skillpack_format.recipes import Bands, Prune, Slices, Treatment

CHUNK_BYTES: Final = 1 << 20  # small enough to decode in parallel, large enough for zstd


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
    bench: Bench


@dataclass(frozen=True, slots=True)
class Coded:
    """An entry, its stored contents in order, and ||D'-D||^2 / ||D||^2 where that is a number."""

    entry: Entry
    contents: tuple[StoredContent, ...]
    error: float | None

    @property
    def nbytes(self) -> int:
        return sum(content.nbytes for content in self.contents)


def code(job: Job) -> Coded:
    """Code one tensor by its treatment, or exactly where that takes no more bytes. Pure; runs in any thread.

    A lossy code that keeps nothing of a change gives an entry whose result is its base: it need not be listed.
    """
    old, new = job.old, job.new
    start = start_of(job.base, old.kind if old else None, new.kind)
    wanted = np.frombuffer(job.tuned, target_of(new.kind).dtype.bit_pattern)
    is_resized = old is not None and is_compatible(old.kind, new.kind)
    old_items = min(numel(old.kind.shape), numel(new.kind.shape)) if old and is_resized else 0
    pair = Pair(job.name, new.kind, start, wanted, old_items)
    encoded, contents = _cheapest(pair, job)
    made = _made(pair, encoded, job.bench)
    stats, error = _stats(pair, made)
    result = TensorIdentity(new.kind, sha256_of(made))
    if result == old:
        encoded, contents = [], ()
    entry = Entry(
        name=job.name,
        tensor_class=job.tensor_class,
        module=module_of(job.name),
        base=old,
        result=result,
        components=tuple(Component(e.encoding, e.params, c.sha256) for e, c in zip(encoded, contents, strict=True)),
        stats=stats or None,
    )
    return Coded(entry, contents, error)


def _cheapest(pair: Pair, job: Job) -> tuple[list[Encoded], tuple[StoredContent, ...]]:
    """The candidate that is smallest once stored; quick compression is near enough to tell."""
    if not pair.wanted.size:
        return [], ()
    candidates = [[exact] for exact in encoders.lossless(pair)]
    if encoders.is_lossy_possible(pair):
        candidates += _lossy(pair, job.treatment)
    sizes = [sum(content.nbytes for content in _stored(pair, each, job, thorough=False)) for each in candidates]
    chosen = candidates[sizes.index(min(sizes))]
    return chosen, _stored(pair, chosen, job, thorough=True)


def _lossy(pair: Pair, treatment: Treatment) -> list[list[Encoded]]:
    if isinstance(treatment, Slices):
        return [encoders.sliced(pair, treatment)]
    if isinstance(treatment, Prune):
        return [encoders.pruned(pair, treatment)]
    if isinstance(treatment, Bands):
        return [encoders.banded(pair, treatment)]
    return []


def _stored(pair: Pair, encoded: Sequence[Encoded], job: Job, *, thorough: bool) -> tuple[StoredContent, ...]:
    target = target_of(pair.kind)
    return tuple(store_encoded(each, target, job.codec, CHUNK_BYTES, thorough=thorough) for each in encoded)


def _made(pair: Pair, encoded: Sequence[Encoded], bench: Bench) -> Array:
    """What a reader will make of the components."""
    target = target_of(pair.kind)
    where = f"tensor {pair.name!r}"
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
    return make(pair.start, pair.kind, Change(additive, rewriting), bench, where)


def _stats(pair: Pair, made: Array) -> tuple[dict[str, int | bytes], float | None]:
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
    return {"changed": changed, **{k: np.float32(v).tobytes() for k, v in figures.items()}}, lost / energy
