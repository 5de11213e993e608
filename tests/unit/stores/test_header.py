from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from skillpack_format.dtypes import DTYPES
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import (
    DTYPE_ORDER,
    Header,
    TensorSpec,
    canonical_order,
    encode_header,
    parse_header,
    parse_json_object,
    read_header,
)

F32 = DTYPES["F32"]


def entry(begin: int = 0, end: int = 8, *, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def parse(plain: object, data_nbytes: int = 8, limits: Limits = DEFAULT_LIMITS) -> Header:
    raw = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
    return parse_header(raw, data_nbytes, limits)


def refusal(plain: object, data_nbytes: int = 8, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(SkillPackError) as caught:
        parse(plain, data_nbytes, limits)
    return caught.value.code


def test_every_dtype_has_a_place_in_the_order() -> None:
    assert sorted(DTYPE_ORDER) == sorted(DTYPES)


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    header = parse({"b": entry(8, 16), "__metadata__": {"format": "pt"}, "a": entry(16, 24), "c": entry()}, 24)
    assert [spec.name for spec in header.tensors] == ["c", "b", "a"]
    assert header.metadata == {"format": "pt"}


def test_empty_tensors_and_scalars_are_fine() -> None:
    header = parse({"e": entry(0, 0, shape=[0, 3]), "s": entry(0, 4, shape=[]), "z": entry(4, 4, shape=[0])}, 4)
    assert [(spec.name, spec.shape, spec.nbytes) for spec in header.tensors] == [
        ("e", (0, 3), 0),
        ("s", (), 4),
        ("z", (0,), 0),
    ]


def test_a_file_without_tensors_is_fine() -> None:
    assert parse({}, 0).tensors == ()


def test_the_shape_of_four_bit_tensors_counts_elements() -> None:
    assert parse({"a": entry(0, 8, dtype="F4", shape=[4, 4])}).tensors[0].nbytes == 8


def test_spaces_may_follow_the_json() -> None:
    raw = json.dumps({"a": entry()}).encode() + b"   "
    assert parse(raw).data_start == 8 + len(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" {}",
        b"[]",
        b"\xef\xbb\xbf{}",
        b"{",
        b"{}{}",
        b'{"a\xff": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"__metadata__": {"a": "\\ud800"}}',
    ],
)
def test_refuses_what_is_not_one_json_object(raw: bytes) -> None:
    assert refusal(raw, 0) == "checkpoint.header"


def test_json_that_nests_too_deeply_for_this_reader_is_a_matter_of_its_limits() -> None:
    assert refusal(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0) == "limit.exceeded"


@pytest.mark.parametrize("size", ["-0", "0.0", "0e0", "-1", "true", '"0"'])
def test_a_size_is_written_in_digits(size: str) -> None:
    written = json.dumps({"a": entry(0, 0, shape=[0])})
    parse(written.encode(), 0)
    assert refusal(written.replace("[0]", f"[{size}]").encode(), 0) == "checkpoint.header"


def test_a_minus_before_a_zero_within_a_name_is_no_number() -> None:
    assert [spec.shape for spec in parse({"block-0": entry()}).tensors] == [(2,)]


@pytest.mark.parametrize("metadata", [None, [], "pt", {"format": 1}, {"a": {"b": "c"}}])
def test_refuses_metadata_that_does_not_map_strings_to_strings(metadata: object) -> None:
    assert refusal({"__metadata__": metadata}, 0) == "checkpoint.header"


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"dtype": "F32", "shape": [2]},
        {**entry(), "extra": 0},
        entry(dtype=4),
        entry(shape=2),
        entry(shape=None),
        entry(shape=[True, 2]),
        entry(shape=[2.0]),
        entry(shape=["2"]),
        entry(shape=[-2]),
        entry(shape=[1 << 64]),
        {**entry(), "data_offsets": [0]},
        {**entry(), "data_offsets": [0, 4, 8]},
        {**entry(), "data_offsets": [False, 8]},
        entry(8, 0),
        entry(-8, 0),
    ],
)
def test_refuses_a_malformed_entry(found: object) -> None:
    assert refusal({"a": found}) == "checkpoint.header"


def test_refuses_a_tensor_named_twice() -> None:
    one = json.dumps(entry())
    assert refusal(f'{{"a": {one}, "b": {one}, "a": {one}}}'.encode()) == "checkpoint.duplicate"


def test_refuses_a_key_that_comes_twice_in_an_entry() -> None:
    raw = b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    assert refusal(raw) == "checkpoint.duplicate"


