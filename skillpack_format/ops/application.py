"""``apply``: a base checkpoint and packs in, the checkpoint they make out.

Every base tensor read is hashed on the way, every tensor made is proved by its digest, and the output appears only
when the base as a whole was the right one. No model class is loaded; memory is bounded by the largest tensors in work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.digest import Bytes, TensorKind, sha256
from skillpack_format.dtypes import bits_to_float64, dtype_named, float32_to_bits
from skillpack_format.durable import (
    atomic_folder,
    atomic_path,
    copy_file,
    new_file,
    require_absent,
    require_not_input,
    require_space,
)
from skillpack_format.errors import SkillPackError, error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.listing import content_fault, is_expected, kind_fault, listing_of, result_of
from skillpack_format.progress import Progress, in_order, silent
from skillpack_format.reader import Pack, open_pack
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint
from skillpack_format.stores.shards import ShardWriter, write_index


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
        chain = _Chain(checkpoint, opened, options)
        require_space(out.parent, sum(spec.nbytes for spec in chain.specs.values()))
        if checkpoint.is_folder:
            with atomic_folder(out, overwrite=options.overwrite) as folder:
                _write_folder(chain, folder, progress)
                chain.require_proved(progress)
                report = chain.report(out)
        else:
            with atomic_path(out, overwrite=options.overwrite) as path:
                _write_shard(chain, path, checkpoint.shards[0].metadata, list(chain.specs), progress, 0)
                chain.require_proved(progress)
                report = chain.report(out)  # it reads the side files: before anything is published, like all the rest
        return report


def prove(
    base: Path, packs: Sequence[Path], options: Options = Options(), progress: Progress = silent
) -> ApplicationReport:
    """Do all of ``apply`` but the writing: is this the base, and does every tensor come out as promised?"""
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(base, options.limits))
        opened = [stack.enter_context(open_pack(path, options.limits)) for path in packs]
        chain = _Chain(checkpoint, opened, options)
        for _ in chain.make_all(list(chain.specs), progress, 0):
            pass
        chain.require_proved(progress)
        return chain.report(None)


class _Chain:
    """A base and packs on top of it: which tensors come out, and each of them on demand, proved at every step."""

    def __init__(self, checkpoint: Checkpoint, packs: Sequence[Pack], options: Options) -> None:
        if not packs:
            raise error("usage.argument", "", "at least one pack is needed")
        if options.scale != 1.0 and len(packs) > 1:
            raise error(
                "usage.argument",
                "",
                "a scale goes with one pack: the packs of a chain each need the exact result before",
            )
        if not np.isfinite(options.scale):
            raise error("usage.argument", "", f"scale {options.scale} is not a finite number")
        self.checkpoint = checkpoint
        self.packs = packs
        self.options = options
        self._index = {name: index for index, name in enumerate(checkpoint.specs)}
        self._digests: dict[str, bytes] = {}
        self._require_row()
        self.specs = self._result_specs()

    def _require_row(self) -> None:
        """Every pack was made for the result of the one before it."""
        for before, after in zip(self.packs, self.packs[1:], strict=False):
            if before.manifest.result.digest != after.manifest.base.digest:
                message = f"it was not made for the result of {before.path.name}; packs in a row build on each other"
                raise error("base.content", f"pack {after.path.name}", message)

    def _result_specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the result, ascending by name; each pack must fit what the ones before it leave."""
        specs = dict(self.checkpoint.specs)
        for pack in self.packs:
            fault = kind_fault(pack.manifest, specs)
            if fault is not None:
                raise fault
            for entry in pack.manifest.tensors:
                if entry.result is None:
                    specs.pop(entry.name, None)
                else:
                    kind = entry.result.kind
                    specs[entry.name] = TensorSpec(entry.name, dtype_named(kind.dtype), kind.shape)
        return dict(sorted(specs.items()))

    def make_all(self, names: Sequence[str], progress: Progress, done: int) -> Iterator[tuple[str, Bytes]]:
        """The tensors ``names`` in that order, made in parallel."""
        total = sum(spec.nbytes for spec in self.specs.values())
        for name, data in in_order(self._result, names, self.options.threads):
            done += self.specs[name].nbytes
            progress("applying", done, total)
            yield name, data

    def require_proved(self, progress: Progress) -> None:
        """Hash what was not read on the way, and compare the base as a whole; see that no input changed meanwhile."""
        self._require_base(progress)
        self.checkpoint.require_unchanged()
        for pack in self.packs:
            pack.require_unchanged()

    def report(self, out: Path | None) -> ApplicationReport:
        before, after = self.checkpoint.specs, self.specs
        listed = {name for pack in self.packs for name in pack.entries}
        exact = self.options.scale == 1.0
        return ApplicationReport(
            out=out,
            packs=tuple(pack.pack_id for pack in self.packs),
            tensors=len(after),
            changed=len(listed & before.keys() & after.keys()),
            added=len(after.keys() - before.keys()),
            removed=len(before.keys() - after.keys()),
            nbytes=sum(spec.nbytes for spec in after.values()),
            result_digest=self.packs[-1].manifest.result.digest.hex() if exact else None,
            side_files=tuple(side_file_reports(self.checkpoint, self.packs, self.options)),
        )

    def _result(self, name: str) -> Bytes:
        try:
            return self._after(name, len(self.packs))
        except SkillPackError:
            self._require_base(silent)  # a wrong base comes first (container.order), and this says how wrong it is
            raise

    def _after(self, name: str, level: int) -> Bytes:
        """The tensor ``name`` after the first ``level`` packs."""
        if level == 0:
            return self._base(name)
        pack = self.packs[level - 1]
        entry = pack.entries.get(name)
        if entry is None:
            return self._after(name, level - 1)
        if entry.alias is not None:
            data = self._after(entry.alias, level)
            if entry.alias not in pack.entries and entry.result and sha256(data) != entry.result.sha256:
                raise error("manifest.alias", f"tensor {name!r}", f"it is to be {entry.alias!r}, which has other bytes")
            return data
        base = None if entry.base is None else self._after(name, level - 1)
        digest = self._digests.get(name) if level == 1 else None
        made = pack.get_tensor(name, base, self.options.bench, digest if entry.base else None)
        if self.options.scale != 1.0 and base is not None and entry.base is not None and entry.result is not None:
            made = _scaled(base, made, entry.base.kind, entry.result.kind, self.options.scale, name)
        return made.reshape(-1).view(np.uint8).data

    def _base(self, name: str) -> Bytes:
        """A base tensor, hashed; base.content when it is not the one the first pack was made for."""
        data = self.checkpoint.read(name)
        digest = sha256(data)
        if not is_expected(self.packs[0].manifest, self._index[name], digest):
            raise error("base.content", f"tensor {name!r}", "it is not the base tensor this pack was made for")
        self._digests[name] = digest
        return data

    def _require_base(self, progress: Progress) -> None:
        threads = self.options.threads
        listing = listing_of(self.checkpoint, dict(self._digests), threads, progress, "checking the base")
        fault = content_fault(self.packs[0].manifest, listing)
        if fault is not None:
            raise fault
        for pack in self.packs:
            listing = result_of(pack.manifest, listing)


