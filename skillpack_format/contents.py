"""Contents: what every segment must hold, computed from MANIFEST; and how a content becomes stored bytes and back.

Everything about size follows from shapes and parameters here, before a single stored byte is looked at.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skillpack_format.bits import join_planes, split_planes
from skillpack_format.catalog import codec_named, encoding_named
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import Array, dtype_named
from skillpack_format.encodings._base import Encoded, Encoding, PartSpec, Target
from skillpack_format.errors import SkillPackError, error
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.manifest import Component, Entry, Manifest, Report, raise_first
from skillpack_format.storage import Extent, chunk_record


@dataclass(frozen=True, slots=True)
class Content:
    """One segment's decoded bytes: what they belong to, their parts, and the digest they must have."""

    where: str
    parts: tuple[PartSpec, ...]
    sha256: bytes

    @property
    def planes(self) -> list[int]:
        """The length of every byte plane, in stored order."""
        return plane_lengths(self.parts)


@dataclass(frozen=True, slots=True)
class PlannedComponent:
    """A component of an entry, its name resolved and its parameters checked. ``segment`` counts over the whole pack."""

    component: Component
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
    files = [Content(f"file {each.name}", (PartSpec("bytes", 1, each.nbytes),), each.sha256) for each in manifest.files]
    return Contents((*contents, *files), components, len(contents))


def plane_lengths(parts: Sequence[PartSpec]) -> list[int]:
    return [part.count for part in parts for _ in range(part.width)]


def target_of(kind: TensorKind) -> Target:
    return Target(dtype_named(kind.dtype), kind.shape)


def is_compatible(base: TensorKind | None, result: TensorKind) -> bool:
    """Whether START is made from the base (num.start): same dtype or both arithmetic, same shape but for the rows."""
    if base is None:
        return False
    before, after = dtype_named(base.dtype), dtype_named(result.dtype)
    same_rows = base.shape == result.shape
    resized = len(base.shape) == len(result.shape) >= 1 and base.shape[1:] == result.shape[1:]
    return (before == after or (before.is_arithmetic and after.is_arithmetic)) and (same_rows or resized)


def _plan_entry(entry: Entry, segment: int, limits: Limits) -> tuple[tuple[PlannedComponent, ...], list[Content]]:
    if entry.result is None or entry.alias is not None:
        return (), []
    where = f"tensor {entry.name!r}"
    target = target_of(entry.result.kind)
    planned: list[PlannedComponent] = []
    contents: list[Content] = []
    for index, component in enumerate(entry.components):
        place = f"{where} component {index}"
        encoding = encoding_named(component.encoding, place)
        params = encoding.parse(component.params, target, place)
        planned.append(PlannedComponent(component, encoding, params, segment + index))
        content = Content(f"{place} ({encoding.name})", encoding.parts(params, target), component.sha256)
        limits.require("tensor_bytes", sum(part.nbytes for part in content.parts), place)
        contents.append(content)
    _check_stack(entry, planned, target, where)
    return tuple(planned), contents


def _check_stack(entry: Entry, planned: Sequence[PlannedComponent], target: Target, where: str) -> None:
    """The order and company of components (manifest.components)."""
    if planned and not target.numel:
        raise error("manifest.components", where, "a tensor without elements has no components")
    adds = [each.adds for each in planned]
    if False in adds[:-1]:
        raise error("manifest.components", where, "only the last component may rewrite, the others add")
    if True in adds and not target.dtype.is_arithmetic:
        raise error("manifest.components", where, f"{target.dtype.name} cannot be added to; F32, F16 and BF16 can")
    base_kind = entry.base.kind if entry.base else None
    result_kind = TensorKind(target.dtype.name, target.shape)
    compatible = is_compatible(base_kind, result_kind)
    if not planned and target.numel and (not compatible or base_kind == result_kind):
        raise error("manifest.components", where, "no components, and neither dtype nor rows of the base to change")


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


def load(content: Content, extent: Extent, read_at: Callable[[int, int], bytes | bytearray]) -> dict[str, Array]:
    """The parts of a content, decoded and proved (integrity.chunk, payload.frame, integrity.content).

    ``read_at(offset, count)`` reads DATA. Every CRC-32 is compared before memory is taken for what the chunks decode
    to, the digest of the whole before anything else sees it.
    """
    codec = codec_named(extent.codec, content.where)
    stored = memoryview(read_at(extent.offset, extent.length))
    _require_checksums(stored, extent, content.where)
    planes = []
    digest = hashlib.sha256()
    chunks = iter(extent.chunks)
    at = 0
    for length in content.planes:
        plane = np.empty(length, np.uint8)
        filled = 0
        while filled < length:
            chunk = next(chunks)
            decoded = codec.decompress(stored[at : at + chunk.stored], chunk.nbytes, content.where)
            plane[filled : filled + chunk.nbytes] = np.frombuffer(decoded, np.uint8)
            at += chunk.stored
            filled += chunk.nbytes
        digest.update(plane.data)
        planes.append(plane)
    if digest.digest() != content.sha256:
        raise error("integrity.content", content.where, "the SHA-256 of the decoded bytes is not the one in MANIFEST")
    parts: dict[str, Array] = {}
    for part in content.parts:
        parts[part.name] = join_planes([planes.pop(0) for _ in range(part.width)], part.item)
    return parts


def _require_checksums(stored: memoryview, extent: Extent, where: str) -> None:
    at = 0
    for chunk in extent.chunks:
        if zlib.crc32(stored[at : at + chunk.stored]) != chunk.crc32:
            place = f"the chunk at byte {extent.offset + at} of DATA"
            raise error("integrity.chunk", where, f"the CRC-32 of {place} is wrong")
        at += chunk.stored
