"""What a pack carries beside tensors: side files, and how the files of tuned's folder are laid out.

Only files on the list of the format travel, none that names code, and what stays behind is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from skillpack_format.contents import StoredContent, store
from skillpack_format.digest import sha256
from skillpack_format.limits import Limits
from skillpack_format.manifest import Layout, SideFile
from skillpack_format.names import INDEX_SUFFIX, SHARD_SUFFIX, SIDE_FILES, is_layout_name
from skillpack_format.side_files import CODE, is_program, notes_of
from skillpack_format.sources import SourceFile
from skillpack_format.stores.safetensors_files import Checkpoint

SHOWN: Final = 10  # files named that are left out


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """A file that goes into a pack whole: what MANIFEST says of it, and its bytes."""

    listed: SideFile
    data: bytes

    def content(self, codec: str, chunk_bytes: int) -> StoredContent:
        return store([np.frombuffer(self.data, np.uint8)], [1], codec, chunk_bytes)


def carried_file(name: str, data: bytes) -> CarriedFile:
    """``data`` under the name ``name``."""
    return CarriedFile(SideFile(name, len(data), sha256(data)), data)


def side_files(before: Checkpoint, ours: Mapping[str, Path], limits: Limits) -> tuple[list[CarriedFile], list[str]]:
    """Of ``ours``, ascending by name, the files that may travel and that the base lacks or has otherwise; and warnings.

    Files that name code stay out.
    """
    theirs = before.side_files()
    files: list[CarriedFile] = []
    warnings: list[str] = []
    for name, path in ours.items():
        if name not in SIDE_FILES:
            continue
        data = _read(path, limits)
        if name in theirs and _read(theirs[name], limits) == data:
            continue
        if CODE in notes_of(name, data):
            warnings.append(f"{name} names code to run (auto_map); it is not carried")
            continue
        files.append(carried_file(name, data))
    return files, warnings


def left_out(before: Checkpoint, after: Checkpoint) -> list[str]:
    """A warning that names what no pack carries of the folder ``after`` and the base does not have as well."""
    names = [*_left_out(after.side_files(), before.side_files()), *after.other_weights()]
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"not carried, of the folder of tuned: {', '.join(names[:SHOWN])}{more}"]


def layout_of(after: Checkpoint, limits: Limits) -> tuple[Layout | None, list[CarriedFile], list[str]]:
    """The layout of a folder, the files it lists in their order, and warnings: no layout where none can say it."""
    shards = [carried_file(name, data) for name, data in after.heads().items()]
    raw = after.index_bytes()
    index = carried_file(after.index_file, raw) if after.index_file is not None and raw is not None else None
    layout = Layout(tuple(each.listed for each in shards), index.listed if index else None)
    fault = _layout_fault(layout, limits)
    if fault is not None:
        return None, [], [f"{fault}: apply will name and lay out the files as in the base"]
    return layout, [*([index] if index else []), *shards], []


def _layout_fault(layout: Layout, limits: Limits) -> str | None:
    """Why no reader would take this layout."""
    odd = [each.name for each in layout.shards if not is_layout_name(each.name, SHARD_SUFFIX)]
    if layout.index is not None and not is_layout_name(layout.index.name, INDEX_SUFFIX):
        odd.append(layout.index.name)
    if odd:
        return f"{odd[0]} is no plain name"
    nbytes = sum(each.nbytes for each in layout.contents)
    if len(layout.shards) > limits.shards or nbytes > limits.layout_bytes:
        return f"{len(layout.shards)} shards with {nbytes} bytes of headers and index are above a limit"
    return None


def _left_out(ours: Mapping[str, Path], theirs: Mapping[str, Path]) -> Iterator[str]:
    """What no pack carries and the base does not have as well; hidden files are nobody's."""
    for name, path in ours.items():
        if name in SIDE_FILES or name.startswith("."):
            continue
        if path.is_dir():
            if name not in theirs:
                yield f"{name}/"
        elif name not in theirs or not _is_same(path, theirs[name]):
            yield f"{name} (a program)" if is_program(name, path.stat().st_mode) else name


def _is_same(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    with SourceFile(one) as first, SourceFile(other) as second:
        return first.size == second.size and first.sha256() == second.sha256()


def _read(path: Path, limits: Limits) -> bytes:
    """A whole side file, which must be a regular file of at most limits.side_file_bytes."""
    with SourceFile(path) as source:
        limits.require("side_file_bytes", source.size, str(path))
        return bytes(source.read_at(0, source.size))
