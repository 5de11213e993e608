"""The oracle of the specification: assembles every hex and JSON block of spec/ from first principles.

It shares no code with the library and uses the standard library only. Numbers are exact rationals; every rounding is
the explicit function ``round_to``. Run it with ``--check`` (the default: compares and fails on a difference) or with
``--write`` (puts the blocks into the pages).
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

SPEC = Path(__file__).resolve().parents[1] / "spec"
Line = tuple[bytes, str]  # bytes and what they are
MAGIC = bytes.fromhex("89534b500d0a1a0a")

# ------------------------------------------------------------------------------------------------ element types

WIDTH = {  # bits; kind
    "F64": (64, "float"), "F32": (32, "float"), "F16": (16, "float"), "BF16": (16, "float"), "F8_E4M3": (8, "float"),
    "F8_E5M2": (8, "float"), "F8_E8M0": (8, "uint"), "F8_E4M3FNUZ": (8, "float"), "F8_E5M2FNUZ": (8, "float"),
    "F6_E2M3": (6, "float"), "F6_E3M2": (6, "float"), "F4": (4, "float"), "I64": (64, "int"), "I32": (32, "int"),
    "I16": (16, "int"), "I8": (8, "int"), "U64": (64, "uint"), "U32": (32, "uint"), "U16": (16, "uint"),
    "U8": (8, "uint"), "BOOL": (8, "bool"), "C64": (64, "complex"),
}  # fmt: skip
# significand bits with the hidden one, smallest normal exponent, largest exponent, stored significand bits
BINARY = {"F64": (53, -1022, 1023, 52), "F32": (24, -126, 127, 23), "F16": (11, -14, 15, 10), "BF16": (8, -126, 127, 7)}


class Overflow(Exception):  # noqa: N818 - what a rounding finds, which may be right
    """A finite value rounds to infinity."""


class NonFinite(Exception):  # noqa: N818 - likewise
    """An element that is added to has a source that is NaN or infinite."""


def floor_log2(x: Fraction) -> int:
    """e with 2^e <= x < 2^(e+1), x > 0."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def round_to(x: Fraction, name: str) -> Fraction:
    """``x`` rounded to the nearest value of the binary format, ties to the even significand, gradual underflow."""
    precision, least, most, _ = BINARY[name]
    if x == 0:
        return x
    exponent = max(floor_log2(abs(x)), least)
    unit = Fraction(2) ** (exponent - precision + 1)
    scaled = abs(x) / unit
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1):
        whole += 1
    rounded = whole * unit
    if rounded >= Fraction(2) ** (most + 1):
        raise Overflow
    return rounded if x > 0 else -rounded


def to_bits(x: Fraction, name: str, negative_zero: bool = False) -> int:
    """The bit pattern of ``x``, which must be a value of the format."""
    _, least, _, stored = BINARY[name]
    bits = WIDTH[name][0]
    if x == 0:
        return (1 << (bits - 1)) if negative_zero else 0
    magnitude = abs(x)
    exponent = floor_log2(magnitude)
    if exponent < least:
        field_exponent, significand = 0, magnitude / Fraction(2) ** (least - stored)
    else:
        field_exponent, significand = exponent - least + 1, magnitude / Fraction(2) ** (exponent - stored)
    assert significand.denominator == 1, (x, name)
    pattern = (field_exponent << stored) | (int(significand) & ((1 << stored) - 1))
    return pattern | (1 << (bits - 1)) if x < 0 else pattern


def is_finite(pattern: int, name: str) -> bool:
    stored = BINARY[name][3]
    exponents = (1 << (WIDTH[name][0] - 1 - stored)) - 1
    return (pattern >> stored) & exponents != exponents


def is_nan(pattern: int, name: str) -> bool:
    return not is_finite(pattern, name) and pattern & ((1 << BINARY[name][3]) - 1) != 0


def value_of(pattern: int, name: str) -> Fraction:
    """The exact value of a finite bit pattern (both zeros are 0)."""
    _, least, _, stored = BINARY[name]
    bits = WIDTH[name][0]
    assert is_finite(pattern, name)
    exponent = (pattern >> stored) & ((1 << (bits - 1 - stored)) - 1)
    fraction = pattern & ((1 << stored) - 1)
    magnitude = Fraction(fraction if exponent == 0 else fraction + (1 << stored)) * Fraction(2) ** (
        max(exponent, 1) + least - 1 - stored
    )
    return -magnitude if pattern >> (bits - 1) else magnitude


def down(acc: Fraction, name: str) -> int:
    """num.round: float64 -> float32 -> dtype. The sign of a value that rounds to zero stays."""
    single = round_to(acc, "F32")
    return to_bits(round_to(single, name), name, negative_zero=acc < 0)


def converted(pattern: int, source: str, target: str) -> int:
    """num.convert, for START."""
    if source == target:
        return pattern
    quiet, infinity = {"F32": (0x7FC00000, 0x7F800000), "F16": (0x7E00, 0x7C00), "BF16": (0x7FC0, 0x7F80)}[target]
    negative = pattern >> (WIDTH[source][0] - 1)
    sign = negative << (WIDTH[target][0] - 1)
    if is_nan(pattern, source):
        return quiet
    if not is_finite(pattern, source):
        return sign | infinity
    try:
        return to_bits(round_to(value_of(pattern, source), target), target, negative_zero=bool(negative))
    except Overflow:
        return sign | infinity


