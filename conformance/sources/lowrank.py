"""The encoding ``lowrank``: integer factors; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance import assemble as oracle
from conformance.assemble import Entry, bits_of, pack
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import put
from conformance.assembler.suite import Suite

from .encoding_words import BAD_SCALES, padding, parameter, thin
from .models import lowrank, power, q, raw, single, tensor


def cases(suite: Suite) -> None:
    shape = [3, 4]
    base = tensor("F32", shape, *range(12))
    one = bits_of("F32", q(1, 128))
    for bits in range(1, 9):
        for packing in ("stream", "lanes"):
            made = lowrank([thin(3, bits, 9 - bits, one, shape, bits)], packing)
            suite.accept(
                f"lowrank-{bits}-{9 - bits}-{packing}",
                f"U of {bits} bits, V of {9 - bits}, {packing}, rank 3 of (3, 4)",
                single(made, "F32", shape, base),
                f"lowrank.value lowrank.contribution packing.{packing} manifest.parameter/lowrank payload.padding-bits "
                "payload.scale/lowrank num.exact-product",
            )
    extremes = lowrank([(1, 8, 8, bits_of("F32", 1), [0, 255, 128], [0, 255, 127, 128])])
    suite.accept(
        "lowrank-extremes",
        "Codes of -128 and 127 on both sides",
        single(extremes, "F32", shape, base),
        "lowrank.value lowrank.contribution",
    )
    order = [thin(1, 8, 8, bits_of("F32", power(k)), shape, 9 + k) for k in (20, -30, -5)]
    suite.accept(
        "lowrank-slices-3",
        "Three slices of falling and rising scales",
        single(lowrank(order), "F32", shape, base),
        "lowrank.contribution num.order",
    )
    many = [thin(1, 1, 1, bits_of("F32", q(k + 1, 4096)), [1, 1], k) for k in range(64)]
    suite.accept(
        "lowrank-slices-64",
        "64 slices",
        single(lowrank(many), "F32", [1, 1], tensor("F32", [1, 1], 1)),
        "manifest.parameter/lowrank num.order reader.least",
    )
    negative = lowrank([thin(2, 4, 4, bits_of("F32", q(-3, 256)), shape), thin(1, 4, 4, bits_of("F32", 0), shape)])
    suite.accept(
        "lowrank-scales",
        "A negative scale and a scale of +0",
        single(negative, "F32", shape, base),
        "payload.scale/lowrank",
    )
    shapes: dict[str, list[int]] = {
        "scalar": [],
        "vector": [5],
        "one-row": [1, 5],
        "one-column": [5, 1],
        "stack": [3, 2, 2],
        "rank-4": [2, 1, 2, 3],
    }
    for name, dims in shapes.items():
        stack, rows, cols = oracle.grid(dims)
        first, second = (bits_of("F32", *[q(k + 1, each) for k in range(stack)]) for each in (64, -16))
        made = lowrank([thin(min(rows, cols), 5, 3, first, dims), thin(1, 2, 4, second, dims, 7)], "stream")
        suite.accept(
            f"lowrank-{name}",
            f"lowrank of shape {tuple(dims)}",
            single(made, "BF16", dims, tensor("BF16", dims, *range(oracle.numel(dims)))),
            "num.matrix lowrank.contribution",
        )
    lowrank_refusals(suite)


def widest_product() -> Model:
    """Rank 1024 of a matrix of that size, every code in the middle: nothing is added, F32 comes of BF16."""
    shape, codes = [1024, 1024], b"\x80" * (1 << 20)
    params = {"packing": "lanes", "slices": [{"bits_u": 8, "bits_v": 8, "rank": 1024}]}
    component = oracle.component(
        "lowrank", params, ("scales", 4, bits_of("F32", 1)), ("u0", 1, codes), ("v0", 1, codes)
    )
    made = single(component, "F32", shape, raw("BF16", shape, bytes(2 << 20)), codec="zstd")
    made.given["w"] = raw("F32", shape, bytes(4 << 20))
    return made


def lowrank_refusals(suite: Suite) -> None:
    of, need = "lowrank-4-5-lanes", "manifest.parameter/lowrank"
    for path, value in (
        ("packing", "Lanes"),
        ("packing", ""),
        ("slices", []),
        ("slices/0/bits_u", 0),
        ("slices/0/bits_u", 9),
        ("slices/0/bits_v", 0),
        ("slices/0/bits_v", 9),
        ("slices/0/bits_v", (1 << 64) - 1),
        ("slices/0/rank", 0),
        ("slices/0/rank", 4),
        ("slices/0/rank", (1 << 64) - 1),
    ):
        shown = "none" if value == [] else str(value).lower() or "empty"
        name = f"lowrank-{path.replace('/', '-').replace('_', '-')}-is-{shown}" + ("-upper" if value == "Lanes" else "")
        parameter(suite, of, name, f"lowrank: {path} is {value!r}", path, value, need + " reader.arithmetic")
    extra = {"bits_u": 1, "bits_v": 1, "rank": 1}
    suite.reject(
        "lowrank-slices-65",
        "lowrank: 65 slices",
        "lowrank-slices-64",
        Change(manifest=[{"insert": "tensors/0/components/0/slices/64", "value": extra}]),
        "manifest.parameter",
        need,
        op="validate",
    )
    zeros = Entry("w", "other", "", [], ("F32", [1025, 1025]))
    shrunk = Model({"w": raw("F32", [1026, 1025], bytes(4 * 1026 * 1025))}, [zeros])
    suite.accept(
        "lowrank-large-matrix",
        "A matrix of zeros cut to (1025, 1025)",
        shrunk,
        "num.start manifest.components/none",
        op="validate",
    )
    suite.accept(
        "lowrank-product-2-24",
        "lowrank: rank 1024 with 8 and 8 bits: 2^24",
        widest_product(),
        "manifest.parameter/lowrank-product num.exact-product reader.least codec.zstd",
        op="validate",
        wall_s=30,
    )
    for rank, bu, bv, fine in ((1024, 8, 8, True), (1025, 8, 8, False), (1025, 8, 7, True)):
        item = {
            "encoding": "lowrank",
            "packing": "lanes",
            "sha256": bytes(32),
            "slices": [{"bits_u": bu, "bits_v": bv, "rank": rank}],
        }
        code = "storage.segments" if fine else "manifest.parameter"
        words = "at" if rank == 1024 else "below" if fine else "above"
        suite.reject(
            f"lowrank-product-{words}",
            f"lowrank: rank {rank}, {bu} and {bv} bits: {words} 2^24" + (", but no segment" if fine else ""),
            "lowrank-large-matrix",
            Change(manifest=[put("tensors/0/components", [item])]),
            code,
            "manifest.parameter/lowrank-product num.exact-product" + (" storage.segments" if fine else ""),
            "Legal up to 2^24, so only STORAGE is at fault." if fine else "",
            op="validate",
        )
    for name, patterns in BAD_SCALES.items():
        suite.reject(
            f"lowrank-scale-{name}",
            f"lowrank: a scale that is {name.replace('-', ' ')}",
            of,
            Change(parts={"w/0/scales": bits_of("F32", patterns["F32"])}),
            "payload.scale",
            "payload.scale/lowrank payload.scale",
            op="validate",
        )
    padding(
        suite,
        "lowrank",
        "u0",
        {
            f"{bits}-{packing}": (
                f"lowrank-{bits}-{9 - bits}-{packing}",
                pack([0] * 9, bits, packing),
                bits,
                packing,
                9,
            )
            for bits in (1, 3, 4, 5, 7)
            for packing in ("stream", "lanes")
        },
    )
