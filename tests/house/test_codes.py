"""Codes: the closed list, what the library raises, and the table of the specification are one set."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from skillpack_format.errors import CLASS_OF
from skillpack_format.problems import CODES

REPOSITORY = Path(__file__).parents[2]
MODULES = sorted(path for room in ("skillpack_format", "tools") for path in (REPOSITORY / room).rglob("*.py"))
CODE = re.compile(r"[a-z]+\.[a-z0-9-]+")
FIRST_WORDS = "|".join(CLASS_OF)


def strings(path: Path) -> Iterator[str]:
    """Every string of a module but docstrings and the list itself; a pattern for one with a variable in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(each.value if isinstance(each, ast.Constant) else "*" for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def raised() -> set[str]:
    """Codes named in the library as whole strings; ``integrity.*`` stands for the documents it is made from."""
    found = set()
    for path in MODULES:
        if path.name == "problems.py":
            continue
        for text in strings(path):
            if text == "integrity.*":
                found |= {"integrity.manifest", "integrity.storage"}
            elif CODE.fullmatch(text) and text.partition(".")[0] in CLASS_OF:
                found.add(text)
    return found


def test_every_code_is_raised_somewhere() -> None:
    assert CODES - raised() == set()


def test_every_code_that_is_raised_is_listed() -> None:
    assert raised() - CODES == set()


def test_every_first_word_has_a_class() -> None:
    assert {code.partition(".")[0] for code in CODES} == set(CLASS_OF)


def test_the_table_of_the_specification_is_the_list() -> None:
    text = (REPOSITORY / "spec" / "errors.md").read_text()
    rows = re.findall(rf"^\| `((?:{FIRST_WORDS})\.[a-z0-9-]+)` \| (\w+) \|", text, re.MULTILINE)
    assert dict(rows) == {code: CLASS_OF[code.partition(".")[0]].__name__ for code in CODES}
    assert len(rows) == len(CODES)
