"""What the differential run and the rows of HOSTILE.md asked for beyond the other areas."""

from __future__ import annotations

from conformance import assemble as oracle
from conformance.assemble import Tensor, bits_of
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import Wire, put, write, xor
from conformance.assembler.suite import Suite

from .base import MODEL, sha
from .models import ALL_KINDS, blockq, factors, lowrank, q, raw, single, tensor, ulp_steps

KINDS = "container-all-kinds-{}"


def contradictions(suite: Suite) -> None:
    """A pack that contradicts itself about a base whose digest is right."""
    names = sorted(MODEL.base)
    for name, words in (("e.gone", "removed"), ("d.changed", "changed")):
        prints = bytearray(b"".join(sha(MODEL.base[each])[:4] for each in names))
        prints[4 * names.index(name) + 3] ^= 0x80
        suite.reject(
            f"found-print-of-{words}",
            f"The print of a {words} tensor is another, the digest right",
            "base-right",
            Change(manifest=[put("base/prints", bytes(prints))]),
            "base.content",
            "base.content",
            "Step 3 compares every print, also of a tensor that is not needed any more.",
        )
    suite.reject(
        "found-digest-of-removed",
        "base.sha256 of a removed tensor is another after the print, the digest of the base right",
        "base-right",
        Change(manifest=[put("tensors/2/base/sha256", sha(MODEL.base["e.gone"])[:4] + bytes(28))]),
        "base.content",
        "base.content",
    )
    equal = Change(manifest=[put("result/digest", _digest_of_base())])
    suite.reject(
        "found-result-is-base",
        "result.digest is the digest of the base although tensors are listed",
        "base-right",
        equal,
        "integrity.result",
        "integrity.result/checkpoint",
    )
    suite.variant(
        "found-result-is-base-validate",
        "result.digest is the digest of the base although tensors are listed, no base given",
        "base-right",
        equal,
        "integrity.result/checkpoint",
        "No rule of MANIFEST forbids it; what the digests are of shows with the base.",
        op="validate",
    )


def _digest_of_base() -> bytes:
    return oracle.checkpoint_digest(MODEL.base)


def order(suite: Suite) -> None:
    """Several faults at once: the earlier stage, and within stage 13 the earlier step."""
    other = raw("I16", [3], b"\1\0\2\0\3\0")
    suite.reject(
        "found-base-before-content",
        "Another base, and a content that is not the one of its digest",
        KINDS.format("apply"),
        Change(base={"e.ids": other}, stale={0: [xor(0, "01")]}),
        "base.content",
        "container.order integrity.content",
        "Contents belong to stage 14.",
    )
    both = Change(manifest=[put("tensors/0/alias", "a"), put("result/digest", bytes(32))])
    suite.reject(
        "found-alias-before-result",
        "An alias of other bytes, and another result.digest",
        "alias-unlisted",
        both,
        "manifest.alias",
        "manifest.alias/unlisted container.order",
        "Step 5 comes before step 6.",
    )
    suite.reject(
        "found-content-before-alias",
        "Another base, and an alias of a tensor that it does not have in this shape",
        "alias-unlisted",
        Change(base={"z": raw("F32", [2, 1], suite.model_of("alias-unlisted").base["z"].data)}),
        "base.content",
        "base.content/digest manifest.alias/unlisted",
        "Steps 3 and 4 come before step 5.",
    )


