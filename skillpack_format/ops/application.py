"""``apply``: a base checkpoint and packs in, the checkpoint they make out.

Every base tensor read is hashed on the way, every tensor made is proved by its digest, and the output appears only
when the base as a whole was the right one. No model class is loaded; memory is bounded by the largest tensors in work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.durable import (
    atomic_folder,
    atomic_path,
    copy_file,
    new_file,
    require_absent,
    require_not_input,
    require_space,
)
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.locks import locked
from skillpack_format.ops.chain import Chain
from skillpack_format.progress import Meter, Progress, as_done, silent
from skillpack_format.reader import Pack, open_pack
from skillpack_format.sources import SourceFile
from skillpack_format.stores.safetensors_files import Checkpoint, Shard, open_checkpoint
from skillpack_format.stores.shards import ShardWriter, Slot, encode_index, shard_bytes, write_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to apply. ``scale`` other than 1 takes that share of the change of every float tensor that keeps its kind."""

    scale: float = 1.0
    threads: int = 1
    overwrite: bool = False
    side_files: bool = True
    limits: Limits = DEFAULT_LIMITS
    bench: Bench = NUMPY_BENCH


@dataclass(frozen=True, slots=True)
class SideFileReport:
    """A side file the packs bring: what it does to the one in the base, as a unified diff of at most 40 lines."""

    name: str
    action: str  # added, replaced or same
    diff: str


@dataclass(frozen=True, slots=True)
class ApplicationReport:
    """What ``apply`` did. ``result_digest`` is the checkpoint digest proved, None where a scale made another result."""

    out: Path | None
    packs: tuple[str, ...]
    tensors: int
    changed: int
    added: int
    removed: int
    nbytes: int
    result_digest: str | None
    side_files: tuple[SideFileReport, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "out": str(self.out) if self.out else None,
            "packs": list(self.packs),
            "tensors": {"total": self.tensors, "changed": self.changed, "added": self.added, "removed": self.removed},
            "bytes": self.nbytes,
            "result_digest": self.result_digest,
            "side_files": [{"name": f.name, "action": f.action, "diff": f.diff} for f in self.side_files],
        }


def apply(
    base: Path, packs: Sequence[Path], out: Path, options: Options = Options(), progress: Progress = silent
) -> ApplicationReport:
    """Write the checkpoint that ``packs``, one after the other, make of ``base``.

    A base folder gives a folder, with the base's shard names and whatever else it holds; a single file gives a file.

    Raises:
        BaseMismatchError: ``base`` is not what the first pack was made for, or a pack does not follow the one before.
        FormatError: a pack is malformed or does not make what it promises. OutputError: ``out`` cannot be written.
    """
    require_absent(out, overwrite=options.overwrite)
    require_not_input(out, (base, *packs))
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(base, options.limits))
        opened = [stack.enter_context(open_pack(path, options.limits)) for path in packs]
        chain = Chain(checkpoint, opened, options.scale, options.bench)
        stack.enter_context(locked(out))
        require_space(out, _sizes(chain, options))
        if checkpoint.is_folder:
            with atomic_folder(out, overwrite=options.overwrite, resume=_shard_plan(chain)) as folder:
                _write_folder(chain, folder, options, progress)
                chain.require_proved(progress, options.threads)
                report = _report(chain, out, options)
        else:
            with atomic_path(out, overwrite=options.overwrite, resume=True) as path:
                _write_shards(chain, {path: list(chain.specs)}, options, progress)
                chain.require_proved(progress, options.threads)
                report = _report(chain, out, options)  # it reads the side files: before anything is published, as above
        return report


