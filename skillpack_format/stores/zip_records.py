"""The records of a zip archive whose members are stored as they are, as torch writes it.

The rule: an archive means one thing or is refused. What is said twice must be said the same, nothing is compressed,
names are plain paths below the archive, and no two members share a byte; so a record's place and size are facts about
the file, found without reading the record.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from skillpack_format.errors import SkillPackError, error, located
from skillpack_format.limits import Limits
from skillpack_format.sources import SourceFile

_END: Final = struct.Struct("<4s4H2IH")  # end of central directory, APPNOTE 4.3.16
_END64_PLACE: Final = struct.Struct("<4sIQI")  # 4.3.15
_END64: Final = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_MEMBER: Final = struct.Struct("<4s6H3I5H2I")  # 4.3.12
_LOCAL: Final = struct.Struct("<4s5H3I2H")  # 4.3.7
_ENCRYPTED: Final = 0x2041  # flag bits 0, 6 and 13
_NOT_HERE: Final = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)  # counts, size and place that the zip64 end record has
_IN_EXTRA: Final = 0xFFFFFFFF  # the value stands in the zip64 extra field
_PROOF_BYTES: Final = 1 << 20
MEMBERS_BEYOND_TENSORS: Final = 64  # an archive has a few records beside one for each storage


@dataclass(frozen=True, slots=True)
class Record:
    """One member: where its bytes begin in the file, how many there are, and the CRC-32 they must have."""

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class _Directory:
    offset: int
    nbytes: int
    count: int


def read_records(source: SourceFile, limits: Limits) -> dict[str, Record]:
    """Every record of the archive by name, in the order of their bytes; checkpoint.layout says what is wrong."""
    with located(str(source.path)):
        directory = _find_directory(source)
        limits.require("tensors", directory.count - MEMBERS_BEYOND_TENSORS, "zip directory")
        limits.require("checkpoint_header_bytes", directory.nbytes, "zip directory")
        members = _parse_directory(source, directory)
        records: dict[str, Record] = {}
        free = 0
        for at, record in sorted(members, key=lambda member: member[0]):
            if record.name in records:
                raise error("checkpoint.duplicate", "zip directory", f"{record.name!r} is there more than once")
            if at < free:
                raise _wrong(f"record {record.name!r} begins at byte {at}, within the one before it")
            placed = _place(source, at, record, directory.offset)
            records[record.name] = placed
            free = placed.offset + placed.nbytes
        return records


def prove(source: SourceFile, record: Record) -> None:
    """Compare the record's bytes with its CRC-32 (checkpoint.layout)."""
    crc, at, end = 0, record.offset, record.offset + record.nbytes
    while at < end:
        piece = source.read_at(at, min(_PROOF_BYTES, end - at))
        crc = zlib.crc32(piece, crc)
        at += len(piece)
    if crc != record.crc32:
        raise error("checkpoint.layout", f"{source.path}, record {record.name!r}", "the CRC-32 of its bytes is wrong")


def _wrong(message: str) -> SkillPackError:
    return error("checkpoint.layout", "zip directory", message)


def _find_directory(source: SourceFile) -> _Directory:
    """The central directory, which ends where the closing records begin; nothing may follow those."""
    end_at = source.size - _END.size
    if end_at < 0:
        raise _wrong(f"{source.size} bytes are no zip archive")
    mark, disk, first_disk, here, count, nbytes, offset, comment = _END.unpack(source.read_at(end_at, _END.size))
    if mark != b"PK\x05\x06" or comment:
        raise _wrong("the file does not end with the end record of a zip archive; it may be cut off")
    if disk or first_disk or here != count:
        raise _wrong("it is one part of several")
    closing = end_at
    place_at = end_at - _END64_PLACE.size
    if place_at >= 0:
        mark, disk, at, disks = _END64_PLACE.unpack(source.read_at(place_at, _END64_PLACE.size))
        if mark == b"PK\x06\x07":
            if disk or disks != 1 or at != place_at - _END64.size:
                raise _wrong("the zip64 end record is not where it must be")
            short = (here, count, nbytes, offset)
            mark, size, _, _, disk, first_disk, here, count, nbytes, offset = _END64.unpack(
                source.read_at(at, _END64.size)
            )
            whole = zip(short, (here, count, nbytes, offset), _NOT_HERE, strict=True)
            if any(least not in (most, elsewhere) for least, most, elsewhere in whole):
                raise _wrong("the two end records differ")
            if mark != b"PK\x06\x06" or size != _END64.size - 12 or disk or first_disk or here != count:
                raise _wrong("the zip64 end record is malformed")
            closing = at
    if offset + nbytes != closing or count * _MEMBER.size > nbytes:
        raise _wrong(f"{count} members in {nbytes} bytes from {offset} on do not end at byte {closing}")
    return _Directory(offset, nbytes, count)


