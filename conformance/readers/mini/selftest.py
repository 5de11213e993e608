"""Tests of this reader against the text of the specification: python selftest.py [folder of the pages]

Every block of examples.md, of the encodings' pages and of packing.md; the tables of the pages; single-bit flips; and
packs with wrong documents and wrong contents under right digests, which must end in a result or a Refusal.
"""

# unittest, so that nothing has to be installed; random test data protects nothing
# ruff: noqa: PT009, PT027

import hashlib
import io
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import zstandard

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from mini import wire
from mini.apply import Pack, add_components, apply
from mini.codec import decode_chunk
from mini.container import PREAMBLE, Container, open_container
from mini.encodings import Part, make_component
from mini.errors import CLASSES, DEFAULTS, Refusal
from mini.fields import render
from mini.manifest import FILE_NAMES
from mini.numerics import DTYPES, Tensor, convert, narrow_bits, round_all, to_ints, widen, widen_bits
from mini.packing import unpack
from mini.safetensors import read_checkpoint
from mini.storage import Chunk, Segment, read_content

HERE = Path(__file__).resolve().parent
SPEC = HERE.parents[2] / "spec"
NAMES = ("identical", "ulp", "lowrank", "zstd")


def page(name: str) -> str:
    return (SPEC / name).read_text(encoding="utf-8")


def blocks(text: str) -> dict[tuple[str, str, str], str]:
    found = re.findall(r"^```(\w+) (\w+)=(\S+)\n(.*?)^```", text, re.M | re.S)
    return {(language, what, name): body for language, what, name, body in found}


def from_hex(body: str) -> bytes:
    return bytes.fromhex("".join(line.split("#")[0] for line in body.splitlines()))


EXAMPLES = blocks(page("examples.md"))
PACKS = {name: from_hex(EXAMPLES["hex", "pack", name]) for name in NAMES}
BASES = {name: from_hex(EXAMPLES["hex", "base", name]) for name in NAMES}


