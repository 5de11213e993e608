"""A lossless pack of many differences has smaller chunks than one of few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import take_apart
from safetensors.numpy import save_file

import skillpack_format as skp
from skillpack_format.coding import CHUNK_BYTES
from skillpack_format.ops.chunks import DENSE, DENSE_CHUNK_BYTES, chunk_bytes_of
from skillpack_format.recipes import STANDARD
from skillpack_format.stores.safetensors_files import open_checkpoint


def pair(folder: Path, share: float, *, tensors: int = 3) -> tuple[Path, Path]:
    """Two checkpoints that differ in ``share`` of the elements of every tensor."""
    random = np.random.default_rng(1)
    base = {f"l.{k}.mlp.w.weight": random.standard_normal((100, 40)).astype(np.float32) for k in range(tensors)}
    tuned = {}
    for name, values in base.items():
        chosen = random.permutation(values.size)[: round(share * values.size)]
        tuned[name] = values.copy()
        tuned[name].reshape(-1)[chosen] *= np.float32(1.5)
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.01, CHUNK_BYTES), (DENSE - 0.01, CHUNK_BYTES), (DENSE + 0.01, DENSE_CHUNK_BYTES)]
)
def test_the_share_of_elements_that_differ_decides(tmp_path: Path, share: float, expected: int) -> None:
    paths = pair(tmp_path, share)
    with open_checkpoint(paths[0]) as before, open_checkpoint(paths[1]) as after:
        assert chunk_bytes_of(before, after, list(after.specs)) == expected


def test_some_tensors_tell_it_of_many(tmp_path: Path) -> None:
    paths = pair(tmp_path, 0.5, tensors=200)
    with open_checkpoint(paths[0]) as before, open_checkpoint(paths[1]) as after:
        assert chunk_bytes_of(before, after, list(after.specs)) == DENSE_CHUNK_BYTES


def test_nothing_in_common_leaves_chunks_as_they_are(tmp_path: Path) -> None:
    base, _ = pair(tmp_path, 0.5)
    save_file({"other": np.zeros(7, np.float32), "none": np.zeros((0, 3), np.float32)}, tmp_path / "t.safetensors")
    with open_checkpoint(base) as before, open_checkpoint(tmp_path / "t.safetensors") as after:
        assert chunk_bytes_of(before, after, ["none", "other"]) == CHUNK_BYTES


@pytest.mark.parametrize(
    ("options", "expected"),
    [(skp.ConvertOptions(), DENSE_CHUNK_BYTES), (skp.ConvertOptions(recipe=STANDARD), CHUNK_BYTES)],
)
def test_the_pack_says_so(tmp_path: Path, options: skp.ConvertOptions, expected: int) -> None:
    base, tuned = pair(tmp_path, 0.9)
    skp.convert(base, tuned, tmp_path / "a.skp", options)
    assert take_apart(tmp_path / "a.skp").storage["chunk_bytes"] == expected
