"""Every cap, named once."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from builders import refused

from skillpack_format.limits import DEFAULT_LIMITS, Limits

NAMES = [each.name for each in fields(Limits)]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_equal_to_a_limit_is_within_it(name: str) -> None:
    allowed = getattr(DEFAULT_LIMITS, name)
    DEFAULT_LIMITS.require(name, allowed, "here")
    found = refused("limit.exceeded", DEFAULT_LIMITS.require, name, allowed + 1, "here")
    assert found.where == "here"
    assert found.message == f"asks for {name} = {allowed + 1}, the limit is {allowed}"


def test_the_caller_may_raise_or_lower_a_limit() -> None:
    refused("limit.exceeded", replace(DEFAULT_LIMITS, tensors=2).require, "tensors", 3, "")
    replace(DEFAULT_LIMITS, tensors=1 << 40).require("tensors", 1 << 40, "")


def test_prints_as_plain_data() -> None:
    assert DEFAULT_LIMITS.to_plain() == {name: getattr(DEFAULT_LIMITS, name) for name in NAMES}
