"""What a finding looks like: nothing a terminal would interpret, and never long."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.problems import CODES, MAX_PROBLEM_CHARS, Problem, printable

TEXTS = st.text(st.characters(), max_size=80)


def test_every_code_is_two_words_of_lower_case() -> None:
    assert [code for code in CODES if not re.fullmatch(r"[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", code)] == []


@given(TEXTS, TEXTS, st.integers(1, 2000))
def test_prints_at_most_500_printable_characters(where: str, message: str, times: int) -> None:
    text = str(Problem("wire.type", where * times, message))
    assert len(text) <= MAX_PROBLEM_CHARS == 500
    assert re.fullmatch(r"[ -~]*", text)
    assert text.endswith("[wire.type]")


@given(TEXTS, TEXTS)
def test_plain_data_are_printable_too(where: str, message: str) -> None:
    plain = Problem("wire.type", where, message).to_plain()
    assert list(plain) == ["code", "where", "message"]
    assert all(re.fullmatch(r"[ -~]*", text) for text in plain.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a~ ", "a~ "),
        ("\n", "\\n"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u00e9", "\\xe9"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("\U0001f600", "\\U0001f600"),
    ],
)
def test_escapes_everything_but_printable_ascii(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_cuts_in_the_middle() -> None:
    text = "a" * 300 + "b" * 300
    assert printable(text) == "a" * 247 + " ... " + "b" * 247
    assert printable(text[50:550]) == "a" * 250 + "b" * 250


def test_a_long_text_is_escaped_only_where_it_shows() -> None:
    assert printable("\n" * 10_000_000, 11) == r"\n\ ... n\n"


def test_a_place_may_be_missing() -> None:
    assert str(Problem("wire.type", "", "what")) == "what [wire.type]"


def test_problems_compare_by_value() -> None:
    same: Any = Problem("wire.type", "a", "b")
    assert same == Problem("wire.type", "a", "b")
    assert same != Problem("wire.type", "a", "c")
