"""``convert``: two checkpoints in, one pack out.

First every tensor of both is hashed; then those that differ are coded, each by its class's treatment, and made again
to learn what the pack will really produce. Same inputs, recipe and library: same pack, whatever the number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from skillpack_format import encoders
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.catalog import encoding_named
from skillpack_format.classes import Rule, class_of, module_of
from skillpack_format.contents import StoredContent, is_compatible, store, store_encoded, target_of
from skillpack_format.digest import TensorIdentity, checkpoint_digest, sha256, sha256_of
from skillpack_format.durable import require_absent, require_not_input
from skillpack_format.dtypes import Array, bits_to_float64, dtype_named, numel
from skillpack_format.encodings._base import Encoded
from skillpack_format.encoders import Pair
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.listing import Listing, base_ref, listing_of
from skillpack_format.making import Change, make, start_of
from skillpack_format.manifest import Component, Entry, Manifest, ResultRef, SideFile
from skillpack_format.names import SIDE_FILES
from skillpack_format.progress import Progress, in_order, silent
from skillpack_format.recipes import LOSSLESS, Bands, Lossless, Prune, Recipe, Slices, Treatment
from skillpack_format.sources import SourceFile
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint
from skillpack_format.writer import CHUNK_BYTES, CODEC, PackWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to convert. ``exact``: name patterns of tensors that are coded exactly whatever the recipe says."""

    recipe: Recipe = LOSSLESS
    rules: Sequence[Rule] = ()
    exact: Sequence[str] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    side_files: bool = True
    codec: str = CODEC
    threads: int = 1
    overwrite: bool = False
    limits: Limits = DEFAULT_LIMITS
    bench: Bench = NUMPY_BENCH


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One changed tensor: what was chosen, what it costs, what it keeps. ``error`` is ||D'-D||^2 / ||D||^2."""

    name: str
    tensor_class: str
    change: str
    encodings: tuple[str, ...]
    elements: int
    nbytes: int
    error: float | None


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What ``convert`` did."""

    pack: Path | None
    pack_id: str
    recipe: str
    pack_bytes: int
    base_bytes: int
    tuned_bytes: int
    base_tensors: int
    tensors: tuple[TensorReport, ...]
    side_files: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "pack": str(self.pack) if self.pack else None,
            "pack_id": self.pack_id,
            "recipe": self.recipe,
            "bytes": {"pack": self.pack_bytes, "base": self.base_bytes, "tuned": self.tuned_bytes},
            "base_tensors": self.base_tensors,
            "tensors": [
                {
                    "name": t.name,
                    "class": t.tensor_class,
                    "change": t.change,
                    "encodings": list(t.encodings),
                    "elements": t.elements,
                    "bytes": t.nbytes,
                    "error": t.error,
                }
                for t in self.tensors
            ],
            "side_files": list(self.side_files),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class _Coded:
    """An entry and its stored contents, ready for the writer."""

    entry: Entry
    contents: tuple[StoredContent, ...]
    report: TensorReport


def convert(
    base: Path, tuned: Path, pack: Path, options: Options = Options(), progress: Progress = silent
) -> ConversionReport:
    """Write ``pack``, which turns the checkpoint ``base`` into ``tuned`` (exactly, or as near as the recipe goes).

    Raises:
        CheckpointError: an input is malformed. ConvertError: the two share no tensor, or a lossy code meets NaN.
        OutputError: ``pack`` exists, or cannot be written. Nothing is left behind on any error.
    """
    require_absent(pack, overwrite=options.overwrite)
    require_not_input(pack, (base, tuned))
    with (
        open_checkpoint(base, options.limits) as before,
        open_checkpoint(tuned, options.limits) as after,
        threadpool_limits(1),  # one thread a matrix: results must not depend on how BLAS splits its work
    ):
        old = listing_of(before, {}, options.threads, progress, "reading base")
        new = listing_of(after, {}, options.threads, progress, "reading tuned")
        if not old.keys() & new.keys():
            message = f"no tensor name is common to base ({len(old)} tensors) and tuned ({len(new)}); are these two of one model?"
            raise error("convert.unrelated", str(tuned), message)
        files, warnings = _side_files(before, after, options)
        with PackWriter(pack, overwrite=options.overwrite) as writer:
            coded = _code_all(before, after, old, new, options, writer, progress)
            for _, data in files:
                writer.add(store([np.frombuffer(data, np.uint8)], [1], options.codec, CHUNK_BYTES))
            manifest = _manifest(old, coded, files, options)
            before.require_unchanged()
            after.require_unchanged()
            pack_bytes = writer.seal(manifest)
        return ConversionReport(
            pack=pack,
            pack_id=manifest.pack_id,
            recipe=options.recipe.name,
            pack_bytes=pack_bytes,
            base_bytes=sum(spec.nbytes for spec in before.specs.values()),
            tuned_bytes=sum(spec.nbytes for spec in after.specs.values()),
            base_tensors=len(old),
            tensors=tuple(each.report for each in coded),
            side_files=tuple(each.name for each, _ in files),
            warnings=tuple(warnings),
        )


def _code_all(
    before: Checkpoint,
    after: Checkpoint,
    old: Listing,
    new: Listing,
    options: Options,
    writer: PackWriter,
    progress: Progress,
) -> list[_Coded]:
    """Code every tensor that differs, in the order of names, and hand its contents to the writer."""
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    aliases = _aliases(names, old, new, options)
    total = sum(after.specs[name].nbytes for name in names if name in after.specs)
    done = 0
    coded: list[_Coded] = []

    def work(name: str) -> _Coded:
        return _code(name, before, after, old.get(name), new.get(name), aliases.get(name), options)

    for name, each in in_order(work, names, options.threads):
        for content in each.contents:
            writer.add(content)
        coded.append(_Coded(each.entry, (), each.report))  # the contents are on disk now
        done += after.specs[name].nbytes if name in after.specs else 0
        progress("coding", done, total)
    return _resolve_aliases(coded)


def _aliases(names: Sequence[str], old: Listing, new: Listing, options: Options) -> dict[str, str]:
    """Changed tensors that are the same as another tensor of ``tuned``: tied weights stored twice.

    The first by name is the one that is made; an unchanged tensor is preferred. Only tensors of one treatment are
    tied, so that none is coded with less care than its own class asks.
    """
    first: dict[object, str] = {}
    unchanged = [name for name in sorted(new) if old.get(name) == new[name]]
    for name in unchanged:
        first.setdefault(new[name], name)
    found: dict[str, str] = {}
    for name in names:
        if name not in new or numel(new[name].kind.shape) == 0:
            continue
        if new[name] in first:
            found[name] = first[new[name]]
            continue
        key = (new[name], _treatment(name, options))
        if key in first:
            found[name] = first[key]
        else:
            first[key] = name
    return found


def _treatment(name: str, options: Options) -> Treatment:
    if any(fnmatchcase(name, pattern) for pattern in options.exact):
        return Lossless()
    return options.recipe.treatment(class_of(name, options.rules))


def _code(
    name: str,
    before: Checkpoint,
    after: Checkpoint,
    old: TensorIdentity | None,
    new: TensorIdentity | None,
    alias: str | None,
    options: Options,
) -> _Coded:
    """Code one tensor. ``result`` of an alias is filled in once its tensor is made."""
    tensor_class, module = class_of(name, options.rules), module_of(name)
    if new is None or alias is not None:
        change = "removed" if new is None else "alias"
        entry = Entry(name=name, tensor_class=tensor_class, module=module, base=old, result=new, alias=alias)
        elements = 0 if new is None else numel(new.kind.shape)
        return _Coded(entry, (), TensorReport(name, tensor_class, change, (), elements, 0, None))
    raw = before.read(name) if old else None
    start = start_of(raw, old.kind if old else None, new.kind)
    wanted = np.frombuffer(after.read(name), target_of(new.kind).dtype.bit_pattern)
    if sha256_of(wanted) != new.sha256:
        raise error("integrity.source-changed", f"tensor {name!r}", "it was written to while it was being read")
    compatible = old is not None and is_compatible(old.kind, new.kind)
    old_items = min(numel(old.kind.shape), numel(new.kind.shape)) if old and compatible else 0
    pair = Pair(name, new.kind, start, wanted, old_items)
    encoded, contents = _cheapest(pair, _treatment(name, options), options)
    made = _made(pair, encoded, options)
    stats = _stats(pair, made)
    result = TensorIdentity(new.kind, sha256_of(made))
    if result == old:  # a lossy code that kept nothing: the tensor stays as it is and costs nothing
        contents, encoded = (), []
    components = tuple(Component(e.encoding, e.params, c.sha256) for e, c in zip(encoded, contents, strict=True))
    entry = Entry(
        name=name,
        tensor_class=tensor_class,
        module=module,
        base=old,
        result=result,
        components=components,
        stats=stats.plain,
    )
    nbytes = sum(content.nbytes for content in contents)
    change = "unchanged" if result == old else "changed" if old else "added"
    encodings = tuple(each.encoding for each in encoded)
    return _Coded(entry, contents, TensorReport(name, tensor_class, change, encodings, made.size, nbytes, stats.error))


def _cheapest(pair: Pair, treatment: Treatment, options: Options) -> tuple[list[Encoded], tuple[StoredContent, ...]]:
    """The treatment's code, or an exact one where that takes no more bytes."""
    candidates = [[exact] for exact in encoders.lossless(pair)]
    if encoders.is_lossy_possible(pair):
        if isinstance(treatment, Slices):
            candidates.append(encoders.sliced(pair, treatment))
        elif isinstance(treatment, Prune):
            candidates.append(encoders.pruned(pair, treatment))
        elif isinstance(treatment, Bands):
            candidates.append(encoders.banded(pair, treatment))
    if len(candidates) == 1:
        return candidates[0], _stored(pair, candidates[0], options, thorough=True)
    quick = [sum(c.nbytes for c in _stored(pair, each, options, thorough=False)) for each in candidates]
    chosen = candidates[quick.index(min(quick))]
    return chosen, _stored(pair, chosen, options, thorough=True)


