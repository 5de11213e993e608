"""Forged packs: valid ones with one named change and every digest repaired. The list follows the catalogue of hostile
inputs; each change has the one code it must be refused with."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    EXAMPLES,
    Parts,
    Plan,
    chunks_of,
    content_of,
    contents_of,
    copy_of,
    f32,
    fault_of,
    full_plan,
    hexed,
    kind,
    layout_plan,
    mixed_plan,
    plan_of,
    put_together,
    read_everything,
    refused,
    same_kind,
    take_apart,
    u16,
    with_chunks,
    with_content,
    write_base,
    write_pack,
)

from skillpack_format import apply, prove, validate
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings import dense
from skillpack_format.errors import SkillPackError
from skillpack_format.reader import Pack

# full_plan's entries, in order: m.combined m.grown m.halved m.new m.nothing m.old m.tied m.twin
# its contents: 0 combined dense, 1 combined ulp, 2 grown lowrank, 3 grown sparse, 4 new dense, 5 config, 6 merges
COMBINED, GROWN, HALVED, NEW, NOTHING, OLD, TIED, TWIN = range(8)
Harm = Callable[[Parts], Any]


def entry(parts: Parts, index: int) -> Any:
    return parts.manifest["tensors"][index]


def put(path: str, value: Any) -> Harm:
    """Set one value; the path is words and numbers from the root of MANIFEST, or of STORAGE where it begins so."""

    def harm(parts: Parts) -> None:
        *way, last = (int(word) if word.isdigit() else word for word in path.split())
        here = parts.manifest
        if way and way[0] == "STORAGE":
            here, way = parts.storage, way[1:]
        for word in way:
            here = here[word]
        here[last] = value

    return harm


def drop(path: str) -> Harm:
    def harm(parts: Parts) -> None:
        *way, last = (int(word) if word.isdigit() else word for word in path.split())
        here = parts.manifest
        if way and way[0] == "STORAGE":
            here, way = parts.storage, way[1:]
        for word in way:
            here = here[word]
        del here[last]

    return harm


def document(name: str, data: bytes) -> Harm:
    """Put other bytes in place of a whole header document."""

    def harm(parts: Parts) -> None:
        setattr(parts, name, data)

    return harm


def swap_entries(parts: Parts) -> None:
    tensors = parts.manifest["tensors"]
    tensors[0], tensors[1] = tensors[1], tensors[0]


def repeat_entry(parts: Parts) -> None:
    parts.manifest["tensors"].insert(1, parts.manifest["tensors"][0])


def repeat_file(parts: Parts) -> None:
    parts.manifest["files"].append(parts.manifest["files"][-1])


def many_components(parts: Parts) -> None:
    entry(parts, COMBINED)["components"] *= 5


def swap_components(parts: Parts) -> None:
    entry(parts, COMBINED)["components"].reverse()


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\x90"


def with_gap(nbytes: int) -> Harm:
    def harm(parts: Parts) -> None:
        parts.data += bytes(nbytes)

    return harm


def add_segment(parts: Parts) -> None:
    parts.storage["segments"].append({"chunks": b"", "codec": "raw"})


def record(stored: int, segment: int = 0) -> Harm:
    """Another stored length in the first chunk record of a segment."""

    def harm(parts: Parts) -> None:
        each = parts.storage["segments"][segment]
        each["chunks"] = stored.to_bytes(4, "little") + each["chunks"][4:]

    return harm


SHA = bytes(32)
HEADER: dict[str, tuple[Harm, str]] = {
    # group E, integers and sizes
    "E01 a shape whose product wraps to 4": (
        put(f"tensors {NEW} result shape", [4194305, 4194305, 211106198978564]),
        "limit.exceeded",
    ),
    "E02 a shape whose product wraps to 0": (put(f"tensors {NEW} result shape", [1 << 32, 1 << 32]), "limit.exceeded"),
    "E04 rank 9": (put(f"tensors {NEW} result shape", [1] * 9), "limit.exceeded"),
    "E04 rank 10000": (put(f"tensors {NEW} result shape", [1] * 10_000), "limit.exceeded"),
    "E05 more elements than stored": (put(f"tensors {COMBINED} result shape", [2, 4]), "storage.chunk-length"),
    "E05 fewer elements than stored": (put(f"tensors {COMBINED} result shape", [2, 2]), "storage.chunk-length"),
    "E06 a sub-byte tensor of an odd number": (
        put(f"tensors {OLD} base", {"dtype": "F4", "sha256": SHA, "shape": [3]}),
        "manifest.shape",
    ),
    "E13 rank 0": (put(f"tensors {GROWN} components 0 slices 0 rank", 0), "manifest.parameter"),
    "E13 rank above the smaller side": (put(f"tensors {GROWN} components 0 slices 0 rank", 4), "manifest.parameter"),
    "E13 rank 2^64-1": (put(f"tensors {GROWN} components 0 slices 0 rank", (1 << 64) - 1), "manifest.parameter"),
    "E14 0 bits": (put(f"tensors {GROWN} components 0 slices 0 bits_u", 0), "manifest.parameter"),
    "E14 9 bits": (put(f"tensors {GROWN} components 0 slices 0 bits_v", 9), "manifest.parameter"),
    "E14 255 bits": (put(f"tensors {GROWN} components 0 slices 0 bits_v", 255), "manifest.parameter"),
    # group G, the documents as msgpack
    "G01 an array of 2^32-1 in 5 bytes": (document("manifest", hexed("ddffffffff")), "wire.truncated"),
    "G01 a map of 2^32-1 in 5 bytes": (document("manifest", hexed("dfffffffff")), "wire.truncated"),
    "G01 a bin of 2^32-1 in 5 bytes": (document("storage", hexed("c6ffffffff")), "wire.truncated"),
    "G01 a str of 2^32-1 in 5 bytes": (document("storage", hexed("dbffffffff")), "wire.truncated"),
    "G01 an ext of 2^32-1": (document("manifest", hexed("c9ffffffff00")), "wire.type"),
    "G02 a key twice": (document("manifest", hexed("82a16101a16102")), "wire.key-order"),
    "G03 an integer as key": (document("manifest", hexed("810101")), "wire.key-type"),
    "G03 nil as key": (document("manifest", hexed("81c001")), "wire.type"),
    "G03 NaN as key": (document("manifest", hexed("81ca7fc0000001")), "wire.type"),
    "G03 bytes as key": (document("manifest", hexed("81c4016101")), "wire.key-type"),
    "G03 an array as key": (document("manifest", hexed("819001")), "wire.key-type"),
    "G04 a timestamp": (document("manifest", hexed("d6ff00000000")), "wire.type"),
    "G05 a timestamp out of range": (document("manifest", hexed("c70cff00000000ffffffffffffffff")), "wire.type"),
    "G06 nested 9 deep": (document("manifest", deep(8)), "limit.exceeded"),
    "G06 nested 100000 deep": (document("manifest", deep(100_000)), "limit.exceeded"),
    "G08 a chain of long arrays": (document("manifest", hexed("dd000f4240") * 1000), "wire.truncated"),
    "G09 a str that is not UTF-8": (document("manifest", hexed("81a161a1ff")), "wire.utf8"),
    "G09 a str where bytes are due": (put("base digest", "x" * 32), "manifest.type"),
    "G09 bytes where a str is due": (put("format", b"skillpack/1"), "manifest.type"),
    "G10 a float": (put("base count", 4.0), "wire.type"),
    "G10 NaN": (put("base count", float("nan")), "wire.type"),
    "G11 the byte c1": (document("manifest", hexed("c1")), "wire.type"),
    "G12 two documents": (document("storage", hexed("8080")), "wire.trailing"),
    "G12 half a document": (document("storage", hexed("81a161")), "wire.truncated"),
    "G12 no document": (document("storage", b""), "wire.truncated"),
    "G13 a longer form": (document("storage", hexed("81d90161" + "01")), "wire.not-shortest"),
    "G13 keys not in order": (document("storage", hexed("82a16201a16101")), "wire.key-order"),
    "E07 a negative integer": (put("base count", -1), "wire.type"),
    "E07 true": (put("base count", True), "wire.type"),
    "E07 nil": (put("metadata", None), "wire.type"),
    # group H, meaning of MANIFEST
    "H02 an unknown key at the top": (put("created", 1), "manifest.unknown-key"),
    "H02 an unknown key in an entry": (put("tensors 0 offset", 0), "manifest.unknown-key"),
    "H02 an unknown key in a component": (put("tensors 0 components 0 offset", 0), "manifest.unknown-key"),
    "H02 an unknown key in a slice": (put(f"tensors {GROWN} components 0 slices 0 scale", 0), "manifest.unknown-key"),
    "H02 an unknown key in a side file": (put("files 0 mode", 0o755), "manifest.unknown-key"),
    "H02 an unknown figure": (put("tensors 0 stats rank", 1), "manifest.unknown-key"),
    "H01 no format": (drop("format"), "manifest.missing-key"),
    "H01 no mode": (drop("tensors 0 components 0 mode"), "manifest.missing-key"),
    "H01 no digest of a component": (drop("tensors 0 components 0 sha256"), "manifest.missing-key"),
    "H04 a digest of 31 bytes": (put("result digest", bytes(31)), "manifest.value"),
    "H04 a digest in hex": (put("result digest", "0" * 64), "manifest.type"),
    "H06 metadata of 2 MiB": (put("metadata note", "x" * (2 << 20)), "limit.exceeded"),
    "H06 257 pairs of metadata": (put("metadata", {f"{k:03}": "" for k in range(257)}), "limit.exceeded"),
    "H07 another count of prints": (put("base prints", bytes(8)), "manifest.value"),
    "H07 another number of tensors": (put("base count", 4), "manifest.value"),
    "H07 another number of result tensors": (put("result count", 99), "manifest.value"),
    "H07 2^64-1 tensors": (put("base count", (1 << 64) - 1), "limit.exceeded"),
    "B07 another format": (put("format", "skillpack/2"), "manifest.value"),
    "B10 an encoding of another version": (put("tensors 0 components 0 encoding", "x-private"), "unsupported.encoding"),
    "B10 an encoding that is a path": (put("tensors 0 components 0 encoding", "../../evil"), "unsupported.encoding"),
    "M13 an unknown dtype": (put(f"tensors {NEW} result dtype", "object"), "unsupported.dtype"),
    "M13 an unknown dtype of values": (put("tensors 0 components 0 dtype", "V16"), "unsupported.dtype"),
    "M07 adding to integers": (put("tensors 0 result dtype", "U16"), "manifest.components"),
    "M07 ulp of a complex tensor": (put("tensors 0 result dtype", "C64"), "manifest.parameter"),
    "M14 replacing by another dtype": (put(f"tensors {NEW} components 0 dtype", "BF16"), "manifest.parameter"),
    "M04 one element less than values": (put(f"tensors {GROWN} components 1 count", 2), "storage.chunk-length"),
    "M04 more elements than the tensor has": (put(f"tensors {GROWN} components 1 count", 10), "manifest.parameter"),
    "M18 ten components": (many_components, "limit.exceeded"),
    "a rewriting component before an additive one": (swap_components, "manifest.components"),
    "M17 an entry twice": (repeat_entry, "manifest.order"),
    "entries out of order": (swap_entries, "manifest.order"),
    "M17 a tensor that is neither in base nor result": (drop(f"tensors {OLD} base"), "manifest.tensor"),
    "M20 an entry that changes nothing": (put("tensors 0 result", None), "wire.type"),
    "M19 no digest of the result": (drop("tensors 0 result sha256"), "manifest.missing-key"),
    "an alias of a removed tensor": (put(f"tensors {TIED} alias", "m.old"), "manifest.alias"),
    "an alias of an alias": (put(f"tensors {TIED} alias", "m.twin"), "manifest.alias"),
    "an alias of itself": (put(f"tensors {TIED} alias", "m.tied"), "manifest.alias"),
    "an alias of another tensor": (put(f"tensors {TIED} alias", "m.grown"), "manifest.alias"),
    "an alias with components": (put(f"tensors {TIED} components", []), "manifest.components"),
    "a removed tensor with components": (put(f"tensors {OLD} components", []), "manifest.components"),
    # group I, names
    "I01 an empty name": (put("tensors 0 name", ""), "manifest.name"),
    "I01 a name of 1 MB": (put("tensors 0 name", "x" * 1_000_000), "limit.exceeded"),
    "I02 a control character": (put("tensors 0 name", "m.\x00"), "manifest.name"),
    "I02 a C1 control character": (put("tensors 0 name", "m.\x9b2J"), "manifest.name"),
    "I03 a terminal sequence": (put("tensors 0 name", "m.\x1b]52;c;aGk=\x07"), "manifest.name"),
    "I04 a carriage return": (put("tensors 0 name", "m.\rVERIFIED OK"), "manifest.name"),
    "I05 a direction override": (put("tensors 0 name", "m.\u202egnp"), "manifest.name"),
    "I06 a composed character": (put("tensors 0 name", "m.\u00e9"), "manifest.name"),
    "I08 a homoglyph": (put("tensors 0 name", "m.l\u0430yer"), "manifest.name"),
    "I03 a terminal sequence in a module": (put("tensors 0 module", "\x1b[2J"), "manifest.name"),
    "I03 a terminal sequence in a metadata key": (put("metadata", {"\u202e": ""}), "wire.key-type"),
    "J01 a side file outside": (put("files 0 name", "../config.json"), "manifest.file-name"),
    "J02 a device as side file": (put("files 0 name", "NUL.txt"), "manifest.file-name"),
    "J04 a side file twice": (repeat_file, "manifest.order"),
    "J05 a shard as side file": (put("files 0 name", "model.safetensors"), "manifest.file-name"),
    "J09 a side file of 1 TiB": (put("files 0 length", 1 << 40), "limit.exceeded"),
    "J10 code as side file": (put("files 0 name", "modeling.py"), "manifest.file-name"),
    # group D, where bytes lie
    "D03 a byte after the last segment": (with_gap(1), "storage.data-length"),
    "D03 a segment's worth after the last": (with_gap(64), "storage.data-length"),
    "D08 a segment too many": (add_segment, "storage.segments"),
    "D09 an offset in a segment": (put("STORAGE segments 0 offset", 0), "manifest.unknown-key"),
    "D11 a chunk table cut short": (put("STORAGE segments 0 chunks", bytes(15)), "storage.chunk-table"),
    "D14 no chunk table": (put("STORAGE segments 0 chunks", b""), "storage.chunk-table"),
    "D04 a chunk of 2^32-1 bytes": (record((1 << 32) - 1), "storage.chunk-length"),
    "D12 a chunk one byte longer": (record(13), "storage.chunk-length"),
    "D08 a chunk of no byte": (record(0), "storage.chunk-length"),
    "D16 a segment missing": (drop("STORAGE segments 0"), "storage.segments"),
    "E11 chunks of no byte": (put("STORAGE chunk_bytes", 0), "storage.chunk-bytes"),
    "E11 chunks of 5000 bytes": (put("STORAGE chunk_bytes", 5000), "storage.chunk-bytes"),
    "E11 chunks of 2^63 bytes": (put("STORAGE chunk_bytes", 1 << 63), "storage.chunk-bytes"),
    "K16 an unknown codec": (put("STORAGE segments 0 codec", "lzma"), "unsupported.codec"),
    "K16 a codec that is a module": (put("STORAGE segments 0 codec", "os"), "unsupported.codec"),
    "STORAGE is a list": (document("storage", b"\x90"), "manifest.type"),
    "STORAGE is MANIFEST": (lambda parts: setattr(parts, "storage", parts.manifest), "manifest.unknown-key"),
    # what spec/manifest.md adds
    "a result that no component makes": (put("tensors 0 components", []), "manifest.components"),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_base(folder / "base.safetensors", full_plan())
    return write_pack(folder / "p.skp", full_plan())


def harmed(pack: Path, harm: Harm, name: str = "harmed.skp") -> Path:
    parts = copy_of(take_apart(pack))
    parts = harm(parts) or parts
    path = pack.with_name(name)
    path.write_bytes(put_together(parts))
    return path


def test_the_pack_to_be_harmed_is_valid_and_makes_its_result(full: Path) -> None:
    assert validate(full, deep=True, base=full.with_name("base.safetensors")).is_valid


@pytest.mark.parametrize("name", HEADER)
def test_refuses_a_forged_header_with(full: Path, name: str) -> None:
    harm, code = HEADER[name]
    path = harmed(full, harm)
    assert path.read_bytes() != full.read_bytes()
    text = str(refused(code, read_everything, path))
    assert len(text) <= 500
    assert text.isascii()
    assert text.isprintable()
    report = validate(path, deep=True)
    assert code in {problem.code for problem in report.problems}


@pytest.mark.parametrize(
    "name", ["m.../../etc/passwd", "m./abs", "m.C:\\x", "m.[bold]", "m.{0.__class__}", "m.__proto__", "m.%n", "m.-rf"]
)
def test_odd_names_of_visible_ascii_are_only_names(full: Path, name: str) -> None:
    # "m." keeps the entry in its place: these sort before m.old and after m.nothing, or move the last entry
    parts = copy_of(take_apart(full))
    entry(parts, NOTHING)["name"] = name
    parts.manifest["tensors"].sort(key=lambda each: each["name"])
    parts.manifest["tensors"] = [each for each in parts.manifest["tensors"] if each["name"] in (name, "m.old")]
    parts.manifest["files"] = []
    parts.storage["segments"] = []
    parts.manifest["result"]["count"] = parts.manifest["base"]["count"]
    parts.data = b""
    path = full.with_name("named.skp")
    path.write_bytes(put_together(parts))
    with Pack(path) as pack:
        assert name in pack.entries


def test_swapped_chunks_are_refused(full: Path) -> None:
    def swap(parts: Parts) -> Parts:
        first, second = chunks_of(parts, 0)
        return with_chunks(parts, 0, [second, first])

    refused("integrity.content", read_everything, harmed(full, swap))


def test_swapped_contents_are_refused(full: Path) -> None:
    def swap(parts: Parts) -> Parts:
        one, other = chunks_of(parts, 0), chunks_of(parts, 1)
        return with_chunks(with_chunks(parts, 0, other), 1, one)

    refused("integrity.content", read_everything, harmed(full, swap))


def test_a_wrong_checksum_is_refused_before_the_content(full: Path) -> None:
    def harm(parts: Parts) -> None:
        table = parts.storage["segments"][0]["chunks"]
        parts.storage["segments"][0]["chunks"] = table[:4] + bytes(4) + table[8:]

    refused("integrity.chunk", read_everything, harmed(full, harm))


@pytest.mark.parametrize("digest", [bytes(32), b"\xff" * 32])
def test_no_digest_means_skip(full: Path, digest: bytes) -> None:
    for segment in range(7):
        path = harmed(full, lambda parts, k=segment: contents_of(parts)[k].update(sha256=digest))
        refused("integrity.content", read_everything, path)


def test_one_wrong_content_leaves_the_others_readable(full: Path) -> None:
    path = harmed(full, put("tensors 0 components 0 sha256", bytes(32)))
    with Pack(path) as pack:
        refused("integrity.content", pack.open_components, "m.combined")
        assert pack.get_tensor("m.new", None).tobytes() == f32(3.0, 4.0)
    assert [each.code for each in validate(path, deep=True).problems] == ["integrity.content"] * 2  # contents, values


def test_a_wrong_side_file_is_refused(full: Path) -> None:
    with Pack(harmed(full, put("files 0 sha256", bytes(32)))) as pack:
        refused("integrity.content", pack.read_side_file, "config.json")


def test_a_digest_of_the_result_that_is_not_the_result_is_refused(full: Path) -> None:
    path = harmed(full, put(f"tensors {NEW} result sha256", bytes(32)), "result.skp")
    with Pack(harmed(full, put("tensors 0 result sha256", bytes(32)))) as pack:
        refused("integrity.result", pack.get_tensor, "m.combined", full_plan().cases["m.combined"].raw)
    refused("manifest.alias", Pack, path)  # m.tied is to be the same as m.new


def test_a_result_that_the_entries_do_not_make_is_refused_by_apply(full: Path) -> None:
    path = harmed(full, put("result digest", bytes(32)))
    refused("integrity.result", prove, full.with_name("base.safetensors"), [path])


# ------------------------------------------------------------------------------------------------------- the layout


@pytest.fixture
def folder_base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    write_base(tmp_path / "base" / "model.safetensors", layout_plan())
    return tmp_path / "base"


def with_shards(**heads: bytes) -> Plan:
    return replace(layout_plan(), shards={f"{name}.safetensors": head for name, head in heads.items()})


def test_a_layout_makes_its_files(tmp_path: Path, folder_base: Path) -> None:
    plan = layout_plan()
    apply(folder_base, [write_pack(tmp_path / "p.skp", plan)], tmp_path / "out")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    heads = plan.shards
    assert made == {
        "a.safetensors": heads["a.safetensors"] + b"\1\2",
        "b.safetensors": heads["b.safetensors"] + b"cd",
        plan.index[0]: plan.index[1],
    }


A, B = layout_plan().shards.values()
FORGED: dict[str, Plan] = {
    "a tensor of the result in no shard": replace(with_shards(a=A), index=None),
    "a tensor in two shards": with_shards(a=A, b=B, c=B),
    "a head of another kind": with_shards(a=A.replace(b"U8", b"I8"), b=B),
    "a head that is no header": with_shards(a=b"0" * 20, b=B),
    "an index that leads out of the folder": replace(
        layout_plan(),
        index=("m.safetensors.index.json", b'{"weight_map":{"a":"../a.safetensors","b":"b.safetensors"}}'),
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_refuses_a_layout_with(tmp_path: Path, folder_base: Path, name: str) -> None:
    pack = write_pack(tmp_path / "p.skp", FORGED[name])
    for run in (lambda: prove(folder_base, [pack]), lambda: apply(folder_base, [pack], tmp_path / "out")):
        refused("payload.layout", run)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "p.skp"}
    report = validate(pack, base=folder_base, deep=True)
    assert [problem.code for problem in report.problems] == ["payload.layout"]


def test_a_wrong_base_comes_before_a_wrong_layout(tmp_path: Path, folder_base: Path) -> None:
    pack = write_pack(tmp_path / "p.skp", FORGED["a tensor in two shards"])
    (folder_base / "model.safetensors").unlink()
    write_base(folder_base / "model.safetensors", replace(layout_plan(), unchanged={"b": (kind("U8", 2), b"xx")}))
    refused("base.content", prove, folder_base, [pack])


def test_a_head_with_another_digest_is_refused(tmp_path: Path, folder_base: Path) -> None:
    pack = harmed(write_pack(tmp_path / "p.skp", layout_plan()), put("layout shards 1 sha256", bytes(32)))
    refused("integrity.content", apply, folder_base, [pack], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ harm within values


def pack_of(folder: Path, encoding: str, label: str) -> Path:
    case = next(each for each in EXAMPLES[encoding]() if each.label == label)
    return write_pack(folder / "p.skp", plan_of(case))


def poke(at: int, *values: int) -> Harm:
    """Other bytes within the first content, digests repaired."""

    def harm(parts: Parts) -> Parts:
        content = content_of(parts, 0)
        return with_content(parts, 0, content[:at] + bytes(values) + content[at + len(values) :])

    return harm


# Contents: dense add (F16, 6 values): planes of 6 bytes, low then high. sparse gap8 of 600: the index
# 0 0 252 0 255 88, then 5 values.
# blockq zeros: 3 codes, F32 scales in planes of 4, zeros in planes of 4. lowrank one: scale 4, u 1, v 2.
VALUES: dict[str, tuple[str, str, Harm, str]] = {
    "M08 a BOOL of 7": ("dense", "bool", poke(1, 7), "payload.value"),
    "M09 an infinite value to add": ("dense", "add", poke(6, 0x7C, *[0] * 5), "payload.nonfinite"),
    "M09 a NaN to add": ("dense", "add", poke(6, 0x7E, *[0] * 5), "payload.nonfinite"),
    "M09 a NaN to add at one position": ("sparse", "add", poke(1, 0xC0, 0xC0, 0x7F, 0x7F), "payload.nonfinite"),
    "M01 a position behind the end": ("sparse", "gap8", poke(5, 100), "payload.position"),
    "M04 an escape where an element is due": ("sparse", "gap8", poke(0, 255), "payload.position"),
    "M04 an element where an escape is due": ("sparse", "gap8", poke(4, 0), "payload.position"),
    "M04 an escape at the end": ("sparse", "gap8", poke(4, 1, 255), "payload.position"),
    "M05 a bitmap of another count": ("sparse", "replace", poke(0, 0b10110), "payload.position"),
    "M05 a spare bit of a bitmap": ("sparse", "replace", poke(0, 0b1000010), "payload.padding-bits"),
    "E06 a spare bit of packed codes": ("blockq", "zeros", poke(2, 0x83), "payload.padding-bits"),
    "M09 a scale of NaN": ("blockq", "zeros", poke(11, 0xC0, 0, 0, 0, 0x7F, 0, 0, 0), "payload.scale"),
    "M09 a scale of -0": ("blockq", "zeros", poke(18, 0x80), "payload.scale"),
    "M09 a subnormal scale": ("blockq", "zeros", poke(3, 0, 0, 0, 1), "payload.scale"),
    "M23 a zero point above the levels": ("blockq", "zeros", poke(22, 15), "payload.code"),
    "M23 a zero point of 2^15": ("blockq", "zeros", poke(26, 0x01), "payload.code"),
    "M12 an infinite scale of a slice": ("lowrank", "one", poke(2, 0x80, 0x7F), "payload.scale"),
    "E06 a spare bit of a factor": ("lowrank", "one", poke(4, 0xFF), "payload.padding-bits"),
    "M12 NaN in S": ("factors", "F32-lanes", poke(0, 0, 0, 0xC0, 0x7F), "payload.nonfinite"),
    "M12 infinity in U": ("factors", "F16-lanes", poke(4, 0, 0, 0x7C, 0), "payload.nonfinite"),
    "M12 infinity in V": ("factors", "F16-lanes", poke(8, 0, 0, 0, 0x7C, 0, 0), "payload.nonfinite"),
}


@pytest.mark.parametrize("name", VALUES)
def test_refuses_forged_values_with(tmp_path: Path, name: str) -> None:
    encoding, label, harm, code = VALUES[name]
    path = harmed(pack_of(tmp_path, encoding, label), harm)
    found = refused(code, read_everything, path)
    assert encoding in found.where
    assert code in {problem.code for problem in validate(path, deep=True).problems}


K_FRAMES: dict[str, bytes] = {
    "K02 less than its blocks hold": hexed("28b52ffd 20 63 430600 07"),
    "K03 8 GiB": hexed("28b52ffd e0 0000000002000000 430600 07"),
    "K04 no content size": hexed("28b52ffd 00 58 430600 07"),
    "K05 a window of 2^41": hexed("28b52ffd 40 f8 0000 430600 07"),
    "K06 a checksum": hexed("28b52ffd 24 c8 430600 07 00000000"),
    "K07 a dictionary": hexed("28b52ffd 21 01 c8 430600 07"),
    "K08 a skippable frame": hexed("502a4d18 04000000 00000000"),
    "K09 a byte after": hexed("28b52ffd 20 c8 430600 07 00"),
    "K10 cut short": hexed("28b52ffd 20 c8 4306"),
    "K12 a reserved block": hexed("28b52ffd 20 c8 470600 07"),
    "K13 an empty frame": hexed("28b52ffd 20 00 010000"),
    "K14 no frame at all": bytes(20),
}


@pytest.mark.parametrize("name", K_FRAMES)
def test_refuses_a_forged_frame_with(tmp_path: Path, name: str) -> None:
    flat = kind("U8", 200)
    wanted = np.full(200, 7, np.uint8)
    case = same_kind("t", flat, bytes(200), dense.replacement(wanted, DTYPES["U8"]))
    pack = write_pack(tmp_path / "p.skp", plan_of(case), codec="zstd")
    good = hexed("28b52ffd 20 c8 430600 07")
    assert validate(harmed(pack, lambda parts: with_chunks(parts, 0, [good])), deep=True).is_valid
    path = harmed(pack, lambda parts: with_chunks(parts, 0, [K_FRAMES[name]]))
    assert refused("payload.frame", read_everything, path).where.endswith("tensor 't' component 0 (dense)")


def test_a_frame_in_a_raw_segment_is_refused(tmp_path: Path) -> None:
    case = next(iter(mixed_plan().cases.values()))
    pack = write_pack(tmp_path / "p.skp", plan_of(case))
    harm = lambda parts: with_chunks(parts, 0, [hexed("28b52ffd2000010000"), chunks_of(parts, 0)[1]])  # noqa: E731
    refused("storage.chunk-length", Pack, harmed(pack, harm))


# ---------------------------------------------------------------------------------------- harm between base and packs


def chain(folder: Path) -> tuple[Path, Path, Path]:
    """A base, a pack of it, and a pack that changes nothing of that pack's result."""
    plan = plan_of(
        same_kind("b", kind("F32", 2), f32(1, 2), dense.replacement(np.frombuffer(f32(3, 4), "<u4"), DTYPES["F32"]))
    )
    base = write_base(folder / "base.safetensors", plan)
    first = write_pack(folder / "1.skp", plan)
    after = Plan({}, unchanged=plan.result())
    second = write_pack(folder / "2.skp", after)
    assert prove(base, [first, second]).changed == 1
    return base, first, second


