"""The JSON rendering that inspect gives, and the same faults asked for by other operations."""

from __future__ import annotations

from conformance.assemble import Entry
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import put, xor
from conformance.assembler.suite import Suite

from .models import dense, raw

INSPECT, APPLY = "container-all-kinds-inspect", "container-all-kinds-apply"


def renderings(suite: Suite) -> None:
    big = (1 << 53) - 1
    for value in (big, big + 1, big + 2, 10**19, (1 << 64) - 1):
        made = Model({"t": raw("U8", [value, 0], b"")})
        entry = Entry("w", "other", "", [], ("U8", [value, 0]))
        suite.accept(
            f"render-dimension-{value}",
            f"A dimension of {value}",
            Model(made.base, [entry]),
            "json.rendering",
            op="inspect",
            why="An integer up to 2^53 - 1 is an integer, a larger one the text of its digits.",
        )
    texts = {
        "quotes": '"\\/\b\f',
        "controls": "".join(map(chr, range(32))),
        "del": "\x7f",
        "line-separators": "\u2028\u2029",
        "astral": "\U0001f600\U0001d11e",
        "digits": "9007199254740993",
        "hex": "00ff",
        "empty": "",
    }
    for name, text in texts.items():
        suite.accept(
            f"render-text-{name}",
            f"Metadata with {ascii(text)[:40]}",
            Model(metadata={"k": text, name: "v"}),
            "json.rendering document.informative",
            op="inspect",
            why="A str stays a string, whatever it looks like.",
        )
    suite.accept("render-empty", "Empty maps, arrays and bins", Model(), "json.rendering", op="inspect")
    many = Model({}, [Entry(f"t{k:03}", "other", "", [dense("U8", bytes([k]))], ("U8", [1])) for k in range(100)])
    suite.accept(
        "render-100-segments", "A hundred entries and segments", many, "json.rendering layout.contents", op="inspect"
    )
    proto = {"__proto__": "x", "constructor": "y", "toString": "z", "hasOwnProperty": "w"}
    suite.accept(
        "render-proto",
        "Keys that mean something to JavaScript",
        Model(metadata=proto),
        "json.rendering safe.no-code",
        op="inspect",
    )
    numbers = {"10": "ten", "9": "nine", "1": "one"}
    suite.accept(
        "render-number-keys",
        "Keys that are numbers",
        Model(metadata=numbers),
        "json.rendering wire.key-order",
        op="inspect",
    )
    reals = {"changed": 0, "error": bytes(4), "norm": b"\0\0\x80\x3f", "projection": b"\xff\xff\xff\xff"}
    entry = Entry("w", "norm", "m", [dense("U8", b"\1")], ("U8", [1]), stats=reals)
    suite.accept(
        "render-stats",
        "Every figure, one of them NaN: four bytes each",
        Model({}, [entry]),
        "json.rendering document.informative",
        op="inspect",
    )
    suite.variant(
        "render-broken-chunk",
        "A broken chunk: inspect reads no DATA",
        INSPECT,
        Change(data=[xor(0, "01")]),
        "reader.levels integrity.chunk",
        "An inspecting reader decodes nothing.",
    )
    suite.variant(
        "render-stale-content",
        "A stale content: inspect reads no DATA",
        INSPECT,
        Change(stale={0: [xor(0, "01")]}),
        "reader.levels integrity.content",
        "An inspecting reader decodes nothing.",
    )


