"""What a side file is said to make other programs do."""

from __future__ import annotations

import json

import pytest

from skillpack_format.names import SIDE_FILES
from skillpack_format.side_files import (
    CODE,
    CODE_FILES,
    NOTES,
    TEMPLATE,
    TEMPLATE_FILES,
    can_hold,
    is_program,
    notes_of,
)


def test_every_file_that_is_flagged_is_one_a_pack_can_carry() -> None:
    assert {*TEMPLATE_FILES, *CODE_FILES} <= set(SIDE_FILES)
    assert set(NOTES) == {TEMPLATE, CODE}


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_name_tells_what_a_file_can_hold(name: str) -> None:
    assert (TEMPLATE in can_hold(name), CODE in can_hold(name)) == (name in TEMPLATE_FILES, name in CODE_FILES)


@pytest.mark.parametrize(
    "text",
    [
        '{"auto_map": {"AutoModel": "x.Y"}}',
        '{"auto_map": null}',
        '{"custom_pipelines": {}}',
        '{"a": [{"b": {"auto_map": 1}}]}',
        '{"a": {"auto_map": 1}, "a": 2}',
        b'\\ufeff{"auto_map": 1}'.decode("unicode_escape"),
    ],
)
def test_a_key_that_names_code_is_found_wherever_it_stands(text: str) -> None:
    assert notes_of("config.json", text.encode()) == (CODE,)


@pytest.mark.parametrize("data", [b"", b"\xff", b'"auto_map"', b'["auto_map"]', b'{"a": "auto_map"}', b"[" * 100_000])
def test_what_names_no_code_is_not_flagged(data: bytes) -> None:
    assert notes_of("config.json", data) == ()


def test_a_template_is_found_in_its_own_file_and_in_a_configuration() -> None:
    assert notes_of("chat_template.jinja", b"") == (TEMPLATE,)
    both = json.dumps({"chat_template": "x", "auto_map": {}}).encode()
    assert notes_of("tokenizer_config.json", both) == (TEMPLATE, CODE)
    assert notes_of("vocab.txt", both) == ()


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [("a.py", 0o644, True), ("A.SO", 0o644, True), ("run", 0o755, True), ("README.md", 0o644, False)],
)
def test_programs_are_told_by_suffix_and_permission(name: str, mode: int, expected: bool) -> None:
    assert is_program(name, mode) is expected
