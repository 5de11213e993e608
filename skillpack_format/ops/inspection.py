"""``inspect``: what a pack is, from its header alone. No content is read unless asked for: then the side files' own."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillpack_format.dtypes import dtype_named, numel, tensor_nbytes
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.manifest import Entry, Manifest, SideFile
from skillpack_format.reader import Pack, change_of, open_pack
from skillpack_format.side_files import CODE, TEMPLATE, can_hold, notes_of


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the pack. ``error`` and ``projection`` are the author's figures, None where there is none."""

    name: str
    tensor_class: str
    module: str
    change: str
    kind: str
    encodings: tuple[str, ...]
    elements: int
    changed: int | None
    nbytes: int
    error: float | None
    projection: float | None
    norm: float | None


@dataclass(frozen=True, slots=True)
class ClassRow:
    """All tensors of one module class together. ``error`` is weighted by the energy of each delta."""

    tensor_class: str
    tensors: int
    elements: int
    result_bytes: int
    nbytes: int
    error: float | None


@dataclass(frozen=True, slots=True)
class SideFileRow:
    """A side file. ``can_hold`` follows from its name, ``notes`` from its content: None where that was not read."""

    name: str
    nbytes: int
    can_hold: tuple[str, ...]
    notes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class InspectionReport:
    """What the header says. Figures on quality are the author's claims; digests are what ``apply`` proves."""

    path: Path
    pack_id: str
    file_bytes: int
    header_bytes: int
    metadata: dict[str, str]
    base_digest: str
    base_tensors: int
    result_digest: str
    result_tensors: int
    classes: tuple[ClassRow, ...]
    tensors: tuple[TensorRow, ...]
    side_files: tuple[SideFileRow, ...]
    shards: tuple[str, ...]  # of the layout; none where there is none
    index: str | None
    codecs: tuple[str, ...]
    manifest: Manifest

    def to_plain(self) -> dict[str, Any]:
        """The report as plain data, without the manifest; ``rendering`` gives that."""
        return {
            "path": str(self.path),
            "pack_id": self.pack_id,
            "bytes": {"file": self.file_bytes, "header": self.header_bytes},
            "metadata": self.metadata,
            "base": {"digest": self.base_digest, "tensors": self.base_tensors},
            "result": {"digest": self.result_digest, "tensors": self.result_tensors},
            "codecs": list(self.codecs),
            "layout": {"shards": list(self.shards), "index": self.index} if self.shards else None,
            "classes": [
                {
                    "class": row.tensor_class,
                    "tensors": row.tensors,
                    "elements": row.elements,
                    "result_bytes": row.result_bytes,
                    "bytes": row.nbytes,
                    "error": row.error,
                }
                for row in self.classes
            ],
            "tensors": [
                {
                    "name": row.name,
                    "class": row.tensor_class,
                    "module": row.module,
                    "change": row.change,
                    "kind": row.kind,
                    "encodings": list(row.encodings),
                    "elements": row.elements,
                    "changed": row.changed,
                    "bytes": row.nbytes,
                    "error": row.error,
                    "projection": row.projection,
                    "norm": row.norm,
                }
                for row in self.tensors
            ],
            "side_files": [
                {
                    "name": row.name,
                    "bytes": row.nbytes,
                    "can_hold_chat_template": TEMPLATE in row.can_hold,
                    "can_name_code": CODE in row.can_hold,
                    "notes": None if row.notes is None else list(row.notes),
                }
                for row in self.side_files
            ],
        }

    def rendering(self) -> Any:
        """MANIFEST in the normative JSON rendering (manifest.md): bytes as hexadecimal, large integers as text."""
        return render(self.manifest.to_plain())


def inspect(path: Path, limits: Limits = DEFAULT_LIMITS, *, side_files: bool = False) -> InspectionReport:
    """Read the header of ``path`` and report on it; with ``side_files`` their contents too, proved, for the notes."""
    with open_pack(path, limits) as pack:
        layout = pack.manifest.layout
        rows = tuple(_tensor_row(pack, entry) for entry in pack.manifest.tensors)
        return InspectionReport(
            path=path,
            pack_id=pack.pack_id,
            file_bytes=pack.nbytes,
            header_bytes=pack.header_bytes,
            metadata=pack.metadata(),
            base_digest=pack.manifest.base.digest.hex(),
            base_tensors=pack.manifest.base.count,
            result_digest=pack.manifest.result.digest.hex(),
            result_tensors=pack.manifest.result.count,
            classes=_class_rows(pack.manifest.tensors, rows),
            tensors=rows,
            side_files=tuple(_side_file_row(pack, each, read=side_files) for each in pack.manifest.files),
            shards=tuple(each.name for each in layout.shards) if layout else (),
            index=layout.index.name if layout and layout.index else None,
            codecs=tuple(sorted({extent.codec for extent in pack.extents})),
            manifest=pack.manifest,
        )


def render(value: Any) -> Any:
    """A header document as JSON data."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int):
        return value if value < 1 << 53 else str(value)
    if isinstance(value, dict):
        return {key: render(each) for key, each in value.items()}
    return [render(each) for each in value] if isinstance(value, list) else value


def _side_file_row(pack: Pack, each: SideFile, *, read: bool) -> SideFileRow:
    notes = notes_of(each.name, pack.read_side_file(each.name)) if read else None
    return SideFileRow(each.name, each.nbytes, can_hold(each.name), notes)


def _tensor_row(pack: Pack, entry: Entry) -> TensorRow:
    info = pack.info(entry.name)
    identity = entry.result or entry.base
    figures = entry.stats or {}
    changed = figures.get("changed")
    return TensorRow(
        name=entry.name,
        tensor_class=entry.tensor_class,
        module=entry.module,
        change=change_of(entry),
        kind=str(identity.kind) if identity else "",
        encodings=info.encodings if entry.alias is None else (f"= {entry.alias}",),
        elements=numel(identity.kind.shape) if identity else 0,
        changed=changed if isinstance(changed, int) else None,
        nbytes=info.nbytes,
        error=_float32(figures.get("error")),
        projection=_float32(figures.get("projection")),
        norm=_float32(figures.get("norm")),
    )


def _float32(stored: int | bytes | None) -> float | None:
    if not isinstance(stored, bytes):
        return None
    value: float = struct.unpack("<f", stored)[0]
    return value if abs(value) <= 3.5e38 else None  # NaN and infinity say nothing, and JSON has neither


def _class_rows(entries: Iterable[Entry], rows: Iterable[TensorRow]) -> tuple[ClassRow, ...]:
    """Sums by class, the largest first."""
    grouped: dict[str, list[tuple[Entry, TensorRow]]] = {}
    for entry, row in zip(entries, rows, strict=True):
        grouped.setdefault(row.tensor_class, []).append((entry, row))
    found = []
    for tensor_class, members in grouped.items():
        known = [(row.norm**2, row.error) for _, row in members if row.norm is not None and row.error is not None]
        energy = sum(norm for norm, _ in known)
        found.append(
            ClassRow(
                tensor_class=tensor_class,
                tensors=len(members),
                elements=sum(row.elements for _, row in members),
                result_bytes=sum(_result_bytes(entry) for entry, _ in members),
                nbytes=sum(row.nbytes for _, row in members),
                error=sum(norm * part for norm, part in known) / energy if energy else None,
            )
        )
    return tuple(sorted(found, key=lambda row: (-row.nbytes, row.tensor_class)))


def _result_bytes(entry: Entry) -> int:
    if entry.result is None:
        return 0
    return tensor_nbytes(dtype_named(entry.result.kind.dtype), entry.result.kind.shape)
