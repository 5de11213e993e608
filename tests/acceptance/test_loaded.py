"""Packs made by ``convert`` on models that transformers loads: what ``attach`` makes is what ``apply`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import refused

torch = pytest.importorskip("torch", reason="torch is an extra")
transformers = pytest.importorskip("transformers", reason="transformers is an extra")

import skillpack_format as skp  # noqa: E402
from skillpack_format import recipes  # noqa: E402

IDS = torch.arange(12).view(2, 6)


def configuration(*, tied: bool) -> Any:
    return transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
    )


def save(folder: Path, *, tied: bool) -> tuple[Path, Path]:
    """A base and a fine-tune of it in bfloat16, as transformers writes them."""
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(configuration(tied=tied)).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                change = torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
                weight.add_(0.002 * change + 0.0001 * torch.randn(weight.shape))
            else:
                weight.add_(0.01)
    model.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


def load(folder: Path, kind: Any = transformers.LlamaForCausalLM, **more: Any) -> Any:
    return kind.from_pretrained(folder, **{"dtype": torch.bfloat16, **more}).eval()


def bits(model: Any) -> dict[str, bytes]:
    return {name: value.view(torch.int16).numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base, packs of three recipes, and what ``apply`` makes of each."""
    folder = tmp_path_factory.mktemp("llama")
    base, tuned = save(folder, tied=request.param)
    found = {"base": base}
    chosen = {"lossless": recipes.LOSSLESS, "standard": recipes.STANDARD, "graftllm": recipes.graftllm()}
    for name, recipe in chosen.items():
        found[name] = folder / f"{name}.skp"
        skp.convert(base, tuned, found[name], skp.ConvertOptions(recipe=recipe))
        found[f"{name} applied"] = folder / name
        skp.apply(base, [found[name]], folder / name)
    return found


@pytest.mark.parametrize("recipe", ["lossless", "standard", "graftllm"])
def test_attach_is_apply_and_detach_is_the_base(recipe: str, made: dict[str, Path]) -> None:
    model, applied = load(made["base"]), load(made[f"{recipe} applied"])
    before = bits(model)
    skp.attach(model, made[recipe])
    assert bits(model) == bits(applied)
    assert torch.equal(model(IDS).logits, applied(IDS).logits)
    skp.switch(model, made["standard"])
    assert bits(model) == bits(load(made["standard applied"]))
    skp.detach(model)
    assert bits(model) == before


def test_a_wrapped_model_is_found_by_its_prefix(made: dict[str, Path]) -> None:
    wrapped = torch.nn.ModuleDict({"base_model": torch.nn.ModuleDict({"model": load(made["base"])})})
    skp.attach(wrapped, made["lossless"])
    assert bits(wrapped.base_model.model) == bits(load(made["lossless applied"]))
    skp.detach(wrapped)


def test_refuses_a_base_loaded_in_another_dtype(made: dict[str, Path]) -> None:
    model = load(made["base"], dtype=torch.float32)
    before = [weight.clone() for weight in model.parameters()]
    found = refused("base.kind", skp.attach, model, made["standard"])
    assert "F32" in found.message
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_refuses_the_tuned_model_as_a_base(made: dict[str, Path]) -> None:
    model = load(made["lossless applied"])
    assert "not the base of this pack" in refused("base.content", skp.attach, model, made["standard"]).message


def test_unmerged_is_close_to_applied(made: dict[str, Path]) -> None:
    model, applied = load(made["base"], dtype=torch.bfloat16), load(made["standard applied"])
    base, merged = model(IDS).logits.float(), applied(IDS).logits.float()
    with skp.unmerged(model, {"one": made["standard"]}, skp.UnmergedOptions(others="carry")) as held:
        held.select(["one", None])
        found = model(IDS).logits.float()
        assert held.idle == []
    assert (found[0] - merged[0]).norm() < 0.05 * merged[0].norm()
    assert (base[0] - merged[0]).norm() > 0.1 * merged[0].norm()
    assert (found[1] - base[1]).norm() < 0.02 * base[1].norm()
