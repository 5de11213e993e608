"""Reading a pack: the header at once, contents lazily, one tensor at a time, from any number of threads."""

from __future__ import annotations

import gc
import hashlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skillpack_format import manifest as manifest_room
from skillpack_format import storage as storage_room
from skillpack_format import wire
from skillpack_format.arithmetic import Bench
from skillpack_format.catalog import CODECS, codec_named
from skillpack_format.closing import Closing
from skillpack_format.container import read_header
from skillpack_format.contents import Content, Contents, load, load_runs, plan, target_of
from skillpack_format.digest import Bytes, TensorIdentity, sha256, sha256_of
from skillpack_format.dtypes import Array
from skillpack_format.encodings._base import Additive, Rewriting, Target
from skillpack_format.errors import SkillPackError, error, located
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.making import Change, delta_of, made_blocks, make, start_blocks, start_of
from skillpack_format.manifest import Entry, Manifest, Report, raise_first
from skillpack_format.native import cpu_bench
from skillpack_format.sources import SourceFile
from skillpack_format.storage import Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor, for ``Pack.info``."""

    name: str
    tensor_class: str
    module: str
    change: str  # changed, added, removed or alias
    dtype: str | None
    shape: tuple[int, ...] | None
    encodings: tuple[str, ...]
    nbytes: int  # stored bytes of its components


class Stream(Protocol):
    """A tensor's bytes, from first to last."""

    def read(self, nbytes: int) -> Bytes:
        """The next ``nbytes``, fewer at the end; valid until the next call."""

    def finish(self) -> bytes:
        """The SHA-256 of the whole tensor."""


