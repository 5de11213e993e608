"""Disk names to the memory of a model: found, told apart, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from builders import kind, refused

torch = pytest.importorskip("torch", reason="torch is an extra")

from toy_models import KV_ROWS, Q_ROWS, VOCABULARY, WIDE, WIDTH, Llama, kind_of, stored  # noqa: E402

from skillpack_format.digest import TensorKind  # noqa: E402
from skillpack_format.loaded.slots import Slot, find_slots, memory_of, require_apart, tensors_of  # noqa: E402

AT = "model.layers.0."
Q, K, V = (f"{AT}self_attn.{part}_proj.weight" for part in "qkv")
GATE, UP = (f"{AT}mlp.{part}_proj.weight" for part in ("gate", "up"))


def kinds(model: torch.nn.Module, *names: str) -> dict[str, TensorKind]:
    return {name: what for name, (what, _) in stored(model).items() if not names or name in names}


def homes(model: torch.nn.Module, wanted: dict[str, TensorKind], **names: Any) -> dict[str, str]:
    return {name: slot.home for name, slot in find_slots(model, wanted, names).items()}


def test_names_as_they_are() -> None:
    model = Llama()
    wanted = kinds(model)
    found = find_slots(model, wanted, {})
    assert homes(model, wanted) == {name: name for name in wanted}
    assert all(slot.memory == memory_of(tensors_of(model)[name]) for name, slot in found.items())


def test_a_prefix_the_model_has_more() -> None:
    wanted = kinds(Llama())
    wrapped = torch.nn.ModuleDict({"base_model": torch.nn.ModuleDict({"model": Llama()})})
    assert homes(wrapped, wanted) == {name: f"base_model.model.{name}" for name in wanted}


def test_a_prefix_the_model_has_less() -> None:
    model = Llama()
    wanted = {name: each for name, each in kinds(model).items() if name != "lm_head.weight"}
    assert homes(model.model, wanted) == {name: name.removeprefix("model.") for name in wanted}


def test_one_prefix_for_all_or_none() -> None:
    wanted = kinds(Llama())
    found = refused("base.missing", find_slots, Llama().model, wanted, {})
    assert found.where == "tensor 'lm_head.weight'"
    assert f"1 of {len(wanted)}" in found.message


def test_two_readings_are_refused_and_names_settles_it() -> None:
    pair = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    wanted = {"weight": kind("F32", 2, 2)}
    found = refused("usage.argument", find_slots, pair, wanted, {})
    assert "'a.weight'" in found.message
    assert "'b.weight'" in found.message
    assert homes(pair, wanted, weight="b.weight") == {"weight": "b.weight"}


def test_a_name_as_it_is_comes_before_any_prefix() -> None:
    model = torch.nn.Linear(2, 2)
    model.inner = torch.nn.Linear(2, 2)
    assert homes(model, {"weight": kind("F32", 2, 2)}) == {"weight": "weight"}


def test_nothing_wanted_nothing_found() -> None:
    assert find_slots(Llama(), {}, {}) == {}


def test_buffers_and_both_names_of_a_tie() -> None:
    model = Llama(tied=True)
    wanted = {"model.steps": kind("I64", 4)}
    wanted |= {name: kind("BF16", VOCABULARY, WIDTH) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    found = find_slots(model, wanted, {})
    assert found["lm_head.weight"].memory == found["model.embed_tokens.weight"].memory
    assert found["model.steps"].home == "model.steps"


# ----------------------------------------------------------------------------------------------------- fused


@pytest.mark.parametrize("asked", [(Q, K, V, GATE, UP), (Q, V), (Q,), (K, V), (V,), (GATE,), (UP,)])
def test_rows_of_fused_projections(asked: tuple[str, ...]) -> None:
    model = Llama(fused=True)
    found = find_slots(model, kinds(Llama(), *asked), {})
    firsts = {Q: 0, K: Q_ROWS, V: Q_ROWS + KV_ROWS, GATE: 0, UP: WIDE}
    assert {name: slot.first for name, slot in found.items()} == {name: firsts[name] for name in asked}
    for slot in found.values():
        assert torch.equal(slot.tensor, slot.whole[slot.first : slot.first + slot.tensor.shape[0]])


def test_the_middle_of_a_fused_projection_alone_cannot_be_told() -> None:
    model, wanted = Llama(fused=True), kinds(Llama(), K)
    assert "which rows" in refused("usage.argument", find_slots, model, wanted, {}).message
    home = f"{AT}self_attn.qkv_proj.weight"
    assert find_slots(model, wanted, {K: (home, Q_ROWS, Q_ROWS + KV_ROWS)})[K].first == Q_ROWS


def test_parts_that_do_not_fill_a_fused_projection() -> None:
    model, wanted = Llama(fused=True), kinds(Llama(), Q, K, V)
    refused("base.kind", find_slots, model, wanted | {V: kind("BF16", KV_ROWS - 1, WIDTH)}, {})
    refused("base.kind", find_slots, model, {Q: kind("BF16", 100, WIDTH)}, {})


def test_the_caller_lists_other_fused_projections() -> None:
    model = torch.nn.ModuleDict({"w12": torch.nn.Linear(3, 10, bias=False)})
    wanted = {"w1.weight": kind("F32", 4, 3), "w2.weight": kind("F32", 6, 3)}
    refused("base.missing", find_slots, model, wanted, {})
    assert find_slots(model, wanted, {}, {"w12": ("w1", "w2")})["w2.weight"].first == 4
    refused("base.missing", find_slots, Llama(fused=True), kinds(Llama(), Q), {}, {})


# ----------------------------------------------------------------------------------------------------- names


def test_the_caller_gives_a_view() -> None:
    experts = torch.nn.Parameter(torch.zeros(4, 6, 2), requires_grad=False)
    model = torch.nn.ParameterDict({"experts": experts})
    found = find_slots(model, {"experts.2.up": kind("F32", 2, 3)}, {"experts.2.up": experts[2, 3:].T})
    found["experts.2.up"].write(torch.arange(6, dtype=torch.float32).view(torch.int32))
    assert experts[2, 3:].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert found["experts.2.up"].read().view(torch.float32).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_refuses_a_view_of_memory_that_the_model_has_left() -> None:
    model = torch.nn.ParameterDict({"experts": torch.nn.Parameter(torch.zeros(4, 2), requires_grad=False)})
    view = model["experts"][:2]
    wanted = {"first": kind("F32", 2, 2)}
    find_slots(model, wanted, {"first": view})
    model["experts"].data = model["experts"].data.clone()
    assert "no longer" in refused("base.missing", find_slots, model, wanted, {"first": view}).message


@pytest.mark.parametrize(
    ("place", "code"),
    [("nowhere", "base.missing"), (("lm_head.weight", 0, 99), "base.kind"), (("lm_head.weight", 3, 2), "base.kind")],
)
def test_refuses_places_that_are_not_there(place: Any, code: str) -> None:
    assert refused(code, find_slots, Llama(), kinds(Llama(), Q), {Q: place}).where == f"tensor {Q!r}"


# ----------------------------------------------------------------------------------------- what cannot be changed


def test_refuses_another_dtype_or_shape_by_name() -> None:
    found = refused("base.kind", find_slots, Llama(dtype=torch.float16), kinds(Llama(), Q), {})
    assert found.where == f"tensor {Q!r}"
    assert "F16[12,12]" in found.message
    assert "BF16[12,12]" in found.message
    assert "not converted or quantised" in found.message
    refused("base.kind", find_slots, Llama(), {Q: kind("BF16", 12, 13)}, {})


def test_refuses_a_base_loaded_in_8_bits() -> None:
    model = Llama()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY, WIDTH, dtype=torch.int8), requires_grad=False)
    assert "I8" in refused("base.kind", find_slots, model, kinds(Llama(), "lm_head.weight"), {}).message


class Wrapped(torch.nn.Parameter):
    """What quantising libraries put in the place of a weight."""


def stand(tensor: torch.Tensor) -> torch.nn.Module:
    model = torch.nn.Module()
    model.weight = tensor if isinstance(tensor, torch.nn.Parameter) else torch.nn.Parameter(tensor, requires_grad=False)
    return model


def made_in_inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: Wrapped(torch.zeros(2, 2)), "as Wrapped"),
        (torch.nn.parameter.UninitializedParameter, "UninitializedParameter"),
        (lambda: torch.zeros(2, 2, device="meta"), "not loaded"),
        (lambda: torch.zeros(2, 2).to_sparse(), "sparse"),
        (lambda: torch.zeros(1, 2).expand(2, 2), "same memory"),
        (made_in_inference, "inference mode"),
    ],
)
def test_refuses_what_is_not_plain_memory(tensor: Any, words: str) -> None:
    found = refused("unsupported.operation", find_slots, stand(tensor()), {"weight": kind("F32", 2, 2)}, {})
    assert words in found.message
    assert found.where == "tensor 'weight'"


# ----------------------------------------------------------------------------------------------------- memory


def slot(tensor: torch.Tensor, name: str = "t") -> Slot:
    return Slot(name, "", 0, tensor, tensor)


def test_parts_of_one_memory_must_not_meet() -> None:
    whole = torch.zeros(4, 6)
    require_apart([slot(whole[:2]), slot(whole[2:]), slot(torch.zeros(3))])
    require_apart([slot(whole[:, :3]), slot(whole[:, 3:])])
    require_apart([slot(whole[:0]), slot(whole)])
    for one, other in ((whole[:3], whole[2:]), (whole[:, :4], whole[:, 3:]), (whole, whole[1:2]), (whole, whole)):
        refused("unsupported.operation", require_apart, [slot(one), slot(other, "other")])


def test_reading_and_writing_are_each_others_inverse_in_any_layout() -> None:
    for tensor in (
        torch.rand(3, 4),
        torch.rand(4, 3).T,
        torch.rand(3, 8)[:, ::2],
        torch.rand(()),
        torch.ones(2) > 0,
    ):
        mine = slot(tensor)
        bits = mine.read().clone()
        mine.write(torch.zeros_like(bits))
        assert not tensor.any()
        mine.write(bits)
        assert torch.equal(mine.read(), bits)


def test_kinds_are_those_of_safetensors() -> None:
    assert str(kind_of(torch.zeros(2, 3, dtype=torch.bfloat16))) == "BF16[2,3]"
