"""Names that tensors and side files may have."""

from __future__ import annotations

import pytest
from builders import refused

from skillpack_format.limits import DEFAULT_LIMITS
from skillpack_format.names import (
    INDEX_SUFFIX,
    SHARD_SUFFIX,
    SIDE_FILES,
    check_layout_name,
    check_side_file_name,
    check_tensor_name,
)


@pytest.mark.parametrize(
    "name",
    ["a", "!", "~", "model.layers.0.w", "../../etc/passwd", "/abs", "C:\\x", "[bold]", "__metadata__2", "x" * 512],
)
def test_visible_ascii_is_a_tensor_name(name: str) -> None:
    check_tensor_name(name, DEFAULT_LIMITS, "here")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a\n",
        "\t",
        "\x00",
        "\x1b[2J",
        "\x7f",
        "\x9b",
        "\u00e9",
        "l\u0430yers",
        "\u202e",
        "\ud800",
        "__metadata__",
    ],
)
def test_refuses_a_tensor_name_with_anything_else(name: str) -> None:
    assert refused("manifest.name", check_tensor_name, name, DEFAULT_LIMITS, "here").where == "here"


def test_refuses_a_tensor_name_of_513_bytes() -> None:
    assert "name_bytes = 513" in refused("limit.exceeded", check_tensor_name, "x" * 513, DEFAULT_LIMITS, "here").message


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_listed_side_file_may_be_carried(name: str) -> None:
    check_side_file_name(name, "here")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../config.json",
        "a/config.json",
        "CONFIG.JSON",
        "config.json ",
        "config.json\x00",
        "modeling.py",
        "model.safetensors",
        ".",
        "con",
    ],
)
def test_refuses_any_other_side_file(name: str) -> None:
    refused("manifest.file-name", check_side_file_name, name, "here")


def test_no_side_file_name_leads_anywhere() -> None:
    assert list(SIDE_FILES) == sorted(set(SIDE_FILES))
    assert not [name for name in SIDE_FILES if "/" in name or "\\" in name or name.startswith((".", "-", "~"))]


@pytest.mark.parametrize("stem", ["a", "_", "model", "model-00001-of-00002", "a..b", "A.safetensors", "x" * 116])
def test_a_plain_name_is_that_of_a_shard(stem: str) -> None:
    check_layout_name(f"{stem}.safetensors", SHARD_SUFFIX, "here")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".safetensors",
        "a.safetensor",
        "a.SAFETENSORS",
        "a.safetensors.index.json",
        "../a.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        ".a.safetensors",
        "-a.safetensors",
        "a b.safetensors",
        "a\n.safetensors",
        "a.safetensors\n",
        "\u00e4.safetensors",
        "x" * 117 + ".safetensors",
    ],
)
def test_refuses_any_other_name_of_a_shard(name: str) -> None:
    assert refused("manifest.file-name", check_layout_name, name, SHARD_SUFFIX, "here").where == "here"


def test_an_index_has_a_suffix_of_its_own() -> None:
    check_layout_name("m.safetensors.index.json", INDEX_SUFFIX, "here")
    refused("manifest.file-name", check_layout_name, "m.safetensors", INDEX_SUFFIX, "here")