def _scaled(base: Bytes, made: Any, before: TensorKind, after: TensorKind, scale: float, name: str) -> Any:
    """base + scale * (made - base) in float64, rounded to float32, then to the dtype; other kinds are taken whole."""
    dtype = dtype_named(after.dtype)
    if before != after or not dtype.is_arithmetic:
        return made
    old_bits = np.frombuffer(base, dtype.bit_pattern)
    old, new = bits_to_float64(old_bits, dtype), bits_to_float64(made, dtype)
    with np.errstate(all="ignore"):
        values = (old + scale * (new - old)).astype(np.float32)
    bits = float32_to_bits(values, dtype)
    if not np.isfinite(bits_to_float64(bits, dtype)[np.isfinite(old) & np.isfinite(new)]).all():
        raise error("payload.overflow", f"tensor {name!r}", f"scaled by {scale} it leaves the range of {dtype.name}")
    return np.where(made == old_bits, old_bits, bits)  # what the pack leaves alone stays as it is, to the bit


def _write_folder(chain: _Chain, folder: Path, progress: Progress) -> None:
    """All shards, the index and the side files of a checkpoint folder."""
    plan = _shard_plan(chain)
    done = 0
    for file_name, names in plan.items():
        shard = next(each for each in chain.checkpoint.shards if each.file_name == file_name)
        done = _write_shard(chain, folder / file_name, shard.metadata, names, progress, done)
    if chain.checkpoint.index_file is not None:
        weight_map = {name: file_name for file_name, names in plan.items() for name in names}
        write_index(folder / chain.checkpoint.index_file, weight_map, done, chain.checkpoint.index_metadata)
    _write_side_files(chain, folder)


def _write_shard(
    chain: _Chain, path: Path, metadata: dict[str, str], names: Sequence[str], progress: Progress, done: int
) -> int:
    """One safetensors file; returns the bytes of tensors done so far."""
    with ShardWriter(path, [chain.specs[name] for name in names], metadata) as writer:
        for name, data in chain.make_all([spec.name for spec in writer.tensors], progress, done):
            writer.write(name, data)
            done += chain.specs[name].nbytes
    return done


def _shard_plan(chain: _Chain) -> dict[str, list[str]]:
    """Which tensors go into which file: the base's map, an added tensor beside its neighbour by name."""
    home = {spec.name: shard.file_name for shard in chain.checkpoint.shards for spec in shard.tensors}
    present = chain.checkpoint.shards[0].file_name
    plan: dict[str, list[str]] = {shard.file_name: [] for shard in chain.checkpoint.shards}
    for name in chain.specs:
        present = home.get(name, present)
        plan[present].append(name)
    return {file_name: names for file_name, names in plan.items() if names}


def _write_side_files(chain: _Chain, folder: Path) -> None:
    """What else the base folder holds, and on top of it what the packs bring."""
    brought = _brought(chain.packs) if chain.options.side_files else {}
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
