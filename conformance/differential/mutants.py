"""Damaged and forged packs, from a generated one and a random generator.

A mutation works at one stage of a pack (the items of a part, a document, its bytes, DATA, the preamble, the file); what
is computed after that stage (digests, checksums, lengths) is repaired more often than not, so that a reader gets as far
as the damage. Some mutants have several mutations, which asks for the order of the checks.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import zstandard

from conformance import assemble as oracle
from conformance.assembler.draft import Change, Content, Tensor, base_file, file_of, sha256
from conformance.assembler.edits import Pairs, Wire, encoded
from conformance.generator import numbers
from conformance.generator.packs import FILES, Made
from conformance.generator.zstd import compressed

INTEGERS = (
    0, 1, 2, 3, 7, 8, 9, 15, 16, 31, 32, 63, 64, 65, 127, 128, 255, 256, 4096, 65535, 65536, 1 << 24, (1 << 24) + 1,
    1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
WORDS = (
    *"raw zstd stream lanes add replace gap8 gap16 bitmap dense sparse blockq lowrank factors ulp Q1 Q8 Q9".split(),
    *"skillpack/1 skillpack/2 other norm x-new".split(), "", " ", "é", "\0", *numbers.DTYPES, *FILES,
)  # fmt: skip
# values that the profile does not have, or not in this form
NO_VALUES = [
    bytes.fromhex(each)
    for each in (
        "c0 c2 c3 ff e0 ca00000000 cb0000000000000000 d000 d1ffff d400aa c1 "
        "cc01 d90161 c50000 dc0000 de0000 a2c080 a3eda080"
    ).split()
]
KEYS = (
    "alias",
    "base",
    "bits",
    "count",
    "dtype",
    "gaps",
    "group",
    "index",
    "mode",
    "packing",
    "result",
    "scale",
    "stats",
    "zero",
    "aa",
    "zz",
    "é",
)


@dataclass
class Draft:
    """A pack between its generation and its bytes."""

    made: Made
    manifest: Any
    storage: Any
    data: bytes
    contents: list[Content]
    base: bytes
    manifest_bytes: bytes = b""
    storage_bytes: bytes = b""
    preamble: dict[str, int | bytes] = field(default_factory=dict)
    is_lax: bool = False  # a frame was damaged and what it decodes to promised: codec.lax


def draft_of(made: Made) -> Draft:
    contents = [Content(each.planes, each.data, each.digest) for each in made.contents]
    return Draft(made, made.files.manifest, made.files.storage, made.files.data, contents, made.files.base)


# ------------------------------------------------------------------------------------------------ documents


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a document."""
    found = [path]
    if isinstance(value, dict):
        for key, child in value.items():
            found += paths(child, (*path, key))
    elif isinstance(value, list):
        for k, child in enumerate(value):
            found += paths(child, (*path, k))
    return found


def descended(rng: Random, value: Any) -> tuple[Any, ...]:
    """The path of some value of a document."""
    path: list[Any] = []
    while isinstance(value, (dict, list)) and value and rng.random() < 0.88:
        step = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path.append(step)
        value = value[step]
    return tuple(path)


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """``value`` with another value at ``path``; what is beside the path is shared."""
    if not path:
        return change(value)
    if isinstance(value, dict):
        return value | {path[0]: changed(value[path[0]], path[1:], change)}
    return [changed(child, path[1:], change) if k == path[0] else child for k, child in enumerate(value)]


def edit_document(rng: Random, document: Any) -> Any:
    """One value of ``document`` becomes another, goes, comes twice, or changes its place."""
    path = descended(rng, document)
    others = [at(document, descended(rng, document)) for _ in range(3)]

    def change(value: Any) -> Any:
        draw = rng.random()
        if draw < 0.06:
            return Wire(rng.choice(NO_VALUES))
        if draw < 0.12:
            return rng.choice(others)
        if isinstance(value, dict):
            return edit_map(rng, value, others[0])
        if isinstance(value, list):
            return edit_array(rng, value, others[0])
        alike = [each for each in others if type(each) is type(value) and each != value]
        if alike and draw < 0.4:
            return alike[0]
        return edit_scalar(rng, value)

    return changed(document, path, change)


