"""Sizes: functions a reader can hold in mind, modules that can be read in one go."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FILES = sorted(path for room in ("skillpack_format", "tools") for path in (REPOSITORY / room).rglob("*.py"))
MAX_FUNCTION_LINES = 80
MAX_MODULE_LINES = 450


def names(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_module_has_at_most_450_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_function_has_at_most_80_lines(path: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []
