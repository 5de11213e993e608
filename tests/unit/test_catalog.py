"""Names from a file turn into code through closed tables only."""

from __future__ import annotations

import sys

import pytest
from builders import refused

from skillpack_format.catalog import CODECS, ENCODINGS, codec_named, encoding_named

HOSTILE = [
    "",
    "Dense",
    "dense ",
    "os",
    "os.path",
    "_base",
    "skillpack_format.wire",
    "../dense",
    "__init__",
    "pickle:loads",
]


def test_lists_the_encodings_and_codecs_of_version_1() -> None:
    assert list(ENCODINGS) == ["blockq", "dense", "factors", "lowrank", "sparse", "ulp"]
    assert list(CODECS) == ["raw", "zstd"]


@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encoding_is_called_as_its_module(name: str) -> None:
    assert encoding_named(name, "").name == name


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_called_as_its_module(name: str) -> None:
    assert codec_named(name, "").name == name


@pytest.mark.parametrize("name", HOSTILE)
def test_any_other_name_is_refused_and_imports_nothing(name: str) -> None:
    before = set(sys.modules)
    assert refused("unsupported.encoding", encoding_named, name, "here").message.endswith(", ".join(ENCODINGS))
    assert refused("unsupported.codec", codec_named, name, "here").where == "here"
    assert set(sys.modules) == before
