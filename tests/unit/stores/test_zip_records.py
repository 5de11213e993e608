"""Zip archives of stored records: what is one is read, what could mislead is refused."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import fault_of, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.sources import SourceFile
from skillpack_format.stores.zip_records import MEMBERS_BEYOND_TENSORS, Record, prove, read_records


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, raw in members.items():
            file.writestr(name, raw)
    return buffer.getvalue()


GOOD = zipped({"a/data.pkl": b"pickle", "a/data/0": bytes(range(100))})
DIRECTORY = GOOD.index(b"PK\x01\x02")
END = GOOD.index(b"PK\x05\x06")


@pytest.fixture
def records(tmp_path: Path) -> Callable[[bytes], dict[str, Record]]:
    def read(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, Record]:
        (tmp_path / "x.pt").write_bytes(raw)
        with SourceFile(tmp_path / "x.pt") as source:
            found = read_records(source, limits)
            for record in found.values():
                prove(source, record)
            return found

    return read


def patched(at: int, new: bytes) -> bytes:
    return GOOD[:at] + new + GOOD[at + len(new) :]


def test_records_are_where_the_standard_library_finds_them(records) -> None:
    found = records(GOOD)
    with zipfile.ZipFile(io.BytesIO(GOOD)) as file:
        for name, record in found.items():
            assert GOOD[record.offset : record.offset + record.nbytes] == file.read(name)
    assert list(found) == ["a/data.pkl", "a/data/0"]


def test_an_archive_of_torch_is_read(records, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    torch.save({"w": torch.arange(5)}, tmp_path / "t.pt")
    found = records((tmp_path / "t.pt").read_bytes())
    assert {"t/data.pkl", "t/data/0", "t/version"} <= set(found)
    assert found["t/data/0"].nbytes == 40


def test_an_archive_of_nothing_has_no_records(records) -> None:
    assert records(zipped({})) == {}


def test_every_printable_character_that_means_nothing_to_a_path_may_be_in_a_name(records) -> None:
    name = "".join(char for char in map(chr, range(33, 127)) if char not in '\\:"/')
    assert list(records(zipped({f"a/{name}": b"x"}))) == [f"a/{name}"]


# ---- archives made field by field

CRC = 0x352441C2  # of b"abc"
MOST = 0xFFFFFFFF


def begun(name: bytes, data: bytes) -> bytes:
    """A member where it begins: its own header and its bytes."""
    return struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, CRC, 3, 3, len(name), 0) + name + data


def described(
    name: bytes, at: int, crc32: int = CRC, nbytes: int = 3, *, extra: bytes = b"", comment: bytes = b""
) -> bytes:
    """A member as the directory describes it."""
    lengths = (len(name), len(extra), len(comment))
    fields = (45, 45, 0, 0, 0, 0, crc32, nbytes, nbytes, *lengths, 0, 0, 0, at)
    return struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *fields) + name + extra + comment


def closed(count: int, nbytes: int, offset: int) -> bytes:
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, nbytes, offset, 0)


def made(members: bytes, *directory: bytes, count: int | None = None) -> bytes:
    raw = b"".join(directory)
    return members + raw + closed(len(directory) if count is None else count, len(raw), len(members))


def wide(
    place: Mapping[str, Any] = {}, end64: Mapping[str, Any] = {}, gap: bytes = b"", end: bytes | None = None
) -> bytes:
    """One member, its sizes and its place in 64-bit fields, as in archives above 4 GiB."""
    members = begun(b"m", b"abc")
    directory = described(b"m", MOST, nbytes=MOST, extra=struct.pack("<2HQQQ", 1, 24, 3, 3, 0))
    at = len(members) + len(directory)
    fields64 = {"mark": b"PK\x06\x06", "size": 44, "made by": 45, "needs": 45, "disk": 0, "first disk": 0}
    fields64 |= {"here": 1, "count": 1, "nbytes": len(directory), "offset": len(members)} | end64
    fields = {"mark": b"PK\x06\x07", "disk": 0, "at": at, "disks": 1} | place
    closing = struct.pack("<4sQ2H2I4Q", *fields64.values()) + gap + struct.pack("<4sIQI", *fields.values())
    return members + directory + closing + (end or closed(0xFFFF, MOST, MOST))


def test_64_bit_sizes_are_read(records) -> None:
    assert records(wide()) == {"m": Record("m", 31, 3, CRC)}
    assert records(wide(end=closed(1, MOST, 34))) == {"m": Record("m", 31, 3, CRC)}


WRONG_IN_64_BITS: dict[str, bytes] = {
    "no 64-bit sizes": wide().replace(struct.pack("<2H", 1, 24), struct.pack("<2H", 9, 24)),
    "an extra field that is cut off": wide().replace(struct.pack("<2H", 1, 24), struct.pack("<2H", 1, 25)),
    "two end records that differ": wide(end=closed(1, 9, 9)),
    "an end record of another kind": wide(end64={"mark": b"PK\x06\x05"}),
    "an end record of another size": wide(end64={"size": 45}),
    "a directory on another disk": wide(end64={"disk": 1}),
    "a directory that begins on another disk": wide(end64={"first disk": 1}),
    "a member on another disk": wide(end64={"here": 2}),
    "more members than any directory holds": wide(end64={"count": 1 << 40, "here": 1 << 40}),
    "an end record on another disk": wide(place={"disk": 1}),
    "two disks": wide(place={"disks": 2}),
    "an end record elsewhere": wide(place={"at": 0}),
    "something behind the end record": wide(gap=bytes(56)),
    "no end record at all": b"PK\x06\x07" + bytes(12) + b"\1\0\0\0" + closed(0, 0, 20),
}


@pytest.mark.parametrize("raw", WRONG_IN_64_BITS.values(), ids=WRONG_IN_64_BITS)
def test_an_archive_in_64_bits_that_does_not_fit_together_is_refused(records, raw: bytes) -> None:
    refused("checkpoint.layout", records, raw)


INNER = begun(b"b", b"abc")  # a member that another one holds among its bytes
OUTER = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a" + INNER
EMPTY = begun(b"m", b"")

WRONG: dict[str, bytes] = {
    "a member within another": made(
        OUTER, described(b"a", 0, zlib.crc32(INNER), len(INNER)), described(b"b", len(OUTER) - len(INNER))
    ),
    "a description that is not there": made(EMPTY, described(b"m", 0, 0, 0, comment=bytes(46)), count=2),
    "something behind the directory": GOOD[:END] + bytes(4) + GOOD[END:],
    "64-bit sizes that are missing": made(EMPTY, described(b"m", 0, 0, MOST)),
    "an extra field of one byte": made(EMPTY, described(b"m", 0, 0, 0, extra=b"\1")),
    "an extra field without its length": made(EMPTY, described(b"m", 0, 0, 0, extra=b"\1\0\0")),
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG)
def test_an_archive_is_refused_that_has(records, raw: bytes) -> None:
    refused("checkpoint.layout", records, raw)


def test_an_empty_name_is_refused(records) -> None:
    refused("checkpoint.name", records, made(begun(b"", b""), described(b"", 0, 0, 0)))


def test_extra_fields_of_other_kinds_and_comments_are_passed_over(records) -> None:
    raw = made(EMPTY, described(b"m", 0, 0, 0, extra=struct.pack("<2H", 0x7875, 0), comment=b"words"))
    assert records(raw) == {"m": Record("m", 31, 0, 0)}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records_are_refused(records, method: int) -> None:
    found = refused("checkpoint.layout", records, zipped({"a/data.pkl": bytes(1 << 20)}, method))
    assert "compressed" in str(found)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(records) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/x", b"1")
        file.writestr("a/x", b"2")
    refused("checkpoint.duplicate", records, buffer.getvalue())


@pytest.mark.parametrize("name", ["../x", "/x", "a//x", "a/../x", "./x", "a\\x", "c:x", "a b", "a/\x1b[31m", "é", "a/"])
def test_a_name_that_is_a_path_trick_is_refused(records, name: str) -> None:
    refused("checkpoint.name", records, zipped({name: b"x"}))


@pytest.mark.parametrize(
    ("what", "raw"),
    [
        ("nothing", b""),
        ("cut", GOOD[:-1]),
        ("cut within the directory", GOOD[: END - 5]),
        ("something after the end", GOOD + b"\0"),
        ("an end of another kind", patched(END, b"PK\x05\x07")),
        ("a comment", patched(END + 20, b"\1\0") + b"x"),
        ("a comment that is not there", patched(END + 20, b"\1\0")),
        ("several disks", patched(END + 4, b"\1\0")),
        ("a directory that begins on another disk", patched(END + 6, b"\1\0")),
        ("counts that differ", patched(END + 8, b"\1\0")),
        ("more members than the directory holds", patched(END + 8, b"\xff\0\xff\0")),
        ("fewer members", patched(END + 8, b"\1\0\1\0")),
        ("a directory elsewhere", patched(END + 16, b"\0\0\0\0")),
        ("a member of another kind", patched(DIRECTORY, b"PK\x09\x09")),
        ("an encrypted member", patched(DIRECTORY + 8, b"\1\0")),
        ("a compressed member", patched(DIRECTORY + 10, b"\x08\0")),
        ("a stored size that differs", patched(DIRECTORY + 20, b"\x07\0\0\0")),
        ("a size beyond the file", patched(DIRECTORY + 20, b"\xf0\xff\xff\x7f\xf0\xff\xff\x7f")),
        ("a size in an extra field that is not there", patched(DIRECTORY + 20, b"\xff" * 8)),
        ("a name beyond the directory", patched(DIRECTORY + 28, b"\xff\xff")),
        ("a member on another disk", patched(DIRECTORY + 34, b"\1\0")),
        ("a place beyond the file", patched(DIRECTORY + 42, b"\0\0\0\x7f")),
        ("a place within another", patched(GOOD.index(b"PK\x01\x02", DIRECTORY + 1) + 42, b"\2\0\0\0")),
        ("two members in one place", patched(GOOD.index(b"PK\x01\x02", DIRECTORY + 1) + 42, b"\0\0\0\0")),
        ("a local header of another kind", patched(0, b"PK\x03\x05")),
        ("a local name that differs", patched(30, b"b")),
        ("a local method that differs", patched(8, b"\x08\0")),
        ("a local header of an encrypted member", patched(6, b"\1\0")),
        ("a local name that reaches far", patched(26, b"\xff\xff")),
        ("other bytes than the CRC-32 says", GOOD.replace(b"pickle", b"Pickle")),
    ],
)
def test_an_archive_that_does_not_fit_together_is_refused(records, what: str, raw: bytes) -> None:
    refused("checkpoint.layout", records, raw)


def test_the_number_of_members_is_limited(records) -> None:
    raw = zipped({f"a/data/{index}": b"" for index in range(100)})
    assert len(records(raw, Limits(tensors=100 - MEMBERS_BEYOND_TENSORS))) == 100
    refused("limit.exceeded", records, raw, Limits(tensors=99 - MEMBERS_BEYOND_TENSORS))


def test_the_size_of_the_directory_is_limited(records) -> None:
    assert len(records(GOOD, Limits(checkpoint_header_bytes=END - DIRECTORY))) == 2
    refused("limit.exceeded", records, GOOD, Limits(checkpoint_header_bytes=END - DIRECTORY - 1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(GOOD)))
def test_any_damage_is_answered_in_words(records, changes: list[tuple[int, int]], length: int) -> None:
    raw = bytearray(GOOD)
    for at, value in changes:
        raw[at] = value
    for each in (bytes(raw), bytes(raw[:length])):
        found = fault_of(records, each)
        assert found is None or str(found).isascii()
