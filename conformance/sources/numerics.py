"""The arithmetic: roundings, zeros, order, START; and packs that promise what a faulty reader would make."""

from __future__ import annotations

from fractions import Fraction

from conformance import assemble as oracle
from conformance.assemble import Component, Tensor, bits_of, from_items, pack
from conformance.assembler.draft import Change, Model
from conformance.assembler.suite import Suite

from .models import blockq, dense, dense_add, factors, lowrank, noise, power, q, raw, single, sparse, tensor

FLOATS = {"F32": (24, 127, -126), "F16": (11, 15, -14), "BF16": (8, 127, -126)}  # precision, largest, smallest exponent
NEGATIVE_ZERO = {"F32": "0x80000000", "F16": "0x8000", "BF16": "0x8000"}
INFINITY = {"F32": "0x7f800000", "F16": "0x7c00", "BF16": "0x7f80"}
NAN = {"F32": "0x7fa12345", "F16": "0x7d01", "BF16": "0x7fa1"}


def bits(dtype: str, *patterns: int) -> bytes:
    return from_items(patterns, oracle.WIDTH[dtype][0] // 8)


def stepped(data: bytes, dtype: str, element: int, by: int = 1) -> bytes:
    """The same bits with one element's pattern moved by ``by``: what a misrounding makes."""
    patterns = oracle.items(data, oracle.WIDTH[dtype][0] // 8)
    patterns[element] += by
    return bits(dtype, *patterns)


def rounding(suite: Suite) -> None:
    for dtype, (precision, _, _) in FLOATS.items():
        if dtype == "F32":
            continue
        unit = power(1 - precision)  # the distance of values from 1 to 2
        values = [
            unit / 2,
            unit * 3 / 2,
            -unit / 4,
            unit / 2 + power(-22),
            unit * 3 / 2 - power(-22),
            unit / 2 - power(-23),
        ]
        made = single(dense_add("F32", *values), dtype, [6], tensor(dtype, [6], *[1] * 6))
        of = suite.accept(
            f"round-ties-{dtype.lower()}",
            f"Sums midway between two values of {dtype}, and just beside",
            made,
            "num.round dense.add",
            why="Ties go to the even significand.",
        )
        right = made.results["w"].data
        suite.twin(
            f"round-ties-away-{dtype.lower()}",
            f"The result of rounding ties away from zero to {dtype}",
            of,
            {"w": stepped(right, dtype, 0)},
            "num.round",
            "1 + u/2 is midway and goes to 1.",
        )
        suite.twin(
            f"round-truncated-{dtype.lower()}",
            f"The result of cutting to {dtype}",
            of,
            {"w": stepped(right, dtype, 1, -1)},
            "num.round",
            "1 + 3u/2 is midway and goes to 1 + 2u.",
        )
        double = single(dense_add("F32", unit / 2 + power(-30), 1), dtype, [2], tensor(dtype, [2], 1, 1))
        of = suite.accept(
            f"round-twice-{dtype.lower()}",
            f"A sum that rounds otherwise in one step than by way of F32 to {dtype}",
            double,
            "num.round",
            why="float64 to F32 first, then to the dtype.",
        )
        suite.twin(
            f"round-once-{dtype.lower()}",
            f"The result of one rounding from float64 to {dtype}",
            of,
            {"w": stepped(double.results["w"].data, dtype, 0)},
            "num.round reader.bits",
            "One rounding gives 1 + u.",
        )
    ties = [power(-24), power(-24) * 3, power(-24) + power(-50), power(-24) - power(-49), -power(-25), -power(-25) * 3]
    sums = factors([("F32", 1, bits_of("F32", 1), bits_of("F32", 1), bits_of("F32", *[_f32(t) for t in ties]))])
    made = single(sums, "F32", [6], tensor("F32", [6], *[1] * 6))
    suite.accept(
        "round-ties-f32", "float64 sums midway between two values of F32", made, "num.round factors.contribution"
    )
    wide = [dense_add("F32", power(-24)), dense_add("F32", power(-50)), dense_add("F32", power(-60))]
    suite.accept(
        "round-float64",
        "A term below half a unit of float64 beside one above",
        single(wide, "F32", [1], tensor("F32", [1], 1)),
        "num.round num.merge num.order",
    )


def _f32(value: Fraction) -> Fraction:
    return oracle.round_to(value, "F32")


def borders(suite: Suite) -> None:
    """Overflow, underflow, subnormals, signs of zero."""
    for dtype, (precision, most, least) in FLOATS.items():
        low = dtype.lower()
        top = (2 - power(1 - precision)) * power(most)
        half_unit = power(most - precision)
        # F32 values that reach exactly below the rounding boundary; for F32 itself the sum is a float64
        below = half_unit / 2
        made = single(dense_add("F32", below, -below, 1), dtype, [3], tensor(dtype, [3], top, -top, 1))
        of = suite.accept(
            f"overflow-below-{low}", f"Sums just within the range of {dtype}", made, "payload.overflow num.round"
        )
        suite.reject(
            f"overflow-at-{low}",
            f"A sum midway between the largest {dtype} and the next power of two",
            of,
            Change(parts={"w/0/values": bits_of("F32", half_unit, 0, 1)}),
            "payload.overflow",
            "payload.overflow num.round safe.no-result",
            op="apply",
        )
        suite.reject(
            f"overflow-negative-{low}",
            f"A sum below the lowest {dtype}",
            of,
            Change(parts={"w/0/values": bits_of("F32", 0, -half_unit * 2, 1)}),
            "payload.overflow",
            "payload.overflow",
            op="apply",
        )
        tiny = power(least - precision + 1)  # the smallest subnormal
        if dtype == "F32":
            small = factors(
                [
                    (
                        "F32",
                        1,
                        bits_of("F32", power(-24)),
                        bits_of("F32", tiny),
                        bits_of(
                            "F32",
                            q(1, 2) * power(24),
                            q(3, 2) * power(24),
                            -q(1, 2) * power(24),
                            power(24),
                            q(5, 8) * power(24),
                        ),
                    )
                ]
            )
        else:
            small = dense_add("F32", tiny / 2, tiny * 3 / 2, -tiny / 2, tiny, tiny * 5 / 8)
        made = single(small, dtype, [5], raw(dtype, [5], bytes(5 * oracle.WIDTH[dtype][0] // 8)))
        of = suite.accept(
            f"subnormal-{low}",
            f"Sums around the smallest subnormal of {dtype}",
            made,
            "num.round num.widen num.merge",
            why="Gradual underflow; a negative sum that rounds to zero is -0.",
        )
        right = oracle.items(made.results["w"].data, oracle.WIDTH[dtype][0] // 8)
        suite.twin(
            f"subnormal-flushed-{low}",
            f"The result of flushing subnormals of {dtype} to zero",
            of,
            {"w": bits(dtype, *[0 if p < 1 << (precision - 1) else p for p in right])},
            "num.round num.widen",
            "No flush to zero.",
        )
        suite.twin(
            f"underflow-positive-zero-{low}",
            f"The result of +0 for a negative sum that rounds to zero in {dtype}",
            of,
            {"w": bits(dtype, *[0 if k == 2 else p for k, p in enumerate(right)])},
            "num.round",
            "It gives -0.",
        )
        start = tensor(dtype, [4], NEGATIVE_ZERO[dtype], 0, NEGATIVE_ZERO[dtype], 1)
        zeros = single(dense_add("F32", NEGATIVE_ZERO["F32"], NEGATIVE_ZERO["F32"], 0, -1), dtype, [4], start)
        of = suite.accept(
            f"zero-{low}", f"Sums of zeros of both signs, and 1 - 1, in {dtype}", zeros, "num.zero dense.add"
        )
        suite.twin(
            f"zero-kept-negative-{low}",
            f"The result of keeping -0 + -0 = -0 in {dtype}",
            of,
            {"w": bits(dtype, 1 << (oracle.WIDTH[dtype][0] - 1), 0, 0, 0)},
            "num.zero",
            "The source -0 counts as +0.",
        )
        listed = sparse("gap8", [1], dtype, bits_of(dtype, 0), "add")
        made = single(listed, dtype, [4], start)
        of = suite.accept(
            f"addressed-{low}",
            f"Only listed elements are addressed, -0 and NaN stay elsewhere: {dtype}",
            single(listed, dtype, [4], tensor(dtype, [4], NEGATIVE_ZERO[dtype], NEGATIVE_ZERO[dtype], NAN[dtype], 1)),
            "num.addressed num.zero sparse.add",
        )
        wrong = oracle.items(made.results["w"].data, oracle.WIDTH[dtype][0] // 8)
        wrong[0], wrong[2] = 0, int(NAN[dtype], 16)
        suite.twin(
            f"addressed-all-{low}",
            f"The result of adding 0 to elements of {dtype} that are not listed",
            of,
            {"w": bits(dtype, *wrong)},
            "num.addressed",
            "START stays where nothing is added.",
        )
        for name, pattern in (("nan", NAN), ("infinity", INFINITY)):
            suite.reject(
                f"source-{name}-{low}",
                f"{name} in an addressed element of a base of {dtype}",
                of,
                Change(base={"w": _with(dtype, pattern[dtype])}, manifest=_rebound(suite, of, dtype, pattern[dtype])),
                "payload.nonfinite",
                "payload.nonfinite safe.no-result",
                op="apply",
            )


def _with(dtype: str, pattern: str) -> Tensor:
    return tensor(dtype, [4], NEGATIVE_ZERO[dtype], pattern, NAN[dtype], 1)


def _rebound(suite: Suite, of: str, dtype: str, pattern: str) -> list[dict[str, object]]:
    """The edits that bind a pack to the base with ``pattern`` in the addressed element."""
    base = dict(suite.cases[of].model.base) | {"w": _with(dtype, pattern)}
    plain = oracle.Pack("", base, []).manifest()["base"]
    return [{"put": "base", "value": plain}, {"put": "tensors/0/base/sha256", "value": base["w"].plain()["sha256"]}]


def order(suite: Suite) -> None:
    big = power(60)
    adds = [dense_add("F32", big), dense_add("F32", 1), dense_add("F32", -big), dense_add("F32", 1)]
    made = single(adds, "F32", [1], tensor("F32", [1], 5))
    of = suite.accept("order-components", "5 + 2^60 + 1 - 2^60 + 1: two terms are lost", made, "num.order num.merge")
    suite.twin(
        "order-components-exact",
        "The result of an exact sum of components",
        of,
        {"w": bits_of("F32", 7)},
        "num.order num.merge",
        "The sum is made term by term: 1, not 7.",
    )
    suite.twin(
        "order-components-merged",
        "The result of adding the components together before the source",
        of,
        {"w": bits_of("F32", 6)},
        "num.order num.merge",
        "The source is the first term.",
    )
    slices = [(1, 8, 8, bits_of("F32", s), [129], [129]) for s in (big, 1, -big, 1)]
    of = suite.accept(
        "order-slices",
        "Four slices of 2^60, 1, -2^60 and 1",
        single(lowrank(slices), "F32", [1, 1], tensor("F32", [1, 1], 0)),
        "num.order lowrank.contribution",
    )
    suite.twin(
        "order-slices-reversed",
        "The result of slices summed exactly",
        of,
        {"w": bits_of("F32", 2)},
        "num.order lowrank.contribution",
        "Slice after slice gives 1.",
    )
    square = factors(
        [
            (
                "F32",
                4,
                bits_of("F32", *[1] * 4),
                bits_of("F32", *[big] * 4, *[1] * 4, *[-big] * 4, *[1] * 4),
                bits_of("F32", *[1] * 16),
            )
        ]
    )
    made = single(square, "F32", [4, 4], raw("F32", [4, 4], bytes(64)))
    of = suite.accept(
        "order-ranks", "Four ranks of 2^60, 1, -2^60 and 1", made, "num.order factors.contribution factors.fma"
    )
    suite.twin(
        "order-ranks-exact",
        "The result of ranks summed before they reach the source",
        of,
        {"w": bits_of("F32", *[2] * 16)},
        "num.order factors.fma factors.contribution",
        "Rank after rank gives 1.",
    )
    above, below = 1 + power(-23), 1 - power(-23)
    fused = factors([("F32", 1, bits_of("F32", above), bits_of("F32", below), bits_of("F32", above))])
    of = suite.accept(
        "order-no-fma",
        "A product whose rounding shows",
        single(fused, "F32", [1, 1], tensor("F32", [1, 1], -above)),
        "factors.fma factors.contribution",
    )
    suite.twin(
        "order-fma",
        "The result of a fused multiply-add",
        of,
        {"w": bits("F32", 0xA8800001)},
        "factors.fma factors.contribution",
        "The product is rounded before it is added.",
    )
    # u * s is rounded before v: (1 + 2^-23)^3 has 70 bits
    three = factors(
        [
            ("F32", 1, bits_of("F32", above), bits_of("F32", above), bits_of("F32", above)),
            ("F32", 1, bits_of("F32", -1), bits_of("F32", 1), bits_of("F32", 1)),
            ("F32", 1, bits_of("F32", -power(-23)), bits_of("F32", 3), bits_of("F32", 1)),
            ("F32", 1, bits_of("F32", -power(-46)), bits_of("F32", 3), bits_of("F32", 1)),
        ]
    )
    of = suite.accept(
        "order-cube",
        "A cube minus its leading terms: what is left are the roundings",
        single(three, "F32", [1, 1], tensor("F32", [1, 1], "0x80000000")),
        "factors.contribution num.merge",
    )
    suite.twin(
        "order-cube-exact",
        "The result of an exact cube",
        of,
        {"w": bits_of("F32", power(-69))},
        "factors.contribution num.merge",
        "Both products are rounded to float64.",
    )
    products(suite)
    exact = blockq(8, [255, 254], bits_of("F32", 1 + power(-23), 1 - power(-24)), 1, zero=0)
    of = suite.accept(
        "exact-blockq",
        "Products of 9 and 24 bits in blockq",
        single(exact, "F32", [2], tensor("F32", [2], -510, -508)),
        "blockq.contribution num.merge",
    )
    suite.twin(
        "exact-blockq-f32",
        "The result of blockq products rounded to F32",
        of,
        {"w": bits_of("F32", 0, 0)},
        "num.merge blockq.contribution",
        "They must not be formed in F32.",
    )
    dot = lowrank([(2, 8, 8, bits_of("F32", 1 + power(-23)), [255, 0, 1, 255], [255, 0, 1, 255])])
    made = single(dot, "F32", [2, 2], tensor("F32", [2, 2], -32258, 32385, 32385, -32513))
    of = suite.accept(
        "exact-lowrank",
        "Dot products of full codes and a scale of 24 bits",
        made,
        "lowrank.value lowrank.contribution num.merge num.exact-product",
    )
    suite.twin(
        "exact-lowrank-f32",
        "The result of lowrank products rounded to F32",
        of,
        {"w": wrong_lowrank(made)},
        "num.merge num.exact-product lowrank.contribution",
        "The product with the scale is exact in float64.",
    )


def products(suite: Suite) -> None:
    """U times S has 56 bits: it is rounded before V comes, and S may not go to V."""
    su, s, sv = (q(numerator, 1 << 23) for numerator in (14837551, 10765405, 12574293))
    u, v = 255 * su, 255 * sv
    right = oracle.round_to(oracle.round_to(u * s, "F64") * v, "F64")
    other = oracle.round_to(u * oracle.round_to(s * v, "F64"), "F64")
    start = -_f32(right)
    top = (pack([255], 8, "lanes"), bits_of("F32", su)), (pack([255], 8, "lanes"), bits_of("F32", sv))
    made = single(factors([("Q8", 1, bits_of("F32", s), *top)]), "F32", [1, 1], tensor("F32", [1, 1], start))
    of = suite.accept(
        "order-u-s-v",
        "A product whose first two factors already round",
        made,
        "factors.contribution factors.value num.merge",
        "What is left after its leading bits are taken away shows the order.",
    )
    suite.twin(
        "order-s-v-first",
        "The result of S multiplied into V",
        of,
        {"w": bits_of("F32", _f32(other + start))},
        "factors.contribution",
        "U times S comes first.",
    )


def wrong_lowrank(model: Model) -> bytes:
    """Every sum made of F32 products."""
    component = (model.entries[0].components or [])[0]
    scale = oracle.value_of(oracle.items(component.part("scales").data, 4)[0], "F32")
    base = [oracle.value_of(p, "F32") for p in oracle.items(model.base["w"].data, 4)]
    u = [v - 128 for v in component.part("u0").data]
    v = [x - 128 for x in component.part("v0").data]
    dots = [u[i] * v[j] + u[2 + i] * v[2 + j] for i in range(2) for j in range(2)]
    return bits_of("F32", *[_f32(b + _f32(d * scale)) for b, d in zip(base, dots, strict=True)])


def faults(suite: Suite) -> None:
    """What common faults of a reader would make of a small component."""
    base = tensor("F32", [2, 3], *[0] * 6)
    codes = [0, 7, 3, 4, 1, 6]
    scales = bits_of("F32", 1, 8, 64, 512)
    made = single(blockq(3, codes, scales, 2, "stream", zeros=[7, 6, 0, 14]), "F32", [2, 3], base)
    of = suite.accept(
        "fault-blockq",
        "3-bit codes, short groups, a zero point each",
        made,
        "blockq.contribution packing.stream num.matrix layout.planes",
    )
    wrongs: dict[str, tuple[str, Component, str]] = {
        "zero-as-is": (
            "a zero point in whole steps",
            blockq(3, codes, scales, 2, zeros=[14, 12, 0, 14]),
            "blockq.contribution",
        ),
        "zero-ignored": ("no zero point", blockq(3, codes, scales, 2, zeros=[0, 0, 0, 0]), "blockq.contribution"),
        "groups-of-tensor": (
            "groups that run over the ends of rows",
            blockq(3, codes, bits_of("F32", 1, 8, 8, 64), 2, zeros=[7, 6, 6, 0]),
            "blockq.contribution num.matrix",
        ),
        "high-bits-first": (
            "codes read from the highest bit down",
            blockq(3, swapped_bits(codes, 3), scales, 2, zeros=[7, 6, 0, 14]),
            "packing.stream",
        ),
    }
    for name, (words, component, requirement) in wrongs.items():
        wrong = oracle.make(base, "F32", [2, 3], [component]).data
        suite.twin(
            f"fault-blockq-{name}",
            f"The result of {words} in blockq",
            of,
            {"w": wrong},
            requirement,
            f"A reader with {words} makes it.",
        )
    made = single(blockq(4, codes, scales, 2, "lanes", zero=15), "F32", [2, 3], base)
    of = suite.accept("fault-lanes", "4-bit codes in lanes", made, "packing.lanes blockq.contribution")
    nibbles = blockq(4, [7, 0, 4, 3, 6, 1], scales, 2, "lanes", zero=15)
    suite.twin(
        "fault-lanes-swapped",
        "The result of nibbles exchanged",
        of,
        {"w": oracle.make(base, "F32", [2, 3], [nibbles]).data},
        "packing.lanes",
        "The first code is in the lowest bits.",
    )
    u, v = [1, 6, 3, 0], [7, 2, 0, 5, 4, 1]
    made = single(lowrank([(2, 3, 3, bits_of("F32", 1), u, v)]), "F32", [2, 3], base)
    of = suite.accept("fault-lowrank", "Rank 2, 3-bit codes", made, "lowrank.value lowrank.contribution num.matrix")
    lows = {
        "two-complement": (
            "codes in two's complement",
            [(x + 4) % 8 for x in u],
            [(x + 4) % 8 for x in v],
            "lowrank.value",
        ),
        "u-transposed": ("U in the order (e, i, k)", [u[0], u[2], u[1], u[3]], v, "lowrank.contribution"),
        "v-transposed": ("V in the order (e, j, k)", u, [v[0], v[2], v[4], v[1], v[3], v[5]], "lowrank.contribution"),
    }
    for name, (words, wrong_u, wrong_v, requirement) in lows.items():
        component = lowrank([(2, 3, 3, bits_of("F32", 1), wrong_u, wrong_v)])
        suite.twin(
            f"fault-lowrank-{name}",
            f"The result of {words} in lowrank",
            of,
            {"w": oracle.make(base, "F32", [2, 3], [component]).data},
            requirement,
            f"A reader with {words} makes it.",
        )
    other_faults(suite)


def swapped_bits(codes: list[int], width: int) -> list[int]:
    """What is read when a run of bits is taken from the highest bit of each byte down."""
    data = pack(codes, width, "stream")
    run = "".join(f"{byte:08b}" for byte in data)
    return [int(run[k * width : k * width + width], 2) for k in range(len(codes))]


def other_faults(suite: Suite) -> None:
    base = tensor("BF16", [4], 1, NEGATIVE_ZERO["BF16"], -2, "0x7f80")
    wanted = bits("BF16", 0x3F7E, 0x0000, 0xC001, 0x7FC0)
    of = suite.accept(
        "fault-ulp",
        "Steps down, over zero, away from zero, to a NaN",
        single(oracle.ulp(base.data, wanted, "BF16"), "BF16", [4], base),
        "ulp.decode",
    )
    suite.twin(
        "fault-ulp-two-complement",
        "The result of steps on the patterns as integers",
        of,
        {"w": bits("BF16", 0x3F7E, 0x8001, 0xBFFF, 0x7FC0)},
        "ulp.decode",
        "The line is that of values, not of patterns.",
    )
    start = raw("U8", [260], bytes([9]) * 260)
    gaps = single(sparse("gap8", [2, 0, 255, 0], "U8", b"\1\2\3"), "U8", [260], start)
    of = suite.accept("fault-sparse", "gap8 with an escape", gaps, "sparse.gaps sparse.replace")
    shifted = bytearray(start.data)
    shifted[2], shifted[3], shifted[258] = 1, 2, 3
    suite.twin(
        "fault-sparse-escape-254",
        "The result of an escape that counts 254",
        of,
        {"w": bytes(shifted)},
        "sparse.gaps sparse.replace",
        "An escape counts 255.",
    )
    bits_ = single(sparse("bitmap", b"\x81\x02", "U8", b"\1\2\3"), "U8", [10], raw("U8", [10], bytes(10)))
    of = suite.accept("fault-bitmap", "A bitmap", bits_, "sparse.bitmap sparse.replace")
    suite.twin(
        "fault-bitmap-high-first",
        "The result of a bitmap read from the highest bit down",
        of,
        {"w": bytes([1, 0, 0, 0, 0, 0, 0, 2, 3, 0])},
        "sparse.bitmap",
        "Bit 0 is the least significant.",
    )
    q2 = (pack([3, 1], 2, "lanes"), bits_of("F32", 1))
    made = single(
        factors([("Q2", 1, bits_of("F32", 1), q2, (pack([0, 2, 3], 2, "lanes"), bits_of("F32", 1)))], 4),
        "F32",
        [2, 3],
        raw("F32", [2, 3], bytes(24)),
    )
    of = suite.accept("fault-factors", "2-bit codes in factors", made, "factors.value factors.contribution")
    suite.twin(
        "fault-factors-like-lowrank",
        "The result of codes read as lowrank reads them",
        of,
        {"w": bits_of("F32", *[a * b for a in (1, -1) for b in (-2, 0, 1)])},
        "factors.value",
        "A code q is 2q - 3.",
    )
    dense_wide = single(dense("I32", from_items([1, 2, 3], 4)), "I32", [3], None)
    of = suite.accept("fault-planes", "Three items of four bytes", dense_wide, "layout.planes dense.replace")
    content = b"".join(from_items([1, 2, 3], 4)[k::4] for k in range(4))
    suite.twin(
        "fault-planes-as-items",
        "The result of planes taken for items",
        of,
        {"w": content},
        "layout.planes dense.replace",
        "Plane p holds byte p of every item.",
    )
    add = single(dense_add("F16", q(1, 4)), "F32", [1], tensor("F32", [1], 1))
    of = suite.accept("fault-add", "An F16 value added to F32", add, "dense.add num.widen")
    suite.twin(
        "fault-add-replaces",
        "The result of a value put in the tensor's place",
        of,
        {"w": bits_of("F32", q(1, 4))},
        "dense.add",
        "The mode is add.",
    )
    unchanged = single(sparse("gap8", [0], "F32", bits_of("F32", 1), "add"), "F32", [1], tensor("F32", [1], 2))
    of = suite.accept("fault-sparse-add", "A value added to the only element", unchanged, "sparse.add")
    suite.twin(
        "fault-sparse-add-replaces",
        "The result of a listed value put in place",
        of,
        {"w": bits_of("F32", 1)},
        "sparse.add",
        "The mode is add.",
    )


def conversion(suite: Suite) -> None:
    """START: from dtype to dtype, row by row."""
    for old in FLOATS:
        values = [
            1,
            q(-5, 4),
            0,
            NEGATIVE_ZERO[old],
            INFINITY[old],
            _minus(old),
            NAN[old],
            "0x1",
            _largest(old),
            _tie(old),
        ]
        base = Tensor(old, [10], bits_of(old, *values))
        for new in FLOATS:
            if new == old:
                continue
            made = single([], new, [10], base)
            of = suite.accept(
                f"convert-{old.lower()}-{new.lower()}",
                f"{old} becomes {new} with no component",
                made,
                "num.convert num.start manifest.components/none",
                why="NaN becomes the quiet NaN, overflow infinity, zeros keep their sign.",
            )
            width = oracle.WIDTH[new][0] // 8
            wrong = oracle.items(made.results["w"].data, width)
            wrong[6] |= 1 if new != "F32" else 1 << 13
            suite.twin(
                f"convert-{old.lower()}-{new.lower()}-nan",
                f"The result of a NaN from {old} to {new} that keeps payload",
                of,
                {"w": from_items(wrong, width)},
                "num.convert num.start",
                "Every NaN becomes one NaN.",
            )
        finite = tensor(old, [3], 1, "0x1", NEGATIVE_ZERO[old])
        for new in FLOATS:
            adds = single(dense_add("F32", power(-20), 0, NEGATIVE_ZERO["F32"]), new, [3], finite)
            of = suite.accept(
                f"source-{old.lower()}-{new.lower()}",
                f"Values added to a source of {old}, the result {new}",
                adds,
                "num.source num.widen num.round num.zero",
                why="The source is read in the base's dtype, unrounded.",
            )
    unrounded = single(dense_add("F32", power(-10)), "BF16", [1], tensor("F32", [1], 1 + power(-8)))
    of = suite.accept(
        "source-unrounded",
        "An F32 source that BF16 does not hold, added to before rounding",
        unrounded,
        "num.source num.round",
    )
    start = oracle.make(tensor("F32", [1], 1 + power(-8)), "BF16", [1], []).data
    wrong = oracle.make(Tensor("BF16", [1], start), "BF16", [1], [dense_add("F32", power(-10))]).data
    suite.twin(
        "source-rounded-first",
        "The result of converting the source before adding",
        of,
        {"w": wrong},
        "num.source num.round",
        "The source is exact.",
    )
    suite.accept(
        "convert-equal-bits",
        "Equal dtypes: NaN payloads stay in appended and kept rows",
        single([], "F32", [3], tensor("F32", [2], "0x7fa00001", "0xff812345")),
        "num.convert num.start",
    )


def _minus(dtype: str) -> str:
    return hex(int(INFINITY[dtype], 16) | 1 << (oracle.WIDTH[dtype][0] - 1))


def _largest(dtype: str) -> str:
    return hex(int(INFINITY[dtype], 16) - 1)


def _tie(dtype: str) -> Fraction:
    """Midway between two values of the narrower formats, where the dtype holds it."""
    return {"F32": 1 + power(-8), "F16": 1 + power(-8), "BF16": 1 + power(-7)}[dtype]


def rows(suite: Suite) -> None:
    base = tensor("BF16", [3, 2], 1, 2, 3, 4, 5, 6)
    add = {n: dense_add("F32", *[q(1, 4)] * (2 * n)) for n in (2, 5)}
    for n, words in ((2, "cut to two"), (5, "continued to five")):
        of = suite.accept(
            f"rows-{n}",
            f"Three rows {words}, nothing added",
            single([], "BF16", [n, 2], base),
            "num.start manifest.components/none",
        )
        if n == 5:
            suite.twin(
                "rows-repeated",
                "The result of new rows that repeat the last one",
                of,
                {"w": bits_of("BF16", *range(1, 7), 5, 6, 5, 6)},
                "num.start",
                "New rows are zero.",
            )
        suite.accept(
            f"rows-{n}-added",
            f"Three rows {words}, then added to",
            single(add[n], "BF16", [n, 2], base),
            "num.source num.start dense.add",
        )
        suite.accept(
            f"rows-{n}-converted",
            f"Three rows {words} and converted to F32",
            single([], "F32", [n, 2], base),
            "num.start num.convert",
        )
        suite.accept(
            f"rows-{n}-ulp",
            f"Three rows {words}, then ulp",
            single(
                oracle.ulp(base.data[: 4 * n].ljust(4 * n, b"\0"), bits_of("BF16", *range(2, 2 + 2 * n)), "BF16"),
                "BF16",
                [n, 2],
                base,
            ),
            "num.start ulp.decode",
        )
    for name, shape, old in (
        ("columns", [3, 3], base),
        ("rank", [6], base),
        ("transposed", [2, 3], base),
        ("scalar", [1], tensor("BF16", [], 7)),
    ):
        count = oracle.numel(shape)
        made = single(dense_add("F32", *[1] * count), "BF16", shape, old)
        of = suite.accept(
            f"rows-other-{name}",
            f"A base that is not compatible, {name}: START is zeros",
            made,
            "num.start num.source dense.add",
        )
        kept = [oracle.value_of(p, "BF16") for p in oracle.items(old.data, 2)][:count]
        wrong = bits_of("BF16", *[x + 1 for x in kept], *[1] * (count - len(kept)))
        suite.twin(
            f"rows-other-{name}-kept",
            f"The result of a base that is not compatible and kept, {name}",
            of,
            {"w": wrong},
            "num.start num.source",
            "START is zero bytes throughout.",
        )
    nan = tensor("F32", [2], "0x7fc00000", "0x7f800000")
    suite.accept(
        "rows-other-dtype",
        "An I32 base under an F32 result: START is zeros",
        single(dense_add("F32", 1, 2), "F32", [2], raw("I32", [2], nan.data)),
        "num.start num.source payload.nonfinite",
    )
    ints = raw("I16", [2, 2], bytes(range(8)))
    suite.accept("rows-integers", "Rows of an integer tensor appended", single([], "I16", [3, 2], ints), "num.start")
    suite.accept(
        "rows-f4",
        "Rows of F4 appended, two elements a byte",
        single([], "F4", [4, 2], raw("F4", [2, 2], b"\x21\x43")),
        "num.start manifest.shape",
    )
    suite.accept(
        "rows-f6",
        "Rows of F6_E2M3 cut: 12 bytes to 6",
        single([], "F6_E2M3", [2, 4], raw("F6_E2M3", [4, 4], bytes(range(1, 13)))),
        "num.start manifest.shape",
    )
    suite.accept(
        "rows-to-zero",
        "All rows cut",
        single([], "F32", [0], tensor("F32", [2], 1, 2)),
        "num.start manifest.components/empty-tensor",
    )
    suite.accept(
        "rows-from-zero", "Rows appended to none", single([], "F32", [2, 2], raw("F32", [0, 2], b"")), "num.start"
    )
    stacked = tensor("F32", [2, 2, 2], *range(8))
    suite.accept(
        "rows-stack", "A matrix appended to a stack", single([], "F32", [3, 2, 2], stacked), "num.start num.matrix"
    )
    large = tensor("BF16", [64, 48], *[q(k - 128, 64) for k in noise(64 * 48, 11)])
    scales = bits_of("F32", *[q(k + 1, 512) for k in noise(64 * 3, 12)])
    many = blockq(4, noise(64 * 48, 13, 16), scales, 16, "lanes", zero=15)
    low = lowrank([(4, 6, 5, bits_of("F32", power(-14)), noise(4 * 64, 14, 64), noise(4 * 48, 15, 32))], "stream")
    suite.accept(
        "large-mixed",
        "3072 elements: blockq, lowrank, then ulp",
        single([many, low, _random_ulp(large)], "BF16", [64, 48], large),
        "reader.bits num.order blockq.contribution lowrank.contribution ulp.decode",
        wall_s=20,
    )


def _random_ulp(like: Tensor) -> Component:
    return Component(
        "ulp", {"sort": "none"}, [oracle.Part("diff", 2, from_items(noise(oracle.numel(like.shape), 16, 5), 2))]
    )


def widening(suite: Suite) -> None:
    for dtype in FLOATS:
        patterns = ["0x1", "0x3", hex(int(NEGATIVE_ZERO[dtype], 16) | 1), NEGATIVE_ZERO[dtype]]
        made = single(dense_add(dtype, *patterns), "F32", [4], tensor("F32", [4], 0, 0, 0, NEGATIVE_ZERO["F32"]))
        suite.accept(f"widen-{dtype.lower()}", f"Subnormal values of {dtype} widened", made, "num.widen dense.add")
        base = tensor(dtype, [4], *patterns)
        suite.accept(
            f"widen-source-{dtype.lower()}",
            f"A base of subnormals of {dtype} with 0 added",
            single(dense_add("F32", 0, 0, 0, 0), dtype, [4], base),
            "num.widen num.zero num.source",
        )
    scale = bits_of("F16", "0x1", "0x8001")
    suite.accept(
        "widen-scale-f16",
        "Subnormal F16 scales: 2^-24 is above 2^-100",
        single(blockq(1, [0, 1], scale, 1, scale="F16", zero=1), "F32", [2], tensor("F32", [2], 0, 0)),
        "num.widen payload.scale",
    )


def cases(suite: Suite) -> None:
    rounding(suite)
    borders(suite)
    order(suite)
    faults(suite)
    conversion(suite)
    rows(suite)
    widening(suite)
