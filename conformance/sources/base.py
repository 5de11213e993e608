"""What applying verifies: the base as a whole, every result; slices; which files a base may come in."""

from __future__ import annotations

from conformance.assemble import Entry, Tensor
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import put, xor
from conformance.assembler.suite import Suite

from .models import ALL_KINDS, dense, dense_add, lowrank, noise, q, raw, tensor

APPLY = "container-all-kinds-apply"


def model() -> Model:
    """Three tensors that stay, two that change, one that goes, one that comes."""
    base = {
        "a.kept": tensor("F32", [2], 1, 2),
        "b.changed": tensor("BF16", [3], 1, 2, 3),
        "c.kept": tensor("U8", [4], 1, 2, 3, 4),
        "d.changed": tensor("F32", [2, 2], 1, 2, 3, 4),
        "e.gone": tensor("F16", [1], 1),
        "f.kept": tensor("I64", [], 7),
    }
    entries = [
        Entry("b.changed", "other", "", [dense_add("BF16", q(1, 2), 0, -1)], ("BF16", [3])),
        Entry("d.changed", "other", "", [dense_add("F32", 1, 1, 1, 1)], ("F32", [2, 2])),
        Entry("e.gone", "other", ""),
        Entry("g.new", "other", "", [dense("U8", b"\1\2")], ("U8", [2])),
    ]
    return Model(base, entries)


MODEL = model()


