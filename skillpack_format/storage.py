"""STORAGE: where the bytes lie (spec/storage.md).

The file holds no offsets: segments follow each other in the order of the contents, so there is nothing that could
overlap, leave a hole or point outside. What STORAGE says is only how each chunk is stored and its CRC-32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from skillpack_format.errors import error
from skillpack_format.fields import array, integer, require_keys, text
from skillpack_format.limits import DEFAULT_LIMITS, Limits

ALIGNMENT: Final = 64  # container.md: MANIFEST, STORAGE and every segment end on a multiple of it
MIN_CHUNK_BYTES: Final = 1 << 12
MAX_CHUNK_BYTES: Final = 1 << 24
_RECORD: Final = struct.Struct("<II")  # stored length, CRC-32 of the stored bytes


@dataclass(frozen=True, slots=True)
class Segment:
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


@dataclass(frozen=True, slots=True)
class Extent:
    """A segment laid out: ``offset`` and ``length`` in bytes from the start of DATA."""

    offset: int
    length: int
    codec: str
    chunks: tuple[Chunk, ...]

    @property
    def end(self) -> int:
        return self.offset + self.length


def parse(plain: Any, limits: Limits = DEFAULT_LIMITS) -> Storage:
    """The storage document in ``plain``; storage.* or manifest.* says what is wrong."""
    where = "STORAGE"
    require_keys(plain, ("chunk_bytes", "segments"), (), where)
    chunk_bytes = integer(plain, "chunk_bytes", MIN_CHUNK_BYTES, MAX_CHUNK_BYTES, where, "storage.chunk-bytes")
    if chunk_bytes & (chunk_bytes - 1):
        raise error("storage.chunk-bytes", where, f"chunk_bytes is {chunk_bytes}, it must be a power of two")
    limits.require("chunk_bytes", chunk_bytes, where)
    segments = []
    for index, each in enumerate(array(plain, "segments", where)):
        place = f"STORAGE segment {index}"
        require_keys(each, ("chunks", "codec"), (), place)
        if not isinstance(each["chunks"], bytes):
            raise error("manifest.type", place, "chunks must be bytes")
        segments.append(Segment(text(each, "codec", place), each["chunks"]))
    return Storage(chunk_bytes, tuple(segments))


def chunk_sizes(planes: Sequence[int], chunk_bytes: int) -> Iterator[int]:
    """The decoded length of every chunk of planes of these lengths, in order."""
    for plane in planes:
        whole, rest = divmod(plane, chunk_bytes)
        for _ in range(whole):
            yield chunk_bytes
        if rest:
            yield rest


def chunk_count(planes: Sequence[int], chunk_bytes: int) -> int:
    return sum(-(-plane // chunk_bytes) for plane in planes)


def chunk_record(stored: int, crc32: int) -> bytes:
    return _RECORD.pack(stored, crc32)


def align(offset: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def lay_out(storage: Storage, contents: Sequence[Sequence[int]], data_length: int) -> tuple[Extent, ...]:
    """Where every segment lies. ``contents``: the plane lengths of every content, computed from MANIFEST."""
    if len(storage.segments) != len(contents):
        message = f"{len(storage.segments)} segments, MANIFEST has {len(contents)} contents"
        raise error("storage.segments", "STORAGE", message)
    extents: list[Extent] = []
    offset = end = 0
    for index, (segment, planes) in enumerate(zip(storage.segments, contents, strict=True)):
        chunks = _read_table(segment, planes, storage.chunk_bytes, f"STORAGE segment {index}")
        length = sum(chunk.stored for chunk in chunks)
        extents.append(Extent(offset, length, segment.codec, chunks))
        end = offset + length
        offset = align(end)
    if end != data_length:
        message = f"the segments end at byte {end} of DATA, the preamble says {data_length}"
        raise error("storage.data-length", "STORAGE", message)
    return tuple(extents)


def _read_table(segment: Segment, planes: Sequence[int], chunk_bytes: int, where: str) -> tuple[Chunk, ...]:
    due = chunk_count(planes, chunk_bytes)
    if len(segment.chunks) != _RECORD.size * due:
        message = f"the chunk table has {len(segment.chunks)} bytes, {due} chunks need {_RECORD.size * due}"
        raise error("storage.chunk-table", where, message)
    records = _RECORD.iter_unpack(segment.chunks)
    chunks = []
    for nbytes, (stored, crc32) in zip(chunk_sizes(planes, chunk_bytes), records, strict=True):
        if not 0 < stored <= nbytes or (segment.codec == "raw" and stored != nbytes):
            raise error(
                "storage.chunk-length", where, f"a chunk of {nbytes} bytes is stored in {stored} by {segment.codec}"
            )
        chunks.append(Chunk(stored, crc32, nbytes))
    return tuple(chunks)
