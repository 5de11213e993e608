"""Writing a pack: contents as they come, then the file at once."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import (
    f32,
    full_plan,
    kind,
    packed,
    plan_of,
    put_together,
    refused,
    stored_header,
    take_apart,
    tiny_plan,
    write_checkpoint,
    write_pack,
)

from skillpack_format import ConvertOptions, Limits, convert
from skillpack_format.contents import store
from skillpack_format.digest import checkpoint_digest
from skillpack_format.durable import RunInterruptedError
from skillpack_format.errors import SkillPackError
from skillpack_format.manifest import BaseRef, Manifest, ResultRef
from skillpack_format.reader import open_pack
from skillpack_format.writer import PackWriter

EMPTY = Manifest(base=BaseRef(0, checkpoint_digest([]), b""), result=ResultRef(0, checkpoint_digest([])), tensors=())


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_writes_what_the_specification_lays_out(tmp_path: Path, codec: str) -> None:
    path = write_pack(tmp_path / "p.skp", full_plan(), codec=codec)
    blob, parts = path.read_bytes(), take_apart(path)
    header = stored_header(blob)
    assert len(header) < len(packed(parts.manifest) + packed(parts.storage))
    assert put_together(parts, header=header) == blob


def test_an_empty_pack_is_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    with PackWriter(path, chunk_bytes=4096) as writer:
        nbytes = writer.seal(EMPTY)
    assert path.stat().st_size == nbytes < 384
    with open_pack(path) as pack:
        assert pack.keys() == []


def test_the_size_is_reported(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "p.skp", full_plan())
    with open_pack(path) as pack:
        assert pack.nbytes == path.stat().st_size


def test_nothing_appears_before_the_seal(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "p.skp", chunk_bytes=4096):
        assert not (tmp_path / "p.skp").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PackWriter(tmp_path / "p.skp", chunk_bytes=4096):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_overwrite_unless_told(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "p.skp", tiny_plan("ulp"))
    before = path.read_bytes()
    refused("output.exists", PackWriter(path, chunk_bytes=4096).__enter__)
    assert path.read_bytes() == before
    with PackWriter(path, chunk_bytes=4096, overwrite=True) as writer:
        nbytes = writer.seal(EMPTY)
    assert path.stat().st_size == nbytes < len(before)


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused("output.failed", PackWriter(tmp_path / "missing" / "p.skp", chunk_bytes=4096).__enter__)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "p.skp", chunk_bytes=4096) as writer:
        refused("output.locked", PackWriter(tmp_path / "p.skp", chunk_bytes=4096).__enter__)
        writer.seal(EMPTY)
    assert os.listdir(tmp_path) == ["p.skp"]


def test_contents_of_an_interrupted_run_need_not_be_stored_again(tmp_path: Path) -> None:
    content = store([np.arange(9, dtype=np.uint8)], [1], "raw", 4096)
    with pytest.raises(RunInterruptedError), PackWriter(tmp_path / "p.skp", chunk_bytes=4096) as writer:
        assert not writer.has(content)
        writer.add(content)
        raise KeyboardInterrupt
    with PackWriter(tmp_path / "p.skp", chunk_bytes=4096) as writer:
        assert writer.has(content)
        writer.add(replace(content, chunks=()))
    assert os.listdir(tmp_path) == []


def test_a_pack_is_a_plain_file(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "p.skp", tiny_plan("dense"))
    assert stat.S_ISREG(path.stat().st_mode)
    assert not path.stat().st_mode & 0o111
    assert os.listdir(tmp_path) == ["p.skp"]


def test_no_case_gives_no_segment(tmp_path: Path) -> None:
    parts = take_apart(write_pack(tmp_path / "p.skp", plan_of()))
    assert parts.storage == {"chunk_bytes": 4096, "segments": []}
    assert parts.data == b""


@pytest.mark.parametrize(
    "metadata", [{"\u00e9": ""}, {f"{k:03}": "" for k in range(257)}], ids=["not ASCII", "257 pairs"]
)
def test_a_manifest_that_no_reader_would_take_is_not_written(tmp_path: Path, metadata: dict[str, str]) -> None:
    manifest = Manifest(base=EMPTY.base, result=EMPTY.result, tensors=(), metadata=metadata)
    with PackWriter(tmp_path / "p.skp", chunk_bytes=4096) as writer, pytest.raises(SkillPackError):
        writer.seal(manifest)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_the_caller_raised_holds_for_writing_too(tmp_path: Path) -> None:
    name, limits = "x" * 513, Limits(name_bytes=513)
    for file, value in (("base", 1.0), ("tuned", 2.0)):
        write_checkpoint(tmp_path / f"{file}.safetensors", {name: (kind("F32", 1), f32(value))})
    path = tmp_path / "p.skp"
    convert(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", path, ConvertOptions(limits=limits))
    with open_pack(path, limits) as pack:
        assert pack.keys() == [name]