def binding(suite: Suite) -> None:
    of = suite.accept(
        "base-right",
        "The base the pack was made for",
        MODEL,
        "base.missing base.kind base.extra base.extra/count base.missing/count base.content base.content/digest "
        "apply.verify "
        "apply.unchanged apply.removed digest.checkpoint integrity.result integrity.result/checkpoint apply.report",
    )
    layouts = (
        ("reversed", "tensors in descending order", {"order": "descending"}),
        ("metadata", "metadata in its header", {"metadata": {"format": "pt", "note": "[bold]x\u001b"}}),
        ("spaces", "1000 spaces after its header", {"spaces": 1000}),
        ("indented", "an indented header", {"indent": 2}),
    )
    for name, words, layout in layouts:
        suite.variant(
            f"base-{name}",
            f"The right base in a file with {words}",
            of,
            Change(layout=layout),
            "apply.verify digest.checkpoint",
            "How the base lies in files plays no part.",
        )
    kept, changed = MODEL.base["a.kept"], MODEL.base["b.changed"]
    changes: tuple[tuple[str, str, dict[str, Tensor | None], str, str], ...] = (
        (
            "bit-in-kept",
            "One bit of an unchanged tensor flipped",
            {"a.kept": flipped(kept)},
            "base.content",
            "base.content",
        ),
        (
            "bit-in-changed",
            "One bit of a changed tensor flipped",
            {"b.changed": flipped(changed)},
            "base.content",
            "base.content apply.report",
        ),
        (
            "bit-in-gone",
            "One bit of a removed tensor flipped",
            {"e.gone": flipped(MODEL.base["e.gone"])},
            "base.content",
            "base.content",
        ),
        (
            "bit-in-scalar",
            "One bit of a single value flipped",
            {"f.kept": flipped(MODEL.base["f.kept"])},
            "base.content",
            "base.content",
        ),
        (
            "all-other",
            "Every tensor has other bytes",
            {n: flipped(t) for n, t in MODEL.base.items()},
            "base.content",
            "base.content apply.report",
        ),
        ("missing-changed", "The base lacks a changed tensor", {"b.changed": None}, "base.missing", "base.missing"),
        ("missing-gone", "The base lacks a removed tensor", {"e.gone": None}, "base.missing", "base.missing"),
        ("missing-kept", "The base lacks an unchanged tensor", {"c.kept": None}, "base.missing", "base.missing/count"),
        ("extra", "The base has a tensor more", {"z.extra": kept}, "base.extra", "base.extra/count"),
        (
            "extra-added",
            "The base has the tensor that the pack adds",
            {"g.new": raw("U8", [2], b"\1\2")},
            "base.extra",
            "base.extra",
        ),
        (
            "extra-for-missing",
            "A tensor the pack adds stands for an unchanged one",
            {"c.kept": None, "g.new": raw("U8", [2], b"\1\2")},
            "base.extra",
            "base.extra",
        ),
        (
            "dtype-changed",
            "A changed tensor is F16 and not BF16",
            {"b.changed": raw("F16", [3], changed.data)},
            "base.kind",
            "base.kind",
        ),
        (
            "shape-changed",
            "A changed tensor has another shape",
            {"b.changed": raw("BF16", [3, 1], changed.data)},
            "base.kind",
            "base.kind",
        ),
        (
            "dtype-gone",
            "A removed tensor has another dtype",
            {"e.gone": raw("BF16", [1], MODEL.base["e.gone"].data)},
            "base.kind",
            "base.kind",
        ),
        ("widened", "An F32 copy of a BF16 base", {"b.changed": tensor("F32", [3], 1, 2, 3)}, "base.kind", "base.kind"),
        (
            "dtype-kept",
            "An unchanged tensor has another dtype, the same bytes",
            {"a.kept": raw("I32", [2], kept.data)},
            "base.content",
            "base.content/digest",
        ),
        (
            "shape-kept",
            "An unchanged tensor has another shape, the same bytes",
            {"a.kept": raw("F32", [1, 2], kept.data)},
            "base.content",
            "base.content/digest",
        ),
        (
            "renamed-kept",
            "An unchanged tensor has another name, in the same place",
            {"a.kept": None, "a.kepT": kept},
            "base.content",
            "base.content/digest",
        ),
        (
            "moved-kept",
            "An unchanged tensor has another name, in another place",
            {"a.kept": None, "z": kept},
            "base.content",
            "base.content",
        ),
        (
            "exchanged",
            "Two unchanged tensors have each other's bytes",
            {"a.kept": raw("F32", [2], MODEL.base["f.kept"].data), "f.kept": raw("I64", [], kept.data)},
            "base.content",
            "base.content",
        ),
        (
            "is-result",
            "The base is the result: a pack applied twice",
            {n: MODEL.results.get(n) for n in ("b.changed", "d.changed", "e.gone", "g.new")},
            "base.missing base.extra",
            "base.missing base.extra apply.verify",
        ),
        (
            "kind-before-count",
            "A changed tensor of another kind, and a tensor more",
            {"b.changed": raw("F16", [3], changed.data), "z.extra": kept},
            "base.kind",
            "base.kind container.order",
        ),
        (
            "count-before-content",
            "A tensor more, and one of other bytes",
            {"z.extra": kept, "a.kept": flipped(kept)},
            "base.extra",
            "base.extra/count apply.verify",
        ),
    )
    for name, title, base, codes, requirement in changes:
        suite.reject(
            f"base-{name}",
            title,
            of,
            Change(base=base),
            codes,
            f"{requirement} safe.no-result apply.complete",
            op="apply",
        )
    suite.reject(
        "base-validate-bit",
        "One bit of an unchanged tensor flipped: validate with the base",
        of,
        Change(base={"a.kept": flipped(kept)}),
        "base.content",
        "base.content",
        op="validate",
        with_base=True,
    )
    suite.accept(
        "base-validate-right",
        "The right base: validate",
        MODEL,
        "base.content integrity.result",
        op="validate",
        with_base=True,
    )
    suite.reject(
        "base-digest-stale",
        "The digest of the base in MANIFEST is another, all prints right",
        of,
        Change(manifest=[put("base/digest", bytes(32))]),
        "base.content",
        "base.content/digest digest.checkpoint",
    )
    prints = bytearray(b"".join(sha(t)[:4] for _, t in sorted(MODEL.base.items())))
    prints[0] ^= 1
    suite.reject(
        "base-print-stale",
        "One print of an unchanged tensor is another, the digest right",
        of,
        Change(manifest=[put("base/prints", bytes(prints))]),
        "base.content",
        "base.content",
        "Step 3 compares every print, and comes before the digest.",
    )
    suite.reject(
        "base-entry-digest-stale",
        "base.sha256 of an entry is another, print and digest right",
        of,
        Change(manifest=[put("tensors/0/base/sha256", sha(MODEL.base["b.changed"])[:4] + bytes(28))]),
        "base.content",
        "base.content",
    )


