"""What a side file makes other programs do: a chat template is run, ``auto_map`` names code to import.

A pack carries such files as data and never acts on them; these notes are for the people who decide whether to use them.
"""

from __future__ import annotations

import json
from typing import Final

TEMPLATE: Final = "chat-template"
CODE: Final = "names-code"
NOTES: Final = {
    TEMPLATE: "holds a chat template, which other programs run",
    CODE: "names code to run (auto_map)",
}
TEMPLATE_FILES: Final = ("chat_template.jinja", "tokenizer_config.json")  # either can hold a chat template
CODE_FILES: Final = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")
CODE_KEYS: Final = ("auto_map", "custom_pipelines")
PROGRAM_SUFFIXES: Final = tuple(".bat .cmd .dll .dylib .exe .ipynb .js .pth .py .pyc .sh .so".split())


def can_hold(name: str) -> tuple[str, ...]:
    """The notes that a file of this name can earn, told without reading it."""
    return tuple(note for note, names in ((TEMPLATE, TEMPLATE_FILES), (CODE, CODE_FILES)) if name in names)


def notes_of(name: str, data: bytes) -> tuple[str, ...]:
    """The notes that a file earns by what is in it; a key counts at any depth."""
    keys = _keys_of(data) if name.endswith(".json") else set()
    template = name == "chat_template.jinja" or "chat_template" in keys
    return ((TEMPLATE,) if template else ()) + ((CODE,) if keys.intersection(CODE_KEYS) else ())


def is_program(name: str, mode: int) -> bool:
    """Whether a file is one to be run: by its suffix, or because its permissions say so."""
    return name.lower().endswith(PROGRAM_SUFFIXES) or bool(mode & 0o111)


def _keys_of(data: bytes) -> set[str]:
    """Every key of every object of a JSON text, one that comes twice included; none where it is no JSON."""
    keys: set[str] = set()
    try:
        json.loads(data, object_pairs_hook=lambda pairs: keys.update(key for key, _ in pairs))
    except (ValueError, RecursionError):
        return set()
    return keys
