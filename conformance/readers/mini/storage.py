"""storage.md: segments, planes, chunks; stage 12 of container.order, and decoding a content (stage 14)."""

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from .codec import CODECS, check_stored_length, decode_chunk
from .container import Container
from .encodings import Content, Part
from .errors import Limits, Refusal, can_hold, within
from .fields import check_map

RECORD = struct.Struct("<II")


class Chunk(NamedTuple):
    part: Part
    plane: int
    first: int  # the item of the part it begins with
    decoded: int
    stored: int
    crc: int
    at: int  # relative to data_start


@dataclass
class Segment:
    codec: str
    chunks: list[Chunk]


def read_storage(document: Any, contents: list[Content], container: Container, limits: Limits) -> list[Segment]:
    top = check_map(document, "STORAGE", {"chunk_bytes": "integer", "segments": "array"})
    chunk_bytes = top["chunk_bytes"]
    if chunk_bytes not in [2**k for k in range(12, 25)]:  # storage.chunk-bytes
        raise Refusal("storage.chunk-bytes", f"chunk_bytes {chunk_bytes}")
    within(limits, "chunk_bytes", chunk_bytes, "chunk_bytes")  # limit.exceeded/chunk
    if len(top["segments"]) != len(contents):  # storage.segments
        raise Refusal("storage.segments", f"{len(top['segments'])} segments for {len(contents)} contents")
    segments = []
    end = 0
    for value, content in zip(top["segments"], contents, strict=True):  # layout.segments
        segment, end = read_segment(value, content, chunk_bytes, end)
        segments.append(segment)
    if end != container.data_length:  # storage.data-length
        raise Refusal("storage.data-length", f"the data length is {container.data_length}, the segments end at {end}")
    return segments


def read_segment(value: Any, content: Content, chunk_bytes: int, start: int) -> tuple[Segment, int]:
    fields = check_map(value, f"segment of {content.where}", {"chunks": "bin", "codec": "str"})
    codec, records = fields["codec"], fields["chunks"]
    if codec not in CODECS:  # unsupported.codec
        raise Refusal("unsupported.codec", f"{content.where}: the codec {codec} is not known")
    count = sum(part.width * ((part.count + chunk_bytes - 1) // chunk_bytes) for part in content.parts)
    if len(records) != 8 * count:  # storage.chunk-table
        raise Refusal("storage.chunk-table", f"{content.where}: {len(records)} bytes of records for {count} chunks")
    table = RECORD.iter_unpack(records)
    chunks = []
    at = start
    for part in content.parts:
        for plane in range(part.width):
            for first in range(0, part.count, chunk_bytes):
                stored, crc = next(table)
                decoded = min(chunk_bytes, part.count - first)
                chunks.append(Chunk(part, plane, first, decoded, stored, crc, at))
                check_stored_length(codec, stored, decoded, chunk_name(content, chunks[-1]))
                at += stored
    return Segment(codec, chunks), at


def read_content(container: Container, segment: Segment, content: Content) -> list[bytes]:
    """The items of every part, one after the other in each, once the content's digest has been found right."""
    can_hold(content.size, content.where)
    decoded = b"".join(
        read_chunk(container, segment.codec, chunk, chunk_name(content, chunk)) for chunk in segment.chunks
    )
    if hashlib.sha256(decoded).digest() != content.sha256:  # integrity.content, content.use
        raise Refusal("integrity.content", f"{content.where}: the SHA-256 of the content is not the one in MANIFEST")
    items, at = [], 0
    for part in content.parts:
        part_items = bytearray(part.width * part.count)
        for plane in range(part.width):  # layout.planes: plane p is byte p of every item
            part_items[plane :: part.width] = decoded[at : at + part.count]
            at += part.count
        items.append(bytes(part_items))
    return items


def chunk_name(content: Content, chunk: Chunk) -> str:
    return f"{content.where}: {chunk.part.name}, plane {chunk.plane}, the chunk from item {chunk.first} on"


def read_chunk(container: Container, codec: str, chunk: Chunk, where: str) -> bytes:
    stored = container.read(chunk.at, chunk.stored)
    if zlib.crc32(stored) != chunk.crc:  # integrity.chunk: before a codec sees them
        raise Refusal("integrity.chunk", f"{where}: the CRC-32 of the stored bytes is not the record's")
    return decode_chunk(codec, stored, chunk.decoded, where)
