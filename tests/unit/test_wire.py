"""Strict msgpack: the profile accepts one byte form of each document and refuses everything else by name."""

from __future__ import annotations

import msgpack
import pytest
from builders import fault_of, hexed, refused
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format import wire
from skillpack_format.limits import DEFAULT_LIMITS, Limits

KEYS = st.text(st.characters(max_codepoint=0x7F), max_size=40)
LEAVES = (
    st.integers(0, (1 << 64) - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.binary(max_size=300)
)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(KEYS, inner, max_size=20), max_leaves=40
)


def read(data: bytes, limits: Limits = DEFAULT_LIMITS) -> object:
    return wire.read(data, limits, "DOC")


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (255, "ccff"),
        (256, "cd0100"),
        (65535, "cdffff"),
        (65536, "ce00010000"),
        ((1 << 32) - 1, "ceffffffff"),
        (1 << 32, "cf0000000100000000"),
        ((1 << 64) - 1, "cfffffffffffffffff"),
        ("", "a0"),
        ("a" * 31, "bf" + "61" * 31),
        ("a" * 32, "d920" + "61" * 32),
        ("a" * 256, "da0100" + "61" * 256),
        (b"", "c400"),
        (b"\x01" * 256, "c50100" + "01" * 256),
        ([], "90"),
        ([0] * 15, "9f" + "00" * 15),
        ([0] * 16, "dc0010" + "00" * 16),
        ({}, "80"),
        ({"b": [], "a": 1}, "82a16101a16290"),
        ({f"k{i:02}": 0 for i in range(15)}, "8f" + "".join(f"a3{f'k{i:02}'.encode().hex()}00" for i in range(15))),
        ({f"k{i:02}": 0 for i in range(16)}, "de0010" + "".join(f"a3{f'k{i:02}'.encode().hex()}00" for i in range(16))),
    ],
)
def test_every_form_is_the_shortest(document: object, expected: str) -> None:
    assert wire.write(document).hex() == expected
    assert read(hexed(expected)) == document


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16])
def test_long_values_change_form_at_two_to_the_16(size: int) -> None:
    first = (
        {"str": b"\xda", "bin": b"\xc5", "array": b"\xdc"}
        if size < 1 << 16
        else {"str": b"\xdb", "bin": b"\xc6", "array": b"\xdd"}
    )
    for name, document in (("str", "a" * size), ("bin", bytes(size)), ("array", ["abcd"] * size)):
        written = wire.write(document)
        assert written[:1] == first[name]
        assert read(written) == document


def test_tuples_are_written_as_arrays() -> None:
    assert wire.write((1, (2,))) == hexed("92019102")


@given(DOCUMENTS)
def test_reads_back_what_it_wrote(document: object) -> None:
    limits = Limits(header_depth=max(8, depth_of(document)))
    assert read(wire.write(document), limits) == document


@given(DOCUMENTS)
def test_writes_what_msgpack_reads(document: object) -> None:
    assert msgpack.unpackb(wire.write(document)) == document


@given(
    st.binary(max_size=40)
    | st.builds(
        lambda d, cut, x: d[:cut] + x + d[cut:], DOCUMENTS.map(wire.write), st.integers(0, 30), st.binary(max_size=3)
    )
)
def test_any_bytes_are_a_canonical_document_or_refused(data: bytes) -> None:
    found = fault_of(read, data)
    if found is not None:
        assert found.code.startswith("wire.") or found.code == "limit.exceeded"
        return
    document = read(data)
    assert msgpack.unpackb(data) == document
    assert wire.write(document) == data


@given(DOCUMENTS, st.data())
def test_every_proper_prefix_is_refused_as_truncated(document: object, data: st.DataObject) -> None:
    whole = wire.write(document)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert refused("wire.truncated", read, whole[:cut], Limits(header_depth=100)).where == "DOC"


@pytest.mark.parametrize(
    "data",
    ["cc7f", "cc00", "cd00ff", "ce0000ffff", "cf00000000ffffffff", "d91f" + "61" * 31, "da00ff" + "61" * 255,
     "db0000ffff",
     "c500ff", "c60000ffff", "dc000f", "dd0000ffff", "de000f", "df0000ffff", "c50000"],
)  # fmt: skip
def test_refuses_a_longer_form_than_needed(data: str) -> None:
    refused("wire.not-shortest", read, hexed(data))


@pytest.mark.parametrize("first", [0xC0, 0xC1, 0xC2, 0xC3, *range(0xC7, 0xCC), *range(0xD0, 0xD9), *range(0xE0, 0x100)])
def test_refuses_a_type_outside_the_profile(first: int) -> None:
    found = refused("wire.type", read, bytes([first]) + bytes(20))
    assert found.message.startswith(f"byte 0: 0x{first:02x}")


@pytest.mark.parametrize(
    "data",
    [
        "",
        "a1",
        "c4",
        "c402ff",
        "91",
        "81a161",
        "81",
        "cc",
        "cf00",
        "d9",
        "d92061",
        "ceffffff",
        "cfffffffffffffff",
        "81cfffffffffffffff",
    ],
)
def test_refuses_a_document_that_ends_within_a_value(data: str) -> None:
    refused("wire.truncated", read, hexed(data))


@pytest.mark.parametrize("data", ["ddffffffff", "dfffffffff", "c6ffffffff", "dbffffffff", "dcffff", "deffff"])
def test_refuses_a_claim_of_more_than_is_left(data: str) -> None:
    refused("wire.truncated", read, hexed(data))