class Pack(Closing):
    """An open pack, its whole header checked. A context manager; reads are thread-safe.

    ``report`` receives every fault of the header documents; the default raises the first. Use ``open_pack``.
    """

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS, report: Report = raise_first) -> None:
        self.path = path
        self._file = SourceFile(path)
        try:
            with located(str(path)), _collector_paused():
                self._read_documents(limits, report)
        except BaseException:
            self.close()
            raise
        self.entries: dict[str, Entry] = {entry.name: entry for entry in self.manifest.tensors}

    def _read_documents(self, limits: Limits, report: Report) -> None:
        """Every check before DATA, in the order of spec/container.md."""
        header = read_header(self._read_file, self._file.size, limits)
        meaning = wire.read(header.manifest, limits, "MANIFEST")
        place = wire.read(header.storage, limits, "STORAGE")
        manifest = manifest_room.parse(meaning, limits, report)
        contents = plan(manifest, limits, report)
        storage = storage_room.parse(place, limits, len(contents.all))
        for index, segment in enumerate(storage.segments):
            if segment.codec not in CODECS:
                codec_named(segment.codec, f"STORAGE segment {index}")
        planes = (content.planes for content in contents.all)
        self.extents: tuple[Extent, ...] = storage_room.lay_out(storage, planes, header.data_length)
        self._data_offset = header.data_offset
        self.pack_id: str = sha256(header.manifest).hex()
        self.manifest: Manifest = manifest
        self.contents: Contents = contents

    def close(self) -> None:
        self._file.close()

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self._file.size

    @property
    def header_bytes(self) -> int:
        """Everything before DATA."""
        return self._data_offset

    def keys(self) -> list[str]:
        """The names of the tensors that differ between base and result, ascending."""
        return list(self.entries)

    def metadata(self) -> dict[str, str]:
        """What the author wrote about the pack. Claims, never proof."""
        return dict(self.manifest.metadata)

    def info(self, name: str) -> TensorInfo:
        """What the header says of one tensor; nothing is decoded. base.missing for a name that is not listed."""
        entry = self._entry(name)
        kind = entry.result.kind if entry.result else None
        components = self.contents.components[name]
        return TensorInfo(
            name=name,
            tensor_class=entry.tensor_class,
            module=entry.module,
            change=change_of(entry),
            dtype=kind.dtype if kind else None,
            shape=kind.shape if kind else None,
            encodings=tuple(each.encoding.name for each in components),
            nbytes=sum(self.extents[each.segment].length for each in components),
        )

    def get_delta(self, name: str, bench: Bench | None = None) -> NDArray[np.float32]:
        """The change of a tensor whose components only add: float32 of the tensor's shape.

        unsupported.operation when a component rewrites bits: such a change exists only on its base; see ``get_tensor``.
        """
        target, additive = self._summands(name)
        delta = delta_of(target.grid, additive, bench or cpu_bench(), f"tensor {name!r}")
        try:
            return delta.reshape(target.shape)
        except ValueError:  # no elements, and dimensions that no array can have
            raise error("unsupported.operation", f"tensor {name!r}", f"numpy has no shape {target.shape}") from None

    def _summands(self, name: str) -> tuple[Target, Sequence[Additive]]:
        """The tensor, and its components, which only add; unsupported.operation where that is not so."""
        entry = self._entry(name)
        change = self.open_components(name)
        if entry.result is None or entry.alias is not None or change.rewriting is not None:
            message = f"{change_of(entry)} by replacing bits, which is no delta; use get_tensor with the base"
            raise error("unsupported.operation", f"tensor {name!r}", message)
        return target_of(entry.result.kind), change.additive

    def get_tensor(
        self,
        name: str,
        base: Bytes | None,
        bench: Bench | None = None,
        base_sha256: bytes | None = None,
    ) -> Array:
        """The result tensor as flat bit patterns, made from the base tensor's bytes and proved by its digest.

        base.content when ``base`` is not the tensor the pack was made for, integrity.result when the result is wrong.
        An alias has no tensor of its own: make the one it names. A caller that has already hashed ``base`` passes its
        digest, so that it is not hashed twice.
        """
        entry, result, where = self._made_entry(name)
        expected = entry.base.sha256 if entry.base else None
        if base is not None and base_sha256 is None:
            base_sha256 = sha256(base)
        if expected != base_sha256:
            raise error("base.content", where, "it is not the base tensor this pack was made for")
        start = start_of(base, entry.base.kind if entry.base else None, result.kind)
        made = make(start, result.kind, self.open_components(name), bench or cpu_bench(), where)
        if sha256_of(made) != result.sha256:
            raise error("integrity.result", where, "the tensor made has not the SHA-256 that MANIFEST promises")
        return made

    def get_blocks(self, name: str, base: Stream | None, bench: Bench | None = None) -> Iterator[Array]:
        """``get_tensor`` in flat blocks, in order, of a base that is read as it is needed.

        Nothing is proved before the last block has been taken: only then are base and result compared with their
        digests. A block is valid until the next one is asked for.
        """
        entry, result, where = self._made_entry(name)
        if (base is None) != (entry.base is None):
            raise error("base.content", where, "it is not the base tensor this pack was made for")
        kind = entry.base.kind if entry.base else None
        read, dtype = start_blocks(base.read if base else None, kind, result.kind)
        digest = hashlib.sha256()
        for _, bits in made_blocks(read, dtype, result.kind, self.open_components(name), bench or cpu_bench(), where):
            digest.update(bits.data)
            yield bits
        if base and entry.base and base.finish() != entry.base.sha256:
            raise error("base.content", where, "it is not the base tensor this pack was made for")
        if digest.digest() != result.sha256:
            raise error("integrity.result", where, "the tensor made has not the SHA-256 that MANIFEST promises")

    def open_components(self, name: str) -> Change:
        """Read, prove and open every component of a tensor."""
        entry = self._entry(name)
        additive: list[Additive] = []
        rewriting: Rewriting | None = None
        if entry.result is not None:
            target = target_of(entry.result.kind)
            for planned in self.contents.components[name]:
                content = self.contents.all[planned.segment]
                parts = self.read_content(planned.segment)
                opened: Any = planned.encoding.open(planned.params, target, parts, content.where)
                if planned.adds:
                    additive.append(opened)
                else:
                    rewriting = opened
        return Change(additive, rewriting)

    def read_side_file(self, name: str) -> bytes:
        """The bytes of a side file, proved by its digest."""
        for index, each in enumerate(self.manifest.files):
            if each.name == name:
                return self.read_content(self.contents.first_file + index)["bytes"].tobytes()
        raise error("usage.argument", f"file {name!r}", "the pack does not carry it")

    def read_layout(self) -> dict[str, bytes]:
        """The index and the heads of the layout by file name, proved by their digests; empty where there is none."""
        layout = self.manifest.layout
        listed = layout.contents if layout else ()
        first = self.contents.first_layout
        return {each.name: self.read_content(first + i)["bytes"].tobytes() for i, each in enumerate(listed)}

    def read_content(self, segment: int) -> dict[str, Array]:
        """The parts of one content, proved by its digest."""
        content: Content = self.contents.all[segment]
        with located(str(self.path)):
            return load(content, self.extents[segment], self._read_data)

    def read_content_runs(self, segment: int, runs: Mapping[str, slice]) -> dict[str, Array]:
        """The items ``runs`` of every part of one content: proved where that is all, or else see ``load_runs``."""
        content = self.contents.all[segment]
        if all(runs[part.name] == slice(0, part.count) for part in content.parts):
            return self.read_content(segment)
        with located(str(self.path)):
            return load_runs(content, self.extents[segment], self._read_data, runs)

    def require_unchanged(self) -> None:
        """integrity.source-changed when the file was written to since it was opened."""
        self._file.require_unchanged()

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            raise error(
                "usage.argument", f"tensor {name!r}", "the pack does not list it: unchanged, or not of its base"
            )
        return entry

    def _made_entry(self, name: str) -> tuple[Entry, TensorIdentity, str]:
        """The entry of a tensor that has a result of its own, that result, and what errors call the tensor."""
        entry = self._entry(name)
        where = f"tensor {name!r}"
        if entry.result is None or entry.alias is not None:
            raise error("unsupported.operation", where, f"it is {change_of(entry)}, nothing is made for it")
        return entry, entry.result, where

    def _read_file(self, offset: int, count: int) -> bytes:
        return bytes(self._file.read_at(offset, count))

    def _read_data(self, offset: int, count: int) -> bytearray:
        return self._file.read_at(self._data_offset + offset, count)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No cyclic garbage collection: a header is many small values and no cycle, and looking for some costs a fifth.

    What was read of a header that is refused is gone before, and does not live as long as the error is kept.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    except SkillPackError as found:
        traceback.clear_frames(found.__traceback__)
        raise
    finally:
        if was_enabled:
            gc.enable()


def open_pack(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Pack:
    """Open a pack and check its whole header; contents are read and proved when they are asked for."""
    return Pack(Path(path), limits)


def change_of(entry: Entry) -> str:
    """One word for what happens to a tensor: changed, added, removed or alias."""
    if entry.result is None:
        return "removed"
    if entry.alias is not None:
        return "alias"
    return "changed" if entry.base is not None else "added"
