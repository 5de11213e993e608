"""Reading a checkpoint: one safetensors file, or a folder with one or with several and their index.

The rule: it is clear which files are the checkpoint, or it is refused. Pickled weights are never opened, names in an
index never lead out of the folder, and tensors are read one at a time through descriptors kept open.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skillpack_format.closing import Closing
from skillpack_format.errors import error, located
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.names import INDEX_SUFFIX, SHARD_SUFFIX
from skillpack_format.sources import SourceFile, input_errors
from skillpack_format.stores.header import Header, TensorSpec, parse_json_object, read_header, require_tensor_name

SINGLE_FILE: Final = "model.safetensors"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHT_SUFFIXES: Final = (SHARD_SUFFIX, INDEX_SUFFIX, ".bin.index.json", ".gguf", *PICKLE_SUFFIXES)
RESAVE: Final = "save it again with save_pretrained(..., safe_serialization=True) or safetensors.torch.save_file"


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file of a checkpoint, its tensors in the order of their bytes."""

    file_name: str
    path: Path
    tensors: tuple[TensorSpec, ...]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Index:
    """A parsed index: which shard holds each tensor, and the metadata beside it."""

    file_name: str
    source: SourceFile
    weight_map: dict[str, str]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _OpenShard:
    source: SourceFile
    header: Header


class Checkpoint(Closing):
    """An open checkpoint, made by ``open_checkpoint``. ``specs`` is sorted by name.

    ``index_file`` is the name of the index, None without one. ``read`` may be called from many threads at once.
    """

    __slots__ = (
        "_files",
        "_heads",
        "_index",
        "_places",
        "_sources",
        "index_file",
        "index_metadata",
        "is_folder",
        "path",
        "shards",
        "specs",
    )

    def __init__(
        self, path: Path, *, is_folder: bool, index: _Index | None, opened: Sequence[_OpenShard], files: ExitStack
    ) -> None:
        self.path = path
        self.is_folder = is_folder
        self.index_file = index.file_name if index else None
        self.index_metadata = index.metadata if index else {}
        self.shards = tuple(
            Shard(shard.source.path.name, shard.source.path, shard.header.tensors, shard.header.metadata)
            for shard in opened
        )
        self._files = files
        self._sources = [shard.source for shard in opened] + ([index.source] if index else [])
        self._heads = {each.source.path.name: (each.source, each.header.data_start) for each in opened}
        self._index = index.source if index else None
        self._places: dict[str, tuple[SourceFile, int]] = {}
        for shard in opened:
            offset = shard.header.data_start
            for spec in shard.header.tensors:
                self._places[spec.name] = (shard.source, offset)
                offset += spec.nbytes
        every_spec = (spec for shard in self.shards for spec in shard.tensors)
        self.specs = {spec.name: spec for spec in sorted(every_spec, key=lambda spec: spec.name)}

    def close(self) -> None:
        """Close every file; a second call does nothing."""
        self._files.close()

    def read(self, name: str) -> bytearray:
        """The bytes of one tensor, little-endian, C order."""
        source, offset = self.place(name)
        return source.read_at(offset, self.specs[name].nbytes)

    def place(self, name: str) -> tuple[SourceFile, int]:
        """The open file that holds a tensor, and where in it the tensor begins."""
        if name not in self._places:
            raise error("usage.argument", str(self.path), f"holds no tensor {name!r}")
        return self._places[name]

    def sha256(self, name: str) -> bytes:
        """The SHA-256 of one tensor; it is never in memory as a whole."""
        source, offset = self.place(name)
        return source.sha256_at(offset, self.specs[name].nbytes)

    def heads(self) -> dict[str, bytes]:
        """Of every shard, by file name, the bytes before its data: length and header."""
        return {name: bytes(source.read_at(0, nbytes)) for name, (source, nbytes) in sorted(self._heads.items())}

    def index_bytes(self) -> bytes | None:
        """The index file, None without one."""
        return bytes(self._index.read_at(0, self._index.size)) if self._index else None

    def require_unchanged(self) -> None:
        """Raise integrity.source-changed when a file is not what it was when it was opened."""
        for source in self._sources:
            source.require_unchanged()

    def side_files(self) -> dict[str, Path]:
        """Whatever else the folder holds, sorted by name: regular files, also through links, and folders.

        Weights in any format are left out, and so are links to folders and everything that is neither.
        """
        if not self.is_folder:
            return {}
        with input_errors(self.path), os.scandir(self.path) as entries:
            kept = [entry.name for entry in entries if entry.is_file() or entry.is_dir(follow_symlinks=False)]
        return {name: self.path / name for name in sorted(kept) if not name.endswith(WEIGHT_SUFFIXES)}

    def other_weights(self) -> list[str]:
        """Weights in the folder that are not of this checkpoint, in whatever format, by name."""
        if not self.is_folder:
            return []
        with input_errors(self.path):
            names = sorted(os.listdir(self.path))
        own = {*self._heads, self.index_file}
        return [name for name in names if name.endswith(WEIGHT_SUFFIXES) and name not in own and name[0] != "."]


