from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillpack_format.dtypes import DTYPES
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import open_checkpoint

INDEX = "model.safetensors.index.json"


def save(path: Path, *names: str, size: int = 3) -> Path:
    arrays = {name: np.full(size, number, np.float32) for number, name in enumerate(names)}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    return path


def sharded(folder: Path, index: object = None) -> Path:
    """Two shards of two tensors, and the ``index`` given or else a right one."""
    save(folder / "m-1.safetensors", "a", "d")
    save(folder / "m-2.safetensors", "c", "b")
    write_index(folder, {"a": "m-1", "b": "m-2", "c": "m-2", "d": "m-1"} if index is None else index)
    return folder


def write_index(folder: Path, index: object) -> None:
    if isinstance(index, bytes):
        (folder / INDEX).write_bytes(index)
        return
    if isinstance(index, dict) and "weight_map" not in index:
        index = {"metadata": {"total_size": 48}, "weight_map": {k: f"{v}.safetensors" for k, v in index.items()}}
    (folder / INDEX).write_text(json.dumps(index))


@contextmanager
def refused(code: str) -> Iterator[None]:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SkillPackError) as caught:
        yield
    assert caught.value.code == code
    assert len(os.listdir("/proc/self/fd")) == descriptors, "a file was left open"


def refuse(path: Path, code: str, limits: Limits = DEFAULT_LIMITS) -> None:
    with refused(code):
        open_checkpoint(path, limits)


# ---- what is opened


def test_a_single_file_is_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", "b", "a")
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.is_folder
        assert checkpoint.index_file is None
        assert checkpoint.index_metadata == {}
        assert list(checkpoint.specs) == ["a", "b"]
        assert [(shard.file_name, shard.path) for shard in checkpoint.shards] == [("x.safetensors", path)]
        assert checkpoint.shards[0].metadata == {"format": "pt"}
        assert checkpoint.side_files() == {}


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_folder_with_one_safetensors_file_is_a_checkpoint(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, "a")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    (tmp_path / "._model.safetensors").write_bytes(b"a leftover of another system")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.is_folder
        assert [shard.file_name for shard in checkpoint.shards] == [name]


def test_a_folder_with_an_index_is_a_checkpoint(tmp_path: Path) -> None:
    with open_checkpoint(sharded(tmp_path)) as checkpoint:
        assert checkpoint.index_file == INDEX
        assert checkpoint.index_metadata == {"total_size": 48}
        assert [shard.file_name for shard in checkpoint.shards] == ["m-1.safetensors", "m-2.safetensors"]
        assert list(checkpoint.specs) == ["a", "b", "c", "d"]
        assert np.frombuffer(checkpoint.read("b"), np.float32).tolist() == [1, 1, 1]


def test_an_index_need_not_have_metadata(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a")
    write_index(tmp_path, {"weight_map": {"a": "model.safetensors"}})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.index_metadata == {}


def test_files_that_the_index_does_not_name_are_no_part_of_it(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "consolidated.safetensors", "a")
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.shards) == 2


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    save(tmp_path / "blobs" / "0123", "a")
    (tmp_path / "model" / "model.safetensors").symlink_to("../blobs/0123")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert list(checkpoint.specs) == ["a"]


# ---- reading


def test_every_tensor_is_read_as_torch_wrote_it(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).to(torch.bfloat16),
        "b": torch.randn(7).to(torch.float8_e4m3fn),
        "c": torch.tensor(5),
        "d": torch.zeros(0, 4),
    }
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.specs["a"] == TensorSpec("a", DTYPES["BF16"], (3, 5))
        for name, tensor in tensors.items():
            assert checkpoint.read(name) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_threads_read_at_once(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(64)]
    path = save(tmp_path / "m.safetensors", *names, size=1000)
    with open_checkpoint(path) as checkpoint, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(checkpoint.read, names))
    assert [set(np.frombuffer(data, np.float32)) for data in read] == [{float(number)} for number in range(64)]


def test_a_tensor_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with open_checkpoint(save(tmp_path / "m.safetensors", "a")) as checkpoint, refused("usage.argument"):
        checkpoint.read("b")


def test_a_file_truncated_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", "a")
    with open_checkpoint(path) as checkpoint, refused("integrity.source-changed"):
        os.truncate(path, path.stat().st_size - 1)
        checkpoint.read("a")


