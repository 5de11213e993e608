"""Writing a checkpoint: safetensors files tensor by tensor, and the index of a sharded one.

The rule: the bytes are those that the reference library would write, and that library is asked to open every file
before it counts as written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import safetensors

from skillpack_format.digest import sha256
from skillpack_format.durable import OutputFile, new_file
from skillpack_format.errors import error
from skillpack_format.sources import input_errors
from skillpack_format.stores.header import METADATA_KEY, TensorSpec, canonical_order, encode_header

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


class ShardWriter:
    """One safetensors file, written in the order of ``tensors``. ``path`` must not exist; a failed file is removed.

    With ``expected``, the SHA-256 each tensor must have or None where nobody knows, ``path`` may hold what a stopped
    run left: its leading tensors are kept as far as they have their digests, ``remaining`` are to be written, and a
    failed file is left to its owner.
    """

    __slots__ = ("_file", "_is_resumable", "_written", "path", "tensors")

    def __init__(
        self,
        path: Path,
        tensors: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        expected: Callable[[str], bytes | None] | None = None,
    ) -> None:
        names = {spec.name for spec in tensors}
        if len(names) < len(tensors) or METADATA_KEY in names:
            raise error(
                "usage.argument", str(path), f"tensor names must differ from each other and from {METADATA_KEY}"
            )
        self.path = path
        self.tensors = canonical_order(tensors)
        self._written = 0
        self._is_resumable = expected is not None
        header = encode_header(self.tensors, {"format": "pt", **metadata})  # transformers refuses a file without
        self._file = OutputFile(path, resume=self._is_resumable)
        try:
            if expected is None or not self._keep(header, expected):
                self._file.cut(0)
                self._file.write(header)
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
    def remaining(self) -> tuple[TensorSpec, ...]:
        """The tensors not written yet, in the order in which they are due."""
        return self.tensors[self._written :]

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
            self._give_up()
            raise

    def _keep(self, header: bytes, expected: Callable[[str], bytes | None]) -> bool:
        """Go on after the last tensor in a row that is there with the digest it must have; False without the header."""
        if self._read(0, len(header)) != header:
            return False
        at = len(header)
        for spec in self.tensors:
            if spec.nbytes > os.fstat(self._file.fileno()).st_size - at:
                break
            digest = expected(spec.name)
            if digest is None or sha256(self._read(at, spec.nbytes)) != digest:
                break
            at += spec.nbytes
            self._written += 1
        self._file.cut(at)
        return True

    def _read(self, offset: int, nbytes: int) -> bytearray:
        """``nbytes`` of what is there, fewer where the file ends."""
        data = bytearray(nbytes)
        done = 0
        with input_errors(self.path):
            while done < nbytes:
                count = os.preadv(self._file.fileno(), [memoryview(data)[done:]], offset + done)
                if count == 0:
                    break
                done += count
        del data[done:]
        return data

    def _give_up(self) -> None:
        if self._is_resumable:
            self._file.close()
        else:
            self._file.discard()

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


def shard_bytes(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> int:
    """The size in bytes of the file that ``ShardWriter`` writes for these."""
    ordered = canonical_order(tensors)
    return len(encode_header(ordered, {"format": "pt", **metadata})) + sum(spec.nbytes for spec in ordered)


def write_index(path: Path, weight_map: Mapping[str, str], total_size: int, index_metadata: Mapping[str, Any]) -> None:
    """Write the index of a sharded checkpoint as huggingface_hub lays it out. ``path`` must not exist."""
    with new_file(path) as file:
        file.write(encode_index(weight_map, total_size, index_metadata))


def encode_index(weight_map: Mapping[str, str], total_size: int, index_metadata: Mapping[str, Any]) -> bytes:
    """The bytes of such an index."""
    index = {"metadata": {**index_metadata, "total_size": total_size}, "weight_map": dict(weight_map)}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("utf-8")
