"""``convert``: two checkpoints in, one pack out.

First every tensor of both is hashed; then those that differ are coded, each by its class's treatment, and made again
to learn what the pack will really produce. Same inputs, recipe and library: same pack, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from skillpack_format.arithmetic import Bench
from skillpack_format.classes import Rule, class_of, module_of
from skillpack_format.coding import CHUNK_BYTES, Coded, Job
from skillpack_format.digest import checkpoint_digest, sha256
from skillpack_format.dtypes import numel
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.listing import Listing, base_ref, listing_of
from skillpack_format.manifest import Entry, Manifest, ResultRef, parse_metadata
from skillpack_format.native import cpu_bench
from skillpack_format.ops.carried import CarriedFile, layout_of, left_out, side_files
from skillpack_format.ops.chunks import chunk_bytes_of
from skillpack_format.ops.plans import PlanReport, Tensors, at_price, goal_of, make_plan, plan_at_price
from skillpack_format.output_paths import require_absent, require_not_input
from skillpack_format.planning import Budget, Goal, Quality, SettledGoal, Share
from skillpack_format.progress import Progress, in_order, silent
from skillpack_format.reader import change_of
from skillpack_format.recipes import LOSSLESS, Lossless, Planned, Recipe, Treatment
from skillpack_format.records import from_record, record_key, to_record
from skillpack_format.sensitivity import is_table_of_tokens
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint
from skillpack_format.surveying import choose
from skillpack_format.writer import CODEC, PackWriter, pack_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to convert.

    ``goal``: a budget or a bound for a recipe that plans, in place of its own price. ``exact``: name patterns of
    tensors that are coded exactly whatever the recipe says. ``weights``: what a unit of squared error does in a tensor,
    by name, where the caller has measured it. ``layout``: where the result is the folder ``tuned``, exactly, keep what
    gives its files back to the byte (spec/manifest.md, "Layout"); a budget leaves it out.
    """

    recipe: Recipe = LOSSLESS
    goal: Goal | None = None
    rules: Sequence[Rule] = ()
    exact: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    side_files: bool = True
    layout: bool = True
    codec: str = CODEC
    threads: int = 1
    overwrite: bool = False
    limits: Limits = DEFAULT_LIMITS
    bench: Bench | None = None  # the fastest of this processor


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor that differs: what was chosen, what it costs, what it keeps. ``error`` is ||D'-D||^2 / ||D||^2."""

    name: str
    tensor_class: str
    change: str  # changed, added, removed, alias, or unchanged where a lossy code kept nothing
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


def convert(
    base: Path, tuned: Path, pack: Path, options: Options = Options(), progress: Progress = silent
) -> ConversionReport:
    """Write ``pack``, which turns the checkpoint ``base`` into ``tuned`` (exactly, or as near as the recipe goes).

    Raises:
        CheckpointError: an input is malformed. ConvertError: the two share no tensor, or a lossy code meets NaN.
        OutputError: ``pack`` exists, or cannot be written. Nothing is left behind on any error.
    """
    require_metadata(options.metadata, options.limits)
    require_absent(pack, overwrite=options.overwrite)
    require_not_input(pack, (base, tuned))
    goal_of(options.recipe, options.goal, 1 << 62)  # what makes no sense is refused before any work
    with _opened(base, tuned, options, progress) as work:
        before, after, old = work.before, work.after, work.old
        files, warnings = side_files(before, after.side_files(), options.limits) if options.side_files else ([], [])
        if options.side_files:
            warnings += left_out(before, after)
        with PackWriter(
            pack, chunk_bytes=work.chunk_bytes, overwrite=options.overwrite, limits=options.limits
        ) as writer:
            if work.is_planned:
                tensors, goal = _tensors(work, files, partial(_code_once, work, writer), progress), work.goal
                if isinstance(goal, Quality):
                    work.treatments = at_price(tensors, goal)
                else:
                    work.treatments = make_plan(tensors, goal).codings
            coded = _code_all(work, writer, progress)
            manifest = manifest_of(old, (each.entry for each in coded), files, options.metadata)
            parts: list[CarriedFile] = []
            is_exact = manifest.result.digest == checkpoint_digest(work.new.items())
            is_budget = isinstance(options.goal, Budget | Share)
            if options.layout and is_exact and not is_budget and before.is_folder and after.is_folder:
                layout, parts, remarks = layout_of(after, options.limits)
                manifest = replace(manifest, layout=layout)
                warnings += remarks
            for each in (*files, *parts):
                writer.add(each.content(options.codec, work.chunk_bytes))
            before.require_unchanged()
            after.require_unchanged()
            nbytes = writer.seal(manifest)
        return ConversionReport(
            pack=pack,
            pack_id=manifest.pack_id,
            recipe=options.recipe.name,
            pack_bytes=nbytes,
            base_bytes=sum(spec.nbytes for spec in before.specs.values()),
            tuned_bytes=sum(spec.nbytes for spec in after.specs.values()),
            base_tensors=len(old),
            tensors=tuple(_report(each) for each in coded),
            side_files=tuple(each.listed.name for each in files),
            warnings=tuple(warnings),
        )