@pytest.mark.parametrize("name", ["m-2.safetensors", INDEX])
def test_a_change_of_any_file_is_noticed(tmp_path: Path, name: str) -> None:
    with open_checkpoint(sharded(tmp_path)) as checkpoint:
        checkpoint.require_unchanged()
        with refused("integrity.source-changed"):
            os.utime(tmp_path / name, ns=(1, 1))
            checkpoint.require_unchanged()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "m.safetensors", "a"))
    checkpoint.close()
    checkpoint.close()
    with refused("input.failed"):
        checkpoint.read("a")


def test_side_files_are_whatever_else_the_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder = sharded(tmp_path / "model")
    weights = ("pytorch_model.bin", "pytorch_model.bin.index.json", "m.gguf", "optimizer.pt", ".hidden.bin")
    for name in ("config.json", "a.py", *weights):
        (folder / name).write_bytes(b"")
    (tmp_path / "blob").write_bytes(b"")
    (folder / "linked.json").symlink_to("../blob")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "linked_folder").symlink_to("..")
    (folder / "original").mkdir()
    os.mkfifo(folder / "pipe")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.side_files() == {
            name: folder / name for name in ("a.py", "config.json", "linked.json", "original")
        }
        assert checkpoint.other_weights() == [
            "m.gguf",
            "optimizer.pt",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        ]


def test_heads_and_index_are_the_bytes_in_the_files(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    with open_checkpoint(folder) as checkpoint:
        heads = checkpoint.heads()
        assert list(heads) == sorted(shard.file_name for shard in checkpoint.shards)
        for name, head in heads.items():
            assert (folder / name).read_bytes().startswith(head)
            assert len(head) == 8 + int.from_bytes(head[:8], "little")
        assert checkpoint.index_bytes() == (folder / str(checkpoint.index_file)).read_bytes()
    with open_checkpoint(folder / next(iter(heads))) as single:
        assert (single.index_bytes(), single.other_weights()) == (None, [])


# ---- what is refused before it is opened


def test_refuses_a_missing_path(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "checkpoint.missing")


def test_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refuse(tmp_path, "checkpoint.missing")


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl", "m.gguf", "m.onnx", "m"])
def test_refuses_other_kinds_of_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    refuse(tmp_path / name, "unsupported.checkpoint")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_refuses_a_folder_with_other_weights_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    refuse(tmp_path, "unsupported.checkpoint")


def test_says_why_a_pickle_is_refused_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(SkillPackError, match=r"can run code .* safe_serialization=True"):
        open_checkpoint(tmp_path / "m.bin")


def test_refuses_several_files_without_an_index(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", "a")
    save(tmp_path / "b.safetensors", "b")
    refuse(tmp_path, "checkpoint.ambiguous")


def test_refuses_two_indices(tmp_path: Path) -> None:
    (sharded(tmp_path) / "other.safetensors.index.json").write_text("{}")
    refuse(tmp_path, "checkpoint.ambiguous")


def test_refuses_an_index_beside_a_whole_model(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "model.safetensors", "a")
    refuse(tmp_path, "checkpoint.ambiguous")


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_refuses_a_shard_that_is_not_a_regular_file(tmp_path: Path, kind: str) -> None:
    shard = sharded(tmp_path) / "m-2.safetensors"
    shard.unlink()
    if kind == "fifo":
        os.mkfifo(shard)
    else:
        shard.mkdir()
    refuse(tmp_path, "input.failed")


def test_refuses_a_loop_of_links(tmp_path: Path) -> None:
    shard = sharded(tmp_path) / "m-2.safetensors"
    shard.unlink()
    shard.symlink_to(shard.name)
    refuse(tmp_path, "checkpoint.missing")


# ---- the index


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{",
        b'{"weight_map": \xff}',
        b'{"weight_map": {}, "metadata": {"total_size": NaN}}',
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": dict.fromkeys("ad", "m-1.safetensors") | dict.fromkeys("bc", "m-2.safetensors"), "metadata": []},
        b'{"metadata": {}}',
    ],
)
def test_refuses_a_malformed_index(tmp_path: Path, index: Any) -> None:
    refuse(sharded(tmp_path, index), "checkpoint.index")


@pytest.mark.parametrize(
    "name",
    [
        "../m-1.safetensors",
        "/etc/m-1.safetensors",
        "sub/m-1.safetensors",
        "..\\m-1.safetensors",
        "..",
        "",
        ".m-1.safetensors",
        "m-1\n.safetensors",
        "m-1\0.safetensors",
        "\ud800.safetensors",
        "m\u20101.safetensors",
        "config.json",
    ],
)
def test_refuses_a_shard_name_that_is_not_plain(tmp_path: Path, name: str) -> None:
    refuse(sharded(tmp_path, {"weight_map": {"a": name}}), "checkpoint.name")


def test_refuses_a_tensor_name_in_an_index_that_is_not_visible_ascii(tmp_path: Path) -> None:
    refuse(sharded(tmp_path, {"caf\u00e9": "m-1"}), "checkpoint.name")


def test_refuses_a_tensor_that_an_index_maps_twice(tmp_path: Path) -> None:
    raw = b'{"weight_map": {"a": "m-1.safetensors", "a": "m-2.safetensors"}}'
    refuse(sharded(tmp_path, raw), "checkpoint.duplicate")


def test_refuses_a_tensor_that_two_shards_hold(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "m-2.safetensors", "a", "b", "c")
    refuse(tmp_path, "checkpoint.duplicate")


def test_refuses_a_missing_shard(tmp_path: Path) -> None:
    (sharded(tmp_path) / "m-2.safetensors").unlink()
    refuse(tmp_path, "checkpoint.missing")


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "m-1", "b": "m-2", "c": "m-2"},
        {"a": "m-1", "b": "m-2", "c": "m-2", "d": "m-1", "e": "m-1"},
        {"a": "m-1", "b": "m-1", "c": "m-2", "d": "m-1"},
    ],
    ids=["a tensor left out", "a tensor too many", "a tensor elsewhere"],
)
def test_refuses_an_index_that_is_wrong_about_a_tensor(tmp_path: Path, weight_map: dict[str, str]) -> None:
    refuse(sharded(tmp_path, weight_map), "checkpoint.index")


