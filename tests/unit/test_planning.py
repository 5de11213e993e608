"""The plan: one price for the whole checkpoint; budgets and bounds are met, or said to be out of reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from builders import refused
from hypothesis import given
from hypothesis import strategies as st

from skillpack_format.planning import (
    IN_STEP,
    NOISE,
    Budget,
    Energy,
    MaxError,
    Option,
    Quality,
    Share,
    Survey,
    corrected,
    next_step,
    plan,
    rates,
)
from skillpack_format.recipes import Lossless, Slices, Unchanged

FIXED = 1000


def total(chosen: Mapping[str, Option]) -> int:
    return FIXED + sum(each.nbytes for each in chosen.values())


def exact(nbytes: int) -> Option:
    return Option(Lossless(), "exact", 0, (nbytes,), 0.0, 0.0)


def coarse(step: float, nbytes: int, noise: float) -> Option:
    return Option(Slices(step, 0.5), f"step {step}", 0, (nbytes,), noise, 0.3 * noise**2)


def left() -> Option:
    return Option(Unchanged(), "as in the base", 0, (), 1.0, 1.0)


def matrix(name: str, energy: float = 1.0, weight: float = 1.0, scale: int = 1) -> Survey:
    rungs = [coarse(4.0, 640 * scale, 0.6), coarse(2.0, 1920 * scale, 0.3), coarse(1.0, 6400 * scale, 0.05)]
    return Survey(name, energy, weight, (exact(64000 * scale), left(), *rungs))


MODEL = [matrix("a"), matrix("b", energy=4.0), Survey("norm", 0.0, 0.0, (exact(128),))]


def labels(goal: Any) -> dict[str, str]:
    return {each.name: each.option.label for each in plan(MODEL, goal, 200_000, total).choices}


def test_a_free_byte_buys_the_exact_code_and_a_dear_one_buys_nothing() -> None:
    assert set(labels(Quality(0.0)).values()) == {"exact"}
    assert labels(Quality(1e9)) == {"a": "as in the base", "b": "as in the base", "norm": "exact"}


def test_the_tensor_that_changed_more_gets_the_finer_code() -> None:
    found = labels(Budget(4000))
    assert (found["a"], found["b"]) == ("step 4.0", "step 2.0")


def test_the_tensor_that_matters_more_gets_the_finer_code() -> None:
    model = [matrix("a", weight=50.0), matrix("b")]
    found = {each.name: each.option.label for each in plan(model, Budget(4000), 200_000, total).choices}
    assert (found["a"], found["b"]) == ("step 2.0", "step 4.0")


@given(st.integers(FIXED + 128, 200_000))
def test_a_budget_is_never_exceeded_and_nothing_that_fits_is_left(nbytes: int) -> None:
    found = plan(MODEL, Budget(nbytes), 200_000, total)
    assert found.nbytes == total({each.name: each.option for each in found.choices}) <= nbytes
    step = next_step(found, MODEL, Budget(nbytes), 200_000)
    assert step is None or step[2].nbytes - step[1].nbytes > nbytes - found.nbytes


def test_a_budget_below_the_smallest_pack_says_what_can_be_had() -> None:
    found = refused("plan.unreachable", plan, MODEL, Budget(FIXED + 127), 200_000, total)
    assert str(FIXED + 128) in str(found)
    assert found.exit_status == 7


def test_a_budget_with_a_bound_that_it_does_not_allow_says_what_can_be_had() -> None:
    found = refused("plan.unreachable", plan, MODEL, Budget(4000, max_error=0.01), 200_000, total)
    assert "0.36" in str(found)  # (0.6 * 1 + 0.3 * 4) / 5
    assert plan(MODEL, Budget(4000, max_error=0.37), 200_000, total).nbytes <= 4000


@given(st.floats(0, 1))
def test_a_bound_on_the_error_of_all_is_kept(bound: float) -> None:
    assert plan(MODEL, MaxError(bound), 200_000, total).error <= bound


def test_a_looser_bound_costs_no_more() -> None:
    sizes = [plan(MODEL, MaxError(bound), 200_000, total).nbytes for bound in (0.0, 0.05, 0.1, 0.3, 0.6, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3


@pytest.mark.parametrize(
    ("share", "label"), [(1.0, "exact"), (0.95, "step 1.0"), (0.5, "step 2.0"), (0.0, "as in the base")]
)
def test_every_tensor_by_itself_keeps_its_energy(share: float, label: str) -> None:
    assert labels(Energy(share)) == {"a": label, "b": label, "norm": "exact"}


def test_a_share_is_a_budget_of_the_bytes_of_tuned() -> None:
    assert Share(0.05, 0.2).of(1000) == Budget(50, 0.2)


def test_every_choice_says_why() -> None:
    reasons = {each.name: each.reason for each in plan(MODEL, Quality(1e9), 200_000, total).choices}
    assert reasons["norm"].startswith("coded exactly")
    assert reasons["a"].startswith("left as in the base")


def test_the_order_of_the_surveys_changes_nothing() -> None:
    for goal in (Quality(0.1), Budget(9000), MaxError(0.2)):
        one = {each.name: each.option for each in plan(MODEL, goal, 200_000, total).choices}
        other = {each.name: each.option for each in plan(MODEL[::-1], goal, 200_000, total).choices}
        assert one == other


def test_a_checkpoint_without_planned_tensors_has_a_plan() -> None:
    assert plan([], Quality(1.0), 0, total).nbytes == FIXED


@pytest.mark.parametrize("price", [0.0, 1e-4, 0.01, 0.1, 1.0, 100.0])
def test_at_a_price_every_tensor_chooses_by_itself_what_the_plan_gives_it(price: float) -> None:
    known = [Survey(each.name, each.energy, each.weight) for each in MODEL]
    found = rates(known, price, 200_000)
    alone = {each.name: min(each.options, key=partial(Option.cost, rates=found[each.name])).label for each in MODEL}
    assert alone == labels(Quality(price))


def test_what_one_option_turned_out_to_be_is_expected_of_others_of_its_kind() -> None:
    before = matrix("a")
    expected, other = before.options[2], before.options[3]
    fact = Option(expected.coding, "measured", 7, (600,), 0.65, expected.lost, is_measured=True)
    after = corrected(before, expected, fact)
    assert after.options[:2] == before.options[:2]
    assert after.options[2] is fact
    assert after.options[3].segments == (1800,)
    assert after.options[3].noise == pytest.approx(other.noise + 0.05)
    again = corrected(after, after.options[3], Option(other.coding, "", 7, (1,), 0.0, 0.0, is_measured=True))
    assert again.options[2] is fact


def norm(name: str = "norm.weight", energy: float = 0.01, weight: float = 50.0) -> Survey:
    return replace(matrix(name, energy, weight), is_vector=True)


@pytest.mark.parametrize("price", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("energy", [1e-6, 0.01, 1e3])
def test_no_matrix_gets_another_code_because_of_a_norm(price: float, energy: float) -> None:
    found = plan([*MODEL, norm(energy=energy)], Quality(price), 200_000, total).choices
    assert {each.name: each.option.label for each in found if each.name != "norm.weight"} == labels(Quality(price))


def test_a_norm_that_moves_far_is_exact() -> None:
    found = {each.name: each.option.label for each in plan([*MODEL, norm(energy=1e9)], Quality(1.0), 1, total).choices}
    assert found["norm.weight"] == "exact"


def test_a_norm_gets_the_finer_code_of_two_tensors_that_move_as_far() -> None:
    for goal in (Quality(5.0), MaxError(0.3), Energy(0.5)):
        found = plan([matrix("a"), norm(energy=1.0)], goal, 200_000, total).choices
        assert found[0].option.noise > found[1].option.noise, goal


def test_what_a_norm_leaves_out_counts_for_more_than_what_a_matrix_does() -> None:
    found = rates([matrix("a"), norm("b", energy=1.0, weight=1.0)], 1.0, 200_000)
    assert found["b"].noise == found["a"].noise
    assert found["b"].lost == pytest.approx(IN_STEP * found["a"].lost)


def test_where_only_vectors_change_they_are_all_there_is() -> None:
    model = [norm("a"), norm("b", energy=0.04)]
    found = rates(model, 1.0, 200_000)
    assert (found["a"].noise, found["b"].noise) == pytest.approx((0.2 * NOISE, 0.8 * NOISE))
    assert {each.option.label for each in plan(model, Quality(1e9), 200_000, total).choices} == {"as in the base"}
