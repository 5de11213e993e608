"""Limits: the value itself, and one above it; sizes that wrap; what must not be allocated."""

from __future__ import annotations

import string
from typing import Any

from conformance.assemble import Entry
from conformance.assembler.draft import Change, Model, assembled
from conformance.assembler.edits import Wire, encoded, put
from conformance.assembler.suite import Suite

from .models import ALL_KINDS, dense_add, raw, single, tensor

Document = dict[str, Any]
KINDS = "container-all-kinds-validate"
# what ALL_KINDS asks for: limit -> (value, stage's requirement)
ASKED = {
    "tensors": (8, "limit.exceeded/tensors"),
    "tensor_rank": (2, "limit.exceeded/rank"),
    "tensor_bytes": (26, "limit.exceeded/tensor-bytes"),
    "name_bytes": (8, "limit.exceeded/name"),
    "components": (2, "limit.exceeded/components"),
    "chunk_bytes": (4096, "limit.exceeded/chunk"),
    "metadata_entries": (2, "limit.exceeded/metadata"),
    "metadata_bytes": (25, "limit.exceeded/metadata"),
    "side_files": (2, "limit.exceeded/side-files"),
    "side_file_bytes": (304, "limit.exceeded/side-files"),
    "tensor_products": (12, "limit.exceeded/products"),
    "header_depth": (7, "limit.exceeded/depth"),
}


def lowered(suite: Suite, manifest_bytes: int, storage_bytes: int, nodes: int) -> None:
    asked = {
        **ASKED,
        "manifest_bytes": (manifest_bytes, "limit.exceeded/sections"),
        "storage_bytes": (storage_bytes, "limit.exceeded/sections"),
        "header_nodes": (nodes, "limit.exceeded/nodes"),
    }
    for name, (value, requirement) in asked.items():
        slug = name.replace("_", "-")
        suite.variant(
            f"limit-{slug}-at",
            f"The limit {name} at what the pack asks for: {value}",
            KINDS,
            Change(limits={name: value}),
            f"{requirement} limit.exceeded reader.limits",
            "A value equal to a limit is within it.",
        )
        suite.reject(
            f"limit-{slug}-below",
            f"The limit {name} one below what the pack asks for: {value - 1}",
            KINDS,
            Change(limits={name: value - 1}),
            "limit.exceeded",
            f"{requirement} limit.exceeded reader.limits",
        )
        suite.reject(
            f"limit-{slug}-inspect",
            f"The limit {name} one below what the pack asks for: inspect",
            KINDS,
            Change(limits={name: value - 1}),
            "limit.exceeded",
            f"{requirement} reader.codes",
            op="inspect",
        )


