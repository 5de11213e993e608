"""Identities of bytes and of checkpoints."""

from __future__ import annotations

import hashlib

import msgpack
import numpy as np
from builders import hexed, kind

from skillpack_format.digest import TensorIdentity, checkpoint_digest, sha256, sha256_of

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_hashes_bytes_of_every_sort() -> None:
    assert sha256(b"").hex() == sha256(bytearray()).hex() == sha256(memoryview(b"")).hex() == EMPTY


def test_hashes_the_bytes_of_an_array() -> None:
    assert sha256_of(np.array([[1, 2], [3, 4]], "<u2")) == hashlib.sha256(hexed("0100020003000400")).digest()


def test_hashes_arrays_without_elements_and_without_dimensions() -> None:
    assert sha256_of(np.zeros((0, 3), np.float32)).hex() == EMPTY
    assert sha256_of(np.array(7, np.uint8)) == hashlib.sha256(b"\x07").digest()


def test_a_kind_prints_as_dtype_and_shape() -> None:
    assert str(kind("BF16", 2, 3)) == "BF16[2,3]"
    assert str(kind("F32")) == "F32[]"


def test_the_digest_of_no_tensors_is_that_of_an_empty_array() -> None:
    assert checkpoint_digest([]) == hashlib.sha256(b"\x90").digest()


def test_a_checkpoint_digest_is_the_hash_of_its_listing_by_name() -> None:
    one, two = bytes(32), bytes([1]) * 32
    listing = [["a", "F32", [2, 3], one], ["b", "I8", [], two]]
    expected = hashlib.sha256(msgpack.packb(listing)).digest()
    identities = [("b", TensorIdentity(kind("I8"), two)), ("a", TensorIdentity(kind("F32", 2, 3), one))]
    assert checkpoint_digest(identities) == checkpoint_digest(reversed(identities)) == expected
