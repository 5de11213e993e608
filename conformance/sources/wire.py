"""Strict msgpack: every legal form, every illegal one."""

from __future__ import annotations

import struct
from typing import Any

from conformance.assemble import Entry, head
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import Edit, Pairs, Wire, add, delete, drop, keys, put, truncate
from conformance.assembler.suite import Suite

from .models import ENTRIES, dense, raw

OF = "container-all-kinds-validate"
C = ENTRIES["c.weight"]


def integers(suite: Suite) -> None:
    """``stats.changed`` is informative, so it can be any integer."""
    values = {
        "0": 0,
        "127": 127,
        "128": 128,
        "255": 255,
        "256": 256,
        "65535": 65535,
        "65536": 65536,
        "2-32-less-1": (1 << 32) - 1,
        "2-32": 1 << 32,
        "2-53-less-1": (1 << 53) - 1,
        "2-53": 1 << 53,
        "2-63": 1 << 63,
        "2-64-less-1": (1 << 64) - 1,
    }
    for name, value in values.items():
        entry = Entry("w", "other", "", [dense("U8", b"\1")], ("U8", [1]), stats={"changed": value})
        suite.accept(
            f"wire-integer-{name}",
            f"The integer {value}",
            Model({}, [entry]),
            "wire.not-shortest wire.type json.rendering document.informative",
            op="inspect",
            why="The shortest form of an integer at a border of the forms; the rendering of large ones is text.",
        )
    forms = (
        ("cc7f", "127 as u8"),
        ("cc00", "0 as u8"),
        ("cd00ff", "255 as u16"),
        ("ce0000ffff", "65535 as u32"),
        ("cf00000000ffffffff", "2^32 - 1 as u64"),
        ("cf0000000000000004", "4 as u64"),
    )
    for data, words in forms:
        suite.reject(
            f"wire-integer-{data}",
            f"An integer not in its shortest form: {words}",
            OF,
            Change(manifest=[put(f"tensors/{C}/stats/changed", Wire(bytes.fromhex(data)))]),
            "wire.not-shortest",
            "wire.not-shortest",
        )


def lengths(suite: Suite) -> None:
    """Lengths of str, bin, array and map at the borders of their forms."""
    for count in (0, 31, 32, 255, 256, 65535, 65536):
        suite.accept(
            f"wire-str-{count}",
            f"A str of {count} bytes",
            Model(metadata={"k": "a" * count}),
            "wire.not-shortest limit.exceeded/metadata",
            op="inspect",
        )
    for count in (15, 16):
        entries = {f"k{k:02}": "v" for k in range(count)}
        suite.accept(
            f"wire-map-{count}",
            f"A map of {count} pairs",
            Model(metadata=entries),
            "wire.not-shortest wire.key-order",
            op="inspect",
        )
        base = {f"t{k:02}": raw("U8", [1], bytes([k])) for k in range(count)}
        tensors = [Entry(name, "other", "", [dense("U8", b"\xff")], ("U8", [1])) for name in base]
        suite.accept(
            f"wire-array-{count}",
            f"An array of {count} items",
            Model(base, tensors),
            "wire.not-shortest manifest.order",
        )
    for count in (63, 64, 16384):
        base = {f"t{k:05}": raw("F32", [0], b"") for k in range(count)}
        suite.accept(
            f"wire-bin-{4 * count}",
            f"A bin of {4 * count} bytes: the prints of {count} tensors",
            Model(base),
            "wire.not-shortest manifest.value",
            op="validate",
        )
    longer = (
        ("str8-of-31", "metadata/license", b"\xd9\x1f" + b"a" * 31),
        ("str8-of-0", "metadata/license", b"\xd9\x00"),
        ("str16-of-255", "metadata/license", b"\xda\x00\xff" + b"a" * 255),
        ("str32-of-65535", "metadata/license", b"\xdb\0\0\xff\xff" + b"a" * 65535),
        ("str32-of-3", "metadata/license", b"\xdb\0\0\0\3abc"),
        ("bin16-of-28", "base/prints", b"\xc5\0\x1c" + bytes(28)),
        ("bin32-of-28", "base/prints", b"\xc6\0\0\0\x1c" + bytes(28)),
        ("bin16-of-255", "base/prints", b"\xc5\0\xff" + bytes(255)),
        ("array16-of-1", f"tensors/{C}/result/shape", b"\xdc\0\1\4"),
        ("array16-of-15", f"tensors/{C}/result/shape", b"\xdc\0\x0f" + bytes(15)),
        ("array32-of-1", f"tensors/{C}/result/shape", b"\xdd\0\0\0\1\4"),
        ("map16-of-0", "metadata", b"\xde\0\0"),
        ("map32-of-0", "metadata", b"\xdf\0\0\0\0"),
        ("map16-of-1", "metadata", b"\xde\0\1\xa1a\xa1b"),
    )
    for name, path, data in longer:
        suite.reject(
            f"wire-{name}",
            f"A length not in its shortest form: {name.replace('-', ' ')}",
            OF,
            Change(manifest=[put(path, Wire(data))]),
            "wire.not-shortest",
            "wire.not-shortest",
        )
    suite.reject(
        "wire-key-str8",
        "A map key not in its shortest form",
        OF,
        Change(manifest=[put("metadata", Pairs([(Wire(b"\xd9\x01a"), "b")]))]),
        "wire.not-shortest",
        "wire.not-shortest",
    )
    suite.reject(
        "wire-storage-integer",
        "An integer of STORAGE not in its shortest form",
        OF,
        Change(storage=[put("chunk_bytes", Wire(b"\xce\0\0\x10\0"))]),
        "wire.not-shortest",
        "wire.not-shortest",
    )


