"""LoRA adapters: the merged weights are those of the formula, and every key is used or refused by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import refused
from deltas import bits_of, write, write_adapter, write_archive

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float32, dtype_named

OUT, IN, R = 6, 4, 2


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def base(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, dict[str, np.ndarray]]:
    tensors = {
        "model.q.weight": draw(rng, OUT, IN),
        "model.q.bias": draw(rng, OUT),
        "model.square.weight": draw(rng, IN, IN),
        "model.embed_tokens.weight": draw(rng, 9, IN),
        "model.norm.weight": draw(rng, IN),
    }
    return write(tmp_path / "base.safetensors", tensors), tensors


def lora(rng: np.random.Generator, module: str, out: int = OUT, into: int = IN, r: int = R) -> dict[str, np.ndarray]:
    return {f"{module}.lora_A.weight": draw(rng, r, into), f"{module}.lora_B.weight": draw(rng, out, r)}


def product(tensors: dict[str, np.ndarray], module: str) -> np.ndarray:
    a, b = (tensors[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    return b @ a


def refuse(code: str, tmp_path: Path, adapter: Path, base: Path, **options: Any) -> skp.SkillPackError:
    found = refused(code, skp.import_delta, adapter, base, tmp_path / "never.skp", skp.ImportOptions(**options))
    assert not (tmp_path / "never.skp").exists()
    return found


def test_the_result_is_the_formula_within_one_ulp(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    adapter = lora(rng, "model.q")
    found = imported(write_adapter(tmp_path / "a", adapter), path)
    exact = tensors["model.q.weight"] + 2.0 * product(adapter, "model.q")
    assert found.off_by_ulps("model.q.weight", exact) <= 1
    assert found.encodings("model.q.weight") == ("factors",)
    assert [t.name for t in found.report.tensors] == ["model.q.weight"]
    for name in tensors.keys() - {"model.q.weight"}:
        assert np.array_equal(found.values(name), tensors[name])


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 5}, 5 / 2),
        ({"lora_alpha": 0.3}, 0.3 / 2),
        ({"lora_alpha": 5, "use_rslora": True}, 5 / math.sqrt(2)),
        ({"r": 9, "rank_pattern": {"q": 2}}, 2),
        ({"alpha_pattern": {"^model.q": 3}}, 3 / 2),
        ({"alpha_pattern": {"model.k": 3}}, 2),
        ({"lora_alpha": -1}, -1 / 2),
    ],
)
def test_scaling_follows_the_configuration(tmp_path, base, imported, rng, config, scaling) -> None:
    path, tensors = base
    adapter = lora(rng, "model.q")
    found = imported(write_adapter(tmp_path / "a", adapter, **config), path)
    exact = tensors["model.q.weight"] + float(np.float32(scaling)) * product(adapter, "model.q")
    assert found.off_by_ulps("model.q.weight", exact) <= 1


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_bits_of_16_bit_factors_are_carried(tmp_path, base, imported, rng, dtype) -> None:
    path, tensors = base
    adapter = {name: draw(rng, *value.shape) for name, value in lora(rng, "model.q").items()}
    found = imported(write_adapter(tmp_path / "a", adapter, dtype), path)
    rounded = {k: bits_to_float32(bits_of(v, dtype), dtype_named(dtype)) for k, v in adapter.items()}
    exact = tensors["model.q.weight"] + 2.0 * product(rounded, "model.q")
    assert found.off_by_ulps("model.q.weight", exact) <= 1
    with skp.open_pack(tmp_path / "p.skp") as pack:
        (component,) = pack.manifest.tensors[0].components
        assert component.params["bands"] == [{"code": dtype, "rank": R}]


def test_a_base_of_16_bits_stays_one(tmp_path, imported, rng) -> None:
    weight = draw(rng, OUT, IN)
    adapter = lora(rng, "model.q")
    path = write(tmp_path / "base.safetensors", {"model.q.weight": weight}, "BF16")
    found = imported(write_adapter(tmp_path / "a", adapter), path)
    stored = bits_to_float32(bits_of(weight, "BF16"), dtype_named("BF16"))
    exact = (stored + 2.0 * product(adapter, "model.q")).astype(np.float32)
    assert found.result["model.q.weight"][0] == "BF16"
    assert np.array_equal(found.result["model.q.weight"][1], bits_of(exact, "BF16"))


def test_a_layer_that_keeps_its_weight_the_other_way_round_is_told_by_its_sides(tmp_path, imported, rng) -> None:
    weight = draw(rng, IN, OUT)
    adapter = lora(rng, "h.c")
    path = write(tmp_path / "base.safetensors", {"h.c.weight": weight})
    found = imported(write_adapter(tmp_path / "a", adapter), path)
    assert found.off_by_ulps("h.c.weight", weight + 2.0 * product(adapter, "h.c").T) <= 1


@pytest.mark.parametrize("transposed", [False, True])
def test_where_the_sides_are_equal_the_configuration_decides(tmp_path, base, imported, rng, transposed) -> None:
    path, tensors = base
    adapter = lora(rng, "model.square", IN, IN)
    found = imported(write_adapter(tmp_path / "a", adapter, fan_in_fan_out=transposed), path)
    change = product(adapter, "model.square")
    exact = tensors["model.square.weight"] + 2.0 * (change.T if transposed else change)
    assert found.off_by_ulps("model.square.weight", exact) <= 1


def test_a_rank_above_the_smaller_side_takes_several_bands(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    adapter = lora(rng, "model.q", r=11)
    found = imported(write_adapter(tmp_path / "a", adapter, r=11, lora_alpha=11), path)
    assert found.off_by_ulps("model.q.weight", tensors["model.q.weight"] + product(adapter, "model.q")) <= 1
    with skp.open_pack(tmp_path / "p.skp") as pack:
        (component,) = pack.manifest.tensors[0].components
        assert [band["rank"] for band in component.params["bands"]] == [4, 4, 3]


def test_embeddings_are_added_transposed(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    a, b = draw(rng, R, 9), draw(rng, IN, R)
    keys = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    found = imported(write_adapter(tmp_path / "a", keys), path)
    exact = tensors["model.embed_tokens.weight"] + 2.0 * (b.astype(np.float64) @ a).T
    assert found.off_by_ulps("model.embed_tokens.weight", exact) <= 1


def test_an_embedding_saved_unchanged_beside_its_factors_changes_nothing_more(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    keys = {
        "model.embed_tokens.lora_embedding_A": draw(rng, R, 9),
        "model.embed_tokens.lora_embedding_B": draw(rng, IN, R),
    }
    whole = {"model.embed_tokens.base_layer.weight": tensors["model.embed_tokens.weight"]}
    with_whole = imported(write_adapter(tmp_path / "b", {**keys, **whole}), path)
    assert with_whole.encodings("model.embed_tokens.weight") == ("factors",)
    without = imported(write_adapter(tmp_path / "a", keys), path)
    assert with_whole.report.pack_id == without.report.pack_id


def test_factors_are_added_to_a_whole_tensor_that_differs(tmp_path, base, imported, rng) -> None:
    path, _ = base
    adapter, weight = lora(rng, "model.q"), draw(rng, OUT, IN)
    found = imported(write_adapter(tmp_path / "a", {**adapter, "model.q.base_layer.weight": weight}), path)
    assert found.off_by_ulps("model.q.weight", weight + 2.0 * product(adapter, "model.q")) <= 1


def test_the_bias_of_lora_b_is_scaled_and_added(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    bias = draw(rng, OUT)
    adapter = {**lora(rng, "model.q"), "model.q.lora_B.bias": bias}
    found = imported(write_adapter(tmp_path / "a", adapter, lora_bias=True, use_rslora=True), path)
    scaling = float(np.float32(4 / math.sqrt(2)))
    assert found.off_by_ulps("model.q.bias", tensors["model.q.bias"] + scaling * bias.astype(np.float64)) <= 1


@pytest.mark.parametrize("key", ["model.q.bias", "model.q.base_layer.bias", "model.norm.modules_to_save.weight"])
def test_whole_tensors_replace(tmp_path, base, imported, rng, key) -> None:
    path, tensors = base
    name = key.replace("base_layer.", "").replace("modules_to_save.", "")
    value = draw(rng, *tensors[name].shape)
    found = imported(write_adapter(tmp_path / "a", {key: value}, bias="all"), path)
    assert np.array_equal(found.values(name), value)


def test_a_whole_tensor_is_rounded_to_the_dtype_of_the_base(tmp_path, imported, rng) -> None:
    value = draw(rng, IN)
    path = write(tmp_path / "base.safetensors", {"norm.weight": draw(rng, IN)}, "BF16")
    found = imported(write_adapter(tmp_path / "a", {"norm.weight": value}), path)
    assert np.array_equal(found.result["norm.weight"][1], bits_of(value, "BF16"))


def test_trained_tokens_replace_their_rows_in_the_order_of_the_configuration(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    rows = draw(rng, 3, IN)
    keys = {"model.embed_tokens.token_adapter.trainable_tokens_delta": rows}
    found = imported(write_adapter(tmp_path / "a", keys, trainable_token_indices=[7, 0, 8]), path)
    expected = tensors["model.embed_tokens.weight"].copy()
    expected[[7, 0, 8]] = rows
    assert np.array_equal(found.values("model.embed_tokens.weight"), expected)
    assert found.encodings("model.embed_tokens.weight") == ("sparse",)


def test_more_rows_grow_the_tensor_with_a_warning(tmp_path, base, imported, rng) -> None:
    path, tensors = base
    grown = np.concatenate([tensors["model.embed_tokens.weight"], draw(rng, 2, IN)])
    adapter = write_adapter(tmp_path / "a", {"model.embed_tokens.weight": grown})
    found = imported(adapter, path)
    assert np.array_equal(found.values("model.embed_tokens.weight"), grown)
    assert found.encodings("model.embed_tokens.weight") == ("sparse",)
    assert any("11 rows, 9 in the base" in warning for warning in found.report.warnings)
    (adapter / "config.json").write_text('{"vocab_size": 11}')
    (adapter / "tokenizer.json").write_text("{}")
    again = imported(adapter, path)
    assert again.report.side_files == ("config.json", "tokenizer.json")
    assert again.report.warnings == ()
    assert imported(adapter, path, side_files=False).report.side_files == ()


def test_an_adapter_that_was_never_trained_changes_nothing(tmp_path, base, imported, rng) -> None:
    adapter = {**lora(rng, "model.q"), "model.q.lora_B.weight": np.zeros((OUT, R), np.float32)}
    found = imported(write_adapter(tmp_path / "a", adapter), base[0])
    assert [(t.change, t.encodings) for t in found.report.tensors] == [("unchanged", ())]


def test_prefixes_are_found(tmp_path, imported, rng) -> None:
    weight, adapter = draw(rng, OUT, IN), lora(rng, "model.q")
    path = write(tmp_path / "base.safetensors", {"q.weight": weight})
    found = imported(write_adapter(tmp_path / "a", adapter), path)
    assert found.off_by_ulps("q.weight", weight + 2.0 * product(adapter, "model.q")) <= 1
    assert found.report.tensors[0].name_in_delta == "model.q.weight"


def test_a_file_of_torch_gives_the_same_pack(tmp_path, base, imported, rng) -> None:
    adapter = lora(rng, "model.q")
    folder = write_adapter(tmp_path / "a", adapter)
    first = imported(folder, base[0])
    (folder / "adapter_model.safetensors").unlink()
    write_archive(folder / "adapter_model.bin", {f"base_model.model.{k}": v for k, v in adapter.items()})
    assert imported(folder, base[0]).report.pack_id == first.report.pack_id


def test_of_two_files_peft_reads_the_safe_one(tmp_path, base, imported, rng) -> None:
    folder = write_adapter(tmp_path / "a", lora(rng, "model.q"))
    (folder / "adapter_model.bin").write_bytes(b"not looked at")
    assert "adapter_model.bin is not read" in imported(folder, base[0]).report.warnings[0]


def test_a_new_tensor_is_added_only_when_asked(tmp_path, base, imported, rng) -> None:
    adapter = {**lora(rng, "model.q"), "score.weight": draw(rng, 2, IN)}
    folder = write_adapter(tmp_path / "a", adapter)
    assert "score.weight" in str(refuse("convert.unmatched", tmp_path, folder, base[0]))
    found = imported(folder, base[0], add_new=True)
    assert np.array_equal(found.values("score.weight"), adapter["score.weight"])
    assert {t.name: t.change for t in found.report.tensors} == {"model.q.weight": "changed", "score.weight": "added"}


def test_a_new_tensor_without_elements_is_added(tmp_path, base, imported, rng) -> None:
    folder = write_adapter(tmp_path / "a", {"score.weight": draw(rng, 0, IN)})
    assert imported(folder, base[0], add_new=True).values("score.weight").shape == (0, IN)


def test_factors_for_a_tensor_that_the_base_lacks_are_refused_even_then(tmp_path, base, rng) -> None:
    folder = write_adapter(tmp_path / "a", lora(rng, "model.k"))
    refuse("convert.unmatched", tmp_path, folder, base[0], add_new=True)


Q_A, Q_B = "model.q.lora_A.weight", "model.q.lora_B.weight"


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("code", "keys", "config"),
    [
        ("convert.delta", {}, {}),
        ("convert.delta", {Q_A: ones(2, 4)}, {}),
        ("convert.delta", {Q_B: ones(6, 2)}, {}),
        ("convert.delta", {Q_A: ones(2, 4), Q_B: ones(6, 3)}, {}),
        ("convert.delta", {Q_A: ones(2, 4), Q_B: ones(6, 2)}, {"r": 3}),
        ("convert.delta", {Q_A: ones(2, 4), Q_B: ones(6, 2)}, {"rank_pattern": {"q": 1}}),
        ("convert.delta", {Q_A: ones(2, 5), Q_B: ones(6, 2)}, {}),
        ("convert.delta", {Q_A: ones(2, 4), Q_B: ones(7, 2)}, {}),
        ("convert.delta", {Q_A: ones(2, 4), Q_B: ("I32", np.ones((6, 2), "<u4"))}, {}),
        ("convert.nonfinite", {Q_A: ones(2, 4) * np.inf, Q_B: ones(6, 2)}, {}),
        ("convert.nonfinite", {Q_A: ones(2, 4), Q_B: ones(6, 2) * np.nan}, {}),
        ("unsupported.operation", {Q_A: ones(2, 4, 1, 1), Q_B: ones(6, 2, 1, 1)}, {}),
        ("unsupported.operation", {"model.q.lora_magnitude_vector": ones(6)}, {}),
        ("unsupported.operation", {"model.q.lora_A.default.weight": ones(2, 4)}, {}),
        ("unsupported.operation", {"model.q.lora_E": ones(2)}, {}),
        ("convert.delta", {"model.q.bias": ones(6), "model.q.base_layer.bias": ones(6)}, {}),
        ("convert.delta", {"model.q.bias": ones(5, 1)}, {}),
        ("convert.delta", {"model.q.weight": ones(6, 5)}, {}),
        ("convert.delta", {"model.q.bias": ("I32", np.ones(6, "<u4"))}, {}),
        ("convert.delta", {"model.q.lora_B.bias": ones(5)}, {}),
        ("convert.delta", {"model.embed_tokens.token_adapter.trainable_tokens_delta": ones(2, 4)}, {}),
        (
            "convert.delta",
            {"model.embed_tokens.token_adapter.trainable_tokens_delta": ones(2, 4)},
            {"trainable_token_indices": [1]},
        ),
        (
            "convert.delta",
            {"model.embed_tokens.token_adapter.trainable_tokens_delta": ones(1, 4)},
            {"trainable_token_indices": [9]},
        ),
        ("convert.unmatched", {"model.k.lora_A.weight": ones(2, 4), "model.k.lora_B.weight": ones(6, 2)}, {}),
        ("payload.overflow", {Q_A: ones(2, 4) * 1e30, Q_B: ones(6, 2) * 1e30}, {}),
        ("convert.delta", {Q_A: ones(2, 4), Q_B: ones(6, 2)}, {"alpha_pattern": {"q": 9e15}, "lora_alpha": 1e300}),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, base, code, keys, config) -> None:
    refuse(code, tmp_path, write_adapter(tmp_path / "a", keys, **config), base[0])


def test_a_key_of_another_tool_is_refused(tmp_path, base) -> None:
    folder = write_adapter(tmp_path / "a", {})
    (folder / "adapter_model.safetensors").unlink()
    write(folder / "adapter_model.safetensors", {"lora_unet_down.lora_up.weight": ones(2, 2)})
    assert "base_model.model." in str(refuse("convert.delta", tmp_path, folder, base[0]))


def test_lora_of_a_kernel_is_refused(tmp_path, rng) -> None:
    path = write(tmp_path / "base.safetensors", {"model.q.weight": draw(rng, OUT, IN, 1)})
    refuse("unsupported.operation", tmp_path, write_adapter(tmp_path / "a", lora(rng, "model.q")), path)


def test_a_base_that_cannot_be_added_to_is_refused(tmp_path, rng) -> None:
    path = write(tmp_path / "base.safetensors", {"model.q.weight": ("F8_E4M3", np.ones((OUT, IN), np.uint8))})
    refuse("unsupported.operation", tmp_path, write_adapter(tmp_path / "a", lora(rng, "model.q")), path)


def test_a_folder_without_weights_is_refused(tmp_path, base) -> None:
    folder = write_adapter(tmp_path / "a", {})
    (folder / "adapter_model.safetensors").unlink()
    refuse("checkpoint.missing", tmp_path, folder, base[0])
    shutil.rmtree(folder)
    (tmp_path / "file").write_text("x")
    refuse("checkpoint.missing", tmp_path, tmp_path / "file", base[0], kind="peft")


def test_other_kinds_are_refused_before_the_weights_are_opened(tmp_path, base) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    assert "'IA3'" in str(refuse("unsupported.operation", tmp_path, folder, base[0]))
