"""Writing a checkpoint: safetensors files tensor by tensor, and the index of a sharded one.

The rule: the bytes are those that the reference library would write, and that library is asked to open every file
before it counts as written.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import safetensors

from skillpack_format.errors import error
from skillpack_format.output_files import OutputFile
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import METADATA_KEY, TensorSpec
from skillpack_format.stores.heads import Head, canonical_head

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Self  # typing has it from Python 3.11 on


class Slot:
    """The place of one tensor in a file being written. It is filled by one thread, from its first byte to its last."""

    __slots__ = ("_filled", "_offset", "_writer", "spec")

    def __init__(self, writer: ShardWriter, spec: TensorSpec, offset: int) -> None:
        self._writer = writer
        self._offset = offset
        self._filled = 0
        self.spec = spec

    def found(self) -> bytes | None:
        """The SHA-256 of what a stopped run left in this place, which may be anything; None where there was no run."""
        return self.sha256() if self._writer.is_resumed else None

    def write(self, data: ReadableBuffer) -> None:
        """Write the next bytes, little-endian, C order."""
        nbytes = memoryview(data).nbytes
        if self._filled + nbytes > self.spec.nbytes:
            message = f"{self._filled + nbytes} bytes given, {self.spec.nbytes} are due"
            raise error("usage.argument", f"tensor {self.spec.name!r}", message)
        self._writer.file.write_at(self._offset + self._filled, data)
        self._filled += nbytes

    def copy(self, source: SourceFile, start: int) -> None:
        """Have the kernel copy the tensor from ``start`` of ``source``; what arrived is for ``sha256`` to say."""
        self._writer.file.copy_at(self._offset, source, start, self.spec.nbytes)
        self._filled = self.spec.nbytes

    def sha256(self) -> bytes:
        """The SHA-256 of what the file holds in this place now."""
        return self._writer.read_back.sha256_at(self._offset, self.spec.nbytes)

    def keep(self) -> None:
        """What is there is the tensor: whoever says so has compared its digest."""
        self._filled = self.spec.nbytes

    def close(self) -> None:
        """Count the tensor as written; usage.argument when bytes are missing."""
        if self._filled < self.spec.nbytes:
            message = f"{self._filled} bytes given, {self.spec.nbytes} are due"
            raise error("usage.argument", f"tensor {self.spec.name!r}", message)
        self._writer.file.begin_writing(self._offset, self.spec.nbytes)
        self._writer.count(self.spec.name)


class ShardWriter:
    """One safetensors file, its tensors written in any order and from any number of threads, each through its slot.

    The head is the reference library's, and ``tensors`` are laid out as it would; or it is ``head``, bytes that say
    where ``tensors``, in this order, are.

    ``path`` must not exist; a failed file is removed. With ``resume`` it may hold what a stopped run left
    (``Slot.found``), and a failed file is left to its owner.
    """

    def __init__(
        self,
        path: Path,
        tensors: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        *,
        head: bytes | None = None,
        resume: bool = False,
    ) -> None:
        names = {spec.name for spec in tensors}
        if len(names) < len(tensors) or METADATA_KEY in names:
            raise error(
                "usage.argument", str(path), f"tensor names must differ from each other and from {METADATA_KEY}"
            )
        self.path = path
        laid_out = canonical_head(path.name, tensors, metadata) if head is None else Head(path.name, head, (*tensors,))
        self.tensors = laid_out.tensors
        self._head = laid_out.raw
        self._offsets: dict[str, int] = {}
        self._size = len(self._head)
        for spec in self.tensors:
            self._offsets[spec.name] = self._size
            self._size += spec.nbytes
        self._specs = {spec.name: spec for spec in self.tensors}
        self._missing = set(self._specs)
        self._lock = threading.Lock()
        self._is_kept = resume
        self.file = OutputFile(path, resume=resume)
        try:
            self.read_back = SourceFile(path)
            self.is_resumed = resume and self._has_head()
            if not self.is_resumed:
                self.file.cut(0)
                self.file.write(self._head)
            self.file.cut(self._size)
        except BaseException:
            self._give_up()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, found: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._give_up()

    @property
    def is_complete(self) -> bool:
        """Whether every tensor has been written."""
        return not self._missing

    def slot(self, name: str) -> Slot:
        """The place of a tensor that has not been written yet."""
        if name not in self._missing:
            raise error("usage.argument", str(self.path), f"no tensor {name!r} is due")
        return Slot(self, self._specs[name], self._offsets[name])

    def write(self, name: str, data: ReadableBuffer) -> None:
        """Write a whole tensor, little-endian, C order."""
        slot = self.slot(name)
        slot.write(data)
        slot.close()

    def copy_whole(self, source: SourceFile) -> bool:
        """Have the kernel copy ``source``, if it begins as this file does; its tensors are then in their slots.

        They count as written once their slots say ``keep``. False, and nothing done, where ``source`` is laid out in
        another way.
        """
        if source.size != self._size or source.read_at(0, len(self._head)) != self._head:
            return False
        self.file.copy_at(0, source, 0, self._size)
        if not self._has_head():
            raise error("integrity.source-changed", str(source.path), "was changed while it was being copied")
        return True

    def count(self, name: str) -> None:
        """Note that the tensor ``name`` is written; its slot calls this."""
        with self._lock:
            self._missing.discard(name)

    def close(self) -> None:
        """Force the file to disk and have the reference library open it; a second call does nothing."""
        if self.file.closed:
            return
        try:
            if self._missing:
                raise error("output.failed", str(self.path), f"closed before tensor {min(self._missing)!r} was written")
            self.file.finish()
            self._require_readable()
        except BaseException:
            self._give_up()
            raise
        self.read_back.close()

    def _has_head(self) -> bool:
        nbytes = len(self._head)
        return os.fstat(self.file.fileno()).st_size >= nbytes and self.read_back.read_at(0, nbytes) == self._head

    def _give_up(self) -> None:
        if hasattr(self, "read_back"):
            self.read_back.close()
        if self._is_kept:
            self.file.close()
        else:
            self.file.discard()

    def _require_readable(self) -> None:
        try:
            with safetensors.safe_open(self.path, framework="numpy") as opened:
                found = set(opened.keys())
        except (safetensors.SafetensorError, OSError) as failure:
            raise error(
                "output.failed", str(self.path), f"safetensors cannot open what was written: {failure}"
            ) from failure
        if found != {spec.name for spec in self.tensors}:
            raise error("output.failed", str(self.path), "safetensors finds other tensors than were written")


def encode_index(weight_map: Mapping[str, str], total_size: int, index_metadata: Mapping[str, Any]) -> bytes:
    """The index of a sharded checkpoint, as huggingface_hub lays it out."""
    index = {"metadata": {**index_metadata, "total_size": total_size}, "weight_map": dict(weight_map)}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("utf-8")