def types(suite: Suite) -> None:
    firsts = {
        "c0": "nil",
        "c1": "a byte that msgpack never uses",
        "c2": "false",
        "c3": "true",
        "ca3f800000": "a float32",
        "cb3ff0000000000000": "a float64",
        "d007": "an int8",
        "d10007": "an int16",
        "d200000007": "an int32",
        "d30000000000000007": "an int64",
        "ff": "the negative integer -1",
        "e0": "the negative integer -32",
        "c7010542": "an ext 8",
        "c800010542": "an ext 16",
        "c9000000010542": "an ext 32",
        "d40500": "a fixext 1",
        "d5050000": "a fixext 2",
        "d6ff00000000": "a timestamp 32",
        "d7ff0000000000000000": "a timestamp 64",
        "d805" + "00" * 16: "a fixext 16",
        "c70cff" + "00" * 12: "a timestamp 96",
    }
    for data, words in firsts.items():
        suite.reject(
            f"wire-type-{data[:4]}",
            f"A value that the profile excludes: {words}",
            OF,
            Change(manifest=[put(f"tensors/{C}/stats/changed", Wire(bytes.fromhex(data)))]),
            "wire.type",
            "wire.type version.refuse",
        )
    suite.reject(
        "wire-type-storage",
        "nil in STORAGE",
        OF,
        Change(storage=[put("segments", Wire(b"\xc0"))]),
        "wire.type",
        "wire.type",
    )
    suite.reject(
        "wire-type-whole",
        "MANIFEST is the byte C1",
        OF,
        Change(manifest=[put("", Wire(b"\xc1"))]),
        "wire.type",
        "wire.type",
    )