@pytest.mark.parametrize("name", ["", "a b", "caf\u00e9", "a\n", "a\x1b[31m", "\u202ea", "\ud800"])
def test_refuses_a_name_that_is_not_visible_ascii(name: str) -> None:
    assert refusal({name: entry()}) == "checkpoint.name"


def test_refuses_an_unknown_dtype() -> None:
    assert refusal({"a": entry(dtype="F33")}) == "unsupported.dtype"


def test_refuses_a_gap_between_tensors() -> None:
    assert refusal({"a": entry(), "b": entry(9, 17)}, 17) == "checkpoint.layout"


def test_refuses_a_gap_before_the_first_tensor() -> None:
    assert refusal({"a": entry(8, 16)}, 16) == "checkpoint.layout"


def test_refuses_tensors_that_overlap() -> None:
    assert refusal({"a": entry(), "b": entry(4, 12)}, 12) == "checkpoint.layout"


def test_refuses_two_tensors_over_the_same_bytes() -> None:
    assert refusal({"a": entry(), "b": entry()}) == "checkpoint.layout"


@pytest.mark.parametrize("data_nbytes", [0, 7, 9])
def test_refuses_data_that_the_tensors_do_not_cover_exactly(data_nbytes: int) -> None:
    assert refusal({"a": entry()}, data_nbytes) == "checkpoint.layout"


@pytest.mark.parametrize(
    ("begin", "says"), [(7, "overlaps the tensor before it: 7, not 8"), (9, "leaves a gap before it: 9")]
)
def test_says_whether_tensors_overlap_or_leave_a_gap(begin: int, says: str) -> None:
    with pytest.raises(SkillPackError) as caught:
        parse({"a": entry(), "b": entry(begin, begin + 8)}, 24)
    assert caught.value.message.startswith(says)


def test_refuses_a_size_that_is_not_that_of_the_shape() -> None:
    assert refusal({"a": entry(shape=[3])}) == "checkpoint.layout"


def test_refuses_a_tensor_that_does_not_fill_whole_bytes() -> None:
    assert refusal({"a": entry(0, 2, dtype="F4", shape=[3])}, 2) == "checkpoint.layout"


def test_sizes_that_wrap_at_64_bits_do_not_wrap() -> None:
    limits = Limits(tensor_bytes=1 << 200)
    assert refusal({"a": entry(0, 0, shape=[1 << 62, 4])}, 0, limits) == "checkpoint.layout"


@pytest.mark.parametrize(
    ("plain", "limits"),
    [
        ({"a": entry(shape=[1] * 8 + [2])}, DEFAULT_LIMITS),
        ({"a" * 513: entry()}, DEFAULT_LIMITS),
        ({"a": entry(0, 1 << 37, shape=[1 << 35])}, DEFAULT_LIMITS),
        ({"a": entry(0, 0, shape=[(1 << 64) - 1] * 8)}, DEFAULT_LIMITS),
        ({"a": entry(), "b": entry(8, 16)}, Limits(tensors=1)),
        ({"a": entry()}, Limits(header_nodes=6)),
    ],
)
def test_refuses_more_than_a_limit(plain: object, limits: Limits) -> None:
    assert refusal(plain, 8, limits) == "limit.exceeded"


def test_a_header_at_every_limit_is_within_them() -> None:
    plain = {"a": entry(), "b": entry(8, 16)}
    nodes = sum(json.dumps(plain).count(mark) for mark in ",:[")
    limits = {"tensors": 2, "header_nodes": nodes, "tensor_rank": 1, "tensor_bytes": 8, "name_bytes": 1}
    assert len(parse(plain, 16, Limits(**limits)).tensors) == 2
    for name, value in limits.items():
        with pytest.raises(SkillPackError) as caught:
            parse(plain, 16, Limits(**{name: value - 1}))
        assert f"asks for {name} = {value}," in caught.value.message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_refuses_what_json_has_no_number_for(number: str) -> None:
    with pytest.raises(SkillPackError) as caught:
        parse_json_object(f'{{"a": {number}}}'.encode(), "checkpoint.index", DEFAULT_LIMITS)
    assert caught.value.code == "checkpoint.index"


def test_finite_numbers_are_fine() -> None:
    assert parse_json_object(b'{"a": 1.5, "b": 1e300}', "checkpoint.index", DEFAULT_LIMITS) == {"a": 1.5, "b": 1e300}


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Header:
    with SourceFile(path) as source:
        return read_header(source, limits)


