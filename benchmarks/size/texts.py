"""Local text to train and to measure on: Python source and C++ headers of installed packages, in a fixed order.

The one rule: nothing is downloaded and nothing is random. Which files are read, and in which order, only their names
decide; what is held out is never trained on.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import minilm

PYTHON_PACKAGES: Final = ("torch", "transformers", "numpy")
HEADER_FOLDERS: Final = {"torch": "include", "numpy": "_core/include"}
GENERATED: Final = "/ATen/ops/"  # thousands of files that differ in a name
MAX_FILE_CHARACTERS: Final = 20_000  # no single generated file may fill the corpus
MAX_PER_FILE: Final = 8
MAX_DECLARATIONS: Final = 2400
HELD_OUT: Final = 300
SEED: Final = minilm.SEED

Named = tuple[str, Path]  # the name that decides the order, and where the file is here

_COMMENTED: Final = re.compile(
    r"^(?P<comment>(?:[ \t]*//[^\n]*\n)+|[ \t]*/\*\*?.*?\*/[ \t]*\n)"  # lines of //, or one block
    r"(?P<declaration>[ \t]*(?:template|class|struct|enum|virtual|static|inline|constexpr|explicit|TORCH_API|[A-Za-z_])"
    r"[^;{}#]{20,400}[;{])",
    re.MULTILINE | re.DOTALL,
)
_MARKS: Final = re.compile(r"^[ \t]*(?:///?|/\*\*?|\*/?)|\*/", re.MULTILINE)


def python_text(characters: int) -> tuple[str, str]:
    """Source of installed Python: (training, held out), about ``characters`` and a thirtieth of them."""
    folders = [minilm.package_folder(name) for name in PYTHON_PACKAGES]
    return _text([(_name(path, folder), path) for folder in folders for path in folder.rglob("*.py")], characters)


def header_text(characters: int) -> tuple[str, str]:
    """C and C++ headers of installed packages: (training, held out)."""
    return _text(_headers(), characters)


@functools.cache
def declarations() -> tuple[list[minilm.Pair], list[minilm.Pair]]:
    """Comments of C++ headers and what they describe, shuffled: (training, held out)."""
    found: dict[str, minilm.Pair] = {}
    for path in _shuffled(_headers()):
        for pair in _declarations_in(_read(path))[:MAX_PER_FILE]:
            found.setdefault(pair.query, pair)  # a query with two answers would teach nothing
        if len(found) >= MAX_DECLARATIONS:
            break
    pairs = sorted(found.values(), key=lambda pair: _key(pair.query))
    return pairs[HELD_OUT:], pairs[:HELD_OUT]


def _declarations_in(source: str) -> list[minilm.Pair]:
    pairs = []
    for match in _COMMENTED.finditer(source):
        query = " ".join(_MARKS.sub(" ", match["comment"]).split())
        if 24 <= len(query) <= 600 and "Copyright" not in query:
            pairs.append(minilm.Pair(query, " ".join(match["declaration"].split())))
    return pairs


def _text(paths: Sequence[Named], characters: int) -> tuple[str, str]:
    """Whole files, shuffled by name: every thirtieth is held out."""
    train: list[str] = []
    held_out: list[str] = []
    total = 0
    for index, path in enumerate(_shuffled(paths)):
        text = _read(path)[:MAX_FILE_CHARACTERS]
        (held_out if index % 30 == 0 else train).append(text)
        total += len(text)
        if total >= characters:
            break
    return "\n".join(train), "\n".join(held_out)


def _headers() -> list[Named]:
    found = []
    for package, inside in HEADER_FOLDERS.items():
        folder = minilm.package_folder(package)
        found += [(_name(path, folder), path) for path in (folder / inside).rglob("*.h")]
    return [(name, path) for name, path in found if GENERATED not in name]


def _name(path: Path, package: Path) -> str:
    """The path inside site-packages, wherever that is."""
    return path.relative_to(package.parent).as_posix()


def _shuffled(paths: Sequence[Named]) -> list[Path]:
    return [path for _, path in sorted(paths, key=lambda named: _key(named[0]))]


def _key(text: str) -> bytes:
    return hashlib.sha256(f"{SEED} {text}".encode()).digest()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
