"""The layout of tuned's folder in MANIFEST, and its contents."""

from __future__ import annotations

from conformance.assembler.draft import Change, Layout, Model
from conformance.assembler.edits import drop, insert, put, swap, xor
from conformance.assembler.suite import Suite

from .models import ALL_KINDS, tensor

HEAD = b'\x10\0\0\0\0\0\0\0{"a":"b"}       '
INDEX = ("model.safetensors.index.json", b'{"weight_map":{}}\n')


def model(names: tuple[str, ...], index: tuple[str, bytes] | None = None) -> Model:
    heads = {name: HEAD + bytes([k]) * k for k, name in enumerate(names)}
    return Model({"a": tensor("U8", [2], 1, 2)}, files={"config.json": b"{}"}, layout=Layout(heads, index))


ONE = model(("model.safetensors",))
TWO = model(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), INDEX)
LARGE = (1 << 64) - 1
ASKED = {"shards": 2, "layout_bytes": len(INDEX[1]) + 2 * len(HEAD) + 1}


def accepted(suite: Suite) -> None:
    for name, words, made in (("one", "One shard", ONE), ("two", "Two shards and an index", TWO)):
        for op in ("validate", "inspect", "apply"):
            suite.accept(
                f"layout-{name}-{op}",
                f"{words}: {op}",
                made,
                "manifest.value/layout manifest.file-name/layout manifest.order/layout limit.exceeded/layout "
                "layout.contents json.rendering",
                "A reader that hands out tensors needs no layout; its documents and contents are checked all the same.",
                op=op,
            )
    suite.accept(
        "layout-one-with-index",
        "One shard and an index",
        model(("a.safetensors",), INDEX),
        "manifest.value/layout",
        op="validate",
    )
    stems = ("A", "_", "a-.b_9", "x.safetensors", "9" * 116)
    suite.accept(
        "layout-names",
        "Names of shards of every letter that one may have, up to 128 bytes",
        model(tuple(f"{stem}.safetensors" for stem in stems), ("m" * 105 + ".safetensors.index.json", b"")),
        "manifest.file-name/layout manifest.order/layout layout.segments",
        op="validate",
    )
    every = Model(ALL_KINDS.base, ALL_KINDS.entries, files=ALL_KINDS.files, codecs=ALL_KINDS.codecs, layout=TWO.layout)
    suite.accept(
        "layout-after-all-kinds", "A layout after entries and side files of every kind", every, "layout.contents"
    )
    suite.variant(
        "layout-broken-apply",
        "A head of the layout is broken: applying to a single file reads none",
        "layout-one-apply",
        Change(data=[xor(-1, "01")]),
        "layout.contents apply.layout",
        "Each content is checked when it is used.",
        op="apply",
    )


