"""From a model of a valid pack and named changes to the bytes of the pack and of its base.

``Model`` is always valid; a ``Change`` says at which stage of assembly something is made otherwise. What is computed
after that stage (digests, checksums, lengths) is computed from what is there then, unless the change says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from conformance import assemble as oracle
from conformance.assemble import Component, Entry, Part, Tensor

from .edits import Edit, Patch, edited, encoded, patched, rewritten, shown

Chunks = list[tuple[bytes, int, int]]  # stored bytes, length and CRC-32 as the record has them


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True)
class Layout:
    """Heads of shards by the name of the file, and the name and content of the index where there is one."""

    heads: Mapping[str, bytes]
    index: tuple[str, bytes] | None = None

    @property
    def contents(self) -> list[tuple[str, bytes]]:
        """In the order in which they are stored."""
        return [*([self.index] if self.index else []), *sorted(self.heads.items())]


@dataclass(eq=False)
class Model:
    """A valid pack and its base. ``frames`` holds stored chunks made by hand, by (segment, chunk).

    ``after`` is the pack that this one follows, whose result is the base.
    """

    base: dict[str, Tensor] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    codec: str = "raw"
    chunk_bytes: int = 4096
    metadata: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    frames: dict[tuple[int, int], bytes] = field(default_factory=dict)
    codecs: dict[int, str] = field(default_factory=dict)  # of single segments
    layout: Layout | None = None
    given: dict[str, Tensor] = field(default_factory=dict)  # results known without the oracle, which is slow
    after: Model | None = None

    @cached_property
    def results(self) -> dict[str, Tensor]:
        """Every tensor of the result, by the rules of the specification and exact arithmetic."""
        found = dict(self.base)
        for each in self.entries:
            if each.result is None:
                del found[each.name]
            elif each.components is not None:
                found[each.name] = self.given.get(each.name) or made_of(self.base.get(each.name), each)
        for each in self.entries:
            if each.alias is not None:
                found[each.name] = found[each.alias]
        return dict(sorted(found.items()))


def made_of(base: Tensor | None, entry: Entry) -> Tensor:
    """The result tensor of an entry; dtypes below a byte are made as the bytes they fill."""
    assert entry.result is not None
    dtype, shape = entry.result
    bits = oracle.WIDTH[dtype][0]
    if bits >= 8:
        return oracle.make(base, dtype, shape, entry.components or [])
    count = oracle.numel(shape) * bits // 8
    compatible = base is not None and oracle.is_compatible(base, dtype, shape)
    start = base.data[:count] if base is not None and compatible else b""
    made = oracle.make(Tensor("U8", [count], start.ljust(count, b"\0")), "U8", [count], entry.components or [])
    return Tensor(dtype, shape, made.data)


@dataclass(frozen=True)
class Change:
    """One named change; the fields are in the order of assembly."""

    parts: Mapping[str, bytes] = field(default_factory=dict)  # "tensor/component/part" -> other items
    heads: Mapping[str, Sequence[Edit | Patch]] = field(default_factory=dict)  # of the layout, also the index, by name
    content: Mapping[int, Sequence[Patch]] = field(default_factory=dict)  # digest in MANIFEST repaired
    results: Mapping[str, bytes] = field(default_factory=dict)  # what MANIFEST promises instead; both digests repaired
    manifest: Sequence[Edit] = ()
    stale: Mapping[int, Sequence[Patch]] = field(default_factory=dict)  # content changed after its digest was taken
    stored: Mapping[str, bytes] = field(default_factory=dict)  # "segment/chunk" -> other stored bytes
    records: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # "segment/chunk" -> length, crc
    storage: Sequence[Edit] = ()
    data: Sequence[Patch] = ()  # DATA, after its checksums were taken
    manifest_wire: Sequence[Patch] = ()
    storage_wire: Sequence[Patch] = ()
    header: bytes = b""  # how MANIFEST and STORAGE are stored, where not as they are; its checksum repaired
    preamble: Mapping[str, int | bytes] = field(default_factory=dict)  # checksum repaired, unless it is given
    file: Sequence[Patch] = ()
    base: Mapping[str, Tensor | None] = field(default_factory=dict)  # the base given: other or no tensors
    layout: Mapping[str, Any] = field(default_factory=dict)  # the base's file: order, padding, metadata
    limits: Mapping[str, int] = field(default_factory=dict)  # of the request

    def plain(self) -> dict[str, Any]:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name.replace("_", "-"): shown(value) for name, value in found.items() if value}


@dataclass(frozen=True)
class Files:
    """What a case gives to a reader, and the documents as they stand in the pack."""

    pack: bytes
    base: bytes
    manifest: Any
    storage: Any
    pack_id: str
    data: bytes = b""
    before: bytes = b""  # the pack that this one follows


def assembled(model: Model, changes: Sequence[Change] = ()) -> Files:
    """The files of ``model`` after ``changes``."""
    entries = [_with_parts(each, changes) for each in sorted(model.entries, key=lambda each: each.name)]
    contents = _contents(entries, model, changes)
    manifest = _manifest(model, entries, contents, changes)
    for change in changes:
        manifest = edited(manifest, change.manifest)
    storage, data = _stored(model, contents, changes)
    manifest_bytes, storage_bytes = encoded(manifest), encoded(storage)
    for change in changes:
        manifest_bytes = patched(manifest_bytes, change.manifest_wire)
        storage_bytes = patched(storage_bytes, change.storage_wire)
    pack = file_of(manifest_bytes, storage_bytes, data, changes)
    pack_id = sha256(manifest_bytes).hex()
    if model.after is None:
        return Files(pack, base_file(model.base, changes), manifest, storage, pack_id, data)
    assert model.base == model.after.results, "a pack follows another one's result"
    before = assembled(model.after)
    return Files(pack, base_file(model.after.base, changes), manifest, storage, pack_id, data, before.pack)


def layout_of(model: Model, changes: Sequence[Change]) -> list[tuple[str, bytes]]:
    """Index and heads of a pack, in the order in which they are stored; none where it has no layout."""
    contents = dict(model.layout.contents if model.layout else [])
    for change in changes:
        for name, edits in change.heads.items():
            contents[name] = rewritten(contents[name], edits, name.endswith(".safetensors"))
    return list(contents.items())


def _with_parts(entry: Entry, changes: Sequence[Change]) -> Entry:
    if entry.components is None:
        return entry
    components = list(entry.components)
    for change in changes:
        for place, items in change.parts.items():
            name, index, part_name = place.rsplit("/", 2)
            if name == entry.name:
                old = components[int(index)]
                assert part_name in {part.name for part in old.parts}, place
                parts = [replace(part, data=items) if part.name == part_name else part for part in old.parts]
                components[int(index)] = replace(old, parts=parts)
    return replace(entry, components=components)


def folder_of(model: Model, changes: Sequence[Change]) -> list[tuple[str, bytes]]:
    """The files that a tool must write into a folder, by name: side files, and where there is a layout its files."""
    found = {**(model.after.files if model.after else {}), **model.files}
    for name, data in layout_of(model, changes):
        found[name] = data
        if name.endswith(".safetensors"):
            header = json.loads(data[8:])
            header.pop("__metadata__", None)
            order = sorted(header, key=lambda each: header[each]["data_offsets"])
            found[name] += b"".join(model.results[each].data for each in order)
    return sorted(found.items())


@dataclass
class Content:
    planes: list[int]  # lengths
    data: bytes
    digest: bytes


def _contents(entries: Sequence[Entry], model: Model, changes: Sequence[Change]) -> list[Content]:
    found = []
    for entry in entries:
        for component in entry.components or []:
            planes = [len(plane) for part in component.parts for plane in part.planes()]
            found.append(Content(planes, component.content(), b""))
    whole = [*sorted(model.files.items()), *layout_of(model, changes)]
    found += [Content([len(data)], data, b"") for _, data in whole]
    for change in changes:
        for index, patches in change.content.items():
            found[index].data = patched(found[index].data, patches)
    for each in found:
        each.digest = sha256(each.data)
    for change in changes:
        for index, patches in change.stale.items():
            found[index].data = patched(found[index].data, patches)
    return found


def contents_of(model: Model) -> list[Content]:
    """The contents of the pack of ``model``, in order."""
    return _contents(sorted(model.entries, key=lambda each: each.name), model, ())


def chunked(content: Content, chunk_bytes: int) -> list[bytes]:
    """The decoded chunks of a content, plane by plane."""
    found, at = [], 0
    for length in content.planes:
        found += [content.data[at + k : at + min(k + chunk_bytes, length)] for k in range(0, length, chunk_bytes)]
        at += length
    return found


def _manifest(model: Model, entries: Sequence[Entry], contents: Sequence[Content], changes: Sequence[Change]) -> Any:
    results = dict(model.results)
    for change in changes:
        for name, data in change.results.items():
            results[name] = replace(results[name], data=data)
    plain = oracle.Pack("", model.base, [], metadata=model.metadata, files=model.files).manifest()
    plain["result"] = {"count": len(results), "digest": oracle.checkpoint_digest(results)}
    shell = oracle.Pack("", model.base, [])
    plain["tensors"] = [shell.entry(each, results) for each in entries]
    digests = iter(content.digest for content in contents)
    for entry in plain["tensors"]:
        for component in entry.get("components", []):
            component["sha256"] = next(digests)
    for each in plain["files"]:
        each["sha256"] = next(digests)
    if model.layout is not None:
        laid = layout_of(model, changes)
        listed = [{"length": len(data), "name": name, "sha256": next(digests)} for name, data in laid]
        index = {"index": listed.pop(0)} if model.layout.index else {}
        plain["layout"] = {"shards": listed, **index}
    return plain


def _stored(model: Model, contents: Sequence[Content], changes: Sequence[Change]) -> tuple[Any, bytes]:
    """STORAGE as a document, and DATA."""
    data, segments = b"", []
    for index, content in enumerate(contents):
        codec = model.codecs.get(index, model.codec)
        chunks = _chunks(model, index, codec, content, changes)
        data += b"".join(stored for stored, _, _ in chunks)
        table = b"".join(struct.pack("<II", length, crc) for _, length, crc in chunks)
        segments.append({"chunks": table, "codec": codec})
    storage: Any = {"chunk_bytes": model.chunk_bytes, "segments": segments}
    for change in changes:
        storage = edited(storage, change.storage)
        data = patched(data, change.data)
    return storage, data


def _chunks(model: Model, index: int, codec: str, content: Content, changes: Sequence[Change]) -> Chunks:
    found: Chunks = []
    for k, chunk in enumerate(chunked(content, model.chunk_bytes)):
        stored = model.frames.get((index, k))
        if stored is None:
            run = oracle.rle_frame(chunk) if codec == "zstd" and len(chunk) < 1 << 16 else None
            stored = b"".join(piece for piece, _ in run) if run else chunk
        record: dict[str, int] = {}
        for change in changes:
            stored = change.stored.get(f"{index}/{k}", stored)
            record |= change.records.get(f"{index}/{k}", {})
        found.append((stored, record.get("length", len(stored)), record.get("crc", zlib.crc32(stored))))
    return found


PREAMBLE = (  # name, form
    ("magic", "8s"), ("major", "<H"), ("minor", "<H"), ("header-checksum", "<I"), ("manifest-length", "<Q"),
    ("storage-length", "<Q"), ("header-length", "<Q"), ("data-length", "<Q"), ("manifest-digest", "32s"),
    ("storage-digest", "32s"), ("reserved", "12s"),
)  # fmt: skip


def file_of(manifest: bytes, storage: bytes, data: bytes, changes: Sequence[Change]) -> bytes:
    stored = manifest + storage
    for change in changes:
        stored = change.header or stored
    values: dict[str, int | bytes] = {
        "magic": oracle.MAGIC, "major": 1, "minor": 0, "header-checksum": zlib.crc32(stored),
        "manifest-length": len(manifest), "storage-length": len(storage), "header-length": len(stored),
        "data-length": len(data), "manifest-digest": sha256(manifest), "storage-digest": sha256(storage),
        "reserved": bytes(12),
    }  # fmt: skip
    for change in changes:
        assert set(change.preamble) <= {*values, "checksum"}, change.preamble
        values |= change.preamble
    head = b"".join(struct.pack(form, values[name]) for name, form in PREAMBLE)
    checksum = values.get("checksum", zlib.crc32(head))
    assert isinstance(checksum, int)
    whole = head + struct.pack("<I", checksum) + stored + data
    marks = {"manifest": 128, "storage": 128 + len(manifest), "data": 128 + len(stored)}
    for change in changes:
        whole = patched(whole, change.file, marks)
    return whole


def base_file(base: Mapping[str, Tensor], changes: Sequence[Change]) -> bytes:
    """The base given, as a safetensors file."""
    given: dict[str, Tensor] = dict(base)
    layout: dict[str, Any] = {}
    for change in changes:
        layout |= change.layout
        for name, tensor in change.base.items():
            given.pop(name, None)
            if tensor is not None:
                given[name] = tensor
    order = sorted(given, reverse=layout.get("order") == "descending")
    if not layout:
        return b"".join(piece for piece, _ in oracle.safetensors({name: given[name] for name in order}))
    header: dict[str, Any] = {"__metadata__": layout["metadata"]} if "metadata" in layout else {}
    at = 0
    for name in order:
        each = given[name]
        header[name] = {"dtype": each.dtype, "shape": each.shape, "data_offsets": [at, at + len(each.data)]}
        at += len(each.data)
    text = json.dumps(header, indent=layout.get("indent")).encode()
    text += b" " * (-len(text) % 8 + layout.get("spaces", 0))
    return struct.pack("<Q", len(text)) + text + b"".join(given[name].data for name in order)


__all__ = [
    "Change", "Component", "Content", "Entry", "Files", "Layout", "Model", "Part", "Tensor", "assembled", "base_file",
    "chunked", "contents_of", "file_of", "folder_of", "made_of", "sha256",
]  # fmt: skip
