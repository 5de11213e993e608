"""What packs bring to the folder of a result beside tensors: how its files are laid out, and side files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from skillpack_format.limits import Limits
from skillpack_format.reader import Pack
from skillpack_format.side_files import notes_of
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.heads import Head, parse_heads
from skillpack_format.stores.safetensors_files import Checkpoint


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """The shards of a result, and the index where there is one, to the byte."""

    heads: tuple[Head, ...]
    index_file: str | None
    index: bytes


def read_layout(pack: Pack, specs: Mapping[str, TensorSpec], limits: Limits) -> FolderLayout | None:
    """The layout of a pack, proved by its digests and to fit the result, whose tensors are ``specs``."""
    layout = pack.manifest.layout
    if layout is None:
        return None
    files = pack.read_layout()
    index = files.pop(layout.index.name) if layout.index else None
    heads = parse_heads(files, index, specs, limits)
    return FolderLayout(heads, layout.index.name if layout.index else None, index or b"")


@dataclass(frozen=True, slots=True)
class SideFileReport:
    """A side file the packs bring: what it does to the one in the base, as a unified diff of at most 40 lines.

    ``notes`` say what it makes other programs do (side_files.NOTES).
    """

    name: str
    action: str  # added, replaced or same
    diff: str
    notes: tuple[str, ...]


def brought_by(packs: Sequence[Pack]) -> dict[str, Pack]:
    """Every side file the packs bring, and the last pack that does."""
    return {each.name: pack for pack in packs for each in pack.manifest.files}


def side_file_reports(checkpoint: Checkpoint, packs: Sequence[Pack], limits: Limits) -> Iterator[SideFileReport]:
    """What the packs' side files do to those of the base."""
    theirs = checkpoint.side_files()
    for name, pack in sorted(brought_by(packs).items()):
        new = pack.read_side_file(name)
        old = b""
        if name in theirs:
            with SourceFile(theirs[name]) as source:
                old = bytes(source.read_at(0, min(source.size, limits.side_file_bytes)))
        action = "added" if name not in theirs else "same" if old == new else "replaced"
        diff = _diff(old, new, name) if action == "replaced" else ""
        yield SideFileReport(name, action, diff, notes_of(name, new))


def _diff(old: bytes, new: bytes, name: str) -> str:
    """A unified diff of two small text files; larger ones are only counted."""
    if max(len(old), len(new)) > 1 << 16:
        return f"{len(old)} bytes become {len(new)}"
    before, after = (data.decode("utf-8", "replace").splitlines() for data in (old, new))
    lines = list(difflib.unified_diff(before, after, f"base/{name}", f"pack/{name}", lineterm="", n=1))
    return "\n".join(lines[:40])