def defaults(suite: Suite) -> None:
    many = single([dense_add("F32", k + 1) for k in range(8)], "F32", [1], tensor("F32", [1], 1))
    suite.accept(
        "limit-components-8", "Eight components in an entry", many, "limit.exceeded/components num.order reader.least"
    )
    extra = {"dtype": "F32", "encoding": "dense", "mode": "add", "sha256": bytes(32)}
    suite.reject(
        "limit-components-9",
        "Nine components in an entry",
        "limit-components-8",
        Change(manifest=[{"insert": "tensors/0/components/8", "value": extra}]),
        "limit.exceeded",
        "limit.exceeded/components",
        op="validate",
    )
    of = "dtype-u8"
    shapes = (
        ("rank-9", [1] * 8 + [8], "limit.exceeded/rank", "Nine dimensions"),
        ("rank-10000", [1] * 10000, "limit.exceeded/rank", "10000 dimensions"),
        ("bytes-above", [(1 << 36) + 1], "limit.exceeded/tensor-bytes", "2^36 + 1 elements of U8"),
        ("bytes-2-63", [1 << 63], "limit.exceeded/tensor-bytes", "2^63 elements"),
        ("wraps-to-0", [1 << 32, 1 << 32], "limit.exceeded/tensor-bytes", "A shape whose product wraps to 0"),
        (
            "wraps-to-4",
            [4194305, 4194305, 211106198978564],
            "limit.exceeded/tensor-bytes",
            "A shape whose product wraps to 4",
        ),
        ("all-dimensions", [(1 << 64) - 1] * 8, "limit.exceeded/tensor-bytes", "Eight dimensions of 2^64 - 1"),
    )
    for name, shape, requirement, title in shapes:
        suite.reject(
            f"limit-{name}",
            title,
            of,
            Change(manifest=[put("tensors/0/result/shape", shape)]),
            "limit.exceeded",
            f"{requirement} reader.arithmetic safe.size-first limit.exceeded",
            op="validate",
            rss_mb=64,
        )
    for dtype, count in (("f64", (1 << 33) + 1), ("c64", (1 << 33) + 1), ("f4", (1 << 37) + 2)):
        suite.reject(
            f"limit-bytes-{dtype}",
            f"{count} elements of {dtype.upper()}",
            f"dtype-{dtype}",
            Change(manifest=[put("tensors/0/result/shape", [count])]),
            "limit.exceeded",
            "limit.exceeded/tensor-bytes",
            "The limit is of bytes.",
            op="validate",
            rss_mb=64,
        )
    suite.reject(
        "limit-bytes-at",
        "A tensor of 2^36 bytes whose content the pack does not have",
        of,
        Change(manifest=[put("tensors/0/result/shape", [1 << 36])]),
        "storage.chunk-table",
        "storage.chunk-table limit.exceeded/tensor-bytes safe.size-first reader.allocation",
        "It is within the limit; nothing may be allocated for it before the chunk table is compared.",
        op="validate",
        rss_mb=64,
    )
    suite.reject(
        "limit-base-shape",
        "The base of an entry has 2^60 elements",
        "encoding-plain",
        Change(manifest=[put("tensors/0/base/shape", [1 << 60])]),
        "limit.exceeded",
        "limit.exceeded/tensor-bytes",
        op="validate",
        rss_mb=64,
    )
    for name, shape in (("0", [1 << 32, 1 << 32]), ("1", [(1 << 63) + 1, 2, (1 << 63) + 1])):
        suite.reject(
            f"limit-removed-wraps-to-{name}",
            f"A removed tensor whose size wraps to less than 2^36: {shape}",
            "entry-removed",
            Change(manifest=[put("tensors/0/base/shape", shape)]),
            "limit.exceeded",
            "limit.exceeded/tensor-bytes reader.arithmetic",
            op="validate",
        )
    suite.reject(
        "limit-sparse-wraps",
        "A tensor whose size wraps to 0, with a content of 0 bytes",
        "storage-empty-segment",
        Change(manifest=[put("tensors/1/result/shape", [1 << 32, 1 << 32])]),
        "limit.exceeded",
        "limit.exceeded/tensor-bytes reader.arithmetic",
        op="validate",
    )
    counts = Model({"beside": raw("U8", [1], b"\1")})
    suite.accept(
        "limit-counts", "A pack that changes nothing of one tensor", counts, "limit.exceeded/tensors", op="validate"
    )
    for value in (262145, 262144):
        edits = [put("base/count", value), put("base/prints", bytes(4 * value)), put("result/count", value)]
        if value > 262144:
            suite.reject(
                "limit-base-count-above",
                "A base of 262145 tensors",
                "limit-counts",
                Change(manifest=edits),
                "limit.exceeded",
                "limit.exceeded/tensors",
            )
        else:
            suite.variant(
                "limit-base-count-at",
                "A base of 262144 tensors",
                "limit-counts",
                Change(manifest=edits),
                "limit.exceeded/tensors reader.least wire.not-shortest",
            )
    for count in (256, 257):
        metadata = {f"k{k:03}": "" for k in range(count)}
        if count == 256:
            suite.accept(
                "limit-metadata-256",
                "256 pairs in metadata",
                Model(metadata=metadata),
                "limit.exceeded/metadata reader.least",
                op="validate",
            )
        else:
            suite.reject(
                "limit-metadata-257",
                "257 pairs in metadata",
                "limit-metadata-256",
                Change(manifest=[put("metadata", metadata)]),
                "limit.exceeded",
                "limit.exceeded/metadata",
            )
    full = {"k": "v" * ((1 << 20) - 1)}
    suite.accept(
        "limit-metadata-1-mib", "1 MiB of metadata", Model(metadata=full), "limit.exceeded/metadata", op="validate"
    )
    suite.reject(
        "limit-metadata-1-mib-and-1",
        "One byte more than 1 MiB of metadata",
        "limit-metadata-1-mib",
        Change(manifest=[put("metadata/k", "v" * (1 << 20))]),
        "limit.exceeded",
        "limit.exceeded/metadata",
    )
    suite.accept(
        "limit-metadata-utf8",
        "101 bytes of metadata in letters of two bytes",
        Model(metadata={"k": "\u00e9" * 50}),
        "limit.exceeded/metadata",
        op="validate",
    )
    suite.variant(
        "limit-metadata-utf8-at",
        "Metadata in letters of two bytes, as many bytes as the limit",
        "limit-metadata-utf8",
        Change(limits={"metadata_bytes": 101}),
        "limit.exceeded/metadata",
        "The limit is of bytes, not of characters, and of no other form of them.",
    )
    suite.reject(
        "limit-metadata-utf8-above",
        "Metadata in letters of two bytes, a byte more than the limit and not half as many characters",
        "limit-metadata-utf8",
        Change(limits={"metadata_bytes": 100}),
        "limit.exceeded",
        "limit.exceeded/metadata",
    )