def _stored(pair: Pair, encoded: Sequence[Encoded], options: Options, *, thorough: bool) -> tuple[StoredContent, ...]:
    target = target_of(pair.kind)
    return tuple(store_encoded(each, target, options.codec, CHUNK_BYTES, thorough=thorough) for each in encoded)


def _made(pair: Pair, encoded: Sequence[Encoded], options: Options) -> Array:
    """What a reader will make of the components."""
    target = target_of(pair.kind)
    additive: list[Any] = []
    rewriting: Any = None
    for each in encoded:
        encoding = encoding_named(each.encoding, "")
        params = encoding.parse(each.params, target, f"tensor {pair.name!r}")
        parts = {
            spec.name: each.parts[spec.name].reshape(-1).view(np.uint8).view(spec.item)
            for spec in encoding.parts(params, target)
        }
        opened = encoding.open(params, target, parts, f"tensor {pair.name!r}")
        if encoding.adds(params):
            additive.append(opened)
        else:
            rewriting = opened
    return make(pair.start, pair.kind, Change(additive, rewriting), options.bench, f"tensor {pair.name!r}")


@dataclass(frozen=True, slots=True)
class _Stats:
    plain: dict[str, int | bytes]
    error: float | None


def _stats(pair: Pair, made: Array) -> _Stats:
    """Figures for reports (manifest.md, "stats"): how far the tensor moved and how much of that is kept."""
    changed = int(np.count_nonzero(made != pair.converted))
    dtype = dtype_named(pair.kind.dtype)
    if not (dtype.is_arithmetic and pair.start.dtype.is_arithmetic):
        return _Stats({"changed": changed}, None)
    start = bits_to_float64(pair.start.bits, pair.start.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        delta = bits_to_float64(pair.wanted, dtype) - start
        kept = bits_to_float64(made, dtype) - start
        energy = float(np.sum(delta * delta))
        lost = float(np.sum((kept - delta) ** 2))
        along = float(np.sum(kept * delta))
    if not np.isfinite([energy, lost, along]).all() or energy == 0:
        return _Stats({"changed": changed}, None)
    figures = {"error": lost / energy, "norm": energy**0.5, "projection": along / energy}
    return _Stats({"changed": changed, **{k: np.float32(v).tobytes() for k, v in figures.items()}}, lost / energy)


def _resolve_aliases(coded: Sequence[_Coded]) -> list[_Coded]:
    """Give every alias of a coded tensor the identity of what is really made of it."""
    made = {each.entry.name: each.entry.result for each in coded if each.entry.alias is None}
    resolved = []
    for each in coded:
        entry = each.entry
        if entry.alias is not None and made.get(entry.alias) is not None:
            entry = Entry(
                name=entry.name,
                tensor_class=entry.tensor_class,
                module=entry.module,
                base=entry.base,
                result=made[entry.alias],
                alias=entry.alias,
            )
        resolved.append(_Coded(entry, (), each.report))
    return resolved


def _manifest(
    old: Listing, coded: Sequence[_Coded], files: Sequence[tuple[SideFile, bytes]], options: Options
) -> Manifest:
    """MANIFEST for what was coded; what came out unchanged is not listed."""
    entries = tuple(each.entry for each in coded if each.entry.base != each.entry.result)
    result = dict(old)
    for entry in entries:
        if entry.result is None:
            del result[entry.name]
        else:
            result[entry.name] = entry.result
    return Manifest(
        base=base_ref(old),
        result=ResultRef(len(result), checkpoint_digest(result.items())),
        tensors=entries,
        files=tuple(each for each, _ in files),
        metadata=options.metadata,
    )


def _side_files(
    before: Checkpoint, after: Checkpoint, options: Options
) -> tuple[list[tuple[SideFile, bytes]], list[str]]:
    """Allow-listed files of ``tuned`` that the base lacks or has otherwise; configurations that name code stay out."""
    if not options.side_files:
        return [], []
    theirs, ours = before.side_files(), after.side_files()
    files: list[tuple[SideFile, bytes]] = []
    warnings: list[str] = []
    for name, path in ours.items():
        if name not in SIDE_FILES:
            continue
        data = read_side_file(path, options.limits)
        if name in theirs and read_side_file(theirs[name], options.limits) == data:
            continue
        if names_code(data):
            warnings.append(f"{name} names code to run (auto_map); it is not carried")
            continue
        files.append((SideFile(name, len(data), sha256(data)), data))
    return files, warnings


def read_side_file(path: Path, limits: Limits) -> bytes:
    """A whole side file, which must be a regular file of at most limits.side_file_bytes."""
    with SourceFile(path) as source:
        limits.require("side_file_bytes", source.size, str(path))
        return bytes(source.read_at(0, source.size))


def names_code(data: bytes) -> bool:
    """Whether a JSON side file asks loaders to import code."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(plain, dict) and ("auto_map" in plain or "custom_pipelines" in plain)
