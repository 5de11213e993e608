from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards

from skillpack_format.dtypes import DTYPES
from skillpack_format.errors import SkillPackError
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.shards import ShardWriter, shard_bytes, write_index

ONE = TensorSpec("a", DTYPES["F32"], (2,))

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F4": torch.float4_e2m1fn_x2,
}


def rewrite(source: Path, target: Path) -> None:
    with (
        open_checkpoint(source) as checkpoint,
        ShardWriter(target, list(checkpoint.specs.values()), checkpoint.shards[0].metadata) as writer,
    ):
        for spec in writer.tensors:
            writer.write(spec.name, checkpoint.read(spec.name))


def refusal(path: Path, tensors: list[TensorSpec]) -> str:
    with pytest.raises(SkillPackError) as caught:
        ShardWriter(path, tensors, {})
    return caught.value.code


@pytest.mark.parametrize(
    "names", [["F32"], ["F16"], ["BF16"], ["I64"], ["F32", "F16", "BF16", "I64"], list(TORCH_DTYPES)]
)
def test_files_are_byte_identical_to_those_of_safetensors_torch(tmp_path: Path, names: list[str]) -> None:
    tensors = {
        f"{part}.{name}": torch.randint(0, 2, shape).to(torch.uint8).repeat_interleave(8).view(TORCH_DTYPES[name])
        for name in names
        for part, shape in (("layer.10", (16,)), ("layer.2", (24,)), ("a", (0,)))
    }
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    rewrite(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_reference_library_reads_back_what_is_written(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with ShardWriter(tmp_path / "a", [TensorSpec("a.b", DTYPES["F32"], (2, 3))], {}) as writer:
        writer.write("a.b", array.data)
    loaded = safetensors.numpy.load_file(tmp_path / "a")
    np.testing.assert_array_equal(loaded["a.b"], array)


def test_every_dtype_is_known_to_the_reference_library(tmp_path: Path) -> None:
    tensors = [TensorSpec(name, dtype, (8,)) for name, dtype in DTYPES.items()]
    with ShardWriter(tmp_path / "a", tensors, {}) as writer:
        for spec in writer.tensors:
            writer.write(spec.name, bytes(spec.nbytes))
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as opened:
        assert sorted(opened.keys()) == sorted(DTYPES)


def test_the_format_is_said_to_be_pytorch_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    for name, metadata in (("a", {"b": "c"}), ("b", {"format": "np"})):
        ShardWriter(tmp_path / name, [], metadata).close()
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt", "b": "c"}
    with safetensors.safe_open(tmp_path / "b", framework="numpy") as opened:
        assert opened.metadata() == {"format": "np"}


def test_an_empty_array_is_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", [TensorSpec("a", DTYPES["F32"], (0, 3))], {}) as writer:
        writer.write("a", np.zeros((0, 3), np.float32).data)
    assert safetensors.numpy.load_file(tmp_path / "a")["a"].shape == (0, 3)


def test_refuses_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    assert refusal(tmp_path / "a", [ONE]) == "output.exists"
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("names", [["a", "a"], ["__metadata__"]])
def test_refuses_names_that_a_header_cannot_hold(tmp_path: Path, names: list[str]) -> None:
    assert refusal(tmp_path / "a", [TensorSpec(name, DTYPES["F32"], ()) for name in names]) == "usage.argument"
    assert not (tmp_path / "a").exists()


def test_refuses_a_tensor_out_of_turn(tmp_path: Path) -> None:
    with pytest.raises(SkillPackError, match="'a' is due, not 'b'"), ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        writer.write("b", bytes(8))


def test_refuses_a_tensor_too_many(tmp_path: Path) -> None:
    with pytest.raises(SkillPackError, match="no tensor is due"), ShardWriter(tmp_path / "a", [], {}) as writer:
        writer.write("b", bytes(8))


@pytest.mark.parametrize("nbytes", [0, 7, 9])
def test_refuses_bytes_that_are_not_those_of_the_shape(tmp_path: Path, nbytes: int) -> None:
    with pytest.raises(SkillPackError) as caught, ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        writer.write("a", bytes(nbytes))
    assert caught.value.code == "usage.argument"


def test_refuses_to_close_before_every_tensor_is_written(tmp_path: Path) -> None:
    with pytest.raises(SkillPackError) as caught, ShardWriter(tmp_path / "a", [ONE], {}):
        pass
    assert caught.value.code == "output.failed"
    assert not (tmp_path / "a").exists()


def test_a_block_that_raises_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", [ONE], {}):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_second_close_does_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        writer.write("a", bytes(8))
        writer.close()
    assert (tmp_path / "a").exists()


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    assert refusal(tmp_path / "a", [ONE]) == "output.space"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "renamed tensor"])
def test_a_file_that_the_reference_library_cannot_read_as_written_is_removed(tmp_path: Path, damage: str) -> None:
    writer = ShardWriter(tmp_path / "a", [ONE], {})
    writer.write("a", bytes(8))
    if damage == "cut":
        os.truncate(tmp_path / "a", 20)
    else:
        raw = (tmp_path / "a").read_bytes()
        (tmp_path / "a").write_bytes(raw.replace(b'"a"', b'"b"'))
    with pytest.raises(SkillPackError) as caught:
        writer.close()
    assert caught.value.code == "output.failed"
    assert not (tmp_path / "a").exists()