def doors(suite: Suite) -> None:
    """Faults that every operation must find."""
    documents: tuple[tuple[str, str, Change, str, str], ...] = (
        ("magic", "a wrong magic", Change(file=[xor(0, "80")]), "framing.magic", "framing.magic"),
        (
            "crc",
            "a stale preamble checksum",
            Change(file=[xor(124, "01")]),
            "framing.preamble-crc",
            "framing.preamble-crc",
        ),
        ("version", "version 2.0", Change(preamble={"major": 2}), "unsupported.version", "unsupported.version"),
        (
            "reserved",
            "a reserved byte",
            Change(preamble={"reserved": b"\0\0\1" + bytes(9)}),
            "framing.reserved",
            "framing.reserved",
        ),
        (
            "trailing",
            "a trailing byte",
            Change(file=[{"at": "end", "insert": b"\0"}]),
            "framing.trailing-bytes",
            "framing.trailing-bytes",
        ),
        (
            "truncated",
            "a missing byte",
            Change(file=[{"at": -1, "truncate": True}]),
            "framing.truncated",
            "framing.truncated",
        ),
        (
            "manifest",
            "another digest of MANIFEST",
            Change(preamble={"manifest-digest": bytes(32)}),
            "integrity.manifest",
            "integrity.manifest",
        ),
        (
            "storage",
            "another digest of STORAGE",
            Change(preamble={"storage-digest": bytes(32)}),
            "integrity.storage",
            "integrity.storage",
        ),
        (
            "header",
            "a bit of the header",
            Change(file=[xor("manifest+9", "01")]),
            "integrity.header",
            "integrity.header",
        ),
        (
            "wire",
            "a trailing byte of MANIFEST",
            Change(manifest_wire=[{"at": "end", "insert": b"\0"}]),
            "wire.trailing",
            "wire.trailing",
        ),
        ("key", "an unknown key", Change(manifest=[put("note", "x")]), "manifest.unknown-key", "manifest.unknown-key"),
        (
            "name",
            "a name with a control character",
            Change(manifest=[put("tensors/0/name", "a\x1b[2J")]),
            "manifest.name",
            "manifest.name error.text",
        ),
        (
            "file-name",
            "a side file that leaves the folder",
            Change(manifest=[put("files/0/name", "../config.json")]),
            "manifest.file-name",
            "manifest.file-name safe.no-paths",
        ),
        (
            "encoding",
            "an unknown encoding",
            Change(manifest=[put("tensors/0/components/0/encoding", "x-new")]),
            "unsupported.encoding",
            "unsupported.encoding version.private",
        ),
        (
            "dtype",
            "an unknown dtype",
            Change(manifest=[put("tensors/0/result/dtype", "F24")]),
            "unsupported.dtype",
            "unsupported.dtype",
        ),
        (
            "parameter",
            "a parameter out of range",
            Change(manifest=[put("tensors/2/components/0/bits", 9)]),
            "manifest.parameter",
            "manifest.parameter",
        ),
        (
            "codec",
            "an unknown codec",
            Change(storage=[put("segments/0/codec", "x-new")]),
            "unsupported.codec",
            "unsupported.codec version.private",
        ),
        (
            "table",
            "a chunk table too long",
            Change(storage=[put("segments/0/chunks", bytes(80))]),
            "storage.chunk-table",
            "storage.chunk-table",
        ),
        (
            "data-length",
            "a byte too much in DATA",
            Change(data=[{"at": "end", "insert": b"\0"}]),
            "storage.data-length",
            "storage.data-length",
        ),
        (
            "shape",
            "a tensor of 2^60 elements",
            Change(manifest=[put("tensors/0/result/shape", [1 << 60])]),
            "limit.exceeded",
            "limit.exceeded/tensor-bytes",
        ),
    )
    for name, words, change, code, requirement in documents:
        for op, of in (("inspect", INSPECT), ("apply", APPLY)):
            more = " safe.no-result apply.complete" if op == "apply" else " reader.levels"
            suite.reject(
                f"door-{name}-{op}",
                f"{words[0].upper()}{words[1:]}: {op}",
                of,
                change,
                code,
                f"{requirement} reader.codes error.code{more}",
            )
        suite.reject(
            f"door-{name}-decode",
            f"{words[0].upper()}{words[1:]}: decode of a tensor it does not touch",
            "decode-kinds-g-up",
            change,
            code,
            f"{requirement} reader.codes container.order safe.no-result",
        )
    payload: tuple[tuple[str, str, Change, str, str], ...] = (
        ("chunk", "a broken chunk", Change(data=[xor(0, "01")]), "integrity.chunk", "integrity.chunk"),
        ("content", "a stale content", Change(stale={0: [xor(0, "01")]}), "integrity.content", "integrity.content"),
        (
            "frame",
            "a chunk that is no frame",
            Change(stored={"6/0": b"\0" * 9}),
            "payload.frame",
            "payload.frame/magic",
        ),
        (
            "position",
            "a position that is none",
            Change(parts={"a.bias/0/index": b"\0\xfe"}),
            "payload.position",
            "payload.position/range",
        ),
        (
            "value",
            "an infinite value to be added",
            Change(parts={"a.bias/0/values": bytes.fromhex("807f807f")}),
            "payload.nonfinite",
            "payload.nonfinite/sparse",
        ),
        (
            "scale",
            "a scale of -0",
            Change(parts={"c.weight/0/scales": bytes.fromhex("00800080")}),
            "payload.scale",
            "payload.scale",
        ),
        (
            "code",
            "a zero point out of range",
            Change(parts={"c.weight/0/zeros": b"\x0f\0\0\0"}),
            "payload.code",
            "payload.code",
        ),
        (
            "bits",
            "a spare bit",
            Change(parts={"c.weight/0/codes": b"\0\x10"}),
            "payload.padding-bits",
            "payload.padding-bits",
        ),
    )
    for name, words, change, code, requirement in payload:
        for op in ("validate", "apply"):
            suite.reject(
                f"door-{name}-{op}",
                f"{words[0].upper()}{words[1:]}: {op}",
                APPLY,
                change,
                code,
                f"{requirement} reader.codes safe.no-result apply.complete",
                op=op,
            )


def cases(suite: Suite) -> None:
    renderings(suite)
    doors(suite)
