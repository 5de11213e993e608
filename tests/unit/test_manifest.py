"""MANIFEST: what a pack means, parsed strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from builders import hexed, refused

from skillpack_format.digest import TensorIdentity, TensorKind
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.manifest import CLASSES, Entry, Manifest, parse

A, B, C = (bytes([k]) * 32 for k in (1, 2, 3))
Document = dict[str, Any]


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), sha256: bytes = A) -> Document:
    return {"dtype": dtype, "sha256": sha256, "shape": list(shape)}


def component(**changes: Any) -> Document:
    return {"encoding": "ulp", "sha256": C, **changes}


def entry(name: str = "m.w", **changes: Any) -> Document:
    found = {
        "class": "mlp", "module": "m", "name": name, "base": tensor(), "result": tensor(sha256=B),
        "components": [component()], **changes,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def document(**changes: Any) -> Document:
    """Two tensors in the base; one is changed, one added, one removed; a side file."""
    return {
        "base": {"count": 2, "digest": A, "prints": bytes(8)},
        "files": [{"length": 3, "name": "config.json", "sha256": C}],
        "format": "skillpack/1",
        "metadata": {"author": "somebody"},
        "result": {"count": 2, "digest": B},
        "tensors": [
            entry("a", base=None, stats={"changed": 6, "error": bytes(4)}),
            entry("b"),
            entry("c", result=None, components=None),
        ],
        **changes,
    }


def one(**changes: Any) -> Document:
    """A document of a single entry; both counts fit an entry that changes."""
    return document(
        base={"count": 1, "digest": A, "prints": bytes(4)}, result={"count": 1, "digest": B}, tensors=[entry(**changes)]
    )


def test_reads_what_it_means() -> None:
    found = parse(document())
    assert (found.base.count, found.base.digest, found.result.count, found.result.digest) == (2, A, 2, B)
    assert [(each.name, each.base is None, each.result is None) for each in found.tensors] == [
        ("a", True, False),
        ("b", False, False),
        ("c", False, True),
    ]
    assert found.tensors[1].base == TensorIdentity(TensorKind("F32", (2, 3)), A)
    assert found.tensors[0].stats == {"changed": 6, "error": bytes(4)}
    assert (found.files[0].name, found.files[0].nbytes, found.files[0].sha256) == ("config.json", 3, C)
    assert found.metadata == {"author": "somebody"}


def test_prints_as_it_stood() -> None:
    assert parse(document()).to_plain() == document()


def test_empty_statistics_print_as_they_stood() -> None:
    found = one(stats={})
    assert parse(found).to_plain() == found
    assert parse(found).to_bytes() != parse(one()).to_bytes()


def test_an_alias_prints_as_it_stood() -> None:
    aliased = document(tensors=[entry("a", base=None), entry("b", alias="a", components=None)])
    aliased["result"]["count"] = 3
    assert parse(aliased).to_plain() == aliased


def test_keeps_the_parameters_of_a_component_apart() -> None:
    found = parse(one(components=[component(encoding="dense", mode="add", dtype="F32")])).tensors[0].components[0]
    assert (found.encoding, found.sha256, found.params) == ("dense", C, {"mode": "add", "dtype": "F32"})


def test_the_pack_id_is_the_digest_of_the_bytes() -> None:
    empty = parse(
        document(
            base={"count": 0, "digest": A, "prints": b""},
            result={"count": 0, "digest": A},
            files=[],
            tensors=[],
            metadata={},
        )
    )
    assert empty.to_bytes() == hexed(
        "86"
        "a462617365" "83" "a5636f756e74" "00" "a6646967657374" "c420" + A.hex() + "a67072696e7473" "c400"
        "a566696c6573" "90"
        "a6666f726d6174" "ab736b696c6c7061636b2f31"
        "a86d65746164617461" "80"
        "a6726573756c74" "82" "a5636f756e74" "00" "a6646967657374" "c420" + A.hex() + "a774656e736f7273" "90"
    )  # fmt: skip
    assert len(empty.pack_id) == 64


def test_prints_of_the_base_are_four_bytes_each() -> None:
    found = parse(document(base={"count": 2, "digest": A, "prints": b"abcdefgh"})).base
    assert [found.print_of(0), found.print_of(1)] == [b"abcd", b"efgh"]


def drop(where: str, key: str) -> Callable[[Document], None]:
    def harm(found: Document) -> None:
        del at(found, where)[key]

    return harm


def put(where: str, key: str, value: Any) -> Callable[[Document], None]:
    def harm(found: Document) -> None:
        at(found, where)[key] = value

    return harm


PLACES = {
    "document": lambda d: d,
    "base": lambda d: d["base"],
    "result": lambda d: d["result"],
    "file": lambda d: d["files"][0],
    "entry": lambda d: d["tensors"][1],
    "base tensor": lambda d: d["tensors"][1]["base"],
    "result tensor": lambda d: d["tensors"][1]["result"],
    "stats": lambda d: d["tensors"][0]["stats"],
    "component": lambda d: d["tensors"][1]["components"][0],
    "metadata": lambda d: d["metadata"],
}


def at(found: Document, where: str) -> Any:
    return PLACES[where](found)


def keys_of(where: str) -> list[str]:
    return list(at(document(), where))


REQUIRED = [
    (where, key)
    for where in ("document", "base", "result", "file", "entry", "base tensor", "result tensor", "component")
    for key in keys_of(where)
    if (where, key) not in (("entry", "base"), ("entry", "result"), ("entry", "components"))
]


@pytest.mark.parametrize(("where", "key"), REQUIRED)
def test_refuses_a_map_without_a_required_key(where: str, key: str) -> None:
    found = document()
    drop(where, key)(found)
    refused("manifest.missing-key", parse, found)


@pytest.mark.parametrize("where", [each for each in PLACES if each not in ("component", "metadata")])
def test_refuses_an_unknown_key(where: str) -> None:
    found = document()
    put(where, "extra", 1)(found)
    assert "'extra'" in refused("manifest.unknown-key", parse, found).message


WRONG_TYPES = [
    (where, key, value)
    for where in PLACES
    for key in keys_of(where)
    for value in (7, "text", b"bytes", [], {})
    if type(value) is not type(at(document(), where)[key])
]


@pytest.mark.parametrize(("where", "key", "value"), WRONG_TYPES)
def test_refuses_a_value_of_another_type(where: str, key: str, value: Any) -> None:
    found = document()
    put(where, key, value)(found)
    refused("manifest.type", parse, found)


@pytest.mark.parametrize("value", [7, "text", b"", []])
def test_refuses_a_document_and_entries_that_are_no_maps(value: Any) -> None:
    refused("manifest.type", parse, value)
    refused("manifest.type", parse, document(tensors=[value]))
    refused("manifest.type", parse, document(files=[value]))
    refused("manifest.type", parse, one(components=[value]))


BYTES = [("base", "digest"), ("base", "prints"), ("result", "digest"), ("file", "sha256"), ("base tensor", "sha256"),
         ("result tensor", "sha256"), ("component", "sha256"), ("stats", "error")]  # fmt: skip


@pytest.mark.parametrize(("where", "key"), BYTES)
@pytest.mark.parametrize("change", [-1, 1])
def test_refuses_bytes_of_another_number(where: str, key: str, change: int) -> None:
    found = document()
    put(where, key, bytes(len(at(found, where)[key]) + change))(found)
    refused("manifest.value", parse, found)


@pytest.mark.parametrize("value", ["skillpack/2", "", "Skillpack/1", "skillpack/1 "])
def test_refuses_another_format(value: str) -> None:
    refused("manifest.value", parse, document(format=value))


@pytest.mark.parametrize("name", CLASSES)
def test_takes_the_nine_classes(name: str) -> None:
    assert len(CLASSES) == 9
    assert parse(one(**{"class": name})).tensors[0].tensor_class == name


@pytest.mark.parametrize("name", ["", "MLP", "layer"])
def test_refuses_another_class(name: str) -> None:
    refused("manifest.value", parse, one(**{"class": name}))


@pytest.mark.parametrize("name", ["", "a b", "\x1b[2J", "\x00", "\u202ea", "\u00e9"])
def test_refuses_a_name_with_anything_but_visible_ascii(name: str) -> None:
    refused("manifest.name", parse, one(name=name))


@pytest.mark.parametrize("name", ["", "__metadata__"])
def test_a_module_may_be_called_what_no_tensor_may(name: str) -> None:
    assert parse(one(module=name)).tensors[0].module == name


@pytest.mark.parametrize("name", ["a b", "\x1b[2J", "\u00e9"])
def test_refuses_a_module_with_anything_but_visible_ascii(name: str) -> None:
    refused("manifest.name", parse, one(module=name))


@pytest.mark.parametrize("key", ["name", "module"])
def test_names_and_modules_have_at_most_512_bytes(key: str) -> None:
    parse(one(**{key: "x" * 512}))
    refused("limit.exceeded", parse, one(**{key: "x" * 513}))


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a"), ("a.b", "a"), ("b", "B")])
def test_refuses_entries_that_do_not_ascend_strictly(names: tuple[str, str]) -> None:
    found = document(tensors=[entry(name) for name in names])
    refused("manifest.order", parse, found)


@pytest.mark.parametrize("names", [("vocab.txt", "config.json"), ("config.json", "config.json")])
def test_refuses_side_files_that_do_not_ascend_strictly(names: tuple[str, str]) -> None:
    refused("manifest.order", parse, document(files=[{"length": 1, "name": name, "sha256": A} for name in names]))


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/passwd", "config.json\x00", "CONFIG.JSON", "modeling.py", "con"]
)
def test_refuses_a_side_file_that_is_not_on_the_list(name: str) -> None:
    refused("manifest.file-name", parse, document(files=[{"length": 1, "name": name, "sha256": A}]))


def carried(name: str, length: int = 10) -> dict[str, Any]:
    return {"length": length, "name": name, "sha256": A}


INDEX = carried("m.safetensors.index.json")


def laid_out(*names: str, **more: Any) -> dict[str, Any]:
    return document(layout={"shards": [carried(name) for name in names], **more})


def test_takes_a_layout_and_gives_it_back() -> None:
    for found in (laid_out("model.safetensors"), laid_out("_.safetensors", "a-1.B.safetensors", index=INDEX)):
        assert parse(found).to_plain() == found


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "a/b.safetensors", "a\\b.safetensors", ".safetensors", ".a.safetensors", "-a.safetensors",
     "a b.safetensors", "a\n.safetensors", "a.safetensors\n", "a\x00.safetensors", "\u00e9.safetensors", "a.bin", "",
     "a.safetensors.py", "x" * 117 + ".safetensors"],
)  # fmt: skip
def test_refuses_a_shard_whose_name_is_not_plain(name: str) -> None:
    refused("manifest.file-name", parse, laid_out(name))
    refused("manifest.file-name", parse, laid_out("a.safetensors", index=carried(name)))


def test_the_name_of_a_shard_has_at_most_128_bytes_and_that_of_an_index_ends_otherwise() -> None:
    parse(laid_out("x" * 116 + ".safetensors"))
    refused("manifest.file-name", parse, laid_out("a.safetensors", index=carried("a.safetensors")))
    refused("manifest.file-name", parse, laid_out("a.safetensors", index=carried("a.index.json")))


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a")])
def test_refuses_shards_that_do_not_ascend_strictly(names: tuple[str, ...]) -> None:
    refused("manifest.order", parse, laid_out(*(f"{name}.safetensors" for name in names), index=INDEX))


def test_refuses_a_layout_without_shards_or_with_several_and_no_index() -> None:
    refused("manifest.value", parse, laid_out())
    refused("manifest.value", parse, laid_out(index=INDEX))
    refused("manifest.value", parse, laid_out("a.safetensors", "b.safetensors"))


def test_refuses_other_keys_and_types_in_a_layout() -> None:
    refused("manifest.type", parse, document(layout=[]))
    refused("manifest.missing-key", parse, document(layout={}))
    refused("manifest.unknown-key", parse, laid_out("a.safetensors", others=[]))
    refused("manifest.type", parse, laid_out("a.safetensors", index=[]))
    refused("manifest.type", parse, document(layout={"shards": {}}))
    refused("manifest.unknown-key", parse, document(layout={"shards": [{**carried("a.safetensors"), "path": "x"}]}))


def test_a_layout_has_at_most_4096_shards_and_128_mib() -> None:
    names = [f"{number:04}.safetensors" for number in range(4097)]
    parse(laid_out(*names[:4096], index=INDEX))
    refused("limit.exceeded", parse, laid_out(*names, index=INDEX))
    whole = 1 << 27
    parse(document(layout={"shards": [carried("a.safetensors", whole - 10)], "index": INDEX}))
    refused("limit.exceeded", parse, document(layout={"shards": [carried("a.safetensors", whole - 9)], "index": INDEX}))
    refused("limit.exceeded", parse, document(layout={"shards": [carried("a.safetensors", (1 << 64) - 1)]}))


@pytest.mark.parametrize("dtype", ["", "f32", "object", "V16", "F8"])
def test_refuses_an_unknown_dtype(dtype: str) -> None:
    found = refused("unsupported.dtype", parse, one(result=tensor(dtype)))
    assert found.where == "tensor 'm.w' result"


@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 7), (2,) * 8])
def test_takes_any_shape_of_up_to_eight_dimensions(shape: tuple[int, ...]) -> None:
    components = [] if 0 in shape else [component()]
    assert parse(one(result=tensor(shape=shape), components=components)).tensors[0].result.kind.shape == shape


def test_refuses_nine_dimensions() -> None:
    refused("limit.exceeded", parse, one(result=tensor(shape=(1,) * 9)))


@pytest.mark.parametrize("dim", ["2", b"", [], {}])
def test_refuses_a_dimension_that_is_no_integer(dim: Any) -> None:
    found = one()
    found["tensors"][0]["result"]["shape"] = [2, dim]
    assert "shape[1]" in refused("manifest.type", parse, found).where


@pytest.mark.parametrize(
    "shape",
    [
        (1 << 32, 1 << 32),  # wraps to 0 in 64 bits
        (4194305, 4194305, 211106198978564),  # wraps to 4
        ((1 << 34) + 1,),
        ((1 << 63) - 1,),
        (1 << 63,),
        ((1 << 64) - 1,),
        (2, 1 << 63),
    ],
)
def test_refuses_a_tensor_of_more_bytes_than_the_limit(shape: tuple[int, ...]) -> None:
    refused("limit.exceeded", parse, one(result=tensor(shape=shape)))


def test_a_tensor_of_exactly_the_limit_is_within_it() -> None:
    parse(one(result=tensor("U8", (DEFAULT_LIMITS.tensor_bytes,))))
    refused("limit.exceeded", parse, one(result=tensor("U8", (DEFAULT_LIMITS.tensor_bytes + 1,))))


@pytest.mark.parametrize("shape", [(0, (1 << 63) - 1), ((1 << 63) - 1, 0), (0, (1 << 64) - 1)])
def test_a_tensor_without_elements_takes_no_byte_whatever_its_dimensions(shape: tuple[int, ...]) -> None:
    parse(one(result=tensor(shape=shape), components=[]))


@pytest.mark.parametrize(("dtype", "shape"), [("F4", (3,)), ("F4", ()), ("F6_E2M3", (2, 3)), ("F6_E3M2", (1,))])
def test_refuses_a_shape_that_does_not_fill_whole_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    found = refused("manifest.shape", parse, one(base=tensor(dtype, shape)))
    assert found.where == "tensor 'm.w' base"


def test_refuses_an_entry_without_tensors() -> None:
    found = refused("manifest.tensor", parse, one(base=None, result=None, components=None))
    assert found.message.startswith("neither base nor result is there")


def test_refuses_an_entry_of_an_unchanged_tensor() -> None:
    refused("manifest.tensor", parse, one(result=tensor()))


@pytest.mark.parametrize("result", [tensor("I32"), tensor(shape=(3, 2)), tensor(sha256=B)])
def test_a_change_of_dtype_shape_or_bytes_is_a_change(result: Document) -> None:
    parse(one(result=result))


def aliases(*entries: Document) -> Document:
    return document(result={"count": 2 + len(entries), "digest": B}, tensors=[entry("a"), *entries])


@pytest.mark.parametrize("name", ["a", "not.listed", "zz"])
def test_an_alias_names_a_listed_or_an_unlisted_tensor(name: str) -> None:
    parse(aliases(entry("b", base=None, alias=name, components=None)))


@pytest.mark.parametrize("name", ["", "a b", "\x1b[2J", "\u00e9"])
def test_refuses_an_alias_with_anything_but_visible_ascii(name: str) -> None:
    refused("manifest.name", parse, aliases(entry("b", base=None, alias=name, components=None)))


def test_refuses_an_alias_of_a_removed_tensor() -> None:
    found = document(
        tensors=[
            entry("a", base=None, alias="c", components=None),
            entry("b"),
            entry("c", result=None, components=None),
        ]
    )
    refused("manifest.alias", parse, found)


def test_refuses_an_alias_without_a_result() -> None:
    refused("manifest.alias", parse, one(alias="x", result=None, components=None))


def test_refuses_an_alias_of_an_alias() -> None:
    first = entry("b", base=None, alias="a", components=None)
    refused("manifest.alias", parse, aliases(first, entry("c", base=None, alias="b", components=None)))


def test_refuses_an_alias_of_itself() -> None:
    refused("manifest.alias", parse, aliases(entry("b", base=None, alias="b", components=None)))


@pytest.mark.parametrize("result", [tensor("I32", sha256=B), tensor(shape=(6,), sha256=B), tensor(sha256=C)])
def test_refuses_an_alias_of_another_tensor_than_its_own(result: Document) -> None:
    refused("manifest.alias", parse, aliases(entry("b", base=None, alias="a", result=result, components=None)))


@pytest.mark.parametrize(
    "changes",
    [
        {"components": None},
        {"alias": "x"},
        {"result": None},
        {"result": None, "components": []},
        {"alias": "x", "components": []},
    ],
    ids=["absent", "with an alias", "without a result", "empty without a result", "empty with an alias"],
)
def test_refuses_components_in_the_wrong_place(changes: Document) -> None:
    refused("manifest.components", parse, one(**changes))


def test_an_entry_has_at_most_eight_components() -> None:
    parse(one(components=[component()] * 8))
    refused("limit.exceeded", parse, one(components=[component()] * 9))


@pytest.mark.parametrize("where", ["base", "result"])
def test_refuses_a_count_above_the_limit(where: str) -> None:
    for count in (DEFAULT_LIMITS.tensors + 1, 1 << 62, 1 << 63, (1 << 64) - 1):
        found = document()
        found[where]["count"] = count
        refused("limit.exceeded", parse, found)


def test_refuses_more_entries_than_the_limit() -> None:
    parse(document(), Limits(tensors=3))
    refused("limit.exceeded", parse, document(), Limits(tensors=2))


def test_metadata_have_at_most_256_pairs() -> None:
    parse(document(metadata={f"{k:03}": "" for k in range(256)}))
    refused("limit.exceeded", parse, document(metadata={f"{k:03}": "" for k in range(257)}))


def test_metadata_have_at_most_a_mebibyte_of_utf8() -> None:
    parse(document(metadata={"ab": "x" * ((1 << 20) - 2)}))
    refused("limit.exceeded", parse, document(metadata={"ab": "x" * ((1 << 20) - 1)}))
    refused("limit.exceeded", parse, document(metadata={"": "\u00e9" * (1 << 19) + "x"}))


def test_has_at_most_64_side_files() -> None:
    refused("limit.exceeded", parse, document(files=[{}] * 65))
    refused("manifest.missing-key", parse, document(files=[{}] * 64))


def test_a_side_file_has_at_most_64_mib() -> None:
    for length in ((1 << 26) + 1, 1 << 63, (1 << 64) - 1):
        refused("limit.exceeded", parse, document(files=[{"length": length, "name": "vocab.txt", "sha256": A}]))
    parse(document(files=[{"length": 1 << 26, "name": "vocab.txt", "sha256": A}]))


def test_refuses_a_base_of_fewer_tensors_than_are_listed() -> None:
    refused(
        "manifest.value",
        parse,
        document(base={"count": 1, "digest": A, "prints": bytes(4)}, result={"count": 1, "digest": B}),
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_refuses_a_result_count_that_does_not_follow(count: int) -> None:
    refused("manifest.value", parse, document(result={"count": count, "digest": B}))


def test_figures_are_informative_up_to_the_largest_integer() -> None:
    found = document()
    found["tensors"][0]["stats"]["changed"] = (1 << 64) - 1
    assert parse(found).tensors[0].stats["changed"] == (1 << 64) - 1


def test_a_collector_hears_every_fault() -> None:
    found: list[SkillPackError] = []
    harmed = document(
        files=[{"length": 1, "name": "x", "sha256": A}, {"length": 1, "name": "y", "sha256": A}],
        tensors=[entry("b", **{"class": "x"}), entry("b", module=" "), entry("c"), entry("c")],
        result={"count": 9, "digest": A},
    )
    assert isinstance(parse(harmed, report=found.append), Manifest)
    assert [each.code for each in found] == [
        "manifest.file-name", "manifest.file-name", "manifest.value", "manifest.name", "manifest.order",
        "manifest.value",
    ]  # fmt: skip


def test_an_entry_is_a_value() -> None:
    kind = TensorIdentity(TensorKind("F32", ()), A)
    assert Entry(name="a", tensor_class="mlp", module="", base=kind, result=None).stats is None


INTEGERS: dict[str, Callable[[Document, int], None]] = {
    "count": lambda found, value: found["base"].update(count=value),
    "count ": lambda found, value: found["result"].update(count=value),
    "length": lambda found, value: found["files"][0].update(length=value),
    "changed": lambda found, value: found["tensors"][0]["stats"].update(changed=value),
    "dim": lambda found, value: found["tensors"][0]["result"].update(shape=[2, value]),
}


@pytest.mark.parametrize("value", [-1, 1 << 64])
@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_one_that_the_wire_holds(name: str, value: int) -> None:
    found = document()
    INTEGERS[name](found, value)
    code = "manifest.shape" if name == "dim" else "manifest.value"
    message = refused(code, parse, found).message
    assert message == f"{name.strip()} is {value}, it must be 0 to {(1 << 64) - 1}"


def test_a_document_at_every_limit_is_within_them() -> None:
    found = document(base={"count": 3, "digest": A, "prints": bytes(12)}, result={"count": 3, "digest": B})
    limits: dict[str, int] = {
        "tensors": 3, "tensor_rank": 2, "tensor_bytes": 24, "components": 1, "name_bytes": 1,
        "metadata_entries": 1, "metadata_bytes": len("authorsomebody"), "side_files": 1, "side_file_bytes": 3,
    }  # fmt: skip
    parse(found, Limits(**limits))
    for name, value in limits.items():
        assert (
            f"asks for {name} = {value},"
            in refused("limit.exceeded", parse, found, Limits(**{name: value - 1})).message
        )
