"""Heads of a layout: accepted when they say what the result is, refused in every other case."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import refused
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.dtypes import DTYPES
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.heads import Head, parse_heads

SPECS = {
    "a": TensorSpec("a", DTYPES["F32"], (2,)),
    "b": TensorSpec("b", DTYPES["U8"], (3,)),
    "none": TensorSpec("none", DTYPES["F16"], (0, 4)),
}


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


A, B, NONE = entry("F32", [2], 0, 8), entry("U8", [3], 0, 3), entry("F16", [0, 4], 0, 0)


def head(plain: object, padding: str = "") -> bytes:
    raw = (plain if isinstance(plain, str) else json.dumps(plain)) + padding
    return len(raw.encode()).to_bytes(8, "little") + raw.encode()


def parse(heads: dict[str, bytes], index: bytes | None = None, limits: Limits = DEFAULT_LIMITS) -> tuple[Head, ...]:
    return parse_heads(heads, index, SPECS, limits)


def index(**weight_map: str) -> bytes:
    return json.dumps({"metadata": {"total_size": 11}, "weight_map": weight_map}).encode()


ONE = {"x.safetensors": head({"b": entry("U8", [3], 8, 11), "__metadata__": {"k": "v"}, "none": NONE, "a": A}, "  \t")}
TWO = {"x.safetensors": head({"a": A}), "y.safetensors": head({"b": B, "none": entry("F16", [0, 4], 3, 3)})}
MAP = {"a": "x.safetensors", "b": "y.safetensors", "none": "y.safetensors"}


def test_the_tensors_come_in_the_order_of_their_bytes_and_the_bytes_as_they_were() -> None:
    (found,) = parse(ONE)
    assert [spec.name for spec in found.tensors] == ["none", "a", "b"]
    assert found.raw == ONE["x.safetensors"]


def test_several_heads_and_an_index_that_agrees_are_taken() -> None:
    assert [each.file_name for each in parse(TWO, index(**MAP))] == list(TWO)
    assert len(parse(TWO)) == 2


WRONG: dict[str, dict[str, bytes]] = {
    "no head": {},
    "nothing": {"x.safetensors": b""},
    "a length alone": {"x.safetensors": bytes(8)},
    "a length that is short": {"x.safetensors": b"\x01" + TWO["x.safetensors"][1:]},
    "a byte after the header": {**TWO, "x.safetensors": TWO["x.safetensors"] + b" "},
    "no JSON": {"x.safetensors": head("{")},
    "a list": {"x.safetensors": head([])},
    "a byte order mark": {**TWO, "x.safetensors": head("\ufeff" + json.dumps({"a": A}))},
    "a blank first": {**TWO, "x.safetensors": head(" " + json.dumps({"a": A}))},
    "a tensor less": {"x.safetensors": head({"a": A})},
    "a tensor more": {**TWO, "z.safetensors": head({"c": B})},
    "a tensor twice": {**TWO, "z.safetensors": head({"a": A})},
    "a key twice": {"x.safetensors": head(f'{{"a":{json.dumps(A)},"a":{json.dumps(A)}}}')},
    "another dtype": {**TWO, "x.safetensors": head({"a": entry("I32", [2], 0, 8)})},
    "another shape": {**TWO, "x.safetensors": head({"a": entry("F32", [2, 1], 0, 8)})},
    "an unknown dtype": {**TWO, "x.safetensors": head({"a": entry("F99", [2], 0, 8)})},
    "a gap before": {**TWO, "x.safetensors": head({"a": entry("F32", [2], 8, 16)})},
    "a size that is not the tensor's": {**TWO, "x.safetensors": head({"a": entry("F32", [2], 0, 7)})},
    "an overlap": {**TWO, "y.safetensors": head({"b": B, "none": entry("F16", [0, 4], 2, 2)})},
    "metadata that is no text": {**TWO, "x.safetensors": head({"a": A, "__metadata__": {"k": 1}})},
}


@pytest.mark.parametrize("heads", WRONG.values(), ids=WRONG)
def test_refuses_heads_with(heads: dict[str, bytes]) -> None:
    refused("payload.layout", parse, heads)


@pytest.mark.parametrize(
    ("what", "place", "message"),
    [
        ("a tensor twice", "layout z.safetensors", "tensor 'a' is there twice"),
        ("a tensor more", "layout z.safetensors", "tensor 'c' is no tensor of the result, or has another kind"),
        ("no JSON", "layout x.safetensors", "is not valid JSON"),
        ("metadata that is no text", "layout x.safetensors", "__metadata__: must map strings to strings"),
    ],
)
def test_a_refusal_says_where_and_what(what: str, place: str, message: str) -> None:
    found = refused("payload.layout", parse, WRONG[what])
    assert found.where == place
    assert found.message.startswith(message)


INDICES: dict[str, bytes] = {
    "no JSON": b"",
    "a list": b"[]",
    "no map": b"{}",
    "a map that is a text": b'{"weight_map": "x.safetensors"}',
    "a tensor less": index(a="x.safetensors", b="y.safetensors"),
    "a tensor more": index(**MAP, c="x.safetensors"),
    "another file": index(**{**MAP, "a": "y.safetensors"}),
    "a path": index(**{**MAP, "a": "../../etc/x.safetensors"}),
    "a key twice": b'{"weight_map": {}, "weight_map": ' + json.dumps(MAP).encode() + b"}",
    "not a number": index(**MAP).replace(b"11", b"NaN"),
    "half a surrogate pair": index(**MAP).replace(b"11", b'["\\udc00"]'),
}


@pytest.mark.parametrize("raw", INDICES.values(), ids=INDICES)
def test_refuses_an_index_with(raw: bytes) -> None:
    refused("payload.layout", parse, TWO, raw)


def test_a_limit_keeps_its_code() -> None:
    refused("limit.exceeded", parse, TWO, None, Limits(header_nodes=3))


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_refused_in_words(raw: bytes, framed: bool) -> None:
    taken = len(raw).to_bytes(8, "little") + raw if framed else raw
    refused("payload.layout", parse, {"x.safetensors": taken})
