"""The six encodings: every parameter at its borders, every refusal. One area each."""

from __future__ import annotations

from typing import Any

from conformance import assemble as oracle
from conformance.assemble import WIDTH, Entry, bits_of, from_items, pack
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import put
from conformance.assembler.suite import Suite

from .models import blockq, dense, dense_add, factors, lowrank, noise, power, q, raw, single, sparse, tensor

FLOATS = ("F32", "F16", "BF16")
BAD_SCALES = {
    "nan": {"F32": "0x7fc00000", "F16": "0x7e00", "BF16": "0x7fc0"}, "inf": {"F32": "0x7f800000", "F16": "0x7c00", "BF16": "0x7f80"},
    "minus-inf": {"F32": "0xff800000", "F16": "0xfc00", "BF16": "0xff80"},
    "minus-zero": {"F32": "0x80000000", "F16": "0x8000", "BF16": "0x8000"},
    "tiny": {"F32": "0x0d7fffff", "BF16": "0x0d7f"}, "subnormal": {"F32": "0x00000001", "BF16": "0x0001"},
    "minus-tiny": {"F32": "0x8d7fffff", "BF16": "0x8d7f"},
}  # fmt: skip


def parameter(suite: Suite, of: str, name: str, title: str, path: str, value: Any, requirement: str, code: str = "") -> None:
    edit = put(f"tensors/0/components/0/{path}", value)
    suite.reject(
        name, title, of, Change(manifest=[edit]), code or "manifest.parameter", f"{requirement} manifest.parameter",
        op="validate",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ dense


def dense_cases(suite: Suite) -> None:
    for dtype in FLOATS:
        for values in FLOATS:
            base = tensor(dtype, [2, 2], 1, -2, q(1, 4), 0)
            suite.accept(
                f"dense-add-{values.lower()}-to-{dtype.lower()}", f"{values} values added to a tensor of {dtype}",
                single(dense_add(values, q(1, 2), -1, q(1, 8), 3), dtype, [2, 2], base),
                "dense.add num.widen num.round manifest.parameter/dense-dtype payload.nonfinite/dense num.addressed",
            )  # fmt: skip
        for name, pattern in BAD_SCALES.items():
            if name in ("nan", "inf", "minus-inf"):
                suite.reject(
                    f"dense-add-{name}-{dtype.lower()}", f"A value of {dtype} to be added is {name.replace('-', ' ')}",
                    f"dense-add-{dtype.lower()}-to-f32",
                    Change(parts={"w/0/values": bits_of(dtype, 1, 1, 1, pattern[dtype])}), "payload.nonfinite",
                    "payload.nonfinite/dense", op="validate",
                )  # fmt: skip
        subnormal = {"F32": "0x00000001", "F16": "0x0001", "BF16": "0x0001"}[dtype]
        suite.accept(
            f"dense-add-subnormal-{dtype.lower()}", f"The smallest subnormal of {dtype} added to 0",
            single(dense_add(dtype, subnormal, subnormal), dtype, [2], tensor(dtype, [2], 0, "0x80000000" if dtype == "F32" else "0x8000")),
            "dense.add num.widen num.zero num.round",
        )  # fmt: skip
    suite.accept(
        "dense-replace-nan", "NaN payloads and signs put in place, to the bit",
        single(dense("F32", bits_of("F32", "0x7fa00001", "0xffffffff", "0x80000000", "0x7f800000")), "F32", [4],
               tensor("F32", [4], 1, 2, 3, 4)), "dense.replace",
    )  # fmt: skip
    suite.accept(
        "dense-replace-bool", "BOOL of 0 and 1", single(dense("BOOL", b"\0\1\1"), "BOOL", [3], raw("BOOL", [3], b"\1\0\1")),
        "dense.replace payload.value",
    )  # fmt: skip
    for value in (2, 7, 0x80, 0xFF):
        suite.reject(
            f"dense-replace-bool-{value}", f"A BOOL of {value}", "dense-replace-bool",
            Change(parts={"w/0/values": bytes([0, value, 1])}), "payload.value", "payload.value", op="validate",
        )  # fmt: skip
    suite.accept(
        "dense-replace-other-kind", "A base of another dtype and shape replaced",
        single(dense("U8", b"\1\2\3"), "U8", [3], tensor("F32", [2, 2], 1, 2, 3, 4)), "dense.replace num.start",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ sparse


def sparse_cases(suite: Suite) -> None:  # noqa: PLR0915 - a list
    n = 600
    base = raw("U8", [n], bytes(noise(n, 3)))
    escape = 255
    lists: dict[str, tuple[str, list[int]]] = {
        "none": ("no element", []), "first": ("the first element", [0]), "last": ("the last element, after two escapes", [599]),
        "254": ("element 254: the largest gap without escape", [254]), "255": ("element 255: an escape and a gap of 0", [255]),
        "255-after-0": ("element 256 after element 0: an escape and a gap of 0", [0, 256]),
        "509": ("element 509: an escape and a gap of 254", [509]), "510": ("element 510: two escapes", [510]),
        "neighbours": ("three neighbours", [7, 8, 9]), "many": ("every third element", list(range(0, n, 3))),
        "ends": ("the first and the last element", [0, 599]),
    }  # fmt: skip
    for name, (words, places) in lists.items():
        codes = gaps_of(places, escape)
        values = bytes((base.data[k] + 1) % 256 for k in places)
        suite.accept(
            f"sparse-gap8-{name}", f"gap8 lists {words}", single(sparse("gap8", codes, "U8", values), "U8", [n], base)
            if places else Model({"beside": base}, [Entry("w", "other", "", [sparse("gap8", [], "U8", b"")], ("U8", [n]))]),
            "sparse.gaps sparse.replace payload.position payload.position/escape payload.position/range "
            "manifest.parameter/sparse-gaps manifest.parameter/sparse-values",
        )  # fmt: skip
    large = 66000
    wide = raw("U8", [large], bytes(large))
    for name, places in (("65534", [65534]), ("65535", [65535]), ("65536-after-0", [0, 65536]), ("last", [3, 65999])):
        suite.accept(
            f"sparse-gap16-{name}", f"gap16 lists {' and '.join(map(str, places))} of 66000",
            single(sparse("gap16", gaps_of(places, 65535), "U8", bytes(range(1, 1 + len(places)))), "U8", [large], wide),
            "sparse.gaps sparse.replace payload.position/range",
        )  # fmt: skip
    for count in (1, 7, 8, 9, 16, 17):
        places = sorted({0, count // 2, count - 1})
        suite.accept(
            f"sparse-bitmap-{count}", f"A bitmap of {count} elements",
            single(sparse("bitmap", bitmap(places, count), "I16", from_items([7 + k for k in places], 2)), "I16", [count],
                   raw("I16", [count], bytes(2 * count))), "sparse.bitmap sparse.replace payload.padding-bits/bitmap",
        )  # fmt: skip
    suite.accept(
        "sparse-bitmap-all", "A bitmap that lists every element",
        single(sparse("bitmap", b"\xff\x03", "U8", bytes(range(1, 11))), "U8", [2, 5], raw("U8", [2, 5], bytes(10))),
        "sparse.bitmap sparse.replace",
    )  # fmt: skip
    for dtype in FLOATS:
        start = tensor(dtype, [5], 1, "0x80000000" if dtype == "F32" else "0x8000", 3, 0, -2)
        suite.accept(
            f"sparse-add-{dtype.lower()}", f"{dtype} values added to some elements, 0 to one that is -0",
            single(sparse("gap8", [1, 1], dtype, bits_of(dtype, 0, q(1, 2)), "add"), dtype, [5], start),
            "sparse.add num.addressed num.zero",
        )  # fmt: skip
        for name in ("nan", "inf", "minus-inf"):
            values = bits_of(dtype, 0, BAD_SCALES[name][dtype])
            suite.reject(
                f"sparse-add-{name}-{dtype.lower()}", f"A listed {dtype} value to be added is {name.replace('-', ' ')}",
                f"sparse-add-{dtype.lower()}", Change(parts={"w/0/values": values}), "payload.nonfinite",
                "payload.nonfinite/sparse", op="validate",
            )  # fmt: skip
    suite.accept(
        "sparse-add-unlisted-nan", "NaN in an element that is not listed",
        single(sparse("gap8", [0], "F32", bits_of("F32", 1), "add"), "F32", [3], tensor("F32", [3], 1, "0x7fc00123", "0xff800000")),
        "sparse.add num.addressed payload.nonfinite",
    )  # fmt: skip
    for dtype in ("F64", "C64", "I64", "BOOL", "F8_E5M2", "F8_E8M0", "U32"):
        width = WIDTH[dtype][0] // 8
        item = b"\1" if dtype == "BOOL" else bytes(range(9, 9 + width))
        suite.accept(
            f"sparse-replace-{dtype.lower()}", f"An element of {dtype} replaced",
            single(sparse("gap8", [1], dtype, item), dtype, [3], raw(dtype, [3], bytes(3 * width))),
            "sparse.replace manifest.parameter/sparse-dtype payload.value",
        )  # fmt: skip
    sparse_refusals(suite)


def gaps_of(places: list[int], escape: int) -> list[int]:
    found, at = [], 0
    for place in places:
        gap = place - at
        found += [escape] * (gap // escape) + [gap % escape]
        at = place + 1
    return found


def bitmap(places: list[int], count: int) -> bytes:
    return sum(1 << place for place in places).to_bytes((count + 7) // 8, "little")


def sparse_refusals(suite: Suite) -> None:
    of, n = "sparse-gap8-neighbours", 600
    for key, value, words in (
        ("index", "gap4", "index gap4"), ("index", "", "an empty index"), ("index", "Bitmap", "index Bitmap"),
        ("mode", "set", "mode set"), ("mode", "", "an empty mode"), ("count", n + 1, "a count above N"),
        ("count", (1 << 64) - 1, "a count of 2^64 - 1"),
    ):  # fmt: skip
        slug = f"sparse-{key}-{str(value).lower() or 'empty'}"
        parameter(suite, of, slug, f"sparse: {words}", key, value, "manifest.parameter/sparse-values")
    for dtype in ("F4", "F6_E2M3", "U16", "F32", "I8"):
        parameter(
            suite, of, f"sparse-dtype-{dtype.lower()}", f"sparse: a U8 tensor's elements replaced by {dtype}", "dtype", dtype,
            "manifest.parameter/sparse-dtype",
        )  # fmt: skip
    for dtype in ("F64", "I32", "F8_E4M3"):
        parameter(
            suite, "sparse-add-f32", f"sparse-add-of-{dtype.lower()}", f"sparse: values of {dtype} added", "dtype", dtype,
            "manifest.parameter/sparse-dtype",
        )  # fmt: skip
    parameter(suite, of, "sparse-gaps-below", "sparse: gaps one below count", "gaps", 2, "manifest.parameter/sparse-gaps")
    parameter(suite, of, "sparse-gaps-above", "sparse: gaps one above count + N // 255", "gaps", 6, "manifest.parameter/sparse-gaps")
    parameter(suite, of, "sparse-gaps-2-64", "sparse: gaps of 2^64 - 1", "gaps", (1 << 64) - 1, "manifest.parameter/sparse-gaps reader.arithmetic")
    parameter(suite, "sparse-bitmap-9", "sparse-gaps-bitmap", "sparse: gaps of 2 with a bitmap", "gaps", 2, "manifest.parameter/sparse-gaps")
    index = (
        ("range", "sparse-gap8-last", [255, 255, 90], "The position N", "payload.position/range"),
        ("range-far", "sparse-gap8-last", [255, 255, 254], "A position far above N", "payload.position/range"),
        ("ends-in-escape", "sparse-gap8-last", [255, 89, 255], "The last item is an escape", "payload.position/escape"),
        ("only-escapes", "sparse-gap8-last", [255, 255, 255], "Nothing but escapes", "payload.position payload.position/escape"),
        ("too-many", "sparse-gap8-last", [1, 1, 1], "Three elements listed, count is 1", "payload.position"),
        ("too-few", "sparse-gap8-neighbours", [255, 0, 0], "Two elements listed, count is 3", "payload.position"),
        ("second-past-end", "sparse-gap8-ends", [0, 255, 255, 89], "The last of two positions is N",
         "payload.position/range"),
    )  # fmt: skip
    for name, parent, codes, title, requirement in index:
        suite.reject(
            f"sparse-{name}", f"sparse: {title[0].lower()}{title[1:]}", parent,
            Change(parts={"w/0/index": bytes(codes)}), "payload.position", requirement, op="validate",
        )  # fmt: skip
    suite.reject(
        "sparse-gap16-range", "sparse: a gap16 position of N", "sparse-gap16-last",
        Change(parts={"w/0/index": from_items([3, 65535, 66000 - 4 - 65535], 2)}), "payload.position",
        "payload.position/range", op="validate",
    )  # fmt: skip
    suite.reject(
        "sparse-gap16-escape", "sparse: a gap16 index that ends in an escape", "sparse-gap16-last",
        Change(parts={"w/0/index": from_items([3, 9, 65535], 2)}), "payload.position", "payload.position/escape", op="validate",
    )  # fmt: skip
    for name, data, words, codes, requirement in (
        ("more", b"\xff\x01", "nine bits set, count is 3", "payload.position", "payload.position"),
        ("fewer", b"\x11\x00", "two bits set, count is 3", "payload.position", "payload.position"),
        ("spare", b"\x11\x02", "a bit set for element N in place of one within", "payload.padding-bits", "payload.padding-bits/bitmap"),
        ("spare-top", b"\x11\x81", "the highest spare bit set as a fourth", "payload.padding-bits payload.position",
         "payload.padding-bits/bitmap payload.padding-bits"),
    ):  # fmt: skip
        if name == "spare":
            codes = "payload.padding-bits payload.position"
        suite.reject(
            f"sparse-bitmap-{name}", f"sparse: a bitmap with {words}", "sparse-bitmap-9", Change(parts={"w/0/index": data}),
            codes, requirement, op="validate",
        )  # fmt: skip
    suite.reject(
        "sparse-bool-7", "sparse: a BOOL of 7", "sparse-replace-bool", Change(parts={"w/0/values": b"\7"}), "payload.value",
        "payload.value", op="validate",
    )  # fmt: skip
    suite.reject(
        "sparse-range-apply", "sparse: the position N, apply", "sparse-gap8-last", Change(parts={"w/0/index": bytes([255, 255, 90])}),
        "payload.position", "payload.position/range safe.no-result",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ blockq


def blockq_cases(suite: Suite) -> None:
    for bits in range(1, 9):
        for packing in ("stream", "lanes"):
            top = (1 << bits) - 1
            codes = [0, top, *noise(13, bits, top + 1)]
            base = tensor("F32", [3, 5], *[q(k, 8) for k in range(15)])
            for name, more in (("fixed", {"zero": top}), ("stored", {"zeros": [0, 2 * top, top, min(3, 2 * top), 1, 2]})):
                made = blockq(bits, codes, bits_of("F32", *[q(k - 2, 64) for k in range(6)]), 3, packing, **more)
                suite.accept(
                    f"blockq-{bits}-{packing}-{name}", f"{bits} bits, {packing}, groups of 3 in rows of 5, zero points {name}",
                    single(made, "F32", [3, 5], base),
                    f"blockq.contribution packing.{packing} payload.padding-bits payload.code payload.scale payload.scale/blockq "
                    "manifest.parameter/blockq num.matrix",
                )  # fmt: skip
    base = tensor("BF16", [2, 6], *range(12))
    for group in (1, 2, 4, 5, 6, 7, 1 << 32):
        groups = -(-6 // group)
        made = blockq(4, noise(12, group % 97, 16), bits_of("BF16", *[q(k + 1, 16) for k in range(2 * groups)]), group,
                      "lanes", "BF16", 15)  # fmt: skip
        suite.accept(
            f"blockq-group-{group}", f"Groups of {group} in rows of 6", single(made, "BF16", [2, 6], base),
            "blockq.contribution manifest.parameter/blockq reader.arithmetic",
        )  # fmt: skip
    for scale in FLOATS:
        made = blockq(2, [0, 1, 2, 3], bits_of(scale, q(1, 4), q(-1, 2)), 2, "stream", scale, 3)
        suite.accept(
            f"blockq-scale-{scale.lower()}", f"Scales of {scale}, one negative", single(made, "F16", [2, 2], tensor("F16", [2, 2], 1, 2, 3, 4)),
            "blockq.contribution payload.scale/blockq",
        )  # fmt: skip
    shapes: dict[str, list[int]] = {"scalar": [], "vector": [4], "stack": [2, 2, 3], "rank-4": [2, 1, 2, 2], "one-column": [4, 1]}
    for name, shape in shapes.items():
        count = oracle.numel(shape)
        stack, rows, cols = oracle.grid(shape)
        groups = stack * rows * -(-cols // 2)
        made = blockq(3, noise(count, 4, 8), bits_of("F32", *[q(k + 1, 32) for k in range(groups)]), 2, zero=7)
        suite.accept(
            f"blockq-{name}", f"blockq of shape {tuple(shape)}", single(made, "F32", shape, tensor("F32", shape, *range(count))),
            "num.matrix blockq.contribution",
        )  # fmt: skip
    small = blockq(1, [1, 0], bits_of("F32", power(-100), 0), 1, zero=1)
    suite.accept("blockq-scale-2-100", "A scale of 2^-100, and one of +0", single(small, "F32", [2], tensor("F32", [2], 0, 1)),
                 "payload.scale payload.scale/blockq")  # fmt: skip
    blockq_refusals(suite)


def blockq_refusals(suite: Suite) -> None:
    of = "blockq-3-stream-fixed"
    need = "manifest.parameter/blockq"
    for key, value in (
        ("bits", 0), ("bits", 9), ("bits", 255), ("bits", 1 << 32), ("group", 0), ("group", (1 << 32) + 1),
        ("group", (1 << 64) - 1), ("packing", "Stream"), ("packing", ""), ("packing", "planes"), ("scale", "F64"), ("scale", "F8_E4M3"),
        ("scale", "I16"), ("scale", "F4"), ("zero", 15), ("zero", (1 << 64) - 1),
    ):  # fmt: skip
        name = f"blockq-{key}-is-{str(value).lower() or 'empty'}" + ("-upper" if value == "Stream" else "")
        parameter(suite, of, name, f"blockq: {key} is {value!r}", key, value, need)
    parameter(suite, of, "blockq-scale-unknown", "blockq: a scale dtype that is not in the table", "scale", "F24", need, "manifest.parameter unsupported.dtype")
    for bits, zero in ((1, 3), (2, 7), (8, 511)):
        parameter(
            suite, f"blockq-{bits}-stream-fixed", f"blockq-zero-{bits}-{zero}", f"blockq: the zero point {zero} with {bits} bits",
            "zero", zero, need,
        )  # fmt: skip
    for bits in (1, 3, 8):
        top = 2 * ((1 << bits) - 1)
        for value in (top + 1, 65535):
            suite.reject(
                f"blockq-zeros-{bits}-{value}", f"blockq: a stored zero point of {value} with {bits} bits",
                f"blockq-{bits}-lanes-stored", Change(parts={"w/0/zeros": from_items([0, 0, 0, 0, 0, value], 2)}),
                "payload.code", "payload.code", op="validate",
            )  # fmt: skip
    for scale in FLOATS:
        for name, patterns in BAD_SCALES.items():
            if scale in patterns:
                suite.reject(
                    f"blockq-scale-{name}-{scale.lower()}", f"blockq: a scale of {scale} that is {name.replace('-', ' ')}",
                    f"blockq-scale-{scale.lower()}", Change(parts={"w/0/scales": bits_of(scale, 1, patterns[scale])}),
                    "payload.scale", "payload.scale payload.scale/blockq", op="validate",
                )  # fmt: skip
    padding(suite, "blockq", "codes", {
        f"{bits}-{packing}": (f"blockq-{bits}-{packing}-fixed", pack([0] * 15, bits, packing), bits, packing, 15)
        for bits in range(1, 8) for packing in ("stream", "lanes")
    })  # fmt: skip
    even = blockq(2, [0, 3, 1, 1], bits_of("F32", 1, q(1, 2)), 2, zero=2)
    suite.accept("blockq-even-zero", "An even zero point: a group of codes that mean 0",
                 single(even, "F32", [2, 2], tensor("F32", [2, 2], 1, 2, 3, "0x80000000")), "blockq.contribution num.zero")  # fmt: skip
    suite.reject(
        "blockq-unused-scale", "blockq: an infinite scale of a group whose codes all mean 0", "blockq-even-zero",
        Change(parts={"w/0/scales": bits_of("F32", 1, "0x7f800000")}), "payload.scale", "payload.scale/blockq",
        "Used or not.", op="validate",
    )  # fmt: skip


def padding(suite: Suite, encoding: str, part: str, cases_: dict[str, tuple[str, bytes, int, str, int]]) -> None:
    """Every spare bit that packed codes can have: the lowest and the highest, and in lanes those of the first byte."""
    for label, (of, clean, bits, packing, count) in cases_.items():
        spare = spare_bits(len(clean), bits, packing, count)
        for words, bit in {"lowest": spare[0], "highest": spare[-1]}.items() if spare else ():
            data = bytearray(clean)
            data[bit // 8] |= 1 << bit % 8
            suite.reject(
                f"{encoding}-spare-{label}-{words}", f"{encoding}: the {words} spare bit of {count} codes is set, {label.replace('-', ' bits, ')}",
                of, Change(parts={f"w/0/{part}": bytes(data)}), "payload.padding-bits",
                f"payload.padding-bits packing.{packing}", op="validate",
            )  # fmt: skip


def spare_bits(length: int, bits: int, packing: str, count: int) -> list[int]:
    if packing == "stream":
        return list(range(count * bits, 8 * length))
    lanes = 8 // bits
    used = {k // lanes * 8 + k % lanes * bits + b for k in range(count) for b in range(bits)}
    return [bit for bit in range(8 * length) if bit not in used]


# ------------------------------------------------------------------------------------------------ lowrank


def thin(rank: int, bu: int, bv: int, scales: bytes, shape: list[int], seed: int = 1) -> tuple[int, int, int, bytes, list[int], list[int]]:
    stack, rows, cols = oracle.grid(shape)
    return (
        rank, bu, bv, scales, noise(stack * rank * rows, seed, 1 << bu), noise(stack * rank * cols, seed + 50, 1 << bv),
    )  # fmt: skip


def lowrank_cases(suite: Suite) -> None:
    shape = [3, 4]
    base = tensor("F32", shape, *range(12))
    one = bits_of("F32", q(1, 128))
    for bits in range(1, 9):
        for packing in ("stream", "lanes"):
            made = lowrank([thin(3, bits, 9 - bits, one, shape, bits)], packing)
            suite.accept(
                f"lowrank-{bits}-{9 - bits}-{packing}", f"U of {bits} bits, V of {9 - bits}, {packing}, rank 3 of (3, 4)",
                single(made, "F32", shape, base),
                f"lowrank.value lowrank.contribution packing.{packing} manifest.parameter/lowrank payload.padding-bits "
                "payload.scale/lowrank num.exact-product",
            )  # fmt: skip
    extremes = lowrank([(1, 8, 8, bits_of("F32", 1), [0, 255, 128], [0, 255, 127, 128])])
    suite.accept("lowrank-extremes", "Codes of -128 and 127 on both sides", single(extremes, "F32", shape, base), "lowrank.value lowrank.contribution")
    order = [thin(1, 8, 8, bits_of("F32", power(k)), shape, 9 + k) for k in (20, -30, -5)]
    suite.accept("lowrank-slices-3", "Three slices of falling and rising scales", single(lowrank(order), "F32", shape, base),
                 "lowrank.contribution num.order")  # fmt: skip
    many = [thin(1, 1, 1, bits_of("F32", q(k + 1, 4096)), [1, 1], k) for k in range(64)]
    suite.accept("lowrank-slices-64", "64 slices", single(lowrank(many), "F32", [1, 1], tensor("F32", [1, 1], 1)),
                 "manifest.parameter/lowrank num.order reader.least")  # fmt: skip
    negative = lowrank([thin(2, 4, 4, bits_of("F32", q(-3, 256)), shape), thin(1, 4, 4, bits_of("F32", 0), shape)])
    suite.accept("lowrank-scales", "A negative scale and a scale of +0", single(negative, "F32", shape, base), "payload.scale/lowrank")
    shapes: dict[str, list[int]] = {
        "scalar": [], "vector": [5], "one-row": [1, 5], "one-column": [5, 1], "stack": [3, 2, 2], "rank-4": [2, 1, 2, 3],
    }  # fmt: skip
    for name, dims in shapes.items():
        stack, rows, cols = oracle.grid(dims)
        scales = bits_of("F32", *[q(k + 1, 64) for k in range(stack)])
        made = lowrank([thin(min(rows, cols), 5, 3, scales, dims)], "stream")
        suite.accept(
            f"lowrank-{name}", f"lowrank of shape {tuple(dims)}",
            single(made, "BF16", dims, tensor("BF16", dims, *range(oracle.numel(dims)))), "num.matrix lowrank.contribution",
        )  # fmt: skip
    lowrank_refusals(suite)


def lowrank_refusals(suite: Suite) -> None:
    of, need = "lowrank-4-5-lanes", "manifest.parameter/lowrank"
    for path, value in (
        ("packing", "Lanes"), ("packing", ""), ("slices", []), ("slices/0/bits_u", 0), ("slices/0/bits_u", 9), ("slices/0/bits_v", 0),
        ("slices/0/bits_v", 9), ("slices/0/bits_v", (1 << 64) - 1), ("slices/0/rank", 0), ("slices/0/rank", 4),
        ("slices/0/rank", (1 << 64) - 1),
    ):  # fmt: skip
        shown = "none" if value == [] else str(value).lower() or "empty"
        name = f"lowrank-{path.replace('/', '-').replace('_', '-')}-is-{shown}" + ("-upper" if value == "Lanes" else "")
        parameter(suite, of, name, f"lowrank: {path} is {value!r}", path, value, need + " reader.arithmetic")
    extra = {"bits_u": 1, "bits_v": 1, "rank": 1}
    suite.reject(
        "lowrank-slices-65", "lowrank: 65 slices", "lowrank-slices-64",
        Change(manifest=[{"insert": "tensors/0/components/0/slices/64", "value": extra}]), "manifest.parameter", need, op="validate",
    )  # fmt: skip
    zeros = Entry("w", "other", "", [], ("F32", [1025, 1025]))
    shrunk = Model({"w": raw("F32", [1026, 1025], bytes(4 * 1026 * 1025))}, [zeros])
    suite.accept("lowrank-large-matrix", "A matrix of zeros cut to (1025, 1025)", shrunk, "num.start manifest.components/none", op="validate")
    for rank, bu, bv, fine in ((1024, 8, 8, True), (1025, 8, 8, False), (1025, 8, 7, True)):
        item = {"encoding": "lowrank", "packing": "lanes", "sha256": bytes(32), "slices": [{"bits_u": bu, "bits_v": bv, "rank": rank}]}
        code = "storage.segments" if fine else "manifest.parameter"
        words = "at" if rank == 1024 else "below" if fine else "above"
        suite.reject(
            f"lowrank-product-{words}", f"lowrank: rank {rank}, {bu} and {bv} bits: {words} 2^24" + (", but no segment" if fine else ""),
            "lowrank-large-matrix", Change(manifest=[put("tensors/0/components", [item])]), code,
            "manifest.parameter/lowrank-product num.exact-product" + (" storage.segments" if fine else ""),
            "Legal up to 2^24, so only STORAGE is at fault." if fine else "", op="validate",
        )  # fmt: skip
    for name, patterns in BAD_SCALES.items():
        suite.reject(
            f"lowrank-scale-{name}", f"lowrank: a scale that is {name.replace('-', ' ')}", of,
            Change(parts={"w/0/scales0": bits_of("F32", patterns["F32"])}), "payload.scale", "payload.scale/lowrank payload.scale",
            op="validate",
        )  # fmt: skip
    padding(suite, "lowrank", "u0", {
        f"{bits}-{packing}": (f"lowrank-{bits}-{9 - bits}-{packing}", pack([0] * 9, bits, packing), bits, packing, 9)
        for bits in (1, 3, 4, 5, 7) for packing in ("stream", "lanes")
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------ factors


def factors_cases(suite: Suite) -> None:
    shape = [2, 3]
    base = tensor("F32", shape, 1, -1, 2, -2, 0, q(1, 4))
    s = bits_of("F32", q(3, 2))
    for code in FLOATS:
        made = factors([(code, 1, s, bits_of(code, q(1, 2), q(-1, 4)), bits_of(code, 1, q(1, 8), -2))])
        suite.accept(
            f"factors-{code.lower()}", f"A band of {code}", single(made, "BF16", shape, tensor("BF16", shape, 1, -1, 2, -2, 0, q(1, 4))),
            "factors.value factors.contribution manifest.parameter/factors payload.nonfinite/factors",
        )  # fmt: skip
    for bits in range(1, 9):
        for packing in ("stream", "lanes"):
            u, v = noise(4, bits, 1 << bits), noise(6, bits + 9, 1 << bits)
            made = factors(
                [(f"Q{bits}", 2, bits_of("F32", 1, q(1, 2)), (pack(u, bits, packing), bits_of("F16", q(1, 4), q(1, 8))),
                  (pack(v, bits, packing), bits_of("F16", q(1, 2), -1, q(5, 4), 0)))], 2, packing, "F16",
            )  # fmt: skip
            suite.accept(
                f"factors-q{bits}-{packing}", f"A band of {bits}-bit codes, {packing}, rank 2, groups of 2", single(made, "F32", shape, base),
                f"factors.value factors.contribution packing.{packing} payload.scale/factors payload.padding-bits num.order",
            )  # fmt: skip
    bands = [
        ("F32", 2, bits_of("F32", 1, power(-20)), bits_of("F32", 1, 3, 5, 7), bits_of("F32", 1, 2, 3, 5, 7, 9)),
        ("F16", 1, bits_of("F32", power(-30)), bits_of("F16", 1, 2), bits_of("F16", 3, 4, 5)),
        ("Q1", 1, bits_of("F32", 1), (pack([0, 1], 1, "lanes"), bits_of("BF16", q(1, 2))), (pack([1, 0, 1], 1, "lanes"), bits_of("BF16", 1))),
    ]  # fmt: skip
    suite.accept("factors-bands", "Three bands: F32 of rank 2, F16, 1 bit", single(factors(bands, 3, "lanes", "BF16"), "F32", shape, base),
                 "factors.contribution num.order")  # fmt: skip
    many = [("BF16", 1, bits_of("F32", q(k + 1, 64)), bits_of("BF16", 1), bits_of("BF16", q(1, 2))) for k in range(64)]
    suite.accept("factors-bands-64", "64 bands", single(factors(many), "F32", [1, 1], tensor("F32", [1, 1], 1)), "manifest.parameter/factors num.order")
    signed = tensor("F32", shape, 1, -1, 2, -2, "0x80000000", q(1, 4))
    for name, value in (("zero", 0), ("minus-zero", "0x80000000"), ("subnormal", "0x00000001"), ("tiny", "0x0d7fffff")):
        made = factors([("F32", 1, bits_of("F32", value), bits_of("F32", 1, 2), bits_of("F32", 1, 2, 3))])
        suite.accept(
            f"factors-s-{name}", f"S is {name.replace('-', ' ')}", single(made, "F32", shape, signed),
            "payload.scale/factors factors.value num.zero num.widen", "The rule for scales does not apply to S.",
        )  # fmt: skip
    for group in (1, 2, 3, 1 << 32):
        h, g = -(-2 // group), -(-3 // group)
        made = factors([("Q4", 1, s, (pack([3, 12], 4, "stream"), bits_of("F32", *[q(k + 1, 8) for k in range(h)])),
                         (pack([0, 15, 7], 4, "stream"), bits_of("F32", *[q(k + 1, 4) for k in range(g)])))], group, "stream")  # fmt: skip
        suite.accept(f"factors-group-{group}", f"Codes in groups of {group}", single(made, "F32", shape, base), "factors.value manifest.parameter/factors")
    stack = [2, 2, 2]
    made = factors([("F32", 1, bits_of("F32", 1, 2), bits_of("F32", 1, 2, 3, 4), bits_of("F32", 5, 6, 7, 8))])
    suite.accept("factors-stack", "A stack of two matrices", single(made, "F32", stack, tensor("F32", stack, *range(8))), "num.matrix factors.contribution")
    vector = factors([("F16", 1, s, bits_of("F16", 2), bits_of("F16", 1, 2, 3))])
    suite.accept("factors-vector", "A vector", single(vector, "F16", [3], tensor("F16", [3], 1, 2, 3)), "num.matrix factors.contribution")
    factors_refusals(suite)


def factors_refusals(suite: Suite) -> None:
    of, need = "factors-q3-lanes", "manifest.parameter/factors"
    for path, value in (
        ("bands", []), ("bands/0/code", "Q0"), ("bands/0/code", "Q9"), ("bands/0/code", "F64"), ("bands/0/code", "q4"), ("bands/0/code", ""),
        ("bands/0/code", "Q08"), ("bands/0/rank", 0), ("bands/0/rank", 3), ("bands/0/rank", (1 << 64) - 1), ("group", 0),
        ("group", (1 << 32) + 1), ("packing", "planes"), ("scale", "F64"), ("scale", ""),
    ):  # fmt: skip
        shown = "none" if value == [] else str(value).lower() or "empty"
        parameter(suite, of, f"factors-{path.replace('/', '-')}-is-{shown}", f"factors: {path} is {value!r}", path, value, need)
    for path, value in (("group", 0), ("packing", "x"), ("scale", "I8")):
        parameter(
            suite, "factors-f16", f"factors-unused-{path}", f"factors: {path} is {value!r} where no band is Q", path, value, need
        )
    extra = {"code": "BF16", "rank": 1}
    suite.reject(
        "factors-bands-65", "factors: 65 bands", "factors-bands-64",
        Change(manifest=[{"insert": "tensors/0/components/0/bands/64", "value": extra}]), "manifest.parameter", need, op="validate",
    )  # fmt: skip
    for part, dtype, count in (("s0", "F32", 1), ("u0", "F16", 2), ("v0", "F16", 3)):
        for name in ("nan", "inf", "minus-inf"):
            values = bits_of(dtype, *[1] * (count - 1), BAD_SCALES[name][dtype])
            suite.reject(
                f"factors-{part}-{name}", f"factors: an item of {part[0].upper()} is {name.replace('-', ' ')}", "factors-f16",
                Change(parts={f"w/0/{part}": values}), "payload.nonfinite", "payload.nonfinite/factors", op="validate",
            )  # fmt: skip
    for part, count in (("u_scales0", 2), ("v_scales0", 4)):
        for name in ("nan", "inf", "minus-zero"):
            values = bits_of("F16", *[1] * (count - 1), BAD_SCALES[name]["F16"])
            suite.reject(
                f"factors-{part.replace('_', '-')}-{name}", f"factors: a scale of {part[0].upper()} is {name.replace('-', ' ')}", of,
                Change(parts={f"w/0/{part}": values}), "payload.scale", "payload.scale/factors payload.scale", op="validate",
            )  # fmt: skip
    for part, count in (("u0", 4), ("v0", 6)):
        padding(suite, f"factors-{part[0]}", part, {
            f"{bits}-{packing}": (f"factors-q{bits}-{packing}", pack([0] * count, bits, packing), bits, packing, count)
            for bits in (1, 3, 5) for packing in ("stream", "lanes")
        })  # fmt: skip


# ------------------------------------------------------------------------------------------------ ulp


def ulp_cases(suite: Suite) -> None:
    for dtype, (bits, _) in WIDTH.items():
        if bits < 8 or dtype in ("BOOL", "C64"):
            continue
        half, top = 1 << (bits - 1), (1 << bits) - 1
        pairs = [(0, 0), (0, half), (half, 0), (half, half - 1), (top, 0), (0, top), (half - 1, half), (1, top - 1), (top, half),
                 (3, 5), (5, 3), (half + 3, 2)]  # fmt: skip
        start = from_items([a for a, _ in pairs], bits // 8)
        wanted = from_items([b for _, b in pairs], bits // 8)
        suite.accept(
            f"ulp-{dtype.lower()}", f"Every kind of step of {dtype}, over both ends of the line",
            single(oracle.ulp(start, wanted, dtype), dtype, [12], raw(dtype, [12], start)), "ulp.decode manifest.parameter/ulp",
        )  # fmt: skip
        suite.accept(
            f"ulp-{dtype.lower()}-items", f"Items of {dtype} at their borders: 0, 1, 2, the middle, the largest",
            single(oracle.Component("ulp", {}, [oracle.Part("diff", bits // 8, from_items([0, 1, 2, half - 1, half, top - 1, top], bits // 8))]),
                   dtype, [7], raw(dtype, [7], from_items([0, half, 7, 7, 7, 7, 7], bits // 8))), "ulp.decode", "Every item is legal.",
        )  # fmt: skip
    for dtype in ("BOOL", "C64"):
        width = WIDTH[dtype][0] // 8
        component = {"encoding": "ulp", "sha256": bytes(32)}
        name = f"ulp-on-{dtype.lower()}"
        suite.accept(
            f"{name}-replaced", f"A tensor of {dtype} replaced", single(dense(dtype, b"\1" * width), dtype, [1], raw(dtype, [1], bytes(width))),
            "dense.replace manifest.parameter/ulp",
        )  # fmt: skip
        suite.reject(
            name, f"ulp on a tensor of {dtype}", f"{name}-replaced", Change(manifest=[put("tensors/0/components/0", component)]),
            "manifest.parameter", "manifest.parameter/ulp manifest.parameter", op="validate",
        )  # fmt: skip
    for dtype in ("F4", "F6_E2M3", "F6_E3M2"):
        suite.reject(
            f"ulp-on-{dtype.lower()}", f"ulp on a tensor of {dtype}", f"dtype-{dtype.lower()}",
            Change(manifest=[put("tensors/0/components/0", {"encoding": "ulp", "sha256": bytes(32)})]), "manifest.parameter",
            "manifest.parameter/ulp", op="validate",
        )  # fmt: skip
    base = tensor("BF16", [2, 2], 1, 2, 3, 4)
    low = lowrank([thin(2, 4, 4, bits_of("F32", q(1, 64)), [2, 2])])
    made = oracle.make(base, "BF16", [2, 2], [low])
    wanted = from_items([p ^ 1 for p in oracle.items(made.data, 2)], 2)
    suite.accept("ulp-after-lowrank", "ulp after lowrank: it works on the rounded bits",
                 single([low, oracle.ulp(made.data, wanted, "BF16")], "BF16", [2, 2], base), "ulp.decode num.round manifest.components/order")  # fmt: skip
    suite.accept("ulp-of-nothing", "ulp on an added tensor: START is zeros",
                 single(oracle.ulp(bytes(4), bits_of("F32", q(-3)), "F32"), "F32", [1], None), "ulp.decode num.start")  # fmt: skip