def prove(
    base: Path, packs: Sequence[Path], options: Options = Options(), progress: Progress = silent
) -> ApplicationReport:
    """Do all of ``apply`` but the writing: is this the base, and does every tensor come out as promised?"""
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(base, options.limits))
        opened = [stack.enter_context(open_pack(path, options.limits)) for path in packs]
        chain = Chain(checkpoint, opened, options.scale, options.bench)
        meter = Meter("applying", sum(spec.nbytes for spec in chain.specs.values()), progress)

        def work(name: str) -> None:
            for block in chain.blocks(name):
                meter.add(memoryview(block).nbytes)

        with threadpool_limits(1):
            for _ in as_done(work, chain.specs, options.threads):
                pass
        chain.require_proved(progress, options.threads)
        return _report(chain, None, options)


def _report(chain: Chain, out: Path | None, options: Options) -> ApplicationReport:
    before, after = chain.checkpoint.specs, chain.specs
    listed = {name for pack in chain.packs for name in pack.entries}
    return ApplicationReport(
        out=out,
        packs=tuple(pack.pack_id for pack in chain.packs),
        tensors=len(after),
        changed=len(listed & before.keys() & after.keys()),
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        nbytes=sum(spec.nbytes for spec in after.values()),
        result_digest=chain.packs[-1].manifest.result.digest.hex() if options.scale == 1.0 else None,
        side_files=tuple(side_file_reports(chain.checkpoint, chain.packs, options)),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """Tensors to be put into one file, one after the other."""

    writer: ShardWriter
    names: tuple[str, ...]
    origin: SourceFile | None = None  # the base's file, of which the whole of this one is a copy

    def __str__(self) -> str:
        return f"tensor {self.names[0]!r}" if self.origin is None else str(self.origin.path)


def _write_folder(chain: Chain, folder: Path, options: Options, progress: Progress) -> None:
    """All shards, the index and the side files of a checkpoint folder."""
    plan = _shard_plan(chain)
    _write_shards(chain, {folder / name: names for name, names in plan.items()}, options, progress)
    if chain.checkpoint.index_file is not None:
        weight_map = {name: file_name for file_name, names in plan.items() for name in names}
        total = sum(spec.nbytes for spec in chain.specs.values())
        write_index(folder / chain.checkpoint.index_file, weight_map, total, chain.checkpoint.index_metadata)
    _write_side_files(chain, folder, options)


def _write_shards(chain: Chain, plan: Mapping[Path, Sequence[str]], options: Options, progress: Progress) -> None:
    """Every safetensors file, its tensors in parallel; a file is forced to disk while the next ones are made."""
    meter = Meter("applying", sum(spec.nbytes for spec in chain.specs.values()), progress)
    shards = {shard.file_name: shard for shard in chain.checkpoint.shards}
    with ExitStack() as stack, threadpool_limits(1):  # one tensor a thread: a product needs no threads of its own
        jobs: list[_Job] = []
        for path, names in plan.items():
            shard = shards.get(path.name, chain.checkpoint.shards[0])
            specs = [chain.specs[name] for name in names]
            writer = stack.enter_context(ShardWriter(path, specs, shard.metadata, resume=True))
            jobs += _jobs(chain, writer, shard)
        for job, _ in as_done(lambda job: _put(chain, job, meter), jobs, options.threads):
            if job.writer.is_complete:
                job.writer.close()


def _jobs(chain: Chain, writer: ShardWriter, shard: Shard) -> list[_Job]:
    """What is to be done for one file, the largest tensors first, so that no thread is left with one at the end."""
    names = [spec.name for spec in sorted(writer.tensors, key=lambda spec: -spec.nbytes)]
    if set(names) == {spec.name for spec in shard.tensors} and not any(chain.route(name).steps for name in names):
        return [_Job(writer, tuple(names), chain.checkpoint.place(names[0])[0])]
    return [_Job(writer, (name,)) for name in names]


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


def _shard_plan(chain: Chain) -> dict[str, list[str]]:
    """Which tensors go into which file: the base's map, an added tensor beside its neighbour by name."""
    home = {spec.name: shard.file_name for shard in chain.checkpoint.shards for spec in shard.tensors}
    present = chain.checkpoint.shards[0].file_name
    plan: dict[str, list[str]] = {shard.file_name: [] for shard in chain.checkpoint.shards}
    for name in chain.specs:
        present = home.get(name, present)
        plan[present].append(name)
    return {file_name: names for file_name, names in plan.items() if names}


def _sizes(chain: Chain, options: Options) -> Iterator[int]:
    """The size in bytes of every file of the result."""
    plan = _shard_plan(chain) if chain.checkpoint.is_folder else {chain.checkpoint.shards[0].file_name: [*chain.specs]}
    for shard in chain.checkpoint.shards:
        if shard.file_name in plan:
            yield shard_bytes([chain.specs[name] for name in plan[shard.file_name]], shard.metadata)
    if not chain.checkpoint.is_folder:
        return
    if chain.checkpoint.index_file is not None:
        weight_map = {name: file_name for file_name, names in plan.items() for name in names}
        total = sum(spec.nbytes for spec in chain.specs.values())
        yield len(encode_index(weight_map, total, chain.checkpoint.index_metadata))
    brought = _brought(chain.packs) if options.side_files else {}
    yield from (each.nbytes for pack in brought.values() for each in pack.manifest.files if brought[each.name] is pack)
    for name, path in chain.checkpoint.side_files().items():
        if name not in brought and not name.startswith("."):
            yield from (each.stat().st_size for each in _files_below(path))


def _files_below(path: Path) -> Iterator[Path]:
    """``path``, or the regular files that ``_copy_tree`` copies out of it."""
    if not path.is_dir():
        yield path
        return
    for each in sorted(path.iterdir()):
        if not each.is_symlink() and (each.is_dir() or each.is_file()):
            yield from _files_below(each)


def _write_side_files(chain: Chain, folder: Path, options: Options) -> None:
    """What else the base folder holds, and on top of it what the packs bring."""
    brought = _brought(chain.packs) if options.side_files else {}
    for name, path in chain.checkpoint.side_files().items():
        if name in brought or name.startswith("."):
            continue
        if path.is_dir():
            _copy_tree(path, folder / name)
        else:
            copy_file(path, folder / name)
    for name, pack in brought.items():
        with new_file(folder / name) as file:
            file.write(pack.read_side_file(name))


def _copy_tree(source: Path, target: Path) -> None:
    """Regular files below ``source``; links and special files are left out, so nothing outside is followed."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            _copy_tree(path, target / path.name)
        elif path.is_file():
            copy_file(path, target / path.name)


def _brought(packs: Sequence[Pack]) -> dict[str, Pack]:
    """Every side file the packs bring, and the last pack that does."""
    return {each.name: pack for pack in packs for each in pack.manifest.files}


def side_file_reports(checkpoint: Checkpoint, packs: Sequence[Pack], options: Options) -> Iterator[SideFileReport]:
    """What the packs' side files do to those of the base."""
    if not options.side_files:
        return
    theirs = checkpoint.side_files()
    for name, pack in sorted(_brought(packs).items()):
        new = pack.read_side_file(name)
        old = b""
        if name in theirs:
            with SourceFile(theirs[name]) as source:
                old = bytes(source.read_at(0, min(source.size, options.limits.side_file_bytes)))
        action = "added" if name not in theirs else "same" if old == new else "replaced"
        yield SideFileReport(name, action, _diff(old, new, name) if action == "replaced" else "")


def _diff(old: bytes, new: bytes, name: str) -> str:
    """A unified diff of two small text files; larger ones are only counted."""
    if max(len(old), len(new)) > 1 << 16:
        return f"{len(old)} bytes become {len(new)}"
    before, after = (data.decode("utf-8", "replace").splitlines() for data in (old, new))
    lines = list(difflib.unified_diff(before, after, f"base/{name}", f"pack/{name}", lineterm="", n=1))
    return "\n".join(lines[:40])
