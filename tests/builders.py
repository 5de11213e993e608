"""Tiny checkpoints and packs for tests, and surgery on finished packs.

A ``Case`` is one tensor with the components that change it; ``EXAMPLES`` has some for every encoding. ``write_pack``
writes cases with the library. ``take_apart`` and ``put_together`` share no code with the library: a hostile file is a
valid one with one named change, and every digest that the change would break is repaired.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard

from skillpack_format import native
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.catalog import encoding_named
from skillpack_format.contents import is_compatible, store, store_encoded, target_of
from skillpack_format.digest import TensorIdentity, TensorKind, checkpoint_digest, sha256
from skillpack_format.dtypes import DTYPES, dtype_named, tensor_nbytes
from skillpack_format.encodings import blockq, dense, factors, lowrank, sparse, ulp
from skillpack_format.encodings._base import Encoded
from skillpack_format.errors import SkillPackError
from skillpack_format.listing import base_ref
from skillpack_format.making import Change, make, start_of
from skillpack_format.manifest import Component, Entry, Layout, Manifest, ResultRef, SideFile
from skillpack_format.native import NativeBench
from skillpack_format.reader import Pack
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.shards import ShardWriter
from skillpack_format.writer import PackWriter

# ------------------------------------------------------------------------------------------------------ values


def kind(dtype: str, *shape: int) -> TensorKind:
    return TensorKind(dtype, shape)


def nbytes(what: TensorKind) -> int:
    return tensor_nbytes(dtype_named(what.dtype), what.shape)


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


def u16(*patterns: int) -> np.ndarray:
    return np.array(patterns, "<u2")


def u32(*patterns: int) -> np.ndarray:
    return np.array(patterns, "<u4")


def f32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def bf16(*values: float) -> bytes:
    """The BF16 patterns of values that BF16 holds exactly."""
    wide = np.array(values, "<f4").view("<u4")
    assert not (wide & 0xFFFF).any()
    return (wide >> 16).astype("<u2").tobytes()


def random_bytes(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def fault_of(call: Callable[..., Any], *args: Any, **named: Any) -> SkillPackError | None:
    """The SkillPackError that ``call`` raises, None where it raises nothing."""
    try:
        call(*args, **named)
    except SkillPackError as found:
        return found
    return None


def refused(code: str, call: Callable[..., Any], *args: Any, **named: Any) -> SkillPackError:
    """The SkillPackError that ``call`` must raise, with this code."""
    found = fault_of(call, *args, **named)
    assert found is not None, f"not refused, {code} was expected"
    assert found.code == code, f"refused as {found.code}, not {code}: {found}"
    return found


@contextmanager
def refusing(code: str) -> Iterator[None]:
    """A block that must raise a SkillPackError with this code."""
    found = None
    try:
        yield
    except SkillPackError as caught:
        found = caught
    assert found is not None, f"not refused, {code} was expected"
    assert found.code == code, f"refused as {found.code}, not {code}: {found}"


def failing(number: int) -> Callable[..., Any]:
    """A system call that fails with this errno."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# ------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A tensor: what the base has (perhaps nothing), what kind the result is, and the components in between."""

    label: str
    result: TensorKind
    encoded: tuple[Encoded, ...]
    base: TensorKind | None = None
    raw: bytes | None = None  # the base's bytes

    @property
    def compatible(self) -> bool:
        return is_compatible(self.base, self.result)


def same_kind(label: str, what: TensorKind, raw: bytes, *encoded: Encoded) -> Case:
    return Case(label, what, encoded, what, raw)


def added(label: str, what: TensorKind, *encoded: Encoded) -> Case:
    return Case(label, what, encoded)


def opened(encoded: Encoded, what: TensorKind) -> tuple[Any, bool]:
    """The open component, made from what the encoder returned, and whether it adds."""
    encoding, target = encoding_named(encoded.encoding, ""), target_of(what)
    params = encoding.parse(encoded.params, target, "here")
    parts = {
        spec.name: np.ascontiguousarray(encoded.parts[spec.name]).reshape(-1).view(np.uint8).view(spec.item)
        for spec in encoding.parts(params, target)
    }
    return encoding.open(params, target, parts, "here"), encoding.adds(params)


