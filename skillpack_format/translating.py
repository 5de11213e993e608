"""Translating one change of a foreign delta: from what an importer says to an entry of MANIFEST and stored contents.

What a delta adds is carried by components that add the same numbers; what it replaces, by whatever is exact and
smallest. The result is made by the reader's own rule, so that the digest in MANIFEST is a fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skillpack_format import encoders
from skillpack_format.arithmetic import Bench
from skillpack_format.coding import CHUNK_BYTES, change_of, entry_of, stats_of
from skillpack_format.contents import StoredContent, is_compatible, store_encoded, target_of
from skillpack_format.digest import Bytes, TensorIdentity, TensorKind, sha256_of
from skillpack_format.dtypes import Array, convert_bits, dtype_named, numel
from skillpack_format.encoders import Pair
from skillpack_format.encodings import sparse
from skillpack_format.encodings._base import Encoded
from skillpack_format.errors import error, located
from skillpack_format.importers._base import Change, Rows, Source
from skillpack_format.making import Start, make, start_of
from skillpack_format.manifest import Component, Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One tensor that a delta changes: its name and class, what it is in the base, and the change."""

    name: str
    tensor_class: str
    old: TensorIdentity | None
    base: Bytes | None
    change: Change
    codec: str
    bench: Bench

    @property
    def where(self) -> str:
        return f"tensor {self.name!r}"


@dataclass(frozen=True, slots=True)
class Translated:
    """An entry and its stored contents in order, ``nbytes`` together. Where the delta does nothing, its base is its
    result and it need not be listed."""

    entry: Entry
    contents: tuple[StoredContent, ...]
    nbytes: int


def translate(job: Job) -> Translated:
    """One tensor: what it becomes, and the components that make it. Reads the delta only; runs in any thread.

    Raises:
        ConvertError: the change does not fit the base's tensor. BaseMismatchError: it is for another base.
    """
    old, change, where = job.old, job.change, job.where
    if change.original is not None and old is not None:
        _require_original(change.original, job.base or b"", old.kind, where)
    kind = _result_kind(change, old.kind if old else None, where)
    target = target_of(kind)
    start = start_of(job.base, old.kind if old else None, kind)
    with located(where):
        replaced = _replaced(change, start, kind)
        native = [each for term in change.terms for each in term.components(target, "")]
    made = _made(Start(replaced, target.dtype), kind, native, job.bench, where)
    wanted = made if change.wanted is None else change.wanted(start.bits, kind)
    result = TensorIdentity(kind, sha256_of(wanted))
    if result == old:
        return Translated(entry_of(job, result, (), {}), (), 0)
    old_items = min(numel(old.kind.shape), numel(kind.shape)) if old else 0
    pair = Pair(job.name, kind, start, wanted, old_items)
    adds_to_base = np.array_equal(replaced, pair.converted)
    encoded, contents = _choose(pair, native if adds_to_base else [], made, job)
    components = tuple(Component(e.encoding, e.params, c.sha256) for e, c in zip(encoded, contents, strict=True))
    stats, _ = stats_of(pair, wanted)
    moved = {key: value for key, value in stats.items() if key in ("changed", "norm")}
    return Translated(entry_of(job, result, components, moved), contents, _nbytes(contents))


def _choose(
    pair: Pair, native: list[Encoded], made: Array, job: Job
) -> tuple[list[Encoded], tuple[StoredContent, ...]]:
    """The delta's own terms where they make the result of START; else whatever is exact and smallest."""
    if not pair.wanted.size:
        return [], ()
    candidates = [[*native, *_corrections(pair, made)]] if native else []
    if job.change.wanted is not None or not candidates:
        candidates += [[exact] for exact in encoders.lossless(pair)]
    chosen = candidates[0]
    if len(candidates) > 1:
        sizes = [_nbytes(_stored(pair, each, job, thorough=False)) for each in candidates]
        chosen = candidates[sizes.index(min(sizes))]
    return chosen, _stored(pair, chosen, job, thorough=True)