def content_size(suite: Suite) -> None:
    """A content that is larger than its tensor."""
    entry = Entry("w", "other", "", [dense_add("F32", 1, 2)], ("BF16", [2]))
    made = Model({"w": tensor("BF16", [2], 1, 2)}, [entry])
    suite.accept("limit-content-8", "A content of 8 bytes for a tensor of 4", made, "limit.exceeded/tensor-bytes")
    suite.variant(
        "limit-content-8-at",
        "The limit tensor_bytes at the size of a content",
        "limit-content-8",
        Change(limits={"tensor_bytes": 8}),
        "limit.exceeded/tensor-bytes",
        op="validate",
    )
    suite.reject(
        "limit-content-8-below",
        "A content above the limit tensor_bytes, the tensor within it",
        "limit-content-8",
        Change(limits={"tensor_bytes": 7}),
        "limit.exceeded",
        "limit.exceeded/tensor-bytes",
        op="validate",
    )


def density(suite: Suite, manifest: Document, storage: Document) -> None:
    """As many values as the bytes of a document allow, and one more in as many bytes."""
    pairs = {first + second: "" for first in string.ascii_lowercase[:16] for second in string.ascii_lowercase[:16]}
    suite.accept(
        "limit-density-free",
        "256 pairs in metadata, a value for every two bytes",
        Model(metadata=pairs),
        "limit.exceeded/density reader.least",
        op="validate",
        why="4096 values are free.",
    )
    for name, document, path in (("manifest", manifest, "metadata/license"), ("storage", storage, "chunk_bytes")):
        place, _, key = path.rpartition("/")
        replaced = document[place][key] if place else document[key]
        nbytes = len(encoded(document)) - len(encoded(replaced)) + len(items_and_filling(0, 0).data)
        values = values_of(document) + 2
        items, filling = items_allowed(nbytes, values)
        for slug, count, code in (("at", items, "manifest.type"), ("above", items + 1, "limit.exceeded")):
            edit = put(path, items_and_filling(count, filling + items - count))
            suite.reject(
                f"limit-density-{name}-{slug}",
                f"{name.upper()} of {values + count} values in {nbytes + filling + items} bytes",
                KINDS,
                Change(manifest=[edit]) if name == "manifest" else Change(storage=[edit]),
                code,
                "limit.exceeded/density" + (" manifest.type" if slug == "at" else ""),
                "It is within the limit, so the type decides." if slug == "at" else "",
                op="inspect" if slug == "at" else "validate",
            )


def items_and_filling(count: int, filling: int) -> Wire:
    """An array of an array of ``count`` integers and a bin."""
    return Wire(b"\x92\xdc" + count.to_bytes(2, "big") + b"\7" * count + b"\xc4" + bytes([filling]) + bytes(filling))


def items_allowed(nbytes: int, values: int) -> tuple[int, int]:
    """Integers and bytes of a bin that make a document of so many bytes and values as dense as it may be.

    Its size has the remainder 4 by 5, so that a reader that rounds up allows one value more.
    """
    return next(
        (items, filling)
        for items in range(1 << 16)
        for filling in range(1, 6)
        if (nbytes + items + filling) % 5 == 4 and values + items == 4096 + (nbytes + items + filling) // 5
    )


def cases(suite: Suite) -> None:
    files = assembled(ALL_KINDS)
    density(suite, files.manifest, files.storage)
    lowered(
        suite,
        int.from_bytes(files.pack[16:24], "little"),
        int.from_bytes(files.pack[24:32], "little"),
        values_of(files.manifest),
    )
    defaults(suite)
    content_size(suite)


def values_of(document: object) -> int:
    """How many values a document has, by wire.md: a map key counts one."""
    if isinstance(document, dict):
        return 1 + sum(1 + values_of(each) for each in document.values())
    if isinstance(document, list):
        return 1 + sum(map(values_of, document))
    return 1
