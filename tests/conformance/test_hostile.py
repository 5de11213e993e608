"""The table of hostile inputs: every row is answered, and every answer is there."""

from __future__ import annotations

import fnmatch
import re
from functools import cache
from pathlib import Path

import pytest

from conformance import build

ROOT = Path(__file__).parents[2]
COUNTS = (20, 10, 12, 18, 15, 20, 16, 10, 14, 15, 20, 12, 24, 18, 5, 10, 6, 10, 7, 10)
GROUPS = dict(zip("ABCDEFGHIJKLMNOPQRST", COUNTS, strict=True))
TEXT = (build.ROOT / "HOSTILE.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([A-T]\d\d) \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
REASONS = re.findall(r"^\| \*([a-z-]+)\* \| \S", TEXT, re.MULTILINE)
CASES = [path.stem for path in build.CASES.rglob("*.json")]


@cache
def names_in(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"^def test_(\w+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))


def test_every_row_is_there_once():
    assert [row for row, _, _ in ROWS] == [
        f"{group}{k:02}" for group, count in GROUPS.items() for k in range(1, count + 1)
    ]


def test_every_reason_is_used_and_explained():
    used = {
        reason for *_, answer in ROWS for reason in re.findall(r"\*([a-z-]+)\*(?!`)", re.sub(r"`[^`]*`", "", answer))
    }
    assert used == set(REASONS)


@pytest.mark.parametrize(("row", "answer"), [(row, answer) for row, _, answer in ROWS])
def test_what_answers_a_row_exists(row, answer):
    named = re.findall(r"`([^`]+)`", answer)
    assert named or "*" in answer
    for each in named:
        path, _, test = each.partition("::")
        if test:
            assert test in names_in(path), each
        else:
            assert fnmatch.filter(CASES, each), each
