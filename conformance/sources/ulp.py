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
    """Items by exponent: every dtype that may be sorted, both zeros and NaNs among the values; and a second span."""
    for dtype in ("BF16", "F16", "F32"):
        width = WIDTH[dtype][0] // 8
        start = from_items([pattern >> (32 - 8 * width) for pattern in STRAY], width)
        wanted = from_items([pattern >> (32 - 8 * width) for pattern in (*STRAY[5:], *STRAY[:5])], width)
        suite.accept(
            f"ulp-sorted-{dtype.lower()}",
            f"Items of {dtype} sorted by exponent, equal ones in order",
            single(oracle.ulp(start, wanted, dtype, "exponent"), dtype, [len(STRAY)], raw(dtype, [len(STRAY)], start)),
            "ulp.sort ulp.decode manifest.parameter/ulp-sort",
        )
    start = from_items([pattern >> 16 for pattern in STRAY], 2)
    component = oracle.ulp(
        start, from_items([pattern >> 16 for pattern in (*STRAY[5:], *STRAY[:5])], 2), "BF16", "exponent"
    )
    plain = oracle.Component("ulp", {"sort": "none"}, component.parts)
    of = suite.accept(
        "ulp-sorted",
        "Items of BF16 sorted by exponent, for readers that do not sort",
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
    span = 1 << 18
    start = from_items([(k * 40503) % 0x7F00 for k in range(span + 3)], 2)
    wanted = from_items([(k * 40503) % 0x7F00 + (k % 97 == 0) for k in range(span + 3)], 2)
    suite.accept(
        "ulp-sorted-spans",
        "A span of 2^18 elements and one of 3",
        single(oracle.ulp(start, wanted, "BF16", "exponent"), "BF16", [span + 3], raw("BF16", [span + 3], start)),
        "ulp.sort",
    )
    for dtype in ("F64", "F8_E4M3", "I16"):
        suite.reject(
            f"ulp-sorted-{dtype.lower()}",
            f"Items of {dtype} sorted by exponent",
            f"ulp-{dtype.lower()}",
            Change(manifest=[put("tensors/0/components/0/sort", "exponent")]),
            "manifest.parameter",
            "manifest.parameter/ulp-sort",
            op="validate",
        )
    for k, text in enumerate(("", "element", "Exponent")):
        suite.reject(
            f"ulp-sort-{k}",
            f"sort is {text!r}",
            "ulp-bf16",
            Change(manifest=[put("tensors/0/components/0/sort", text)]),
            "manifest.parameter",
            "manifest.parameter/ulp-sort",
            op="validate",
        )