def change_of(case: Case) -> Change:
    found = [opened(each, case.result) for each in case.encoded]
    rewriting = [each for each, adds in found if not adds]
    return Change([each for each, adds in found if adds], rewriting[0] if rewriting else None)


VARIANTS = range(3)  # of the kernel: plain C, AVX2, AVX-512


def native_bench(variant: int) -> NativeBench:
    """The compiled bench, in a variant that this processor has."""
    import pytest

    library = native.kernel()
    if library is None:
        pytest.skip("the kernel is not built here; tests/cli/test_packaging.py says whether it should be")
    if variant > NativeBench(library).variant:
        pytest.skip(f"this processor has not what variant {variant} of the kernel needs")
    return NativeBench(library, variant)


def made_directly(case: Case, bench: Bench = NUMPY_BENCH) -> bytes:
    """The result's bytes, without any file."""
    start = start_of(case.raw, case.base, case.result)
    return make(start, case.result, change_of(case), bench, "here").tobytes()


# --------------------------------------------------------------------------------- checkpoints and packs in files


def write_checkpoint(path: Path, tensors: Mapping[str, tuple[TensorKind, bytes]]) -> Path:
    """A real safetensors file."""
    specs = [TensorSpec(name, dtype_named(what.dtype), what.shape) for name, (what, _) in tensors.items()]
    with ShardWriter(path, specs, {}) as writer:
        for spec in writer.tensors:
            writer.write(spec.name, tensors[spec.name][1])
    return path


@dataclass(frozen=True)
class Plan:
    """A pack to be written: cases by tensor name, and whatever else a pack can hold."""

    cases: Mapping[str, Case]
    unchanged: Mapping[str, tuple[TensorKind, bytes]] = field(default_factory=dict)
    removed: Mapping[str, tuple[TensorKind, bytes]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)  # added tensors: name -> the tensor they are the same as
    files: Mapping[str, bytes] = field(default_factory=dict)
    shards: Mapping[str, bytes] = field(default_factory=dict)  # of a layout: name -> head
    index: tuple[str, bytes] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    stats: Mapping[str, int | bytes] = field(default_factory=dict)

    def base(self) -> dict[str, tuple[TensorKind, bytes]]:
        changed = {name: (c.base, c.raw) for name, c in self.cases.items() if c.base is not None and c.raw is not None}
        return {**changed, **self.unchanged, **self.removed}

    def result(self) -> dict[str, tuple[TensorKind, bytes]]:
        made = {name: (case.result, made_directly(case)) for name, case in self.cases.items()}
        whole = {**made, **self.unchanged}
        return {**whole, **{name: whole[target] for name, target in self.aliases.items()}}


def write_base(path: Path, plan: Plan) -> Path:
    return write_checkpoint(path, plan.base())


def write_pack(path: Path, plan: Plan, *, codec: str = "raw", chunk_bytes: int = 4096) -> Path:
    """The pack of ``plan``, through the library's own writer."""
    before = {name: TensorIdentity(what, sha256(raw)) for name, (what, raw) in plan.base().items()}
    after = {name: TensorIdentity(what, sha256(raw)) for name, (what, raw) in plan.result().items()}
    entries = []
    with PackWriter(path, chunk_bytes=chunk_bytes) as writer:
        for name in sorted({*plan.cases, *plan.removed, *plan.aliases}):
            components = []
            for each in plan.cases[name].encoded if name in plan.cases else ():
                stored = store_encoded(each, target_of(after[name].kind), codec, chunk_bytes)
                writer.add(stored)
                components.append(Component(each.encoding, each.params, stored.sha256))
            entries.append(
                Entry(
                    name=name,
                    tensor_class="mlp",
                    module=name.rpartition(".")[0],
                    base=before.get(name),
                    result=after.get(name),
                    alias=plan.aliases.get(name),
                    components=tuple(components),
                    stats=dict(plan.stats) or None,
                )
            )
        index = [plan.index] if plan.index else []
        for _, data in (*sorted(plan.files.items()), *index, *sorted(plan.shards.items())):
            writer.add(store([np.frombuffer(data, np.uint8)], [1], codec, chunk_bytes))
        shards = tuple(side_file(*each) for each in sorted(plan.shards.items()))
        writer.seal(
            Manifest(
                base=base_ref(before),
                result=ResultRef(len(after), checkpoint_digest(after.items())),
                tensors=tuple(entries),
                files=tuple(side_file(*each) for each in sorted(plan.files.items())),
                layout=Layout(shards, side_file(*plan.index) if plan.index else None) if shards else None,
                metadata=dict(plan.metadata),
            )
        )
    return path