def open_checkpoint(path: Path, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Open a ``.safetensors`` file, a folder with exactly one, or a folder with an index of several."""
    if not os.path.exists(path):
        raise error("checkpoint.missing", str(path), "there is no such file or folder")
    is_folder = path.is_dir()
    folder, file_name = (path, _choose_file(path)) if is_folder else (path.parent, _require_suffix(path))
    with ExitStack() as files:
        index = _open_index(folder, file_name, files, limits) if file_name.endswith(INDEX_SUFFIX) else None
        shard_names = sorted(set(index.weight_map.values())) if index else [file_name]
        opened = [_open_shard(folder / name, files, limits) for name in shard_names]
        _require_once(opened, path, limits)
        if index:
            _require_mapped(opened, index)
        return Checkpoint(path, is_folder=is_folder, index=index, opened=opened, files=files.pop_all())


def _choose_file(folder: Path) -> str:
    """The name of the one index in ``folder`` or, without one, of its only safetensors file."""
    with input_errors(folder):
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    weights = [name for name in names if name.endswith(SHARD_SUFFIX)]
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if not weights and not indices:
        for name in names:
            _refuse_other_weights(folder, name)
        raise error("checkpoint.missing", str(folder), f"holds no {SHARD_SUFFIX} file")
    if len(indices) > 1:
        raise error("checkpoint.ambiguous", str(folder), f"holds {len(indices)} indices: {', '.join(indices)}")
    if indices:
        return indices[0]
    if len(weights) > 1:
        message = f"holds {len(weights)} safetensors files and no index; name the one that is meant"
        raise error("checkpoint.ambiguous", str(folder), message)
    return weights[0]


def _require_suffix(path: Path) -> str:
    """The name of a file that can be safetensors; others are refused before they are opened."""
    _refuse_other_weights(path, path.name)
    if not path.name.endswith(SHARD_SUFFIX):
        raise error(
            "unsupported.checkpoint", str(path), f"is not a {SHARD_SUFFIX} file; of several shards, name the folder"
        )
    return path.name


def _refuse_other_weights(path: Path, file_name: str) -> None:
    if file_name.endswith(PICKLE_SUFFIXES):
        message = f"{file_name} is a pickle, which can run code when it is loaded; {RESAVE}"
        raise error("unsupported.checkpoint", str(path), message)
    if file_name.endswith(".gguf"):
        message = f"{file_name} is GGUF, whose tensors are quantised; use the safetensors checkpoint it was made from"
        raise error("unsupported.checkpoint", str(path), message)


def _open_index(folder: Path, file_name: str, files: ExitStack, limits: Limits) -> _Index:
    source = files.enter_context(SourceFile(folder / file_name))
    with located(str(source.path)):
        limits.require("checkpoint_header_bytes", source.size, "index")
        plain = parse_json_object(source.read_at(0, source.size), "checkpoint.index", limits)
        weight_map, metadata = plain.get("weight_map"), plain.get("metadata", {})
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise error("checkpoint.index", "weight_map", "must map tensor names to file names")
        if not weight_map:
            raise error("checkpoint.index", "weight_map", "maps no tensor")
        if not isinstance(metadata, dict):
            raise error("checkpoint.index", "metadata", "must be an object")
        for name in weight_map:
            require_tensor_name(name, limits)
        for name in set(weight_map.values()):
            _require_shard_name(name)
        if SINGLE_FILE not in weight_map.values() and os.path.lexists(folder / SINGLE_FILE):
            message = f"names other shards, but {SINGLE_FILE} is there too, which most loaders prefer"
            raise error("checkpoint.ambiguous", "", message)
    return _Index(file_name, source, weight_map, metadata)


def _require_shard_name(name: str) -> None:
    """Refuse a file name that could lead out of the folder or mislead a reader (checkpoint.name)."""
    plain = all(" " <= char <= "~" and char not in "/\\" for char in name)
    if not plain or name.startswith(".") or not name.endswith(SHARD_SUFFIX):
        raise error("checkpoint.name", "weight_map", f"{name!r} is not the plain ASCII name of a {SHARD_SUFFIX} file")


def _open_shard(path: Path, files: ExitStack, limits: Limits) -> _OpenShard:
    if not os.path.exists(path):
        raise error("checkpoint.missing", str(path), "the index names this shard, but there is no such file")
    source = files.enter_context(SourceFile(path))
    return _OpenShard(source, read_header(source, limits))


def _require_once(opened: Sequence[_OpenShard], path: Path, limits: Limits) -> None:
    """Refuse a tensor that two shards hold, and more tensors in all than the limit."""
    limits.require("tensors", sum(len(shard.header.tensors) for shard in opened), str(path))
    holder: dict[str, str] = {}
    for shard in opened:
        file_name = shard.source.path.name
        for spec in shard.header.tensors:
            other = holder.setdefault(spec.name, file_name)
            if other != file_name:
                raise error("checkpoint.duplicate", str(path), f"tensor {spec.name!r} is in {other} and in {file_name}")


def _require_mapped(opened: Sequence[_OpenShard], index: _Index) -> None:
    """Refuse an index that does not say of every tensor, and of no other, which shard it is in."""
    held = {spec.name: shard.source.path.name for shard in opened for spec in shard.header.tensors}
    if held == index.weight_map:
        return
    name = min(name for name, _ in held.items() ^ index.weight_map.items())
    mapped, found = index.weight_map.get(name, "no shard"), held.get(name, "no shard")
    raise error("checkpoint.index", str(index.source.path), f"maps tensor {name!r} to {mapped}, but {found} holds it")