def numel(shape: Sequence[int]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def items(data: bytes, width: int) -> list[int]:
    return [int.from_bytes(data[k : k + width], "little") for k in range(0, len(data), width)]


def from_items(values: Iterable[int], width: int) -> bytes:
    return b"".join(value.to_bytes(width, "little") for value in values)


def bits_of(name: str, *values: Fraction | int | str) -> bytes:
    """Values as little-endian bytes: rationals that the format holds exactly, or a bit pattern as '0x...'."""
    width = WIDTH[name][0] // 8
    patterns = [int(v, 16) if isinstance(v, str) else to_bits(Fraction(v), name) for v in values]
    return from_items(patterns, width)


# ------------------------------------------------------------------------------------------------ packing and planes


def pack(codes: Sequence[int], bits: int, packing: str) -> bytes:
    if packing == "stream":
        total = sum(code << (k * bits) for k, code in enumerate(codes))
        return total.to_bytes((len(codes) * bits + 7) // 8, "little")
    lanes = 8 // bits
    packed = bytearray((len(codes) + lanes - 1) // lanes)
    for k, code in enumerate(codes):
        packed[k // lanes] |= code << (bits * (k % lanes))
    return bytes(packed)


def unpack(packed: bytes, count: int, bits: int, packing: str) -> list[int]:
    mask = (1 << bits) - 1
    if packing == "stream":
        total = int.from_bytes(packed, "little")
        return [(total >> (k * bits)) & mask for k in range(count)]
    lanes = 8 // bits
    return [(packed[k // lanes] >> (bits * (k % lanes))) & mask for k in range(count)]


@dataclass(frozen=True)
class Part:
    name: str
    width: int
    data: bytes  # items one after the other

    def planes(self) -> list[bytes]:
        return [self.data[plane :: self.width] for plane in range(self.width)]


# ------------------------------------------------------------------------------------------------ the six encodings


def grid(shape: Sequence[int]) -> tuple[int, int, int]:
    padded = [1, 1, *shape]
    return numel(padded[:-2]), padded[-2], padded[-1]


@dataclass
class Work:
    """One tensor being made: exact accumulators, which elements are addressed, and the bit patterns."""

    dtype: str
    shape: list[int]
    source: list[tuple[str, int]]  # dtype and bit pattern each element starts from
    bits: list[int]
    acc: list[Fraction] = field(default_factory=list)
    addressed: set[int] = field(default_factory=set)

    def add(self, element: int, contribution: Fraction) -> None:
        """One float64 addition; ``contribution`` is already a float64 value."""
        assert round_to(contribution, "F64") == contribution
        self.addressed.add(element)
        self.acc[element] = round_to(self.acc[element] + contribution, "F64")


@dataclass(frozen=True)
class Component:
    encoding: str
    params: dict[str, Any]
    parts: list[Part]

    def content(self) -> bytes:
        return b"".join(plane for part in self.parts for plane in part.planes())

    def plain(self) -> dict[str, Any]:
        return {"encoding": self.encoding, "sha256": hashlib.sha256(self.content()).digest(), **self.params}

    def adds(self) -> bool:
        return self.encoding in ("blockq", "lowrank", "factors") or self.params.get("mode") == "add"

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)


def positions(component: Component, count: int) -> list[int]:
    index = component.part("index")
    if component.params["index"] == "bitmap":
        return [k for k in range(count) if index.data[k // 8] >> (k % 8) & 1]
    escape = (1 << (8 * index.width)) - 1
    found, at = [], 0
    for code in items(index.data, index.width):
        at += code
        if code != escape:
            found.append(at)
            at += 1
    return found


def add_dense(work: Work, c: Component) -> None:
    for k, pattern in enumerate(items(c.part("values").data, c.part("values").width)):
        work.add(k, value_of(pattern, c.params["dtype"]))


def add_sparse(work: Work, c: Component) -> None:
    values = items(c.part("values").data, c.part("values").width)
    for k, pattern in zip(positions(c, len(work.bits)), values, strict=True):
        work.add(k, value_of(pattern, c.params["dtype"]))


def add_blockq(work: Work, c: Component) -> None:
    _, _, cols = grid(work.shape)
    p = c.params
    groups = -(-cols // p["group"])
    codes = unpack(c.part("codes").data, len(work.bits), p["bits"], p["packing"])
    scales = items(c.part("scales").data, c.part("scales").width)
    for k, code in enumerate(codes):
        row, col = divmod(k, cols)
        group = row * groups + col // p["group"]
        zero = p["zero"] if "zero" in p else items(c.part("zeros").data, 2)[group]
        work.add(k, (2 * code - zero) * value_of(scales[group], p["scale"]))


def add_lowrank(work: Work, c: Component) -> None:
    stack, rows, cols = grid(work.shape)
    scales = items(c.part("scales").data, 4)
    for s, each in enumerate(c.params["slices"]):
        rank, half_u, half_v = each["rank"], 1 << (each["bits_u"] - 1), 1 << (each["bits_v"] - 1)
        u = unpack(c.part(f"u{s}").data, stack * rank * rows, each["bits_u"], c.params["packing"])
        v = unpack(c.part(f"v{s}").data, stack * rank * cols, each["bits_v"], c.params["packing"])
        for k in range(len(work.bits)):
            e, i, j = k // (rows * cols), k // cols % rows, k % cols
            dot = sum(
                (u[(e * rows + i) * rank + r] - half_u) * (v[(e * cols + j) * rank + r] - half_v) for r in range(rank)
            )
            work.add(k, dot * value_of(scales[e * len(c.params["slices"]) + s], "F32"))


def add_factors(work: Work, c: Component) -> None:
    stack, rows, cols = grid(work.shape)
    for b, band in enumerate(c.params["bands"]):
        rank = band["rank"]
        s = [value_of(pattern, "F32") for pattern in items(c.part(f"s{b}").data, 4)]
        u = factor(c, b, "u", stack * rank, rows)
        v = factor(c, b, "v", stack * rank, cols)
        for k in range(len(work.bits)):
            e, i, j = k // (rows * cols), k // cols % rows, k % cols
            for r in range(rank):
                at = e * rank + r
                us = round_to(u[at * rows + i] * s[at], "F64")
                work.add(k, round_to(us * v[at * cols + j], "F64"))


def factor(c: Component, b: int, name: str, lines: int, dim: int) -> list[Fraction]:
    code, stored = c.params["bands"][b]["code"], c.part(f"{name}{b}")
    if not code.startswith("Q"):
        return [value_of(pattern, code) for pattern in items(stored.data, stored.width)]
    bits, group = int(code[1:]), c.params["group"]
    groups = -(-dim // group)
    scales = items(c.part(f"{name}_scales{b}").data, c.part(f"{name}_scales{b}").width)
    codes = unpack(stored.data, lines * dim, bits, c.params["packing"])
    return [
        (2 * q - ((1 << bits) - 1)) * value_of(scales[k // dim * groups + k % dim // group], c.params["scale"])
        for k, q in enumerate(codes)
    ]


ADD = {"dense": add_dense, "sparse": add_sparse, "blockq": add_blockq, "lowrank": add_lowrank, "factors": add_factors}


def order_of(pattern: int, dtype: str) -> int:
    bits, kind = WIDTH[dtype]
    top = 1 << (bits - 1)
    if kind == "float":
        return (1 << bits) - 1 - pattern if pattern >= top else pattern + top
    return (pattern + top) % (1 << bits) if kind == "int" else pattern


def bits_from_order(order: int, dtype: str) -> int:
    bits, kind = WIDTH[dtype]
    top = 1 << (bits - 1)
    if kind == "float":
        return order - top if order >= top else (1 << bits) - 1 - order
    return (order + top) % (1 << bits) if kind == "int" else order


KEY_AT = {"F32": 15, "F16": 10, "BF16": 7}


def sorted_elements(patterns: Sequence[int], dtype: str, classes: Sequence[int] = (0,)) -> list[int]:
    """ulp.sort: the element that each place of ``diff`` belongs to. ``classes``: of rows, which are equally long."""
    half, cols = 1 << (WIDTH[dtype][0] - 1), -(-len(patterns) // max(1, len(classes)))
    keys = [(pattern % half) >> KEY_AT[dtype] for pattern in patterns]
    return sorted(range(len(patterns)), key=lambda x: (x >> 18, classes[x // cols], keys[x]))  # sorted is stable


def ulp(start: bytes, result: bytes, dtype: str, sort: str = "none", classes: bytes = b"\0") -> Component:
    bits, _ = WIDTH[dtype]
    codes = []
    for a, b in zip(items(start, bits // 8), items(result, bits // 8), strict=True):
        d = (order_of(b, dtype) - order_of(a, dtype)) % (1 << bits)
        d -= (d >> (bits - 1)) << bits
        codes.append(2 * d if d >= 0 else -2 * d - 1)
    if sort != "none":
        codes = [codes[x] for x in sorted_elements(items(start, bits // 8), dtype, classes)]
    parts = [Part("classes", 1, classes)] if sort == "rows" else []
    return Component("ulp", {"sort": sort}, [*parts, Part("diff", bits // 8, from_items(codes, bits // 8))])


def rewrite(work: Work, c: Component) -> None:
    bits, _ = WIDTH[work.dtype]
    if c.encoding == "ulp":
        sort = c.params["sort"]
        classes = c.part("classes").data if sort == "rows" else b"\0"
        plain = range(len(work.bits))
        elements = plain if sort == "none" else sorted_elements(work.bits, work.dtype, classes)
        for k, z in zip(elements, items(c.part("diff").data, bits // 8), strict=True):
            d = z // 2 if z % 2 == 0 else -(z + 1) // 2
            work.bits[k] = bits_from_order((order_of(work.bits[k], work.dtype) + d) % (1 << bits), work.dtype)
        return
    values = items(c.part("values").data, c.part("values").width)
    places = range(len(values)) if c.encoding == "dense" else positions(c, len(work.bits))
    for k, pattern in zip(places, values, strict=True):
        work.bits[k] = pattern


# ------------------------------------------------------------------------------------------------ applying


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: list[int]
    data: bytes

    def plain(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "sha256": hashlib.sha256(self.data).digest(), "shape": self.shape}


ARITHMETIC = ("F32", "F16", "BF16")


def is_compatible(base: Tensor, dtype: str, shape: list[int]) -> bool:
    same_kind = base.dtype == dtype or (base.dtype in ARITHMETIC and dtype in ARITHMETIC)
    same_rows = base.shape == shape or (len(base.shape) == len(shape) >= 1 and base.shape[1:] == shape[1:])
    return same_kind and same_rows


def make(base: Tensor | None, dtype: str, shape: list[int], components: Sequence[Component]) -> Tensor:
    """The result tensor of one entry, by the rules of numerics.md (whole-byte dtypes only)."""
    count, width = numel(shape), WIDTH[dtype][0] // 8
    source: list[tuple[str, int]] = []
    if base is not None and is_compatible(base, dtype, shape):
        source = [(base.dtype, p) for p in items(base.data, WIDTH[base.dtype][0] // 8)][:count]
    source += [(dtype, 0)] * (count - len(source))
    work = Work(dtype, shape, source, [converted(p, name, dtype) for name, p in source])
    additive = [c for c in components if c.adds()]
    if additive:
        work.acc = [value_of(p, name) if is_finite(p, name) else Fraction(0) for name, p in source]
    for c in additive:
        ADD[c.encoding](work, c)
    for k in work.addressed:
        if not is_finite(source[k][1], source[k][0]):
            raise NonFinite
        work.bits[k] = down(work.acc[k], dtype)
    for c in components[len(additive) :]:
        rewrite(work, c)
    return Tensor(dtype, shape, from_items(work.bits, width))


# ------------------------------------------------------------------------------------------------ wire


def head(kind: str, count: int) -> bytes:
    small, forms = {
        "int": (0x80, ((1, 0xCC), (2, 0xCD), (4, 0xCE), (8, 0xCF))),
        "str": (0x20, ((1, 0xD9), (2, 0xDA), (4, 0xDB))),
        "bin": (0x00, ((1, 0xC4), (2, 0xC5), (4, 0xC6))),
        "array": (0x10, ((2, 0xDC), (4, 0xDD))),
        "map": (0x10, ((2, 0xDE), (4, 0xDF))),
    }[kind]
    if count < small:
        return bytes([{"int": 0x00, "str": 0xA0, "array": 0x90, "map": 0x80}[kind] | count])
    for width, first in forms:
        if count < 1 << (8 * width):
            return bytes([first]) + count.to_bytes(width, "big")
    raise ValueError(count)


def wire(value: Any) -> bytes:
    return b"".join(data for data, _ in wire_lines(value, "", 0))


def scalar(value: Any) -> tuple[bytes, str]:
    if isinstance(value, int):
        return head("int", value), str(value)
    if isinstance(value, str):
        raw = value.encode("utf-8")
        return head("str", len(raw)) + raw, json.dumps(value)
    return head("bin", len(value)) + value, f"bin of {len(value)}"


def wire_lines(value: Any, label: str, depth: int) -> list[Line]:
    """The document as annotated lines; ``label`` is what stands before the value (a key)."""
    indent = "  " * depth
    if isinstance(value, dict):
        lines = [(head("map", len(value)), f"{indent}{label}map of {len(value)}")]
        for key in sorted(value, key=lambda k: k.encode("ascii")):
            key_bytes = scalar(key)[0]
            inner = wire_lines(value[key], f'"{key}": ', depth + 1)
            lines += [(key_bytes + inner[0][0], inner[0][1]), *inner[1:]]
        return lines
    if isinstance(value, list):
        lines = [(head("array", len(value)), f"{indent}{label}array of {len(value)}")]
        for each in value:
            lines += wire_lines(each, "", depth + 1)
        return lines
    data, text = scalar(value)
    return [(data, f"{indent}{label}{text}")]


def checkpoint_digest(tensors: dict[str, Tensor]) -> bytes:
    listing = [
        [n, tensors[n].dtype, tensors[n].shape, hashlib.sha256(tensors[n].data).digest()] for n in sorted(tensors)
    ]
    return hashlib.sha256(wire(listing)).digest()


# ------------------------------------------------------------------------------------------------ packs


@dataclass(frozen=True)
class Entry:
    name: str
    of_class: str
    module: str
    components: list[Component] | None = None
    result: tuple[str, list[int]] | None = None
    alias: str | None = None
    stats: dict[str, Any] | None = None


@dataclass(frozen=True)
class Pack:
    name: str
    base: dict[str, Tensor]
    entries: list[Entry]
    codec: str = "raw"
    chunk_bytes: int = 4096
    metadata: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def results(self) -> dict[str, Tensor]:
        made = dict(self.base)
        for each in self.entries:
            if each.result is None:
                del made[each.name]
            elif each.components is not None:
                made[each.name] = make(self.base.get(each.name), *each.result, each.components)
        for each in self.entries:
            if each.alias is not None:
                made[each.name] = made[each.alias]
        return dict(sorted(made.items()))

    def manifest(self) -> dict[str, Any]:
        results = self.results()
        prints = b"".join(hashlib.sha256(self.base[name].data).digest()[:4] for name in sorted(self.base))
        return {
            "base": {"count": len(self.base), "digest": checkpoint_digest(self.base), "prints": prints},
            "files": [
                {"length": len(self.files[n]), "name": n, "sha256": hashlib.sha256(self.files[n]).digest()}
                for n in sorted(self.files)
            ],
            "format": "skillpack/1",
            "metadata": self.metadata,
            "result": {"count": len(results), "digest": checkpoint_digest(results)},
            "tensors": [self.entry(each, results) for each in sorted(self.entries, key=lambda e: e.name)],
        }

    def entry(self, each: Entry, results: dict[str, Tensor]) -> dict[str, Any]:
        plain: dict[str, Any] = {"class": each.of_class, "module": each.module, "name": each.name}
        if each.name in self.base:
            plain["base"] = self.base[each.name].plain()
        if each.result is not None:
            plain["result"] = results[each.name].plain()
        if each.components is not None:
            plain["components"] = [c.plain() for c in each.components]
        if each.alias is not None:
            plain["alias"] = each.alias
        if each.stats is not None:
            plain["stats"] = each.stats
        return plain

    def segments(self) -> list[tuple[str, list[tuple[str, bytes]]]]:
        """(what, [(plane's name, plane)]) in order."""
        found = []
        for each in sorted(self.entries, key=lambda e: e.name):
            for k, c in enumerate(each.components or []):
                planes = [
                    (f"{part.name}, plane {p}" if part.width > 1 else part.name, plane)
                    for part in c.parts
                    for p, plane in enumerate(part.planes())
                ]
                found.append((f"{each.name}, component {k} ({c.encoding})", planes))
        for name in sorted(self.files):
            found.append((f"file {name}", [("bytes", self.files[name])]))
        return found

    def stored(self) -> tuple[dict[str, Any], list[Line]]:
        """STORAGE and the lines of DATA."""
        data: list[Line] = []
        listed = []
        for what, planes in self.segments():
            table = b""
            for name, plane in planes:
                for first in range(0, len(plane), self.chunk_bytes):
                    chunk = plane[first : first + self.chunk_bytes]
                    lines = rle_frame(chunk) if self.codec == "zstd" else None
                    note = f"{what}: {name}"
                    if self.codec == "zstd" and lines is None:
                        note += ", stored as it is"
                    data += [(b, f"{note}, {t}") for b, t in lines] if lines else [(chunk, note)]
                    kept = b"".join(b for b, _ in lines) if lines else chunk
                    table += struct.pack("<II", len(kept), zlib.crc32(kept))
            listed.append({"chunks": table, "codec": self.codec})
        return {"chunk_bytes": self.chunk_bytes, "segments": listed}, data

    def lines(self) -> list[Line]:
        manifest, (storage, data) = wire_lines(self.manifest(), "", 0), self.stored()
        storage_lines = wire_lines(storage, "", 0)
        m, s, d = (b"".join(b for b, _ in each) for each in (manifest, storage_lines, data))
        fields: list[Line] = [
            (MAGIC, "magic"),
            (struct.pack("<H", 1), "major"),
            (struct.pack("<H", 0), "minor"),
            (struct.pack("<I", zlib.crc32(m + s)), "CRC-32 of the header as it is stored"),
            (struct.pack("<Q", len(m)), f"manifest length {len(m)}"),
            (struct.pack("<Q", len(s)), f"storage length {len(s)}"),
            (struct.pack("<Q", len(m + s)), f"header length {len(m + s)}: as it is"),
            (struct.pack("<Q", len(d)), f"data length {len(d)}"),
            (hashlib.sha256(m).digest(), "SHA-256 of MANIFEST: the pack_id"),
            (hashlib.sha256(s).digest(), "SHA-256 of STORAGE"),
            (bytes(12), "reserved"),
        ]
        crc = zlib.crc32(b"".join(b for b, _ in fields))
        return [*fields, (struct.pack("<I", crc), "CRC-32 of bytes 0 to 123"), *manifest, *storage_lines, *data]

    def file(self) -> bytes:
        return b"".join(b for b, _ in self.lines())


def rle_frame(chunk: bytes) -> list[Line] | None:
    """A zstd frame of one RLE block, or None where the chunk is no run or the frame is not shorter."""
    if len(set(chunk)) != 1:
        return None
    if len(chunk) < 256:
        descriptor, size = 0x20, struct.pack("<B", len(chunk))
    else:
        descriptor, size = 0x60, struct.pack("<H", len(chunk) - 256)
    lines = [
        (bytes.fromhex("28b52ffd"), "zstd magic"),
        (bytes([descriptor]), "frame header descriptor: single segment, no checksum, no dictionary"),
        (size, f"frame content size {len(chunk)}" + (" (less 256)" if len(chunk) >= 256 else "")),
        ((len(chunk) << 3 | 1 << 1 | 1).to_bytes(3, "little"), f"block header: last, RLE, size {len(chunk)}"),
        (chunk[:1], "the byte to repeat"),
    ]
    return lines if sum(len(b) for b, _ in lines) < len(chunk) else None


def safetensors(tensors: dict[str, Tensor]) -> list[Line]:
    at, header = 0, {}
    for name in sorted(tensors):
        each = tensors[name]
        header[name] = {"dtype": each.dtype, "shape": each.shape, "data_offsets": [at, at + len(each.data)]}
        at += len(each.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    lines: list[Line] = [(struct.pack("<Q", len(text)), f"header length {len(text)}"), (text, "header (JSON)")]
    return lines + [(tensors[n].data, f"{n}: {tensors[n].dtype} {tensors[n].shape}") for n in sorted(tensors)]


# ------------------------------------------------------------------------------------------------ the four packs


def component(encoding: str, params: dict[str, Any], *parts: tuple[str, int, bytes]) -> Component:
    return Component(encoding, params, [Part(*each) for each in parts])


def half(*values: str) -> list[Fraction]:
    return [Fraction(v) for v in values]


def pack_identical() -> Pack:
    base = {
        "bias": Tensor("F32", [2], bits_of("F32", Fraction(1), Fraction(-1, 2))),
        "step": Tensor("I64", [], (7).to_bytes(8, "little")),
    }
    return Pack("identical", base, [])


def pack_ulp() -> Pack:
    start = bits_of("F32", Fraction(1), "0x80000000", "0x7fc00001", Fraction(3))
    tuned = bits_of("F32", "0x3f800001", "0x00000000", "0x7fc00001", Fraction(-3))
    weight = Tensor("F32", [4], start)
    entry = Entry("norm.weight", "norm", "norm", [ulp(start, tuned, "F32")], ("F32", [4]), stats={"changed": 3})
    return Pack("ulp", {"norm.weight": weight}, [entry], metadata={"license": "CC0-1.0"})


def pack_lowrank() -> Pack:
    base = {
        "mlp.bias": Tensor("F32", [4], bits_of("F32", Fraction(1, 2), "0x80000000", Fraction(-2), Fraction(8))),
        "mlp.weight": Tensor("BF16", [2, 3], bits_of("BF16", *half("1", "-1/2", "1/4", "3", "0", "-2"))),
        "norm.weight": Tensor("BF16", [3], bits_of("BF16", *half("1", "1", "1"))),
        "old.scale": Tensor("F16", [1], bits_of("F16", Fraction(5))),
    }
    lowrank = component(
        "lowrank",
        {
            "packing": "lanes",
            "slices": [{"bits_u": 4, "bits_v": 4, "rank": 2}, {"bits_u": 3, "bits_v": 2, "rank": 1}],
        },
        ("scales", 4, bits_of("F32", Fraction(1, 64), Fraction(-3, 4096))),
        ("u0", 1, pack([8 + 3, 8 - 2, 8 + 1, 8 + 7], 4, "lanes")),
        ("v0", 1, pack([8 + 5, 8 - 4, 8 + 0, 8 - 8, 8 + 6, 8 + 2], 4, "lanes")),
        ("u1", 1, pack([4 + 3, 4 - 4], 3, "lanes")),
        ("v1", 1, pack([2 + 1, 2 - 2, 2 + 0], 2, "lanes")),
    )
    lossy = make(base["mlp.weight"], "BF16", [2, 3], [lowrank])
    tuned = from_items([p + e for p, e in zip(items(lossy.data, 2), (0, 1, -2, 0, 3, -1), strict=True)], 2)
    bias = component(
        "sparse",
        {"count": 2, "dtype": "BF16", "gaps": 2, "index": "gap8", "mode": "add"},
        ("index", 1, bytes([0, 1])),
        ("values", 2, bits_of("BF16", Fraction(1, 8), Fraction(-3))),
    )
    head_values = bits_of("F16", *half("1", "-2"))
    new = component("dense", {"dtype": "F16", "mode": "replace"}, ("values", 2, head_values))
    entries = [
        Entry("head.scale", "other", "head", [new], ("F16", [2])),
        Entry("mlp.bias", "bias", "mlp", [bias], ("F32", [4])),
        Entry("mlp.weight", "mlp", "mlp", [lowrank, ulp(lossy.data, tuned, "BF16")], ("BF16", [2, 3])),
        Entry("old.scale", "other", "old"),
    ]
    pack_made = Pack("lowrank", base, entries)
    assert pack_made.results()["mlp.weight"].data == tuned
    return pack_made


def pack_zstd() -> Pack:
    base = {
        "codes": Tensor("U8", [16], bytes(range(16))),
        "ids": Tensor("I16", [3], struct.pack("<3h", -1, 0, 300)),
    }
    run = component("dense", {"dtype": "U8", "mode": "replace"}, ("values", 1, b"\x2a" * 16))
    ids = ulp(base["ids"].data, struct.pack("<3h", 0, -2, 32767), "I16")
    entries = [
        Entry("codes", "other", "", [run], ("U8", [16])),
        Entry("codes.tied", "other", "codes", None, ("U8", [16]), alias="codes"),
        Entry("ids", "other", "", [ids], ("I16", [3])),
    ]
    return Pack("zstd", base, entries, codec="zstd", files={"vocab.txt": b" " * 4096 + b"end\n"})


PACKS = (pack_identical, pack_ulp, pack_lowrank, pack_zstd)


# ------------------------------------------------------------------------------------------------ worked examples


@dataclass(frozen=True)
class Example:
    """One component alone: what it is given and what it makes."""

    name: str
    component: Component
    dtype: str
    shape: list[int]
    base: Tensor | None

    def start(self) -> Tensor:
        return make(self.base, self.dtype, self.shape, [])

    def result(self) -> Tensor:
        return make(self.base, self.dtype, self.shape, [self.component])

    def plain(self) -> dict[str, Any]:
        return {
            "tensor": {"dtype": self.dtype, "shape": self.shape},
            "component": rendered(self.component.plain()),
            "start": self.start().data.hex(),
            "parts": [
                {"name": p.name, "width": p.width, "count": len(p.data) // p.width, "items": p.data.hex()}
                for p in self.component.parts
            ],
            "content": self.component.content().hex(),
            "result": self.result().data.hex(),
        }


def examples() -> list[Example]:
    q = Fraction
    dense_start = Tensor("BF16", [4], bits_of("BF16", 1, 1, "0x8000", 2))
    dense_add = component(
        "dense",
        {"dtype": "F32", "mode": "add"},
        ("values", 4, bits_of("F32", q(3, 256), q(1, 256) + q(1, 1 << 30), "0x80000000", q(-2))),
    )
    dense_replace = component("dense", {"dtype": "BOOL", "mode": "replace"}, ("values", 1, bytes([1, 0, 1])))
    far = Tensor("U8", [260], bytes([9]) * 260)
    gap8 = component(
        "sparse",
        {"count": 3, "dtype": "U8", "gaps": 4, "index": "gap8", "mode": "replace"},
        ("index", 1, bytes([2, 0, 255, 0])),
        ("values", 1, bytes([1, 2, 3])),
    )
    gap16 = component(
        "sparse",
        {"count": 2, "dtype": "F16", "gaps": 2, "index": "gap16", "mode": "add"},
        ("index", 2, struct.pack("<2H", 1, 1)),
        ("values", 2, bits_of("F16", q(1, 2), q(-1, 4))),
    )
    bitmap = component(
        "sparse",
        {"count": 3, "dtype": "I16", "gaps": 0, "index": "bitmap", "mode": "replace"},
        ("index", 1, bytes([0b10000001, 0b00000010])),
        ("values", 2, struct.pack("<3h", -1, 5, 258)),
    )
    blockq_zeros = component(
        "blockq",
        {"bits": 3, "group": 2, "packing": "stream", "scale": "BF16"},
        ("codes", 1, pack([0, 7, 3, 4, 1, 6], 3, "stream")),
        ("scales", 2, bits_of("BF16", q(1, 8), q(-1, 4), q(3), 0)),
        ("zeros", 2, struct.pack("<4H", 7, 6, 0, 14)),
    )
    blockq_sign = component(
        "blockq",
        {"bits": 1, "group": 8, "packing": "lanes", "scale": "F32", "zero": 1},
        ("codes", 1, pack([1, 0, 0, 1, 1], 1, "lanes")),
        ("scales", 4, bits_of("F32", q(3, 1024))),
    )
    lowrank = component(
        "lowrank",
        {"packing": "stream", "slices": [{"bits_u": 2, "bits_v": 3, "rank": 2}]},
        ("scales", 4, bits_of("F32", q(1, 16), q(-1, 2))),
        ("u0", 1, pack([3, 1, 0, 2, 0, 2, 3, 2], 2, "stream")),
        ("v0", 1, pack([7, 4, 0, 5, 1, 3, 6, 2], 3, "stream")),
    )
    factors = component(
        "factors",
        {
            "bands": [{"code": "F16", "rank": 1}, {"code": "Q2", "rank": 1}],
            "group": 2,
            "packing": "lanes",
            "scale": "BF16",
        },
        ("s0", 4, bits_of("F32", q(3, 2))),
        ("u0", 2, bits_of("F16", q(1, 2), q(-1, 4))),
        ("v0", 2, bits_of("F16", 1, q(1, 8), -2)),
        ("s1", 4, bits_of("F32", q(1, 32))),
        ("u1", 1, pack([3, 1], 2, "lanes")),
        ("u_scales1", 2, bits_of("BF16", q(1, 4))),
        ("v1", 1, pack([0, 2, 3], 2, "lanes")),
        ("v_scales1", 2, bits_of("BF16", q(1, 2), q(5, 4))),
    )
    above, below = 1 + q(1, 1 << 23), 1 - q(1, 1 << 23)
    order = component(
        "factors",
        {"bands": [{"code": "F32", "rank": 1}], "group": 1, "packing": "lanes", "scale": "F32"},
        ("s0", 4, bits_of("F32", above)),
        ("u0", 4, bits_of("F32", below)),
        ("v0", 4, bits_of("F32", above)),
    )
    ulp_start = bits_of("BF16", 1, "0x8000", "0x7f80", "0x0001")
    ulp_result = bits_of("BF16", q(127, 128), "0x0000", "0x7fc0", "0x8001")
    sorted_start = bits_of("BF16", 4, q(-1, 2), 5, q(1, 2), 0)
    sorted_result = bits_of("BF16", q(129, 32), q(-1, 2), q(79, 16), q(65, 128), "0x0001")
    rows_start = bits_of("F32", 1, "0x3f800001", 2, 1, q(1, 2), "0x3f808000")
    rows_result = bits_of("F32", "0x3f800001", "0x3f800001", "0x3ffffffe", "0x3f800003", "0x3effffff", "0x3f808002")
    ints = bytes([0x7F, 0xFF, 0x80])
    f32, quarter = Tensor("F32", [2, 3], bits_of("F32", 1, 2, 3, 4, 5, 6)), q(1, 4)
    return [
        Example("dense-add", dense_add, "BF16", [4], dense_start),
        Example("dense-replace", dense_replace, "BOOL", [3], None),
        Example("sparse-gap8", gap8, "U8", [260], far),
        Example("sparse-gap16", gap16, "F16", [4], Tensor("F16", [4], bits_of("F16", 1, 2, 4, "0x8000"))),
        Example("sparse-bitmap", bitmap, "I16", [2, 5], Tensor("I16", [2, 5], struct.pack("<10h", *range(10)))),
        Example("blockq-zeros", blockq_zeros, "F32", [2, 3], f32),
        Example("blockq-sign", blockq_sign, "BF16", [5], Tensor("BF16", [5], bits_of("BF16", 1, 1, quarter, -3, 0))),
        Example("lowrank", lowrank, "F32", [2, 2, 2], Tensor("F32", [2, 2, 2], bits_of("F32", *[quarter] * 8))),
        Example("factors", factors, "BF16", [2, 3], Tensor("BF16", [2, 3], bits_of("BF16", 1, -1, 2, -2, 0, quarter))),
        Example("factors-order", order, "F32", [1, 1], Tensor("F32", [1, 1], bits_of("F32", -above))),
        Example("ulp-bf16", ulp(ulp_start, ulp_result, "BF16"), "BF16", [4], Tensor("BF16", [4], ulp_start)),
        Example(
            "ulp-sorted",
            ulp(sorted_start, sorted_result, "BF16", "magnitude"),
            "BF16",
            [5],
            Tensor("BF16", [5], sorted_start),
        ),
        Example(
            "ulp-rows",
            ulp(rows_start, rows_result, "F32", "rows", bytes([1, 0, 1])),
            "F32",
            [3, 2],
            Tensor("F32", [3, 2], rows_start),
        ),
        Example("ulp-i8", ulp(ints, bytes([0x80, 0x01, 0x81]), "I8"), "I8", [3], Tensor("I8", [3], ints)),
    ]


def packing_example() -> dict[str, Any]:
    codes = [1, 2, 3, 4, 5]
    return {"bits": 3, "codes": codes, "lanes": pack(codes, 3, "lanes").hex(), "stream": pack(codes, 3, "stream").hex()}


# ------------------------------------------------------------------------------------------------ rendering


def rendered(value: Any) -> Any:
    """The normative JSON rendering (manifest.md)."""
    if isinstance(value, dict):
        return {key: rendered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [rendered(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, int) and value >= 1 << 53 else value


def hexed(lines: Sequence[Line], offsets: bool = True) -> str:
    """Annotated hex: at most 16 bytes a row, the comment on an entry's first row, runs of zeros too."""
    rows, at = [], 0
    for data, note in lines:
        for first in range(0, max(len(data), 1), 16):
            row = data[first : first + 16].hex(" ", -4) if len(data) > 8 else data.hex(" ")
            comment = note if first == 0 else ""
            rows.append(f"{row:<36}# " + (f"{at + first:04x}  " if offsets else "") + comment)
        at += len(data)
    return "\n".join(row.rstrip() for row in rows)


def json_text(value: Any, indent: str = "") -> str:
    """JSON with whatever fits in 110 columns on one line."""
    flat = json.dumps(value, ensure_ascii=True)
    if len(indent) + len(flat) <= 110 or not isinstance(value, (dict, list)) or not value:
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        rows = [f"{deeper}{json.dumps(key)}: {json_text(each, deeper)}" for key, each in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + json_text(each, deeper) for each in value) + f"\n{indent}]"


def listing_json(made: Pack) -> str:
    results = made.results()
    lines = [
        json.dumps({"name": n, "dtype": results[n].dtype, "shape": results[n].shape, "hex": results[n].data.hex()})
        for n in sorted(results)
    ]
    files = [
        json.dumps({"name": n, "length": len(d), "sha256": hashlib.sha256(d).hexdigest()})
        for n, d in sorted(made.files.items())
    ]
    body = ['"tensors": [\n  ' + ",\n  ".join(lines) + "]", '"files": [' + ", ".join(files) + "]"]
    return "{" + ",\n ".join(body) + "}"


def example_json(each: Example) -> str:
    plain = each.plain()
    return "{" + ",\n ".join(f"{json.dumps(key)}: {json.dumps(plain[key])}" for key in plain) + "}"


def content_lines(each: Example) -> list[Line]:
    lines: list[Line] = []
    for part in each.component.parts:
        for p, plane in enumerate(part.planes()):
            lines.append((plane, f"{part.name}, plane {p}" if part.width > 1 else part.name))
    return lines


def blocks() -> dict[str, str]:
    """Every generated block: the fence's info string -> its text."""
    found: dict[str, str] = {}
    for build in PACKS:
        made = build()
        storage = made.stored()[0]
        found[f"hex base={made.name}"] = hexed(safetensors(made.base))
        found[f"hex pack={made.name}"] = hexed(made.lines())
        found[f"text pack_id={made.name}"] = hashlib.sha256(wire(made.manifest())).hexdigest()
        found[f"json result={made.name}"] = listing_json(made)
        found[f"json manifest={made.name}"] = json_text(rendered(made.manifest()))
        found[f"json storage={made.name}"] = json_text(rendered(storage))
    for each in examples():
        found[f"hex example={each.name}"] = hexed(content_lines(each))
        found[f"json example={each.name}"] = example_json(each)
    found["json packing=example"] = json.dumps(packing_example())
    return found


def replaced(text: str, known: dict[str, str], used: set[str]) -> str:
    out, lines, k = [], text.split("\n"), 0
    while k < len(lines):
        out.append(lines[k])
        info = lines[k][3:] if lines[k].startswith("```") else ""
        k += 1
        if "=" not in info:
            continue
        if info not in known:
            raise SystemExit(f"assemble.py does not make the block {info!r}")
        used.add(info)
        while lines[k] != "```":
            k += 1
        out.append(known[info])
    return "\n".join(out)


def main(arguments: Sequence[str]) -> int:
    if arguments not in ([], ["--check"], ["--write"], ["--print"]):
        sys.stderr.write("usage: assemble.py [--check | --write | --print]\n")
        return 2
    known, used, stale = blocks(), set[str](), []
    if arguments == ["--print"]:
        for info, text in known.items():
            sys.stdout.write(f"```{info}\n{text}\n```\n\n")
        return 0
    for page in sorted(SPEC.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = replaced(text, known, used)
        if fresh != text:
            stale.append(page.relative_to(SPEC).as_posix())
            if arguments == ["--write"]:
                page.write_text(fresh, encoding="utf-8")
    missing = sorted(set(known) - used)
    for info in missing:
        sys.stderr.write(f"no page holds the block {info!r}\n")
    verb = "wrote" if arguments == ["--write"] else "differs:"
    for page_name in stale:
        sys.stderr.write(f"{verb} {page_name}\n")
    return 1 if missing or (stale and arguments != ["--write"]) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