def odd_names(suite: Suite) -> None:
    """Names of base tensors: what no entry may be called, no base tensor may."""
    odd = {"../x": raw("U8", [1], b"\1"), "[b]x[/b]": raw("U8", [1], b"\2"), "__proto__": raw("U8", [1], b"\3")}
    of = suite.accept(
        "base-odd-names",
        "A base of names that are paths, markup and keywords",
        Model(odd),
        "apply.base-names document.names-opaque",
    )
    for k, name in enumerate(("a b", "", "caf\u00e9", "a\n", "\x1b[2J", "a\x7f")):
        suite.reject(
            f"base-name-{k}",
            f"A base tensor is called {name!a}",
            of,
            Change(base={"../x": None, name: odd["../x"]}),
            "checkpoint.name",
            "apply.base-names safe.no-result",
        )


def sha(tensor_: Tensor) -> bytes:
    digest = tensor_.plain()["sha256"]
    assert isinstance(digest, bytes)
    return digest


def flipped(tensor_: Tensor) -> Tensor:
    return Tensor(tensor_.dtype, tensor_.shape, bytes([tensor_.data[0] ^ 1]) + tensor_.data[1:])


def results(suite: Suite) -> None:
    of = "base-right"
    suite.reject(
        "result-tensor-digest",
        "The result digest of a changed tensor is that of other bytes, result.digest repaired",
        of,
        Change(results={"b.changed": bytes(6)}),
        "integrity.result",
        "integrity.result safe.no-result apply.complete",
    )
    suite.reject(
        "result-added-digest",
        "The result digest of an added tensor is that of other bytes",
        of,
        Change(results={"g.new": b"\1\3"}),
        "integrity.result",
        "integrity.result",
    )
    suite.reject(
        "result-checkpoint-digest",
        "result.digest is another, all result digests right",
        of,
        Change(manifest=[put("result/digest", bytes(32))]),
        "integrity.result",
        "integrity.result/checkpoint safe.no-result digest.checkpoint",
    )
    suite.reject(
        "result-checkpoint-validate",
        "result.digest is another: validate with the base",
        of,
        Change(manifest=[put("result/digest", bytes(32))]),
        "integrity.result",
        "integrity.result/checkpoint",
        op="validate",
        with_base=True,
    )
    suite.variant(
        "result-checkpoint-no-base",
        "result.digest is another: without a base nothing shows it",
        of,
        Change(manifest=[put("result/digest", bytes(32))]),
        "integrity.result/checkpoint",
        op="validate",
    )
    suite.variant(
        "result-digest-decode",
        "The result digest of one tensor is wrong: another is decoded",
        "decode-changed",
        Change(results={"d.changed": bytes(16)}),
        "integrity.result",
        "Only what the tensor needs is checked.",
    )