def documents(suite: Suite) -> None:
    of = "layout-two-validate"
    changes = (
        ("none", "A layout without shards", [put("layout/shards", [])], "manifest.value", "manifest.value/layout"),
        ("no-index", "Two shards without an index", [drop("layout/index")], "manifest.value", "manifest.value/layout"),
        ("exchanged", "Shards exchanged", [swap("layout/shards", 0, 1)], "manifest.order", "manifest.order/layout"),
        ("without-shards", "No key shards", [drop("layout/shards")], "manifest.missing-key", "manifest.missing-key"),
        ("unknown", "A key more", [put("layout/zz", 1)], "manifest.unknown-key", "manifest.unknown-key"),
        ("type", "The layout is an array", [put("layout", [])], "manifest.type", "manifest.type"),
        ("shards-map", "shards is a map", [put("layout/shards", {})], "manifest.type", "manifest.type"),
        ("index-array", "index is an array", [put("layout/index", [])], "manifest.type", "manifest.type"),
        ("digest", "A digest of 31 bytes", [put("layout/index/sha256", bytes(31))], "manifest.value", "manifest.value"),
        ("no-length", "No length", [drop("layout/shards/0/length")], "manifest.missing-key", "manifest.missing-key"),
        ("key", "A key too many", [put("layout/shards/0/at", 0)], "manifest.unknown-key", "manifest.unknown-key"),
        ("wraps", "Too long", [put("layout/shards/0/length", LARGE)], "limit.exceeded", "limit.exceeded/layout"),
    )  # fmt: skip
    for name, title, edits, code, requirement in changes:
        suite.reject(f"layout-{name}", title, of, Change(manifest=edits), code, requirement)
    suite.reject(
        "layout-repeated",
        "The same shard twice",
        of,
        Change(manifest=[put("layout/shards/1/name", "model-00001-of-00002.safetensors")]),
        "manifest.order",
        "manifest.order/layout",
    )
    suite.reject(
        "layout-content-missing",
        "The last head has no segment",
        of,
        Change(storage=[drop("segments/3")]),
        "storage.segments",
        "layout.contents storage.segments",
    )
    suite.reject(
        "layout-shard-more",
        "A shard more than there are segments",
        of,
        Change(manifest=[insert("layout/shards/2", {"length": 0, "name": "z.safetensors", "sha256": bytes(32)})]),
        "storage.segments",
        "layout.contents storage.segments",
    )
    suite.reject(
        "layout-head-broken",
        "A head of the layout is broken",
        of,
        Change(data=[xor(-1, "01")]),
        "integrity.chunk",
        "integrity.chunk layout.contents",
    )
    suite.reject(
        "layout-head-stale",
        "A head of the layout has another digest",
        of,
        Change(stale={3: [xor(0, "01")]}),
        "integrity.content",
        "integrity.content layout.contents",
    )
    suite.reject(
        "layout-heads-first",
        "The heads are stored before the index",
        of,
        Change(stale={1: [{"at": 0, "write": TWO.layout.contents[1][1][: len(INDEX[1])]}]}),
        "integrity.content",
        "layout.contents integrity.content",
    )


def names(suite: Suite) -> None:
    illegal = (
        "", ".safetensors", "..safetensors", "-a.safetensors", ".a.safetensors", "a/b.safetensors", "../a.safetensors",
        "a\\b.safetensors", "/a.safetensors", "a.bin", "a.safetensors ", "a.safetensors\n", "a b.safetensors",
        "\u00e4.safetensors", "a.SAFETENSORS", "model.safetensors.index.json", "m" * 117 + ".safetensors",
        "a\0.safetensors", "C:a.safetensors", "~a.safetensors",
    )  # fmt: skip
    for k, name in enumerate(illegal):
        suite.reject(
            f"layout-shard-name-{k}",
            f"A shard named {ascii(name) if len(name) < 50 else 'by 129 letters'}",
            "layout-one-validate",
            Change(manifest=[put("layout/shards/0/name", name)]),
            "manifest.file-name",
            "manifest.file-name/layout safe.no-paths",
        )
    for k, name in enumerate(
        ("", "index.json", "a.safetensors", ".safetensors.index.json", "../a.safetensors.index.json")
    ):
        suite.reject(
            f"layout-index-name-{k}",
            f"An index named {name!a}",
            "layout-two-validate",
            Change(manifest=[put("layout/index/name", name)]),
            "manifest.file-name",
            "manifest.file-name/layout safe.no-paths",
        )


def limits(suite: Suite) -> None:
    for limit, value in ASKED.items():
        slug = limit.replace("_", "-")
        suite.variant(
            f"layout-{slug}-at",
            f"The limit {limit} at what the layout asks for: {value}",
            "layout-two-validate",
            Change(limits={limit: value}),
            "limit.exceeded/layout",
        )
        for op in ("validate", "inspect"):
            suite.reject(
                f"layout-{slug}-{op}",
                f"The limit {limit} one below what the layout asks for: {op}",
                f"layout-two-{op}",
                Change(limits={limit: value - 1}),
                "limit.exceeded",
                "limit.exceeded/layout limit.exceeded",
                op=op,
            )


def cases(suite: Suite) -> None:
    accepted(suite)
    documents(suite)
    names(suite)
    limits(suite)