GHOST = {"dtype": "F32", "sha256": bytes(32), "shape": [2]}


@pytest.mark.parametrize(
    "ghost",
    [
        {"class": "mlp", "module": "", "name": "ghost", "base": GHOST},
        {
            "class": "mlp",
            "module": "",
            "name": "ghost",
            "base": GHOST,
            "result": {**GHOST, "dtype": "BF16"},
            "components": [],
        },
    ],
    ids=["removed", "changed"],
)
def test_a_later_pack_that_lists_a_tensor_nobody_has_is_refused(tmp_path: Path, ghost: dict[str, Any]) -> None:
    base, first, second = chain(tmp_path)

    def harm(parts: Parts) -> None:
        parts.manifest["tensors"] = [ghost]
        parts.manifest["result"] = {"count": 1 if "result" in ghost else 0, "digest": bytes(32)}

    path = harmed(second, harm)
    with pytest.raises(SkillPackError) as caught:
        apply(base, [first, path], tmp_path / "out.safetensors")
    assert caught.value.code == "base.missing"
    assert not (tmp_path / "out.safetensors").exists()


def test_a_later_pack_that_adds_a_tensor_that_is_there_is_refused(tmp_path: Path) -> None:
    base, first, second = chain(tmp_path)

    def harm(parts: Parts) -> None:
        result = {**GHOST, "sha256": hashlib.sha256(b"").digest(), "shape": [0, 2]}
        parts.manifest["tensors"] = [{"class": "mlp", "module": "", "name": "b", "result": result, "components": []}]
        parts.manifest["result"] = {"count": 2, "digest": bytes(32)}

    refused("base.extra", prove, base, [first, harmed(second, harm)])