def side_file(name: str, data: bytes) -> SideFile:
    return SideFile(name, len(data), sha256(data))


def plan_of(*cases: Case) -> Plan:
    """One tensor a case, named by its label."""
    return Plan({case.label: case for case in cases})


def read_everything(path: Path) -> Pack:
    """Open a pack, prove every content and open every component."""
    with Pack(path) as pack:
        for segment in range(len(pack.contents.all)):
            pack.read_content(segment)
        for name in pack.entries:
            pack.open_components(name)
    return pack


# ------------------------------------------------------------------------------------------------------ surgery


@dataclass
class Parts:
    """A pack taken apart: the two header documents as plain data, and DATA."""

    manifest: Any
    storage: Any
    data: bytes


def stored_header(blob: bytes) -> bytes:
    """MANIFEST and STORAGE of a pack as they are stored."""
    return blob[128 : 128 + int.from_bytes(blob[32:40], "little")]


def take_apart(path: Path) -> Parts:
    return dismantle(path.read_bytes())


def dismantle(blob: bytes) -> Parts:
    """``take_apart`` of a pack in memory."""
    manifest_bytes, storage_bytes, header_bytes, data_bytes = struct.unpack_from("<QQQQ", blob, 16)
    data_at = 128 + header_bytes
    assert len(blob) == data_at + data_bytes
    documents = stored_header(blob)
    if header_bytes < manifest_bytes + storage_bytes:
        assert zstandard.frame_content_size(documents) == manifest_bytes + storage_bytes <= 1 << 20
        documents = zstandard.ZstdDecompressor().decompress(documents)
    manifest = msgpack.unpackb(documents[:manifest_bytes], strict_map_key=False)
    storage = msgpack.unpackb(documents[manifest_bytes:], strict_map_key=False)
    return Parts(manifest, storage, blob[data_at:])


