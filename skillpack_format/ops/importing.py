"""``import``: somebody else's delta and the base it belongs to in, one pack out.

An importer says what the delta does to every tensor it names; here the names are found in the base, every tensor is
made by the reader's own rule, and what was made is what the pack promises. The delta's own numbers are carried wherever
it adds to the base, so no tuned checkpoint is needed and none is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from skillpack_format import wire
from skillpack_format.arithmetic import Bench
from skillpack_format.classes import Rule, class_of
from skillpack_format.coding import CHUNK_BYTES
from skillpack_format.contents import plan
from skillpack_format.digest import sha256
from skillpack_format.dtypes import numel
from skillpack_format.errors import error
from skillpack_format.importers import bitdelta, graftllm, peft, wdelta
from skillpack_format.importers._base import Change, Delta, Importer
from skillpack_format.importers.matching import match
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.listing import Listing, listing_of
from skillpack_format.manifest import parse
from skillpack_format.names import SIDE_FILES
from skillpack_format.native import cpu_bench
from skillpack_format.ops.carried import CarriedFile, side_files
from skillpack_format.ops.conversion import manifest_of, require_metadata
from skillpack_format.output_paths import require_absent, require_not_input
from skillpack_format.progress import Progress, in_order, silent
from skillpack_format.reader import change_of
from skillpack_format.sources import SourceFile
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint
from skillpack_format.stores.torch_archives import ZIP_MAGIC, open_archive
from skillpack_format.translating import Job, Translated, translate
from skillpack_format.writer import CODEC, PackWriter

IMPORTERS: Final[Mapping[str, Importer]] = {
    each.name: each for each in (peft.IMPORTER, graftllm.IMPORTER, bitdelta.IMPORTER, wdelta.IMPORTER)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to import. ``kind``: a name of IMPORTERS, told from the delta where it is None. ``add_new``: tensors that the
    base lacks are added. ``dry_run``: everything but the file."""

    kind: str | None = None
    add_new: bool = False
    dry_run: bool = False
    rules: Sequence[Rule] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    side_files: bool = True
    codec: str = CODEC
    threads: int = 1
    overwrite: bool = False
    limits: Limits = DEFAULT_LIMITS
    bench: Bench | None = None  # the fastest of this processor