def texts(suite: Suite) -> None:
    legal = {
        "ascii": "a\tb\n",
        "nul": "\0",
        "u7ff": "\u07ff",
        "u800": "\u0800",
        "ud7ff": "\ud7ff",
        "ue000": "\ue000",
        "uffff": "\uffff",
        "u10000": "\U00010000",
        "u10ffff": "\U0010ffff",
        "escape": "\x1b[2J\x07",
        "bidi": "a\u202eb",
        "combining": "e\u0301",
        "bom": "\ufeffx",
    }
    for name, text in legal.items():
        suite.accept(
            f"wire-utf8-{name}",
            f"A str of metadata with {text!a}",
            Model(metadata={"k": text}),
            "wire.utf8 document.informative json.rendering",
            op="inspect",
            why="Any UTF-8 is legal in metadata, and the rendering holds it as it is.",
        )
    illegal = {
        "80": "a continuation byte alone",
        "c080": "an overlong form of 2 bytes",
        "c1bf": "an overlong form of 2 bytes, C1",
        "e08080": "an overlong form of 3 bytes",
        "e09fbf": "the longest overlong form of 3 bytes",
        "f0808080": "an overlong form of 4 bytes",
        "f08fbfbf": "the longest overlong form of 4 bytes",
        "eda080": "a high surrogate",
        "edbfbf": "a low surrogate",
        "eda0bdedb880": "a surrogate pair",
        "f4908080": "a code point above 10FFFF",
        "f5808080": "the first byte F5",
        "ff": "the byte FF",
        "c3": "a character cut after 1 byte",
        "e282": "a character cut after 2 bytes",
        "f09f98": "a character cut after 3 bytes",
        "c328": "a character with a wrong second byte",
        "fe80808080": "the first byte FE",
    }
    for data, words in illegal.items():
        text = bytes.fromhex(data)
        suite.reject(
            f"wire-utf8-{data}",
            f"A str that is not UTF-8: {words}",
            OF,
            Change(manifest=[put("metadata/license", Wire(head("str", len(text)) + text))]),
            "wire.utf8",
            "wire.utf8",
        )
    suite.reject(
        "wire-utf8-storage",
        "A str of STORAGE that is not UTF-8",
        OF,
        Change(storage=[put("segments/0/codec", Wire(b"\xa1\xff"))]),
        "wire.utf8",
        "wire.utf8",
    )


def key_rules(suite: Suite) -> None:
    others: tuple[tuple[str, str, Any, str], ...] = (
        ("integer", "an integer", 1, "wire.key-type"),
        ("bin", "a bin", b"a", "wire.key-type"),
        ("array", "an array", [], "wire.key-type"),
        ("map", "a map", {}, "wire.key-type"),
        ("nil", "nil", Wire(b"\xc0"), "wire.key-type wire.type"),
        ("latin", "a str above 7F", "\u00e9", "wire.key-type"),
        ("fullwidth", "a str of full-width letters", "\uff41", "wire.key-type"),
        ("not-utf8", "a str that is not UTF-8", Wire(b"\xa1\xff"), "wire.key-type wire.utf8"),
    )
    for name, words, key, codes in others:
        suite.reject(
            f"wire-key-{name}",
            f"A map key that is {words}",
            OF,
            Change(manifest=[put("metadata", Pairs([(key, "v")]))]),
            codes,
            "wire.key-type",
        )
    suite.accept(
        "wire-key-ascii",
        "Keys of every ASCII character, the empty one included",
        Model(metadata={"": "empty"} | {chr(k): "one" for k in range(128)}),
        "wire.key-type wire.key-order",
        op="inspect",
    )
    suite.accept(
        "wire-key-prefix",
        "Keys of which one is a prefix of the next",
        Model(metadata={"a": "", "aa": "", "ab": "", "b": ""}),
        "wire.key-order",
        op="inspect",
    )
    top = ["base", "files", "format", "metadata", "result", "tensors"]
    changes: dict[str, tuple[str, list[Edit]]] = {
        "exchanged": ("Two keys of MANIFEST exchanged", [keys("", ["files", "base", *top[2:]])]),
        "repeated": ("A key of MANIFEST twice", [keys("", ["base", *top])]),
        "repeated-in-metadata": ("A key of metadata twice", [put("metadata", Pairs([("a", "1"), ("a", "2")]))]),
        "prefix-after": ("A key before its own prefix", [put("metadata", Pairs([("aa", ""), ("a", "")]))]),
        "by-length": ("Keys ordered by length", [put("metadata", Pairs([("b", ""), ("aa", "")]))]),
        "case-folded": ("Keys ordered without case", [put("metadata", Pairs([("a", ""), ("B", "")]))]),
        "nested": (
            "Two keys of a component exchanged",
            [keys(f"tensors/{C}/components/0", ["encoding", "bits", "group", "packing", "scale", "sha256"])],
        ),
    }
    for name, (title, edits) in changes.items():
        suite.reject(f"wire-order-{name}", title, OF, Change(manifest=edits), "wire.key-order", "wire.key-order")
    suite.reject(
        "wire-order-storage",
        "The keys of STORAGE exchanged",
        OF,
        Change(storage=[keys("", ["segments", "chunk_bytes"])]),
        "wire.key-order",
        "wire.key-order",
    )