def packed(document: Any) -> bytes:
    """msgpack of a plain document with sorted keys, whatever else is wrong with it; bytes stay as they are."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value, key=str)}
        return [ordered(each) for each in value] if isinstance(value, list) else value

    return document if isinstance(document, bytes) else msgpack.packb(ordered(document), use_bin_type=True)


def put_together(
    parts: Parts,
    *,
    magic: bytes = b"\x89SKP\r\n\x1a\n",
    major: int = 1,
    minor: int = 0,
    reserved: bytes = bytes(12),
    manifest_length: int | None = None,
    storage_length: int | None = None,
    header_length: int | None = None,
    data_length: int | None = None,
    manifest_digest: bytes | None = None,
    storage_digest: bytes | None = None,
    header: bytes | None = None,
    header_crc32: int | None = None,
    crc32: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """The file, every digest, length and checksum repaired except those that are given.

    ``parts.manifest`` and ``parts.storage`` may be bytes, which are then taken as they are. ``header`` is how the two
    are stored: as they are where it is not given.
    """
    manifest, storage = packed(parts.manifest), packed(parts.storage)
    stored = manifest + storage if header is None else header
    head = magic + struct.pack("<HHI", major, minor, zlib.crc32(stored) if header_crc32 is None else header_crc32)
    wholes = (manifest, storage, stored, parts.data)
    lengths = zip((manifest_length, storage_length, header_length, data_length), wholes, strict=True)
    head += b"".join(struct.pack("<Q", len(whole) if given is None else given) for given, whole in lengths)
    head += manifest_digest or hashlib.sha256(manifest).digest()
    head += storage_digest or hashlib.sha256(storage).digest()
    head += reserved
    head += struct.pack("<I", zlib.crc32(head) if crc32 is None else crc32)
    return head + stored + parts.data + tail


def contents_of(parts: Parts) -> list[dict[str, Any]]:
    """The maps of MANIFEST that own a segment each, in the order of the segments."""
    components = [each for entry in parts.manifest["tensors"] for each in entry.get("components", ())]
    return components + parts.manifest["files"]


def records(segment: Mapping[str, Any]) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<II", segment["chunks"]))


def chunks_of(parts: Parts, index: int) -> list[bytes]:
    """The stored chunks of one segment."""
    at = 0
    for k, segment in enumerate(parts.storage["segments"]):
        chunks = []
        for stored, _ in records(segment):
            chunks.append(parts.data[at : at + stored])
            at += stored
        if k == index:
            return chunks
    raise AssertionError(f"no segment {index}")


def with_chunks(parts: Parts, index: int, chunks: Sequence[bytes], *, sha: bytes | None = None) -> Parts:
    """``parts`` with other stored chunks in one segment: chunk table and DATA repaired, the digest of the content too
    where ``sha`` gives it."""
    segments, data = [], b""
    for k, segment in enumerate(parts.storage["segments"]):
        mine = list(chunks) if k == index else chunks_of(parts, k)
        table = b"".join(struct.pack("<II", len(each), zlib.crc32(each)) for each in mine)
        segments.append({"chunks": table, "codec": segment["codec"]})
        data += b"".join(mine)
    changed = copy_of(Parts(parts.manifest, {**parts.storage, "segments": segments}, data))
    if sha is not None:
        contents_of(changed)[index]["sha256"] = sha
    return changed


def with_content(parts: Parts, index: int, content: bytes) -> Parts:
    """``parts`` with other decoded bytes in one ``raw`` segment, the same number of them; all digests repaired."""
    lengths = [len(each) for each in chunks_of(parts, index)]
    assert sum(lengths) == len(content)
    ends = np.cumsum([0, *lengths])
    chunks = [content[a:b] for a, b in pairwise(ends)]
    return with_chunks(parts, index, chunks, sha=hashlib.sha256(content).digest())


def content_of(parts: Parts, index: int) -> bytes:
    return b"".join(chunks_of(parts, index))


def copy_of(parts: Parts) -> Parts:
    """A deep copy, for a test to harm."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(each) for key, each in value.items()}
        return [copied(each) for each in value] if isinstance(value, list) else value

    return Parts(copied(parts.manifest), copied(parts.storage), parts.data)


# ----------------------------------------------------------------------------------- examples of every encoding

BF16_BASE = bf16(1.0, -2.0, 0.5, 4.0, -0.25, 8.0)
F32_BASE = f32(1.0, -2.0, 0.5, 4.0, -0.25, 8.0)


def _dense_add(dtype: str, values: np.ndarray) -> Encoded:
    return Encoded("dense", {"dtype": dtype, "mode": "add"}, {"values": values})


def _dense() -> list[Case]:
    wanted = np.frombuffer(bf16(1.0, 2.0, -0.0, 4.0, 0.25, 8.0), "<u2")
    return [
        same_kind("replace", kind("BF16", 2, 3), BF16_BASE, dense.replacement(wanted, DTYPES["BF16"])),
        same_kind("add", kind("F32", 2, 3), F32_BASE, _dense_add("F16", u16(0x3C00, 0, 0x8000, 1, 0x3800, 0xBC00))),
        added("scalar", kind("F64"), dense.replacement(np.array([0x7FF0_0000_0000_0001], "<u8"), DTYPES["F64"])),
        added("bool", kind("BOOL", 3), dense.replacement(np.array([1, 0, 1], np.uint8), DTYPES["BOOL"])),
        added("complex", kind("C64", 1), dense.replacement(np.array([0x3F80_0000_8000_0000], "<u8"), DTYPES["C64"])),
        added("subbyte", kind("F4", 2, 2), dense.replacement(np.array([0x21, 0x43], np.uint8), DTYPES["F4"])),
    ]


