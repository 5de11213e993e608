"""The entropy of a pack's codes is counted over every encoding that a conversion writes."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import skillpack_format as skp
from benchmarks.size.entropy import entropy_of, order_zero_bytes
from skillpack_format.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_counted(recipe, tmp_path):
    rng = np.random.default_rng(1)
    base = {name: rng.standard_normal((64, 48)).astype(np.float32) for name in ("l.mlp.weight", "embed_tokens.weight")}
    base["l.norm.weight"] = np.ones(48, np.float32)
    save_file(base, tmp_path / "base.safetensors")
    tuned = {name: value + 0.01 * rng.standard_normal(value.shape).astype(np.float32) for name, value in base.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    options = skp.ConvertOptions(recipe=RECIPES[recipe])
    skp.convert(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "a.skp", options)
    found = entropy_of(tmp_path / "a.skp")
    assert found.file_bytes == (tmp_path / "a.skp").stat().st_size
    assert 0 < found.header_bytes < found.file_bytes
    assert 500 < found.entropy_bytes < found.file_bytes


def test_order_zero_is_that_of_the_frequencies():
    assert order_zero_bytes(np.array([1, 2, 3, 4] * 8)) == 8.0
    assert order_zero_bytes(np.zeros(100)) == 0.0
    assert order_zero_bytes(np.zeros(0)) == 0.0
