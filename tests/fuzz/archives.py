"""The reader of torch archives, under archives whose pickle, records or zip structure were changed.

The pickles here are written by opcode: neither torch nor pickle has a part in it.
"""

from __future__ import annotations

import io
import struct
import zipfile
from random import Random

from fuzz.mutators import INTEGERS, below, mutate_bytes, pick

PIECES = [
    *(bytes([code]) for code in range(256)),
    b"(t.", b"}(", b"u.", b"](e", b")R", b"Q", b"q\x00h\x00", b"h\x00h\x00\x86", b"\x85" * 12, b"]" * 12, b"(" * 40,
    b"cposix\nsystem\n", b"c__builtin__\neval\n",
    b"ccollections\nOrderedDict\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nBoolStorage\n", b"ctorch._utils\n_rebuild_parameter\n", b"X\xff\xff\xff\xff",
    b"X\x01\x00\x00\x00a", b"}X\x09\x00\x00\x00_metadata}sb", b"\x8a\x08" + b"\xff" * 8, b"\x8a\xff", b"G" + bytes(8),
]  # fmt: skip


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(storage: str, key: str, count: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The opcodes that torch writes for one tensor."""
    place = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, each)) + b"t" for each in (shape, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + number(0) + sizes + b"\x89" + hooks + b"tR"


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"\x8a\x08" + value.to_bytes(8, "little")


def archived(pickle: bytes, storages: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, raw in {"data.pkl": pickle, "byteorder": b"little", **storages, "version": b"3\n"}.items():
            file.writestr(f"archive/{name}", raw)
    return buffer.getvalue()


def archive_seeds() -> list[bytes]:
    first = text("a.w") + tensor("FloatStorage", "0", 6, (2, 3), (3, 1))
    second = text("b") + tensor("BFloat16Storage", "1", 4, (2, 2), (1, 2)) + text("c")
    second += tensor("FloatStorage", "0", 6, (2,), (3,))
    ordered = b"ccollections\nOrderedDict\n)Rq\x00(" + first + b"u}" + text("_metadata") + b"}sb"
    storages = {"data/0": bytes(range(24)), "data/1": bytes(8)}
    return [
        archived(b"\x80\x02}q\x00(" + first + b"u.", {"data/0": bytes(24)}),
        archived(b"\x80\x02}(" + first + second + b"u.", storages),
        archived(b"\x80\x02" + ordered + b".", {"data/0": bytes(24)}),
        archived(b"\x80\x02}.", {}),
    ]


def mutate_archive(data: bytes, random: Random) -> bytes:
    """Mostly another pickle in a sound archive: opcodes put in, taken out, swapped, sizes changed."""
    if random.random() < 0.3:
        return mutate_bytes(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            records = {name.removeprefix("archive/"): file.read(name) for name in file.namelist()}
    except (ValueError, EOFError, NotImplementedError, RuntimeError, OSError, zipfile.BadZipFile, struct.error):
        return mutate_bytes(data, random)
    name = "data.pkl" if random.random() < 0.9 or not records else pick(random, list(records))
    raw = bytearray(records.get(name, b""))
    for _ in range(1 + below(random, 3)):
        at = below(random, len(raw) + 1)
        kind = random.random()
        if kind < 0.4:
            raw[at : at + below(random, 3)] = pick(random, PIECES)
        elif kind < 0.6:
            raw[at : at + 9] = b"\x8a\x08" + (pick(random, INTEGERS) & ((1 << 64) - 1)).to_bytes(8, "little")
        else:
            raw = bytearray(mutate_bytes(bytes(raw), random))
    records[name] = bytes(raw)
    try:
        return archived(records.pop("data.pkl", b""), records)
    except (ValueError, UnicodeError, struct.error):
        return mutate_bytes(data, random)
