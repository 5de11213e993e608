"""The only place where a name from a file turns into code: closed tables of encodings and codecs.

The tables list the modules of this package's own rooms, so a new file is a new entry; nothing outside the package is
ever listed and no string from a file reaches an import.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from skillpack_format import codecs, encodings
from skillpack_format.codecs._base import Codec
from skillpack_format.encodings._base import Encoding
from skillpack_format.errors import error


def _table(room: ModuleType, constant: str) -> dict[str, Any]:
    files = Path(room.__path__[0]).glob("[a-z]*.py")  # not pkgutil: it takes longer to import than all of them
    names = sorted(file.stem for file in files)
    return {name: getattr(import_module(f"{room.__name__}.{name}"), constant) for name in names}


ENCODINGS: Final[dict[str, Encoding]] = _table(encodings, "ENCODING")
CODECS: Final[dict[str, Codec]] = _table(codecs, "CODEC")


def encoding_named(name: str, where: str) -> Encoding:
    """The encoding called ``name``; unsupported.encoding says which are known."""
    found = ENCODINGS.get(name)
    if found is None:
        raise error(
            "unsupported.encoding", where, f"unknown encoding {name!r}; this reader knows {', '.join(ENCODINGS)}"
        )
    return found


def codec_named(name: str, where: str) -> Codec:
    """The codec called ``name``; unsupported.codec says which are known."""
    found = CODECS.get(name)
    if found is None:
        raise error("unsupported.codec", where, f"unknown codec {name!r}; this reader knows {', '.join(CODECS)}")
    return found
