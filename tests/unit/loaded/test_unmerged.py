"""Packs beside the weights: close to the merged model, row by row, and nothing left out in silence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import refused

torch = pytest.importorskip("torch", reason="torch is an extra")

from toy_models import (  # noqa: E402
    VOCABULARY,
    WIDTH,
    Llama,
    bands,
    every_encoding,
    few,
    low_rank,
    nudged,
    pack_of,
    replaced_steps,
    snapshot,
    stored,
)

import skillpack_format as skp  # noqa: E402

AT = "model.layers.0."
HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
IDS = torch.arange(8).view(4, 2)
CARRY = skp.UnmergedOptions(others="carry")
DTYPES = [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)]


@dataclass(frozen=True)
class Made:
    low: list[Path]  # low-rank changes of linear layers, embedding and biases alone
    every: list[Path]  # every encoding there is


def make(folder: Path, dtype: Any) -> Made:
    checkpoint = stored(Llama(dtype=dtype))
    low, every = [], []
    for seed in (1, 2):
        names = [name for name, (what, _) in checkpoint.items() if len(what.shape) == 2]
        change: dict[str, Any] = {
            name: [low_rank(checkpoint[name][0], seed + k, scale=0.002)] for k, name in enumerate(names)
        }
        change[HEAD] = [low_rank(checkpoint[HEAD][0], seed), bands(checkpoint[HEAD][0], seed)]
        bias = f"{AT}self_attn.v_proj.bias"
        change[bias] = [nudged(*checkpoint[bias], seed)]
        low.append(pack_of(folder / f"low{seed}.skp", checkpoint, change)[0])
        change = {**every_encoding(checkpoint, 20 * seed), EMBEDDING: change[EMBEDDING]}
        del change["model.steps"]
        every.append(pack_of(folder / f"every{seed}.skp", checkpoint, change)[0])
    return Made(low, every)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Made]:
    return {dtype: make(tmp_path_factory.mktemp("packs"), dtype) for dtype, _ in DTYPES}


def merged_output(dtype: Any, path: Path | None, ids: torch.Tensor = IDS) -> torch.Tensor:
    model = Llama(dtype=dtype)
    if path is not None:
        skp.attach(model, path)
    return model(ids)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize(("dtype", "bound"), DTYPES, ids=str)
@pytest.mark.parametrize("sort", ["low", "every"])
def test_is_close_to_the_merged_model_and_far_from_the_base(
    dtype: Any, bound: float, sort: str, made: dict[Any, Made]
) -> None:
    model = Llama(dtype=dtype)
    before = snapshot(model)
    path = getattr(made[dtype], sort)[0]
    with skp.unmerged(model, {"one": path}, CARRY) as held:
        base = model(IDS)
        held.select("one")
        found = model(IDS)
        assert held.idle == []
    expected = merged_output(dtype, path)
    assert torch.equal(base, merged_output(dtype, None))
    assert distance(found, expected) < bound
    assert distance(base, expected) > 2 * bound
    assert snapshot(model) == before
    assert torch.equal(model(IDS), base)


@pytest.mark.parametrize(("dtype", "bound"), DTYPES, ids=str)
@pytest.mark.parametrize("sort", ["low", "every"])
def test_a_batch_mixes_packs_row_by_row(dtype: Any, bound: float, sort: str, made: dict[Any, Made]) -> None:
    model = Llama(dtype=dtype)
    one, two = getattr(made[dtype], sort)
    with skp.unmerged(model, {"one": one, "two": two}, CARRY) as held:
        held.select(["two", None, "one", "two"])
        found = model(IDS)
    for row, path in enumerate((two, None, one, two)):
        assert distance(found[row], merged_output(dtype, path, IDS[row : row + 1])[0]) < bound


def test_selections_follow_each_other(made: dict[Any, Made]) -> None:
    model = Llama()
    low = made[torch.bfloat16].low
    with skp.unmerged(model, dict(zip("ab", low, strict=True))) as held:
        base = model(IDS)
        held.select("a")
        alone = model(IDS)
        held.select(["a"] * 4)
        assert torch.equal(model(IDS), alone)
        held.select([None] * 4)
        assert torch.equal(model(IDS), base)
        held.select("b")
        assert not torch.equal(model(IDS), alone)
        held.select(None)
        assert torch.equal(model(IDS), base)


def test_a_tied_head_and_a_fused_projection(tmp_path: Path) -> None:
    model = Llama(tied=True, fused=True, dtype=torch.float32)
    own = Llama(dtype=torch.float32).model.layers[0].self_attn
    checkpoint = stored(Llama(dtype=torch.float32))
    qkv = model.model.layers[0].self_attn.qkv_proj
    for name in ("weight", "bias"):
        parts = [getattr(part, name) for part in (own.q_proj, own.k_proj, own.v_proj)]
        getattr(qkv, name).copy_(torch.cat(parts))
    del checkpoint[HEAD]
    v = f"{AT}self_attn.v_proj"
    changes = {
        EMBEDDING: [low_rank(checkpoint[EMBEDDING][0], 3)],
        f"{v}.weight": [low_rank(checkpoint[f"{v}.weight"][0], 4)],
        f"{v}.bias": [nudged(*checkpoint[f"{v}.bias"], 5)],
    }
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, changes)
    with skp.unmerged(model, {"one": path}) as held:
        held.select(["one", None, "one", None])
        found = model(IDS)
        assert held.idle == []
    base = model(IDS)
    skp.attach(model, path)
    merged = model(IDS)
    assert distance(found[::2], merged[::2]) < 1e-5
    assert torch.equal(found[1::2], base[1::2])
    assert distance(base, merged) > 1e-3


def test_a_bias_is_carried_as_a_step(made: dict[Any, Made]) -> None:
    model = Llama()
    with skp.unmerged(model, {"one": made[torch.bfloat16].low[0]}) as held:
        assert 0 < held.nbytes("one") < sum(each.nbytes for each in model.parameters())
        assert held.nbytes("other") == 0


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("change", ["norm", "ulp", "stack", "sparse"])
def test_refuses_what_is_no_low_rank_delta_unless_told_to_carry_it(change: str, tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    name = NORM if change == "norm" else HEAD
    made = {
        "norm": lambda: [nudged(*checkpoint[NORM], 1)],
        "ulp": lambda: [nudged(*checkpoint[HEAD], 1)],
        "stack": lambda: [low_rank(checkpoint[HEAD][0], 1), few(checkpoint[HEAD][0], "add")],
        "sparse": lambda: [few(checkpoint[HEAD][0], "add")],
    }[change]()
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {name: made})
    found = refused("unsupported.operation", skp.unmerged, model, {"one": path})
    assert found.where == f"tensor {name!r}"
    assert made[0].encoding in found.message
    assert not any(module._forward_hooks for module in model.modules())
    with skp.unmerged(model, {"one": path}, CARRY) as held:
        held.select("one")
        assert torch.equal(model(IDS), merged_output(torch.bfloat16, path))


def test_refuses_another_base(made: dict[Any, Made]) -> None:
    model = Llama()
    model.lm_head.weight.view(torch.int16)[0, 0] ^= 1
    assert (
        refused("base.content", skp.unmerged, model, {"one": made[torch.bfloat16].low[0]}).where == f"tensor {HEAD!r}"
    )


def test_refuses_weights_that_are_used_without_a_call(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(4, 1)}).requires_grad_(False)
    checkpoint = stored(model)
    name = "attention.out_proj.weight"
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {name: [low_rank(checkpoint[name][0], 1)]})
    for options in (skp.UnmergedOptions(), CARRY):
        assert refused("unsupported.operation", skp.unmerged, model, {"one": path}, options).where == f"tensor {name!r}"


def test_refuses_to_carry_a_tensor_of_a_module_that_has_others_within(tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {"model.steps": [replaced_steps(3)]})
    assert "attach" in refused("unsupported.operation", skp.unmerged, model, {"one": path}, CARRY).message


def test_weights_used_behind_the_modules_back_are_told_by_idle(tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {HEAD: [low_rank(checkpoint[HEAD][0], 1)]})
    with skp.unmerged(model, {"one": path}) as held:
        held.select("one")
        torch.nn.functional.linear(model.model(IDS), model.lm_head.weight)
        assert held.idle == [HEAD]
        model(IDS)
        assert held.idle == []


def test_refuses_rows_that_do_not_fit_the_input(made: dict[Any, Made]) -> None:
    model = Llama()
    with skp.unmerged(model, {"one": made[torch.bfloat16].low[0]}) as held:
        held.select(["one", None])
        found = refused("usage.argument", model, IDS)
        assert "2 rows were selected" in found.message
        assert "embed_tokens" in found.where


def test_refuses_names_and_options_it_does_not_know(made: dict[Any, Made]) -> None:
    model = Llama()
    path = made[torch.bfloat16].low[0]
    with skp.unmerged(model, {"one": path}) as held:
        refused("usage.argument", held.select, "two")
        refused("usage.argument", held.select, ["one", "two"])
    refused("usage.argument", skp.unmerged, model, {"one": path}, skp.UnmergedOptions(others="drop"))  # type: ignore[arg-type]


class Pair(torch.nn.Module):
    """A module of two inputs with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(WIDTH, dtype=torch.bfloat16), requires_grad=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * self.weight + y


def test_a_module_of_two_inputs_works_for_whole_batches_and_is_refused_for_rows(tmp_path: Path) -> None:
    model = Pair()
    checkpoint = stored(model)
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {"weight": [nudged(*checkpoint["weight"], 1)]})
    x = torch.ones(2, WIDTH, dtype=torch.bfloat16)
    with skp.unmerged(model, {"one": path}, CARRY) as held:
        held.select("one")
        whole = model(x, y=x)
        held.select(["one", None])
        refused("unsupported.operation", model, x, y=x)
    skp.attach(model, path)
    assert torch.equal(model(x, x), whole)


def test_the_toy_is_what_the_tests_think() -> None:
    assert Llama()(IDS).shape == (4, 2, VOCABULARY)