def test_refuses_an_index_above_the_limit(tmp_path: Path) -> None:
    weight_map = dict.fromkeys("ad", "m-1.safetensors") | dict.fromkeys("bc", "m-2.safetensors")
    sharded(tmp_path, {"metadata": {"note": "x" * 1000}, "weight_map": weight_map})  # longer than any shard's header
    size = (tmp_path / INDEX).stat().st_size
    open_checkpoint(tmp_path, Limits(checkpoint_header_bytes=size)).close()
    refuse(tmp_path, "limit.exceeded", Limits(checkpoint_header_bytes=size - 1))


def test_a_shard_name_may_hold_any_printable_ascii(tmp_path: Path) -> None:
    save(tmp_path / "m ~ 1.safetensors", "a")
    write_index(tmp_path, {"a": "m ~ 1"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.specs) == ["a"]


def test_says_that_a_shard_is_missing_where_only_the_index_is_there(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "m-1"})
    with pytest.raises(SkillPackError) as caught:
        open_checkpoint(tmp_path)
    assert (caught.value.code, caught.value.where) == ("checkpoint.missing", str(tmp_path / "m-1.safetensors"))


def test_says_that_a_path_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(SkillPackError) as caught:
        open_checkpoint(tmp_path / "none.safetensors")
    assert (caught.value.code, caught.value.message) == ("checkpoint.missing", "there is no such file or folder")


def test_refuses_more_tensors_than_the_limit_in_all_shards_together(tmp_path: Path) -> None:
    open_checkpoint(sharded(tmp_path), Limits(tensors=4)).close()
    refuse(tmp_path, "limit.exceeded", Limits(tensors=3))


# ---- anything at all


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard=st.binary(max_size=64) | st.none(), index=st.binary(max_size=64) | st.none())
def test_arbitrary_bytes_only_raise_our_errors(tmp_path: Path, shard: bytes | None, index: bytes | None) -> None:
    sharded(tmp_path)
    if shard is not None:
        (tmp_path / "m-1.safetensors").write_bytes(shard)
    if index is not None:
        (tmp_path / INDEX).write_bytes(index)
    try:
        open_checkpoint(tmp_path).close()
    except SkillPackError:
        return
    assert shard is None
    assert index is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_a_mutated_file_is_refused_or_read_in_full(tmp_path: Path, position: int, value: int) -> None:
    path = save(tmp_path / "m.safetensors", "a", "b")
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = value
    path.write_bytes(raw)
    try:
        checkpoint = open_checkpoint(path)
    except SkillPackError:
        return
    with checkpoint:
        assert {name: len(checkpoint.read(name)) for name in checkpoint.specs} == dict.fromkeys(checkpoint.specs, 12)
