"""The encoding ``ulp``: steps on the line of values; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance import assemble as oracle
from conformance.assemble import WIDTH, bits_of, from_items
from conformance.assembler.draft import Change
from conformance.assembler.edits import put
from conformance.assembler.suite import Suite

from .encoding_words import thin
from .models import dense, lowrank, q, raw, single, tensor


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
                    {},
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
        component = {"encoding": "ulp", "sha256": bytes(32)}
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
            Change(manifest=[put("tensors/0/components/0", {"encoding": "ulp", "sha256": bytes(32)})]),
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