def _sparse() -> list[Case]:
    at = np.array([1, 4])
    long = kind("U8", 600)
    far = kind("I16", 70000)
    bf = DTYPES["BF16"]
    return [
        same_kind(
            "replace",
            kind("BF16", 2, 3),
            BF16_BASE,
            sparse.placed(at, u16(0x7FC1, 0x8000), bf, 6, "replace"),
        ),
        same_kind("add", kind("F32", 2, 3), F32_BASE, sparse.placed(at, u16(0x3F80, 0xBF80), bf, 6, "add")),
        same_kind(
            "gap8",
            long,
            random_bytes(600),
            sparse.placed(np.array([0, 1, 254, 255, 599]), np.arange(5, dtype=np.uint8), DTYPES["U8"], 600, "replace"),
        ),
        same_kind(
            "gap16",
            far,
            random_bytes(140000),
            sparse.placed(np.array([65535, 69999]), u16(7, 9), DTYPES["I16"], 70000, "replace"),
        ),
        same_kind(
            "none",
            kind("F32", 2, 3),
            F32_BASE,
            sparse.placed(np.array([], np.int64), u16(), bf, 6, "add"),
            ulp_of("F32", F32_BASE, f32(1.5, -2.0, 0.5, 4.0, -0.25, -8.0)),
        ),
    ]


def ulp_of(dtype: str, start: bytes, wanted: bytes, sort: str = "none", classes: bytes | None = None) -> Encoded:
    pattern = DTYPES[dtype].bit_pattern
    rows = None if classes is None else np.frombuffer(classes, np.uint8)
    return ulp.difference(np.frombuffer(start, pattern), np.frombuffer(wanted, pattern), DTYPES[dtype], sort, rows)


def _ulp() -> list[Case]:
    wanted = bf16(1.0, -2.0, 0.5, -4.0, -0.0, 9.0)
    return [
        same_kind("bf16", kind("BF16", 2, 3), BF16_BASE, ulp_of("BF16", BF16_BASE, wanted)),
        same_kind("sorted", kind("BF16", 2, 3), BF16_BASE, ulp_of("BF16", BF16_BASE, wanted, "magnitude")),
        same_kind("i8", kind("I8", 3), b"\x7f\xff\x80", ulp_of("I8", b"\x7f\xff\x80", b"\x80\x01\x81")),
        same_kind("f64", kind("F64", 2), random_bytes(16), ulp_of("F64", random_bytes(16), random_bytes(16, 2))),
        same_kind(
            "after",
            kind("BF16", 2, 3),
            BF16_BASE,
            _dense_add("BF16", u16(*[0x3F80] * 6)),
            ulp_of("BF16", bf16(2.0, -1.0, 1.5, 5.0, 0.75, 9.0), wanted),
        ),
        same_kind("rows", kind("BF16", 2, 3), BF16_BASE, ulp_of("BF16", BF16_BASE, wanted, "rows", b"\1\0")),
    ]


