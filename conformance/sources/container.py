"""Preamble, sections, padding, order of checks."""

from __future__ import annotations

import struct

from conformance.assemble import Entry
from conformance.assembler.draft import Change, Model, assembled
from conformance.assembler.edits import Wire, add, delete, drop, put, truncate, write, xor
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
            why="The smallest pack: DATA is empty and the padding after STORAGE is there all the same.",
        )
        suite.accept(
            f"container-all-kinds-{op}",
            f"Every kind of entry, every encoding, raw and zstd segments: {op}",
            ALL_KINDS,
            "container.layout container.order integrity.manifest integrity.storage framing.padding layout.contents "
            "layout.segments storage.segments reader.levels reader.bits writer.valid error.code reader.codes "
            "apply.unchanged apply.removed apply.alias integrity.result integrity.result/checkpoint apply.verify "
            "manifest.type "
            "manifest.missing-key manifest.unknown-key manifest.value/format unsupported.encoding unsupported.codec "
            "wire.type wire.truncated wire.trailing manifest.name/alias",
            op=op,
        )
    for extra in range(5):  # lengths of MANIFEST around a multiple of 64
        size = len(_manifest_of("")) % 64
        text = "x" * ((62 + extra - size) % 64)
        made = Model(IDENTICAL.base, metadata={"k": text})
        rest = len(_manifest_of(text)) % 64
        suite.accept(
            f"container-manifest-mod-{rest}",
            f"A MANIFEST whose length is {rest} modulo 64",
            made,
            "container.layout framing.padding",
            op="inspect",
            why="The padding after MANIFEST is 0 to 63 bytes; none where the length is a multiple of 64.",
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


def _manifest_of(text: str) -> bytes:
    pack = assembled(Model(IDENTICAL.base, metadata={"k": text})).pack
    return pack[128 : 128 + int.from_bytes(pack[16:24], "little")]


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
    for at in (8, 10, 12, 16, 24, 32, 40, 71, 72, 104, 123):
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
    for at, name in ((0, "reserved"), (3, "reserved"), (0, "reserved-2"), (19, "reserved-2")):
        size = 4 if name == "reserved" else 20
        value = bytes(k == at for k in range(size))
        offset = (12 if name == "reserved" else 104) + at
        suite.reject(
            f"reserved-{offset}",
            f"The reserved byte at offset {offset} is 1",
            of,
            Change(preamble={name: value}),
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
        suite.reject(
            f"{name}-at-limit",
            f"The {name.replace('-', ' ')} is its limit, the file is short",
            of,
            Change(preamble={name: limit}),
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
        "framing.trailing-bytes",
        "framing.trailing-bytes container.order",
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
        "cut-padding",
        "The padding after STORAGE is missing, DATA is empty",
        of,
        Change(file=[truncate("storage-padding")]),
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
    for document in ("manifest", "storage"):
        code = f"integrity.{document}"
        suite.reject(
            f"{document}-bit",
            f"One bit of {document.upper()} flipped",
            of,
            Change(file=[xor(f"{document}+5", "01")]),
            code,
            f"{code} safe.digest-first",
        )
        suite.reject(
            f"{document}-first-byte",
            f"The first byte of {document.upper()} is C1",
            of,
            Change(file=[write(document, b"\xc1")]),
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
            f"{document}-padding-set",
            f"The byte after {document.upper()} is 1",
            of,
            Change(file=[write(f"{document}-padding", b"\1")]),
            "framing.padding",
            "framing.padding",
        )
        last = "storage+-1" if document == "manifest" else "data+-1"
        suite.reject(
            f"{document}-padding-last",
            f"The last padding byte after {document.upper()} is 80",
            of,
            Change(file=[write(last, b"\x80")]),
            "framing.padding",
            "framing.padding",
        )
    suite.reject(
        "sector-of-zeros",
        "512 bytes of MANIFEST are zero",
        of,
        Change(file=[write(512, bytes(512))]),
        "integrity.manifest",
        "integrity.manifest",
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
            {"preamble": {"major": 9, "reserved": b"\1\0\0\0"}},
            "unsupported.version",
            "version and a reserved byte",
        ),
        (
            "5-6",
            {"preamble": {"reserved": b"\1\0\0\0", "manifest-length": 1 << 40}},
            "framing.reserved",
            "a reserved byte and the limit on M",
        ),
        (
            "6-7",
            {"preamble": {"manifest-length": 1 << 40}, "file": [truncate(300)]},
            "limit.exceeded",
            "the limit on M and the size of the file",
        ),
        (
            "7-8",
            {"file": [xor("manifest", "01"), add("end", b"\0")]},
            "framing.trailing-bytes",
            "a trailing byte and the digest of MANIFEST",
        ),
        (
            "8-8",
            {"file": [xor("manifest", "01"), write("manifest-padding", b"\1")]},
            "integrity.manifest",
            "the digest of MANIFEST and the padding after it",
        ),
        (
            "8-9",
            {"file": [write("manifest-padding", b"\1"), xor("storage", "01")]},
            "framing.padding",
            "the padding after MANIFEST and the digest of STORAGE",
        ),
        (
            "9-10",
            {"manifest": [put("metadata", bad)], "file": [xor("storage", "01")]},
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
    beginnings(suite)
    preambles(suite)
    lengths(suite)
    digests(suite)
    order(suite)
