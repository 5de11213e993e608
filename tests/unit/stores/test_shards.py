from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards

from skillpack_format.dtypes import DTYPES
from skillpack_format.errors import SkillPackError
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.heads import canonical_head
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.shards import ShardWriter, encode_index

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


@pytest.mark.parametrize("name", ["b", "__metadata__"])
def test_refuses_a_tensor_that_is_not_due(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(SkillPackError, match=f"no tensor '{name}' is due"),
        ShardWriter(tmp_path / "a", [ONE], {}) as writer,
    ):
        writer.write(name, bytes(8))


def test_refuses_a_tensor_a_second_time(tmp_path: Path) -> None:
    with pytest.raises(SkillPackError, match="no tensor 'a' is due"), ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        writer.write("a", bytes(8))
        writer.write("a", bytes(8))


def test_tensors_come_in_any_order_and_in_pieces(tmp_path: Path) -> None:
    blob = finished(tmp_path / "a")
    with ShardWriter(tmp_path / "a", THREE, {}) as writer:
        slots = [writer.slot(name) for name in "cab"]
        for first in range(0, 8, 3):
            for slot in slots:
                slot.write(DATA[slot.spec.name][first : first + 3])
        assert [slot.sha256() for slot in slots] == [DIGESTS[name] for name in "cab"]
        for slot in slots:
            assert not writer.is_complete
            slot.close()
        assert writer.is_complete
    assert (tmp_path / "a").read_bytes() == blob


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
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    assert writer.file.closed
    assert writer.read_back.fileno() < 0  # closed too


def test_a_file_that_cannot_be_read_back_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refuse_reading(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path) == tmp_path / "a" and flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse_reading)
    assert refusal(tmp_path / "a", [ONE]) == "input.failed"
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
    assert synced == [True]


def test_an_index_is_laid_out_as_huggingface_hub_does() -> None:
    tensors = {name: torch.zeros(4) for name in ("b", "a", "c")}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=20)
    theirs = json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, indent=2, sort_keys=True)
    assert encode_index(split.tensor_to_filename, 48, {}).decode() == theirs + "\n"


def test_an_index_keeps_the_metadata_and_has_the_size_of_now() -> None:
    assert json.loads(encode_index({"a": "b"}, 48, {"total_size": 7, "total_parameters": 12})) == {
        "metadata": {"total_size": 48, "total_parameters": 12},
        "weight_map": {"a": "b"},
    }


# ---- going on with what a stopped run left

THREE = [TensorSpec(name, DTYPES["F32"], (2,)) for name in "abc"]
DATA = {spec.name: bytes([k]) * 8 for k, spec in enumerate(THREE)}
DIGESTS = {name: hashlib.sha256(data).digest() for name, data in DATA.items()}


def write_rest(path: Path) -> list[str]:
    """Go on with the file at ``path``; which tensors had to be written."""
    written = []
    with ShardWriter(path, THREE, {}, resume=True) as writer:
        for name, data in DATA.items():
            slot = writer.slot(name)
            if slot.found() == DIGESTS[name]:
                slot.keep()
            else:
                slot.write(data)
                written.append(name)
            slot.close()
    return written


def finished(path: Path) -> bytes:
    """The bytes of the whole file, and the file gone."""
    assert write_rest(path) == ["a", "b", "c"]
    blob = path.read_bytes()
    path.unlink()
    return blob