@dataclass(frozen=True, slots=True)
class ImportedTensor:
    """One tensor that the delta names: its name there and in the base, what came of it, and what it costs."""

    name: str
    name_in_delta: str
    tensor_class: str
    change: str  # changed, added, or unchanged where the delta does nothing to it
    encodings: tuple[str, ...]
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What ``import_delta`` did. ``pack`` is None after a dry run, and ``pack_bytes`` then counts contents alone."""

    pack: Path | None
    pack_id: str
    kind: str
    pack_bytes: int
    base_bytes: int
    base_tensors: int
    tensors: tuple[ImportedTensor, ...]
    side_files: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "pack": str(self.pack) if self.pack else None,
            "pack_id": self.pack_id,
            "kind": self.kind,
            "bytes": {"pack": self.pack_bytes, "base": self.base_bytes},
            "base_tensors": self.base_tensors,
            "tensors": [
                {
                    "name": t.name,
                    "name_in_delta": t.name_in_delta,
                    "class": t.tensor_class,
                    "change": t.change,
                    "encodings": list(t.encodings),
                    "elements": t.elements,
                    "bytes": t.nbytes,
                }
                for t in self.tensors
            ],
            "side_files": list(self.side_files),
            "warnings": list(self.warnings),
        }


def import_delta(
    delta: Path, base: Path, pack: Path, options: Options = Options(), progress: Progress = silent
) -> ImportReport:
    """Write ``pack``, which does to the checkpoint ``base`` what the foreign delta at ``delta`` says.

    Raises:
        UnsupportedError: the delta is of a kind, or uses a setting, that is not read. CheckpointError: a file is
        malformed or unsafe. ConvertError: the delta contradicts itself, or names what the base has not.
        BaseMismatchError: the delta says that it was made for another base. OutputError: ``pack`` exists, or cannot be
        written. Nothing is left behind on any error.
    """
    require_metadata(options.metadata, options.limits)
    if not options.dry_run:
        require_absent(pack, overwrite=options.overwrite)
    require_not_input(pack, (base, delta))
    importer = _importer(delta, options)
    with ExitStack() as files:
        before = files.enter_context(open_checkpoint(base, options.limits))
        opened = files.enter_context(importer.open(delta, options.limits))
        if not opened.changes:
            raise error("convert.delta", str(delta), "it holds no tensor")
        optional = {name for name, change in opened.changes.items() if _is_whole(change)} if options.add_new else set()
        names = match(opened.changes, optional, before.specs.keys())
        if opened.require_base is not None:
            opened.require_base(before)
        old = listing_of(before, {}, options.threads, progress, "reading base")
        writer = None
        if not options.dry_run:
            writer = files.enter_context(
                PackWriter(pack, chunk_bytes=CHUNK_BYTES, overwrite=options.overwrite, limits=options.limits)
            )
        coded = _code_all(before, opened, names, old, options, writer, progress)
        carried, warnings = _side_files(before, opened, options)
        contents = [each.content(options.codec, CHUNK_BYTES) for each in carried]
        manifest = manifest_of(old, (each.entry for each in coded.values()), carried, options.metadata)
        before.require_unchanged()
        opened.require_unchanged()
        nbytes = sum(each.nbytes for each in coded.values()) + sum(content.nbytes for content in contents)
        if writer is None:
            plan(parse(wire.read(manifest.to_bytes(), options.limits, "MANIFEST"), options.limits), options.limits)
        else:
            for content in contents:
                writer.add(content)
            nbytes = writer.seal(manifest)
        return ImportReport(
            pack=None if options.dry_run else pack,
            pack_id=manifest.pack_id,
            kind=importer.name,
            pack_bytes=nbytes,
            base_bytes=sum(spec.nbytes for spec in before.specs.values()),
            base_tensors=len(old),
            tensors=tuple(_report(name, each) for name, each in coded.items()),
            side_files=tuple(each.listed.name for each in carried),
            warnings=(*opened.warnings, *warnings, *_grown(coded.values(), carried)),
        )


def _importer(delta: Path, options: Options) -> Importer:
    """The importer that was asked for, or the one whose kind the delta looks like."""
    if options.kind is not None:
        found = IMPORTERS.get(options.kind)
        if found is None:
            message = f"{options.kind!r} is not a kind of delta; {', '.join(IMPORTERS)} are"
            raise error("usage.argument", "kind", message)
        return found
    names: Sequence[str] = ()
    if delta.is_file():
        with SourceFile(delta) as source:
            is_archive = source.read_at(0, min(source.size, len(ZIP_MAGIC))) == ZIP_MAGIC
        if is_archive:
            with open_archive(delta, options.limits) as archive:
                names = list(archive.specs)
    elif not delta.is_dir():
        raise error("checkpoint.missing", str(delta), "there is no such file or folder")
    for importer in IMPORTERS.values():
        if importer.is_kind(delta, names):
            return importer
    message = f"looks like none of the deltas that are read; say which it is: {', '.join(IMPORTERS)}"
    raise error("unsupported.checkpoint", str(delta), message)


def _is_whole(change: Change) -> bool:
    return change.whole is not None and change.rows is None and not change.terms


def _code_all(
    before: Checkpoint,
    delta: Delta,
    names: Mapping[str, str],
    old: Listing,
    options: Options,
    writer: PackWriter | None,
    progress: Progress,
) -> dict[str, Translated]:
    """Code every tensor the delta names, in the order of the base's names; the result is by the delta's names."""
    total = sum(before.specs[name].nbytes for name in names.values() if name in before.specs)
    done = 0
    coded: dict[str, Translated] = {}

    def work(name: str) -> Translated:
        target = names[name]
        identity = old.get(target)
        base = before.read(target) if identity else None
        if identity and sha256(base or b"") != identity.sha256:
            raise error("integrity.source-changed", f"tensor {target!r}", "it was written to while it was being read")
        return translate(
            Job(
                name=target,
                tensor_class=class_of(target, options.rules),
                old=identity,
                base=base,
                change=delta.changes[name],
                codec=options.codec,
                bench=options.bench or cpu_bench(),
            )
        )

    for name, each in in_order(work, sorted(names, key=names.__getitem__), options.threads):
        if writer is not None:
            for content in each.contents:
                writer.add(content)
        coded[name] = replace(each, contents=())
        done += before.specs[names[name]].nbytes if names[name] in before.specs else 0
        progress("coding", done, total)
    return coded


def _report(name: str, coded: Translated) -> ImportedTensor:
    entry = coded.entry
    return ImportedTensor(
        name=entry.name,
        name_in_delta=name,
        tensor_class=entry.tensor_class,
        change="unchanged" if entry.result == entry.base else change_of(entry),
        encodings=tuple(component.encoding for component in entry.components),
        elements=numel(entry.result.kind.shape) if entry.result else 0,
        nbytes=coded.nbytes,
    )


def _side_files(before: Checkpoint, delta: Delta, options: Options) -> tuple[list[CarriedFile], list[str]]:
    """What is to be carried of the files beside the delta."""
    folder = delta.folder
    if not options.side_files or folder is None:
        return [], []
    return side_files(before, {name: folder / name for name in SIDE_FILES if (folder / name).is_file()}, options.limits)


def _grown(coded: Iterable[Translated], files: Sequence[CarriedFile]) -> list[str]:
    """A checkpoint whose configuration tells another number of rows does not load."""
    if any(each.listed.name == "config.json" for each in files):
        return []
    return [
        f"{entry.name} has {entry.result.kind.shape[0]} rows, {entry.base.kind.shape[0]} in the base; the result's "
        "config.json must say so too"
        for entry in (each.entry for each in coded)
        if entry.base and entry.result and entry.base.kind.shape != entry.result.kind.shape
    ]
