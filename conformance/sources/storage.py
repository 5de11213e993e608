"""STORAGE: chunk tables, segments, planes, positions; what raw chunks must be."""

from __future__ import annotations

import struct

from conformance.assemble import Entry
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import Wire, add, drop, insert, put, rename, swap, write, xor
from conformance.assembler.suite import Suite

from .models import dense, noise, raw, single, sparse

OF = "container-all-kinds-validate"


def record(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<II", *pair) for pair in pairs)


def accepted(suite: Suite) -> None:
    for count in (4095, 4096, 4097, 8192, 8193):
        made = single(dense("U8", bytes(noise(count))), "U8", [count], None)
        suite.accept(
            f"storage-plane-{count}",
            f"A plane of {count} bytes in chunks of 4096",
            made,
            "storage.chunk-table storage.chunk-length storage.chunk-length/raw storage.chunk-bytes codec.raw "
            "layout.segments integrity.chunk integrity.content storage.data-length",
        )
    for count in (4095, 4096, 4097):
        made = single(dense("I32", bytes(noise(4 * count, 5))), "I32", [count], None)
        suite.accept(
            f"storage-planes-4-{count}",
            f"Four planes of {count} bytes each in chunks of 4096",
            made,
            "layout.planes storage.chunk-table layout.segments",
            "Where a plane ends, the next one starts a new chunk.",
        )
    for dtype in ("I16", "F32", "F64", "C64"):
        width = {"I16": 2, "F32": 4}.get(dtype, 8)
        made = single(dense(dtype, bytes(range(1, 1 + 3 * width))), dtype, [3], None)
        suite.accept(
            f"storage-planes-{dtype.lower()}",
            f"Three items of {dtype}: {width} planes of three bytes",
            made,
            "layout.planes dense.replace",
        )
    for exponent in range(12, 25):
        made = single(dense("U8", bytes(noise(5000))), "U8", [5000], None, chunk_bytes=1 << exponent)
        suite.accept(
            f"storage-chunk-bytes-2-{exponent}",
            f"chunk_bytes is 2^{exponent}",
            made,
            "storage.chunk-bytes limit.exceeded/chunk storage.chunk-length/raw",
            op="validate",
        )
    empty = Entry("m", "other", "", [], ("F32", [0, 3]))
    first, last = (Entry(name, "other", "", [dense("U8", bytes([k] * 5))], ("U8", [5])) for k, name in enumerate("az"))
    suite.accept(
        "storage-empty-tensor",
        "A tensor without elements between two others",
        Model({}, [first, empty, last]),
        "layout.contents layout.segments manifest.components/empty-tensor",
    )
    nothing = Entry("m", "other", "", [sparse("gap8", [], "U8", b"")], ("U8", [3]))
    suite.accept(
        "storage-empty-segment",
        "A segment without chunks between two others",
        Model({}, [first, nothing, last]),
        "layout.segments storage.chunk-table sparse.replace",
        "A content of 0 bytes has no chunk.",
    )
    suite.accept(
        "storage-64-each",
        "Segments of 64 bytes",
        Model({}, [Entry(n, "other", "", [dense("U8", bytes(noise(64, 3)))], ("U8", [64])) for n in "abc"]),
        "layout.segments storage.data-length",
    )
    suite.accept(
        "storage-contents-order",
        "Contents of several components, then side files",
        Model({}, [first, last], files={"config.json": b"1", "vocab.txt": b"22"}),
        "layout.contents layout.segments",
    )
    suite.accept(
        "storage-no-segments",
        "No contents at all",
        Model({"t": raw("U8", [3], b"\1\2\3")}),
        "storage.segments storage.data-length",
    )


def documents(suite: Suite) -> None:
    changes = (
        ("chunk-bytes-4095", "chunk_bytes is 4095", put("chunk_bytes", 4095), "storage.chunk-bytes"),
        ("chunk-bytes-4097", "chunk_bytes is 4097", put("chunk_bytes", 4097), "storage.chunk-bytes"),
        ("chunk-bytes-0", "chunk_bytes is 0", put("chunk_bytes", 0), "storage.chunk-bytes"),
        ("chunk-bytes-2048", "chunk_bytes is 2^11", put("chunk_bytes", 2048), "storage.chunk-bytes"),
        ("chunk-bytes-12288", "chunk_bytes is 3 * 2^12", put("chunk_bytes", 12288), "storage.chunk-bytes"),
        ("chunk-bytes-2-64", "chunk_bytes is 2^64 - 1", put("chunk_bytes", (1 << 64) - 1), "storage.chunk-bytes"),
        ("chunk-bytes-2-25", "chunk_bytes is 2^25", put("chunk_bytes", 1 << 25), "storage.chunk-bytes"),
        ("codec-lz4", "A segment with the codec lz4", put("segments/0/codec", "lz4"), "unsupported.codec"),
        ("codec-empty", "A segment with the empty codec", put("segments/0/codec", ""), "unsupported.codec"),
        ("codec-case", "A segment with the codec Raw", put("segments/0/codec", "Raw"), "unsupported.codec"),
        (
            "codec-private",
            "A segment with a codec for private use",
            put("segments/0/codec", "x-test"),
            "unsupported.codec",
        ),
        ("segment-missing", "One segment less than contents", drop("segments/8"), "storage.segments"),
        (
            "segment-more",
            "One segment more than contents",
            insert("segments/9", {"chunks": b"", "codec": "raw"}),
            "storage.segments",
        ),
        ("segment-none", "No segments, nine contents", put("segments", []), "storage.segments"),
        ("table-empty", "A chunk table without records", put("segments/0/chunks", b""), "storage.chunk-table"),
        ("table-odd", "A chunk table of 23 bytes", put("segments/0/chunks", bytes(23)), "storage.chunk-table"),
        ("missing-chunks", "A segment without chunks", drop("segments/0/chunks"), "manifest.missing-key"),
        ("missing-codec", "A segment without codec", drop("segments/0/codec"), "manifest.missing-key"),
        ("missing-chunk-bytes", "STORAGE without chunk_bytes", drop("chunk_bytes"), "manifest.missing-key"),
        ("missing-segments", "STORAGE without segments", drop("segments"), "manifest.missing-key"),
        ("unknown-key", "STORAGE with a key more", put("offset", 0), "manifest.unknown-key"),
        ("unknown-segment-key", "A segment with a key more", put("segments/0/offset", 0), "manifest.unknown-key"),
        ("type-chunk-bytes", "chunk_bytes is a str", put("chunk_bytes", "4096"), "manifest.type"),
        ("type-segments", "segments is a map", put("segments", {}), "manifest.type"),
        ("type-segment", "A segment is an array", put("segments/0", []), "manifest.type"),
        ("type-chunks-str", "chunks is a str", put("segments/0/chunks", "abcdefgh"), "manifest.type"),
        ("type-chunks-array", "chunks is an array of integers", put("segments/0/chunks", [2, 0]), "manifest.type"),
        ("type-codec", "A codec is a bin", put("segments/0/codec", b"raw"), "manifest.type"),
        (
            "rename-codec",
            "The key codec is written Codec",
            rename("segments/0/codec", "Codec"),
            "manifest.missing-key manifest.unknown-key",
        ),
    )
    for name, title, edit, codes in changes:
        suite.reject(
            f"storage-{name}",
            title,
            OF,
            Change(storage=[edit]),
            codes,
            codes.split()[0]
            + (" version.refuse version.private" if "codec" in name and "unsupported" in codes else ""),
        )
    suite.reject(
        "storage-segments-exchanged",
        "Two entries of segments exchanged",
        OF,
        Change(storage=[swap("segments", 0, 4)]),
        "storage.chunk-table storage.chunk-length",
        "storage.chunk-table layout.contents",
    )
    suite.reject(
        "storage-claims-segments",
        "segments claims 2^32 - 1 items",
        OF,
        Change(storage=[put("segments", Wire(b"\xdd\xff\xff\xff\xff"))]),
        "wire.truncated",
        "wire.truncated reader.allocation",
        rss_mb=64,
    )
    suite.reject(
        "storage-claims-chunks",
        "chunks claims 2^32 - 1 bytes",
        OF,
        Change(storage=[put("segments/0/chunks", Wire(b"\xc6\xff\xff\xff\xff"))]),
        "wire.truncated",
        "wire.truncated reader.allocation",
        rss_mb=64,
    )


def tables(suite: Suite) -> None:
    of = "storage-plane-8193"
    for count in (2, 4):
        table = record(*[(4096, 0)] * count)
        suite.reject(
            f"storage-table-{count}",
            f"{count} chunk records where 3 are due",
            of,
            Change(storage=[put("segments/0/chunks", table)]),
            "storage.chunk-table",
            "storage.chunk-table",
            op="validate",
        )
    lengths = (
        ("0/0", 0, "0"),
        ("0/0", 4095, "one less"),
        ("0/0", 4097, "one more"),
        ("0/2", 2, "that of a longer chunk"),
        ("0/0", (1 << 32) - 1, "2^32 - 1"),
    )
    for place, length, words in lengths:
        code = "storage.chunk-length"
        suite.reject(
            f"storage-raw-length-{place.replace('/', '-')}-{length}",
            f"A raw chunk's stored length is {words}: {length}",
            of,
            Change(records={place: {"length": length}}),
            code,
            f"{code} {code}/raw",
            op="validate",
        )
    for place in ("0/0", "0/2"):
        suite.reject(
            f"storage-crc-{place.replace('/', '-')}",
            f"The CRC-32 of chunk {place[-1]} is 0",
            of,
            Change(records={place: {"crc": 0}}),
            "integrity.chunk",
            "integrity.chunk",
            "Zero never means no checksum.",
            op="validate",
        )
    for at, mask in ((0, "01"), (4095, "80"), (4096, "01"), (8192, "40")):
        suite.reject(
            f"storage-bit-{at}",
            f"One bit of stored byte {at} flipped",
            of,
            Change(data=[xor(at, mask)]),
            "integrity.chunk",
            "integrity.chunk",
            op="validate",
        )
    suite.reject(
        "storage-lost-data",
        "DATA is all zeros",
        of,
        Change(data=[write(0, bytes(8193))]),
        "integrity.chunk",
        "integrity.chunk",
        "Lost data after a rename.",
        op="validate",
    )
    suite.reject(
        "storage-chunks-exchanged",
        "Two chunks of equal length exchanged, with their records",
        of,
        Change(stored={"0/0": bytes(noise(8193))[4096:8192], "0/1": bytes(noise(8193))[:4096]}),
        "integrity.content",
        "integrity.content content.use",
        "The content's digest binds a chunk to its place.",
        op="validate",
    )
    suite.reject(
        "storage-content-bit",
        "One bit of a content flipped, its chunk's CRC-32 repaired",
        of,
        Change(stale={0: [xor(5, "01")]}),
        "integrity.content",
        "integrity.content content.use",
        op="validate",
    )
    suite.reject(
        "storage-content-digest-zero",
        "The digest of a content is all zero",
        of,
        Change(manifest=[put("tensors/0/components/0/sha256", bytes(32))]),
        "integrity.content",
        "integrity.content",
        op="validate",
    )
    suite.reject(
        "storage-digest-before-values",
        "A BOOL of 7 in a content whose digest is stale",
        "dense-replace-bool",
        Change(stale={0: [write(0, b"\7")]}),
        "integrity.content",
        "content.use integrity.content",
        "The digest comes before an encoding interprets the content.",
        op="validate",
    )
    items = "storage-planes-i16"
    suite.reject(
        "storage-items-not-planes",
        "Items stored one after the other and not as planes",
        items,
        Change(stored={"0/0": bytes([1, 2, 3]), "0/1": bytes([4, 5, 6])}),
        "integrity.content",
        "layout.planes integrity.content",
        "The digest is over the planes in order.",
        op="validate",
    )


def lengths(suite: Suite) -> None:
    of = "storage-plane-8193"
    suite.reject(
        "storage-data-length-more",
        "A byte of DATA that no chunk has",
        of,
        Change(data=[add("end", b"\0")]),
        "storage.data-length",
        "storage.data-length",
        "No byte can hide.",
        op="validate",
    )
    suite.reject(
        "storage-data-length-padded",
        "DATA padded to a multiple of 64",
        of,
        Change(data=[add("end", bytes(63))]),
        "storage.data-length",
        "storage.data-length",
        op="validate",
    )
    suite.reject(
        "storage-data-length-none",
        "A byte of DATA where there are no segments",
        "container-identical-validate",
        Change(data=[add("end", b"\0")]),
        "storage.data-length",
        "storage.data-length",
    )
    suite.reject(
        "storage-data-length-less",
        "The last byte of DATA left out, lengths and size repaired",
        of,
        Change(data=[{"at": -1, "delete": 1}]),
        "storage.data-length",
        "storage.data-length",
        op="validate",
    )
    suite.reject(
        "storage-segment-aligned",
        "The second segment begins at a multiple of 64, zeros before it",
        "storage-contents-order",
        Change(data=[{"at": 5, "insert": bytes(59)}]),
        "storage.data-length",
        "layout.segments storage.data-length",
        "There is no padding: no byte can hide.",
        op="validate",
    )


def cases(suite: Suite) -> None:
    accepted(suite)
    documents(suite)
    tables(suite)
    lengths(suite)