def unreadable_bases(suite: Suite) -> None:
    """A base that asks for more than a limit has no listing: it is refused before step 1, whatever that would say."""
    wide = raw("BF16", [3, *[1] * 8], MODEL.base["b.changed"].data)
    long = {"a.kept": None, "a" * 513: MODEL.base["a.kept"]}
    larger, kept = raw("U8", [17], bytes(17)), raw("I64", [1] * 9, bytes(8))
    faults: tuple[tuple[str, str, dict[str, Tensor | None], dict[str, int]], ...] = (
        ("rank", "A changed tensor of the base has nine dimensions", {"b.changed": wide}, {}),
        ("rank-kept", "An unchanged tensor of the base has nine dimensions", {"f.kept": kept}, {}),
        ("name", "A tensor of the base has a name of 513 bytes", long, {}),
        ("bytes", "A tensor of the base has 17 bytes, the limit is 16", {"c.kept": larger}, {"tensor_bytes": 16}),
        ("tensors", "The base has seven tensors, the limit is six", {"z": larger}, {"tensors": 6}),
    )  # fmt: skip
    for name, title, base, limits in faults:
        suite.reject(
            f"found-base-{name}",
            title,
            "base-right",
            Change(base=base, limits=limits),
            "limit.exceeded",
            "limit.exceeded/base container.order",
            "The base is read before step 1 looks at it.",
        )
    suite.variant(
        "found-base-at-limits",
        "The base is at every limit",
        "base-right",
        Change(limits={"tensors": 6, "tensor_bytes": 16, "tensor_rank": 2, "name_bytes": 9}),
        "limit.exceeded/base",
    )


def renderings(suite: Suite) -> None:
    suite.variant(
        "found-empty-stats",
        "stats without a key is rendered as it is",
        KINDS.format("inspect"),
        Change(manifest=[put("tensors/0/stats", {})]),
        "json.rendering document.informative",
        op="inspect",
    )
    words = {"energy": 4, "error": 4, "norm": 4, "projection": 4, "spectrum": 16}
    for name, byte in (("nan", b"\xff"), ("zeros", b"\0")):
        stats = {word: byte * size for word, size in words.items()} | {"changed": (1 << 64) - 1}
        suite.variant(
            f"found-stats-{name}",
            f"Every figure of stats, all {name}",
            KINDS.format("inspect"),
            Change(manifest=[put("tensors/0/stats", stats)]),
            "json.rendering document.informative",
            op="inspect",
        )


def signalling(suite: Suite) -> None:
    """Signalling NaN, which some machines convert and warn of, are refused like any other."""
    nan = {"F32": "0x7F800001", "F16": "0x7C01", "BF16": "0x7F81"}
    for dtype, bits in nan.items():
        of = suite.accept(
            f"found-scale-{dtype.lower()}",
            f"A scale of {dtype}",
            single(
                blockq(2, [1, 2], bits_of(dtype, q(1, 2)), 2, scale=dtype, zero=3), "F32", [2], tensor("F32", [2], 1, 2)
            ),
            "blockq.contribution",
        )
        suite.reject(
            f"found-signalling-scale-{dtype.lower()}",
            f"A scale of {dtype} is a signalling NaN",
            of,
            Change(parts={"w/0/scales": bits_of(dtype, bits)}),
            "payload.scale",
            "payload.scale payload.scale/blockq",
        )
        of = suite.accept(
            f"found-factor-{dtype.lower()}",
            f"A factor of {dtype}",
            single(
                factors([(dtype, 1, bits_of("F32", 1), bits_of(dtype, 1), bits_of(dtype, 1, 2))]),
                "F32", [1, 2], tensor("F32", [1, 2], 1, 2),
            ),
            "factors.value",
        )  # fmt: skip
        suite.reject(
            f"found-signalling-factor-{dtype.lower()}",
            f"A value of U in {dtype} is a signalling NaN",
            of,
            Change(parts={"w/0/u0": bits_of(dtype, bits)}),
            "payload.nonfinite",
            "payload.nonfinite/factors",
        )
    suite.reject(
        "found-signalling-s",
        "A value of S is a signalling NaN",
        "found-factor-f32",
        Change(parts={"w/0/s0": bits_of("F32", nan["F32"])}),
        "payload.nonfinite",
        "payload.nonfinite/factors",
    )
    suite.accept(
        "found-signalling-kept",
        "A signalling NaN that is replaced, and one that stays",
        single(ulp_steps("F32", [2, 0]), "F32", [2], tensor("F32", [2], nan["F32"], nan["F32"])),
        "ulp.decode num.start",
    )