def require_metadata(metadata: dict[str, str], limits: Limits) -> None:
    """What no reader would accept is refused before any work (usage.argument)."""
    for key, value in metadata.items():
        if not key.isascii() or any("\ud800" <= char <= "\udfff" for char in value):
            raise error("usage.argument", f"metadata {key!r}", "keys are ASCII and values are UTF-8 text")
    parse_metadata(metadata, limits)


class _Work:
    """What is to be done: which tensors differ, which of them are aliases, and the treatment of each."""

    def __init__(self, before: Checkpoint, after: Checkpoint, old: Listing, new: Listing, options: Options) -> None:
        self.before, self.after, self.old, self.new, self.options = before, after, old, new, options
        self.names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        self.aliases = _aliases(self.names, old, new, options)
        self.treatments: Mapping[str, Treatment] = {}  # what a plan gives, in place of the recipe's treatment

    @property
    def coded(self) -> list[str]:
        """The names of tensors that get components."""
        return [name for name in self.names if name in self.new and name not in self.aliases]

    @cached_property
    def is_tied(self) -> bool:
        """Whether no tensor is a head of its own."""
        own = (name for name in self.new if name not in self.aliases)
        return all(class_of(name, self.options.rules) != "head" for name in own)

    @cached_property
    def chunk_bytes(self) -> int:
        """Decoded bytes of the pack's chunks."""
        is_exact = all(isinstance(_treatment(name, self.options), Lossless) for name in self.coded)
        return chunk_bytes_of(self.before, self.after, self.coded) if is_exact else CHUNK_BYTES

    @property
    def goal(self) -> SettledGoal:
        tuned_bytes = sum(spec.nbytes for spec in self.after.specs.values())
        return goal_of(self.options.recipe, self.options.goal, tuned_bytes)

    @property
    def is_planned(self) -> bool:
        return any(isinstance(_treatment(name, self.options), Planned) for name in self.coded)

    def treatment(self, name: str) -> Treatment:
        """What the plan gives, or the recipe where there is none."""
        return self.treatments.get(name) or _treatment(name, self.options)

    def job(self, name: str) -> Job:
        """A tensor with its bytes, read now."""
        old, new = self.old.get(name), self.new[name]
        tuned = self.after.read(name)
        if sha256(tuned) != new.sha256:
            raise error("integrity.source-changed", f"tensor {name!r}", "it was written to while it was being read")
        return Job(
            name=name,
            tensor_class=class_of(name, self.options.rules),
            old=old,
            base=self.before.read(name) if old else None,
            new=new,
            tuned=tuned,
            treatment=self.treatment(name),
            codec=self.options.codec,
            chunk_bytes=self.chunk_bytes,
            bench=self.options.bench or cpu_bench(),
            is_head=self.is_tied and is_table_of_tokens(name),
        )

    def code(self, name: str, treatment: Treatment) -> Coded:
        """Read and code one tensor. ``result`` of an alias is filled in once its tensor is made."""
        alias, new = self.aliases.get(name), self.new.get(name)
        if new is not None and alias is None:
            return choose(replace(self.job(name), treatment=treatment)).coded
        tensor_class, module = class_of(name, self.options.rules), module_of(name)
        entry = Entry(
            name=name, tensor_class=tensor_class, module=module, base=self.old.get(name), result=new, alias=alias
        )
        return Coded(entry, (), None)


def preview(base: Path, tuned: Path, options: Options = Options(), progress: Progress = silent) -> PlanReport:
    """What ``convert`` would do, and why; nothing is written. Raises what ``convert`` raises, output apart."""
    require_metadata(options.metadata, options.limits)
    with _opened(base, tuned, options, progress) as work:
        files, _ = side_files(work.before, work.after.side_files(), options.limits) if options.side_files else ([], [])
        tensors, goal = _tensors(work, files, work.code, progress), work.goal
        return PlanReport(
            plan=plan_at_price(tensors, goal) if isinstance(goal, Quality) else make_plan(tensors, goal),
            recipe=options.recipe.name,
            classes={name: class_of(name, options.rules) for name in work.coded},
            elements={name: numel(work.new[name].kind.shape) for name in work.coded},
            tuned_bytes=sum(spec.nbytes for spec in work.after.specs.values()),
        )


