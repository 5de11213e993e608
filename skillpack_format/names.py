"""Legal tensor and side-file names (spec/manifest.md, "Names").

Tensor names are opaque: printable ASCII, never a path. Side-file names come from a closed list, because they do
become paths.
"""

from __future__ import annotations

from typing import Final

from skillpack_format.errors import error
from skillpack_format.limits import Limits

SIDE_FILES: Final = (
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


def check_tensor_name(name: str, limits: Limits, where: str) -> None:
    """Refuse a name that is empty, too long, or holds anything but visible ASCII (manifest.name)."""
    limits.require("name_bytes", len(name), where)
    if not name or not all("!" <= char <= "~" for char in name):
        raise error(
            "manifest.name", where, f"{name!r} is not a tensor name: 1 or more visible ASCII characters are needed"
        )


def check_side_file_name(name: str, where: str) -> None:
    """Refuse a side file that is not on the list (manifest.file-name)."""
    if name not in SIDE_FILES:
        raise error("manifest.file-name", where, f"{name!r} may not be carried; allowed are {', '.join(SIDE_FILES)}")
