"""The encoding ``ulp``: steps on the line of values; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance import assemble as oracle
from conformance.assemble import WIDTH, bits_of, from_items
from conformance.assembler.draft import Change
from conformance.assembler.edits import put
from conformance.assembler.suite import Suite

from .encoding_words import thin
from .models import dense, lowrank, q, raw, single, tensor

# bit patterns of F32 whose upper halves are those of BF16 and F16: out of order, both signs, zeros, a NaN, subnormals
STRAY = (0x40490FDB, 0xBF800000, 0x00000000, 0x7FC00001, 0x3F800000, 0x80000000, 0x40490FDB, 0xC0A00000, 0x00010001)


def cases(suite: Suite) -> None:
    for dtype, (bits, _) in WIDTH.items():
        if bits < 8 or dtype in ("BOOL", "C64"):
            continue
        half, top = 1 << (bits - 1), (1 << bits) - 1
        pairs = [
            (0, 0),
            (0, half),
            (half, 0),
            (half, half - 1),
            (top, 0),
            (0, top),
            (half - 1, half),
            (1, top - 1),
            (top, half),
            (3, 5),
            (5, 3),
            (half + 3, 2),
        ]
        start = from_items([a for a, _ in pairs], bits // 8)
        wanted = from_items([b for _, b in pairs], bits // 8)
        suite.accept(
            f"ulp-{dtype.lower()}",
            f"Every kind of step of {dtype}, over both ends of the line",
            single(oracle.ulp(start, wanted, dtype), dtype, [12], raw(dtype, [12], start)),
            "ulp.decode manifest.parameter/ulp",
        )
        suite.accept(
            f"ulp-{dtype.lower()}-items",
            f"Items of {dtype} at their borders: 0, 1, 2, the middle, the largest",
            single(
                oracle.Component(
                    "ulp",
                    {"sort": "none"},
                    [oracle.Part("diff", bits // 8, from_items([0, 1, 2, half - 1, half, top - 1, top], bits // 8))],
                ),
                dtype,
                [7],
                raw(dtype, [7], from_items([0, half, 7, 7, 7, 7, 7], bits // 8)),
            ),
            "ulp.decode",
            "Every item is legal.",
        )
    for dtype in ("BOOL", "C64"):
        width = WIDTH[dtype][0] // 8
        component = {"encoding": "ulp", "sha256": bytes(32), "sort": "none"}
        name = f"ulp-on-{dtype.lower()}"
        suite.accept(
            f"{name}-replaced",
            f"A single {dtype} replaced, for want of ulp",
            single(dense(dtype, b"\1" * width), dtype, [1], raw(dtype, [1], bytes(width))),
            "dense.replace manifest.parameter/ulp",
        )
        suite.reject(
            name,
            f"ulp on a tensor of {dtype}",
            f"{name}-replaced",
            Change(manifest=[put("tensors/0/components/0", component)]),
            "manifest.parameter",
            "manifest.parameter/ulp manifest.parameter",
            op="validate",
        )
    for dtype in ("F4", "F6_E2M3", "F6_E3M2"):
        suite.reject(
            f"ulp-on-{dtype.lower()}",
            f"ulp on a tensor of {dtype}",
            f"dtype-{dtype.lower()}",
            Change(manifest=[put("tensors/0/components/0", {"encoding": "ulp", "sha256": bytes(32), "sort": "none"})]),
            "manifest.parameter",
            "manifest.parameter/ulp",
            op="validate",
        )
    base = tensor("BF16", [2, 2], 1, 2, 3, 4)
    low = lowrank([thin(2, 4, 4, bits_of("F32", q(1, 64)), [2, 2])])
    made = oracle.make(base, "BF16", [2, 2], [low])
    wanted = from_items([p ^ 1 for p in oracle.items(made.data, 2)], 2)
    suite.accept(
        "ulp-after-lowrank",
        "ulp after lowrank: it works on the rounded bits",
        single([low, oracle.ulp(made.data, wanted, "BF16")], "BF16", [2, 2], base),
        "ulp.decode num.round manifest.components/order",
    )
    suite.accept(
        "ulp-of-nothing",
        "ulp on an added tensor: START is zeros",
        single(oracle.ulp(bytes(4), bits_of("F32", q(-3)), "F32"), "F32", [1], None),
        "ulp.decode num.start",
    )
    sorted_cases(suite)


def sorted_cases(suite: Suite) -> None:
    """Items by magnitude: every dtype that may be sorted, both zeros and NaNs among the values; and a second span."""
    for dtype in ("BF16", "F16", "F32"):
        width = WIDTH[dtype][0] // 8
        start = from_items([pattern >> (32 - 8 * width) for pattern in STRAY], width)
        wanted = from_items([pattern >> (32 - 8 * width) for pattern in (*STRAY[5:], *STRAY[:5])], width)
        suite.accept(
            f"ulp-sorted-{dtype.lower()}",
            f"Items of {dtype} sorted by magnitude, equal ones in order",
            single(oracle.ulp(start, wanted, dtype, "magnitude"), dtype, [len(STRAY)], raw(dtype, [len(STRAY)], start)),
            "ulp.sort ulp.decode manifest.parameter/ulp-sort",
        )
    start = from_items([pattern >> 16 for pattern in STRAY], 2)
    component = oracle.ulp(
        start, from_items([pattern >> 16 for pattern in (*STRAY[5:], *STRAY[:5])], 2), "BF16", "magnitude"
    )
    plain = oracle.Component("ulp", {"sort": "none"}, component.parts)
    of = suite.accept(
        "ulp-sorted",
        "Items of BF16 sorted by magnitude, for readers that do not sort",
        single(component, "BF16", [len(STRAY)], raw("BF16", [len(STRAY)], start)),
        "ulp.sort",
    )
    suite.twin(
        "ulp-sorted-ignored",
        "The result of taking sorted items in the order of the elements",
        of,
        {"w": oracle.make(raw("BF16", [len(STRAY)], start), "BF16", [len(STRAY)], [plain]).data},
        "ulp.sort",
        "A reader that ignores `sort` makes it.",
    )
    ones = from_items([0x3FC00000, 0x3F800001, 0x3F808000, 0x3F800000, 0x3F807FFF], 4)
    suite.accept(
        "ulp-sorted-fraction",
        "Items of F32 sorted by exponent and 8 bits of the fraction, no more",
        single(oracle.ulp(ones, ones[::-1], "F32", "magnitude"), "F32", [5], raw("F32", [5], ones)),
        "ulp.sort",
    )
    span = 1 << 18
    start = from_items([(k * 40503) % 0x7F00 for k in range(span + 3)], 2)
    wanted = from_items([(k * 40503) % 0x7F00 + (k % 97 == 0) for k in range(span + 3)], 2)
    suite.accept(
        "ulp-sorted-spans",
        "A span of 2^18 elements and one of 3",
        single(oracle.ulp(start, wanted, "BF16", "magnitude"), "BF16", [span + 3], raw("BF16", [span + 3], start)),
        "ulp.sort",
    )
    row_cases(suite)
    for dtype in ("F64", "F8_E4M3", "I16"):
        suite.reject(
            f"ulp-sorted-{dtype.lower()}",
            f"Items of {dtype} sorted by magnitude",
            f"ulp-{dtype.lower()}",
            Change(manifest=[put("tensors/0/components/0/sort", "magnitude")]),
            "manifest.parameter",
            "manifest.parameter/ulp-sort",
            op="validate",
        )
    for k, text in enumerate(("", "element", "Magnitude", "exponent", "row")):
        suite.reject(
            f"ulp-sort-{k}",
            f"sort is {text!r}",
            "ulp-bf16",
            Change(manifest=[put("tensors/0/components/0/sort", text)]),
            "manifest.parameter",
            "manifest.parameter/ulp-sort",
            op="validate",
        )


def row_cases(suite: Suite) -> None:
    """Items by the class of their row: stacks, rows cut by a span, classes out of order, and what ignores them."""
    for dtype in ("BF16", "F16", "F32"):
        width = WIDTH[dtype][0] // 8
        start = from_items([pattern >> (32 - 8 * width) for pattern in STRAY], width)
        wanted = from_items([pattern >> (32 - 8 * width) for pattern in (*STRAY[4:], *STRAY[:4])], width)
        suite.accept(
            f"ulp-rows-{dtype.lower()}",
            f"Items of {dtype} by rows of the classes 16, 1, 255",
            single(oracle.ulp(start, wanted, dtype, "rows", b"\x10\1\xff"), dtype, [3, 3], raw(dtype, [3, 3], start)),
            "ulp.sort ulp.decode num.matrix manifest.parameter/ulp-sort",
            "Every class is legal.",
        )
    upper = [pattern >> 16 for pattern in STRAY]
    start, wanted = from_items(upper * 4, 2), from_items([*upper[3:], *upper[:3]] * 4, 2)
    base = raw("BF16", [2, 3, 6], start)
    component = oracle.ulp(start, wanted, "BF16", "rows", bytes([2, 0, 1, 0, 2, 1]))
    model = single(component, "BF16", [2, 3, 6], base)
    of = suite.accept("ulp-rows-stack", "A stack of two matrices, three classes", model, "ulp.sort num.matrix")
    wrong = (
        ("ignored", "magnitude", [0] * 6, "A reader that sorts by the key alone makes it."),
        ("descending", "rows", [0, 2, 1, 2, 0, 1], "A reader that begins with the highest class makes it."),
        ("of-matrices", "rows", [2, 0, 1, 2, 0, 1], "A reader that takes the first matrix's classes for all makes it."),
    )
    for name, sort, classes, why in wrong:
        parts = [oracle.Part("classes", 1, bytes(classes)), component.part("diff")]
        made = oracle.make(base, "BF16", [2, 3, 6], [oracle.Component("ulp", {"sort": sort}, parts)]).data
        suite.twin(
            f"ulp-rows-{name}", f"The result of classes {name.replace('-', ' ')}", of, {"w": made}, "ulp.sort", why
        )
    suite.accept(
        "ulp-rows-of-one",
        "A tensor of one dimension is one row",
        single(oracle.ulp(start, wanted, "BF16", "rows", b"\7"), "BF16", [36], raw("BF16", [36], start)),
        "ulp.sort num.matrix",
    )
    cols, count = 1000, 300  # a span ends within row 262
    values = [(k * 40503) % 0x7F00 for k in range(cols * count)]
    start = from_items(values, 2)
    wanted = from_items([value + (k % 89 == 0) for k, value in enumerate(values)], 2)
    classes = bytes(k * 7 % 5 for k in range(count))
    suite.accept(
        "ulp-rows-spans",
        "A span ends within a row",
        single(
            oracle.ulp(start, wanted, "BF16", "rows", classes), "BF16", [count, cols], raw("BF16", [count, cols], start)
        ),
        "ulp.sort",
    )
    suite.reject(
        "ulp-rows-no-classes",
        "sort says rows, the content has no classes",
        "ulp-sorted-bf16",
        Change(manifest=[put("tensors/0/components/0/sort", "rows")]),
        "storage.chunk-table",
        "storage.chunk-table",
        op="validate",
    )
    suite.reject(
        "ulp-rows-f64",
        "Items of F64 by rows",
        "ulp-f64",
        Change(manifest=[put("tensors/0/components/0/sort", "rows")]),
        "manifest.parameter",
        "manifest.parameter/ulp-sort",
        op="validate",
    )
