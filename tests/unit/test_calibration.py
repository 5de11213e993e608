"""Files of texts, and the scale of measured weights."""

from __future__ import annotations

import json
import math

import pytest

from skillpack_format import calibration
from skillpack_format.calibration import MAX_LINE_BYTES, read_texts, weights_of
from skillpack_format.errors import SkillPackError


def write(folder, *lines):
    path = folder / "texts.jsonl"
    path.write_bytes(b"".join(each if isinstance(each, bytes) else each.encode() + b"\n" for each in lines))
    return path


def refusal(path):
    with pytest.raises(SkillPackError) as found:
        read_texts(path)
    return found.value


def test_reads_strings_and_objects_in_order(tmp_path):
    path = write(tmp_path, '"one"', '{"text": "two", "label": 3}', "", "   ", '"drei \\u00e9"')
    found = read_texts(path)
    assert found.texts == ("one", "two", "drei é")
    assert found.skipped == ()


def test_a_last_line_without_an_end_counts(tmp_path):
    assert read_texts(write(tmp_path, b'"one"\r\n', b'"two"')).texts == ("one", "two")


def test_lines_without_a_text_are_counted_and_left_out(tmp_path):
    path = write(tmp_path, '{"prompt": "x"}', '"good"', "7", "{", "null", '{"text": 5}', '" "')
    found = read_texts(path)
    assert found.texts == ("good",)
    assert found.skipped == (1, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 1 is not JSON"),
        (b"\xff\xfe\n", "line 1 is not UTF-8"),
        ("[1]", "line 1 is neither a string nor an object"),
        ('{"prompt": "x"}', 'line 1 has no "text"'),
        ('""', "line 1 has a blank text"),
        ('"\\ud800"', "line 1 has half of a surrogate pair"),
        ("1" * 5000, "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("", "no line but blank ones"),
    ],
    ids=range(9),
)
def test_a_file_without_a_usable_line_names_the_first(tmp_path, line, fault):
    found = refusal(write(tmp_path, line))
    assert found.code == "convert.texts"
    assert fault in found.message
    assert found.where.endswith("texts.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    assert refusal(write(tmp_path)).code == "convert.texts"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path, make):
    make(tmp_path / "texts.jsonl")
    found = refusal(tmp_path / "texts.jsonl")
    assert (found.code, found.exit_status) == ("input.failed", 5)


def test_a_line_too_long_is_one_line_and_the_next_is_read(tmp_path):
    path = write(tmp_path, json.dumps("x" * (2 * MAX_LINE_BYTES)), '"after"')
    found = read_texts(path)
    assert found.texts == ("after",)
    assert found.skipped == (1,)


def test_no_more_texts_are_read_than_asked_for(tmp_path):
    path = write(tmp_path, '"a"', '"b"', "not JSON, and never looked at")
    found = read_texts(path, 2)
    assert found.texts == ("a", "b")
    assert found.skipped == ()


def test_a_file_is_looked_through_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_FILE_BYTES", 100)
    assert refusal(write(tmp_path, *["7"] * 60, '"too late"')).code == "convert.texts"


def test_weights_have_the_geometric_mean_one_and_three_digits():
    found = weights_of({"a": 1e-9, "b": 1e-7, "c": 3.33333e-8})
    assert math.isclose(math.prod(found.values()), 1, rel_tol=0.01)
    assert math.isclose(found["b"] / found["a"], 100, rel_tol=0.01)
    assert all(f"{value:.3g}" == f"{value:.12g}" for value in found.values())


def test_vectors_are_weighed_by_what_a_typical_matrix_has():
    found = weights_of({"a": 1e-9, "b": 1e-7, "norm": 1e-6, "bias": 1e-5}, vectors={"norm", "bias"})
    assert math.isclose(found["a"] * found["b"], 1, rel_tol=0.01)
    assert math.isclose(found["norm"], 100, rel_tol=0.01)
    assert math.isclose(found["bias"], 1000, rel_tol=0.01)
    assert weights_of({"a": 0.0, "norm": 1.0}, vectors={"norm"}) == {}


def test_what_was_not_measured_has_no_weight():
    assert weights_of({"a": 0.0, "b": 2.0}) == {"b": 1.0}
    assert weights_of({"a": 0.0}) == {}