def _blockq() -> list[Case]:
    delta = np.array([[0.5, -0.25, 1.0], [0.0, 0.0, -3.0]], np.float32)
    zeros = Encoded(
        "blockq",
        {"bits": 3, "group": 2, "packing": "stream", "scale": "F32"},
        {
            "codes": np.array([0xF8, 0x18, 0x03], np.uint8),
            "scales": np.array([0.25, -1.5, 6.0, 0.0], "<f4").view("<u4"),
            "zeros": u16(7, 6, 0, 14),
        },
    )
    stack = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    return [
        same_kind("lanes", kind("BF16", 2, 3), BF16_BASE, blockq.rounded(delta, 3, 2, "lanes")),
        same_kind("stream", kind("F32", 2, 3), F32_BASE, blockq.rounded(delta, 8, 4, "stream")),
        same_kind("signs", kind("F32", 2, 3), F32_BASE, blockq.rounded(delta, 1, 1 << 32, "stream")),
        same_kind("zeros", kind("F32", 2, 3), F32_BASE, zeros),
        added("stack", kind("F16", 2, 2, 6), blockq.rounded(stack, 5, 4, "stream")),
        added("single", kind("F32"), blockq.rounded(np.array([[2.0]], np.float32), 4, 1, "lanes")),
    ]


@dataclass(frozen=True)
class Slice:
    scales: np.ndarray
    u: np.ndarray
    v: np.ndarray


def int_slice(scales: Sequence[float], u: Any, v: Any) -> Slice:
    """u: (stack, rank, rows), v: (stack, rank, cols), nested lists of integers."""
    return Slice(np.array(scales, np.float32), np.array(u, np.int8), np.array(v, np.int8))


def _lowrank() -> list[Case]:
    first = int_slice([0.5], [[[1, -2]]], [[[3, -4, 0]]])
    second = int_slice([0.125], [[[127, 0], [-128, 1]]], [[[1, 0, -1], [-1, 0, 0]]])
    stack = int_slice([0.25, 0.0], [[[1, 1]], [[0, -1]]], [[[1, 0]], [[-1, -1]]])
    return [
        same_kind("one", kind("BF16", 2, 3), BF16_BASE, lowrank.packed([first], "stream")),
        same_kind("two", kind("F32", 2, 3), F32_BASE, lowrank.packed([first, second], "lanes")),
        added("stack", kind("F32", 2, 2, 2), lowrank.packed([stack], "stream")),
    ]


def _factors() -> list[Case]:
    u = np.array([[[1.0, -0.5]]], np.float32)  # (stack, rank, rows)
    v = np.array([[[0.25, 0.125, -1.0]]], np.float32)
    s = np.array([[1.5]], np.float32)
    wide = np.array([[[1.0, 0.5], [0.25, -1.0]]], np.float32)
    stacked = factors.Band("Q4", np.array([[1.5], [0.0]], np.float32), np.repeat(u, 2, axis=0), np.repeat(v, 2, axis=0))
    return [
        same_kind(
            f"{code}-{packing}",
            kind("F32", 2, 3),
            F32_BASE,
            factors.banded([factors.Band(code, s, u, v)], 2, packing),
        )
        for code, packing in (("F32", "lanes"), ("F16", "lanes"), ("BF16", "stream"), ("Q1", "stream"), ("Q8", "lanes"))
    ] + [
        same_kind(
            "bands",
            kind("BF16", 2, 3),
            BF16_BASE,
            factors.banded(
                [
                    factors.Band("F16", s, u, v),
                    factors.Band("Q3", np.array([[0.5, -0.25]], np.float32), wide, np.repeat(v, 2, axis=1)),
                ],
                2,
                "stream",
            ),
        ),
        added("stack", kind("F32", 2, 2, 3), factors.banded([stacked], 2, "lanes")),
    ]


EXAMPLES: dict[str, Callable[[], list[Case]]] = {
    "blockq": _blockq,
    "dense": _dense,
    "factors": _factors,
    "lowrank": _lowrank,
    "sparse": _sparse,
    "ulp": _ulp,
}


def tiny_plan(encoding: str) -> Plan:
    """A pack of a few hundred bytes whose only encoding is this one."""
    return plan_of(next(case for case in EXAMPLES[encoding]() if nbytes(case.result) <= 64))


