"""The logs of the two readers: every note is answered, and the cases named are there."""

from __future__ import annotations

import fnmatch
import re

import pytest

from conformance import build

CASES = [path.stem for path in build.CASES.rglob("*.json")]


def log(reader: str) -> tuple[str, str]:
    """The notes, and what became of them."""
    text = (build.ROOT / "readers" / reader / "NOTES.md").read_text(encoding="utf-8")
    notes, _, answers = text.partition("## What became of the notes")
    return notes, answers


@pytest.mark.parametrize(("reader", "numbered"), [("mini", r"^(\d+)\. "), ("js", r"^### (\d+)\. ")])
def test_every_note_is_answered_once(reader, numbered):
    notes, answers = log(reader)
    answered = [int(n) for row in re.findall(r"^\| ([\d, ]+) \| \S", answers, re.MULTILINE) for n in row.split(", ")]
    assert sorted(answered) == sorted(int(n) for n in re.findall(numbered, notes, re.MULTILINE))


@pytest.mark.parametrize("reader", ["mini", "js"])
def test_the_cases_named_are_there(reader):
    _, answers = log(reader)
    named = re.findall(r"`([a-z0-9*-]+-[a-z0-9*-]+)`", answers)
    assert len(named) > 15
    assert [each for each in named if not fnmatch.filter(CASES, each)] == []
