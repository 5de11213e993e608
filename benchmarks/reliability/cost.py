"""What it costs to refuse a file: packs whose fault comes last, each the densest of its kind.

Digests and checksums are right, so that everything before the fault has to be looked at: opening ends with the code
that stands beside the shape. Each shape is measured with documents of 1 MiB, the most that a file of 1 MiB can hold,
compressed or not (container.md), and at two sizes before it, in CPU time of a process that has everything imported; the
least of several runs counts, for a busy machine only adds to it.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from skillpack_format import wire
from skillpack_format.container import write_header
from skillpack_format.errors import SkillPackError
from skillpack_format.reader import Pack

MIB: Final = 1 << 20
SIZES: Final = (MIB >> 2, MIB >> 1, MIB)
REPEATS: Final = 7
LEAST_S: Final = 0.002
BOUND_S: Final = 0.1  # of work for a file of 1 MiB
BOUND_GROWTH: Final = 2.3  # times a doubling
ZERO: Final = bytes(32)

Plain = dict[str, Any]
Documents = tuple[bytes, bytes]  # MANIFEST and STORAGE, whatever they say


@dataclass(frozen=True)
class Shape:
    """``build(count)`` are documents of ``count`` of something, whose pack ends with ``code`` when it is opened."""

    name: str
    code: str
    build: Callable[[int], Documents]


@dataclass(frozen=True)
class Cost:
    shape: Shape
    seconds: tuple[float, ...]  # of documents of SIZES

    @property
    def growth(self) -> float | None:
        """How many times longer a doubling takes, the larger of the two; None where that is less than a clock tells."""
        if self.seconds[0] < LEAST_S:
            return None
        return max(after / before for before, after in pairwise(self.seconds))


def documents_of(manifest: Plain, storage: Plain) -> Documents:
    return wire.write(manifest), wire.write(storage)


def manifest_of(tensors: list[Plain], base: int, result: int, **others: Any) -> Plain:
    return {
        "base": {"count": base, "digest": ZERO, "prints": bytes(4 * base)},
        "files": [],
        "format": "skillpack/1",
        "metadata": {},
        "result": {"count": result, "digest": ZERO},
        "tensors": tensors,
        **others,
    }


def storage_of(segments: list[Plain]) -> Plain:
    return {"chunk_bytes": 4096, "segments": segments}


def identity(dtype: str = "U8", shape: tuple[int, ...] = (1,), sha256: bytes = ZERO) -> Plain:
    return {"dtype": dtype, "sha256": sha256, "shape": list(shape)}


def entry(name: str, **others: Any) -> Plain:
    return {"class": "mlp", "module": "", "name": name, **others}


def names(count: int) -> Iterator[str]:
    """Short ascending names."""
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return ("".join(each) for each in itertools.islice(itertools.product(letters, repeat=3), count))


def segment(chunks: int, nbytes: int = 1) -> Plain:
    return {"chunks": struct.pack("<II", nbytes, 0) * chunks, "codec": "raw"}


DENSE: Final[Plain] = {"dtype": "U8", "encoding": "dense", "mode": "replace", "sha256": ZERO}
ADD: Final[Plain] = {"dtype": "F32", "encoding": "dense", "mode": "add", "sha256": ZERO}


def filled(components: list[Plain], segments: list[Plain], **result: Any) -> Callable[[int], Documents]:
    """Added tensors of such components; the last fault there is: where DATA ends."""

    def build(count: int) -> Documents:
        tensors = [entry(name, components=components, result=identity(**result)) for name in names(count)]
        return documents_of(manifest_of(tensors, 0, count), storage_of(segments * count))

    return build


def model(count: int) -> Documents:
    """Changed matrices with names as models have them, three slices each."""
    slices = [{"bits_u": bits, "bits_v": 4, "rank": 16} for bits in (8, 4, 2)]
    component = {"encoding": "lowrank", "packing": "stream", "sha256": ZERO, "slices": slices}
    figures = {"changed": 1 << 24, "energy": bytes(4), "error": bytes(4), "norm": bytes(4), "projection": bytes(4)}
    tensors = [
        entry(
            f"model.layers.{k:05}.self_attn.q_proj.weight",
            base=identity("BF16", (1024, 1024)),
            components=[component],
            module=f"model.layers.{k:05}.self_attn.q_proj",
            result=identity("BF16", (1024, 1024), bytes([1]) * 32),
            stats=figures,
        )
        for k in range(count)
    ]
    chunks = struct.pack("<II", 1, 0)
    segments: list[Plain] = []
    for _ in range(count):
        bytes_a_slice = [(1024 * 16 * bits + 7) // 8 for each in slices for bits in (each["bits_u"], each["bits_v"])]
        due = 4 * len(slices) + sum(-(-each // 4096) for each in bytes_a_slice)
        segments.append({"chunks": chunks * due, "codec": "zstd"})
    return documents_of(manifest_of(tensors, count, count), storage_of(segments))


def removed(count: int) -> Documents:
    return documents_of(
        manifest_of([entry(name, base=identity()) for name in names(count)], count, 1), storage_of([])
    )  # one too many


def aliases(count: int) -> Documents:
    tensors = [entry(name, alias="~", result=identity()) for name in names(count)]
    return documents_of(manifest_of(tensors, 0, count + 1), storage_of([]))


def emptied(count: int) -> Documents:
    tensors = [entry(name, components=[], result=identity(shape=(0,))) for name in names(count)]
    return documents_of(manifest_of(tensors, 0, count + 1), storage_of([]))


def deep(count: int) -> Documents:
    """Shapes of eight dimensions of nine bytes each."""
    shape = (0, *[(1 << 64) - 1] * 7)
    tensors = [entry(name, components=[], result=identity(shape=shape)) for name in names(count)]
    return documents_of(manifest_of(tensors, 0, count + 1), storage_of([]))


def long_names(count: int) -> Documents:
    tensors = [entry("x" * 509 + name, alias="~" * 512, result=identity()) for name in names(count)]
    return documents_of(manifest_of(tensors, 0, count + 1), storage_of([]))


def disordered(count: int) -> Documents:
    tensors = [entry(name, base=identity()) for name in names(count)]
    return documents_of(manifest_of([*tensors, tensors[-1]], count + 1, 0), storage_of([]))


def sliced(count: int) -> Documents:
    """The most slices that a component and an entry may have, all different; no table of chunks fits."""
    tensors = []
    for name, at in zip(names(count // 512 + 1), range(0, count, 512), strict=False):
        listed = [
            {"bits_u": 1 + k % 8, "bits_v": 1 + k // 8 % 8, "rank": 1 + k // 64} for k in range(min(512, count - at))
        ]
        components = [
            {"encoding": "lowrank", "packing": "stream", "sha256": ZERO, "slices": listed[first : first + 64]}
            for first in range(0, len(listed), 64)
        ]
        tensors.append(entry(name, components=components, result=identity("F32", (16, 16))))
    due = sum(len(each["components"]) for each in tensors)
    return documents_of(thinned(manifest_of(tensors, 0, len(tensors))), storage_of([segment(1)] * due))


def banded(count: int) -> Documents:
    tensors = []
    for name, at in zip(names(count // 512 + 1), range(0, count, 512), strict=False):
        listed = [{"code": f"Q{1 + k % 8}", "rank": 1 + k // 64} for k in range(min(512, count - at))]
        common = {"encoding": "factors", "group": 1, "packing": "stream", "scale": "F16", "sha256": ZERO}
        components = [{**common, "bands": listed[first : first + 64]} for first in range(0, len(listed), 64)]
        tensors.append(entry(name, components=components, result=identity("F32", (16, 16))))
    due = sum(len(each["components"]) for each in tensors)
    return documents_of(thinned(manifest_of(tensors, 0, len(tensors))), storage_of([segment(1)] * due))


def thinned(manifest: Plain) -> Plain:
    """With as much text as makes it lawful (limit.exceeded/density)."""
    missing = wire.BYTES_A_VALUE * (values_of(manifest) + 2 - wire.FREE_VALUES) - len(wire.write(manifest))
    return {**manifest, "metadata": {"k": "x" * missing}} if missing > 0 else manifest


def values_of(plain: Any) -> int:
    if isinstance(plain, dict):
        return 1 + sum(1 + values_of(each) for each in plain.values())
    return 1 + sum(map(values_of, plain)) if isinstance(plain, list) else 1


def sharded(count: int) -> Documents:
    """Heads of a layout, the last of them not in order."""
    shards = [{"length": 1, "name": f"{name}.safetensors", "sha256": ZERO} for name in names(min(count, 4096))]
    index = {"length": 1, "name": "model.safetensors.index.json", "sha256": ZERO}
    layout = {"index": index, "shards": [*shards[:-1], shards[0]]}
    return documents_of(manifest_of([], 0, 0, layout=layout), storage_of([]))


def written(count: int) -> Documents:
    """Metadata of one text in letters of two bytes, one byte above the limit at 1 MiB."""
    return documents_of(manifest_of([], 0, 1, metadata={"k": "\u00e9" * (count // 2)}), storage_of([]))


def printed(count: int) -> Documents:
    return documents_of(manifest_of([], count, count + 1), storage_of([]))


def segmented(count: int) -> Documents:
    """Segments as small as a document of many may have them (limit.exceeded/density)."""
    return documents_of(manifest_of([], 0, 0), storage_of([{"chunks": bytes(5), "codec": "raw"}] * count))


def chunked(count: int) -> Documents:
    """One content of so many chunks."""
    tensors = [entry("w", components=[DENSE], result=identity(shape=(4096 * count,)))]
    return documents_of(manifest_of(tensors, 0, 1), storage_of([{**segment(count), "codec": "zstd"}]))


def dense(item: bytes, values: int) -> Callable[[int], Documents]:
    """A MANIFEST of ``count`` times ``item`` with its ``values``, and as many bytes beside as make it lawful."""

    def build(count: int) -> Documents:
        before = b"\x92" + _head(b"\xdc\xdd", count) + item * count
        missing = max(0, wire.BYTES_A_VALUE * (count * values + 3 - wire.FREE_VALUES) - len(before))
        return (before + _head(b"\xc5\xc6", max(missing, 256)) + bytes(max(missing, 256)) + b"\x00", b"")

    return build


def keyed(count: int) -> Documents:
    """A map of as many keys as it can have, each of its own."""
    return wire.write({f"{k:08}": 0 for k in range(count)}) + b"\x00", b""


def _head(firsts: bytes, count: int) -> bytes:
    """Of an array or bytes: longer than what its short form holds."""
    return firsts[:1] + struct.pack(">H", count) if count < 1 << 16 else firsts[1:] + struct.pack(">I", count)


def quantised() -> Plain:
    return {"bits": 4, "encoding": "blockq", "group": 1, "packing": "stream", "scale": "F16", "sha256": ZERO, "zero": 1}


def scattered() -> Plain:
    shared = {"dtype": "U8", "encoding": "sparse", "index": "gap8", "mode": "replace", "sha256": ZERO}
    return {"count": 1, "gaps": 1, **shared}


END: Final = "storage.data-length"
COUNT: Final = "manifest.value"
SHAPES: Final = (
    Shape("a model's matrices, three slices each", END, model),
    Shape("added tensors, one chunk each", END, filled([DENSE], [segment(1)])),
    Shape("added tensors of eight planes", END, filled([{**DENSE, "dtype": "F64"}], [segment(8)], dtype="F64")),
    Shape("added tensors, eight components each", END, filled([ADD] * 8, [segment(4)] * 8, dtype="F32")),
    Shape("added tensors, blockq", END, filled([quantised()], [segment(3)], dtype="F32")),
    Shape("added tensors, sparse", END, filled([scattered()], [segment(2)])),
    Shape("removed tensors, the count wrong", COUNT, removed),
    Shape("removed tensors, the last one twice", "manifest.order", disordered),
    Shape("aliases, the count wrong", COUNT, aliases),
    Shape("tensors without elements, the count wrong", COUNT, emptied),
    Shape("shapes of eight large dimensions, the count wrong", COUNT, deep),
    Shape("names and aliases of 512 bytes, the count wrong", COUNT, long_names),
    Shape("64 slices in each of 8 components", "storage.chunk-table", sliced),
    Shape("64 bands in each of 8 components", "storage.chunk-table", banded),
    Shape("a layout of 4096 shards at most, the last not in order", "manifest.order", sharded),
    Shape("one text as metadata, the count wrong", COUNT, written),
    Shape("prints of a base, the count wrong", COUNT, printed),
    Shape("segments of no content", "storage.segments", segmented),
    Shape("one content in chunks", END, chunked),
    Shape("MANIFEST of integers", "wire.trailing", dense(b"\xcd\xff\xff", 1)),
    Shape("MANIFEST of bytes", "wire.trailing", dense(b"\xc4\x01a", 1)),
    Shape("MANIFEST of texts", "wire.trailing", dense(b"\xa2\xc3\xa9", 1)),
    Shape("MANIFEST of empty arrays", "wire.trailing", dense(b"\x90", 1)),
    Shape("MANIFEST of arrays in arrays", "wire.trailing", dense(b"\x91" * 5 + b"\x90", 6)),
    Shape("MANIFEST of maps in maps", "wire.trailing", dense(b"\x81\xa1a" * 5 + b"\x90", 11)),
    Shape("MANIFEST of keys", "wire.trailing", keyed),
)


def sized(shape: Shape, nbytes: int) -> bytes:
    """A pack of a shape whose documents are about the largest that are not above ``nbytes`` together."""
    count = 1 << 8
    for _ in range(6):  # their size is nearly a multiple of the count
        count = max(1, int(count * nbytes / sum(map(len, shape.build(count)))))
        if count >= 1 << 20:  # a shape that grows no more, having all it may have
            count = 1 << 12
            break
    while sum(map(len, documents := shape.build(count))) > nbytes:
        count -= max(1, count >> 10)
    return write_header(*documents, 0)


def refusing(path: Path) -> tuple[float, str]:
    """CPU seconds of opening a pack, and the code it ends with."""
    before = time.process_time()
    try:
        with Pack(path):
            code = "accepted"
    except SkillPackError as found:
        code = found.code
    return time.process_time() - before, code


def run(
    root: Path, progress: Callable[[int, int], None] = lambda done, total: None, repeats: int = REPEATS
) -> Iterator[Cost]:
    """Every shape, measured so many times; AssertionError where one does not end as it should."""
    path = root / "p.skp"
    for done, shape in enumerate(SHAPES):
        seconds = []
        for nbytes in SIZES:
            path.write_bytes(sized(shape, nbytes))
            tried = [refusing(path) for _ in range(repeats)]
            if {code for _, code in tried} != {shape.code}:
                raise AssertionError(f"{shape.name}: ends with {tried[0][1]}")
            seconds.append(min(spent for spent, _ in tried))
        yield Cost(shape, tuple(seconds))
        progress(done + 1, len(SHAPES))