def bounds(suite: Suite) -> None:
    claims = {
        "str32": b"\xdb\xff\xff\xff\xff",
        "bin32": b"\xc6\xff\xff\xff\xff",
        "array32": b"\xdd\xff\xff\xff\xff",
        "map32": b"\xdf\xff\xff\xff\xff",
        "array16": b"\xdc\xff\xff",
        "map16": b"\xde\xff\xff",
        "str16": b"\xda\xff\xff",
        "bin16": b"\xc5\xff\xff",
        "array32-100-million": b"\xdd\x05\xf5\xe1\x00",
    }
    for name, data in claims.items():
        suite.reject(
            f"wire-claim-{name}",
            f"A {name.replace('-', ' of ')} that claims more than there is",
            OF,
            Change(manifest=[put("", Wire(data))]),
            "wire.truncated",
            "wire.truncated reader.allocation safe.size-first reader.limits",
            rss_mb=64,
        )
    whole = "container-identical-validate"
    for count in (0, 1, 60, 172):
        suite.reject(
            f"wire-cut-{count}",
            f"MANIFEST ends after {count} bytes",
            whole,
            Change(manifest_wire=[truncate(count)]),
            "wire.truncated",
            "wire.truncated",
        )
    suite.reject(
        "wire-map-one-too-many",
        "A map that claims one pair more than there are",
        whole,
        Change(manifest_wire=[{"at": 0, "xor": "01"}]),
        "wire.truncated",
        "wire.truncated",
    )
    suite.reject(
        "wire-array-one-too-many",
        "An array as the last value claims an item more than there are",
        whole,
        Change(manifest_wire=[{"at": -1, "write": b"\x91"}]),
        "wire.truncated",
        "wire.truncated",
    )
    suite.reject(
        "wire-items-one-byte-short",
        "An array claims as many items as there are bytes, and one more",
        whole,
        Change(manifest=[put("", Wire(b"\x93\0\0"))]),
        "wire.truncated",
        "wire.truncated",
    )
    suite.reject(
        "wire-pairs-one-byte-short",
        "A map of two pairs has three bytes",
        whole,
        Change(manifest=[put("", Wire(b"\x82\xa0\0\0"))]),
        "wire.truncated",
        "wire.truncated",
        "A pair has two bytes at least.",
    )
    suite.reject(
        "wire-storage-cut",
        "STORAGE ends one byte early",
        whole,
        Change(storage_wire=[truncate(-1)]),
        "wire.truncated",
        "wire.truncated",
    )
    for document in ("manifest", "storage"):
        for data, words in (
            (b"\x80", "a second value"),
            (b"\0", "a zero byte"),
            (b"\n", "a line feed"),
            (b"\xc1", "C1"),
        ):
            change = {f"{document}_wire": [add("end", data)]}
            suite.reject(
                f"wire-trailing-{document}-{data.hex()}",
                f"After the value of {document.upper()} comes {words}",
                OF,
                Change(**change),
                "wire.trailing",
                "wire.trailing",
            )
    suite.reject(
        "wire-map-one-too-few",
        "A map that claims one pair less than there are",
        whole,
        Change(manifest_wire=[{"at": 0, "xor": "03"}]),
        "wire.trailing",
        "wire.trailing",
    )
    suite.reject(
        "wire-json",
        "MANIFEST is JSON",
        whole,
        Change(manifest=[put("", Wire(b'{"format": "skillpack/1"}'))]),
        "wire.trailing",
        "wire.trailing",
        "7B is an integer; what follows it is trailing.",
    )
    suite.reject(
        "wire-tail-deleted",
        "The last key of MANIFEST is missing, the map's head as it was",
        whole,
        Change(manifest_wire=[delete(-9, 9)]),
        "wire.truncated",
        "wire.truncated",
    )