def test_a_first_pack_that_lists_a_tensor_nobody_has_is_refused(tmp_path: Path) -> None:
    base, first, _ = chain(tmp_path)
    refused("base.missing", prove, base, [harmed(first, put("tensors 0 name", "ghost"))])


def test_an_alias_of_a_tensor_nobody_has_is_refused(full: Path) -> None:
    base = full.with_name("base.safetensors")
    refused("manifest.alias", prove, base, [harmed(full, put(f"tensors {TWIN} alias", "m.ghost"))])


@pytest.mark.parametrize("name", ["", "\x1b[2J", "m.\u202e"])
def test_an_alias_with_a_name_that_no_tensor_can_have_is_refused(full: Path, name: str) -> None:
    path = harmed(full, put(f"tensors {TWIN} alias", name))
    refused("manifest.name", Pack, path)
    assert not validate(path).is_valid


def test_a_delta_of_a_tensor_with_a_huge_dimension_and_no_element_is_empty_or_refused(full: Path) -> None:
    shape = [0, (1 << 63) - 1]
    path = harmed(full, put(f"tensors {NOTHING} result shape", shape))
    with Pack(path) as pack:
        found = fault_of(pack.get_delta, "m.nothing")
    assert found is None or found.code == "unsupported.operation"


def test_checksums_of_these_tests_are_those_of_zlib() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert u16(1).tobytes() == b"\x01\x00"