def _corrections(pair: Pair, made: Array) -> list[Encoded]:
    """The elements that must be otherwise than ``made``."""
    positions = np.flatnonzero(made != pair.wanted)
    if not positions.size:
        return []
    target = target_of(pair.kind)
    return [sparse.placed(positions, pair.wanted[positions], target.dtype, target.numel, "replace")]


def _stored(pair: Pair, encoded: Sequence[Encoded], job: Job, *, thorough: bool) -> tuple[StoredContent, ...]:
    target = target_of(pair.kind)
    return tuple(store_encoded(each, target, job.codec, CHUNK_BYTES, thorough=thorough) for each in encoded)


def _nbytes(contents: Sequence[StoredContent]) -> int:
    return sum(content.nbytes for content in contents)


def _result_kind(change: Change, old: TensorKind | None, where: str) -> TensorKind:
    """The base's kind, with the rows that a whole tensor of the delta may have more or fewer."""
    whole = change.whole
    if old is None:
        if whole is None:
            raise error("convert.unmatched", where, "the base has no tensor to add to")
        return whole.kind
    if whole is None:
        if change.terms and change.wanted is None and not dtype_named(old.dtype).is_arithmetic:
            raise error("unsupported.operation", where, f"{old.dtype} cannot be added to; F32, F16 and BF16 can")
        return old
    kind = TensorKind(old.dtype, whole.kind.shape)
    if not is_compatible(old, kind):
        message = f"the delta has it as {whole.kind}, the base as {old}; only the number of rows may differ"
        raise error("convert.delta", where, message)
    return kind


def _replaced(change: Change, start: Start, kind: TensorKind) -> Array:
    """START in the result's dtype, with the tensor or the rows that the delta replaces."""
    bits = _rounded(change.whole, kind) if change.whole else start.bits
    return _with_rows(change.rows, bits, kind) if change.rows else bits


def _rounded(source: Source, kind: TensorKind) -> Array:
    """The delta's values in the dtype of the result."""
    found, due = source.spec.dtype, dtype_named(kind.dtype)
    if found == due:
        return source.bits()
    if not (found.is_arithmetic and due.is_arithmetic):
        raise error(
            "convert.delta", f"tensor {source.key!r} of the delta", f"it is {found.name}, the base's {due.name}"
        )
    return convert_bits(source.bits(), found, due)


def _with_rows(rows: Rows, bits: Array, kind: TensorKind) -> Array:
    shape = rows.values.spec.shape
    if (
        len(kind.shape) != 2
        or shape != (len(rows.indices), kind.shape[1])
        or max(rows.indices, default=-1) >= kind.shape[0]
    ):
        message = f"{list(shape)} for {len(rows.indices)} rows of {list(kind.shape)}"
        raise error("convert.delta", f"tensor {rows.values.key!r} of the delta", message)
    table = bits.reshape(kind.shape).copy()
    table[list(rows.indices)] = _rounded(rows.values, kind).reshape(shape)
    return table.reshape(-1)


def _require_original(source: Source, base: Bytes, kind: TensorKind, where: str) -> None:
    """Refuse a base whose tensor is not the one the delta holds for it (base.content)."""
    held, dtype = source.spec.dtype, dtype_named(kind.dtype)
    bits = np.frombuffer(base, dtype.bit_pattern)
    is_same = source.kind.shape == kind.shape and (held == dtype or (held.is_arithmetic and dtype.is_arithmetic))
    if is_same and held != dtype:
        bits = convert_bits(bits, dtype, held)
    if not is_same or not np.array_equal(bits, source.bits()):
        raise error("base.content", where, "the delta was made for another base: it holds other values for this tensor")


def _made(start: Start, kind: TensorKind, encoded: Sequence[Encoded], bench: Bench, where: str) -> Array:
    """What a reader makes of additive components."""
    if not encoded:
        return start.bits
    return make(start, kind, change_of(kind, encoded, where), bench, where)