def read_refusal(path: Path, raw: bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    path.write_bytes(raw)
    with pytest.raises(SkillPackError) as caught:
        read(path, limits)
    return caught.value.code


@pytest.mark.parametrize("raw", [b"", b"1234567", (9).to_bytes(8, "little") + b"{}", b"\xff" * 64])
def test_refuses_a_header_longer_than_the_file(tmp_path: Path, raw: bytes) -> None:
    assert read_refusal(tmp_path / "a", raw) == "checkpoint.header"


def test_a_file_of_eight_bytes_has_a_length_and_no_header(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(8))
    with pytest.raises(SkillPackError) as caught:
        read(tmp_path / "a")
    assert caught.value.message.startswith("the header does not start with")


def test_a_header_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(VALID)
    length = int.from_bytes(VALID[:8], "little")
    assert len(read(tmp_path / "a", Limits(checkpoint_header_bytes=length)).tensors) == 3


def test_refuses_a_header_longer_than_the_limit_before_reading_it(tmp_path: Path) -> None:
    raw = (100).to_bytes(8, "little") + b"\xff" * 100
    assert read_refusal(tmp_path / "a", raw, Limits(checkpoint_header_bytes=99)) == "limit.exceeded"


def test_an_error_names_the_file_and_the_tensor(tmp_path: Path) -> None:
    raw = json.dumps({"layer.0": entry(dtype="F33")}).encode()
    (tmp_path / "a").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(SkillPackError) as caught:
        read(tmp_path / "a")
    assert caught.value.where == f"{tmp_path / 'a'}, tensor 'layer.0'"


def test_what_is_encoded_is_read_back(tmp_path: Path) -> None:
    tensors = canonical_order([TensorSpec(f"t.{name}", dtype, (2, 4)) for name, dtype in DTYPES.items()])
    raw = encode_header(tensors, {"format": "pt", "note": 'caf\u00e9 "x"\\\n\x01'})
    (tmp_path / "a").write_bytes(raw + bytes(sum(spec.nbytes for spec in tensors)))
    assert read(tmp_path / "a") == Header(tensors, {"format": "pt", "note": 'caf\u00e9 "x"\\\n\x01'}, len(raw))


def test_headers_end_at_a_multiple_of_eight() -> None:
    assert {len(encode_header([], {"a": "x" * count})) % 8 for count in range(9)} == {0}


def test_refuses_to_write_a_header_nobody_would_read() -> None:
    with pytest.raises(SkillPackError) as caught:
        encode_header([], {"a": "x" * 100_000_000})
    assert caught.value.code == "limit.exceeded"
    assert len(encode_header([], {"a": "x" * (100_000_000 - len('{"__metadata__":{"a":""}}'))})) == 100_000_008


VALID = encode_header(
    canonical_order([TensorSpec("a", F32, (2,)), TensorSpec("b.c", DTYPES["I64"], (1, 2)), TensorSpec("s", F32, ())]),
    {"format": "pt"},
) + bytes(28)


def accepted_by_us(raw: bytes) -> bool:
    """Whether ``raw`` is read as a whole file; anything but a SkillPackError fails the test."""
    try:
        parse_header(raw[8 : 8 + int.from_bytes(raw[:8], "little")], 28, DEFAULT_LIMITS)
    except SkillPackError:
        return False
    return True


@given(st.binary(max_size=200))
def test_arbitrary_bytes_only_raise_our_errors(raw: bytes) -> None:
    accepted_by_us(b"\x00" * 8 + raw)
    accepted_by_us(len(raw).to_bytes(8, "little") + raw)
    accepted_by_us((len(raw) + 1).to_bytes(8, "little") + b"{" + raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), json_values, max_size=4), st.data())
def test_arbitrary_json_only_raises_our_errors(plain: dict[str, Any], data: st.DataObject) -> None:
    fields = st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values})
    plain["c"] = data.draw(fields)
    raw = json.dumps(plain).encode()
    accepted_by_us(len(raw).to_bytes(8, "little") + raw)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 29), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_mutated_header_is_refused_or_means_the_same_to_the_reference(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(VALID)
    for position, value in changes:
        raw[position] = value
    try:
        header_end = 8 + int.from_bytes(raw[:8], "little")
        header = parse_header(raw[8:header_end], len(raw) - header_end, DEFAULT_LIMITS)
    except SkillPackError:
        return
    reference = dict(safetensors.deserialize(bytes(raw)))  # type: ignore[no-untyped-call]  # it has no annotations
    assert {spec.name: spec.shape for spec in header.tensors} == {
        name: tuple(view["shape"]) for name, view in reference.items()
    }


def test_every_single_byte_deleted_from_a_header_is_an_error_of_ours_or_harmless() -> None:
    rng = random.Random(1)
    for position in range(8, len(VALID) - 28):
        for raw in (VALID[:position] + VALID[position + 1 :], VALID[:position] + rng.randbytes(1) + VALID[position:]):
            accepted_by_us(raw)
