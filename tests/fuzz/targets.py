"""Fuzz targets: one for every parser, every encoding and every codec that the catalogue lists.

``run`` returns where the input was accepted and every oracle of the target held (False where it was refused in words
of another library), raises a SkillPackError where it was refused, UnfitError where the bytes are no input of this
target at all; whatever else it raises is a finding.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import numpy as np
from builders import EXAMPLES, Plan, full_plan, mixed_plan, plan_of, squeezable_plan, write_base, write_pack

from fuzz.archives import archive_seeds, mutate_archive
from fuzz.mutators import (
    Mutator,
    change_plain,
    mutate_bytes,
    mutate_document,
    mutate_pack,
    mutate_preamble,
    mutate_text,
)
from skillpack_format import bits, container, manifest, storage, wire
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.calibration import read_texts
from skillpack_format.catalog import CODECS, ENCODINGS
from skillpack_format.classes import user_rule
from skillpack_format.contents import plan, target_of
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import DTYPES, tensor_nbytes
from skillpack_format.encodings._base import PartSpec
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import DEFAULT_LIMITS
from skillpack_format.making import Change, make, start_of
from skillpack_format.native import cpu_bench
from skillpack_format.ops.application import apply
from skillpack_format.ops.inspection import inspect
from skillpack_format.ops.validation import validate
from skillpack_format.problems import printable
from skillpack_format.reader import Pack
from skillpack_format.side_files import notes_of
from skillpack_format.stores.header import encode_header, parse_header, parse_json_object
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.torch_archives import open_archive

MIB = 1 << 20
MAX_CONTENT = 1 << 14  # bytes of a component that a target opens


class UnfitError(Exception):
    """The bytes are no input of this target."""


@dataclass(frozen=True)
class Target:
    """``allowance``: bytes an execution may allocate, unless its input is longer; ``sample``: executions in a test."""

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], bool | None]
    mutate: Mutator
    allowance: int = MIB
    sample: int = 3000


@cache
def folder() -> Path:
    """Where targets put the files they read: in memory where the system has such a place."""
    shared = Path("/dev/shm")  # noqa: S108 - a place for the files of one run, under a name of its own
    where = tempfile.TemporaryDirectory(prefix="skillpack-fuzz-", dir=shared if os.access(shared, os.W_OK) else None)
    _KEPT.append(where)
    return Path(where.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def place(name: str) -> Path:
    """A file or folder of this process alone: workers are forked."""
    mine = folder() / str(os.getpid())
    mine.mkdir(exist_ok=True)
    return mine / name


@cache
def packs() -> tuple[bytes, ...]:
    """Small valid packs: every encoding raw, every encoding in every codec, and two with everything a pack can hold."""
    built: list[tuple[Plan, str]] = [(mixed_plan(), "raw"), (full_plan(), "raw"), (full_plan(), "zstd")]
    built += [(plan_of(*EXAMPLES[name]()[:3]), "raw") for name in sorted(EXAMPLES)]
    built += [(squeezable_plan(name), codec) for name in sorted(EXAMPLES) for codec in CODECS if codec != "raw"]
    found = []
    for index, (each, codec) in enumerate(built):
        path = write_pack(folder() / f"seed{index}.skp", each, codec=codec)
        found.append(path.read_bytes())
        path.unlink()
    return tuple(sorted(found, key=len))


def header_of(blob: bytes) -> container.Header:
    return container.read_header(lambda offset, count: blob[offset : offset + count], len(blob), DEFAULT_LIMITS)


def written(name: str, blob: bytes) -> Path:
    path = place(name)
    path.write_bytes(blob)
    return path


def require_equal(found: object, due: object, what: str) -> None:
    if found != due:
        raise AssertionError(f"{what}: {found!r:.200} is not {due!r:.200}")


# ----------------------------------------------------------------------------------------------------------- documents


def run_wire(data: bytes) -> None:
    document = wire.read(data, DEFAULT_LIMITS, "fuzz")
    require_equal(wire.write(document), data, "an accepted document has one byte form")


def wire_seeds() -> list[bytes]:
    headers = [header_of(blob) for blob in packs()]
    numbers = [msgpack.packb(each) for each in (0, 127, 128, 1 << 16, 1 << 32, (1 << 64) - 1, "", "x" * 40, b"y" * 300)]
    return [header.storage for header in headers] + [headers[0].manifest, *numbers, msgpack.packb([[[[[[[{}]]]]]]])]


def run_manifest(data: bytes) -> None:
    found = manifest.parse(wire.read(data, DEFAULT_LIMITS, "fuzz"))
    require_equal(found.to_bytes(), data, "an accepted MANIFEST has one byte form")
    plan(found)


def manifest_seeds() -> list[bytes]:
    return [header_of(blob).manifest for blob in packs()]


def run_storage(data: bytes) -> None:
    if not data:
        raise UnfitError
    found = storage.parse(wire.read(data[1:], DEFAULT_LIMITS, "fuzz"))
    require_equal(wire.write(found.to_plain()), data[1:], "an accepted STORAGE has one byte form")
    planes, data_length = _layout(data[0] % len(packs()))
    found = storage.parse(found.to_plain(), contents=len(planes))
    extents = storage.lay_out(found, planes, data_length)
    ends = [0, *(extent.end for extent in extents)]
    require_equal([extent.offset for extent in extents], ends[:-1], "a segment begins where another ends")


@cache
def _layout(index: int) -> tuple[list[list[int]], int]:
    """The plane lengths and the length of DATA of one pack: whatever is accepted lays out exactly that."""
    header = header_of(packs()[index])
    contents = plan(manifest.parse(wire.read(header.manifest, DEFAULT_LIMITS, "fuzz")))
    return [content.planes for content in contents.all], header.data_length


def storage_seeds() -> list[bytes]:
    return [bytes([index]) + header_of(blob).storage for index, blob in enumerate(packs())]


def mutate_storage(data: bytes, random: Random) -> bytes:
    return data[:1] + mutate_document(data[1:], random)


def run_container(data: bytes) -> None:
    header = header_of(data)
    again = container.write_header(header.manifest, header.storage, header.data_length)
    found = header_of(again + data[header.data_offset :])
    require_equal(replace(found, data_offset=header.data_offset), header, "a header that was read is written the same")
    for begin, end in ((0, 12), (16, 32), (40, 124)):  # all but how the documents are compressed
        require_equal(again[begin:end], data[begin:end], "an accepted preamble has one byte form")


def run_pack(data: bytes) -> None:
    """What ``inspect`` reports, then every content proved and every component opened."""
    path = written("whole.skp", data)
    json.dumps(inspect(path).to_plain(), allow_nan=False)
    with Pack(path) as pack:
        for segment in range(len(pack.contents.all)):
            if sum(part.nbytes for part in pack.contents.all[segment].parts) <= 64 * MAX_CONTENT:
                pack.read_content(segment)
        for name in pack.entries:
            pack.open_components(name)


def run_validate(data: bytes) -> None:
    """The validator finds something exactly where the reader refuses; the JSON Schema agrees with the parser."""
    path = written("checked.skp", data)
    report = validate(path, deep=True)
    try:
        run_pack(data)
    except SkillPackError as found:
        require_equal(report.is_valid, False, f"validate accepts what a reader refuses as {found.code}")
        raise
    require_equal([str(problem) for problem in report.problems], [], "validate refuses what a reader accepts")


@cache
def _base() -> Path:
    return write_base(folder() / "base.safetensors", mixed_plan())


@cache
def _base_pack() -> bytes:
    return write_pack(folder() / "base.skp", mixed_plan()).read_bytes()


def run_apply(data: bytes) -> None:
    """The tiny base with a pack made for it, or nearly: all or nothing."""
    path, out = written("applied.skp", data), place("out.safetensors")
    try:
        apply(_base(), [path], out)
    except SkillPackError:
        left = sorted(each.name for each in out.parent.iterdir() if each.name.startswith((".out", "out")))
        require_equal(left, [], "a refused pack leaves nothing behind")
        raise
    out.unlink()


# ---------------------------------------------------------------------------------------------- encodings and codecs


def component(name: str) -> Target:
    """``parse``, ``parts``, ``open`` and the decode rule for random parameters, parts, dtypes and shapes."""
    encoding = ENCODINGS[name]

    def run(data: bytes) -> None:
        kind, params, content = _component_input(data)
        target = target_of(kind)
        parsed = encoding.parse(params, target, "fuzz")
        specs = encoding.parts(parsed, target)
        if sum(spec.nbytes for spec in specs) > MAX_CONTENT or tensor_nbytes(target.dtype, target.shape) > MAX_CONTENT:
            return
        opened: Any = encoding.open(parsed, target, _filled(specs, content), "fuzz")
        is_adding = encoding.adds(parsed)
        if is_adding and not target.dtype.is_arithmetic:
            return  # contents.plan refuses it before
        change = Change([opened], None) if is_adding else Change([], opened)
        base = (content * (1 + MAX_CONTENT // (len(content) or 1)) + bytes(MAX_CONTENT))[
            : tensor_nbytes(target.dtype, target.shape)
        ]
        found = [_made(bench, base, kind, change) for bench in (NUMPY_BENCH, cpu_bench())]
        made, other = (each.code if isinstance(each, SkillPackError) else each for each in found)
        require_equal(other, made, "every bench makes the same bits, or refuses for the same reason")
        if isinstance(found[0], SkillPackError):
            raise found[0]
        require_equal(len(made), len(base), "the result has the size of its kind")

    def seeds() -> list[bytes]:
        found = [
            msgpack.packb([case.result.dtype, list(case.result.shape), each.params, _content_of(each.parts)])
            for case in EXAMPLES.get(name, list)()
            for each in case.encoded
            if each.encoding == name and tensor_nbytes(DTYPES[case.result.dtype], case.result.shape) <= MAX_CONTENT
        ]
        return found or [msgpack.packb(["BF16", [2, 3], {}, bytes(12)])]

    return Target(f"encoding {name}", seeds, run, mutate_component, 4 * MIB)


def _made(bench: Bench, base: bytes, kind: TensorKind, change: Change) -> bytes | SkillPackError:
    """The result or its refusal."""
    try:
        return make(start_of(base, kind, kind), kind, change, bench, "fuzz").tobytes()
    except SkillPackError as found:
        return found


def _content_of(parts: Any) -> bytes:
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts.values())


def _component_input(data: bytes) -> tuple[TensorKind, dict[str, Any], bytes]:
    """A kind that MANIFEST could have, parameters as the wire can carry them, and content."""
    try:
        dtype, shape, params, content = msgpack.unpackb(data, strict_map_key=False)
        kind = TensorKind(dtype, tuple(shape))
        plain = wire.read(wire.write(params), DEFAULT_LIMITS, "fuzz")
        fits = (
            isinstance(plain, dict)
            and isinstance(content, bytes)
            and len(shape) <= DEFAULT_LIMITS.tensor_rank
            and all(type(dim) is int and 0 <= dim < 1 << 64 for dim in shape)
            and 0 < tensor_nbytes(DTYPES[dtype], kind.shape) <= DEFAULT_LIMITS.tensor_bytes
        )
    except (TypeError, ValueError, KeyError, OverflowError, msgpack.UnpackException, SkillPackError):
        fits = False
    if not fits:
        raise UnfitError
    return kind, plain, content


def _filled(specs: tuple[PartSpec, ...], content: bytes) -> dict[str, Any]:
    """Parts of exactly the computed sizes, cut from ``content``, which is repeated where it is too short."""
    due = sum(spec.nbytes for spec in specs)
    whole = (content or b"\0") * (1 + due // (len(content) or 1))
    parts, at = {}, 0
    for spec in specs:
        parts[spec.name] = np.frombuffer(whole[at : at + spec.nbytes], spec.item)
        at += spec.nbytes
    return parts


_NAMES = tuple(DTYPES)


def mutate_component(data: bytes, random: Random) -> bytes:
    """Another dtype, shape, parameter or content; the shape stays small more often than not."""
    kind = random.random()
    if kind < 0.02:
        return mutate_document(data, random)
    try:
        dtype, shape, params, content = msgpack.unpackb(data, strict_map_key=False)
        if not isinstance(content, bytes):  # an integer would be taken for a length
            return mutate_bytes(data, random)
        if kind < 0.4:
            params = change_plain(params, random)
        elif kind < 0.5:
            dtype = _NAMES[int(random.random() * len(_NAMES))]
        elif kind < 0.6:
            shape = [int(random.random() * 9) for _ in range(int(random.random() * 4))]
        else:
            content = mutate_bytes(content, random)
        return bytes(msgpack.packb([dtype, shape, params, content]))
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException):
        return mutate_bytes(data, random)


def codec(name: str) -> Target:
    """``decompress`` of any bytes to any size; what it gives has that size, and is stored and read back the same."""
    found = CODECS[name]

    def run(data: bytes) -> None:
        if len(data) < 4:
            raise UnfitError
        nbytes, stored = int.from_bytes(data[:3], "little"), data[3:]
        if not 0 < len(stored) <= nbytes:
            raise UnfitError  # storage.lay_out refuses it before
        if nbytes > MAX_CONTENT and data[0] & 7:
            raise UnfitError  # large ones are slow: one in eight is enough
        chunk = bytes(found.decompress(stored, nbytes, "fuzz"))
        require_equal(len(chunk), nbytes, "a chunk has its computed size")
        if nbytes <= MAX_CONTENT:
            again = found.compress(chunk, thorough=False)
            require_equal(len(again) <= nbytes, True, "a chunk never grows")
            require_equal(bytes(found.decompress(again, nbytes, "fuzz")), chunk, "what was decoded can be stored again")

    def seeds() -> list[bytes]:
        random = np.random.default_rng(1)
        chunks = [
            bytes(600), b"abcabcabd" * 50, random.integers(0, 4, 900, np.uint8).tobytes(), b"x", bytes(range(256)) * 2,
            np.clip(random.normal(128, 3, 2000), 0, 255).astype(np.uint8).tobytes(),
        ]  # fmt: skip
        both = [(chunk, found.compress(chunk, thorough=thorough)) for chunk in chunks for thorough in (False, True)]
        return [len(chunk).to_bytes(3, "little") + stored for chunk, stored in both]

    return Target(f"codec {name}", seeds, run, mutate_bytes, 1 << 25)


def run_packing(data: bytes) -> None:
    if len(data) < 3:
        raise UnfitError
    width, packing, packed = 1 + data[0] % 8, bits.PACKINGS[data[1] % 2], np.frombuffer(data[3:], np.uint8)
    fewest, most = _counts(packed.size, width, packing)
    count = fewest + data[2] % (most - fewest + 1)
    require_equal(bits.packed_nbytes(count, width, packing), packed.size, "sizes are computed")
    bits.require_spare_bits_zero(packed, count, width, packing, "fuzz")
    codes = bits.unpack(packed, count, width, packing)
    require_equal(bits.pack(codes, width, packing).tobytes(), data[3:], "accepted codes have one packed form")
    planes = bits.split_planes(packed[: packed.size // 4 * 4], 4)
    require_equal(bits.join_planes(planes, np.dtype("<u4")).tobytes(), data[3 : 3 + packed.size // 4 * 4], "planes")


def _counts(nbytes: int, width: int, packing: str) -> tuple[int, int]:
    """The fewest and most codes that fill ``nbytes``."""
    if packing == "stream":
        return (8 * (nbytes - 1)) // width + 1 if nbytes else 0, 8 * nbytes // width
    lanes = 8 // width
    return lanes * (nbytes - 1) + 1 if nbytes else 0, lanes * nbytes


def packing_seeds() -> list[bytes]:
    return [bytes([width, packing, 0]) + bytes(20) for width in range(8) for packing in (0, 1)]


# --------------------------------------------------------------------------------------------------------- checkpoints


def run_header(data: bytes) -> None:
    """A header of a safetensors file; what it means is the same after it was written again."""
    if len(data) < 4:
        raise UnfitError
    header = parse_header(data[4:], int.from_bytes(data[:4], "little"), DEFAULT_LIMITS)
    raw = encode_header(header.tensors, header.metadata)[8:]
    again = parse_header(raw, int.from_bytes(data[:4], "little"), DEFAULT_LIMITS)
    require_equal((again.tensors, again.metadata), (header.tensors, header.metadata), "a header written again")


def header_seeds() -> list[bytes]:
    def seed(nbytes: int, document: Any) -> bytes:
        return nbytes.to_bytes(4, "little") + json.dumps(document).encode()

    first = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return [
        seed(24, {"a.b": first}),
        seed(24, {"__metadata__": {"format": "pt"}, "a": first}) + b"   ",
        seed(30, {"a": first, "b": {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30]}}),
        seed(0, {"e": {"dtype": "U8", "shape": [0, 9], "data_offsets": [0, 0]}}),
        seed(2, {"s": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}),
    ]


def run_json(data: bytes) -> None:
    found = parse_json_object(data, "checkpoint.index", DEFAULT_LIMITS)
    require_equal(type(found), dict, "an index is an object")


def index_seeds() -> list[bytes]:
    return [json.dumps({"metadata": {"total_size": 48}, "weight_map": dict.fromkeys("ab", SHARDS[0])}).encode()]


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def run_folder(data: bytes) -> None:
    """A folder of an index and two shards; every tensor that it lists can be read."""
    try:
        files = msgpack.unpackb(data, strict_map_key=False)
        index, first, second = (bytes(each) for each in files)
    except (TypeError, ValueError, OverflowError, MemoryError, msgpack.UnpackException):
        raise UnfitError from None
    where = place("sharded")
    where.mkdir(exist_ok=True)
    for name, content in zip((INDEX, *SHARDS), (index, first, second), strict=True):
        (where / name).write_bytes(content)
    with open_checkpoint(where) as checkpoint:
        for name, spec in checkpoint.specs.items():
            require_equal(len(checkpoint.read(name)), spec.nbytes, "a tensor has its computed size")


def folder_seeds() -> list[bytes]:
    def shard(name: str) -> bytes:
        raw = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        return len(raw).to_bytes(8, "little") + raw + bytes(8)

    index = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
    return [msgpack.packb([index, shard("a"), shard("b")])]


def mutate_folder(data: bytes, random: Random) -> bytes:
    try:
        files = list(msgpack.unpackb(data, strict_map_key=False))
        which = int(random.random() * len(files))
        files[which] = mutate_text(files[which], random)
        if which:  # the length in front, so that the header is read at all
            end = files[which].rfind(b"}") + 1
            if end > 8 and random.random() < 0.8:
                files[which] = (end - 8).to_bytes(8, "little") + files[which][8:]
        return bytes(msgpack.packb(files))
    except (TypeError, ValueError, IndexError, AttributeError, msgpack.UnpackException):
        return mutate_bytes(data, random)


def mutate_header(data: bytes, random: Random) -> bytes:
    """The JSON as text or, as often, as the object it is; the length of the data seldom."""
    try:
        if random.random() < 0.5:
            return data[:4] + mutate_text(data[4:], random)
        nbytes = data[:4] if random.random() < 0.9 else mutate_bytes(data[:4], random)
        document = msgpack.unpackb(mutate_document(msgpack.packb(json.loads(data[4:])), random), strict_map_key=False)
        return nbytes + json.dumps(document).encode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgpack.UnpackException):
        return mutate_text(data, random)


def run_archive(data: bytes) -> None:
    with open_archive(written("tensors.pt", data)) as archive:
        for name, spec in archive.specs.items():
            require_equal(len(archive.read(name)), spec.nbytes, "a tensor has its computed size")


def run_side_file(data: bytes) -> None:
    for name in ("config.json", "chat_template.jinja", "vocab.txt"):
        notes_of(name, data)


# -------------------------------------------------------------------------------------------------------- command line


def run_texts(data: bytes) -> None:
    found = read_texts(written("texts.jsonl", data))
    require_equal(all(text.strip() for text in found.texts), True, "every text says something")
    lines = "".join(json.dumps(text) + "\n" for text in found.texts)
    again = read_texts(written("texts.jsonl", lines.encode()))
    require_equal(again.texts, found.texts, "texts written as lines and read again")
    require_equal(again.skipped, (), "lines left out of what was written")


def text_seeds() -> list[bytes]:
    return [b'"one"\n\n{"text": "two", "n": [1]}\n', b'{"prompt": 1}\n"\\u00e9\\ud83d\\ude00"\r\n7\n"last"']


def run_options(data: bytes) -> None:
    """Values of options as a user writes them; click's own refusal counts as one."""
    import click
    from skillpack_tools import options

    if len(data) > 256:
        raise UnfitError  # the pattern is the user's own, and compiling one takes what it takes
    text = data.decode("utf-8", "surrogateescape")
    shown = printable(text)
    require_equal((len(shown) <= 500, shown.isascii(), shown.isprintable()), (True, True, True), "what is printed")
    for parser in (lambda: options.key_values(None, None, [text]), lambda: options.schedule(None, None, text)):
        try:
            parser()
        except click.BadParameter:
            continue
    user_rule(text)


