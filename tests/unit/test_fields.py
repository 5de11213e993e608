"""Typed fields of a plain document."""

from __future__ import annotations

from typing import Any

import pytest
from builders import refused

from skillpack_format.digest import TensorKind
from skillpack_format.fields import array, binary, integer, made, one_of, require_keys, text


def test_made_is_what_the_class_itself_would_make() -> None:
    found = made(TensorKind, ("F32", (2, 3)))
    assert (type(found), found) == (TensorKind, TensorKind("F32", (2, 3)))
    assert str(found) == "F32[2,3]"


def test_takes_required_and_optional_keys() -> None:
    plain = {"a": 1, "b": 2}
    assert require_keys(plain, ("a",), ("b", "c"), "here") is plain


@pytest.mark.parametrize(("plain", "kind"), [(1, "an integer"), ("a", "a string"), (b"", "bytes"), ([], "an array")])
def test_refuses_what_is_no_map(plain: Any, kind: str) -> None:
    found = refused("manifest.type", require_keys, plain, (), (), "here")
    assert found.message.endswith(f"found {kind}")
    assert found.where == "here"


def test_refuses_an_unknown_key_and_names_the_known_ones() -> None:
    found = refused("manifest.unknown-key", require_keys, {"z": 1}, ("b",), ("a",), "here")
    assert found.message == "unknown key 'z'; version 1 knows a, b"


def test_refuses_a_missing_key() -> None:
    assert "'b'" in refused("manifest.missing-key", require_keys, {"a": 1}, ("a", "b"), (), "here").message


@pytest.mark.parametrize("value", [3, 5])
def test_an_integer_may_be_at_either_end(value: int) -> None:
    assert integer({"n": value}, "n", 3, 5, "here") == value


@pytest.mark.parametrize("value", [2, 6])
def test_refuses_an_integer_out_of_range(value: int) -> None:
    assert (
        refused("manifest.value", integer, {"n": value}, "n", 3, 5, "here").message
        == f"n is {value}, it must be 3 to 5"
    )
    refused("manifest.parameter", integer, {"n": value}, "n", 3, 5, "here", "manifest.parameter")


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda plain: integer(plain, "n", 0, 9, "here"), "1"),
        (lambda plain: text(plain, "n", "here"), 1),
        (lambda plain: one_of(plain, "n", ("a",), "here"), b"a"),
        (lambda plain: binary(plain, "n", 1, "here"), "a"),
        (lambda plain: array(plain, "n", "here"), {}),
    ],
)
def test_refuses_a_value_of_another_type(call: Any, value: Any) -> None:
    assert refused("manifest.type", call, {"n": value}).message.startswith("n must be")


def test_takes_one_of_the_allowed_words() -> None:
    assert one_of({"n": "b"}, "n", ("a", "b"), "here") == "b"
    assert "one of a, b" in refused("manifest.value", one_of, {"n": "c"}, "n", ("a", "b"), "here").message


@pytest.mark.parametrize("nbytes", [3, 5])
def test_refuses_bytes_of_another_number(nbytes: int) -> None:
    assert binary({"n": bytes(4)}, "n", 4, "here") == bytes(4)
    refused("manifest.value", binary, {"n": bytes(nbytes)}, "n", 4, "here")


def test_takes_texts_and_arrays() -> None:
    assert text({"n": ""}, "n", "here") == ""
    assert array({"n": [1]}, "n", "here") == [1]
