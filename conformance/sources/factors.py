"""The encoding ``factors``: factors of floats and codes; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance.assemble import bits_of, pack
from conformance.assembler.draft import Change
from conformance.assembler.suite import Suite

from .encoding_words import BAD_SCALES, FLOATS, padding, parameter
from .models import factors, noise, power, q, single, tensor


def cases(suite: Suite) -> None:
    shape = [2, 3]
    base = tensor("F32", shape, 1, -1, 2, -2, 0, q(1, 4))
    s = bits_of("F32", q(3, 2))
    for code in FLOATS:
        made = factors([(code, 1, s, bits_of(code, q(1, 2), q(-1, 4)), bits_of(code, 1, q(1, 8), -2))])
        suite.accept(
            f"factors-{code.lower()}",
            f"A band of {code}",
            single(made, "BF16", shape, tensor("BF16", shape, 1, -1, 2, -2, 0, q(1, 4))),
            "factors.value factors.contribution manifest.parameter/factors payload.nonfinite/factors",
        )
    for bits in range(1, 9):
        for packing in ("stream", "lanes"):
            u, v = noise(4, bits, 1 << bits), noise(6, bits + 9, 1 << bits)
            made = factors(
                [
                    (
                        f"Q{bits}",
                        2,
                        bits_of("F32", 1, q(1, 2)),
                        (pack(u, bits, packing), bits_of("F16", q(1, 4), q(1, 8))),
                        (pack(v, bits, packing), bits_of("F16", q(1, 2), -1, q(5, 4), 0)),
                    )
                ],
                2,
                packing,
                "F16",
            )
            suite.accept(
                f"factors-q{bits}-{packing}",
                f"A band of {bits}-bit codes, {packing}, rank 2, groups of 2",
                single(made, "F32", shape, base),
                f"factors.value factors.contribution packing.{packing} payload.scale/factors payload.padding-bits "
                "num.order",
            )
    bands = [
        ("F32", 2, bits_of("F32", 1, power(-20)), bits_of("F32", 1, 3, 5, 7), bits_of("F32", 1, 2, 3, 5, 7, 9)),
        ("F16", 1, bits_of("F32", power(-30)), bits_of("F16", 1, 2), bits_of("F16", 3, 4, 5)),
        (
            "Q1",
            1,
            bits_of("F32", 1),
            (pack([0, 1], 1, "lanes"), bits_of("BF16", q(1, 2))),
            (pack([1, 0, 1], 1, "lanes"), bits_of("BF16", 1)),
        ),
    ]
    suite.accept(
        "factors-bands",
        "Three bands: F32 of rank 2, F16, 1 bit",
        single(factors(bands, 3, "lanes", "BF16"), "F32", shape, base),
        "factors.contribution num.order",
    )
    many = [("BF16", 1, bits_of("F32", q(k + 1, 64)), bits_of("BF16", 1), bits_of("BF16", q(1, 2))) for k in range(64)]
    suite.accept(
        "factors-bands-64",
        "64 bands",
        single(factors(many), "F32", [1, 1], tensor("F32", [1, 1], 1)),
        "manifest.parameter/factors num.order",
    )
    signed = tensor("F32", shape, 1, -1, 2, -2, "0x80000000", q(1, 4))
    for name, value in (("zero", 0), ("minus-zero", "0x80000000"), ("subnormal", "0x00000001"), ("tiny", "0x0d7fffff")):
        made = factors([("F32", 1, bits_of("F32", value), bits_of("F32", 1, 2), bits_of("F32", 1, 2, 3))])
        suite.accept(
            f"factors-s-{name}",
            f"S is {name.replace('-', ' ')}",
            single(made, "F32", shape, signed),
            "payload.scale/factors factors.value num.zero num.widen",
            "The rule for scales does not apply to S.",
        )
    for group in (1, 2, 3, 1 << 32):
        h, g = -(-2 // group), -(-3 // group)
        made = factors(
            [
                (
                    "Q4",
                    1,
                    s,
                    (pack([3, 12], 4, "stream"), bits_of("F32", *[q(k + 1, 8) for k in range(h)])),
                    (pack([0, 15, 7], 4, "stream"), bits_of("F32", *[q(k + 1, 4) for k in range(g)])),
                )
            ],
            group,
            "stream",
        )
        suite.accept(
            f"factors-group-{group}",
            f"Codes in groups of {group}",
            single(made, "F32", shape, base),
            "factors.value manifest.parameter/factors",
        )
    stack = [2, 2, 2]
    made = factors([("F32", 1, bits_of("F32", 1, 2), bits_of("F32", 1, 2, 3, 4), bits_of("F32", 5, 6, 7, 8))])
    suite.accept(
        "factors-stack",
        "A stack of two matrices",
        single(made, "F32", stack, tensor("F32", stack, *range(8))),
        "num.matrix factors.contribution",
    )
    vector = factors([("F16", 1, s, bits_of("F16", 2), bits_of("F16", 1, 2, 3))])
    suite.accept(
        "factors-vector",
        "A vector",
        single(vector, "F16", [3], tensor("F16", [3], 1, 2, 3)),
        "num.matrix factors.contribution",
    )
    factors_refusals(suite)


def factors_refusals(suite: Suite) -> None:
    of, need = "factors-q3-lanes", "manifest.parameter/factors"
    for path, value in (
        ("bands", []),
        ("bands/0/code", "Q0"),
        ("bands/0/code", "Q9"),
        ("bands/0/code", "F64"),
        ("bands/0/code", "q4"),
        ("bands/0/code", ""),
        ("bands/0/code", "Q08"),
        ("bands/0/rank", 0),
        ("bands/0/rank", 3),
        ("bands/0/rank", (1 << 64) - 1),
        ("group", 0),
        ("group", (1 << 32) + 1),
        ("packing", "planes"),
        ("scale", "F64"),
        ("scale", ""),
    ):
        shown = "none" if value == [] else str(value).lower() or "empty"
        parameter(
            suite,
            of,
            f"factors-{path.replace('/', '-')}-is-{shown}",
            f"factors: {path} is {value!r}",
            path,
            value,
            need,
        )
    for path, value in (("group", 0), ("packing", "x"), ("scale", "I8")):
        parameter(
            suite,
            "factors-f16",
            f"factors-unused-{path}",
            f"factors: {path} is {value!r} where no band is Q",
            path,
            value,
            need,
        )
    extra = {"code": "BF16", "rank": 1}
    suite.reject(
        "factors-bands-65",
        "factors: 65 bands",
        "factors-bands-64",
        Change(manifest=[{"insert": "tensors/0/components/0/bands/64", "value": extra}]),
        "manifest.parameter",
        need,
        op="validate",
    )
    for part, dtype, count in (("s0", "F32", 1), ("u0", "F16", 2), ("v0", "F16", 3)):
        for name in ("nan", "inf", "minus-inf"):
            values = bits_of(dtype, *[1] * (count - 1), BAD_SCALES[name][dtype])
            suite.reject(
                f"factors-{part}-{name}",
                f"factors: an item of {part[0].upper()} is {name.replace('-', ' ')}",
                "factors-f16",
                Change(parts={f"w/0/{part}": values}),
                "payload.nonfinite",
                "payload.nonfinite/factors",
                op="validate",
            )
    for part, count in (("u_scales0", 2), ("v_scales0", 4)):
        for name in ("nan", "inf", "minus-zero"):
            values = bits_of("F16", *[1] * (count - 1), BAD_SCALES[name]["F16"])
            suite.reject(
                f"factors-{part.replace('_', '-')}-{name}",
                f"factors: a scale of {part[0].upper()} is {name.replace('-', ' ')}",
                of,
                Change(parts={f"w/0/{part}": values}),
                "payload.scale",
                "payload.scale/factors payload.scale",
                op="validate",
            )
    for part, count in (("u0", 4), ("v0", 6)):
        padding(
            suite,
            f"factors-{part[0]}",
            part,
            {
                f"{bits}-{packing}": (
                    f"factors-q{bits}-{packing}",
                    pack([0] * count, bits, packing),
                    bits,
                    packing,
                    count,
                )
                for bits in (1, 3, 5)
                for packing in ("stream", "lanes")
            },
        )