def option_seeds() -> list[bytes]:
    return [b"author=somebody", b"8:0.02,4:0.18,2:0.8", b".*experts.*=expert", b"1.5GB", b"3%", b"(a|b)*\\.w=mlp"]


def run_command(data: bytes) -> bool:
    """``skillpack inspect`` and ``validate``: a documented exit code, and nothing but printable ASCII on a pipe."""
    from click.testing import CliRunner
    from skillpack_tools.cli import skillpack

    path = written("shown.skp", data)
    for arguments in (["inspect", str(path)], ["inspect", "--json", str(path)], ["validate", str(path)]):
        result = CliRunner().invoke(skillpack, arguments, catch_exceptions=True)
        if result.exit_code not in (0, 1, 2, 3, 4, 5, 6):
            raise AssertionError(f"exit code {result.exit_code}: {result.output:.400}") from result.exception
        odd = [
            char
            for char in result.output
            if not ("\x20" <= char <= "\x7e" or char == "\n" or "\u2500" <= char <= "\u257f")
        ]
        require_equal(odd, [], "characters on the terminal")
    return result.exit_code == 0


def targets() -> dict[str, Target]:
    """Every target by name; those of the catalogue appear with the file that adds them."""
    found = [
        Target("wire", wire_seeds, run_wire, mutate_document),
        Target("manifest", manifest_seeds, run_manifest, mutate_document),
        Target("storage", storage_seeds, run_storage, mutate_storage),
        Target("container", lambda: list(packs()), run_container, mutate_preamble),
        Target("packing", packing_seeds, run_packing, mutate_bytes),
        Target("header", header_seeds, run_header, mutate_header),
        Target("index", index_seeds, run_json, mutate_text),
        Target("folder", folder_seeds, run_folder, mutate_folder, sample=1000),
        Target("side file", side_file_seeds, run_side_file, mutate_text),
        Target("texts", text_seeds, run_texts, mutate_text, sample=1000),
        Target("options", option_seeds, run_options, mutate_text, sample=1000),
        Target("torch archive", archive_seeds, run_archive, mutate_archive, sample=1000),
        *(codec(name) for name in CODECS),
        *(component(name) for name in ENCODINGS),
        Target("pack", lambda: list(packs()), run_pack, mutate_pack, 4 * MIB, sample=1000),
        Target("validate", lambda: list(packs()), run_validate, mutate_pack, 8 * MIB, sample=200),
        Target("apply", lambda: [_base_pack()], run_apply, mutate_pack, 8 * MIB, sample=200),
        Target("command", lambda: list(packs()), run_command, mutate_pack, 8 * MIB, sample=200),
    ]
    return {each.name: each for each in found}


def side_file_seeds() -> list[bytes]:
    config = {"architectures": ["A"], "auto_map": {"AutoModel": "m.M"}, "hidden_size": 8}
    return [json.dumps(config).encode(), b'{"a": 1}', b"{{ messages }}", b""]
