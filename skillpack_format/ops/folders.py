"""What the folder of a result has beside tensors: how they are laid out in files, and side files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillpack_format.limits import Limits
from skillpack_format.output_files import copy_file, new_file
from skillpack_format.reader import Pack
from skillpack_format.side_files import notes_of
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.heads import Head, canonical_head, parse_heads
from skillpack_format.stores.safetensors_files import Checkpoint
from skillpack_format.stores.shards import encode_index


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """The shards of a result, and the index where there is one, to the byte."""

    heads: tuple[Head, ...]
    index_file: str | None
    index: bytes


def pack_layout(pack: Pack, specs: Mapping[str, TensorSpec], limits: Limits) -> FolderLayout | None:
    """The layout of a pack, proved by its digests and to fit the result, whose tensors are ``specs``."""
    layout = pack.manifest.layout
    if layout is None:
        return None
    files = pack.read_layout()
    index = files.pop(layout.index.name) if layout.index else None
    heads = parse_heads(files, index, specs, limits)
    return FolderLayout(heads, layout.index.name if layout.index else None, index or b"")


def base_layout(checkpoint: Checkpoint, specs: Mapping[str, TensorSpec]) -> FolderLayout:
    """The result's tensors ``specs`` by the base's names and map, an added one beside its neighbour by name."""
    home = {spec.name: shard.file_name for shard in checkpoint.shards for spec in shard.tensors}
    present = checkpoint.shards[0].file_name
    plan: dict[str, list[TensorSpec]] = {shard.file_name: [] for shard in checkpoint.shards}
    for name, spec in specs.items():
        present = home.get(name, present)
        plan[present].append(spec)
    heads = tuple(
        canonical_head(shard.file_name, plan[shard.file_name], shard.metadata)
        for shard in checkpoint.shards
        if plan[shard.file_name] or not checkpoint.is_folder
    )
    if checkpoint.index_file is None:
        return FolderLayout(heads, None, b"")
    weight_map = {spec.name: head.file_name for head in heads for spec in head.tensors}
    total = sum(spec.nbytes for spec in specs.values())
    return FolderLayout(heads, checkpoint.index_file, encode_index(weight_map, total, checkpoint.index_metadata))


@dataclass(frozen=True, slots=True)
class SideFileReport:
    """A side file the packs bring: what it does to the one in the base, as a unified diff of at most 40 lines.

    ``notes`` say what it makes other programs do (side_files.NOTES).
    """

    name: str
    action: str  # added, replaced or same
    diff: str
    notes: tuple[str, ...]


def write_side_files(folder: Path, checkpoint: Checkpoint, packs: Sequence[Pack]) -> None:
    """What else the base's folder holds, and on top of it what ``packs`` bring."""
    brought = _brought(packs)
    for name, path in _left(checkpoint, brought):
        if path.is_dir():
            _copy_tree(path, folder / name)
        else:
            copy_file(path, folder / name)
    for name, pack in brought.items():
        with new_file(folder / name) as file:
            file.write(pack.read_side_file(name))


def side_file_sizes(checkpoint: Checkpoint, packs: Sequence[Pack]) -> Iterator[int]:
    """The size in bytes of every file that ``write_side_files`` writes."""
    brought = _brought(packs)
    yield from (each.nbytes for pack in packs for each in pack.manifest.files if brought[each.name] is pack)
    for _, path in _left(checkpoint, brought):
        yield from (each.stat().st_size for each in _files_below(path))


def side_file_reports(checkpoint: Checkpoint, packs: Sequence[Pack], limits: Limits) -> Iterator[SideFileReport]:
    """What the packs' side files do to those of the base."""
    theirs = checkpoint.side_files()
    for name, pack in sorted(_brought(packs).items()):
        new = pack.read_side_file(name)
        old = b""
        if name in theirs:
            with SourceFile(theirs[name]) as source:
                old = bytes(source.read_at(0, min(source.size, limits.side_file_bytes)))
        action = "added" if name not in theirs else "same" if old == new else "replaced"
        diff = _diff(old, new, name) if action == "replaced" else ""
        yield SideFileReport(name, action, diff, notes_of(name, new))


def _brought(packs: Sequence[Pack]) -> dict[str, Pack]:
    """Every side file the packs bring, and the last pack that does."""
    return {each.name: pack for pack in packs for each in pack.manifest.files}


def _left(checkpoint: Checkpoint, brought: Mapping[str, Pack]) -> Iterator[tuple[str, Path]]:
    """Of what else the base's folder holds, that which comes along and is not replaced."""
    for name, path in checkpoint.side_files().items():
        if name not in brought and not name.startswith("."):
            yield name, path


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


def _files_below(path: Path) -> Iterator[Path]:
    """``path``, or the regular files that ``_copy_tree`` copies out of it."""
    if not path.is_dir():
        yield path
        return
    for each in sorted(path.iterdir()):
        if not each.is_symlink() and (each.is_dir() or each.is_file()):
            yield from _files_below(each)


def _diff(old: bytes, new: bytes, name: str) -> str:
    """A unified diff of two small text files; larger ones are only counted."""
    if max(len(old), len(new)) > 1 << 16:
        return f"{len(old)} bytes become {len(new)}"
    before, after = (data.decode("utf-8", "replace").splitlines() for data in (old, new))
    lines = list(difflib.unified_diff(before, after, f"base/{name}", f"pack/{name}", lineterm="", n=1))
    return "\n".join(lines[:40])