def nesting(suite: Suite) -> None:
    def nested(depth: int) -> Wire:
        return Wire(b"\x91" * (depth - 1) + b"\x90")

    suite.reject(
        "wire-depth-9",
        "An array nested 9 deep",
        OF,
        Change(manifest=[put("metadata/license", nested(7))]),
        "limit.exceeded",
        "limit.exceeded/depth limit.exceeded",
    )
    suite.reject(
        "wire-depth-8",
        "An array nested 8 deep, where a str is due",
        OF,
        Change(manifest=[put("metadata/license", nested(6))]),
        "manifest.type",
        "limit.exceeded/depth manifest.type",
        "Depth 8 is within the limit, so the type decides.",
    )
    for depth in (1000, 100000, 1000000):
        suite.reject(
            f"wire-depth-{depth}",
            f"Arrays nested {depth} deep",
            OF,
            Change(manifest=[put("", nested(depth))]),
            "limit.exceeded",
            "limit.exceeded/depth reader.limits",
        )
    suite.reject(
        "wire-depth-maps",
        "Maps nested 100 deep",
        OF,
        Change(manifest=[put("", Wire(b"\x81\xa0" * 100 + b"\x80"))]),
        "limit.exceeded",
        "limit.exceeded/depth",
    )
    suite.reject(
        "wire-depth-before-items",
        "An array at depth 9 whose only item is of an excluded type",
        OF,
        Change(manifest=[put("metadata/license", Wire(b"\x91" * 7 + b"\xc1"))]),
        "limit.exceeded",
        "limit.exceeded/depth",
        "It is refused before its items are read.",
    )
    many = b"\xdd" + struct.pack(">I", 300_000) + b"\x80" * 300_000
    suite.reject(
        "wire-nodes-300000",
        "An array of 300000 empty maps under a limit of 200000 values",
        OF,
        Change(manifest=[put("", Wire(many))], limits={"header_nodes": 200_000}),
        "limit.exceeded",
        "limit.exceeded/nodes reader.limits",
    )
    suite.reject(
        "wire-top-list", "MANIFEST is an array", OF, Change(manifest=[put("", [])]), "manifest.type", "manifest.type"
    )
    suite.reject(
        "wire-top-str",
        "MANIFEST is a str",
        OF,
        Change(manifest=[put("", "skillpack/1")]),
        "manifest.type",
        "manifest.type",
    )
    suite.reject(
        "wire-top-empty-map",
        "MANIFEST is an empty map",
        OF,
        Change(manifest=[put("", {})]),
        "manifest.missing-key",
        "manifest.missing-key",
    )
    suite.reject(
        "wire-storage-list", "STORAGE is an array", OF, Change(storage=[put("", [])]), "manifest.type", "manifest.type"
    )
    suite.reject(
        "wire-dropped-and-ordered",
        "A key left out, the map's head repaired",
        OF,
        Change(manifest=[drop("files")]),
        "manifest.missing-key",
        "manifest.missing-key",
    )


def cases(suite: Suite) -> None:
    integers(suite)
    lengths(suite)
    types(suite)
    texts(suite)
    key_rules(suite)
    bounds(suite)
    nesting(suite)
