"""What stands in the folder that a result is written into: shards and index of a layout to the byte, side files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from conformance import assemble as oracle
from conformance.assemble import Entry, Tensor
from conformance.assembler.draft import Change, Layout, Model
from conformance.assembler.edits import Edit, Patch, put, replaced, truncate, write, xor
from conformance.assembler.suite import Suite

from .models import ALL_KINDS, dense, dense_add, raw, tensor

ONE, FIRST, SECOND = "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
HEADS, TENSORS, BY_INDEX = "payload.layout", "payload.layout/tensors", "payload.layout/index"
EVERY = f"{HEADS} {TENSORS} apply.layout apply.side-files"
Row = tuple[str, str, Sequence[Edit | Patch]]  # a slug, a title, what is changed

BASE = {
    "a": tensor("F32", [2], 1, 2),
    "b": raw("U8", [3], b"\1\2\3"),
    "empty": raw("F16", [0, 4], b""),
    "old": raw("U8", [1], b"\7"),
}
ENTRIES = (
    Entry("a", "other", "", [dense_add("F32", 1, -1)], ("F32", [2])),
    Entry("new", "other", "", [dense("U8", b"\x0a\x0b")], ("U8", [2])),
    Entry("old", "other", ""),
    Entry("tied", "other", "", None, ("U8", [2]), alias="new"),
)
RESULT = Model(BASE, ENTRIES).results  # a, b, empty, new, tied
FILES = {"config.json": b'{"a": 1}\n'}
GONE = {"gone": raw("U8", [1], b"\1")}  # so that a pack of a base that stays has an entry


def head(header: str) -> bytes:
    """A head from the text of its header."""
    return len(header.encode()).to_bytes(8, "little") + header.encode()


def header_of(names: Iterable[str], of: Mapping[str, Tensor] = RESULT) -> str:
    """A header that holds ``names`` one after the other."""
    found, end = {}, 0
    for name in names:
        begin, end = end, end + len(of[name].data)
        found[name] = {"dtype": of[name].dtype, "shape": of[name].shape, "data_offsets": [begin, end]}
    return json.dumps(found, separators=(",", ":"))


def index_of(weight_map: Mapping[str, str]) -> str:
    return json.dumps({"metadata": {"total_size": 15}, "weight_map": weight_map}, separators=(",", ":"))


def laid_out(headers: Mapping[str, str], index: str | None = None) -> Layout:
    listed = None if index is None else (INDEX, index.encode())
    return Layout({name: head(header) for name, header in headers.items()}, listed)


def with_layout(headers: Mapping[str, str], index: str | None = None) -> Model:
    return Model(BASE, ENTRIES, files=FILES, layout=laid_out(headers, index))


def kept(tensors: Mapping[str, Tensor], names: Sequence[str], index: str | None = None) -> Model:
    """A pack that only takes a tensor away, and lays out the rest in one shard."""
    layout = laid_out({ONE: header_of(names, tensors)}, index)
    return Model({**tensors, **GONE}, [Entry("gone", "other", "")], layout=layout)


HEADER = header_of(("new", "a", "empty", "tied", "b"))
IN_ONE = with_layout({ONE: HEADER})
MAP = {"a": FIRST, "b": FIRST, "empty": FIRST, "new": SECOND, "tied": SECOND}
MAPPED = index_of(MAP)
IN_TWO = with_layout({FIRST: header_of(("b", "empty", "a")), SECOND: header_of(("new", "tied"))}, MAPPED)
ODD = (
    '{"tied":{"data_offsets":[8,10],"shape":[2],"dtype":"U8"} ,\n "\\u0061" : { "dtype" : "F32", "shape" : [ 2 ],\r\n'
    '\t"data_offsets":[ 0 , 8 ] }, "__metadata__" : {"format":"pt","":"\u00e9\\ud83d\\ude00\\u0000","dtype":"F99"},'
    '"b":{"dtype":"U8","shape":[3],"data_offsets":[10,13]},"empty":{"shape":[0,4],"dtype":"F16",'
    '"data_offsets":[10,10]},"new":{"dtype":"\\u00558","shape":[2],"data_offsets":[13,15]}}\t\n  '
)


def accepted(suite: Suite) -> None:
    suite.accept("folder-one", "A layout of one shard", IN_ONE, EVERY, op="folder")
    suite.accept("folder-two", "A layout of two shards and an index", IN_TWO, f"{EVERY} {BY_INDEX}", op="folder")
    suite.accept(
        "folder-plain",
        "A pack without layout; its config.json takes the place of the base's",
        Model(BASE, ENTRIES, files=FILES),
        "apply.side-files apply.unchanged apply.removed apply.alias",
        "How the tensors are split into files is up to the reader.",
        op="folder",
    )
    suite.accept(
        "folder-odd-head",
        "A head with keys in any order, blanks, escapes, metadata in the middle and blanks at its end",
        with_layout({ONE: ODD}),
        EVERY,
        "The head is written as it is, its tensors in the order of their offsets.",
        op="folder",
    )
    home = "a-Z_0.9.safetensors"
    shards = {"0.safetensors": "{}", home: header_of(RESULT), "b.safetensors": '{"__metadata__":{}} '}
    mapped = index_of(dict.fromkeys(RESULT, home))
    more = (
        ("one-index", "A folder of one shard and an index", with_layout({home: header_of(RESULT)}, mapped), BY_INDEX),
        ("empty-shards", "Two of three shards hold no tensor", with_layout(shards, mapped), BY_INDEX),
        ("no-tensors", "A result without tensors", kept({}, ()), ""),
    )
    for name, title, model, requirement in more:
        suite.accept(f"folder-{name}", title, model, f"{EVERY} {requirement}", op="folder")
    numbers = '{"total_size":1.5e3,"a":[-0,-1,0.25E-2,true,false,null,{}],"":"\\u00e9\\ud83d\\ude00/\\/"}'
    suite.variant(
        "folder-odd-index",
        "An index with blanks around it and values of every kind beside weight_map",
        "folder-two",
        Change(heads={INDEX: [replaced('{"metadata":{"total_size":15}', f' \n\t{{"metadata":{numbers}'),
                              replaced('"}}', '"}}\r\n ')]}),
        BY_INDEX,
    )  # fmt: skip


def kinds(suite: Suite) -> None:
    """Tensors of every kind in one shard."""
    order = ("e0", "x", "e1", "e2", "y", "e3")
    empties = {name: raw("U8", [1], name.encode()) if name in "xy" else raw("F32", [2, 0], b"") for name in order}
    dtypes = {name: Tensor(name, [2, 2], bytes(bits // 2)) for name, (bits, _) in sorted(oracle.WIDTH.items())}
    names = ('"', "\\", "/", "__proto__", "weight_map", "../a.safetensors", "<b>&", "'")
    odd = {name: raw("U8", [1], bytes([k])) for k, name in enumerate(names)}
    index = json.dumps({"weight_map": dict.fromkeys(names, ONE)}).replace('"/"', '"\\/"')
    results = ALL_KINDS.results
    every = Model(
        ALL_KINDS.base, ALL_KINDS.entries, files=ALL_KINDS.files, codecs=ALL_KINDS.codecs,
        layout=laid_out({ONE: header_of(sorted(results, reverse=True), results)}),
    )  # fmt: skip
    rows = (
        ("empty-tensors", "Tensors without elements before, between and after others", kept(empties, order), ""),
        ("dtypes", "A tensor of every dtype", kept(dtypes, tuple(dtypes)), ""),
        ("odd-names", "Names that JSON escapes or that look like paths", kept(odd, names, index), BY_INDEX),
        ("all-kinds", "Entries of every kind, two side files and a layout", every, ""),
    )
    for name, title, model, requirement in rows:
        suite.accept(f"folder-{name}", title, model, f"{EVERY} document.names-opaque {requirement}", op="folder")


def chains(suite: Suite) -> None:
    """Two packs: only the layout of the last one counts."""
    entries = [
        Entry("a", "other", "", [dense_add("F32", 1, 1)], ("F32", [2])),
        Entry("b", "other", ""),
        Entry("z", "other", "", [dense("U8", b"\x63")], ("U8", [1])),
    ]
    result = Model(RESULT, entries).results
    right = laid_out({"x.safetensors": header_of(result, result)})
    plain, wrong = Model(BASE, ENTRIES, files=FILES | {"vocab.txt": b"a\n"}), with_layout({ONE: "{}"})
    rows = (
        ("last", "the second has a layout", plain, right),
        ("both", "both have a layout", IN_TWO, right),
        ("first", "only the first has a layout", IN_ONE, None),
        ("first-wrong", "the layout of the first is not of its result", wrong, right),
        ("first-wrong-only", "only the first has a layout, which is not of its result", wrong, None),
    )
    for name, words, first, layout in rows:
        suite.accept(
            f"folder-chain-{name}",
            f"Two packs: {words}",
            Model(RESULT, entries, files={"config.json": b"2\n"}, layout=layout, after=first),
            "apply.layout apply.side-files",
            "Only the last layout counts; of a side file in both packs, the second one's stays.",
            op="folder",
        )
    changes = (
        ("earlier", "The layout of the second pack is of the first one's result", TENSORS, "payload.layout",
         Change(heads={"x.safetensors": [replaced(header_of(result, result), header_of(RESULT))]})),
        ("other-base", "The second pack was made for another base", "base.content/digest", "base.content",
         Change(manifest=[put("base/digest", bytes(32))])),
    )  # fmt: skip
    for name, title, requirement, code, change in changes:
        suite.reject(f"folder-chain-{name}", title, "folder-chain-both", change, code, requirement)


# ------------------------------------------------------------------------------------------------ heads

EMPTY = '"empty":{"dtype":"F16","shape":[0,4],"data_offsets":[10,10]},'
A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[2,10]}'
B = '"b":{"dtype":"U8","shape":[3],"data_offsets":[12,15]}'
END = "[12,15]}}"


def in_a(old: str, new: str) -> list[Edit]:
    assert A.count(old) == 1
    return [replaced(A, A.replace(old, new))]


def metadata(text: str | bytes) -> list[Edit]:
    data = text.encode() if isinstance(text, str) else text
    return [replaced('{"new"', b'{"__metadata__":' + data + b',"new"')]


def framed() -> list[Row]:
    """What is not a length and an object."""
    length = len(HEADER)
    return [
        ("length-more", "The length of a head is one too many", [write(0, (length + 1).to_bytes(8, "little"))]),
        ("length-less", "The length of a head is one too few", [write(0, (length - 1).to_bytes(8, "little"))]),
        ("length-big-endian", "The length of a head is big-endian", [write(0, length.to_bytes(8, "big"))]),
        ("length-zero", "The length of a head is 0", [write(0, bytes(8))]),
        ("length-cut", "A head of 7 bytes", [truncate(7)]),
        ("nothing", "A head of no bytes", [truncate(0)]),
        ("length-alone", "A head that is a length of 0", [truncate(8), write(0, bytes(8))]),
        ("blank-first", "A header that begins with a blank", [replaced('{"new"', ' {"new"')]),
        ("mark-first", "A header that begins with a byte order mark", [replaced('{"new"', '\ufeff{"new"')]),
        ("array", "A header that is an array", [replaced('{"new"', '[{"new"'), replaced(END, END + "]")]),
        ("null", "A header that is null", [replaced(HEADER, "null")]),
        ("text", "A header that is a string", [replaced(HEADER, '"{}"')]),
        ("utf-16", "A header in UTF-16", [replaced(HEADER, HEADER.encode("utf-16-le"))]),
        ("two-objects", "A header of two objects", [replaced(END, END + "{}")]),
        ("zero-after", "A zero byte after the object", [replaced(END, END + "\0")]),
        ("cut", "An object that does not end", [replaced(END, END[:-1])]),
        ("comma", "A comma before the end of the object", [replaced(END, END[:-1] + ",}")]),
        ("comment", "A comment after the object", [replaced(END, END + "//")]),
        ("quotes", "A key in single quotes", [replaced('"a"', "'a'")]),
    ]


def malformed() -> list[Row]:
    """JSON that is not strict, or no header."""
    return [
        ("tensor-twice", "A key twice: a tensor", [replaced(A, f"{A},{A}")]),
        ("tensor-twice-escaped", "A key twice, once escaped", [replaced(A, A.replace("a", "\\u0061", 1) + "," + A)]),
        ("dtype-twice", "A key twice: dtype", in_a('"shape"', '"dtype":"F32","shape"')),
        ("metadata-key-twice", "A key twice, in __metadata__", metadata('{"k":"v","k":"v"}')),
        ("metadata-twice", "A key twice: __metadata__", metadata('{},"__metadata__":{}')),
        ("metadata-null", "__metadata__ is null", metadata("null")),
        ("metadata-array", "__metadata__ is an array", metadata("[]")),
        ("metadata-text", "__metadata__ is a string", metadata('"pt"')),
        ("metadata-number", "__metadata__ maps to a number", metadata('{"k":1}')),
        ("metadata-value-null", "__metadata__ maps to null", metadata('{"k":null}')),
        ("metadata-object", "__metadata__ maps to an object", metadata('{"k":{}}')),
        ("metadata-high", "__metadata__ holds the first half of a surrogate pair", metadata('{"k":"\\ud83d"}')),
        ("metadata-low", "__metadata__ has the second half of a surrogate pair as a key", metadata('{"\\ude00":"v"}')),
        ("metadata-utf-8", "__metadata__ is not UTF-8", metadata(b'{"k":"\xff"}')),
        ("metadata-cesu", "__metadata__ holds half a surrogate pair in bytes", metadata(b'{"k":"\xed\xa0\x80"}')),
        ("metadata-newline", "A string that holds a line feed", metadata('{"k":"\n"}')),
        ("entry-array", "A tensor is an array", [replaced(A, '"a":["F32",[2],[2,10]]')]),
        ("entry-null", "A tensor is null", [replaced(A, '"a":null')]),
        ("no-dtype", "A tensor without dtype", in_a('"dtype":"F32",', "")),
        ("no-shape", "A tensor without shape", in_a('"shape":[2],', "")),
        ("no-offsets", "A tensor without data_offsets", in_a(',"data_offsets":[2,10]', "")),
        ("key-more", "A tensor with a key more", in_a('"shape"', '"note":"","shape"')),
        ("dtype-null", "dtype is null", in_a('"F32"', "null")),
        ("dtype-array", "dtype is an array", in_a('"F32"', '["F32"]')),
        ("shape-number", "shape is a number", in_a("[2]", "2")),
        ("shape-null", "shape is null", in_a("[2]", "null")),
        ("shape-nested", "shape is nested", in_a("[2]", "[[2]]")),
        ("shape-nan", "A dimension is NaN", in_a("[2]", "[NaN]")),
        ("shape-text", "A dimension is a string", in_a("[2]", '["2"]')),
        ("shape-point", "A dimension with a fraction of 0", in_a("[2]", "[2.0]")),
        ("shape-exponent", "A dimension with an exponent", in_a("[2]", "[2e0]")),
        ("shape-leading-zero", "A dimension with a leading 0", in_a("[2]", "[02]")),
        ("shape-negative", "Two negative dimensions", in_a("[2]", "[-2,-1]")),
        ("shape-minus-zero", "A dimension is -0", [replaced("[0,4]", "[-0,4]")]),
        ("shape-deep", "A shape of 100000 brackets", in_a("[2]", "[" * 100_000 + "]" * 100_000)),
    ]  # fmt: skip


def misplaced() -> list[Row]:
    """Tensors that do not lie one after the other."""
    far = 1 << 64
    return [
        ("offset-one", "One offset", in_a("[2,10]", "[10]")),
        ("offset-three", "Three offsets", in_a("[2,10]", "[2,10,10]")),
        ("offset-text", "Offsets that are strings", in_a("[2,10]", '["2","10"]')),
        ("offset-object", "Offsets in an object", in_a("[2,10]", '{"begin":2,"end":10}')),
        ("offset-point", "An offset with a fraction of 0", in_a("[2,10]", "[2.0,10]")),
        ("offset-minus-zero", "An offset is -0", [replaced("[0,2]", "[-0,2]")]),
        ("offset-negative", "An offset is negative", [replaced("[0,2]", "[-2,0]")]),
        ("offset-reversed", "Offsets the wrong way round", in_a("[2,10]", "[10,2]")),
        ("offset-wraps", "Offsets that are right modulo 2^64", [replaced("[12,15]", f"[{far + 12},{far + 15}]")]),
        ("gap", "A gap between two tensors", [replaced("[12,15]", "[13,16]")]),
        ("overlap", "Two tensors overlap by a byte", [replaced("[12,15]", "[11,14]")]),
        ("same-place", "Two tensors in one place", [replaced("[10,12]", "[0,2]"), replaced("[12,15]", "[10,13]")]),
        ("short", "A place one byte shorter than its tensor", [replaced("[12,15]", "[12,14]")]),
        ("long", "A place one byte longer than its tensor", [replaced("[12,15]", "[12,16]")]),
        ("empty-inside", "A tensor without elements lies inside another", [replaced("[10,10]", "[5,5]")]),
        ("empty-behind", "A tensor without elements lies behind the end", [replaced("[10,10]", "[16,16]")]),
        ("empty-of-one", "A tensor without elements has a place of a byte", [replaced("[10,10]", "[15,16]")]),
    ]


def other_tensors() -> list[Row]:
    """Heads in form, of another result."""
    return [
        ("missing", "A tensor of the result is in no head", [replaced("," + B, "")]),
        ("missing-empty", "A tensor without elements is in no head", [replaced(EMPTY, "")]),
        ("missing-all", "A head without tensors", [replaced(HEADER, "{}")]),
        ("extra", "A tensor that the result does not have, without elements",
         [replaced(B, B + ',"c":{"dtype":"U8","shape":[0],"data_offsets":[15,15]}')]),
        ("removed", "The tensor that the pack removes",
         [replaced(B, B + ',"old":{"dtype":"U8","shape":[1],"data_offsets":[15,16]}')]),
        ("renamed", "A tensor under another name", [replaced('"b"', '"B"')]),
        ("renamed-blank", "A tensor under a name that ends in a blank", [replaced('"b"', '"b "')]),
        ("dtype", "Another dtype of the same size", in_a('"F32"', '"I32"')),
        ("dtype-unknown", "A dtype that is not known", in_a('"F32"', '"F99"')),
        ("dtype-case", "A dtype in lower case", in_a('"F32"', '"f32"')),
        ("dtype-empty", "Another dtype of a tensor without elements", [replaced('"F16"', '"BF16"')]),
        ("shape", "A shape with a dimension of 1 more", in_a("[2]", "[2,1]")),
        ("shape-before", "A shape with a dimension of 1 more in front", in_a("[2]", "[1,2]")),
        ("shape-empty", "Another shape of a tensor without elements", [replaced("[0,4]", "[4,0]")]),
        ("shape-zero", "A head with a shape whose product wraps to 0", [replaced("[0,4]", "[4294967296,4294967296]")]),
        ("shape-rank", "A shape of nine dimensions", in_a("[2]", "[2,1,1,1,1,1,1,1,1]")),
    ]  # fmt: skip


def heads(suite: Suite) -> None:
    also_limit = {"shape-deep", "shape-rank", "shape-zero", "offset-wraps"}  # a reader may see a limit first
    for rows, requirement in (([*framed(), *malformed(), *misplaced()], HEADS), (other_tensors(), TENSORS)):
        prefix = "folder-tensor" if requirement == TENSORS else "folder-head"
        for name, title, edits in rows:
            codes = "payload.layout limit.exceeded" if name in also_limit else "payload.layout"
            change = Change(heads={ONE: edits})
            suite.reject(f"{prefix}-{name}", title, "folder-one", change, codes, f"{requirement} safe.no-result")
    tied = ',"tied":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}'
    twice = ',"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}'
    of_two: tuple[tuple[str, str, Mapping[str, Sequence[Edit]], str], ...] = (
        ("head-gap-first", "A gap before the first tensor",
         {SECOND: [replaced("[2,4]", "[3,5]"), replaced("[0,2]", "[1,3]")]}, HEADS),
        ("tensor-in-two", "A tensor in two heads", {SECOND: [replaced(tied, tied + twice)]}, TENSORS),
        ("tensor-in-two-last", "A tensor in two heads, mapped to the second",
         {SECOND: [replaced(tied, tied + twice)], INDEX: [replaced(f'"b":"{FIRST}"', f'"b":"{SECOND}"')]}, TENSORS),
        ("tensor-alias", "An alias is in no head and not in the index",
         {SECOND: [replaced(tied, "")], INDEX: [replaced(f',"tied":"{SECOND}"', "")]}, TENSORS),
    )  # fmt: skip
    for name, title, changes, requirement in of_two:
        suite.reject(f"folder-{name}", title, "folder-two", Change(heads=changes), "payload.layout", requirement)
    first = '"shape":[1],"data_offsets":[0,1]'
    for name, title, text in (
        ("shape-true", "A dimension of 1 is true", '"shape":[true],"data_offsets":[0,1]'),
        ("offset-true", "An offset of 1 is true", '"shape":[1],"data_offsets":[0,true]'),
        ("offset-false", "An offset of 0 is false", '"shape":[1],"data_offsets":[false,1]'),
    ):
        change = Change(heads={ONE: [replaced(first, text)]})
        suite.reject(f"folder-head-{name}", title, "folder-odd-names", change, "payload.layout", HEADS)


# ------------------------------------------------------------------------------------------------ the index


def indices() -> list[Row]:
    whole = MAPPED
    last = f'"tied":"{SECOND}"'
    b = f'"b":"{FIRST}"'
    size = '"total_size":15'
    return [
        ("nothing", "An index of no bytes", [truncate(0)]),
        ("null", "An index that is null", [replaced(whole, "null")]),
        ("array", "An index that is an array", [replaced(whole, f"[{whole}]")]),
        ("map-alone", "An index that is its weight_map", [replaced(whole, json.dumps(MAP))]),
        ("no-map", "An index without weight_map", [replaced('"weight_map"', '"Weight_map"')]),
        ("map-null", "weight_map is null", [replaced(json.dumps(MAP, separators=(",", ":")), "null")]),
        ("map-array", "weight_map is an array", [replaced('map":{', 'map":[{'), replaced('"}}', '"}]}')]),
        ("map-empty", "weight_map is empty", [replaced(json.dumps(MAP, separators=(",", ":")), "{}")]),
        ("missing", "weight_map lacks a tensor", [replaced("," + last, "")]),
        ("extra", "weight_map has a tensor that the result does not have", [replaced(last, f'{last},"z":"{FIRST}"')]),
        ("removed", "weight_map has the tensor that the pack removes", [replaced(last, f'{last},"old":"{FIRST}"')]),
        ("other-shard", "A tensor is mapped to the other shard", [replaced(b, f'"b":"{SECOND}"')]),
        ("no-shard", "A tensor is mapped to a shard that is not there", [replaced(b, '"b":"model.safetensors"')]),
        ("path", "A tensor is mapped to a path", [replaced(b, f'"b":"../{FIRST}"')]),
        ("path-here", "A tensor is mapped to a path that leads to its shard", [replaced(b, f'"b":"./{FIRST}"')]),
        ("case", "A tensor is mapped to its shard in other letters", [replaced(b, f'"b":"M{FIRST[1:]}"')]),
        ("value-null", "A tensor is mapped to null", [replaced(b, '"b":null')]),
        ("value-array", "A tensor is mapped to an array", [replaced(b, f'"b":["{FIRST}"]')]),
        ("tensor-twice", "A tensor twice in weight_map", [replaced(b, f"{b},{b}")]),
        ("map-twice", "weight_map twice, the right one last", [replaced('"weight', '"weight_map":{},"weight')]),
        ("metadata-twice", "A key twice in metadata", [replaced(size, f"{size},{size}")]),
        ("nan", "NaN in metadata", [replaced(size, '"total_size":NaN')]),
        ("infinity", "-Infinity in metadata", [replaced(size, '"total_size":-Infinity')]),
        ("surrogate", "Half a surrogate pair in metadata", [replaced(size, '"total_size":["\\udc00"]')]),
        ("utf-8", "An index that is not UTF-8", [replaced(size, b'"total_size":"\xff"')]),
        ("mark-first", "An index that begins with a byte order mark", [replaced('{"metadata"', '\ufeff{"metadata"')]),
        ("comma", "A comma before the end of the index", [replaced('"}}', '"},}')]),
        ("two-objects", "An index of two objects", [replaced('"}}', '"}}{}')]),
        ("zero-after", "A zero byte after the index", [replaced('"}}', '"}}\0')]),
    ]  # fmt: skip


def index(suite: Suite) -> None:
    for name, title, edits in indices():
        change, requirements = Change(heads={INDEX: edits}), f"{BY_INDEX} safe.no-result"
        suite.reject(f"folder-index-{name}", title, "folder-two", change, "payload.layout", requirements)
    suite.reject(
        "folder-index-of-one",
        "The index of a layout of one shard maps a tensor elsewhere",
        "folder-one-index",
        Change(heads={INDEX: [replaced('"b":"a-Z_0.9.safetensors"', '"b":"model.safetensors"')]}),
        "payload.layout",
        BY_INDEX,
    )
    suite.either(
        "folder-index-number",
        "A number beyond float64 in metadata",
        "folder-two",
        Change(heads={INDEX: [replaced("15", "1e999")]}),
        "payload.layout",
        BY_INDEX,
        "A reader may refuse it: many a parser cannot hold it.",
    )
    suite.either(
        "folder-index-deep",
        "100000 brackets in metadata",
        "folder-two",
        Change(heads={INDEX: [replaced("15", "[" * 100_000 + "]" * 100_000)]}),
        "limit.exceeded",
        f"{BY_INDEX} reader.limits",
        "It is strict JSON; a reader that recurses reports its own limit and does not crash.",
    )


def order(suite: Suite) -> None:
    """Other faults, with a folder as output: nothing is left behind."""
    wrong = {ONE: [replaced("[12,15]", "[13,16]")]}
    other = {"b": raw("U8", [3], b"\1\2\4")}
    rows = (
        ("base-first", "Another base, and a gap in the head", Change(base=other, heads=wrong), "base.content",
         "container.order base.content"),
        ("head-chunk", "A head is broken", Change(data=[xor(-1, "01")]), "integrity.chunk", "integrity.chunk"),
        ("head-stale", "A head has another digest", Change(stale={3: [xor(20, "01")]}), "integrity.content",
         "integrity.content content.use"),
        ("file-stale", "A side file has another digest", Change(stale={2: [xor(0, "01")]}), "integrity.content",
         "apply.side-files integrity.content"),
        ("result", "A result has another digest", Change(results={"a": bytes(8)}), "integrity.result",
         "integrity.result apply.complete safe.no-result"),
        ("base", "Another base", Change(base=other), "base.content", "base.content apply.complete"),
    )  # fmt: skip
    for name, title, change, codes, requirements in rows:
        suite.reject(f"folder-{name}", title, "folder-one", change, codes, requirements)


def cases(suite: Suite) -> None:
    accepted(suite)
    kinds(suite)
    chains(suite)
    heads(suite)
    index(suite)
    order(suite)
