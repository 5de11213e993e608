"""Contents: what every segment must hold, computed from MANIFEST; and how a content becomes stored bytes and back.

Everything about size follows from shapes and parameters here, before a single stored byte is looked at.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from skillpack_format.bits import join_planes, split_planes
from skillpack_format.catalog import codec_named, encoding_named
from skillpack_format.digest import Bytes, TensorKind
from skillpack_format.dtypes import Array, DType, dtype_named
from skillpack_format.encodings._base import Encoded, Encoding, PartSpec, Target
from skillpack_format.errors import SkillPackError, error, placed
from skillpack_format.fields import made
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.manifest import Entry, Manifest, Report, SideFile, raise_first
from skillpack_format.storage import Chunk, Extent, chunk_record


class Content(NamedTuple):  # this and the next: see fields.made
    """One segment's decoded bytes: what they belong to, their parts, and the digest they must have."""

    where: str
    planes: Sequence[int]  # the length of every byte plane, in stored order
    sha256: bytes
    specify: Callable[[], tuple[PartSpec, ...]]  # makes the parts, of which opening needs none

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        return self.specify()


class PlannedComponent(NamedTuple):
    """A component of an entry, its name resolved and its parameters checked. ``segment`` counts over the whole pack."""

    encoding: Encoding
    params: Any
    segment: int

    @property
    def adds(self) -> bool:
        return self.encoding.adds(self.params)


@dataclass(frozen=True, slots=True)
class Contents:
    """Every content of a pack in stored order, and the components of every tensor by its name."""

    all: tuple[Content, ...]
    components: dict[str, tuple[PlannedComponent, ...]]
    first_file: int
    first_layout: int

    def of(self, name: str) -> list[Content]:
        """The contents of a tensor's components, in their order."""
        return [self.all[each.segment] for each in self.components[name]]


def plan(manifest: Manifest, limits: Limits = DEFAULT_LIMITS, report: Report = raise_first) -> Contents:
    """Resolve every component of ``manifest`` (manifest.components, manifest.parameter, unsupported.encoding)."""
    contents: list[Content] = []
    components: dict[str, tuple[PlannedComponent, ...]] = {}
    for entry in manifest.tensors:
        try:
            planned, found = _plan_entry(entry, len(contents), limits)
        except SkillPackError as fault:
            report(fault)
            continue
        components[entry.name] = planned
        contents += found
    files = [_file_content(f"file {each.name}", each) for each in manifest.files]
    layout = (
        [_file_content(f"layout {each.name}", each) for each in manifest.layout.contents] if manifest.layout else []
    )
    first_file = len(contents)
    return Contents((*contents, *files, *layout), components, first_file, first_file + len(files))


def _file_content(where: str, each: SideFile) -> Content:
    return Content(where, [each.nbytes], each.sha256, lambda: (PartSpec("bytes", 1, each.nbytes),))


def target_of(kind: TensorKind) -> Target:
    return made(Target, (dtype_named(kind.dtype), kind.shape))


def is_compatible(base: TensorKind | None, result: TensorKind) -> bool:
    """Whether START is made from the base (num.start): same dtype or both arithmetic, same shape but for the rows."""
    if base is None:
        return False
    before, after = dtype_named(base.dtype), dtype_named(result.dtype)
    same_rows = base.shape == result.shape
    resized = len(base.shape) == len(result.shape) >= 1 and base.shape[1:] == result.shape[1:]
    return (before == after or (before.is_arithmetic and after.is_arithmetic)) and (same_rows or resized)


def _is_converted(base: TensorKind | None, result: TensorKind) -> bool:
    """Whether START alone is a change: another dtype, or other rows."""
    return base != result and is_compatible(base, result)


def _plan_entry(entry: Entry, segment: int, limits: Limits) -> tuple[tuple[PlannedComponent, ...], list[Content]]:
    result = entry.result
    if result is None or entry.alias is not None:
        return (), []
    name, target = entry.name, target_of(result.kind)
    numel = target.numel
    planned: list[PlannedComponent] = []
    contents: list[Content] = []
    adds: list[bool] = []
    products = 0
    for index, component in enumerate(entry.components):
        try:
            encoding = encoding_named(component.encoding, "")
            params = encoding.parse(component.params, target, "")
            planes = encoding.planes(params, target)
            limits.require("tensor_bytes", sum(planes), "")
        except SkillPackError as fault:
            raise placed(f"tensor {name!r} component {index}", fault) from None
        planned.append(made(PlannedComponent, (encoding, params, segment + index)))
        where = f"tensor {name!r} component {index} ({encoding.name})"
        specify = partial(encoding.parts, params, target)
        contents.append(made(Content, (where, planes, component.sha256, specify)))
        adds.append(encoding.adds(params))
        products += encoding.products(params)
    try:
        limits.require("tensor_products", products * numel, "")
        if adds:
            _check_stack(adds, target.dtype, numel)
        elif numel and not _is_converted(entry.base.kind if entry.base else None, result.kind):
            raise error("manifest.components", "", "no components, and neither dtype nor rows of the base to change")
    except SkillPackError as fault:
        raise placed(f"tensor {name!r}", fault) from None
    return tuple(planned), contents