def edit_scalar(rng: Random, value: Any) -> Any:
    if isinstance(value, int):
        choices = [value + 1, max(0, value - 1), value * 2, value ^ (1 << rng.randrange(8)), rng.choice(INTEGERS)]
        return min(rng.choice(choices), (1 << 64) - 1)
    if isinstance(value, str):
        choices_ = [rng.choice(WORDS), value + rng.choice("a 0~\x7f"), value[:-1], value * 2, numbers.text(rng, 6)]
        return rng.choice(choices_)
    if isinstance(value, bytes):
        return edit_bytes(rng, value)
    return value


def edit_map(rng: Random, value: dict[str, Any], other: Any) -> Any:
    names = list(value)
    draw = rng.random()
    if not names or draw < 0.2:
        return value | {rng.choice(KEYS): rng.choice([other, 1, "F32"])}
    name = rng.choice(names)
    if draw < 0.55:
        return {key: child for key, child in value.items() if key != name}
    if draw < 0.7:
        return {rng.choice(KEYS) if key == name else key: child for key, child in value.items()}
    pairs = sorted(value.items())
    if draw < 0.8:
        rng.shuffle(pairs)
    elif draw < 0.9:
        pairs.insert(rng.randrange(len(pairs)), (name, value[name]))
    else:
        pairs[rng.randrange(len(pairs))] = (rng.choice([7, b"k", "é", "", Wire(b"\xc0")]), 1)  # type: ignore[call-overload]
    return Pairs(pairs)


def edit_array(rng: Random, value: list[Any], other: Any) -> list[Any]:
    draw = rng.random()
    k = rng.randrange(len(value) + 1)
    if not value or draw < 0.2:
        return [*value[:k], other, *value[k:]]
    k = rng.randrange(len(value))
    if draw < 0.4:
        return value[:k] + value[k + 1 :]
    if draw < 0.6:
        return [*value[:k], value[k], *value[k:]]
    if draw < 0.8 and len(value) > 1:
        n = rng.randrange(len(value))
        swapped = list(value)
        swapped[k], swapped[n] = value[n], value[k]
        return swapped
    return value * 2 if draw < 0.9 else []


def edit_bytes(rng: Random, value: bytes) -> bytes:
    """A bit, a byte, a piece."""
    draw, length = rng.random(), len(value)
    if not length or draw < 0.08:
        return value + rng.randbytes(rng.choice([1, 1, 2, 8, 64]))
    k = rng.randrange(length)
    if draw < 0.5:
        return value[:k] + bytes([value[k] ^ 1 << rng.randrange(8)]) + value[k + 1 :]
    if draw < 0.7:
        return value[:k] + bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])]) + value[k + 1 :]
    end = min(length, k + rng.choice([1, 1, 2, 4, 8, 32]))
    if draw < 0.8:
        return value[:k] + value[end:]
    if draw < 0.88:
        return value[:end] + value[k:]
    if draw < 0.95:
        other = rng.randrange(length)
        return value[:k] + value[other : other + end - k].ljust(end - k, b"\0") + value[end:]
    return value[:k]


# ------------------------------------------------------------------------------------------------ the mutations