def test_files_are_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(stat.S_ISREG(os.fstat(descriptor).st_mode))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ShardWriter(tmp_path / "a", [], {}).close()
    write_index(tmp_path / "b", {}, 0, {})
    assert synced == [True, True]


def test_an_index_is_laid_out_as_huggingface_hub_does(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(4) for name in ("b", "a", "c")}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=20)
    theirs = json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, indent=2, sort_keys=True)
    write_index(tmp_path / "index", split.tensor_to_filename, 48, {})
    assert (tmp_path / "index").read_text() == theirs + "\n"


def test_an_index_keeps_the_metadata_and_has_the_size_of_now(tmp_path: Path) -> None:
    write_index(tmp_path / "index", {"a": "b"}, 48, {"total_size": 7, "total_parameters": 12})
    assert json.loads((tmp_path / "index").read_text()) == {
        "metadata": {"total_size": 48, "total_parameters": 12},
        "weight_map": {"a": "b"},
    }


# ---- going on with what a stopped run left

THREE = [TensorSpec(name, DTYPES["F32"], (2,)) for name in "abc"]
DATA = {spec.name: bytes([k]) * 8 for k, spec in enumerate(THREE)}
DIGESTS = {name: hashlib.sha256(data).digest() for name, data in DATA.items()}


def write_rest(path: Path, expected: Mapping[str, bytes] = DIGESTS) -> list[str]:
    """Go on with the file at ``path``; which tensors had to be written."""
    with ShardWriter(path, THREE, {}, expected=expected.get) as writer:
        remaining = [spec.name for spec in writer.remaining]
        for name in remaining:
            writer.write(name, DATA[name])
    return remaining


def finished(path: Path) -> bytes:
    """The bytes of the whole file, and the file gone."""
    assert write_rest(path) == ["a", "b", "c"]
    blob = path.read_bytes()
    path.unlink()
    return blob


@pytest.mark.parametrize("cut", range(25))
def test_leading_tensors_with_the_right_digest_are_kept(tmp_path: Path, cut: int) -> None:
    blob = finished(tmp_path / "a")
    (tmp_path / "a").write_bytes(blob[: len(blob) - cut])
    assert write_rest(tmp_path / "a") == ["a", "b", "c"][3 - -(-cut // 8) :]
    assert (tmp_path / "a").read_bytes() == blob


@pytest.mark.parametrize("at", range(24))
def test_a_changed_tensor_and_all_after_it_are_written_again(tmp_path: Path, at: int) -> None:
    blob = bytearray(finished(tmp_path / "a"))
    harmed = blob.copy()
    harmed[len(blob) - 24 + at] ^= 1
    (tmp_path / "a").write_bytes(harmed + b"more")
    assert write_rest(tmp_path / "a") == ["a", "b", "c"][at // 8 :]
    assert (tmp_path / "a").read_bytes() == blob


@pytest.mark.parametrize("left", [b"", b"x", bytes(8), b"x" * 500])
def test_a_file_with_another_header_is_written_anew(tmp_path: Path, left: bytes) -> None:
    blob = finished(tmp_path / "a")
    (tmp_path / "a").write_bytes(left)
    assert write_rest(tmp_path / "a") == ["a", "b", "c"]
    assert (tmp_path / "a").read_bytes() == blob


def test_a_tensor_whose_digest_nobody_knows_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(finished(tmp_path / "a"))
    assert write_rest(tmp_path / "a", {"a": DIGESTS["a"], "c": DIGESTS["c"]}) == ["b", "c"]


def test_a_failed_file_is_left_when_it_can_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", THREE, {}, expected=DIGESTS.get) as writer:
        writer.write("a", DATA["a"])
        raise KeyboardInterrupt
    assert write_rest(tmp_path / "a") == ["b", "c"]


def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path: Path) -> None:
    write_rest(tmp_path / "a")
    assert shard_bytes(THREE, {}) == (tmp_path / "a").stat().st_size
