"""Writing a checkpoint: safetensors files tensor by tensor, and the index of a sharded one.

The rule: the bytes are those that the reference library would write, and that library is asked to open every file
before it counts as written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import safetensors

from skillpack_format.durable import OutputFile, new_file
from skillpack_format.errors import error
from skillpack_format.stores.header import METADATA_KEY, TensorSpec, canonical_order, encode_header

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


class ShardWriter:
    """One safetensors file. ``path`` must not exist; a failed file is removed.

    The head is the reference library's, and ``tensors`` are laid out as it would; or it is ``head``, bytes that say
    where ``tensors``, in this order, are.
    """

    __slots__ = ("_file", "_written", "path", "tensors")

    def __init__(
        self, path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str], head: bytes | None = None
    ) -> None:
        names = {spec.name for spec in tensors}
        if len(names) < len(tensors) or METADATA_KEY in names:
            raise error(
                "usage.argument", str(path), f"tensor names must differ from each other and from {METADATA_KEY}"
            )
        self.path = path
        self.tensors = canonical_order(tensors) if head is None else tuple(tensors)
        self._written = 0
        if head is None:
            head = encode_header(self.tensors, {"format": "pt", **metadata})  # transformers refuses a file without
        self._file = OutputFile(path)
        try:
            self._file.write(head)
        except BaseException:
            self._file.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, found: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.discard()

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write the bytes of the next tensor, little-endian, C order."""
        expected = self.tensors[self._written] if self._written < len(self.tensors) else None
        if expected is None or expected.name != name:
            due = "no tensor" if expected is None else repr(expected.name)
            raise error("usage.argument", str(self.path), f"{due} is due, not {name!r}")
        nbytes = memoryview(data).nbytes
        if nbytes != expected.nbytes:
            raise error("usage.argument", f"tensor {name!r}", f"{nbytes} bytes given, {expected.nbytes} are due")
        self._file.write(data)
        self._written += 1

    def close(self) -> None:
        """Force the file to disk and have the reference library open it; a second call does nothing."""
        if self._file.closed:
            return
        try:
            if self._written < len(self.tensors):
                due = self.tensors[self._written].name
                raise error("output.failed", str(self.path), f"closed before tensor {due!r} was written")
            self._file.finish()
            self._require_readable()
        except BaseException:
            self._file.discard()
            raise

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


def write_index(path: Path, weight_map: Mapping[str, str], total_size: int, index_metadata: Mapping[str, Any]) -> None:
    """Write the index of a sharded checkpoint as huggingface_hub lays it out. ``path`` must not exist."""
    index = {"metadata": {**index_metadata, "total_size": total_size}, "weight_map": dict(weight_map)}
    with new_file(path) as file:
        file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode("utf-8"))