def mutate_values(rng: Random, draft: Draft) -> None:
    """Decoded bytes of a content, digest and checksums repaired: payload.*, or another result."""
    index = pick(rng, [k for k, content in enumerate(draft.contents) if content.data])
    if index is None:
        return
    content = draft.contents[index]
    k = rng.randrange(len(content.data))
    new = rng.choice([content.data[k] ^ 1 << rng.randrange(8), 0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    content.data = content.data[:k] + bytes([new]) + content.data[k + 1 :]
    digests(draft, index, sha256(content.data))
    restore(draft, index)


def digests(draft: Draft, index: int, digest: bytes) -> None:
    """MANIFEST's digest of content ``index``."""
    holders = [
        ("tensors", k, "components", c)
        for k, entry in enumerate(draft.manifest["tensors"])
        for c in range(len(entry.get("components", [])))
    ] + [("files", k) for k in range(len(draft.manifest["files"]))]
    layout = draft.manifest.get("layout", {"shards": []})
    holders += [("layout", "index")] if "index" in layout else []
    holders += [("layout", "shards", k) for k in range(len(layout["shards"]))]
    draft.manifest = changed(draft.manifest, (*holders[index], "sha256"), lambda _: digest)


def places(draft: Draft) -> list[tuple[int, int, int, int]]:
    """(segment, chunk, begin, end) of every stored chunk, as STORAGE has them."""
    found, end = [], 0
    for s, segment in enumerate(draft.storage["segments"]):
        for c, (length, _) in enumerate(struct.iter_unpack("<II", segment["chunks"])):
            found.append((s, c, end, end + length))
            end += length
    return found


def put_chunk(draft: Draft, segment: int, chunk: int, stored: bytes) -> None:
    """Another stored chunk: DATA is laid out again, its record repaired."""
    pieces = {(s, c): draft.data[begin:end] for s, c, begin, end in places(draft)}
    pieces[segment, chunk] = stored
    table = draft.storage["segments"][segment]["chunks"]
    record = struct.pack("<II", len(stored), zlib.crc32(stored))
    table = table[: 8 * chunk] + record + table[8 * chunk + 8 :]
    draft.storage = changed(draft.storage, ("segments", segment, "chunks"), lambda _: table)
    data = b""
    for s, each in enumerate(draft.storage["segments"]):
        data += b"".join(pieces[s, c] for c in range(len(each["chunks"]) // 8))
    draft.data = data


def restore(draft: Draft, index: int) -> None:
    """Content ``index`` is stored as it is."""
    at_byte, chunk = 0, 0
    for length in draft.contents[index].planes:
        for k in range(0, length, draft.storage["chunk_bytes"]):
            end = min(k + draft.storage["chunk_bytes"], length)
            put_chunk(draft, index, chunk, draft.contents[index].data[at_byte + k : at_byte + end])
            chunk += 1
        at_byte += length


def mutate_stored(rng: Random, draft: Draft) -> None:
    """Stored bytes of a chunk, its CRC-32 repaired; where it is a frame that can still be decoded, maybe its digest."""
    chunk = pick(rng, places(draft))
    if chunk is None:
        return
    segment, number, begin, end = chunk
    stored = edit_bytes(rng, draft.data[begin:end])
    if not stored:
        return
    put_chunk(draft, segment, number, stored)
    if draft.storage["segments"][segment]["codec"] == "zstd" and rng.random() < 0.7:
        promise_frames(draft, segment)


def promise_frames(draft: Draft, segment: int) -> None:
    """MANIFEST promises what libzstd makes of the chunks of ``segment``."""
    content, decoded, k = draft.contents[segment], b"", 0
    stored = [draft.data[begin:end] for s, _, begin, end in places(draft) if s == segment]
    for length in content.planes:
        for first in range(0, length, draft.storage["chunk_bytes"]):
            size = min(draft.storage["chunk_bytes"], length - first)
            try:
                decoded += stored[k] if len(stored[k]) == size else libzstd(stored[k], size)
            except zstandard.ZstdError:
                return
            k += 1
    draft.is_lax = True
    digests(draft, segment, sha256(decoded))


def libzstd(frame: bytes, size: int) -> bytes:
    """What libzstd makes of a frame that says it has ``size`` bytes; for another one it would allocate what is said."""
    if zstandard.frame_content_size(frame) != size:
        raise zstandard.ZstdError("another content size")
    return zstandard.ZstdDecompressor().decompress(frame, size)


def mutate_records(rng: Random, draft: Draft) -> None:
    """A field of a chunk record; the length of DATA may follow."""
    chunk = pick(rng, places(draft))
    if chunk is None:
        return
    segment, number, _, _ = chunk
    table = bytearray(draft.storage["segments"][segment]["chunks"])
    length, crc = struct.unpack_from("<II", table, 8 * number)
    if rng.random() < 0.3:
        crc ^= 1 << rng.randrange(32)
    else:
        length = rng.choice([length + 1, length - 1, length ^ 1 << rng.randrange(32), 0, (1 << 32) - 1])
    struct.pack_into("<II", table, 8 * number, length, crc)
    draft.storage = changed(draft.storage, ("segments", segment, "chunks"), lambda _: bytes(table))
    if rng.random() < 0.5:
        end = max((end for *_, end in places(draft)), default=0)
        draft.data = draft.data[:end].ljust(min(end, len(draft.data) + 64), b"\0")


def mutate_density(rng: Random, draft: Draft) -> None:
    """A value becomes an array, so long that its document is about as dense as it may be (limit.exceeded/density)."""
    which = rng.choice(("manifest", "storage"))
    document = getattr(draft, which)
    path = descended(rng, document)
    empty = changed(document, path, lambda _: [])
    free = 4096 - values_of(empty) + len(encoded(empty)) // 5
    count = 5 * free // 4 + rng.randrange(-3, 4)
    setattr(draft, which, changed(document, path, lambda _: [7] * count))


def values_of(document: Any) -> int:
    """How many values a document has, by wire.md: a map key counts one."""
    if isinstance(document, dict):
        return 1 + sum(1 + values_of(each) for each in document.values())
    return 1 + sum(map(values_of, document)) if isinstance(document, list) else 1


def mutate_manifest(rng: Random, draft: Draft) -> None:
    draft.manifest = edit_document(rng, draft.manifest)
    if rng.random() < 0.3:
        repair_result(draft)


def mutate_entry(rng: Random, draft: Draft) -> None:
    """A value of an entry, where most rules are."""
    count = len(draft.manifest["tensors"]) if isinstance(draft.manifest, dict) else 0
    if count:
        k = rng.randrange(count)
        draft.manifest = changed(draft.manifest, ("tensors", k), lambda entry: edit_document(rng, entry))
        if rng.random() < 0.6:
            repair_result(draft)


def repair_result(draft: Draft) -> None:
    """result.count and result.digest as the entries have them now, where they can be had."""
    try:
        listing: dict[str, Any] = {
            name: [name, t.dtype, t.shape, sha256(t.data)] for name, t in draft.made.model.base.items()
        }
        for entry in draft.manifest["tensors"]:
            listing.pop(entry["name"], None)
            if "result" in entry:
                result = entry["result"]
                listing[entry["name"]] = [entry["name"], result["dtype"], result["shape"], result["sha256"]]
        digest = hashlib.sha256(encoded([listing[name] for name in sorted(listing)])).digest()
        draft.manifest = draft.manifest | {"result": {"count": len(listing), "digest": digest}}
    except (KeyError, TypeError, AttributeError, ValueError):
        return


def mutate_results(rng: Random, draft: Draft) -> None:
    """The digest MANIFEST promises for a result, or has for a tensor of the base, or a print."""
    spots = [
        p
        for p in paths(draft.manifest)
        if p and p[-1] in ("sha256", "digest", "prints") and is_filled(at(draft.manifest, p))
    ]
    path = pick(rng, spots)
    if path is not None:
        draft.manifest = changed(draft.manifest, path, lambda v: bytes([v[0] ^ 1 << rng.randrange(8)]) + v[1:])
        if rng.random() < 0.6:
            repair_result(draft)


def is_filled(value: Any) -> bool:
    return isinstance(value, bytes) and bool(value)


def mutate_storage(rng: Random, draft: Draft) -> None:
    draft.storage = edit_document(rng, draft.storage)


def mutate_manifest_bytes(rng: Random, draft: Draft) -> None:
    draft.manifest_bytes = edit_bytes(rng, draft.manifest_bytes)


def mutate_storage_bytes(rng: Random, draft: Draft) -> None:
    draft.storage_bytes = edit_bytes(rng, draft.storage_bytes)


def mutate_data(rng: Random, draft: Draft) -> None:
    """DATA after its checksums were taken: chunks or the padding between them."""
    if draft.data:
        draft.data = edit_bytes(rng, draft.data)


def mutate_preamble(rng: Random, draft: Draft) -> None:
    lengths = {
        "manifest-length": len(draft.manifest_bytes),
        "storage-length": len(draft.storage_bytes),
        "header-length": len(draft.manifest_bytes) + len(draft.storage_bytes),
        "data-length": len(draft.data),
    }
    digests = ["manifest-digest", "storage-digest"]
    name = rng.choice(["major", "minor", "reserved", "magic", "checksum", "header-checksum", *digests, *lengths])
    if name in lengths:
        length = lengths[name]
        draft.preamble[name] = rng.choice(
            [length + 1, max(0, length - 1), length ^ 1 << rng.randrange(63), rng.choice(INTEGERS)]
        )
    elif name in ("major", "minor"):
        draft.preamble[name] = rng.choice([0, 1, 2, 255, 256, 65535])
    elif name in ("checksum", "header-checksum"):
        draft.preamble[name] = rng.randrange(1 << 32)
    else:
        size = {"reserved": 12, "magic": 8}.get(name, 32)
        draft.preamble[name] = bytes(rng.choice([0, 0, 1, rng.randrange(256)]) for _ in range(size))


def mutate_base(rng: Random, draft: Draft) -> None:
    """Another base: bytes, a kind, a name, a tensor more or less."""
    given = draft.made.model.base
    name = rng.choice(sorted(given)) if given and rng.random() < 0.9 else "new"
    tensor = given.get(name)
    draw = rng.random()
    change: dict[str, Tensor | None]
    if tensor is None or draw < 0.2:
        change = {numbers.name(rng) if draw < 0.15 else name: oracle.Tensor("U8", [1], b"\1")}
    elif draw < 0.35:
        change = {name: None}
    elif draw < 0.5 and oracle.numel(tensor.shape):
        change = {name: oracle.Tensor(tensor.dtype, [*tensor.shape, 1], tensor.data)}
    elif tensor.data:
        change = {
            name: oracle.Tensor(
                tensor.dtype, tensor.shape, bytes([tensor.data[0] ^ 1 << rng.randrange(8)]) + tensor.data[1:]
            )
        }
    else:
        change = {}
    draft.base = base_file(given, [draft.made.layout, Change(base=change)])


def pick(rng: Random, choices: list[Any]) -> Any:
    return rng.choice(choices) if choices else None


Mutation = Callable[[Random, Draft], None]
# With how often, in the order of assembly: one that needs a whole document comes before those that may break it.
DOCUMENTS: tuple[tuple[Mutation, int], ...] = (
    (mutate_values, 10), (mutate_stored, 10), (mutate_records, 6), (mutate_density, 2),
    (mutate_entry, 22), (mutate_results, 4), (mutate_manifest, 14), (mutate_storage, 7),
)  # fmt: skip
BYTES: tuple[tuple[Mutation, int], ...] = (
    (mutate_manifest_bytes, 9), (mutate_storage_bytes, 4), (mutate_data, 4), (mutate_preamble, 5), (mutate_base, 4),
)  # fmt: skip
WEIGHTS = [weight for _, weight in (*DOCUMENTS, *BYTES)]


def header_frame(rng: Random, draft: Draft) -> bytes:
    """The documents as one frame, now and then with a byte of it changed; none where they are stored as they are."""
    documents = draft.manifest_bytes + draft.storage_bytes
    if not documents or rng.random() < 0.6:
        return b""
    frame = compressed(rng, documents)
    if rng.random() < 0.15:
        frame, draft.is_lax = edit_bytes(rng, frame), True
    return frame if len(frame) < len(documents) or rng.random() < 0.05 else b""


@dataclass(frozen=True)
class Mutant:
    """A pack to ask readers about, and what was done to it."""

    pack: bytes
    base: bytes
    kind: str
    is_lax: bool


def mutant(rng: Random, made: Made, others: list[Made]) -> Mutant:
    """One mutant of ``made``."""
    count = rng.choices((0, 1, 2, 3), (20, 68, 9, 3))[0]  # 0: only the bytes of the finished file
    steps = (*DOCUMENTS, *BYTES)
    chosen = set(rng.choices(range(len(steps)), WEIGHTS, k=count))
    draft = draft_of(made)
    for k, (step, _) in enumerate(DOCUMENTS):
        if k in chosen:
            step(rng, draft)
    draft.manifest_bytes, draft.storage_bytes = made.documents
    if draft.manifest is not made.files.manifest:
        draft.manifest_bytes = encoded(draft.manifest)
    if draft.storage is not made.files.storage:
        draft.storage_bytes = encoded(draft.storage)
    for k, (step, _) in enumerate(BYTES, len(DOCUMENTS)):
        if k in chosen:
            step(rng, draft)
    change = Change(preamble=draft.preamble, header=header_frame(rng, draft))
    pack = file_of(draft.manifest_bytes, draft.storage_bytes, draft.data, [change])
    names = "+".join(steps[k][0].__name__.removeprefix("mutate_") for k in sorted(chosen)) or "file"
    if count == 0:
        pack = damaged(rng, pack, others)
    return Mutant(pack, draft.base, names, draft.is_lax)


def damaged(rng: Random, pack: bytes, others: list[Made]) -> bytes:
    """The bytes of the finished file: cut, continued, changed, mixed with another pack."""
    draw = rng.random()
    if draw < 0.2:
        return pack[: rng.randrange(len(pack))]
    if draw < 0.3:
        return pack + rng.choice([b"\0", bytes(64), rng.randbytes(5), pack])
    if draw < 0.4:
        return rng.choice([b"\xef\xbb\xbf", b"\n", b"PK\3\4"]) + pack
    if draw < 0.5:
        other = rng.choice(others).files.pack
        k = rng.randrange(min(len(pack), len(other)))
        return pack[:k] + other[k:]
    if draw < 0.6:
        k = rng.randrange(len(pack))
        return pack[:k] + bytes(min(512, len(pack) - k)) + pack[k + 512 :]
    return edit_bytes(rng, pack)
