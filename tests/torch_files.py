"""Files of ``torch.save`` made byte by byte: pickles by opcode, archives by record. No torch, and no pickle either."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STORAGES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}
STOP = b"."
MARK = b"("


@dataclass(frozen=True)
class Raw:
    """Opcodes that push a value, as they are."""

    code: bytes


@dataclass(frozen=True)
class Stored:
    """A tensor: a view of the storage ``key`` of ``count`` elements."""

    dtype: str
    key: str
    count: int
    shape: Sequence[int]
    strides: Sequence[int] | None = None
    offset: int = 0


def glob(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def push(value: Any) -> bytes:  # noqa: PLR0911 - one for each type
    """The opcodes of protocol 2 that push ``value``."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Stored):
        return tensor(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        size = (value.bit_length() + 8) // 8
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, tuple):
        return MARK + b"".join(map(push, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(push, value)) + b"e"
    assert isinstance(value, dict)
    return b"}(" + b"".join(push(key) + push(each) for key, each in value.items()) + b"u"


def storage(dtype: str, key: Any, count: Any) -> bytes:
    name = Raw(glob("torch", STORAGES[dtype]))
    return push(("storage", name, key, "cpu", count)) + b"Q"


def tensor(found: Stored, hooks: bytes = glob("collections", "OrderedDict") + b")R") -> bytes:
    strides = contiguous(found.shape) if found.strides is None else found.strides
    arguments = (
        Raw(storage(found.dtype, found.key, found.count)),
        found.offset,
        tuple(found.shape),
        tuple(strides),
        False,
        Raw(hooks),
    )
    return glob("torch._utils", "_rebuild_tensor_v2") + push(arguments) + b"R"


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for dim in reversed(shape[1:]):
        strides.append(strides[-1] * dim)
    return tuple(reversed(strides)) if shape else ()


def program(value: Any) -> bytes:
    """A whole pickle of ``value``."""
    return b"\x80\x02" + push(value) + STOP


def archive(
    pickle: bytes,
    storages: Mapping[str, bytes] = {},
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    **records: bytes,
) -> bytes:
    """A zip archive as torch lays it out. ``records`` are more of them; ``__`` in a name is a slash."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{root}/data.pkl", pickle)
        if byteorder is not None:
            file.writestr(f"{root}/byteorder", byteorder)
        for key, raw in storages.items():
            file.writestr(f"{root}/data/{key}", raw)
        file.writestr(f"{root}/version", b"3\n")
        for name, raw in records.items():
            file.writestr(f"{root}/{name.replace('__', '/')}", raw)
    return buffer.getvalue()


def saved(tensors: Mapping[str, tuple[str, np.ndarray]]) -> bytes:
    """What torch.save writes of a dictionary of tensors: each a dtype's name and its items in their shape."""
    storages = {str(index): np.ascontiguousarray(array).tobytes() for index, (_, array) in enumerate(tensors.values())}
    found = {
        name: Stored(dtype, str(index), array.size, array.shape)
        for index, (name, (dtype, array)) in enumerate(tensors.items())
    }
    return archive(program(found), storages)