@contextmanager
def _opened(base: Path, tuned: Path, options: Options, progress: Progress) -> Iterator[_Work]:
    """Both checkpoints, hashed and compared."""
    with (
        open_checkpoint(base, options.limits) as before,
        open_checkpoint(tuned, options.limits) as after,
        threadpool_limits(1),  # one thread a matrix: results must not depend on how BLAS splits its work
    ):
        old = listing_of(before, {}, options.threads, progress, "reading base")
        new = listing_of(after, {}, options.threads, progress, "reading tuned")
        if not old.keys() & new.keys():
            message = f"no tensor name is common to base ({len(old)} tensors) and tuned ({len(new)}): not one model"
            raise error("convert.unrelated", str(tuned), message)
        yield _Work(before, after, old, new, options)


def _tensors(
    work: _Work, files: Sequence[CarriedFile], code: Callable[[str, Treatment], Coded], progress: Progress
) -> Tensors:
    """What gets components, for a plan."""
    rest = [work.code(name, Lossless()) for name in work.names if name not in set(work.coded)]
    carried = [each.content(work.options.codec, work.chunk_bytes) for each in files]

    def nbytes(coded: Sequence[Coded]) -> int:
        whole = _resolve_aliases(sorted([*rest, *coded], key=lambda each: each.entry.name))
        manifest = manifest_of(work.old, (each.entry for each in whole), files, work.options.metadata)
        contents = [content for each in whole for content in each.contents]
        return pack_bytes(manifest, [*contents, *carried], work.chunk_bytes)

    return Tensors(
        names=work.coded,
        job=work.job,
        code=code,
        sizes={name: work.after.specs[name].nbytes for name in work.coded},
        pack_bytes=nbytes,
        weights=work.options.weights,
        threads=work.options.threads,
        progress=progress,
    )


def _code_once(work: _Work, writer: PackWriter, name: str, treatment: Treatment) -> Coded:
    """The tensor's code without its chunks, which the writer's journal keeps; what is there is not made again."""
    if name not in work.new or name in work.aliases:
        return work.code(name, treatment)
    key = _key(name, treatment, work)
    record = writer.journal.get(key)
    if record is None:
        coded = work.code(name, treatment)
        for content in coded.contents:
            writer.keep(content)
        record = to_record(coded)
        writer.journal.add(key, record)
    return from_record(record, work.options.limits)


def _code_all(work: _Work, writer: PackWriter, progress: Progress) -> list[Coded]:
    """Code every tensor that differs, in the order of names, and hand its contents to the writer."""
    sizes = {name: work.after.specs[name].nbytes for name in work.names if name in work.after.specs}
    done, total = 0, sum(sizes.values())
    coded: list[Coded] = []

    def code(name: str) -> Coded:
        return _code_once(work, writer, name, work.treatment(name))

    for name, each in in_order(code, work.names, work.options.threads):
        for content in each.contents:
            writer.add(content)
        coded.append(each)
        done += sizes.get(name, 0)
        progress("coding", done, total)
    return _resolve_aliases(coded)


def _key(name: str, treatment: Treatment, work: _Work) -> bytes:
    """Under which key of the journal the code of a tensor is kept."""
    return record_key(
        name=name,
        tensor_class=class_of(name, work.options.rules),
        old=work.old.get(name),
        new=work.new[name],
        treatment=treatment,
        codec=work.options.codec,
        chunk_bytes=work.chunk_bytes,
        bench=work.options.bench or cpu_bench(),
    )


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


def _resolve_aliases(coded: Sequence[Coded]) -> list[Coded]:
    """Give every alias of a coded tensor the identity of what is really made of it."""
    made = {each.entry.name: each.entry.result for each in coded if each.entry.alias is None}
    resolved = []
    for each in coded:
        target = made.get(each.entry.alias or "")
        resolved.append(replace(each, entry=each.entry._replace(result=target)) if target else each)
    return resolved


def manifest_of(
    old: Listing, entries: Iterable[Entry], files: Iterable[CarriedFile], metadata: dict[str, str]
) -> Manifest:
    """MANIFEST for what was coded of the base ``old``, by name; what came out unchanged is not listed."""
    changed = tuple(entry for entry in entries if entry.base != entry.result)
    result = dict(old)
    for entry in changed:
        if entry.result is None:
            del result[entry.name]
        else:
            result[entry.name] = entry.result
    return Manifest(
        base=base_ref(old),
        result=ResultRef(len(result), checkpoint_digest(result.items())),
        tensors=changed,
        files=tuple(each.listed for each in files),
        metadata=metadata,
    )


def _report(coded: Coded) -> TensorReport:
    entry = coded.entry
    return TensorReport(
        name=entry.name,
        tensor_class=entry.tensor_class,
        change="unchanged" if entry.result == entry.base else change_of(entry),
        encodings=tuple(component.encoding for component in entry.components),
        elements=numel(entry.result.kind.shape) if entry.result else 0,
        nbytes=coded.nbytes,
        error=coded.error,
    )
