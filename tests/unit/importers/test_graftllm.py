"""U, S and V as GraftLLM and Delta-CoMe save them: added exactly, for the base they were made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import refused
from deltas import bits_of, write, write_archive

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float32, dtype_named

NAME = "model.layers.0.self_attn.q_proj"
OUT, IN, R = 6, 8, 3
Factors = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def factors(rng: np.random.Generator, rank: int = R) -> Factors:
    return draw(rng, OUT, rank), np.abs(draw(rng, rank)), draw(rng, IN, rank)


def keys(found: Factors, bits: str = "") -> dict[str, np.ndarray]:
    return {f"{NAME}.{part}{bits}": value for part, value in zip("USV", found, strict=True)}


def as_bf16(values: np.ndarray) -> np.ndarray:
    return bits_to_float32(bits_of(values, "BF16"), dtype_named("BF16")).astype(np.float64)


def exact(found: Factors) -> np.ndarray:
    u, s, v = map(as_bf16, found)
    return (u * s) @ v.T


@pytest.fixture
def base(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, np.ndarray]:
    weight = draw(rng, OUT, IN)
    tensors = {f"{NAME}.weight": weight, "model.norm.weight": draw(rng, IN)}
    return write(tmp_path / "base.safetensors", tensors, "BF16"), weight


def refuse(code: str, tmp_path: Path, tensors: dict[str, Any], base: Path, **options: Any) -> skp.SkillPackError:
    delta = write_archive(tmp_path / "d.pt", tensors, "BF16")
    return refused(code, skp.import_delta, delta, base, tmp_path / "never.skp", skp.ImportOptions(**options))


def test_the_sum_is_rounded_once(tmp_path, base, imported, rng) -> None:
    path, weight = base
    found = factors(rng)
    delta = write_archive(tmp_path / "d.pt", {**keys(found), f"{NAME}.base": weight}, "BF16")
    result = imported(delta, path)
    expected = (as_bf16(weight) + exact(found)).astype(np.float32)
    assert np.array_equal(result.result[f"{NAME}.weight"][1], bits_of(expected, "BF16"))
    assert result.report.kind == "graftllm"
    assert result.encodings(f"{NAME}.weight") == ("factors",)


def test_bands_of_several_bit_widths_are_added_together(tmp_path, base, imported, rng) -> None:
    path, weight = base
    bands = {"_8": factors(rng, 1), "_3": factors(rng, 2), "_2": factors(rng, 3)}
    tensors = {key: value for bits, found in bands.items() for key, value in keys(found, bits).items()}
    result = imported(write_archive(tmp_path / "d.pt", tensors, "BF16"), path)
    expected = (as_bf16(weight) + sum(map(exact, bands.values()))).astype(np.float32)
    assert np.array_equal(result.result[f"{NAME}.weight"][1], bits_of(expected, "BF16"))


def test_merged_weights_replace(tmp_path, base, imported, rng) -> None:
    merged = draw(rng, OUT, IN)
    delta = write_archive(tmp_path / "d.pt", {f"{NAME}.weight": merged}, "BF16")
    refused("unsupported.checkpoint", skp.import_delta, delta, base[0], tmp_path / "never.skp")
    result = imported(delta, base[0], kind="graftllm")
    assert np.array_equal(result.result[f"{NAME}.weight"][1], bits_of(merged, "BF16"))


def test_another_base_is_refused(tmp_path, base, rng) -> None:
    path, weight = base
    wrong = weight.copy()
    wrong[0, 0] += 1
    found = refuse("base.content", tmp_path, {**keys(factors(rng)), f"{NAME}.base": wrong}, path)
    assert found.exit_status == 3
    assert NAME in str(found)
    refuse("base.content", tmp_path, {**keys(factors(rng)), f"{NAME}.base": weight[:3]}, path)


def test_a_base_of_float32_is_compared_as_the_delta_rounded_it(tmp_path, imported, rng) -> None:
    weight = draw(rng, OUT, IN)
    path = write(tmp_path / "base.safetensors", {f"{NAME}.weight": weight})
    found = factors(rng)
    result = imported(write_archive(tmp_path / "d.pt", {**keys(found), f"{NAME}.base": weight}, "BF16"), path)
    assert result.off_by_ulps(f"{NAME}.weight", weight + exact(found)) <= 1


U, S, V = np.ones((OUT, R), np.float32), np.ones(R, np.float32), np.ones((IN, R), np.float32)


@pytest.mark.parametrize(
    ("code", "tensors"),
    [
        ("convert.delta", {f"{NAME}.U": U, f"{NAME}.S": S, "model.other.V": V}),
        ("convert.delta", {f"{NAME}.U": U, f"{NAME}.V": V, f"{NAME}.S_8": S}),
        ("convert.delta", {**keys((U, S, V)), **keys((U, S, V), "_8")}),
        ("convert.delta", {**keys((U, S, V)), f"{NAME}.weight": np.ones((OUT, IN))}),
        ("convert.delta", {**keys((U, S, V)), f"{NAME}.extra": S}),
        ("convert.delta", {**keys((U, S, V)), f"{NAME}.base_8": S}),
        ("convert.delta", {**keys((U, S, V)), f"{NAME}x.base": np.ones((OUT, IN))}),
        ("convert.delta", keys((U[:, :2], S, V))),
        ("convert.delta", keys((U, S[:2], V))),
        ("convert.delta", keys((U[:4], S, V))),
        ("convert.delta", keys((U.T.copy(), S, V))),
        ("convert.delta", keys((U, S[None], V))),
        ("convert.nonfinite", keys((U, S * np.nan, V))),
        ("convert.unmatched", {f"model.k.{part}": value for part, value in zip("USV", (U, S, V), strict=True)}),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path, base, code, tensors) -> None:
    refuse(code, tmp_path, tensors, base[0])


def test_a_rank_beyond_all_bands_is_refused(tmp_path, rng) -> None:
    path = write(tmp_path / "base.safetensors", {f"{NAME}.weight": draw(rng, 1, IN)})
    u, s, v = np.ones((1, 65), np.float32), np.ones(65, np.float32), np.ones((IN, 65), np.float32)
    assert "64 times 1" in str(refuse("convert.delta", tmp_path, keys((u, s, v)), path))
