"""The encoding ``blockq``: group codes; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance import assemble as oracle
from conformance.assemble import bits_of, from_items, pack
from conformance.assembler.draft import Change
from conformance.assembler.suite import Suite

from .encoding_words import BAD_SCALES, FLOATS, padding, parameter
from .models import blockq, noise, power, q, single, tensor


def cases(suite: Suite) -> None:
    for bits in range(1, 9):
        for packing in ("stream", "lanes"):
            top = (1 << bits) - 1
            codes = [0, top, *noise(13, bits, top + 1)]
            base = tensor("F32", [3, 5], *[q(k, 8) for k in range(15)])
            for name, more in (
                ("fixed", {"zero": top}),
                ("stored", {"zeros": [0, 2 * top, top, min(3, 2 * top), 1, 2]}),
            ):
                made = blockq(bits, codes, bits_of("F32", *[q(k - 2, 64) for k in range(6)]), 3, packing, **more)
                suite.accept(
                    f"blockq-{bits}-{packing}-{name}",
                    f"{bits} bits, {packing}, groups of 3 in rows of 5, zero points {name}",
                    single(made, "F32", [3, 5], base),
                    f"blockq.contribution packing.{packing} payload.padding-bits payload.code payload.scale "
                    "payload.scale/blockq manifest.parameter/blockq num.matrix",
                )
    base = tensor("BF16", [2, 6], *range(12))
    for group in (1, 2, 4, 5, 6, 7, 1 << 32):
        groups = -(-6 // group)
        made = blockq(
            4,
            noise(12, group % 97, 16),
            bits_of("BF16", *[q(k + 1, 16) for k in range(2 * groups)]),
            group,
            "lanes",
            "BF16",
            15,
        )
        suite.accept(
            f"blockq-group-{group}",
            f"Groups of {group} in rows of 6",
            single(made, "BF16", [2, 6], base),
            "blockq.contribution manifest.parameter/blockq reader.arithmetic",
        )
    for scale in FLOATS:
        made = blockq(2, [0, 1, 2, 3], bits_of(scale, q(1, 4), q(-1, 2)), 2, "stream", scale, 3)
        suite.accept(
            f"blockq-scale-{scale.lower()}",
            f"Scales of {scale}, one negative",
            single(made, "F16", [2, 2], tensor("F16", [2, 2], 1, 2, 3, 4)),
            "blockq.contribution payload.scale/blockq",
        )
    shapes: dict[str, list[int]] = {
        "scalar": [],
        "vector": [4],
        "stack": [2, 2, 3],
        "rank-4": [2, 1, 2, 2],
        "one-column": [4, 1],
    }
    for name, shape in shapes.items():
        count = oracle.numel(shape)
        stack, rows, cols = oracle.grid(shape)
        groups = stack * rows * -(-cols // 2)
        made = blockq(3, noise(count, 4, 8), bits_of("F32", *[q(k + 1, 32) for k in range(groups)]), 2, zero=7)
        suite.accept(
            f"blockq-{name}",
            f"blockq of shape {tuple(shape)}",
            single(made, "F32", shape, tensor("F32", shape, *range(count))),
            "num.matrix blockq.contribution",
        )
    small = blockq(1, [1, 0], bits_of("F32", power(-100), 0), 1, zero=1)
    suite.accept(
        "blockq-scale-2-100",
        "A scale of 2^-100, and one of +0",
        single(small, "F32", [2], tensor("F32", [2], 0, 1)),
        "payload.scale payload.scale/blockq",
    )
    blockq_refusals(suite)


def blockq_refusals(suite: Suite) -> None:
    of = "blockq-3-stream-fixed"
    need = "manifest.parameter/blockq"
    for key, value in (
        ("bits", 0),
        ("bits", 9),
        ("bits", 255),
        ("bits", 1 << 32),
        ("group", 0),
        ("group", (1 << 32) + 1),
        ("group", (1 << 64) - 1),
        ("packing", "Stream"),
        ("packing", ""),
        ("packing", "planes"),
        ("scale", "F64"),
        ("scale", "F8_E4M3"),
        ("scale", "I16"),
        ("scale", "F4"),
        ("zero", 15),
        ("zero", (1 << 64) - 1),
    ):
        name = f"blockq-{key}-is-{str(value).lower() or 'empty'}" + ("-upper" if value == "Stream" else "")
        parameter(suite, of, name, f"blockq: {key} is {value!r}", key, value, need)
    parameter(
        suite,
        of,
        "blockq-scale-unknown",
        "blockq: a scale dtype that is not in the table",
        "scale",
        "F24",
        need,
        "manifest.parameter unsupported.dtype",
    )
    for bits, zero in ((1, 3), (2, 7), (8, 511)):
        parameter(
            suite,
            f"blockq-{bits}-stream-fixed",
            f"blockq-zero-{bits}-{zero}",
            f"blockq: the zero point {zero} with {bits} bits",
            "zero",
            zero,
            need,
        )
    for bits in (1, 3, 8):
        top = 2 * ((1 << bits) - 1)
        for value in (top + 1, 65535):
            suite.reject(
                f"blockq-zeros-{bits}-{value}",
                f"blockq: a stored zero point of {value} with {bits} bits",
                f"blockq-{bits}-lanes-stored",
                Change(parts={"w/0/zeros": from_items([0, 0, 0, 0, 0, value], 2)}),
                "payload.code",
                "payload.code",
                op="validate",
            )
    for scale in FLOATS:
        for name, patterns in BAD_SCALES.items():
            if scale in patterns:
                suite.reject(
                    f"blockq-scale-{name}-{scale.lower()}",
                    f"blockq: a scale of {scale} that is {name.replace('-', ' ')}",
                    f"blockq-scale-{scale.lower()}",
                    Change(parts={"w/0/scales": bits_of(scale, 1, patterns[scale])}),
                    "payload.scale",
                    "payload.scale payload.scale/blockq",
                    op="validate",
                )
    padding(
        suite,
        "blockq",
        "codes",
        {
            f"{bits}-{packing}": (f"blockq-{bits}-{packing}-fixed", pack([0] * 15, bits, packing), bits, packing, 15)
            for bits in range(1, 8)
            for packing in ("stream", "lanes")
        },
    )
    even = blockq(2, [0, 3, 1, 1], bits_of("F32", 1, q(1, 2)), 2, zero=2)
    suite.accept(
        "blockq-even-zero",
        "An even zero point: a group of codes that mean 0",
        single(even, "F32", [2, 2], tensor("F32", [2, 2], 1, 2, 3, "0x80000000")),
        "blockq.contribution num.zero",
    )
    suite.reject(
        "blockq-unused-scale",
        "blockq: an infinite scale of a group whose codes all mean 0",
        "blockq-even-zero",
        Change(parts={"w/0/scales": bits_of("F32", 1, "0x7f800000")}),
        "payload.scale",
        "payload.scale/blockq",
        "Used or not.",
        op="validate",
    )
