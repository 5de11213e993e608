"""BitDelta's diff.pt: the result is what BitDelta's own loader makes, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import refused
from deltas import bits_of, write, write_archive

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float32, dtype_named, float32_to_bits

NAME = "model.layers.0.self_attn.q_proj"
OUT, IN = 5, 64


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def mask_of(positive: np.ndarray) -> tuple[str, np.ndarray]:
    """(out, in) signs as int32 (in / 32, out): bit k of item (i, j) is the sign of weight (j, 32 i + k)."""
    out, into = positive.shape
    words = np.zeros((into // 32, out), np.uint32)
    for at in range(into):
        words[at // 32] |= positive[:, at].astype(np.uint32) << np.uint32(at % 32)
    return "I32", words


def loaded(base: np.ndarray, positive: np.ndarray, coeff: float, dtype: str) -> np.ndarray:
    """What load_diff of BitDelta does: the scale in the dtype of the weight, and a sum in that dtype."""
    kind = dtype_named(dtype)
    stored = bits_to_float32(bits_of(base, dtype), kind)
    scale = bits_to_float32(bits_of(np.full(1, coeff), dtype), kind)[0]
    return float32_to_bits((stored + np.where(positive, scale, -scale)).astype(np.float32), kind)


@pytest.fixture(params=["F32", "F16", "BF16"])
def base(request: pytest.FixtureRequest, tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Any, str]:
    tensors = {f"{NAME}.weight": draw(rng, OUT, IN), "model.norm.weight": draw(rng, IN), "head.bias": draw(rng, 3)}
    return write(tmp_path / "base.safetensors", tensors, request.param), tensors, request.param


def diff(rng: np.random.Generator, coeff: float = 0.0123) -> tuple[dict[str, Any], np.ndarray]:
    positive = rng.random((OUT, IN)) < 0.5
    return {f"{NAME}.mask": mask_of(positive), f"{NAME}.coeff": np.float32(coeff)}, positive


def test_signs_are_added_as_the_tool_adds_them(tmp_path, base, imported, rng) -> None:
    path, tensors, dtype = base
    keys, positive = diff(rng)
    norm = draw(rng, IN)
    found = imported(write_archive(tmp_path / "diff.pt", {**keys, "model.norm.weight": norm}), path)
    assert found.report.kind == "bitdelta"
    expected = loaded(tensors[f"{NAME}.weight"], positive, 0.0123, dtype)
    assert np.array_equal(found.result[f"{NAME}.weight"][1], expected)
    assert np.array_equal(found.result["model.norm.weight"][1], bits_of(norm, dtype))
    assert np.array_equal(found.result["head.bias"][1], bits_of(tensors["head.bias"], dtype))
    assert found.encodings(f"{NAME}.weight") == ("blockq",)


@pytest.mark.parametrize("base", ["F32"], indirect=True)
def test_one_bit_a_weight_is_what_the_pack_costs(tmp_path, base, imported, rng) -> None:
    keys, _ = diff(rng)
    (tensor,) = imported(write_archive(tmp_path / "diff.pt", keys), base[0]).report.tensors
    assert tensor.nbytes < OUT * IN / 8 + 4 * OUT + 64


@pytest.mark.parametrize("base", ["F32"], indirect=True)
def test_a_negative_scale_turns_the_signs(tmp_path, base, imported, rng) -> None:
    path, tensors, dtype = base
    keys, positive = diff(rng, -0.5)
    found = imported(write_archive(tmp_path / "diff.pt", keys), path)
    expected = loaded(tensors[f"{NAME}.weight"], positive, -0.5, dtype)
    assert np.array_equal(found.result[f"{NAME}.weight"][1], expected)


@pytest.mark.parametrize("base", ["F16"], indirect=True)
@pytest.mark.parametrize("coeff", [0.0, -0.0, 1e-9])
def test_a_scale_that_is_zero_in_the_dtype_changes_nothing(tmp_path, base, imported, rng, coeff) -> None:
    keys, _ = diff(rng, coeff)
    found = imported(write_archive(tmp_path / "diff.pt", keys), base[0])
    assert [t.change for t in found.report.tensors] == ["unchanged"]


def zeros(*shape: int) -> tuple[str, np.ndarray]:
    return "I32", np.zeros(shape, np.uint32)


ONE = np.float32(1)


@pytest.mark.parametrize("base", ["F32"], indirect=True)
@pytest.mark.parametrize(
    ("code", "tensors"),
    [
        ("convert.delta", {f"{NAME}.mask": zeros(2, OUT)}),
        ("convert.delta", {f"{NAME}.coeff": ONE}),
        ("convert.delta", {f"{NAME}.mask": zeros(OUT, 2), f"{NAME}.coeff": ONE}),
        ("convert.delta", {f"{NAME}.mask": zeros(1, OUT), f"{NAME}.coeff": ONE}),
        ("convert.delta", {f"{NAME}.mask": zeros(2 * OUT), f"{NAME}.coeff": ONE}),
        ("convert.delta", {f"{NAME}.mask": ("I64", np.zeros((2, OUT), np.uint64)), f"{NAME}.coeff": ONE}),
        ("convert.delta", {f"{NAME}.mask": zeros(2, OUT), f"{NAME}.coeff": np.ones(2, np.float32)}),
        ("convert.delta", {f"{NAME}.mask": zeros(2, OUT), f"{NAME}.coeff": zeros()}),
        ("convert.delta", {f"{NAME}.mask": zeros(2, OUT), f"{NAME}.coeff": np.float32(1e-35)}),
        ("convert.nonfinite", {f"{NAME}.mask": zeros(2, OUT), f"{NAME}.coeff": np.float32(np.inf)}),
        ("convert.delta", {f"{NAME}.mask": zeros(2, OUT), f"{NAME}.coeff": ONE, f"{NAME}.weight": np.ones((OUT, IN))}),
        ("convert.delta", {f"{NAME}.A": np.ones((IN, 2)), f"{NAME}.B": np.ones((2, OUT))}),
        ("convert.delta", {"head.bias": np.ones((3, 1))}),
        ("convert.unmatched", {"model.k.mask": zeros(2, OUT), "model.k.coeff": ONE}),
    ],
)
def test_a_diff_that_does_not_fit_is_refused(tmp_path, base, code, tensors) -> None:
    delta = write_archive(tmp_path / "diff.pt", tensors)
    options = skp.ImportOptions(kind="bitdelta")
    refused(code, skp.import_delta, delta, base[0], tmp_path / "never.skp", options)
    assert not (tmp_path / "never.skp").exists()


def test_columns_that_fill_no_whole_item_are_refused(tmp_path, rng) -> None:
    path = write(tmp_path / "base.safetensors", {f"{NAME}.weight": draw(rng, OUT, 40)})
    delta = write_archive(tmp_path / "diff.pt", {f"{NAME}.mask": zeros(1, OUT), f"{NAME}.coeff": ONE})
    assert "multiple of 32" in str(refused("convert.delta", skp.import_delta, delta, path, tmp_path / "never.skp"))