def squeezable_plan(encoding: str) -> Plan:
    """A pack of this encoding alone, with chunks of few distinct bytes, which zstd makes shorter."""
    flat, matrix = kind("U8", 200), kind("F32", 2, 128)
    few = np.zeros((2, 128), np.float32)
    few[0, 0] = 1.0
    row = few[:1]
    made: dict[str, Callable[[], Case]] = {
        "blockq": lambda: added("t", matrix, blockq.rounded(few, 8, 128, "lanes")),
        "dense": lambda: added("t", flat, dense.replacement(np.full(200, 7, np.uint8), DTYPES["U8"])),
        "factors": lambda: added(
            "t",
            matrix,
            factors.banded(
                [factors.Band("BF16", np.ones((1, 1), np.float32), few[:, :1].reshape(1, 1, 2), row[None])], 1, "lanes"
            ),
        ),
        "lowrank": lambda: added(
            "t", matrix, lowrank.packed([int_slice([1.0], [[[1, 2]]], [[[99] + [0] * 127]])], "lanes")
        ),
        "sparse": lambda: same_kind(
            "t",
            flat,
            bytes(200),
            sparse.placed(np.arange(100), np.full(100, 3, np.uint8), DTYPES["U8"], 200, "replace"),
        ),
        "ulp": lambda: same_kind("t", flat, bytes(200), ulp_of("U8", bytes(200), b"\x01" + bytes(199))),
    }
    return plan_of(made[encoding]())


def full_plan() -> Plan:
    """A small pack with everything a pack can hold: a stack of components, a resize, a change of dtype, tensors added,
    removed, aliased and unchanged, side files, metadata, statistics."""
    combined = EXAMPLES["ulp"]()[4]
    spare = np.frombuffer(f32(3.0, 4.0), "<u4")
    rows = sparse.placed(np.array([6, 7, 8]), u16(1, 2, 3), DTYPES["BF16"], 9, "replace")
    grown = Case("grown", kind("BF16", 3, 3), (lowrank_row(), rows), kind("BF16", 2, 3), BF16_BASE)
    halved = Case("halved", kind("F16", 2, 3), (), kind("F32", 2, 3), F32_BASE)
    return Plan(
        cases={
            "m.combined": replace(combined, label="m.combined"),
            "m.grown": grown,
            "m.halved": halved,
            "m.new": added("m.new", kind("F32", 2), dense.replacement(spare, DTYPES["F32"])),
            "m.nothing": added("m.nothing", kind("F32", 0, 4)),
        },
        unchanged={"m.same": (kind("I64"), bytes(range(8)))},
        removed={"m.old": (kind("U8", 3), b"abc")},
        aliases={"m.tied": "m.new", "m.twin": "m.same"},
        files={"config.json": b'{"a": 1}', "merges.txt": b""},
        metadata={"author": "somebody", "note": "na\u00efve"},
        stats={"changed": 3, "error": f32(0.25)},
    )


def mixed_plan() -> Plan:
    """As ``full_plan``, but small: two components, an alias, a removed tensor, a side file, metadata."""
    whole = full_plan()
    return Plan(
        cases={"a": replace(whole.cases["m.combined"], label="a")},
        removed={"b": (kind("U8", 3), b"abc")},
        aliases={"c": "a"},
        files={"config.json": b'{"a": 1}'},
        metadata={"by": "me"},
    )


def layout_plan() -> Plan:
    """A tensor changed and one left alone, in two shards and an index."""
    what = kind("U8", 2)
    heads = {name: f'{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}'.encode() for name in ("a", "b")}
    shards = {f"{name}.safetensors": len(raw).to_bytes(8, "little") + raw for name, raw in heads.items()}
    return Plan(
        cases={"a": same_kind("a", what, b"ab", dense.replacement(np.array([1, 2], np.uint8), DTYPES["U8"]))},
        unchanged={"b": (what, b"cd")},
        shards=shards,
        index=("m.safetensors.index.json", b'{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}'),
    )


def lowrank_row() -> Encoded:
    """A slice for (3, 3)."""
    return lowrank.packed([int_slice([0.5], [[[1, -1, 0]]], [[[1, 0, 1]]])], "stream")
