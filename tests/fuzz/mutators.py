"""Mutators: bytes to other bytes. Those of structured inputs repair every digest that their change would break.

A mutator never raises: what it cannot take apart it changes as plain bytes. All randomness comes from the ``Random``
it is given, so a seed names a run.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import msgpack
import zstandard
from builders import Parts, contents_of, dismantle, packed, put_together, records

from skillpack_format.catalog import CODECS
from skillpack_format.errors import SkillPackError

Mutator = Callable[[bytes, Random], bytes]

MAX_INPUT = 1 << 14  # longer inputs are slower and reach nothing new
INTEGERS = sorted(
    {0, 1, 2, 3, 7, 8, 255, 10**9}
    | {(1 << bits) + near for bits in (5, 7, 8, 10, 12, 15, 16, 20, 24, 31, 32, 34, 36, 53, 63) for near in (-1, 0, 1)}
    | {(1 << 64) - 1}
)
WORDS = (
    "", "a", "A", "m.a", "config.json", "../x", "/etc/passwd", "\x1b[2J", "na\u00efve", "\u202e", "\0", "a" * 513,
    "raw", "zstd", "rans", "dense", "ulp", "sparse", "lowrank", "factors", "blockq", "add", "replace", "lanes",
    "stream",
    "bitmap", "gap8", "gap16", "F32", "BF16", "F16", "F64", "U8", "BOOL", "F4", "F6_E2M3", "C64", "I16", "Q1", "Q8",
    "skillpack/1", "__metadata__", "__proto__", "model.safetensors",
)  # fmt: skip
KEYS = (
    "alias", "base", "bits", "chunks", "class", "codec", "components", "count", "digest", "dtype", "encoding", "files",
    "format", "gaps", "index", "length", "metadata", "mode", "module", "name", "order", "prints", "result", "sha256",
    "shape", "stats", "zero", "changed", "error", "x", "",
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"NaN", b"-1", b"1e999", b"0.5", b"true",
    b"null", b" ", b"\n", b"\xff", b"\xef\xbb\xbf", b'"F32"', b'"data_offsets"', b"18446744073709551616", b"9" * 5000,
    b"[" * 2000, b'"__metadata__":{},',
)  # fmt: skip


def below(random: Random, count: int) -> int:
    """An index below ``count``; Random.randrange takes five times as long."""
    return int(random.random() * count)


def pick(random: Random, items: Sequence[Any]) -> Any:
    return items[int(random.random() * len(items))]


# --------------------------------------------------------------------------------------------------------- plain bytes


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """One to four changes anywhere."""
    mutated = bytearray(data)
    for _ in range(1 + below(random, 4)):
        _change(mutated, random)
    return bytes(mutated[:MAX_INPUT])


def mutate_text(data: bytes, random: Random) -> bytes:
    """As ``mutate_bytes``, half of the time with pieces of JSON and of text."""
    if random.random() < 0.5:
        return mutate_bytes(data, random)
    mutated = bytearray(data)
    for _ in range(1 + below(random, 3)):
        at = below(random, len(mutated) + 1)
        token = pick(random, TOKENS) if random.random() < 0.7 else str(pick(random, INTEGERS)).encode()
        mutated[at : at + below(random, 4)] = token
    return bytes(mutated[:MAX_INPUT])


def _change(data: bytearray, random: Random) -> None:
    size = len(data)
    if not size:
        data += random.randbytes(1 + below(random, 8))
        return
    at, kind = below(random, size), below(random, 8)
    if kind <= 1:
        data[at] ^= 1 << below(random, 8)
    elif kind == 2:
        data[at] = below(random, 256)
    elif kind == 3:
        width = 1 << below(random, 4)
        value = pick(random, INTEGERS) & ((1 << 8 * width) - 1)
        data[at : at + width] = value.to_bytes(width, "little" if random.random() < 0.5 else "big")
    elif kind == 4:
        del data[at : at + 1 + below(random, 16)]
    elif kind == 5:
        data[at:at] = random.randbytes(1 + below(random, 8))
    elif kind == 6:
        source = below(random, size)
        data[at:at] = data[source : source + 1 + below(random, 64)]
    else:
        source, length = below(random, size), 1 + below(random, 16)
        data[at : at + length] = data[source : source + length]


# ----------------------------------------------------------------------------------------------------------- documents


def mutate_document(data: bytes, random: Random) -> bytes:
    """Changes somewhere in a msgpack document, written again in its canonical form; now and then the bytes instead."""
    if random.random() < 0.15:
        return mutate_bytes(data, random)
    try:
        plain = msgpack.unpackb(data, strict_map_key=False)
    except (TypeError, ValueError, msgpack.UnpackException):
        return mutate_bytes(data, random)
    for _ in range(1 + below(random, 3)):
        plain = change_plain(plain, random)
    return written(plain)


def written(plain: Any) -> bytes:
    try:
        return packed(plain)[: 2 * MAX_INPUT]
    except (TypeError, ValueError, OverflowError):
        return b"\xc0"


def change_plain(value: Any, random: Random, depth: int = 0) -> Any:
    """``value`` with one change in it or below it; containers are changed in place."""
    if isinstance(value, (dict, list)) and value and (depth == 0 or random.random() < 0.8):
        if random.random() < 0.2:
            return _change_members(value, random)
        key = pick(random, list(value)) if isinstance(value, dict) else below(random, len(value))
        value[key] = change_plain(value[key], random, depth + 1)
        return value
    if random.random() < 0.2:
        return random_plain(random)
    return _change_leaf(value, random)


def random_plain(random: Random) -> Any:
    kind = below(random, 9)
    if kind <= 2:
        return pick(random, INTEGERS)
    if kind <= 4:
        return pick(random, WORDS)
    if kind == 5:
        return random.randbytes(pick(random, (0, 1, 4, 8, 31, 32, 33)))
    return pick(random, ({}, [], [0], {"a": 1}, None, True, 0.5, -1, [[[[[[[[[[]]]]]]]]]]))


def _change_members(value: Any, random: Random) -> Any:
    """One member more, one less, or two in other places."""
    kind = below(random, 4)
    if isinstance(value, dict):
        if kind <= 1:
            del value[pick(random, list(value))]
        else:
            value[pick(random, KEYS)] = random_plain(random)
        return value
    at = below(random, len(value))
    if kind == 0:
        del value[at]
    elif kind == 1:
        value.insert(below(random, len(value) + 1), value[at])
    elif kind == 2:
        value.insert(at, random_plain(random))
    else:
        other = below(random, len(value))
        value[at], value[other] = value[other], value[at]
    return value


def _change_leaf(value: Any, random: Random) -> Any:
    if isinstance(value, bool) or value is None:
        return pick(random, INTEGERS)
    if isinstance(value, int):
        near = (value - 1, value + 1, value * 2, value // 2, value ^ (1 << below(random, 40)))
        found = pick(random, near) if random.random() < 0.7 else pick(random, INTEGERS)
        return max(0, found) & ((1 << 64) - 1)
    if isinstance(value, str):
        return pick(random, WORDS) if random.random() < 0.6 else _change_text(value, random)
    if isinstance(value, bytes):
        return mutate_bytes(value, random)
    return random_plain(random)


def _change_text(value: str, random: Random) -> str:
    at = below(random, len(value) + 1)
    return value[:at] + chr(pick(random, (0, 10, 27, 32, 46, 47, 65, 97, 127, 128, 0x202E, 0x10FFFF))) + value[at + 1 :]


# --------------------------------------------------------------------------------------------------------------- packs


def mutate_pack(data: bytes, random: Random) -> bytes:
    """A pack with a change in one of its stages; what stands before that stage is repaired, so that it is reached."""
    try:
        parts = dismantle(data)
    except (TypeError, ValueError, AssertionError, struct.error, msgpack.UnpackException, zstandard.ZstdError):
        return mutate_bytes(data, random)
    kind = random.random()
    try:
        if kind < 0.1:
            return mutate_bytes(data, random)
        if kind < 0.2:
            return _with_other_frame(parts, random)
        if kind < 0.5:
            parts.manifest = change_plain(parts.manifest, random)
        elif kind < 0.65:
            parts.storage = change_plain(parts.storage, random)
        else:
            for _ in range(1 + below(random, 2)):
                _change_content(parts, random)
        return put_together(parts)
    except (TypeError, ValueError, OverflowError, KeyError, IndexError, AttributeError, struct.error):
        return mutate_bytes(data, random)


def mutate_preamble(data: bytes, random: Random) -> bytes:
    """Other bytes in the preamble or in a document, with the checksums over them repaired more often than not."""
    blob = bytearray(mutate_bytes(data, random) if random.random() < 0.3 else data)
    if len(blob) < 128:
        return bytes(blob)
    if random.random() < 0.7:
        at = pick(random, (0, 4, 8, 10, 12, 16, 24, 32, 40, 48, 80, 112, 120))
        width = pick(random, (1, 2, 4, 8))
        blob[at : at + width] = (pick(random, INTEGERS) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    else:
        blob[128:] = mutate_bytes(bytes(blob[128:]), random)
    if random.random() < 0.6:
        repair_digests(blob)
    if random.random() < 0.9:
        blob[124:128] = zlib.crc32(blob[:124]).to_bytes(4, "little")
    return bytes(blob)


def repair_digests(blob: bytearray) -> None:
    """Checksum and digests of the header, as far as the lengths in the preamble lie within the file."""
    manifest_bytes, storage_bytes, header_bytes = struct.unpack_from("<QQQ", blob, 16)
    header = bytes(blob[128 : 128 + min(header_bytes, len(blob))])
    blob[12:16] = zlib.crc32(header).to_bytes(4, "little")
    if header_bytes < manifest_bytes + storage_bytes <= MAX_INPUT:
        with suppress(SkillPackError):
            header = bytes(CODECS["zstd"].decompress(header, manifest_bytes + storage_bytes, ""))
    end = min(manifest_bytes, len(header))
    blob[48:80] = hashlib.sha256(header[:end]).digest()
    blob[80:112] = hashlib.sha256(header[end : end + min(storage_bytes, len(header))]).digest()


def _with_other_frame(parts: Parts, random: Random) -> bytes:
    """The file with one field of its framing wrong, or with bytes behind it."""
    integer = pick(random, INTEGERS)
    name = pick(
        random,
        ("major", "minor", "manifest_length", "storage_length", "header_length", "data_length", "manifest_digest",
         "storage_digest", "header", "header_crc32", "crc32", "reserved", "tail"),
    )  # fmt: skip
    narrow = {"major": 16, "minor": 16, "header_crc32": 32, "crc32": 32}
    if name in narrow:
        return put_together(parts, **{name: integer & ((1 << narrow[name]) - 1)})
    if name.endswith("_length"):
        return put_together(parts, **{name: integer})
    if name == "header":  # a frame, sometimes with something wrong in it
        documents = packed(parts.manifest) + packed(parts.storage)
        frame = CODECS["zstd"].compress(documents, thorough=False)
        return put_together(parts, header=mutate_bytes(frame, random) if random.random() < 0.5 else frame)
    sizes = {"manifest_digest": 32, "storage_digest": 32, "reserved": 12}
    return put_together(parts, **{name: random.randbytes(sizes.get(name, 1 + below(random, 64)))})


def _change_content(parts: Parts, random: Random) -> None:
    """Other bytes in one segment: its chunk table is repaired, and the digest of the content where it still decodes."""
    index = below(random, len(parts.storage["segments"]))
    begin, end, lengths = 0, 0, []
    for k, segment in enumerate(parts.storage["segments"]):
        begin = end
        lengths = [stored for stored, _ in records(segment)]
        end = begin + sum(lengths)
        if k == index:
            break
    chunks, at = [], begin
    for length in lengths:
        chunks.append(parts.data[at : at + length])
        at += length
    if not chunks:  # a content without bytes, or a pack without contents
        return
    which = below(random, len(chunks))
    before, codec = chunks[which], segment["codec"]
    chunks[which] = mutate_bytes(before, random)
    if random.random() < 0.7:  # the same length, which alone a raw chunk can have
        chunks[which] = (chunks[which] + before)[: len(before)]
    whole = b"".join(chunks)
    segment["chunks"] = b"".join(struct.pack("<II", len(each), zlib.crc32(each)) for each in chunks)
    gap = -(-(begin + len(whole)) // 64) * 64 - (begin + len(whole)) if end < len(parts.data) else 0
    parts.data = parts.data[:begin] + whole + bytes(gap) + parts.data[-(-end // 64) * 64 :]
    decoded = whole if codec == "raw" else b"".join(map(_decoded, chunks))
    contents_of(parts)[index]["sha256"] = hashlib.sha256(decoded).digest()


def _decoded(chunk: bytes) -> bytes:
    """A chunk decoded where it is a zstd frame of moderate size; otherwise as it is: it may be stored raw."""
    try:
        if not 0 <= zstandard.frame_content_size(chunk) <= 1 << 16:
            return chunk
        return zstandard.ZstdDecompressor().decompress(chunk)
    except zstandard.ZstdError:
        return chunk
