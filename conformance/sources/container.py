"""Preamble, header, order of checks."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from conformance.assemble import Entry
from conformance.assembler.draft import Change, Model, assembled
from conformance.assembler.edits import Wire, add, delete, drop, encoded, put, truncate, write, xor
from conformance.assembler.frames import RAW, RLE, block, frame
from conformance.assembler.suite import Suite

from .models import ALL_KINDS, IDENTICAL, dense, raw

FOREIGN = {
    "zip": b"PK\x03\x04\x14\0\0\0",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "safetensors": struct.pack("<Q", 96),
    "gguf": b"GGUF\x03\0\0\0",
    "pickle": b"\x80\x04\x95\x10\0\0\0\0",
    "png": b"\x89PNG\r\n\x1a\n",
    "elf": b"\x7fELF\x02\x01\x01\0",
    "lfs-pointer": b"version ",
    "html": b"<!DOCTYP",
    "zstd": b"\x28\xb5\x2f\xfd\0\0\0\0",
    "text-mode-lf": b"\x89SKP\n\x1a\n\0",
    "text-mode-crlf": b"\x89SKP\r\r\n\x1a",
    "seven-bit": b"\x09SKP\r\n\x1a\n",
    "upper-bytes-reversed": b"\n\x1a\n\rPKS\x89",
}


def accepted(suite: Suite) -> None:
    for op in ("validate", "inspect", "apply"):
        suite.accept(
            f"container-identical-{op}",
            f"A pack that changes nothing: {op}",
            IDENTICAL,
            "container.layout framing.magic framing.truncated framing.trailing-bytes framing.preamble-crc "
            "framing.reserved unsupported.version manifest.components/none digest.checkpoint",
            op=op,
            why="The smallest pack: nothing follows the header.",
        )
        suite.accept(
            f"container-all-kinds-{op}",
            f"Every kind of entry, every encoding, raw and zstd segments: {op}",
            ALL_KINDS,
            "container.layout container.header container.order integrity.manifest integrity.storage layout.contents "
            "layout.segments storage.segments reader.levels reader.bits writer.valid error.code reader.codes "
            "apply.unchanged apply.removed apply.alias integrity.result integrity.result/checkpoint apply.verify "
            "manifest.type "
            "manifest.missing-key manifest.unknown-key manifest.value/format unsupported.encoding unsupported.codec "
            "wire.type wire.truncated wire.trailing manifest.name/alias",
            op=op,
        )
    suite.accept(
        "container-empty-base",
        "A pack for a checkpoint without tensors",
        Model(),
        "digest.checkpoint container.layout",
        why="The checkpoint digest of no tensors is the SHA-256 of the byte 90.",
    )
    suite.accept(
        "container-added-to-nothing",
        "A tensor added to a checkpoint without tensors",
        Model({}, [Entry("w", "other", "", [dense("U8", b"\1\2\3")], ("U8", [3]))]),
        "num.start dense.replace digest.checkpoint",
    )


BLOCK_MAXIMUM = 1 << 17  # RFC 8878, 3.1.1.2.4
WORDY = Model(
    {"a": raw("U8", [3], b"\1\2\3")},
    [Entry("a", "other", "", [dense("U8", b"\4\5\6")], ("U8", [3]))],
    metadata={"k": "x" * 2000},
)


def documents_of(model: Model) -> tuple[bytes, bytes]:
    """MANIFEST and STORAGE of a pack."""
    files = assembled(model)
    return encoded(files.manifest), encoded(files.storage)


def runs(data: bytes, byte: bytes = b"x") -> list[tuple[int, bytes, int]]:
    """Zstd blocks (kind, data, size) of ``data``, the run of ``byte`` in it as RLE blocks."""
    at = data.index(byte * 100)
    end = next(k for k in range(at, len(data)) if data[k : k + 1] != byte)
    middle = [(RLE, byte, min(BLOCK_MAXIMUM, end - k)) for k in range(at, end, BLOCK_MAXIMUM)]
    return [(RAW, data[:at], at), *middle, (RAW, data[end:], len(data) - end)]


def framed(data: bytes, content: int | None = -1, **more: Any) -> bytes:
    """``data`` as one frame of runs; ``content`` is the size it says."""
    pieces = runs(data)
    blocks = b"".join(block(kind, each, size, k == len(pieces) - 1) for k, (kind, each, size) in enumerate(pieces))
    return frame(blocks, len(data) if content == -1 else content, **more)


def compressed(suite: Suite) -> None:
    """A header that is one frame."""
    manifest, storage = documents_of(WORDY)
    data = manifest + storage
    for op in ("inspect", "validate", "apply"):
        suite.accept(
            f"header-framed-{op}",
            f"MANIFEST and STORAGE are one zstd frame: {op}",
            WORDY,
            "container.header container.layout integrity.header integrity.manifest integrity.storage codec.zstd "
            "payload.frame/header",
            "The pack_id is that of the same documents stored as they are.",
            op=op,
            change=Change(header=framed(data)),
        )
    for op in ("inspect", "apply"):
        suite.accept(
            f"header-as-it-is-{op}",
            f"The same documents as they are: {op}",
            WORDY,
            "container.header framing.header-length codec.as-is",
            op=op,
        )
    window = 3 << 3  # 8 KiB
    suite.accept(
        "header-framed-window",
        "The frame of the header has a window of its own",
        WORDY,
        "container.header codec.zstd",
        op="validate",
        change=Change(header=framed(data, window=window, flag=1)),
    )
    of = "header-as-it-is-inspect"
    frames = (
        ("magic", "another magic", framed(data, magic=b"\x27\xb5\x2f\xfd"), "payload.frame/magic"),
        ("no-size", "no content size", framed(data, None, window=window), "payload.frame/content-size"),
        ("size-less", "a content size of a byte less", framed(data, len(data) - 1), "payload.frame/content-size"),
        ("size-more", "a content size of a byte more", framed(data, len(data) + 1), "payload.frame/content-size"),
        ("size-huge", "a content size of 2^40", framed(data, 1 << 40, flag=3), "payload.frame/content-size"),
        ("checksum", "a checksum", framed(data, bits=4) + bytes(4), "payload.frame/checksum"),
        ("dictionary", "a dictionary", framed(data, bits=1, extra=b"\1"), "payload.frame/dictionary"),
        ("reserved", "the reserved bit", framed(data, bits=8), "payload.frame/reserved"),
        ("window", "a window of 2^25", framed(data, window=15 << 3, flag=1), "payload.frame/window"),
        ("second", "a second frame", framed(data) + frame(block(RAW, b""), 0), "payload.frame/trailing"),
        ("behind", "a byte behind it", framed(data) + b"\0", "payload.frame/trailing"),
        ("cut", "its last byte missing", framed(data)[:-1], "payload.frame"),
        ("fewer", "a byte less than it says", framed(data[:-1], len(data)), "payload.frame"),
        ("more", "a byte more than it says", framed(data + b"\0", len(data)), "payload.frame"),
        ("none", "no frame but the first bytes of the documents", data[:300], "payload.frame/magic"),
    )
    for name, words, stored, requirement in frames:
        suite.reject(
            f"header-frame-{name}",
            f"The frame of the header has {words}" if name != "none" else f"The header is {words}",
            of,
            Change(header=stored),
            "payload.frame",
            f"{requirement} payload.frame/header container.header",
        )
    suite.reject(
        "header-frame-stale-checksum",
        "The header's checksum is wrong, and its frame has another magic",
        of,
        Change(header=framed(data, magic=b"\x27\xb5\x2f\xfd"), preamble={"header-checksum": 1}),
        "integrity.header",
        "integrity.header safe.digest-first",
        "The checksum comes before the frame is opened.",
    )
    changed = framed(data.replace(b"x" * 2000, b"x" * 1999 + b"y"))
    suite.reject(
        "header-frame-other-documents",
        "The frame holds another MANIFEST than the one that the preamble has the digest of",
        of,
        Change(header=changed),
        "integrity.manifest",
        "integrity.manifest",
    )
    large = Model(WORDY.base, WORDY.entries, files={"vocab.txt": b"1"}, metadata={"k": "x" * 1000})
    _bounds(suite, large)


def _bounds(suite: Suite, model: Model) -> None:
    """Documents of 2^20 bytes and of one more."""
    for total, slug in ((1 << 20, "at"), ((1 << 20) + 1, "above")):
        sizes = [len(each) for each in documents_of(_of_run(model, 1 << 19))]
        found = _of_run(model, (1 << 19) + total - sum(sizes))
        data = b"".join(documents_of(found))
        assert len(data) == total
        if slug == "at":
            suite.accept(
                "header-framed-2-20",
                "Documents of 2^20 bytes in a frame",
                found,
                "container.header framing.header-length",
                op="inspect",
                change=Change(header=framed(data, flag=2)),
                rss_mb=256,
            )
        else:
            suite.accept(
                "header-as-it-is-2-20-and-1",
                "Documents of 2^20 + 1 bytes as they are",
                found,
                "container.header framing.header-length",
                op="inspect",
            )
            suite.reject(
                "header-frame-above-2-20",
                "Documents of 2^20 + 1 bytes in a frame",
                "header-as-it-is-2-20-and-1",
                Change(header=framed(data, flag=2)),
                "framing.header-length",
                "framing.header-length",
                "A small file cannot ask for the work of a large header.",
            )


def _of_run(model: Model, count: int) -> Model:
    return replace(model, metadata={"k": "x" * count})


def beginnings(suite: Suite) -> None:
    of = "container-identical-validate"
    for name, head in FOREIGN.items():
        suite.reject(
            f"magic-{name}",
            f"A file that begins like {name.replace('-', ' ')}",
            of,
            Change(file=[write(0, head)]),
            "framing.magic",
            "framing.magic",
        )
    suite.reject(
        "magic-one-bit",
        "One bit of the magic flipped",
        of,
        Change(file=[xor(7, "01")]),
        "framing.magic",
        "framing.magic",
    )
    suite.reject(
        "magic-after-bom",
        "A byte order mark before the pack",
        of,
        Change(file=[add(0, b"\xef\xbb\xbf")]),
        "framing.magic",
        "framing.magic",
    )
    suite.reject(
        "magic-after-a-byte",
        "A zero byte before the pack",
        of,
        Change(file=[add(0, b"\0")]),
        "framing.magic",
        "framing.magic",
    )
    suite.reject(
        "magic-short-foreign",
        "A file of three bytes that are not the magic's",
        of,
        Change(file=[truncate(3), write(0, b"PK\x03")]),
        "framing.magic",
        "framing.magic",
        "Of a file shorter than 8 bytes, the bytes that are there count.",
    )
    suite.reject(
        "magic-foreign-127",
        "127 bytes of zeros",
        of,
        Change(file=[truncate(127), write(0, bytes(127))]),
        "framing.magic",
        "framing.magic container.order",
    )
    for length in (0, 1, 7, 8, 64, 127):
        suite.reject(
            f"truncated-to-{length}",
            f"The first {length} bytes of a pack",
            of,
            Change(file=[truncate(length)]),
            "framing.truncated",
            "framing.truncated",
        )


def preambles(suite: Suite) -> None:
    of = "container-identical-validate"
    suite.reject(
        "crc-stale",
        "The checksum of the preamble has one bit flipped",
        of,
        Change(file=[xor(124, "01")]),
        "framing.preamble-crc",
        "framing.preamble-crc",
    )
    suite.reject(
        "crc-zero",
        "The checksum of the preamble is 0",
        of,
        Change(preamble={"checksum": 0}),
        "framing.preamble-crc",
        "framing.preamble-crc",
        "Zero never means that there is no checksum.",
    )
    for at in (8, 10, 12, 16, 24, 32, 40, 47, 48, 79, 80, 111, 112, 123):
        suite.reject(
            f"crc-bit-at-{at}",
            f"One bit of preamble byte {at} flipped, the checksum as it was",
            of,
            Change(file=[xor(at, "10")]),
            "framing.preamble-crc",
            "framing.preamble-crc container.order",
            "The checksum comes before version, reserved bytes and lengths.",
        )
    for major, minor in ((0, 0), (2, 0), (256, 0), (65535, 65535), (1, 1), (1, 256), (1, 65535)):
        suite.reject(
            f"version-{major}-{minor}",
            f"Version {major}.{minor}",
            of,
            Change(preamble={"major": major, "minor": minor}),
            "unsupported.version",
            "unsupported.version version.refuse",
        )
    for at in (0, 5, 11):
        suite.reject(
            f"reserved-{112 + at}",
            f"The reserved byte at offset {112 + at} is 1",
            of,
            Change(preamble={"reserved": bytes(k == at for k in range(12))}),
            "framing.reserved",
            "framing.reserved",
        )


def lengths(suite: Suite) -> None:
    of = "container-identical-validate"
    limit = 67108864
    for name, where in (("manifest-length", "manifest_bytes"), ("storage-length", "storage_bytes")):
        for value, words in ((limit + 1, "one above the limit"), ((1 << 63), "2^63"), ((1 << 64) - 1, "2^64 - 1")):
            suite.reject(
                f"{name}-{words.replace('2^64 - 1', '2-64-less-1').replace(' ', '-').replace('^', '-')}",
                f"The {name.replace('-', ' ')} is {words}",
                of,
                Change(preamble={name: value}),
                "limit.exceeded",
                "limit.exceeded/sections limit.exceeded reader.arithmetic safe.size-first reader.allocation",
                f"It is above {where} and refused before anything of that size is allocated.",
                rss_mb=64,
            )
        other = len(documents_of(IDENTICAL)[name == "manifest-length"])
        suite.reject(
            f"{name}-at-limit",
            f"The {name.replace('-', ' ')} is its limit, the header as long as it asks, the file short",
            of,
            Change(preamble={name: limit, "header-length": limit + other}),
            "framing.truncated",
            "framing.truncated limit.exceeded/sections",
            rss_mb=64,
        )
    for value, words in ((1, "1"), (1 << 40, "2^40"), ((1 << 63), "2^63"), ((1 << 64) - 1, "2^64 - 1")):
        name = words.replace("^", "-").replace(" - ", "-less-")
        suite.reject(
            f"data-length-{name}",
            f"The data length is {words}, DATA is empty",
            of,
            Change(preamble={"data-length": value}),
            "framing.truncated",
            "framing.truncated reader.arithmetic container.layout",
        )
    kinds = "container-all-kinds-validate"
    suite.reject(
        "manifest-length-0",
        "The manifest length is 0",
        kinds,
        Change(preamble={"manifest-length": 0}),
        "framing.header-length",
        "framing.header-length container.order",
    )
    size = sum(map(len, documents_of(ALL_KINDS)))
    for value, words in ((0, "0"), (size + 1, "a byte too large"), ((1 << 64) - 1, "2^64 - 1")):
        suite.reject(
            f"header-length-{words.replace('^', '-').replace(' - ', '-less-').replace(' ', '-')}",
            f"The header length is {words}",
            kinds,
            Change(preamble={"header-length": value}),
            "framing.header-length",
            "framing.header-length reader.arithmetic",
            rss_mb=64,
        )
    suite.reject(
        "header-length-less",
        "The header length is a byte too small",
        kinds,
        Change(preamble={"header-length": size - 1}),
        "framing.trailing-bytes",
        "framing.trailing-bytes container.order",
    )
    suite.reject(
        "header-length-less-data-more",
        "The header length is a byte too small, the data length a byte too large",
        of,
        Change(preamble={"header-length": sum(map(len, documents_of(IDENTICAL))) - 1, "data-length": 1}),
        "integrity.header",
        "integrity.header container.order",
    )
    suite.reject(
        "cut-last-byte",
        "The last byte is missing",
        kinds,
        Change(file=[truncate(-1)]),
        "framing.truncated",
        "framing.truncated",
    )
    suite.reject(
        "cut-header",
        "The last byte of STORAGE is missing, DATA is empty",
        of,
        Change(file=[truncate(-1)]),
        "framing.truncated",
        "framing.truncated container.layout",
    )
    suite.reject(
        "cut-half",
        "Half of the file is missing",
        kinds,
        Change(file=[truncate(700)]),
        "framing.truncated",
        "framing.truncated",
    )
    for count, data, words in (
        (1, b"\0", "a zero byte"),
        (4096, bytes(4096), "4096 zero bytes"),
        (22, b"PK\x05\x06" + bytes(18), "an empty zip"),
    ):
        suite.reject(
            f"trailing-{count}",
            f"After the pack comes {words}",
            kinds,
            Change(file=[add("end", data)]),
            "framing.trailing-bytes",
            "framing.trailing-bytes",
        )
    suite.reject(
        "trailing-pack",
        "Two packs one after the other",
        of,
        Change(file=[add("end", assembled(IDENTICAL).pack)]),
        "framing.trailing-bytes",
        "framing.trailing-bytes",
    )
    suite.reject(
        "deleted-byte",
        "One byte of MANIFEST deleted",
        kinds,
        Change(file=[delete(200, 1)]),
        "framing.truncated",
        "framing.truncated",
    )
    suite.reject(
        "inserted-byte",
        "One byte inserted into MANIFEST",
        kinds,
        Change(file=[add(200, b"\0")]),
        "framing.trailing-bytes",
        "framing.trailing-bytes",
    )


def digests(suite: Suite) -> None:
    of = "container-all-kinds-validate"
    manifest, storage = documents_of(ALL_KINDS)
    for document, at in (("manifest", 0), ("storage", len(manifest))):
        code = f"integrity.{document}"
        suite.reject(
            f"{document}-bit",
            f"One bit of {document.upper()} flipped",
            of,
            Change(file=[xor(f"{document}+5", "01")]),
            "integrity.header",
            "integrity.header safe.digest-first",
        )
        whole = bytearray(manifest + storage)
        whole[at + 5] ^= 1
        suite.reject(
            f"{document}-bit-checksum-repaired",
            f"One bit of {document.upper()} flipped, the checksum of the header repaired",
            of,
            Change(header=bytes(whole)),
            code,
            f"{code} safe.digest-first",
        )
        whole[at : at + 6] = b"\xc1" + (manifest + storage)[at + 1 : at + 6]
        suite.reject(
            f"{document}-first-byte",
            f"The first byte of {document.upper()} is C1, the checksum of the header repaired",
            of,
            Change(header=bytes(whole)),
            code,
            f"{code} safe.digest-first container.order",
            "The digest comes before msgpack.",
        )
        for value, words in ((bytes(32), "zero"), (b"\xff" * 32, "ff")):
            suite.reject(
                f"{document}-digest-{words}",
                f"The {document} digest is all {words}",
                of,
                Change(preamble={f"{document}-digest": value}),
                code,
                code,
                "No value of a digest means that there is none.",
            )
    suite.reject(
        "header-checksum-zero",
        "The checksum of the header is 0",
        of,
        Change(preamble={"header-checksum": 0}),
        "integrity.header",
        "integrity.header",
        "Zero never means that there is no checksum.",
    )
    suite.reject(
        "sector-of-zeros",
        "512 bytes of MANIFEST are zero",
        of,
        Change(file=[write(512, bytes(512))]),
        "integrity.header",
        "integrity.header",
        "A torn write.",
    )


def order(suite: Suite) -> None:
    """Two faults: the earlier stage decides. The change is one by name: both faults at once."""
    of = "container-all-kinds-validate"
    bad = Wire(b"\xc1")
    pairs = (
        ("3-4", {"preamble": {"major": 9, "checksum": 1}}, "framing.preamble-crc", "checksum and version"),
        (
            "4-5",
            {"preamble": {"major": 9, "reserved": b"\1" + bytes(11)}},
            "unsupported.version",
            "version and a reserved byte",
        ),
        (
            "5-6",
            {"preamble": {"reserved": b"\1" + bytes(11), "manifest-length": 1 << 40}},
            "framing.reserved",
            "a reserved byte and the limit on M",
        ),
        (
            "6-6",
            {"preamble": {"manifest-length": 1 << 40, "header-length": 0}},
            "limit.exceeded",
            "the limit on M and a header length of 0",
        ),
        (
            "6-7",
            {"preamble": {"header-length": 0}, "file": [truncate(300)]},
            "framing.header-length",
            "a header length of 0 and the size of the file",
        ),
        (
            "7-8",
            {"file": [xor("manifest", "01"), add("end", b"\0")]},
            "framing.trailing-bytes",
            "a trailing byte and the checksum of the header",
        ),
        (
            "8-9",
            {"preamble": {"header-checksum": 1, "manifest-digest": bytes(32)}},
            "integrity.header",
            "the checksum of the header and the digest of MANIFEST",
        ),
        (
            "9-9",
            {"preamble": {"storage-digest": bytes(32), "manifest-digest": bytes(32)}},
            "integrity.manifest",
            "the digests of both documents",
        ),
        (
            "9-10",
            {"manifest": [put("metadata", bad)], "preamble": {"storage-digest": bytes(32)}},
            "integrity.storage",
            "the digest of STORAGE and the msgpack of MANIFEST",
        ),
        (
            "10-11",
            {"manifest": [drop("format")], "storage_wire": [add("end", b"\0")]},
            "wire.trailing",
            "the msgpack of STORAGE and a key of MANIFEST",
        ),
        (
            "11-12",
            {"manifest": [put("format", "skillpack/2")], "storage": [put("chunk_bytes", 4097)]},
            "manifest.value",
            "a value of MANIFEST and one of STORAGE",
        ),
        (
            "12-14",
            {"storage": [put("segments/8/codec", "lz4")], "data": [xor(0, "01")]},
            "unsupported.codec",
            "the codec of the last segment and the first chunk",
        ),
        (
            "14-14",
            {"stale": {0: [xor(0, "07")]}, "data": [xor(0, "08")]},
            "integrity.chunk",
            "the checksum of a chunk and the digest of its content",
        ),
    )
    for name, change, code, words in pairs:
        suite.reject(
            f"order-{name}",
            f"Two faults, {words}: stage {name.split('-')[0]} decides",
            of,
            Change(**change),
            code,
            "container.order",
            "The earliest stage that fails is reported.",
        )
    other = raw("I16", [3], b"\1\0\2\0\3\0")
    suite.reject(
        "order-13-14",
        "Two faults, another base and a broken chunk: stage 13 decides",
        "container-all-kinds-apply",
        Change(base={"e.ids": other}, data=[xor(0, "01")]),
        "base.content",
        "container.order apply.verify",
        op="apply",
    )
    suite.reject(
        "order-12-13",
        "Two faults, an unknown codec and another base: stage 12 decides",
        "container-all-kinds-apply",
        Change(storage=[put("segments/0/codec", "lz4")], base={"e.ids": other}),
        "unsupported.codec",
        "container.order",
        op="apply",
    )
    suite.reject(
        "order-14-15",
        "Two faults, a broken chunk and a wrong result digest: stage 14 decides",
        "container-all-kinds-apply",
        Change(data=[xor(0, "01")], results={"a.bias": bytes(16)}),
        "integrity.chunk",
        "container.order integrity.chunk",
        op="apply",
    )


def cases(suite: Suite) -> None:
    accepted(suite)
    compressed(suite)
    beginnings(suite)
    preambles(suite)
    lengths(suite)
    digests(suite)
    order(suite)
