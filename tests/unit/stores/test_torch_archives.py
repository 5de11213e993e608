"""Tensors of ``torch.save``: the same bytes as torch itself gives, and no file makes this process do more than read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import fault_of, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_files import Raw, Stored, archive, glob, program, push, saved

from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.stores.torch_archives import TorchArchive, open_archive

SIX = np.arange(6, dtype="<f4")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], dict[str, bytes]]:
    """Every tensor of an archive of these bytes."""

    def read(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, bytes]:
        path = tmp_path / "x.pt"
        path.write_bytes(raw)
        with open_archive(path, limits) as found:
            return {name: bytes(found.read(name)) for name in found.specs}

    return read


def one(view: Stored, raw: bytes = SIX.tobytes()) -> bytes:
    return archive(program({"w": view}), {"0": raw})


def bits_of(tensor: Any) -> bytes:
    import torch

    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def written_by_torch(path: Path) -> dict[str, Any]:
    import torch

    whole = torch.arange(60).reshape(3, 4, 5)
    tensors = {
        "f64": torch.linspace(0, 1, 7, dtype=torch.float64),
        "f16": torch.randn(3, 5).half(),
        "bf16": torch.randn(3, 5).bfloat16(),
        "bool": torch.tensor([True, False]),
        "i8": torch.tensor([-1], dtype=torch.int8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "whole": whole,
        "transposed": whole.permute(2, 0, 1),
        "slice": whole[1:, ::2, 1],
        "row": whole[2, 3],
        "one": whole[2:, 3:, 4:],
    }
    torch.save(tensors, path)
    return tensors


def test_the_bytes_are_those_that_torch_has(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is an extra")
    tensors = written_by_torch(tmp_path / "x.pt")
    with open_archive(tmp_path / "x.pt") as found:
        assert list(found.specs) == sorted(tensors)
        for name, tensor in tensors.items():
            assert found.specs[name].shape == tuple(tensor.shape)
            assert found.read(name) == bits_of(tensor), name
        found.require_unchanged()


def test_a_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), tmp_path / "x.pt")
    with open_archive(tmp_path / "x.pt") as found:
        assert {name: found.read(name) for name in found.specs} == {
            k: bits_of(v) for k, v in module.state_dict().items()
        }


def test_torch_itself_reads_what_the_tests_assemble(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    (tmp_path / "x.pt").write_bytes(one(Stored("F32", "0", 6, (3, 2), (1, 3))))
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)["w"]
    assert loaded.numpy().tolist() == SIX.reshape(2, 3).T.tolist()


def test_strides_and_offsets_are_followed(opened) -> None:
    assert opened(one(Stored("F32", "0", 6, (3, 2), (1, 3))))["w"] == SIX.reshape(2, 3).T.tobytes()
    assert opened(one(Stored("F32", "0", 6, (2,), (3,), 2)))["w"] == SIX[2::3].tobytes()


def test_a_step_that_is_never_taken_is_no_matter(opened) -> None:
    assert opened(one(Stored("F32", "0", 6, (1, 6), ((1 << 62), 1))))["w"] == SIX.tobytes()


@pytest.mark.parametrize(
    ("what", "view"),
    [
        ("more elements than the storage", Stored("F32", "0", 6, (7,))),
        ("an offset beyond", Stored("F32", "0", 6, (1,), (1,), 6)),
        ("an offset near 2^63", Stored("F32", "0", 6, (1,), (1,), (1 << 63) - 1)),
        ("strides beyond", Stored("F32", "0", 6, (2, 3), (4, 1))),
        ("huge strides", Stored("F32", "0", 6, (2,), ((1 << 63) - 1,))),
        ("a huge storage", Stored("F32", "0", 1 << 40, (6,))),
        ("a storage of other items", Stored("F64", "0", 6, (6,))),
        ("a huge tensor of one element", Stored("F32", "0", 6, (1 << 40,), (0,))),
        ("an expanded tensor", Stored("F32", "0", 6, (7,), (0,))),
        ("no record", Stored("F32", "1", 6, (6,))),
        ("a record outside", Stored("F32", "../data.pkl", 6, (6,))),
        ("sizes that wrap around", Stored("F32", "0", 6, (1 << 32, 1 << 32), (1, 1))),
    ],
)
def test_a_tensor_outside_of_its_record_is_refused(opened, what: str, view: Stored) -> None:
    refused("checkpoint.layout", opened, one(view))


def test_a_record_is_proved_before_its_tensor_is_given_out(opened) -> None:
    raw = one(Stored("F32", "0", 6, (6,)))
    at = raw.index(SIX.tobytes())
    refused("checkpoint.layout", opened, raw[:at] + b"\xff" + raw[at + 1 :])


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        "text",
        None,
        {"w": 1},
        {"a": {"w": Stored("F32", "0", 6, (6,))}},
        {1: None},
        {1: Stored("F32", "0", 6, (6,))},
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(opened, value: Any) -> None:
    refused("unsupported.checkpoint", opened, archive(program(value), {"0": SIX.tobytes()}))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"PK",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",  # how torch wrote before 1.6
        program({"w": 1}),
        b"wdelta\0" + bytes(50),
    ],
)
def test_other_files_are_refused_with_what_to_do(opened, raw: bytes) -> None:
    assert "torch.save" in str(refused("unsupported.checkpoint", opened, raw))


def test_the_old_form_of_torch_is_refused_in_words(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    torch.save({"w": torch.zeros(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert "before 1.6" in str(refused("unsupported.checkpoint", open_archive, tmp_path / "x.pt"))


def test_a_module_with_code_is_refused(opened) -> None:
    raw = archive(program({}), {}, code__model=b"import os")
    assert "TorchScript" in str(refused("unsupported.checkpoint", opened, raw))


def test_an_archive_without_its_pickle_is_refused(opened) -> None:
    good = archive(program({}))
    refused("checkpoint.layout", opened, good.replace(b"archive/data.pkl", b"archive/data/pkl"))


def test_records_of_two_folders_are_refused(opened) -> None:
    good = archive(program({}))
    refused("checkpoint.layout", opened, good.replace(b"archive/version", b"brchive/version"))


def test_another_byte_order_is_refused(opened) -> None:
    good = archive(program({}))
    assert opened(good) == {}
    for order in (b"big", b"sleigh", b"littleendian", b""):
        refused("unsupported.checkpoint", opened, archive(program({}), byteorder=order))


def test_a_file_of_an_older_release_says_no_byte_order(opened) -> None:
    assert opened(archive(program({"w": Stored("F32", "0", 6, (6,))}), {"0": SIX.tobytes()}, byteorder=None))


@pytest.mark.parametrize("name", ["", "a b", "a\x1b[31m", "\u202eevil"])
def test_names_that_no_pack_can_hold_are_refused(opened, name: str) -> None:
    refused("checkpoint.name", opened, archive(program({name: Stored("F32", "0", 6, (6,))}), {"0": SIX.tobytes()}))


def test_the_size_of_the_pickle_is_limited(opened) -> None:
    pickle = program({"w" * 500: Stored("F32", "0", 6, (6,))})  # longer than the directory of the archive
    raw = archive(pickle, {"0": SIX.tobytes()})
    assert len(opened(raw, Limits(checkpoint_header_bytes=len(pickle)))) == 1
    refused("limit.exceeded", opened, raw, Limits(checkpoint_header_bytes=len(pickle) - 1))


def test_the_number_of_tensors_is_limited(opened) -> None:
    raw = archive(program({name: Stored("F32", "0", 6, (6,)) for name in "ab"}), {"0": SIX.tobytes()})
    assert len(opened(raw, Limits(tensors=2))) == 2
    refused("limit.exceeded", opened, raw, Limits(tensors=1))


def test_an_attack_is_refused_by_the_function_it_wanted(opened, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    attack = Raw(glob("posix", "system") + push((f"touch {mark}",)) + b"R")
    found = refused("checkpoint.pickle", opened, archive(program({"w": attack})))
    assert "posix.system" in str(found)
    assert not mark.exists()


def test_reading_an_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(saved({"w": ("F32", SIX)}))
    with open_archive(tmp_path / "x.pt") as found:
        refused("usage.argument", found.read, "v")


def test_a_change_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(saved({"w": ("F32", SIX)}))
    with open_archive(tmp_path / "x.pt") as found:
        (tmp_path / "x.pt").write_bytes(b"other")
        refused("integrity.source-changed", found.require_unchanged)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 40),
    offset=st.integers(0, 50),
    sides=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=4),
)
def test_a_view_gives_what_numpy_gives_or_is_refused(opened, count: int, offset: int, sides: list) -> None:
    shape, strides = [side for side, _ in sides], [step for _, step in sides]
    values = np.arange(count, dtype="<i8")
    raw = archive(program({"w": Stored("I64", "0", count, shape, strides, offset)}), {"0": values.tobytes()})
    index = offset + sum(np.indices(shape)[axis] * step for axis, step in enumerate(strides))
    numel = int(np.prod(shape))
    if numel > count or (numel and int(np.max(index)) >= count):
        refused("checkpoint.layout", opened, raw)
    else:
        expected = values[np.broadcast_to(index, shape)].tobytes() if numel else b""
        assert opened(raw)["w"] == expected


GOOD = archive(
    program({"w": Stored("F32", "0", 6, (2, 3)), "v": Stored("F32", "0", 6, (2,), (2,), 1)}), {"0": SIX.tobytes()}
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_is_answered_in_words(opened, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(GOOD)
    for at, value in changes:
        raw[at] = value
    found = fault_of(opened, bytes(raw))
    assert found is None or str(found).isascii()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_pickle_in_a_sound_archive_is_answered_in_words(opened, raw: bytes) -> None:
    found = fault_of(opened, archive(raw, {"0": SIX.tobytes()}))
    assert found is None or str(found).isascii()


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(saved({"w": ("F32", SIX)}))
    found: TorchArchive = open_archive(tmp_path / "x.pt")
    found.close()
    found.close()
