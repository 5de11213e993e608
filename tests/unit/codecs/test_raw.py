"""``raw``: every chunk as it is."""

from __future__ import annotations

import pytest
from builders import refused

from skillpack_format.codecs.raw import CODEC


@pytest.mark.parametrize("thorough", [True, False])
def test_stores_a_chunk_as_it_is(thorough: bool) -> None:
    assert CODEC.compress(b"abc", thorough=thorough) == b"abc"
    assert CODEC.decompress(b"abc", 3, "") == b"abc"


@pytest.mark.parametrize("nbytes", [2, 4])
def test_refuses_another_length(nbytes: int) -> None:
    assert refused("storage.chunk-length", CODEC.decompress, b"abc", nbytes, "here").where == "here"
