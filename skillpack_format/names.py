"""Legal tensor and side-file names (spec/manifest.md, "Names").

Tensor names are opaque: printable ASCII, never a path. Side-file names come from a closed list, because they do
become paths.
"""

from __future__ import annotations

import re
from typing import Final

from skillpack_format.errors import error
from skillpack_format.limits import Limits

SIDE_FILES: Final = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


RESERVED: Final = "__metadata__"  # what stands in the header of a safetensors file beside the tensors
SHARD_SUFFIX: Final = ".safetensors"
INDEX_SUFFIX: Final = ".safetensors.index.json"
LAYOUT_NAME_BYTES: Final = 128
_LAYOUT_STEM: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def check_tensor_name(name: str, limits: Limits, where: str) -> None:
    """Refuse a name that is empty, too long, not visible ASCII, or kept by safetensors for itself (manifest.name)."""
    check_module_name(name, limits, where)
    if not name or name == RESERVED:
        message = f"1 or more visible ASCII characters are needed, and not {RESERVED}"
        raise error("manifest.name", where, f"{name!r} is not a tensor name: {message}")


def check_module_name(name: str, limits: Limits, where: str) -> None:
    """Refuse a name that is too long, or holds anything but visible ASCII (manifest.name)."""
    limits.require("name_bytes", len(name), where)
    if not (name.isascii() and name.isprintable()) or " " in name:
        raise error("manifest.name", where, f"{name!r} is not a name: visible ASCII characters are needed")


def check_side_file_name(name: str, where: str) -> None:
    """Refuse a side file that is not on the list (manifest.file-name)."""
    if name not in SIDE_FILES:
        raise error("manifest.file-name", where, f"{name!r} may not be carried; allowed are {', '.join(SIDE_FILES)}")


def is_layout_name(name: str, suffix: str) -> bool:
    """Whether a file of a layout may be called so: letters, digits and ``_ . -`` before ``suffix``, never a path."""
    stem = name.removesuffix(suffix)
    return stem != name and len(name) <= LAYOUT_NAME_BYTES and _LAYOUT_STEM.fullmatch(stem) is not None


def check_layout_name(name: str, suffix: str, where: str) -> None:
    """Refuse the name of a shard or an index that is not of the one plain form (manifest.file-name)."""
    if not is_layout_name(name, suffix):
        form = f"letters, digits, _ . - and then {suffix}, {LAYOUT_NAME_BYTES} bytes at most"
        raise error("manifest.file-name", where, f"{name!r} is no name for this file: {form}")