def parts(suite: Suite) -> None:
    """decode and slice: one tensor, some rows."""
    what = {"a.kept": "apply.unchanged", "b.changed": "dense.add", "g.new": "dense.replace", "f.kept": "num.matrix"}
    for name, requirement in what.items():
        suite.accept(
            f"decode-{name.split('.')[1] if name != 'f.kept' else 'scalar'}",
            f"Decode of {name} alone",
            MODEL,
            f"{requirement} integrity.result",
            op="decode",
            tensor=name,
        )
    for name in ALL_KINDS.results:
        suite.accept(
            f"decode-kinds-{name.replace('.', '-')}",
            f"Decode of {name} from a pack of every kind",
            ALL_KINDS,
            "reader.bits integrity.result layout.contents",
            op="decode",
            tensor=name,
        )
    rows = Model(
        {"w": tensor("BF16", [6, 2], *[q(k, 4) for k in range(12)])},
        [Entry("w", "other", "", [lowrank([(2, 3, 3, scale(), noise(12, 2, 8), noise(4, 3, 8))])], ("BF16", [6, 2]))],
    )
    stack = Model(
        {"w": tensor("F32", [3, 2, 2], *range(12))},
        [
            Entry(
                "w",
                "other",
                "",
                [
                    lowrank(
                        [
                            (1, 3, 3, scale() * 3, noise(6, 2, 8), noise(6, 3, 8)),
                            (1, 2, 2, tensor("F32", [3], 1, 2, 3).data, noise(6, 4, 4), noise(6, 5, 4)),
                        ]
                    )
                ],
                ("F32", [3, 2, 2]),
            )
        ],
    )
    for first, end in ((0, 6), (0, 1), (5, 6), (2, 4), (3, 3)):
        suite.accept(
            f"slice-rows-{first}-{end}",
            f"Rows {first} to {end} of 6",
            rows,
            "reader.bits lowrank.contribution num.matrix",
            op="slice",
            tensor="w",
            rows=(first, end),
        )
    for first, end in ((0, 3), (1, 2), (2, 3)):
        suite.accept(
            f"slice-stack-{first}-{end}",
            f"Matrices {first} to {end} of a stack of 3",
            stack,
            "reader.bits lowrank.contribution num.matrix",
            op="slice",
            tensor="w",
            rows=(first, end),
        )
    vector = Model(
        {"w": tensor("F32", [5], *range(5))}, [Entry("w", "other", "", [dense_add("F32", *range(5))], ("F32", [5]))]
    )
    suite.accept(
        "slice-vector",
        "Elements 1 to 4 of a vector",
        vector,
        "num.matrix dense.add",
        op="slice",
        tensor="w",
        rows=(1, 4),
    )
    suite.accept(
        "slice-kept", "A row of an unchanged tensor", MODEL, "apply.unchanged", op="slice", tensor="c.kept", rows=(2, 3)
    )
    for op in ("decode", "slice"):
        suite.reject(
            f"{op}-broken-chunk",
            f"A chunk of the tensor asked for is broken: {op}",
            f"{op}-{'changed' if op == 'decode' else 'rows-2-4'}",
            Change(data=[xor(0, "01")]),
            "integrity.chunk",
            "integrity.chunk safe.no-result",
        )
        suite.reject(
            f"{op}-broken-header",
            f"The checksum of the header is wrong: {op}",
            f"{op}-{'changed' if op == 'decode' else 'rows-2-4'}",
            Change(preamble={"header-checksum": 1}),
            "integrity.header",
            "integrity.header reader.codes",
        )
        suite.reject(
            f"{op}-wrong-result",
            f"The tensor made has not the promised digest: {op}",
            f"{op}-{'changed' if op == 'decode' else 'rows-2-4'}",
            Change(results={"b.changed": bytes(6)} if op == "decode" else {"w": bytes(24)}),
            "integrity.result",
            "integrity.result safe.no-result",
        )
    suite.variant(
        "decode-beside-broken",
        "A chunk of another tensor is broken: decode",
        "decode-new",
        Change(data=[xor(0, "01")]),
        "integrity.chunk content.use",
        "A reader that needs only some tensors reads only their segments.",
    )
    suite.reject(
        "decode-base-bytes",
        "The base tensor of the one asked for has other bytes: decode",
        "decode-changed",
        Change(base={"b.changed": flipped(MODEL.base["b.changed"])}),
        "base.content",
        "base.content",
    )
    suite.reject(
        "decode-base-kind",
        "The base tensor of the one asked for has another dtype: decode",
        "decode-changed",
        Change(base={"b.changed": raw("F16", [3], MODEL.base["b.changed"].data)}),
        "base.kind",
        "base.kind",
    )


def scale() -> bytes:
    return tensor("F32", [1], q(1, 64)).data


def cases(suite: Suite) -> None:
    binding(suite)
    odd_names(suite)
    parts(suite)
    results(suite)