def costs(suite: Suite) -> None:
    suite.reject(
        "found-nodes-before-items",
        "An array of 30000 items above the limit header_nodes, the first of which is nil",
        KINDS.format("validate"),
        Change(manifest=[put("files", Wire(b"\xdc\x75\x30" + b"\xc0" * 30000))], limits={"header_nodes": 1000}),
        "limit.exceeded",
        "limit.exceeded/nodes reader.allocation",
        "Items count when the length of the array is read.",
    )
    one = bits_of("F32", q(1, 4))
    parts = [
        lowrank([(2, 2, 2, one, [1] * 4, [2] * 6), (1, 2, 2, one, [1] * 2, [2] * 3)]),
        factors([("F32", 2, bits_of("F32", 1, 1), bits_of("F32", *[1] * 4), bits_of("F32", *[1] * 6))]),
        factors([("F16", 1, one, bits_of("F16", 1, 1), bits_of("F16", 1, 1, 1))]),
    ]
    of = suite.accept(
        "found-products",
        "Two slices of rank 2 and 1, bands of rank 2 and 1, on six elements: 36 products",
        single(parts, "F32", [2, 3], tensor("F32", [2, 3], *range(6))),
        "limit.exceeded/products num.order",
    )
    suite.variant(
        "found-products-at",
        "The limit tensor_products at the products of all components: 36",
        of,
        Change(limits={"tensor_products": 36}),
        "limit.exceeded/products",
    )
    suite.reject(
        "found-products-below",
        "The limit tensor_products one below the products of all components: 35",
        of,
        Change(limits={"tensor_products": 35}),
        "limit.exceeded",
        "limit.exceeded/products",
    )
    full = {"packing": "lanes", "slices": [{"bits_u": 1, "bits_v": 1, "rank": 1 << 14}] * 64}
    change = {"encoding": "lowrank", "sha256": bytes(32), **full}
    suite.reject(
        "found-products-bomb",
        "64 slices of full rank on a matrix of 2^14 by 2^14",
        of,
        Change(manifest=[put("tensors/0/result/shape", [1 << 14] * 2), put("tensors/0/components", [change])]),
        "limit.exceeded",
        "limit.exceeded/products safe.size-first",
        "2^48 products from a pack of a few hundred bytes.",
        op="validate",
        rss_mb=64,
    )


def files(suite: Suite) -> None:
    suite.accept(
        "found-inspect-reads-no-data",
        "16 MiB of DATA, of which inspect reads nothing",
        Model(files={"vocab.txt": bytes(16 << 20)}, chunk_bytes=1 << 24),
        "reader.levels",
        "Programs and modules that a reader loads on the way are within the bound.",
        op="inspect",
        read_bytes=8 << 20,
    )
    identical = "container-identical-validate"
    lengths = {"manifest-length": 173 << 56, "storage-length": 26 << 56}
    suite.reject(
        "found-lengths-big-endian",
        "The lengths in the preamble are big-endian",
        identical,
        Change(preamble=lengths),
        "limit.exceeded",
        "limit.exceeded/sections",
    )
    suite.reject(
        "found-sector-of-another-pack",
        "Stored bytes are those of another pack",
        KINDS.format("apply"),
        Change(data=[write(0, sha(ALL_KINDS.base["a.bias"])[:8])]),
        "integrity.chunk",
        "integrity.chunk",
    )
    of = suite.accept(
        "found-f8",
        "A tensor in F8_E4M3",
        single(ulp_steps("F8_E4M3", [2, 1]), "F8_E4M3", [2], raw("F8_E4M3", [2], b"\x38\x40")),
        "ulp.decode base.kind",
    )
    suite.reject(
        "found-f8-mislabelled",
        "The base has the same bytes as F8_E4M3FNUZ",
        of,
        Change(base={"w": raw("F8_E4M3FNUZ", [2], b"\x38\x40")}),
        "base.kind",
        "base.kind",
    )


def cases(suite: Suite) -> None:
    contradictions(suite)
    order(suite)
    unreadable_bases(suite)
    renderings(suite)
    signalling(suite)
    costs(suite)
    files(suite)
