"""The pickle machine: plain data and tensors come out, everything else is refused by name and nothing is run."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from builders import fault_of, refused
from hypothesis import given
from hypothesis import strategies as st
from torch_files import MARK, STOP, Raw, Stored, contiguous, glob, program, push, storage, tensor

from skillpack_format.dtypes import DTYPES
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.stores.tensor_pickles import _STEPS, Storage, View, read_pickle

ORDERED = glob("collections", "OrderedDict") + b")R"
HEAD = b"\x80\x02"
ARGUMENTS = (Raw(storage("F32", "0", 1)), 0, (1,), (1,), False, Raw(ORDERED))
ONE = tensor(Stored("F32", "0", 1, (1,)))
DEEPEST = DEFAULT_LIMITS.header_depth
BOUNDED = Limits(header_nodes=10_000)


def read(raw: bytes) -> Any:
    return read_pickle(raw, DEFAULT_LIMITS)


def plain() -> st.SearchStrategy[Any]:
    leaves = (
        st.none() | st.booleans() | st.integers(1 - (1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text()
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ).filter(lambda value: depth(value) <= DEFAULT_LIMITS.header_depth)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, (list, tuple)) else 0


@given(plain())
def test_plain_data_comes_out_as_it_went_in(value: Any) -> None:
    assert read(program(value)) == value


def test_a_tensor_is_a_view_of_a_storage() -> None:
    found = read(program({"w": Stored("BF16", "7", 12, (2, 3), (1, 2), 4)}))
    assert found == {"w": View(Storage(DTYPES["BF16"], "7", 12), 4, (2, 3), (1, 2))}


@pytest.mark.parametrize("value", [0, (1 << 63) - 1, 1 - (1 << 63), 255, -1])
def test_integers_of_64_bits_are_read(value: int) -> None:
    assert read(program(value)) == value


def test_sizes_of_nothing_and_the_most_dimensions_are_read() -> None:
    shape = (0,) + (1,) * (DEFAULT_LIMITS.tensor_rank - 1)
    found = read(program(Stored("F32", "0", 0, shape, (0,) * len(shape))))
    assert found == View(Storage(DTYPES["F32"], "0", 0), 0, shape, (0,) * len(shape))


def test_a_parameter_is_its_tensor() -> None:
    inner = Stored("F32", "0", 1, (1,))
    code = glob("torch._utils", "_rebuild_parameter") + push((Raw(tensor(inner)), True, Raw(ORDERED))) + b"R"
    assert read(program(Raw(code))) == read(program(inner))


def test_a_state_dict_may_note_its_versions() -> None:
    state = b"}" + push("_metadata") + ORDERED + b"s"
    assert read(HEAD + ORDERED + MARK + push("a") + push(1) + b"u" + state + b"b" + STOP) == {"a": 1}


def test_what_was_stored_is_recalled() -> None:
    twice = MARK + push("x") + b"q\x05" + b"h\x05" + b"r\x00\x01\x00\x00" + b"j\x00\x01\x00\x00" + b"t"
    assert read(HEAD + twice + STOP) == ("x", "x", "x")


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (glob("os", "system"), "os.system"),
        (glob("posix", "system"), "posix.system"),
        (glob("builtins", "eval"), "builtins.eval"),
        (glob("__builtin__", "exec"), "__builtin__.exec"),
        (glob("builtins", "getattr"), "builtins.getattr"),
        (glob("torch", "load"), "torch.load"),
        (glob("torch.storage", "_load_from_bytes"), "torch.storage._load_from_bytes"),
        (glob("torch._utils", "_rebuild_tensor_v3"), "_rebuild_tensor_v3"),
        (glob("torch._utils", "_rebuild_sparse_tensor"), "_rebuild_sparse_tensor"),
        (glob("numpy.core.multiarray", "_reconstruct"), "numpy.core.multiarray._reconstruct"),
        (glob("collections", "OrderedDict.fromkeys"), "OrderedDict.fromkeys"),
        (glob("torch", "FloatStorage.from_file"), "FloatStorage.from_file"),
        (b"\x8c\x02os", "SHORT_BINUNICODE"),
        (b"\x93", "STACK_GLOBAL"),
        (b"\x81", "NEWOBJ"),
        (b"\x92", "NEWOBJ_EX"),
        (b"ios\nsystem\n", "INST"),
        (MARK + b"o", "OBJ"),
        (b"\x82\x01", "EXT1"),
        (b"P0\n", "PERSID"),
        (b"2", "DUP"),
        (b"0", "POP"),
        (b"\x8b\x04\0\0\0\0\0\0\0", "LONG4"),
        (b"\x95" + bytes(8), "FRAME"),
        (b"I1\n", "0x49"),
        (b"\xff", "0xff"),
    ],
)
def test_what_is_more_than_tensors_is_refused_by_its_name(code: bytes, named: str) -> None:
    found = refused("checkpoint.pickle", read, HEAD + code + STOP)
    assert named in str(found)


def test_a_call_is_never_made(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    attack = glob("os", "system") + push((f"touch {mark}",)) + b"R"
    refused("checkpoint.pickle", read, program(Raw(attack)))
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        ORDERED + push({"_metadata": 1, "__class__": 2}) + b"b",  # attributes that mean something
        ORDERED + push({"__setstate__": 1}) + b"b",
        ORDERED + push((1, 2)) + b"b",
        push([]) + push({}) + b"b",  # BUILD of what has no attributes
        push("text") + push({}) + b"b",
        glob("collections", "OrderedDict") + push({}) + b"b",  # BUILD of a class
        glob("collections", "OrderedDict") + push(([("a", 1)],)) + b"R",  # with arguments
        push("print") + push(()) + b"R",  # a call of a string
        glob("torch", "FloatStorage") + push(()) + b"R",  # a call of a storage type
        glob("torch._utils", "_rebuild_parameter") + push((1, 2, 3)) + b"R",
        glob("torch._utils", "_rebuild_tensor_v2") + push(()) + b"R",
        glob("torch._utils", "_rebuild_tensor_v2") + push((1, 2, 3, 4, 5, 6)) + b"R",
        glob("torch._utils", "_rebuild_tensor_v2")
        + push((1, 0, (1,), (1,), False, Raw(ORDERED)))
        + b"R",  # of a number
        glob("torch._utils", "_rebuild_tensor_v2") + push(list(ARGUMENTS)) + b"R",  # a list of arguments
        glob("torch._utils", "_rebuild_parameter") + push((Raw(ONE), True)) + b"R",
        glob("torch", "FloatStorage") + push((Raw(ONE), True, Raw(ORDERED))) + b"R",  # what a parameter is made of
    ],
)
def test_calls_and_states_that_torch_does_not_write_are_refused(code: bytes) -> None:
    refused("checkpoint.pickle", read, HEAD + code + STOP)
    refused("checkpoint.pickle", read, HEAD + b"N" + code + STOP)  # nor is what lies below taken in its place


@pytest.mark.parametrize(
    "persistent",
    [
        "text",
        ("storage", "FloatStorage", "0", "cpu", 1),
        ("storage", Raw(glob("collections", "OrderedDict")), "0", "cpu", 1),
        ("module", Raw(glob("torch", "FloatStorage")), "0", "cpu", 1),
        ("storage", Raw(glob("torch", "FloatStorage")), 0, "cpu", 1),
        ("storage", Raw(glob("torch", "FloatStorage")), "0", None, 1),
        ("storage", Raw(glob("torch", "FloatStorage")), "0", "cpu", -1),
        ("storage", Raw(glob("torch", "FloatStorage")), "0", "cpu", True),
        ("storage", Raw(glob("torch", "FloatStorage")), "0", "cpu", 1, 2),
        ["storage", Raw(glob("torch", "FloatStorage")), "0", "cpu", 1],
    ],
)
def test_persistent_ids_that_are_no_storages_are_refused(persistent: Any) -> None:
    refused("checkpoint.pickle", read, HEAD + push(persistent) + b"Q" + STOP)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (1,), (-1,)),
        (0, (1, 1), (1,)),
        (0, [1], (1,)),
        (0, (1,), [1]),
        (0, (1.0,), (1,)),
        (0, (True,), (1,)),
        (None, (1,), (1,)),
    ],
)
def test_a_tensor_of_impossible_sizes_is_refused(offset: Any, shape: Any, strides: Any) -> None:
    arguments = (Raw(storage("F32", "0", 1)), offset, shape, strides, False, Raw(ORDERED))
    refused(
        "checkpoint.pickle", read, HEAD + glob("torch._utils", "_rebuild_tensor_v2") + push(arguments) + b"R" + STOP
    )


def test_a_size_beyond_64_bits_is_refused() -> None:
    refused("checkpoint.pickle", read, HEAD + b"\x8a\x09" + bytes(9) + STOP)


def test_a_tensor_with_hooks_is_refused() -> None:
    hooked = tensor(Stored("F32", "0", 1, (1,)), hooks=push({"0": "call"}))
    refused("checkpoint.pickle", read, program(Raw(hooked)))


@pytest.mark.parametrize(
    "code",
    [
        b"]q\x00h\x00a",  # a list in itself
        b"}q\x00" + push("a") + b"h\x00s",  # a dictionary in itself
        b"]q\x00](h\x00e" + b"a",  # a list in what it holds
    ],
)
def test_containers_that_hold_themselves_are_refused(code: bytes) -> None:
    refused("checkpoint.pickle", read, HEAD + code + STOP)


@pytest.mark.parametrize(
    "code",
    [
        b")" + b"\x85" * 100_000,
        b"]" * 100_000 + b"a" * 99_999,
        push("x") + b"\x85" * (DEEPEST + 1),
        b"]" * (DEEPEST + 1) + b"a" * DEEPEST,
    ],
    ids=["tuples", "lists", "one tuple too many", "one list too many"],
)
def test_depth_is_limited(code: bytes) -> None:
    refused("limit.exceeded", read, HEAD + code + STOP)


@pytest.mark.parametrize("code", [push("x") + b"\x85" * DEEPEST, b"]" * DEEPEST + b"a" * (DEEPEST - 1)])
def test_what_is_as_deep_as_it_may_be_is_read(code: bytes) -> None:
    assert depth(read(HEAD + code + STOP)) == DEEPEST


def test_doubling_tuples_take_no_memory_and_stop_at_the_depth_limit() -> None:
    double = b"q\x00h\x00\x86"  # (x, x) of x
    refused("limit.exceeded", read, HEAD + push("x") + double * 1000 + STOP)


def test_the_number_of_opcodes_is_limited() -> None:
    refused("limit.exceeded", read_pickle, HEAD + b"N" * 20_000 + STOP, BOUNDED)


def test_as_many_opcodes_as_there_may_be_are_read() -> None:
    assert read_pickle(HEAD + b"N" + STOP, Limits(header_nodes=3)) is None
    refused("limit.exceeded", read_pickle, HEAD + b"N" + STOP, Limits(header_nodes=2))


def test_more_dimensions_than_a_pack_can_hold_are_refused() -> None:
    refused("limit.exceeded", read, program(Stored("F32", "0", 1, (1,) * 9)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        HEAD,
        HEAD + STOP,
        HEAD + b"N",
        HEAD + b"NN.",
        HEAD + b"N.more",
        HEAD + b"X\xff\xff\xff\xff",
        HEAD + b"X\x01\x00\x00\x00\xff.",
        HEAD + b"t.",
        HEAD + b"(\x85.",
        HEAD + b"Na.",
        HEAD + b"](a.",
        HEAD + b"}NNs.",
        HEAD + b"}(Nu.",
        HEAD + b"}" + push(1.5) + b"Ns.",
        HEAD + b"h\x00.",
        HEAD + b"q\x00.",
        HEAD + b"(q\x00.",
        HEAD + b"(q\x00t.",  # a mark that is remembered
        HEAD + b"(Na.",  # a mark that is added to
        HEAD + b"NNa.",
        HEAD + b"NNNs.",
        HEAD + b"NX\x01\x00\x00\x00\xff.",
        HEAD + b"cno-newline",
        HEAD + b"c" + b"a" * 1000 + b"\nb\n.",
        b"\x80\x05N.",
        b"\x80\x04N.",
    ],
)
def test_a_malformed_pickle_is_refused(raw: bytes) -> None:
    refused("checkpoint.pickle", read, raw)


def test_a_name_without_an_end_is_refused_where_it_stands() -> None:
    refused("checkpoint.pickle", read_pickle, HEAD + b"ctorch\nFloatStorage" + STOP, BOUNDED)


def test_a_key_that_comes_twice_is_refused() -> None:
    code = b"}(" + (push("a") + b"N") * 2 + b"u"
    refused("checkpoint.duplicate", read, HEAD + code + STOP)


def answered(raw: bytes) -> None:
    found = fault_of(read_pickle, raw, BOUNDED)
    assert found is None or str(found).isascii()


@given(st.binary(max_size=200))
def test_any_bytes_are_answered_in_words(raw: bytes) -> None:
    answered(HEAD + raw)


OPERANDS = st.sampled_from(
    [b"", b"\0", b"\1", b"\xff", b"\0\0\0\0", b"\2\0\0\0ab", b"torch\nFloatStorage\n", b"collections\nOrderedDict\n"]
)


@given(st.lists(st.tuples(st.sampled_from(sorted(_STEPS)), OPERANDS), max_size=60))
def test_any_order_of_known_opcodes_is_answered_in_words(steps: list[tuple[int, bytes]]) -> None:
    answered(HEAD + b"".join(bytes([code]) + operand for code, operand in steps) + STOP)


@given(st.data())
def test_any_change_of_a_good_pickle_is_answered_in_words(data: st.DataObject) -> None:
    good = bytearray(program({"w": Stored("F32", "0", 6, (2, 3)), "n": [1, (2.5, None)]}))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] = data.draw(st.integers(0, 255))
    answered(bytes(good))


def test_the_assembler_writes_strides_as_numpy_does() -> None:
    assert contiguous((2, 3, 4)) == (12, 4, 1)
    assert push(1 << 40) == b"\x8a\x06" + struct.pack("<Q", 1 << 40)[:6]
