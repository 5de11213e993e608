"""Names of a delta and names of a base: one prefix for all, or a refusal."""

from __future__ import annotations

import pytest
from builders import fault_of, refused
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.importers.matching import match

BASE = {"model.layers.0.q.weight", "model.layers.1.q.weight", "model.norm.weight", "lm_head.weight"}


def test_names_that_are_there_are_taken_as_they_are() -> None:
    names = ["lm_head.weight", "model.norm.weight"]
    assert match(names, (), BASE) == {name: name for name in names}


def test_a_missing_prefix_is_put_in_front() -> None:
    names = ["layers.0.q.weight", "norm.weight"]
    assert match(names, (), BASE) == {name: f"model.{name}" for name in names}


def test_a_prefix_too_many_is_taken_off() -> None:
    names = ["bert.model.layers.0.q.weight", "bert.lm_head.weight"]
    assert match(names, (), BASE) == {name: name.removeprefix("bert.") for name in names}


def test_one_prefix_must_serve_all_names() -> None:
    found = refused("convert.unmatched", match, ["layers.0.q.weight", "lm_head.weight"], (), BASE)
    assert "lm_head.weight" in str(found)


def test_a_name_that_fits_nothing_is_refused_and_others_are_counted() -> None:
    found = refused("convert.unmatched", match, ["x.weight", "y.weight", "z.weight"], (), BASE)
    assert "'x.weight'" in str(found)
    assert "2 more of 3" in str(found)


def test_two_prefixes_that_serve_are_refused() -> None:
    base = {"vision.layers.0.q.weight", "text.layers.0.q.weight"}
    found = refused("convert.unmatched", match, ["layers.0.q.weight"], (), base)
    assert "'text.'" in str(found)
    assert "'vision.'" in str(found)


def test_a_second_name_decides_between_prefixes() -> None:
    base = {"vision.layers.0.q.weight", "text.layers.0.q.weight", "text.norm.weight"}
    found = match(["layers.0.q.weight", "norm.weight"], (), base)
    assert found == {"layers.0.q.weight": "text.layers.0.q.weight", "norm.weight": "text.norm.weight"}


def test_a_part_of_a_word_is_no_prefix() -> None:
    refused("convert.unmatched", match, ["head.weight"], (), {"lm_head.weight"})


def test_optional_names_may_be_missing_and_keep_their_own() -> None:
    found = match(["layers.0.q.weight", "score.weight"], {"score.weight"}, BASE)
    assert found == {"layers.0.q.weight": "model.layers.0.q.weight", "score.weight": "score.weight"}


@pytest.mark.parametrize("name", ["norm.weight", "x.model.norm.weight"])
def test_an_optional_name_that_looks_like_one_of_the_base_is_refused(name: str) -> None:
    refused("convert.unmatched", match, [name], {name}, BASE)


def test_names_that_are_all_new_are_taken_as_they_are() -> None:
    assert match(["score.bias", "score.x"], {"score.bias", "score.x"}, BASE) == {
        "score.bias": "score.bias",
        "score.x": "score.x",
    }


def test_two_names_for_one_tensor_are_refused() -> None:
    names = ["a.b", "b"]  # with 'a.' in front the second is the first, which then has no tensor of its own
    refused("convert.unmatched", match, names, {"a.b"}, {"a.b"})


NAMES = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(NAMES, min_size=1, max_size=6), st.sets(NAMES, max_size=8))
def test_whatever_is_found_is_in_the_base_and_no_two_are_the_same(names: set[str], base: set[str]) -> None:
    failure = fault_of(match, names, (), base)
    if failure is not None:
        assert failure.code == "convert.unmatched"
        return
    found = match(names, (), base)
    assert found.keys() == names
    assert set(found.values()) <= base
    assert len(set(found.values())) == len(names)


@pytest.mark.parametrize("size", [3000])
def test_names_that_all_end_alike_take_no_quadratic_time(size: int) -> None:
    """Every base name is a candidate for the first, and each is dropped at the next."""
    base = {f"p{index}.weight" for index in range(size)}
    refused("convert.unmatched", match, ["weight", *(f"x{index}.weight" for index in range(size))], (), base)
