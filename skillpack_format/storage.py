"""STORAGE: where the bytes lie (spec/storage.md).

The file holds no offsets: segments follow each other in the order of the contents, so there is nothing that could
overlap, leave a hole or point outside. What STORAGE says is only how each chunk is stored and its CRC-32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import le
from typing import Any, Final, NamedTuple, NoReturn

from skillpack_format.errors import SkillPackError, error, placed
from skillpack_format.fields import array, integer, made, require_keys, text
from skillpack_format.limits import DEFAULT_LIMITS, Limits

MIN_CHUNK_BYTES: Final = 1 << 12
MAX_CHUNK_BYTES: Final = 1 << 24
_SEGMENT_KEYS: Final = frozenset(("chunks", "codec"))
RECORD_BYTES: Final = 8  # stored length, CRC-32 of the stored bytes: u32 each


class Segment(NamedTuple):  # see fields.made
    """How one content is stored: its codec's name and its chunk table as it stands in the file."""

    codec: str
    chunks: bytes


@dataclass(frozen=True, slots=True)
class Storage:
    chunk_bytes: int
    segments: tuple[Segment, ...]

    def to_plain(self) -> dict[str, Any]:
        listed = [{"chunks": each.chunks, "codec": each.codec} for each in self.segments]
        return {"chunk_bytes": self.chunk_bytes, "segments": listed}


@dataclass(frozen=True, slots=True)
class Chunk:
    """``stored`` bytes in the file become ``nbytes`` bytes of a plane."""

    stored: int
    crc32: int
    nbytes: int


class Extent(NamedTuple):
    """A segment laid out: ``offset`` and ``length`` in bytes from the start of DATA.

    ``records`` is its chunk table, stored length and CRC-32 in turn, checked against ``sizes``, the decoded lengths.
    """

    offset: int
    length: int
    codec: str
    records: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def chunks(self) -> Iterator[Chunk]:
        return map(Chunk, self.records[::2], self.records[1::2], self.sizes)


def parse(plain: Any, limits: Limits = DEFAULT_LIMITS, contents: int | None = None) -> Storage:
    """The storage document in ``plain``; storage.* or manifest.* says what is wrong.

    ``contents`` is how many segments there must be, where it is known.
    """
    where = "STORAGE"
    require_keys(plain, ("chunk_bytes", "segments"), (), where)
    chunk_bytes = integer(plain, "chunk_bytes", MIN_CHUNK_BYTES, MAX_CHUNK_BYTES, where, "storage.chunk-bytes")
    if chunk_bytes & (chunk_bytes - 1):
        raise error("storage.chunk-bytes", where, f"chunk_bytes is {chunk_bytes}, it must be a power of two")
    limits.require("chunk_bytes", chunk_bytes, where)
    listed = array(plain, "segments", where)
    if contents is not None and len(listed) != contents:
        raise error("storage.segments", where, f"{len(listed)} segments, MANIFEST has {contents} contents")
    segments = []
    for index, each in enumerate(listed):
        try:
            segments.append(_parse_segment(each))
        except SkillPackError as fault:
            raise placed(f"STORAGE segment {index}", fault) from None
    return Storage(chunk_bytes, tuple(segments))


def _parse_segment(plain: Any) -> Segment:
    require_keys(plain, _SEGMENT_KEYS, (), "")
    if not isinstance(plain["chunks"], bytes):
        raise error("manifest.type", "", "chunks must be bytes")
    return made(Segment, (text(plain, "codec", ""), plain["chunks"]))


def chunk_sizes(planes: Sequence[int], chunk_bytes: int) -> tuple[int, ...]:
    """The decoded length of every chunk of planes of these lengths, in order."""
    sizes: list[int] = []
    for plane in planes:
        whole, rest = divmod(plane, chunk_bytes)
        if whole:
            sizes += [chunk_bytes] * whole
        if rest:
            sizes.append(rest)
    return tuple(sizes)


def chunk_count(planes: Sequence[int], chunk_bytes: int) -> int:
    count = 0
    for plane in planes:
        count -= -plane // chunk_bytes
    return count


def chunk_record(stored: int, crc32: int) -> bytes:
    return struct.pack("<II", stored, crc32)


def lay_out(storage: Storage, contents: Iterable[Sequence[int]], data_length: int) -> tuple[Extent, ...]:
    """Where every segment lies. ``contents``: the plane lengths of as many contents, computed from MANIFEST."""
    extents: list[Extent] = []
    end = 0
    for index, (segment, planes) in enumerate(zip(storage.segments, contents, strict=True)):
        try:
            extent = _lay_one(segment, planes, storage.chunk_bytes, end)
        except SkillPackError as fault:
            raise placed(f"STORAGE segment {index}", fault) from None
        extents.append(extent)
        end = extent.end
    if end != data_length:
        message = f"the segments end at byte {end} of DATA, the preamble says {data_length}"
        raise error("storage.data-length", "STORAGE", message)
    return tuple(extents)


def _lay_one(segment: Segment, planes: Sequence[int], chunk_bytes: int, offset: int) -> Extent:
    """One segment at ``offset``, its table as long and its chunks as large as its planes have it."""
    codec, table = segment
    due = chunk_count(planes, chunk_bytes)
    if len(table) != RECORD_BYTES * due:
        message = f"the chunk table has {len(table)} bytes, {due} chunks need {RECORD_BYTES * due}"
        raise error("storage.chunk-table", "", message)
    records = struct.unpack(f"<{2 * due}I", table)
    stored, sizes = records[::2], chunk_sizes(planes, chunk_bytes)
    fits = stored == sizes if codec == "raw" else 0 not in stored and all(map(le, stored, sizes))
    if not fits:
        _refuse_length(codec, stored, sizes)
    return made(Extent, (offset, sum(stored), codec, records, sizes))


def _refuse_length(codec: str, stored: Sequence[int], sizes: Sequence[int]) -> NoReturn:
    """Refuse the first chunk that is not stored in 1 to so many bytes as it decodes to, or of ``raw`` in as many."""
    for found, nbytes in zip(stored, sizes, strict=True):
        if not 0 < found <= nbytes or (codec == "raw" and found != nbytes):
            break
    raise error("storage.chunk-length", "", f"a chunk of {nbytes} bytes is stored in {found} by {codec}")
