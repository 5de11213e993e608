"""Recipes: which treatment each module class gets."""

from __future__ import annotations

import math

import pytest
from builders import refused

from skillpack_format.manifest import CLASSES
from skillpack_format.recipes import RECIPES, Bands, Lossless, Planned, Prune, Recipe, Slices, graftllm, sliced


def test_there_are_four_recipes_called_by_their_names() -> None:
    assert list(RECIPES) == ["standard", "small", "graftllm", "lossless"]
    assert all(recipe.name == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", RECIPES)
def test_routers_and_the_rest_stay_exact(name: str) -> None:
    assert {RECIPES[name].treatment(each) for each in ("router", "other")} == {Lossless()}


@pytest.mark.parametrize("name", ["graftllm", "lossless"])
def test_norms_and_biases_stay_exact_where_nothing_is_planned(name: str) -> None:
    assert {RECIPES[name].treatment(each) for each in ("norm", "bias")} == {Lossless()}


@pytest.mark.parametrize("name", RECIPES)
def test_only_known_classes_are_treated(name: str) -> None:
    assert set(RECIPES[name].treatments) <= set(CLASSES)


def test_the_lossless_recipe_keeps_everything() -> None:
    assert {RECIPES["lossless"].treatment(each) for each in CLASSES} == {Lossless()}


@pytest.mark.parametrize("name", ["standard", "small"])
def test_matrices_norms_and_biases_are_planned(name: str) -> None:
    planned = ("attention", "bias", "embedding", "expert", "head", "mlp", "norm")
    found = {RECIPES[name].treatment(each) for each in planned}
    assert found == {Planned()}


def test_a_byte_is_dearer_in_small_than_in_standard() -> None:
    assert 0 < (RECIPES["standard"].price or 0) < (RECIPES["small"].price or 0)


def test_graftllm_prunes_embeddings_and_bands_the_rest() -> None:
    found = graftllm(keep=0.1, rank=0.5, energy=0.8, group=64)
    assert found.treatment("embedding") == found.treatment("head") == Prune(0.1)
    attention, mlp = found.treatment("attention"), found.treatment("mlp")
    assert isinstance(attention, Bands)
    assert isinstance(mlp, Bands)
    assert (attention.rank, attention.energy, mlp.rank, mlp.energy) == (0.5, None, None, 0.8)
    assert sum(share for _, share in attention.schedule) == pytest.approx(1)


@pytest.mark.parametrize("step", [1e-9, 1.0, 100.0])
@pytest.mark.parametrize("cosine", [0.0, 0.999])
def test_takes_steps_and_cosines_in_range(step: float, cosine: float) -> None:
    assert sliced("mine", step, cosine).treatment("mlp") == Slices(step, cosine)


@pytest.mark.parametrize(
    ("step", "cosine"), [(0, 0.5), (-1, 0.5), (math.nan, 0.5), (math.inf, 0.5), (1, -0.1), (1, 1.0), (1, math.nan)]
)
def test_refuses_steps_and_cosines_out_of_range(step: float, cosine: float) -> None:
    refused("usage.argument", sliced, "mine", step, cosine)


@pytest.mark.parametrize("name", ["keep", "rank", "energy"])
@pytest.mark.parametrize("share", [0, -0.1, 1.0001, math.nan, math.inf])
def test_refuses_shares_out_of_range(name: str, share: float) -> None:
    assert refused("usage.argument", graftllm, **{name: share}).message.startswith(name)


@pytest.mark.parametrize("name", ["keep", "rank", "energy"])
def test_a_share_may_be_all(name: str) -> None:
    assert isinstance(graftllm(**{name: 1.0}), Recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": ((0, 1.0),)},
        {"schedule": ((9, 1.0),)},
        {"schedule": ((8, 0.0), (4, 1.0))},
        {"schedule": ((8, 1.5),)},
        {"schedule": ((8, 0.5),)},
        {"schedule": ((8, 0.5), (4, 0.6))},
        {"schedule": ()},
        {"group": 0},
        {"group": (1 << 32) + 1},
    ],
)
def test_refuses_a_schedule_or_group_that_makes_no_sense(changes: dict[str, object]) -> None:
    refused("usage.argument", graftllm, **changes)
