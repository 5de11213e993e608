"""encodings/*.md: one class an encoding, in the order of the pages; each has the headings of its page.

Constructing a component makes the checks on its parameters (stage 11), `read` those on its values (stage 14);
`add` makes its contributions, `rewrite` sets bit patterns.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import Refusal
from .fields import check_map, check_type
from .numerics import ARITHMETIC, Tensor, check_finite, check_scales, find_dtype, from_ints, to_ints, widen
from .packing import PACKINGS, packed_bytes, unpack


@dataclass
class Part:
    """`count` items of `width` bytes."""

    name: str
    width: int
    count: int


@dataclass
class Content:
    """What a segment stores: the parts of a component or of a side file."""

    where: str
    sha256: bytes
    parts: list[Part]

    @property
    def size(self) -> int:
        return sum(part.width * part.count for part in self.parts)


class Component(Content):
    name: ClassVar[str]
    required: ClassVar[dict[str, str]] = {}  # the parameters and their types
    optional: ClassVar[dict[str, str]] = {}

    def __init__(self, p: dict[str, Any], tensor: Tensor, where: str) -> None:
        super().__init__(where, p["sha256"], [])
        self.p, self.tensor = p, tensor
        self.additive = self.is_additive()
        self.check()
        self.parts = self.make_parts()

    def allow(self, allowed: bool, what: str) -> None:
        if not allowed:  # manifest.parameter
            raise Refusal("manifest.parameter", f"{self.where}: {what}")

    def is_additive(self) -> bool:
        return True

    def check(self) -> None:
        """Refusals of parameters."""

    def terms(self) -> int:
        """Products of factors an element asks for."""
        return 0

    def make_parts(self) -> list[Part]:
        raise NotImplementedError

    def read(self, items: list[bytes]) -> None:
        """Refusals of values; keeps them. `items` are the bytes of each part."""
        raise NotImplementedError

    def addressed(self) -> Iterable[int]:
        return range(self.tensor.elements)  # num.addressed

    def add(self, acc: list[float]) -> None:
        raise NotImplementedError

    def rewrite(self, bits: bytes) -> bytes:
        raise NotImplementedError


def check_bool(dtype: str, data: bytes, where: str) -> None:
    if dtype == "BOOL" and any(value > 1 for value in data):  # payload.value
        raise Refusal("payload.value", f"{where}: a BOOL that is neither 00 nor 01")


class Dense(Component):
    """encodings/dense.md"""

    name = "dense"
    required: ClassVar = {"dtype": "str", "mode": "str"}

    def is_additive(self) -> bool:
        return bool(self.p["mode"] == "add")

    def check(self) -> None:
        self.dtype = find_dtype(self.p["dtype"], self.where)
        self.allow(self.p["mode"] in ("add", "replace"), "mode")  # manifest.parameter/dense-mode
        # manifest.parameter/dense-dtype
        self.allow(self.dtype.name in ARITHMETIC if self.additive else self.dtype == self.tensor.dtype, "dtype")

    def make_parts(self) -> list[Part]:
        if self.dtype.bits < 8:
            return [Part("values", 1, self.tensor.size)]
        return [Part("values", self.dtype.width, self.tensor.elements)]

    def read(self, items: list[bytes]) -> None:
        self.items = items[0]
        if self.additive:
            self.values = widen(self.dtype.name, self.items)
            check_finite(self.values, self.where)  # payload.nonfinite/dense
        check_bool(self.dtype.name, self.items, self.where)

    def add(self, acc: list[float]) -> None:
        for x, value in enumerate(self.values):  # dense.add
            acc[x] = acc[x] + value

    def rewrite(self, bits: bytes) -> bytes:
        return self.items  # dense.replace


class Sparse(Component):
    """encodings/sparse.md"""

    name = "sparse"
    required: ClassVar = {"count": "integer", "dtype": "str", "gaps": "integer", "index": "str", "mode": "str"}
    escapes: ClassVar = {"gap8": 255, "gap16": 65535}

    def is_additive(self) -> bool:
        return bool(self.p["mode"] == "add")

    def check(self) -> None:
        p, n = self.p, self.tensor.elements
        self.dtype = find_dtype(p["dtype"], self.where)
        # manifest.parameter/sparse-values
        self.allow(p["index"] in ("gap8", "gap16", "bitmap"), "index")
        self.allow(p["mode"] in ("add", "replace"), "mode")
        self.allow(p["count"] <= n, "count")
        # manifest.parameter/sparse-dtype
        self.allow(self.dtype.bits >= 8, "dtype")
        self.allow(self.dtype.name in ARITHMETIC if self.additive else self.dtype == self.tensor.dtype, "dtype")
        # manifest.parameter/sparse-gaps
        if p["index"] == "bitmap":
            self.allow(p["gaps"] == 0, "gaps")
        else:
            self.allow(p["count"] <= p["gaps"] <= p["count"] + n // self.escapes[p["index"]], "gaps")

    def make_parts(self) -> list[Part]:
        count = self.p["gaps"]
        if self.p["index"] == "bitmap":
            count = (self.tensor.elements + 7) // 8
        values = Part("values", self.dtype.width, self.p["count"])
        return [Part("index", 2 if self.p["index"] == "gap16" else 1, count), values]

    def read(self, items: list[bytes]) -> None:
        if self.p["index"] == "bitmap":
            self.positions = self.read_bitmap(items[0])
        else:
            self.positions = self.read_gaps(to_ints(items[0], self.parts[0].width), self.escapes[self.p["index"]])
        if len(self.positions) != self.p["count"]:  # payload.position
            raise self.position(f"{len(self.positions)} listed elements instead of {self.p['count']}")
        self.items = items[1]
        if self.additive:
            self.values = widen(self.dtype.name, self.items)
            check_finite(self.values, self.where)  # payload.nonfinite/sparse
        check_bool(self.dtype.name, self.items, self.where)

    def position(self, text: str) -> Refusal:
        return Refusal("payload.position", f"{self.where}: {text}")

    def read_gaps(self, index: list[int], escape: int) -> list[int]:
        if index and index[-1] == escape:  # payload.position/escape
            raise self.position("the last item of the index is an escape")
        positions = []
        position = 0
        for v in index:  # sparse.gaps
            if v == escape:
                position = position + escape
            else:
                position = position + v
                positions.append(position)
                position = position + 1
        if positions and positions[-1] >= self.tensor.elements:  # payload.position/range: they ascend
            raise self.position(f"position {positions[-1]} of {self.tensor.elements} elements")
        return positions

    def read_bitmap(self, index: bytes) -> list[int]:
        # sparse.bitmap
        positions = [8 * k + bit for k, byte in enumerate(index) for bit in range(8) if byte >> bit & 1]
        if positions and positions[-1] >= self.tensor.elements:  # payload.padding-bits/bitmap
            raise Refusal("payload.padding-bits", f"{self.where}: bit {positions[-1]} of the bitmap is set")
        return positions

    def addressed(self) -> Iterable[int]:
        return self.positions  # num.addressed

    def add(self, acc: list[float]) -> None:
        for x, value in zip(self.positions, self.values, strict=True):  # sparse.add
            acc[x] = acc[x] + value

    def rewrite(self, bits: bytes) -> bytes:
        result, width = bytearray(bits), self.dtype.width
        for k, x in enumerate(self.positions):  # sparse.replace
            result[x * width : (x + 1) * width] = self.items[k * width : (k + 1) * width]
        return bytes(result)


class Blockq(Component):
    """encodings/blockq.md"""

    name = "blockq"
    required: ClassVar = {"bits": "integer", "group": "integer", "packing": "str", "scale": "str"}
    optional: ClassVar = {"zero": "integer"}

    def check(self) -> None:
        p = self.p
        # manifest.parameter/blockq
        self.allow(1 <= p["bits"] <= 8, "bits")
        self.allow(1 <= p["group"] <= 2**32, "group")
        self.allow(p["packing"] in PACKINGS, "packing")
        self.allow(p["scale"] in ARITHMETIC, "scale")
        self.allow(p.get("zero", 0) <= 2 ** (p["bits"] + 1) - 2, "zero")

    def make_parts(self) -> list[Part]:
        p, (e, m, n) = self.p, self.tensor.matrix()
        self.groups = (n + p["group"] - 1) // p["group"]  # G
        count = e * m * self.groups
        parts = [Part("codes", 1, packed_bytes(p["packing"], e * m * n, p["bits"]))]
        parts.append(Part("scales", find_dtype(p["scale"], self.where).width, count))
        if "zero" not in p:
            parts.append(Part("zeros", 2, count))
        return parts

    def read(self, items: list[bytes]) -> None:
        p = self.p
        self.codes = unpack(p["packing"], items[0], self.tensor.elements, p["bits"], self.where)  # payload.padding-bits
        self.scales = widen(p["scale"], items[1])
        check_scales(self.scales, self.where)  # payload.scale/blockq
        self.zeros = [p["zero"]] * len(self.scales) if "zero" in p else to_ints(items[2], 2)
        if any(zero > 2 ** (p["bits"] + 1) - 2 for zero in self.zeros):  # payload.code
            raise Refusal("payload.code", f"{self.where}: the zero point {max(self.zeros)} is out of range")

    def add(self, acc: list[float]) -> None:
        _, _, n = self.tensor.matrix()
        for x, code in enumerate(self.codes):  # blockq.contribution
            row, j = divmod(x, n)  # row is e * m + i
            g = row * self.groups + j // self.p["group"]
            level = 2 * code - self.zeros[g]
            acc[x] = acc[x] + float(level) * self.scales[g]


class Lowrank(Component):
    """encodings/lowrank.md"""

    name = "lowrank"
    required: ClassVar = {"packing": "str", "slices": "array"}

    def check(self) -> None:
        p, (_, m, n) = self.p, self.tensor.matrix()
        # manifest.parameter/lowrank
        self.allow(p["packing"] in PACKINGS, "packing")
        self.allow(1 <= len(p["slices"]) <= 64, "slices")
        for s in p["slices"]:
            check_map(s, f"{self.where}: slices", {"bits_u": "integer", "bits_v": "integer", "rank": "integer"})
            self.allow(1 <= s["bits_u"] <= 8, "bits_u")
            self.allow(1 <= s["bits_v"] <= 8, "bits_v")
            self.allow(1 <= s["rank"] <= min(m, n), "rank")
            # manifest.parameter/lowrank-product
            self.allow(s["rank"] * 2 ** (s["bits_u"] - 1) * 2 ** (s["bits_v"] - 1) <= 2**24, "rank times 2^bits")

    def terms(self) -> int:
        return sum(s["rank"] for s in self.p["slices"])

    def make_parts(self) -> list[Part]:
        (e, m, n), packing = self.tensor.matrix(), self.p["packing"]
        parts = [Part("scales", 4, e * len(self.p["slices"]))]
        for t, s in enumerate(self.p["slices"]):
            parts.append(Part(f"u{t}", 1, packed_bytes(packing, e * s["rank"] * m, s["bits_u"])))
            parts.append(Part(f"v{t}", 1, packed_bytes(packing, e * s["rank"] * n, s["bits_v"])))
        return parts

    def read(self, items: list[bytes]) -> None:
        (e, m, n), packing = self.tensor.matrix(), self.p["packing"]
        self.slices = []
        scales = widen("F32", items[0])
        check_scales(scales, self.where)  # payload.scale/lowrank
        for t, s in enumerate(self.p["slices"]):
            u = unpack(packing, items[2 * t + 1], e * s["rank"] * m, s["bits_u"], self.where)  # payload.padding-bits
            v = unpack(packing, items[2 * t + 2], e * s["rank"] * n, s["bits_v"], self.where)
            u = [code - 2 ** (s["bits_u"] - 1) for code in u]  # lowrank.value
            v = [code - 2 ** (s["bits_v"] - 1) for code in v]
            self.slices.append((s["rank"], scales[t :: len(self.p["slices"])], u, v))

    def add(self, acc: list[float]) -> None:
        stack, m, n = self.tensor.matrix()
        for r, scales, u, v in self.slices:  # lowrank.contribution
            for e in range(stack):
                for i in range(m):
                    left = u[(e * m + i) * r : (e * m + i + 1) * r]
                    for j in range(n):
                        right = v[(e * n + j) * r : (e * n + j + 1) * r]
                        dot = sum(a * b for a, b in zip(left, right, strict=True))  # an exact integer
                        x = (e * m + i) * n + j
                        acc[x] = acc[x] + float(dot) * scales[e]


class Factors(Component):
    """encodings/factors.md"""

    name = "factors"
    required: ClassVar = {"bands": "array", "group": "integer", "packing": "str", "scale": "str"}

    def check(self) -> None:
        p, (_, m, n) = self.p, self.tensor.matrix()
        # manifest.parameter/factors: "all keys are required, used or not", and all are checked
        self.allow(1 <= p["group"] <= 2**32, "group")
        self.allow(p["packing"] in PACKINGS, "packing")
        self.allow(p["scale"] in ARITHMETIC, "scale")
        self.allow(1 <= len(p["bands"]) <= 64, "bands")
        for band in p["bands"]:
            check_map(band, f"{self.where}: bands", {"code": "str", "rank": "integer"})
            self.allow(band["code"] in (*ARITHMETIC, *[f"Q{b}" for b in range(1, 9)]), "code")
            self.allow(1 <= band["rank"] <= min(m, n), "rank")

    def terms(self) -> int:
        return sum(band["rank"] for band in self.p["bands"])

    def make_parts(self) -> list[Part]:
        e, m, n = self.tensor.matrix()
        parts = []
        for t, band in enumerate(self.p["bands"]):
            rows = e * band["rank"]
            parts.append(Part(f"s{t}", 4, rows))
            parts += self.factor_parts(f"u{t}", f"u_scales{t}", band["code"], rows, m)
            parts += self.factor_parts(f"v{t}", f"v_scales{t}", band["code"], rows, n)
        return parts

    def factor_parts(self, name: str, scales_name: str, code: str, rows: int, length: int) -> list[Part]:
        if code in ARITHMETIC:
            return [Part(name, find_dtype(code, self.where).width, rows * length)]
        groups = (length + self.p["group"] - 1) // self.p["group"]  # H of U, G of V
        codes = Part(name, 1, packed_bytes(self.p["packing"], rows * length, int(code[1])))
        return [codes, Part(scales_name, find_dtype(self.p["scale"], self.where).width, rows * groups)]

    def read(self, items: list[bytes]) -> None:
        e, m, n = self.tensor.matrix()
        rest = iter(items)
        self.bands = []
        for band in self.p["bands"]:
            rows = e * band["rank"]
            s = widen("F32", next(rest))
            check_finite(s, self.where)  # payload.nonfinite/factors
            u = self.read_factor(rest, band["code"], rows, m)
            v = self.read_factor(rest, band["code"], rows, n)
            self.bands.append((band["rank"], s, u, v))

    def read_factor(self, rest: Iterable[bytes], code: str, rows: int, length: int) -> list[float]:
        """factors.value: the values of U or V, row by row."""
        items = iter(rest)
        if code in ARITHMETIC:
            values = widen(code, next(items))
            check_finite(values, self.where)  # payload.nonfinite/factors
            return values
        b, group = int(code[1]), self.p["group"]
        codes = unpack(self.p["packing"], next(items), rows * length, b, self.where)  # payload.padding-bits
        scales = widen(self.p["scale"], next(items))
        check_scales(scales, self.where)  # payload.scale/factors
        groups = (length + group - 1) // group
        return [(2 * q - (2**b - 1)) * scales[x // length * groups + x % length // group] for x, q in enumerate(codes)]

    def add(self, acc: list[float]) -> None:
        stack, m, n = self.tensor.matrix()
        for r, s, u, v in self.bands:  # factors.contribution
            for k in range(r):
                for e in range(stack):
                    row = e * r + k
                    v_row = v[row * n : (row + 1) * n]
                    for i in range(m):
                        a = u[row * m + i] * s[row]  # rounded to float64
                        x = (e * m + i) * n
                        # a * value is rounded to float64, then the sum: factors.fma
                        acc[x : x + n] = [old + a * value for old, value in zip(acc[x : x + n], v_row, strict=True)]


class Ulp(Component):
    """encodings/ulp.md"""

    name = "ulp"
    required: ClassVar = {"sort": "str"}

    def is_additive(self) -> bool:
        return False

    def check(self) -> None:
        dtype = self.tensor.dtype
        self.allow(dtype.ulp, f"ulp does not work on {dtype.name}")  # manifest.parameter/ulp
        # manifest.parameter/ulp-sort
        sorted_by = ("magnitude", "rows") if dtype.name in ARITHMETIC else ()
        self.allow(self.p["sort"] in ("none", *sorted_by), "sort")

    def make_parts(self) -> list[Part]:
        stack, m, _ = self.tensor.matrix()
        classes = [Part("classes", 1, stack * m)] if self.p["sort"] == "rows" else []
        return [*classes, Part("diff", self.tensor.dtype.width, self.tensor.elements)]

    def read(self, items: list[bytes]) -> None:
        self.classes = items[0]  # of no use where sort is not rows
        self.diff = to_ints(items[-1], self.tensor.dtype.width)

    def rewrite(self, bits: bytes) -> bytes:
        dtype = self.tensor.dtype
        patterns = to_ints(bits, dtype.width)
        elements = list(range(len(patterns)))
        if self.p["sort"] != "none":  # ulp.sort; Python's sort is stable
            s = {"F32": 15, "F16": 10, "BF16": 7}[dtype.name]
            keys = [bits % 2 ** (dtype.bits - 1) // 2**s for bits in patterns]
            _, _, n = self.tensor.matrix()
            classes = self.classes if self.p["sort"] == "rows" else bytes(len(elements))
            elements.sort(key=lambda x: (x // 2**18, classes[x // n], keys[x]))
        for x, z in zip(elements, self.diff, strict=True):  # ulp.decode
            d = z // 2 if z % 2 == 0 else -(z + 1) // 2
            o = (order(patterns[x], dtype.bits, dtype.kind) + d) % 2**dtype.bits
            patterns[x] = bits_of(o, dtype.bits, dtype.kind)
        return from_ints(patterns, dtype.width)


def order(bits: int, w: int, kind: str) -> int:
    half = 1 << w - 1
    if kind == "float":
        return (1 << w) - 1 - bits if bits >= half else bits + half
    return (bits + half) % (1 << w) if kind == "int" else bits


def bits_of(o: int, w: int, kind: str) -> int:
    half = 1 << w - 1
    if kind == "float":
        return o - half if o >= half else (1 << w) - 1 - o
    return (o + half) % (1 << w) if kind == "int" else o


# safe.no-code: a closed table of names
ENCODINGS: dict[str, type[Component]] = {c.name: c for c in (Dense, Sparse, Blockq, Lowrank, Factors, Ulp)}


def make_component(value: Any, tensor: Tensor, where: str) -> Component:
    """A component of MANIFEST: `encoding`, `sha256` and exactly the parameters of the encoding's page."""
    check_type(value, "map", where)
    name = value.get("encoding", "ulp")  # without a name check_map refuses the missing key
    check_type(name, "str", f"{where}: encoding")
    if name not in ENCODINGS:  # unsupported.encoding: its other keys are not judged
        raise Refusal("unsupported.encoding", f"{where}: the encoding {name} is not known")
    kind = ENCODINGS[name]
    p = check_map(value, where, {"encoding": "str", "sha256": "bin 32", **kind.required}, kind.optional)
    return kind(p, tensor, f"{where} ({kind.name})")
