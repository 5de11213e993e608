"""Tensors in a file of ``torch.save``, read without torch and without unpickling (``tensor_pickles``).

Only the zip form that torch writes since 1.6 is read, and only a dictionary of tensors in it. A tensor's place follows
from its storage's record, its offset and its strides, all checked against the record's size before memory is taken.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from skillpack_format.closing import Closing
from skillpack_format.dtypes import numel
from skillpack_format.errors import error, located
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import TensorSpec, require_tensor_name
from skillpack_format.stores.tensor_pickles import View, read_pickle
from skillpack_format.stores.zip_records import Record, prove, read_records

ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE: Final = "data.pkl"
_WORDS: Final = {"version", "byteorder"}  # records beside the pickle and the storages; names with a dot in front too


class TorchArchive(Closing):
    """An open file of tensors, made by ``open_archive``. ``specs`` is sorted by name."""

    __slots__ = ("_files", "_places", "_proved", "_source", "path", "specs")

    def __init__(self, source: SourceFile, places: dict[str, tuple[View, Record]], files: ExitStack) -> None:
        self.path = source.path
        self._source = source
        self._files = files
        self._places = places
        self._proved: set[str] = set()
        views = {name: places[name][0] for name in sorted(places)}
        self.specs = {name: TensorSpec(name, view.storage.dtype, view.shape) for name, view in views.items()}

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._files.close()

    def read(self, name: str) -> bytes | bytearray:
        """The bytes of one tensor, little-endian, C order; its record's CRC-32 is compared first."""
        if name not in self._places:
            raise error("usage.argument", str(self.path), f"holds no tensor {name!r}")
        view, record = self._places[name]
        if record.name not in self._proved:
            prove(self._source, record)
            self._proved.add(record.name)
        if not numel(view.shape):
            return b""
        item = view.storage.dtype.bit_pattern
        raw = self._source.read_at(record.offset + view.offset * item.itemsize, _span(view) * item.itemsize)
        steps = zip(view.shape, view.strides, strict=True)
        strides = [stride * item.itemsize if dim > 1 else 0 for dim, stride in steps]  # one element takes no step
        laid_out = np.ndarray(view.shape, item, raw, strides=strides)
        return raw if laid_out.flags.c_contiguous else laid_out.tobytes()

    def require_unchanged(self) -> None:
        """Raise integrity.source-changed when the file is not what it was when it was opened."""
        self._source.require_unchanged()


def open_archive(path: Path, limits: Limits = DEFAULT_LIMITS) -> TorchArchive:
    """Open a file of ``torch.save`` that holds a dictionary of tensors.

    Raises:
        CheckpointError: ``checkpoint.pickle`` for anything but tensors and plain data, ``checkpoint.layout`` for a zip
            archive or a tensor that does not lie as it must.
        UnsupportedError: ``unsupported.checkpoint`` for another form of file, or another value than a dictionary.
    """
    with ExitStack() as files:
        source = files.enter_context(SourceFile(path))
        _require_zip(source)
        records, pickle, storages = _sort(source, read_records(source, limits))
        limits.require("checkpoint_header_bytes", pickle.nbytes, str(path))
        prove(source, pickle)
        with located(str(path)):
            _require_little_endian(source, records)
            found = read_pickle(bytes(source.read_at(pickle.offset, pickle.nbytes)), limits)
            places = {name: _placed(name, view, storages) for name, view in _tensors(found, limits).items()}
        return TorchArchive(source, places, files.pop_all())


def _require_zip(source: SourceFile) -> None:
    head = bytes(source.read_at(0, min(source.size, 16)))
    if head.startswith(ZIP_MAGIC):
        return
    what = "is not a file of torch.save"
    if head[:1] == b"\x80":
        what = "is a bare pickle or of torch's form before 1.6, which cannot be read safely"
    message = f"{what}; where you trust it, load it with torch and save it again with torch.save"
    raise error("unsupported.checkpoint", str(source.path), message)


def _sort(source: SourceFile, records: dict[str, Record]) -> tuple[dict[str, Record], Record, dict[str, Record]]:
    """The records below the one folder of the archive, its pickle, and its storages by key."""
    where = str(source.path)
    roots = {name.partition("/")[0] for name in records}
    if len(roots) != 1:
        raise error("checkpoint.layout", where, f"its records are in {len(roots)} folders, torch writes one")
    inner = {name.partition("/")[2]: record for name, record in records.items()}
    storages = {name.removeprefix("data/"): record for name, record in inner.items() if name.startswith("data/")}
    for name in inner:
        if name != _PICKLE and name not in _WORDS and not name.startswith(("data/", ".")):
            message = f"record {name!r} is none of a file of tensors; TorchScript modules hold code and are not read"
            raise error("unsupported.checkpoint", where, message)
    if _PICKLE not in inner:
        raise error("checkpoint.layout", where, f"there is no record {_PICKLE!r}")
    return inner, inner[_PICKLE], storages


def _require_little_endian(source: SourceFile, records: dict[str, Record]) -> None:
    record = records.get("byteorder")  # missing in files of older releases, which are little-endian
    if record is not None and (record.nbytes != 6 or source.read_at(record.offset, 6) != b"little"):
        raise error("unsupported.checkpoint", "", "its byte order is not little")


def _tensors(found: Any, limits: Limits) -> dict[str, View]:
    if type(found) is not dict:
        raise error("unsupported.checkpoint", "", f"it holds a {type(found).__name__}, not a dictionary of tensors")
    limits.require("tensors", len(found), "pickle")
    for name, value in found.items():
        if type(name) is not str or not isinstance(value, View):
            message = f"under {name!r} it holds a {type(value).__name__}; only tensors are read"
            raise error("unsupported.checkpoint", "", message)
        require_tensor_name(name, limits)
    return found


def _placed(name: str, view: View, storages: dict[str, Record]) -> tuple[View, Record]:
    """The tensor and its record, once every element is known to lie within (checkpoint.layout)."""
    where = f"tensor {name!r}"
    storage = view.storage
    record = storages.get(storage.key)
    if record is None:
        raise error("checkpoint.layout", where, f"there is no record for its storage {storage.key!r}")
    if record.nbytes != storage.count * storage.dtype.itemsize:
        message = f"its storage of {storage.count} {storage.dtype.name} elements has a record of {record.nbytes} bytes"
        raise error("checkpoint.layout", where, message)
    if numel(view.shape) > storage.count:
        message = f"{numel(view.shape)} elements are made of {storage.count}; an expanded tensor is not read"
        raise error("checkpoint.layout", where, message)
    if numel(view.shape) and view.offset + _span(view) > storage.count:
        message = f"its elements reach {view.offset + _span(view)} of the {storage.count} in its storage"
        raise error("checkpoint.layout", where, message)
    return view, record


def _span(view: View) -> int:
    """Elements from the first to the last, both counted."""
    return 1 + sum((dim - 1) * stride for dim, stride in zip(view.shape, view.strides, strict=True))