def open_both(pack: bytes, base: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    result, files = apply(Pack(io.BytesIO(pack), DEFAULTS), read_checkpoint(io.BytesIO(base), DEFAULTS))
    listing = {
        name: (stored.tensor.dtype.name, list(stored.tensor.shape), stored.data.hex())
        for name, stored in result.items()
    }
    return listing, files


def validate(pack: bytes) -> None:
    Pack(io.BytesIO(pack), DEFAULTS).read_everything()


def build(manifest: bytes, storage: bytes, data: bytes) -> bytes:
    """A pack with right digests around any documents and any DATA."""
    digests = hashlib.sha256(manifest).digest(), hashlib.sha256(storage).digest()
    header = manifest + storage
    lengths = len(manifest), len(storage), len(header), len(data)
    head = PREAMBLE.pack(b"\x89SKP\r\n\x1a\n", 1, 0, zlib.crc32(header), *lengths, *digests, bytes(12), 0)
    return head[:124] + zlib.crc32(head[:124]).to_bytes(4, "little") + header + data


def code_of(pack: bytes, base: bytes | None = None) -> str:
    try:
        if base is None:
            validate(pack)
        else:
            open_both(pack, base)
    except Refusal as refusal:
        return refusal.code
    return "accepted"


class Examples(unittest.TestCase):
    def test_packs(self) -> None:
        for name in NAMES:
            with self.subTest(name):
                pack = Pack(io.BytesIO(PACKS[name]), DEFAULTS)
                self.assertEqual(pack.container.pack_id.hex(), EXAMPLES["text", "pack_id", name].strip())
                self.assertEqual(render(pack.manifest_document), json.loads(EXAMPLES["json", "manifest", name]))
                self.assertEqual(render(pack.storage_document), json.loads(EXAMPLES["json", "storage", name]))
                self.assertEqual(wire.encode(pack.manifest_document), pack.container.manifest)
                self.assertEqual(wire.encode(pack.storage_document), pack.container.storage)

    def test_results(self) -> None:
        for name in NAMES:
            with self.subTest(name):
                result, files = open_both(PACKS[name], BASES[name])
                expected = json.loads(EXAMPLES["json", "result", name])
                tensors = {t["name"]: (t["dtype"], t["shape"], t["hex"]) for t in expected["tensors"]}
                self.assertEqual(result, tensors)
                found = [(n, len(data), hashlib.sha256(data).hexdigest()) for n, data in files.items()]
                self.assertEqual(found, [(f["name"], f["length"], f["sha256"]) for f in expected["files"]])

    def test_every_bit_counts(self) -> None:
        known = set(re.findall(r"^\| `([a-z]+\.[a-z-]+)` \|", page("errors.md").split("## Codes of tools")[0], re.M))
        for name in NAMES:
            pack = bytearray(PACKS[name])
            for bit in range(8 * len(pack)):
                pack[bit // 8] ^= 1 << bit % 8
                code = code_of(bytes(pack))
                self.assertIn(code, known, f"{name}: bit {bit}")
                pack[bit // 8] ^= 1 << bit % 8

    def test_every_length_counts(self) -> None:
        for name in NAMES:
            for length in range(len(PACKS[name])):
                self.assertEqual(code_of(PACKS[name][:length]), "framing.truncated")
            self.assertEqual(code_of(PACKS[name] + b"\0"), "framing.trailing-bytes")

    def test_every_bit_of_the_base_counts(self) -> None:
        for name in NAMES:
            base = bytearray(BASES[name])
            blanks = len(
                base[: 8 + base[0] + 256 * base[1]].rstrip(b" ")
            )  # a flipped blank may still be a blank in JSON
            for bit in range(8 * len(base)):
                base[bit // 8] ^= 1 << bit % 8
                code = code_of(PACKS[name], bytes(base))
                if not blanks <= bit // 8 < 8 + base[0] + 256 * base[1]:
                    self.assertNotEqual(code, "accepted", f"{name}: bit {bit}")
                base[bit // 8] ^= 1 << bit % 8


class Encodings(unittest.TestCase):
    def examples(self) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        for path in sorted((SPEC / "encodings").glob("*.md")):
            found = blocks(path.read_text(encoding="utf-8"))
            for (language, _, name), body in found.items():
                if language == "json":
                    yield name, from_hex(found["hex", "example", name]), json.loads(body)

    def test_examples(self) -> None:
        seen = 0
        for name, content, example in self.examples():
            with self.subTest(name):
                seen += 1
                tensor = Tensor(DTYPES[example["tensor"]["dtype"]], tuple(example["tensor"]["shape"]), b"")
                values = {**example["component"], "sha256": bytes.fromhex(example["component"]["sha256"])}
                component = make_component(values, tensor, name)
                parts = [(part.name, part.width, part.count) for part in component.parts]
                self.assertEqual(content.hex(), example["content"])
                self.assertEqual(parts_named(example), parts)
                self.assertEqual(hashlib.sha256(content).digest(), component.sha256)
                pack = one_content_pack(content)
                items = read_content(pack, segment_of(content, component.parts), component)
                self.assertEqual([item.hex() for item in items], [part["items"] for part in example["parts"]])
                component.read(items)
                start = bytes.fromhex(example["start"])
                if component.additive:
                    made = add_components(start, widen(tensor.dtype.name, start), [component], tensor, name)
                else:
                    made = component.rewrite(start)
                self.assertEqual(made.hex(), example["result"])
        self.assertEqual(seen, len(re.findall("```json example=", "".join(map(page_of, sorted(ENCODING_PAGES))))))

    def test_packing(self) -> None:
        example = json.loads(blocks(page("packing.md"))["json", "packing", "example"])
        for packing in ("stream", "lanes"):
            data = bytes.fromhex(example[packing])
            codes = example["codes"]
            self.assertEqual(unpack(packing, data, len(codes), example["bits"], ""), codes)
            with self.assertRaises(Refusal):
                unpack(packing, data[:-1] + bytes([data[-1] | 0x80]), len(codes), example["bits"], "")


ENCODING_PAGES = ("dense", "sparse", "blockq", "lowrank", "factors", "ulp")


def page_of(name: str) -> str:
    return page(f"encodings/{name}.md")


def parts_named(example: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(part["name"], part["width"], part["count"]) for part in example["parts"]]


def one_content_pack(content: bytes) -> Container:
    return Container(io.BytesIO(content), b"", b"", b"", 0, len(content))


def segment_of(content: bytes, parts: list[Part]) -> Segment:
    return Segment(
        "raw", [Chunk(parts[0], 0, 0, len(content), len(content), zlib.crc32(content), 0)] if content else []
    )


class Numbers(unittest.TestCase):
    def test_f16(self) -> None:
        for bits in range(2**16):
            value = widen("F16", bits.to_bytes(2, "little"))[0]
            if not math.isnan(value):
                self.assertEqual(widen("F32", widen_bits(bits, "F16").to_bytes(4, "little"))[0], value)
                self.assertEqual(narrow_bits(widen_bits(bits, "F16"), "F16"), bits)
                self.assertEqual(narrow_bits(widen_bits(bits, "BF16"), "BF16"), bits)

    def test_narrowing_is_to_nearest(self) -> None:
        rng = random.Random(1)
        for target, top in (("F16", 0x7C00), ("BF16", 0x7F80)):
            limit = top - 1
            for _ in range(20000):
                near = widen_bits(rng.randrange(limit), target)
                f32 = max(0, min(0x7F7FFFFF, near + rng.choice([-4096, -1, 1, 4095, 4096, 4097, 32767, 32768, 32769])))
                value = exact(f32, "F32")
                bits = narrow_bits(f32, target)
                if bits == top:  # infinity: at or above the middle between the largest number and the next power of 2
                    ulp = exact(limit, target) - exact(limit - 1, target)
                    self.assertGreaterEqual(value, exact(limit, target) + ulp / 2)
                    continue
                error = abs(exact(bits, target) - value)
                for other in (bits - 1, bits + 1):
                    if 0 <= other < top:
                        distance = abs(exact(other, target) - value)
                        self.assertTrue(error < distance or (error == distance and bits % 2 == 0))

    def test_rounding(self) -> None:
        self.assertEqual(round_all([1 + 2**-8 + 2**-30], "BF16", ""), [0x3F80])
        self.assertEqual(round_all([-(2.0**-200), 2.0**-149, 1.5 * 2.0**-149], "F32", ""), [0x80000000, 1, 2])
        self.assertEqual(round_all([65519.0], "F16", ""), [0x7BFF])
        for value, dtype in ((2.0**128, "F32"), (65520.0, "F16"), (2.0**128 - 2.0**119, "BF16"), (1e300, "F32")):
            with self.assertRaises(Refusal):
                round_all([value], dtype, "")

    def test_conversion(self) -> None:
        cases = [
            ("F32", "BF16", "0100807f 0000c0ff 000080ff 00000080 01000080 ffff7f7f", "c07f c07f 80ff 0080 0080 807f"),
            ("BF16", "F32", "817f c0ff 0080 0100", "0000c07f 0000c07f 00000080 00000100"),
            ("F16", "F32", "017c 01fe 00fc 0180", "0000c07f 0000c07f 000080ff 000080b3"),
            ("BF16", "F16", "803f 8047 0033 80b3", "003c 007c 0000 0180"),
        ]
        for dtype, target, given, expected in cases:
            self.assertEqual(convert(bytes.fromhex(given), dtype, target).hex(), expected.replace(" ", ""))


def exact(bits: int, dtype: str) -> Fraction:
    """A finite positive number, from the definition of the formats."""
    fraction_bits, bias = {"F32": (23, 127), "BF16": (7, 127), "F16": (10, 15)}[dtype]
    exponent, fraction = divmod(bits, 2**fraction_bits)
    significand = fraction + (2**fraction_bits if exponent else 0)
    power = max(exponent, 1) - bias - fraction_bits
    return Fraction(significand << max(power, 0), 1 << max(-power, 0))


class Codec(unittest.TestCase):
    def test_frames(self) -> None:
        rng = random.Random(5)
        text = b"".join(rng.choice([b"a tensor ", b"a plane ", b"a chunk "]) for _ in range(60000))
        for data in (text, bytes(300000), text[:300]):
            for level in (1, 3, 19):
                frame = zstandard.ZstdCompressor(level=level).compress(data)
                self.assertEqual(decode_chunk("zstd", frame, len(data), ""), data)
                bad = [frame + b"\0", frame + frame, frame[:-1], b"\x50\x2a\x4d\x18" + frame[4:]]
                bad.append(zstandard.ZstdCompressor(write_checksum=True).compress(data))
                bad.append(zstandard.ZstdCompressor(write_content_size=False).compress(data))
                bad.append(frame[:4] + bytes([frame[4] | 1]) + frame[5:])
                bad.append(bytes.fromhex("28b52ffd 80 78") + len(data).to_bytes(4, "little") + frame[5:])
                for stored in bad:
                    with self.assertRaises(Refusal) as caught:
                        decode_chunk("zstd", stored, len(data), "")
                    self.assertEqual(caught.exception.code, "payload.frame")
                with self.assertRaises(Refusal):
                    decode_chunk("zstd", frame, len(data) + 1, "")
                self.assertEqual(decode_chunk("zstd", frame, len(frame), ""), frame)


class Tables(unittest.TestCase):
    def test_wire_examples(self) -> None:
        rows = re.findall(
            r"^\| (.+?) \| (`[0-9A-F ]+`(?:, `[0-9A-F ]+`)?) \| \| (.+?) \| wire\.", page("wire.md"), re.M
        )
        self.assertEqual(len(rows), 6)
        for _, accepted, refused in rows:
            for data in re.findall("`(.+?)`", accepted):
                wire.decode(bytes.fromhex(data), "", DEFAULTS)
            for data in re.findall("`(.+?)`", refused):
                with self.assertRaises(Refusal):
                    wire.decode(bytes.fromhex(data), "", DEFAULTS)

    def test_tables(self) -> None:
        limits = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", page("limits.md"), re.M))
        del limits["signature_bytes"]  # of tools that verify signatures
        self.assertEqual({name: int(value) for name, value in limits.items()}, DEFAULTS)
        rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| (\w+) \| (\w+) \|", page("numerics.md"), re.M)
        expected = [(name, int(bits), kind, add == "yes", ulp == "yes") for name, bits, kind, add, ulp in rows]
        self.assertEqual(expected, [tuple(dtype) for dtype in DTYPES.values()])
        names = re.findall(r"^\| `([A-Za-z_]+\.[a-z]+)` \|$", page("manifest.md"), re.M)
        self.assertEqual(names, FILE_NAMES)

    def test_codes_and_ids(self) -> None:
        rows = dict(re.findall(r"^\| `([a-z]+\.[a-z-]+)` \| (\w+) \|", page("errors.md"), re.M))
        source = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("*.py") if path.name != "selftest.py")
        for code in re.findall(r'Refusal\(\s*"([a-z.-]+)"', source):
            self.assertEqual(rows[code], CLASSES[code.split(".")[0]])
        pages = "".join(path.read_text(encoding="utf-8") for path in SPEC.rglob("*.md"))
        ids = set(re.findall(r"\[`([a-z]+\.[a-z/-]+)`\]", pages))
        refusals = {i for i in ids if i.split("/")[0] in rows}
        self.assertEqual({i for i in refusals if not re.search(re.escape(i) + r"(?![a-z/-])", source)}, set())


class Forged(unittest.TestCase):
    """Right digests around wrong insides: a result, or a refusal, and nothing else."""

    def parts(self, name: str) -> tuple[Any, Any, bytes]:
        pack = Pack(io.BytesIO(PACKS[name]), DEFAULTS)
        return pack.manifest_document, pack.storage_document, PACKS[name][pack.container.data_start :]

    def test_bytes_of_documents(self) -> None:
        rng = random.Random(2)
        for name in NAMES:
            manifest, storage, data = self.parts(name)
            for _ in range(3000):
                documents = [bytearray(wire.encode(manifest)), bytearray(wire.encode(storage))]
                document = rng.choice(documents)
                for _ in range(rng.choice([1, 1, 2, 5])):
                    document[rng.randrange(len(document))] = rng.choice([rng.randrange(256), 0, 0x7F, 0xC0, 0xDF, 0xFF])
                code_of(build(bytes(documents[0]), bytes(documents[1]), data), BASES[name])

    def test_values_of_documents(self) -> None:
        rng = random.Random(3)
        seen = set()
        for name in NAMES:
            manifest, storage, data = self.parts(name)
            for _ in range(4000):
                documents = [wire.decode(wire.encode(value), "", DEFAULTS) for value in (manifest, storage)]
                change(rng.choice(documents), rng)
                seen.add(code_of(build(wire.encode(documents[0]), wire.encode(documents[1]), data), BASES[name]))
        wanted = {"manifest.type", "manifest.missing-key", "manifest.unknown-key", "manifest.parameter", "accepted"}
        self.assertLessEqual(wanted, seen)

    def test_contents(self) -> None:
        """DATA changed, and its CRC-32 and content digests made right again."""
        rng = random.Random(4)
        seen = set()
        for name in ("ulp", "lowrank", "zstd"):
            for _ in range(3000):
                manifest, storage, data = self.parts(name)
                bad = bytearray(data)
                bad[rng.randrange(len(bad))] = rng.choice([rng.randrange(256), 0x7F, 0x80, 0xFF])
                repair(manifest, storage, bytes(bad))
                seen.add(code_of(build(wire.encode(manifest), wire.encode(storage), bytes(bad)), BASES[name]))
        wanted = {"integrity.result", "payload.frame", "payload.scale", "payload.position"}
        self.assertLessEqual(wanted | {"payload.padding-bits"}, seen)


def change(document: Any, rng: random.Random) -> None:
    """Puts another value somewhere into a document, or takes one out."""
    here = document
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(here[key], (dict, list)) and rng.random() < 0.8:
            here = here[key]
            continue
        kind = rng.randrange(4)
        if kind == 0:
            here.pop(key)
        elif kind == 1 and isinstance(here, dict):
            here[rng.choice(["zero", "x", "alias", "components", "base"])] = here[key]
        else:
            others = [
                0,
                1,
                2,
                3,
                8,
                255,
                2**32,
                2**64 - 1,
                "",
                "F32",
                "F16",
                "BOOL",
                "ulp",
                "add",
                "x-new",
                b"",
                [],
                {},
            ]
            old = here[key]
            here[key] = old + rng.choice([-1, 1]) if isinstance(old, int) and old and kind == 2 else rng.choice(others)
        return


def repair(manifest: Any, storage: Any, data: bytes) -> None:
    holders = [c for entry in manifest["tensors"] for c in entry.get("components", [])] + manifest["files"]
    at = 0
    for holder, segment in zip(holders, storage["segments"], strict=True):
        records, stored = b"", b""
        for length, _ in zip(*[iter(to_ints(segment["chunks"], 4))] * 2, strict=True):
            chunk = data[at : at + length]
            records += length.to_bytes(4, "little") + zlib.crc32(chunk).to_bytes(4, "little")
            stored += chunk
            at += length
        segment["chunks"] = records
        if segment["codec"] == "raw":
            holder["sha256"] = hashlib.sha256(stored).digest()


def tensor_map(dtype: str, shape: list[int], data: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "sha256": hashlib.sha256(bytes.fromhex(data)).digest()}


def made_pack(base: dict[str, Any], entries: list[dict[str, Any]], contents: list[bytes], files: Any = ()) -> bytes:
    """A pack of contents of one plane each, for a base of the tensors given; the digest of the result is computed."""
    result = dict(base)
    for entry in entries:
        result.pop(entry["name"], None)
        if "result" in entry:
            result[entry["name"]] = entry["result"]
    ends = {}
    for what, tensors in (("base", base), ("result", result)):
        rows = [[name, t["dtype"], t["shape"], t["sha256"]] for name, t in sorted(tensors.items())]
        ends[what] = {"count": len(tensors), "digest": hashlib.sha256(wire.encode(rows)).digest()}
    ends["base"]["prints"] = b"".join(t["sha256"][:4] for _, t in sorted(base.items()))
    listed = [{"class": "other", "module": "", **entry} for entry in entries]
    manifest = {**ends, "files": list(files), "format": "skillpack/1", "metadata": {}, "tensors": listed}
    data, segments = b"", []
    for content in contents:
        data += content
        record = len(content).to_bytes(4, "little") + zlib.crc32(content).to_bytes(4, "little") if content else b""
        segments.append({"chunks": record, "codec": "raw"})
    return build(wire.encode(manifest), wire.encode({"chunk_bytes": 4096, "segments": segments}), data)


class Corners(unittest.TestCase):
    """What examples.md does not show. The base: `w`, F32 (2, 2), 1, -0, a NaN and 1 + 2^-8."""

    given = "0000803f000000800100c0ff0080803f"
    header = b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    file = len(header).to_bytes(8, "little") + header + bytes.fromhex(given)

    def check(self, entry: dict[str, Any], contents: list[bytes], expected: Any, files: Any = ()) -> None:
        base = {"w": tensor_map("F32", [2, 2], self.given)}
        pack = made_pack(base, [{"name": "w", "base": base["w"], **entry}], contents, files)
        if isinstance(expected, str):
            self.assertEqual(code_of(pack, self.file), expected)
        else:
            self.assertEqual(open_both(pack, self.file)[0]["w"], expected)

    def test_start(self) -> None:
        """num.start, num.convert: cut, continued, converted, and zero where the base is not compatible."""
        for dtype, shape, made in [
            ("BF16", [3, 2], "803f0080c07f803f00000000"),
            ("F16", [1, 2], "003c0080"),
            ("F32", [1, 2], self.given[:16]),
            ("F32", [0, 2], ""),
        ]:
            self.check({"result": tensor_map(dtype, shape, made), "components": []}, [], (dtype, shape, made))
        for dtype, shape in (("F32", [4]), ("I32", [2, 2])):
            result = tensor_map(dtype, shape, "00" * 16)
            self.check({"result": result, "components": []}, [], "manifest.components")
            component = {
                "encoding": "sparse",
                "mode": "replace",
                "dtype": dtype,
                "index": "gap8",
                "gaps": 0,
                "count": 0,
            }
            component["sha256"] = hashlib.sha256(b"").digest()
            self.check({"result": result, "components": [component]}, [b""], (dtype, shape, "00" * 16))

    def test_addressed(self) -> None:
        """num.addressed: an element that is listed is rounded and its -0 becomes +0, even where 0 is added."""
        for index, code in ((b"\0\0", None), (b"\2\0", "payload.nonfinite"), (b"\2\xff", "payload.position")):
            content = index + bytes(4)
            component = {"encoding": "sparse", "mode": "add", "dtype": "BF16", "index": "gap8", "gaps": 2, "count": 2}
            made = "803f0000c07f803f"
            result = tensor_map("BF16", [2, 2], made)
            component["sha256"] = hashlib.sha256(content).digest()
            # the pack is stored as planes: index, values plane 0, values plane 1; three chunks in one run of bytes
            pack = self.three_chunks({"result": result, "components": [component]}, content)
            found = code_of(pack, self.file)
            self.assertEqual(found, code or "accepted")

    def three_chunks(self, entry: dict[str, Any], content: bytes) -> bytes:
        base = {"w": tensor_map("F32", [2, 2], self.given)}
        pack = made_pack(base, [{"name": "w", "base": base["w"], **entry}], [content])
        container = open_container(io.BytesIO(pack), DEFAULTS)
        storage = wire.decode(container.storage, "", DEFAULTS)
        chunks = [content[at : at + 2] for at in (0, 2, 4)]
        records = [len(c).to_bytes(4, "little") + zlib.crc32(c).to_bytes(4, "little") for c in chunks]
        storage["segments"][0]["chunks"] = b"".join(records)
        return build(container.manifest, wire.encode(storage), content)

    def test_empty_last_segment(self) -> None:
        """layout.segments: a segment without chunks has padding before it too, even as the last one."""
        files = [{"name": "vocab.txt", "length": 0, "sha256": hashlib.sha256(b"").digest()}]
        made = "0100000000000000"
        content = bytes.fromhex(made)
        component = {"encoding": "dense", "mode": "replace", "dtype": "U8", "sha256": hashlib.sha256(content).digest()}
        entry = {"result": tensor_map("U8", [8], made), "components": [component]}
        self.check(entry, [content, b""], ("U8", [8], made), files)


class Adapter(unittest.TestCase):
    def test_protocol(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pack, base, out = (str(Path(folder) / name) for name in ("p.skp", "b.safetensors", "out"))
            Path(pack).write_bytes(PACKS["zstd"])
            Path(base).write_bytes(BASES["zstd"])
            given = Path(folder) / "given"
            given.mkdir()
            (given / "model.safetensors").write_bytes(BASES["zstd"])
            both = {"pack": pack, "base": base}
            requests: list[dict[str, Any]] = [
                {"op": "hello"},
                {"op": "validate", "pack": pack},
                {"op": "validate", **both},
                {"op": "validate", "pack": pack, "limits": {"side_file_bytes": 4099}},
                {"op": "validate", "pack": base},
                {"op": "inspect", "pack": pack},
                {"op": "decode", **both, "tensor": "codes.tied", "out": out + "1"},
                {"op": "slice", **both, "tensor": "ids", "rows": [1, 3], "out": out + "2"},
                {"op": "apply", **both, "out": out + "3"},
                {"op": "revert", **both, "out": out + "4"},
                {"op": "decode", **both, "tensor": "nothing", "out": out + "5"},
                {"op": "folder", "packs": [pack], "base": str(given), "out": out + "6"},
                {"op": "stop"},
            ]
            lines = "".join(json.dumps({"id": k, **request}) + "\n" for k, request in enumerate(requests))
            for command in ([str(HERE)], ["-m", "mini"]):
                run = subprocess.run(
                    [sys.executable, *command], input=lines, capture_output=True, text=True, check=True, cwd=HERE.parent
                )
                answers = [json.loads(line) for line in run.stdout.splitlines()]
                self.assertEqual([a["id"] for a in answers], list(range(len(requests))))
                self.assertEqual(
                    [a.get("ok") for a in answers], [True] * 3 + [False] * 2 + [True] * 4 + [None, False, True, True]
                )
                self.assertEqual([answers[k]["code"] for k in (3, 4)], ["limit.exceeded", "framing.magic"])
                self.assertEqual(answers[5]["manifest"], json.loads(EXAMPLES["json", "manifest", "zstd"]))
                self.assertEqual((answers[7]["dtype"], answers[7]["shape"]), ("I16", [2]))
                self.assertEqual(Path(out + "1").read_bytes(), b"\x2a" * 16)
                self.assertEqual(Path(out + "2").read_bytes().hex(), "feffff7f")
                self.assertEqual((Path(out + "6") / "vocab.txt").read_bytes(), b" " * 4096 + b"end\n")
                for path in (Path(out + "3"), Path(out + "6") / "model.safetensors"):
                    with path.open("rb") as file:
                        result = read_checkpoint(file, DEFAULTS)
                    self.assertEqual(result["ids"].data.hex(), "0000feffff7f")
                shutil.rmtree(out + "6")


if __name__ == "__main__":
    if len(sys.argv) > 1 and Path(sys.argv[1]).is_dir():
        SPEC = Path(sys.argv.pop(1))
    unittest.main()