def _check_stack(adds: Sequence[bool], dtype: DType, numel: int) -> None:
    """The order and company of components, each of which adds or rewrites (manifest.components)."""
    if not numel:
        raise error("manifest.components", "", "a tensor without elements has no components")
    if False in adds[:-1]:
        raise error("manifest.components", "", "only the last component may rewrite, the others add")
    if True in adds and not dtype.is_arithmetic:
        raise error("manifest.components", "", f"{dtype.name} cannot be added to; F32, F16 and BF16 can")


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A content ready to be written: its digest, its chunk table, its stored chunks."""

    sha256: bytes
    codec: str
    table: bytes
    chunks: tuple[bytes, ...]
    nbytes: int  # of the chunks together


def store(
    parts: Sequence[Array], widths: Sequence[int], codec_name: str, chunk_bytes: int, *, thorough: bool = True
) -> StoredContent:
    """Split ``parts`` into planes and chunks and compress each (spec/storage.md). Pure; runs in any thread."""
    codec = codec_named(codec_name, "")
    planes = [plane for part, width in zip(parts, widths, strict=True) for plane in split_planes(part, width)]
    digest = hashlib.sha256()
    chunks: list[bytes] = []
    for plane in planes:
        digest.update(plane.data)
        for start in range(0, plane.size, chunk_bytes):
            chunks.append(codec.compress(plane[start : start + chunk_bytes].tobytes(), thorough=thorough))
    table = b"".join(chunk_record(len(chunk), zlib.crc32(chunk)) for chunk in chunks)
    return StoredContent(digest.digest(), codec_name, table, tuple(chunks), sum(map(len, chunks)))


def store_encoded(
    encoded: Encoded, target: Target, codec_name: str, chunk_bytes: int, *, thorough: bool = True
) -> StoredContent:
    """``store`` for what an encoder returned, its parts checked against what its parameters imply."""
    encoding = encoding_named(encoded.encoding, "")
    specs = encoding.parts(encoding.parse(encoded.params, target, ""), target)
    for spec in specs:
        found = encoded.parts[spec.name].nbytes
        if found != spec.nbytes:
            raise AssertionError(f"{encoded.encoding} part {spec.name}: {found} bytes, {spec.nbytes} are implied")
    parts = [encoded.parts[spec.name] for spec in specs]
    return store(parts, [spec.width for spec in specs], codec_name, chunk_bytes, thorough=thorough)


Reader = Callable[[int, int], bytes | bytearray]  # (offset, count): that many bytes of DATA


def load(content: Content, extent: Extent, read_at: Reader) -> dict[str, Array]:
    """The parts of a content, decoded and proved (integrity.chunk, payload.frame, integrity.content).

    ``read_at(offset, count)`` reads DATA. Every CRC-32 is compared before memory is taken for what the chunks decode
    to, the digest of the whole before anything else sees it.
    """
    codec = codec_named(extent.codec, content.where)
    stored = memoryview(read_at(extent.offset, extent.length))
    for _, _, at, chunk in _placed_chunks(content, extent):
        _require_checksum(content, extent.offset + at, chunk, stored[at : at + chunk.stored])
    planes = [np.empty(length, np.uint8) for length in content.planes]
    digest = hashlib.sha256()
    for index, start, at, chunk in _placed_chunks(content, extent):
        decoded = codec.decompress(stored[at : at + chunk.stored], chunk.nbytes, content.where)
        planes[index][start : start + chunk.nbytes] = np.frombuffer(decoded, np.uint8)
    for plane in planes:
        digest.update(plane.data)
    if digest.digest() != content.sha256:
        raise error("integrity.content", content.where, "the SHA-256 of the decoded bytes is not the one in MANIFEST")
    return _joined(content, planes)


def load_runs(content: Content, extent: Extent, read_at: Reader, runs: Mapping[str, slice]) -> dict[str, Array]:
    """The items ``runs`` of every part, from the chunks that hold them alone (integrity.chunk, payload.frame).

    A CRC-32 finds damage and no forgery: only ``load`` proves a content (spec/apply.md, "Parts of tensors").
    """
    codec = codec_named(extent.codec, content.where)
    pieces: list[list[Array]] = [[] for _ in content.planes]
    wanted = [runs[part.name] for part in content.parts for _ in range(part.width)]  # of every plane
    for index, start, at, chunk in _placed_chunks(content, extent):
        run = wanted[index]
        if start < run.stop and run.start < start + chunk.nbytes:
            offset = extent.offset + at
            stored = read_at(offset, chunk.stored)
            _require_checksum(content, offset, chunk, stored)
            decoded = np.frombuffer(codec.decompress(memoryview(stored), chunk.nbytes, content.where), np.uint8)
            pieces[index].append(decoded[max(run.start - start, 0) : run.stop - start])
    return _joined(content, [np.concatenate(each) if each else np.empty(0, np.uint8) for each in pieces])


def _placed_chunks(content: Content, extent: Extent) -> Iterator[tuple[int, int, int, Chunk]]:
    """Every chunk: which plane it is of, from which byte of it on, and where in the segment it is stored."""
    chunks = iter(extent.chunks)
    at = 0
    for index, length in enumerate(content.planes):
        start = 0
        while start < length:
            chunk = next(chunks)
            yield index, start, at, chunk
            start += chunk.nbytes
            at += chunk.stored


def _require_checksum(content: Content, offset: int, chunk: Chunk, stored: Bytes) -> None:
    if zlib.crc32(stored) != chunk.crc32:
        message = f"the CRC-32 of the chunk at byte {offset} of DATA is wrong"
        raise error("integrity.chunk", content.where, message)


def _joined(content: Content, planes: Sequence[Array]) -> dict[str, Array]:
    """The parts that ``planes`` in stored order make."""
    rest = iter(planes)
    return {part.name: join_planes([next(rest) for _ in range(part.width)], part.item) for part in content.parts}