@pytest.mark.parametrize("cut", range(25))
def test_tensors_with_the_right_digest_are_kept(tmp_path: Path, cut: int) -> None:
    blob = finished(tmp_path / "a")
    (tmp_path / "a").write_bytes(blob[: len(blob) - cut])
    is_zero = cut > 16  # what is missing reads as zeros, which are the right bytes of the first tensor
    assert write_rest(tmp_path / "a") == ["a", "b", "c"][3 - (2 if is_zero else -(-cut // 8)) :]
    assert (tmp_path / "a").read_bytes() == blob


@pytest.mark.parametrize("at", range(24))
def test_a_changed_tensor_is_written_again_and_no_other(tmp_path: Path, at: int) -> None:
    blob = bytearray(finished(tmp_path / "a"))
    harmed = blob.copy()
    harmed[len(blob) - 24 + at] ^= 1
    (tmp_path / "a").write_bytes(harmed + b"more")
    assert write_rest(tmp_path / "a") == ["abc"[at // 8]]
    assert (tmp_path / "a").read_bytes() == blob


@pytest.mark.parametrize("left", [b"", b"x", bytes(8), b"x" * 500])
def test_a_file_with_another_header_is_written_anew(tmp_path: Path, left: bytes) -> None:
    blob = finished(tmp_path / "a")
    (tmp_path / "a").write_bytes(left)
    assert write_rest(tmp_path / "a") == ["a", "b", "c"]
    assert (tmp_path / "a").read_bytes() == blob


def test_a_failed_file_is_left_when_it_can_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", THREE, {}, resume=True) as writer:
        writer.write("b", DATA["b"])
        raise KeyboardInterrupt
    assert write_rest(tmp_path / "a") == ["c"]


def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path: Path) -> None:
    write_rest(tmp_path / "a")
    assert canonical_head("a", THREE, {}).file_nbytes == (tmp_path / "a").stat().st_size


# ---- copies by the kernel


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_tensor_is_copied_from_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_kernel: bool) -> None:
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    (tmp_path / "source").write_bytes(b"...12345678...")
    with SourceFile(tmp_path / "source") as source, ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        slot = writer.slot("a")
        slot.copy(source, 3)
        assert slot.sha256() == hashlib.sha256(b"12345678").digest()
        slot.close()
    assert (tmp_path / "a").read_bytes().endswith(b"12345678")


def test_a_copy_that_the_kernel_refuses_is_done_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    (tmp_path / "source").write_bytes(b"12345678")
    with SourceFile(tmp_path / "source") as source, ShardWriter(tmp_path / "a", [ONE], {}) as writer:
        slot = writer.slot("a")
        slot.copy(source, 0)
        slot.close()
    assert (tmp_path / "a").read_bytes().endswith(b"12345678")


def test_a_copy_of_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"1234567")
    with (
        pytest.raises(SkillPackError) as caught,
        SourceFile(tmp_path / "source") as source,
        ShardWriter(tmp_path / "a", [ONE], {}) as writer,
    ):
        writer.slot("a").copy(source, 0)
    assert caught.value.code == "integrity.source-changed"


def test_a_file_of_the_same_layout_is_copied_whole(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(finished(tmp_path / "a"))
    with SourceFile(tmp_path / "source") as source, ShardWriter(tmp_path / "b", THREE, {}) as writer:
        assert writer.copy_whole(source)
        for name in DATA:
            slot = writer.slot(name)
            assert slot.sha256() == DIGESTS[name]
            slot.keep()
            slot.close()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize(
    ("metadata", "left", "right"),
    [({"by": "you"}, 0, 0), ({"by": "it"}, 0, 0), ({"by": "me"}, 1, 0), ({"by": "me"}, 0, 1)],
    ids=["another size", "another head", "a byte less", "a byte more"],
)
def test_a_file_of_another_layout_is_not_copied(
    tmp_path: Path, metadata: dict[str, str], left: int, right: int
) -> None:
    with ShardWriter(tmp_path / "source", THREE, metadata) as writer:
        for name, data in DATA.items():
            writer.write(name, data)
    blob = (tmp_path / "source").read_bytes()
    (tmp_path / "source").write_bytes(blob[: len(blob) - left] + bytes(right))
    with SourceFile(tmp_path / "source") as source, ShardWriter(tmp_path / "b", THREE, {"by": "me"}) as writer:
        assert not writer.copy_whole(source)
        for name, data in DATA.items():
            writer.write(name, data)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_file_whose_head_changes_while_it_is_copied_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_kernel: bool
) -> None:
    (tmp_path / "source").write_bytes(finished(tmp_path / "a"))
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    read = os.preadv

    def read_and_change(*arguments: Any) -> int:
        count = read(*arguments)
        with (tmp_path / "source").open("r+b") as file:
            file.write(b"\xff")
        return count

    with (
        pytest.raises(SkillPackError) as caught,
        SourceFile(tmp_path / "source") as source,
        ShardWriter(tmp_path / "b", THREE, {}) as writer,
    ):
        monkeypatch.setattr(os, "preadv", read_and_change)
        writer.copy_whole(source)
    assert caught.value.code == "integrity.source-changed"
    assert not (tmp_path / "b").exists()