def _parse_directory(source: SourceFile, directory: _Directory) -> list[tuple[int, Record]]:
    """Where each member's local header is, and the member; its ``offset`` is filled in by ``_place``."""
    raw = bytes(source.read_at(directory.offset, directory.nbytes))
    members = []
    at = 0
    for _ in range(directory.count):
        if at + _MEMBER.size > len(raw):
            raise _wrong("a member's description is cut off")
        (
            mark,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc32,
            stored,
            nbytes,
            name_length,
            extra_length,
            comment,
            disk,
            _,
            _,
            local,
        ) = _MEMBER.unpack_from(raw, at)
        at += _MEMBER.size
        end = at + name_length + extra_length + comment
        if mark != b"PK\x01\x02" or end > len(raw) or disk:
            raise _wrong("a member's description is malformed")
        name = _parse_name(raw[at : at + name_length])
        extra = raw[at + name_length : at + name_length + extra_length]
        nbytes, stored, local = _widen(name, extra, [nbytes, stored, local])
        if flags & _ENCRYPTED:
            raise _wrong(f"record {name!r} is encrypted")
        if method or stored != nbytes:
            raise _wrong(f"record {name!r} is compressed (method {method}); torch stores its records as they are")
        members.append((local, Record(name, 0, nbytes, crc32)))
        at = end
    if at != len(raw):
        raise _wrong(f"{len(raw) - at} bytes follow the last member's description")
    return members


def _parse_name(raw: bytes) -> str:
    """A relative path of plain parts. It never becomes a path here; a name that could is a sign of another intent."""
    name = raw.decode("latin-1")
    is_plain = all("!" <= char <= "~" and char not in '\\:"' for char in name)
    if not is_plain or any(part in ("", ".", "..") for part in name.split("/")):
        raise error("checkpoint.name", "zip directory", f"{name!r} is not the name of a record of torch")
    return name


def _widen(name: str, extra: bytes, values: list[int]) -> list[int]:
    """``values`` with those that did not fit 32 bits taken from the zip64 extra field, in order (APPNOTE 4.5.3)."""
    at, fields = 0, b""
    while at < len(extra):
        if at + 4 > len(extra):
            raise _wrong(f"an extra field of {name!r} is cut off")
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise _wrong(f"an extra field of {name!r} is cut off")
        if kind == 1:
            fields += extra[at + 4 : at + 4 + length]
        at += 4 + length
    found = []
    for value in values:
        if value == _IN_EXTRA:
            if len(fields) < 8:
                raise _wrong(f"the 64-bit sizes of {name!r} are missing")
            found.append(int.from_bytes(fields[:8], "little"))
            fields = fields[8:]
        else:
            found.append(value)
    return found


def _place(source: SourceFile, at: int, record: Record, limit: int) -> Record:
    """The record with its offset, its own header compared with the directory's description."""
    if at + _LOCAL.size > limit:
        raise _wrong(f"record {record.name!r} begins outside of the archive")
    mark, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack(source.read_at(at, _LOCAL.size))
    offset = at + _LOCAL.size + name_length + extra_length
    if offset + record.nbytes > limit:
        raise _wrong(f"record {record.name!r} of {record.nbytes} bytes ends outside of the archive")
    name = bytes(source.read_at(at + _LOCAL.size, name_length))
    if mark != b"PK\x03\x04" or method or flags & _ENCRYPTED or name != record.name.encode("ascii"):
        raise _wrong(f"record {record.name!r} is described otherwise where it begins")
    return Record(record.name, offset, record.nbytes, record.crc32)
