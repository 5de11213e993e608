"""Zip archives of stored records: what is one is read, what could mislead is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import fault_of, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.sources import SourceFile
from skillpack_format.stores.zip_records import Record, prove, read_records


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


def test_64_bit_sizes_are_read(records) -> None:
    """A member whose sizes stand in the extra field, as in archives above 4 GiB."""
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0x352441C2, 3, 3, 1, 0) + b"m" + b"abc"
    extra = struct.pack("<2HQQQ", 1, 24, 3, 3, 0)
    most = 0xFFFFFFFF
    member = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, 0x352441C2, most, most, 1, len(extra), 0, 0, 0, 0, most
    )
    directory = member + b"m" + extra
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), len(local))
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(local) + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, most, most, 0)
    raw = local + directory + end64 + place + end
    assert records(raw)["m"] == Record("m", len(local) - 3, 3, 0x352441C2)
    refused("checkpoint.layout", records, raw.replace(struct.pack("<2H", 1, 24), struct.pack("<2H", 9, 24)))
    refused("checkpoint.layout", records, raw.replace(end, struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 9, 9, 0)))
    refused("checkpoint.layout", records, raw.replace(b"PK\x06\x06", b"PK\x06\x05"))
    refused("checkpoint.layout", records, raw.replace(struct.pack("<2H", 1, 24), struct.pack("<2H", 1, 25)))
    refused("checkpoint.layout", records, raw.replace(place, struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)))


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
        ("a comment", patched(END + 20, b"\1\0") + b"x"),
        ("several disks", patched(END + 4, b"\1\0")),
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
        ("a place beyond the file", patched(DIRECTORY + 42, b"\0\0\0\x7f")),
        ("a place within another", patched(GOOD.index(b"PK\x01\x02", DIRECTORY + 1) + 42, b"\2\0\0\0")),
        ("two members in one place", patched(GOOD.index(b"PK\x01\x02", DIRECTORY + 1) + 42, b"\0\0\0\0")),
        ("a local header of another kind", patched(0, b"PK\x03\x05")),
        ("a local name that differs", patched(30, b"b")),
        ("a local method that differs", patched(8, b"\x08\0")),
        ("a local name that reaches far", patched(26, b"\xff\xff")),
        ("other bytes than the CRC-32 says", GOOD.replace(b"pickle", b"Pickle")),
    ],
)
def test_an_archive_that_does_not_fit_together_is_refused(records, what: str, raw: bytes) -> None:
    refused("checkpoint.layout", records, raw)


def test_the_number_of_members_is_limited(records) -> None:
    raw = zipped({f"a/data/{index}": b"" for index in range(100)})
    assert len(records(raw)) == 100
    refused("limit.exceeded", records, raw, Limits(tensors=8))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(GOOD)))
def test_any_damage_is_answered_in_words(records, changes: list[tuple[int, int]], length: int) -> None:
    raw = bytearray(GOOD)
    for at, value in changes:
        raw[at] = value
    for each in (bytes(raw), bytes(raw[:length])):
        found = fault_of(records, each)
        assert found is None or str(found).isascii()
