"""The encoding ``dense``: values for every element; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance.assemble import bits_of
from conformance.assembler.draft import Change
from conformance.assembler.suite import Suite

from .encoding_words import BAD_SCALES, FLOATS
from .models import dense, dense_add, q, raw, single, tensor


def cases(suite: Suite) -> None:
    for dtype in FLOATS:
        for values in FLOATS:
            base = tensor(dtype, [2, 2], 1, -2, q(1, 4), 0)
            suite.accept(
                f"dense-add-{values.lower()}-to-{dtype.lower()}",
                f"{values} values added to a tensor of {dtype}",
                single(dense_add(values, q(1, 2), -1, q(1, 8), 3), dtype, [2, 2], base),
                "dense.add num.widen num.round manifest.parameter/dense-dtype payload.nonfinite/dense num.addressed",
            )
        for name, pattern in BAD_SCALES.items():
            if name in ("nan", "inf", "minus-inf"):
                suite.reject(
                    f"dense-add-{name}-{dtype.lower()}",
                    f"A value of {dtype} to be added is {name.replace('-', ' ')}",
                    f"dense-add-{dtype.lower()}-to-f32",
                    Change(parts={"w/0/values": bits_of(dtype, 1, 1, 1, pattern[dtype])}),
                    "payload.nonfinite",
                    "payload.nonfinite/dense",
                    op="validate",
                )
        subnormal = {"F32": "0x00000001", "F16": "0x0001", "BF16": "0x0001"}[dtype]
        suite.accept(
            f"dense-add-subnormal-{dtype.lower()}",
            f"The smallest subnormal of {dtype} added to 0",
            single(
                dense_add(dtype, subnormal, subnormal),
                dtype,
                [2],
                tensor(dtype, [2], 0, "0x80000000" if dtype == "F32" else "0x8000"),
            ),
            "dense.add num.widen num.zero num.round",
        )
    suite.accept(
        "dense-replace-nan",
        "NaN payloads and signs put in place, to the bit",
        single(
            dense("F32", bits_of("F32", "0x7fa00001", "0xffffffff", "0x80000000", "0x7f800000")),
            "F32",
            [4],
            tensor("F32", [4], 1, 2, 3, 4),
        ),
        "dense.replace",
    )
    suite.accept(
        "dense-replace-bool",
        "BOOL of 0 and 1",
        single(dense("BOOL", b"\0\1\1"), "BOOL", [3], raw("BOOL", [3], b"\1\0\1")),
        "dense.replace payload.value",
    )
    for value in (2, 7, 0x80, 0xFF):
        suite.reject(
            f"dense-replace-bool-{value}",
            f"A BOOL of {value}",
            "dense-replace-bool",
            Change(parts={"w/0/values": bytes([0, value, 1])}),
            "payload.value",
            "payload.value",
            op="validate",
        )
    suite.accept(
        "dense-replace-other-kind",
        "A base of another dtype and shape replaced",
        single(dense("U8", b"\1\2\3"), "U8", [3], tensor("F32", [2, 2], 1, 2, 3, 4)),
        "dense.replace num.start",
    )
