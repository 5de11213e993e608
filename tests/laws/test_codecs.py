"""Laws that every codec keeps, parametrised over the catalog."""

from __future__ import annotations

import pytest
from builders import fault_of, random_bytes
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.catalog import CODECS
from skillpack_format.errors import SkillPackError

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
CHUNKS = {
    "one byte": b"\x00",
    "zeros": bytes(4096),
    "a run": b"\x07" * 100_000,
    "text": b"one two three, one two three " * 50,
    "noise": random_bytes(4096),
    "noise and zeros": random_bytes(500) + bytes(3000),
    "few values": bytes(x & 3 for x in random_bytes(5000)),
    "a chunk": bytes(1 << 20),
}


def require_due_or_refused(codec, stored: bytes, nbytes: int) -> None:
    found = fault_of(codec.decompress, stored, nbytes, "here")
    if found is None:
        assert len(codec.decompress(stored, nbytes, "here")) == nbytes
    else:
        assert found.code in ("payload.frame", "storage.chunk-length")
        assert found.where == "here"


@ALL
@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_gives_back_what_it_stored_and_never_stores_more(codec, chunk: bytes, thorough: bool) -> None:
    stored = codec.compress(chunk, thorough=thorough)
    assert len(stored) <= len(chunk)
    assert bytes(codec.decompress(stored, len(chunk), "here")) == chunk


@ALL
@given(
    chunk=st.binary(min_size=1, max_size=300)
    | st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=4), st.integers(1, 400))
)
def test_gives_back_any_bytes(codec, chunk: bytes) -> None:
    stored = codec.compress(chunk, thorough=False)
    assert len(stored) <= len(chunk)
    assert bytes(codec.decompress(memoryview(stored), len(chunk), "here")) == chunk


@ALL
@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_storing_is_deterministic(codec, chunk: bytes) -> None:
    assert codec.compress(chunk, thorough=True) == codec.compress(chunk, thorough=True)


@ALL
@given(stored=st.binary(max_size=60), nbytes=st.integers(1, 5000))
def test_any_bytes_decode_to_the_length_that_is_due_or_are_refused(codec, stored: bytes, nbytes: int) -> None:
    require_due_or_refused(codec, stored, nbytes)


@ALL
def test_every_bit_flip_decodes_to_the_length_that_is_due_or_is_refused(codec) -> None:
    chunk = CHUNKS["text"]
    stored = bytearray(codec.compress(chunk, thorough=True))
    for bit in range(8 * len(stored)):
        stored[bit // 8] ^= 1 << (bit % 8)
        require_due_or_refused(codec, bytes(stored), len(chunk))
        stored[bit // 8] ^= 1 << (bit % 8)


@ALL
@pytest.mark.parametrize("change", [-1, 1])
def test_refuses_another_length_than_is_due(codec, change: int) -> None:
    chunk = CHUNKS["text"]
    stored = codec.compress(chunk, thorough=True)
    with pytest.raises(SkillPackError):
        codec.decompress(stored, len(chunk) + change, "here")