@pytest.mark.parametrize(("data", "needed"), [("dd00010000" + "00" * 9, 1 << 16), ("de0010" + "a0" * 9, 32)])
def test_a_claim_is_compared_before_any_member_is_read(data: str, needed: int) -> None:
    assert f"needs {needed} more bytes, 9 are left" in refused("wire.truncated", read, hexed(data)).message


def test_refuses_a_map_that_ends_after_a_pair() -> None:
    refused("wire.truncated", read, hexed("82a161a162"))


def test_counts_two_bytes_a_pair_of_a_map() -> None:
    refused("wire.truncated", read, hexed("82a0") + bytes(2))


def test_refuses_a_byte_after_the_document() -> None:
    assert "1 bytes follow" in refused("wire.trailing", read, hexed("8000")).message


@pytest.mark.parametrize("data", ["a1ff", "a2c080", "a3eda080", "a4f4908080", "a1c3"])
def test_refuses_text_that_is_not_utf8(data: str) -> None:
    refused("wire.utf8", read, hexed(data))


@pytest.mark.parametrize("data", ["810000", "81c4016100", "819000", "818000", "81a2c3a900"])
def test_refuses_a_key_that_is_not_ascii_text(data: str) -> None:
    refused("wire.key-type", read, hexed(data))


@pytest.mark.parametrize("data", ["82a16101a16101", "82a16201a16101", "82a2616101a16101", "82a16101a001"])
def test_refuses_keys_that_do_not_ascend(data: str) -> None:
    refused("wire.key-order", read, hexed(data))


def test_the_empty_key_may_come_first() -> None:
    assert read(hexed("82a001a16102")) == {"": 1, "a": 2}


@pytest.mark.parametrize("opening", ["91", "81a0"])
def test_nesting_ends_at_the_limit(opening: str) -> None:
    limits = Limits(header_depth=3)
    assert depth_of(read(hexed(opening * 2 + "90"), limits)) == 3
    found = refused("limit.exceeded", read, hexed(opening * 3 + "90"), limits)
    assert "header_depth = 4, the limit is 3" in found.message


def test_a_leaf_may_lie_below_the_deepest_array() -> None:
    assert read(hexed("9107"), Limits(header_depth=1)) == [7]


@pytest.mark.parametrize(
    ("data", "nodes"), [("07", 1), ("9200a0", 3), ("81a16107", 3), ("9191c400", 3), ("82a007a16107", 5)]
)
def test_counts_every_value_and_every_key(data: str, nodes: int) -> None:
    read(hexed(data), Limits(header_nodes=nodes))
    found = refused("limit.exceeded", read, hexed(data), Limits(header_nodes=nodes - 1))
    assert found.message == f"asks for header_nodes = {nodes}, the limit is {nodes - 1}"


def test_says_at_which_byte() -> None:
    assert refused("wire.type", read, hexed("9207c0")).message.startswith("byte 2: ")


def of_values(values: int, nbytes: int, *, in_map: bool) -> bytes:
    """A document of so many values in so many bytes: an array of small integers, and bytes beside it."""
    before, between = (hexed("82a161"), hexed("a162")) if in_map else (hexed("92"), b"")
    count = values - (5 if in_map else 3)
    items = b"\xdc" + count.to_bytes(2, "big") + b"\7" * count
    rest = nbytes - len(before) - len(items) - len(between) - 3
    return before + items + between + b"\xc5" + rest.to_bytes(2, "big") + bytes(rest)


@pytest.mark.parametrize("nbytes", [5 * 6000, 5 * 6000 + 4])
@pytest.mark.parametrize("in_map", [False, True])
def test_a_document_has_4096_values_and_one_for_every_five_bytes_at_most(nbytes: int, in_map: bool) -> None:
    most = 4096 + 6000
    assert len(of_values(most, nbytes, in_map=in_map)) == nbytes
    read(of_values(most, nbytes, in_map=in_map))
    for limits in (DEFAULT_LIMITS, Limits(header_nodes=1 << 40)):  # which no caller can raise
        found = refused("limit.exceeded", read, of_values(most + 1, nbytes, in_map=in_map), limits)
        assert found.message == f"has {most + 1} values or more in {nbytes} bytes, {most} are the most"


def test_the_limit_of_values_holds_where_it_is_less_than_a_document_may_have() -> None:
    assert (
        "header_nodes"
        in refused("limit.exceeded", read, hexed("dc1000") + b"\7" * 4096, Limits(header_nodes=9)).message
    )


def test_a_key_beyond_those_kept_is_read_as_well() -> None:
    document = {f"{k:04}": 1 for k in range(1000)}
    assert read(wire.write([document, document])) == [document, document]


@pytest.mark.parametrize("before", ["", "81", "81a161"])
def test_a_length_that_is_cut_is_no_length(before: str) -> None:
    found = refused("wire.truncated", read, hexed(before + "dbffffff"))
    assert found.message == f"byte {len(before) // 2 + 1}: needs 4 more bytes, 3 are left"


def test_a_key_is_read_as_any_text() -> None:
    refused("wire.not-shortest", read, hexed("81d91f" + "61" * 31 + "00"))
    refused("wire.not-shortest", read, hexed("81cc0100"))
    assert "byte 1: 0xc0" in refused("wire.type", read, hexed("81c000")).message
    refused("wire.truncated", read, hexed("81d920"))
    assert "needs 32 more bytes, 31 are left" in refused("wire.truncated", read, hexed("81d920" + "61" * 31)).message
    for count in (32, 255, 256):
        assert read(wire.write({"a" * count: 1})) == {"a" * count: 1}


def test_a_key_of_which_only_the_length_is_left_is_truncated() -> None:
    assert refused("wire.truncated", read, hexed("81d920")).message == "byte 3: needs 32 more bytes, 0 are left"
