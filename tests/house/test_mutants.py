"""The mutants of the code that checks: each is one change, each can be put in place, and a sample is killed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.reliability.mutants import exchange, mutants_of
from benchmarks.reliability.mutation import all_mutants, equivalents, modules
from skillpack_format import names
from skillpack_format.errors import SkillPackError

ROOT = Path(__file__).parents[2]
SNIPPET = """
def check(plain, least):
    if least < plain["a"] <= 9 and plain["b"]:
        raise ValueError("a")
    require_keys(plain)
    return integer(plain, "a", 0, least)
"""


def changed(path: Path) -> list[tuple[str, str]]:
    """What each mutant of the snippet has become, beside its kind."""
    before = ast.unparse(ast.parse(path.read_text())).splitlines()
    found = []
    for mutant in mutants_of(path, "snippet"):
        after = ast.unparse(mutant.tree()).splitlines()
        assert len(after) == len(before)
        (line,) = (b for a, b in zip(before, after, strict=True) if a != b)
        found.append((mutant.kind, line.strip()))
    return found


def test_every_kind_of_change(tmp_path: Path) -> None:
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    assert changed(path) == [
        ("negate", "if not (least < plain['a'] <= 9 and plain['b']):"),
        ("operand", "if plain['b'] and True:"),
        ("operand", "if least < plain['a'] <= 9 and True:"),
        ("bound", "if least <= plain['a'] <= 9 and plain['b']:"),
        ("bound", "if least < plain['a'] < 9 and plain['b']:"),
        ("delete", "pass"),
        ("delete", "pass"),
        ("range", "return integer(plain, 'a', 0 + -1, least)"),
        ("range", "return integer(plain, 'a', 0 + 1, least)"),
        ("range", "return integer(plain, 'a', 0, least + -1)"),
        ("range", "return integer(plain, 'a', 0, least + 1)"),
    ]


@pytest.mark.parametrize(("name", "path"), modules())
def test_every_raise_has_a_mutant_without_it(name: str, path: Path) -> None:
    functions = [each for each in ast.walk(ast.parse(path.read_bytes())) if isinstance(each, ast.FunctionDef)]
    raises = {each.lineno for function in functions for each in ast.walk(function) if isinstance(each, ast.Raise)}
    deleted = {mutant.line for mutant in mutants_of(path, name) if mutant.kind == "delete"}
    assert raises <= deleted


def test_every_mutant_has_a_key_of_its_own() -> None:
    counts = Counter(mutant.key for mutant in all_mutants())
    assert [key for key, count in counts.items() if count > 1] == []


def test_what_is_listed_as_equivalent_is_there_and_has_a_reason() -> None:
    keys = {mutant.key for mutant in all_mutants()}
    assert [key for key in equivalents() if key not in keys] == []
    assert all(len(reason) > 20 for reason in equivalents().values())


def test_an_exchange_reaches_whoever_imported_the_function() -> None:
    check = names.check_side_file_name
    (mutant,) = (
        each
        for each in mutants_of(Path(names.__file__), "names")
        if each.kind == "delete" and each.function == "check_side_file_name"
    )
    exchange(names, mutant.code())
    try:
        check("x.py", "here")
    finally:
        exchange(names, compile(Path(names.__file__).read_bytes(), names.__file__, "exec"))
    with pytest.raises(SkillPackError):
        check("x.py", "here")


def test_a_sample_is_killed() -> None:
    tests = [f"tests/unit/test_{name}.py" for name in ("names", "fields", "limits")]
    command = [sys.executable, "-m", "benchmarks.reliability.mutation", "--sample", "12", "--seed", "2"]
    found = subprocess.run(
        [*command, "--only", "names", "fields", "limits", "--tests", *tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "100.00 % killed" in found.stdout


def test_a_survivor_fails_the_run() -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.mutation", "--only", "names"]
    found = subprocess.run(
        [*command, "--tests", "tests/unit/test_limits.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "0.00 % killed" in found.stdout
