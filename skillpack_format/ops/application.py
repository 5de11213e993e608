"""``apply``: a base checkpoint and packs in, the checkpoint they make out.

Every base tensor read is hashed on the way, every tensor made is proved by its digest, and the output appears only
when the base as a whole was the right one. No model class is loaded; memory is bounded by the largest tensors in work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from skillpack_format.arithmetic import Bench
from skillpack_format.durable import atomic_folder, atomic_path
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.locks import locked
from skillpack_format.native import cpu_bench
from skillpack_format.ops.chain import Chain
from skillpack_format.ops.folders import (
    FolderLayout,
    SideFileReport,
    base_layout,
    pack_layout,
    side_file_reports,
    side_file_sizes,
    write_side_files,
)
from skillpack_format.output_files import new_file
from skillpack_format.output_paths import require_absent, require_not_input, require_space
from skillpack_format.progress import Meter, Progress, as_done, silent
from skillpack_format.reader import Pack, open_pack
from skillpack_format.signatures import require_signed
from skillpack_format.sources import SourceFile
from skillpack_format.stores.heads import Head
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.shards import ShardWriter, Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to apply.

    ``scale`` other than 1 takes that share of the change of every float tensor that keeps its kind. ``signed_by`` is a
    file with a public key: every pack must have a signature by it, beside it under its name and ``.sig``.
    """

    scale: float = 1.0
    signed_by: Path | None = None
    threads: int = 1
    overwrite: bool = False
    side_files: bool = True
    limits: Limits = DEFAULT_LIMITS
    bench: Bench | None = None  # the fastest of this processor


@dataclass(frozen=True, slots=True)
class ApplicationReport:
    """What ``apply`` did. ``result_digest`` is the checkpoint digest proved, None where a scale made another result.

    ``layout``: the shards and the index are those of tuned's folder, to the byte.
    """

    out: Path | None
    packs: tuple[str, ...]
    tensors: int
    changed: int
    added: int
    removed: int
    nbytes: int
    result_digest: str | None
    layout: bool
    side_files: tuple[SideFileReport, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "out": str(self.out) if self.out else None,
            "packs": list(self.packs),
            "tensors": {"total": self.tensors, "changed": self.changed, "added": self.added, "removed": self.removed},
            "bytes": self.nbytes,
            "result_digest": self.result_digest,
            "layout": self.layout,
            "side_files": [
                {"name": f.name, "action": f.action, "diff": f.diff, "notes": list(f.notes)} for f in self.side_files
            ],
        }


def apply(
    base: Path, packs: Sequence[Path], out: Path, options: Options = Options(), progress: Progress = silent
) -> ApplicationReport:
    """Write the checkpoint that ``packs``, one after the other, make of ``base``.

    A base folder gives a folder, with the shards of the last pack's layout or else with the base's shard names, and
    with whatever else the base holds; a single file gives a file.

    Raises:
        BaseMismatchError: ``base`` is not what the first pack was made for, or a pack does not follow the one before.
        FormatError: a pack is malformed or does not make what it promises. OutputError: ``out`` cannot be written.
        SignatureError: a pack is not signed as ``options.signed_by`` asks.
    """
    require_absent(out, overwrite=options.overwrite)
    require_not_input(out, (base, *packs))
    with _opened(base, packs, options) as chain:
        kept = _kept_layout(chain, options)
        layout = kept or base_layout(chain.checkpoint, chain.specs)
        with ExitStack() as stack:
            stack.enter_context(locked(out))
            require_space(out, _sizes(chain, layout, options))
            if chain.checkpoint.is_folder:
                names = [head.file_name for head in layout.heads]
                folder = stack.enter_context(atomic_folder(out, overwrite=options.overwrite, resume=names))
                _write_folder(chain, layout, folder, options, progress)
            else:
                path = stack.enter_context(atomic_path(out, overwrite=options.overwrite, resume=True))
                _write_shards(chain, {path: layout.heads[0]}, options, progress)
            chain.require_proved(progress, options.threads)
            return _report(chain, out, options, is_kept=kept is not None)  # reads side files: before out is published


def prove(
    base: Path, packs: Sequence[Path], options: Options = Options(), progress: Progress = silent
) -> ApplicationReport:
    """Do all of ``apply`` but the writing: is this the base, and does every tensor come out as promised?"""
    with _opened(base, packs, options) as chain:
        kept = _kept_layout(chain, options)
        meter = Meter("applying", sum(spec.nbytes for spec in chain.specs.values()), progress)

        def work(name: str) -> None:
            for block in chain.blocks(name):
                meter.add(memoryview(block).nbytes)

        with threadpool_limits(1):
            for _ in as_done(work, chain.specs, options.threads):
                pass
        chain.require_proved(progress, options.threads)
        return _report(chain, None, options, is_kept=kept is not None)


@contextmanager
def _opened(base: Path, packs: Sequence[Path], options: Options) -> Iterator[Chain]:
    """The base and the packs; where a signature is asked for, no document of any pack is read before all are signed."""
    with ExitStack() as files:
        key = options.signed_by
        signed = [require_signed(path, key, options.limits) for path in packs] if key else []
        opened = [files.enter_context(open_pack(path, options.limits)) for path in packs]
        for pack, pack_id in zip(opened, signed, strict=False):
            if pack.pack_id != pack_id:
                message = "is another pack than its signature was checked for"
                raise error("integrity.source-changed", str(pack.path), message)
        checkpoint = files.enter_context(open_checkpoint(base, options.limits))
        yield Chain(checkpoint, opened, options.scale, options.bench or cpu_bench())


def _kept_layout(chain: Chain, options: Options) -> FolderLayout | None:
    """The layout of the last pack, proved to fit the result; None where it has none or that would not be used."""
    if not chain.checkpoint.is_folder or options.scale != 1.0:
        return None
    with chain.base_first():
        return pack_layout(chain.packs[-1], chain.specs, options.limits)


def _report(chain: Chain, out: Path | None, options: Options, *, is_kept: bool) -> ApplicationReport:
    before, after = chain.checkpoint.specs, chain.specs
    listed = {name for pack in chain.packs for name in pack.entries}
    side_files = side_file_reports(chain.checkpoint, chain.packs, options.limits) if options.side_files else ()
    return ApplicationReport(
        out=out,
        packs=tuple(pack.pack_id for pack in chain.packs),
        tensors=len(after),
        changed=len(listed & before.keys() & after.keys()),
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        nbytes=sum(spec.nbytes for spec in after.values()),
        result_digest=chain.packs[-1].manifest.result.digest.hex() if options.scale == 1.0 else None,
        layout=is_kept,
        side_files=tuple(side_files),
    )


def _sizes(chain: Chain, layout: FolderLayout, options: Options) -> Iterator[int]:
    """The size in bytes of every file of the result."""
    yield from (head.file_nbytes for head in layout.heads)
    if chain.checkpoint.is_folder:
        if layout.index:
            yield len(layout.index)
        yield from side_file_sizes(chain.checkpoint, _bringing(chain, options))


def _bringing(chain: Chain, options: Options) -> Sequence[Pack]:
    """The packs whose side files are wanted."""
    return chain.packs if options.side_files else ()


@dataclass(frozen=True, slots=True)
class _Job:
    """Tensors to be put into one file, one after the other."""

    writer: ShardWriter
    names: tuple[str, ...]
    origin: SourceFile | None = None  # the base's file, of which the whole of this one is a copy

    def __str__(self) -> str:
        return f"tensor {self.names[0]!r}" if self.origin is None else str(self.origin.path)


def _write_folder(chain: Chain, layout: FolderLayout, folder: Path, options: Options, progress: Progress) -> None:
    """All shards, the index and the side files of a checkpoint folder."""
    _write_shards(chain, {folder / head.file_name: head for head in layout.heads}, options, progress)
    if layout.index_file is not None:
        with new_file(folder / layout.index_file) as file:
            file.write(layout.index)
    write_side_files(folder, chain.checkpoint, _bringing(chain, options))


def _write_shards(chain: Chain, plan: Mapping[Path, Head], options: Options, progress: Progress) -> None:
    """Every safetensors file, its tensors in parallel; a file is forced to disk while the next ones are made."""
    meter = Meter("applying", sum(spec.nbytes for spec in chain.specs.values()), progress)
    with ExitStack() as stack, threadpool_limits(1):  # one tensor a thread: a product needs no threads of its own
        jobs: list[_Job] = []
        for path, head in plan.items():
            jobs += _jobs(chain, stack.enter_context(ShardWriter(path, head.tensors, {}, head=head.raw, resume=True)))
        for job, _ in as_done(lambda job: _put(chain, job, meter), jobs, options.threads):
            if job.writer.is_complete:
                job.writer.close()


def _jobs(chain: Chain, writer: ShardWriter) -> list[_Job]:
    """What is to be done for one file, the largest tensors first, so that no thread is left with one at the end."""
    names = [spec.name for spec in sorted(writer.tensors, key=lambda spec: -spec.nbytes)]
    origin = _origin(chain, names)
    if origin is not None:
        return [_Job(writer, tuple(names), origin)]
    return [_Job(writer, (name,)) for name in names]


def _origin(chain: Chain, names: Sequence[str]) -> SourceFile | None:
    """The base's file that holds just the tensors ``names``, all of which stay as they are; None where none does."""
    if not names or any(chain.route(name).steps for name in names):
        return None
    source = chain.checkpoint.place(names[0])[0]
    held = next(shard.tensors for shard in chain.checkpoint.shards if shard.file_name == source.path.name)
    return source if set(names) == {spec.name for spec in held} else None


def _put(chain: Chain, job: _Job, meter: Meter) -> None:
    """Fill the slots of a job with what is proved to belong there."""
    is_copied = job.origin is not None and not job.writer.is_resumed and job.writer.copy_whole(job.origin)
    for name in job.names:
        slot = job.writer.slot(name)
        if chain.route(name).steps:
            _make(chain, name, slot, meter)
        else:
            _copy(chain, name, slot, meter, is_copied=is_copied)
        slot.close()


def _make(chain: Chain, name: str, slot: Slot, meter: Meter) -> None:
    expected = chain.expected(name)
    if expected is not None and slot.found() == expected:
        slot.keep()
        meter.add(slot.spec.nbytes)
        return
    for block in chain.blocks(name):
        slot.write(block)
        meter.add(memoryview(block).nbytes)


def _copy(chain: Chain, name: str, slot: Slot, meter: Meter, *, is_copied: bool) -> None:
    """A tensor of the base as it is. What is hashed is the copy: the bytes proved are the bytes published."""
    digest = slot.found()
    if is_copied or (digest is not None and digest == chain.checkpoint.sha256(name)):
        slot.keep()
    else:
        slot.copy(*chain.checkpoint.place(name))
        digest = None
    chain.accept(name, digest or slot.sha256())
    meter.add(slot.spec.nbytes)
