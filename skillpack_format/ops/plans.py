"""The plan of a conversion: every tensor surveyed, one choice for each (spec says nothing of this: it is the writer's).

Two passes over the tensors: this one finds out what each could cost and keep, ``conversion`` then carries out what was
chosen. Nothing but figures is kept in between, so memory does not grow with the number of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from skillpack_format.coding import Job
from skillpack_format.errors import error
from skillpack_format.planning import (
    Budget,
    Energy,
    Goal,
    MaxError,
    Option,
    Plan,
    Quality,
    SettledGoal,
    Share,
    Survey,
    next_step,
    plan,
)
from skillpack_format.progress import Progress, in_order
from skillpack_format.recipes import Planned, Recipe
from skillpack_format.surveying import between, survey

HEADROOM: Final = 8  # a tensor may take so many times its share of a budget
REFINEMENTS: Final = 12  # times that a tensor is looked at again to spend it


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a conversion would do. ``nbytes``: the most the pack would have."""

    plan: Plan
    recipe: str
    classes: Mapping[str, str]
    elements: Mapping[str, int]
    tuned_bytes: int

    def to_plain(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "bytes": {"pack": self.plan.nbytes, "tuned": self.tuned_bytes},
            "price": self.plan.price,
            "error": self.plan.error,
            "tensors": [
                {
                    "name": each.name,
                    "class": self.classes[each.name],
                    "elements": self.elements[each.name],
                    "coding": each.option.label,
                    "bytes": each.option.nbytes,
                    "error": each.option.noise,
                    "reason": each.reason,
                }
                for each in self.plan.choices
            ],
        }


def goal_of(recipe: Recipe, goal: Goal | None, tuned_bytes: int) -> SettledGoal:
    """What is asked for, checked; a goal needs a recipe that leaves something to be planned (usage.argument)."""
    is_planned = any(isinstance(each, Planned) for each in recipe.treatments.values())
    if goal is not None and not is_planned:
        raise error("usage.argument", "", f"recipe {recipe.name} codes every tensor in one way: no budget, no bound")
    if isinstance(goal, Share):
        goal = goal.of(tuned_bytes)
    if isinstance(goal, Budget) and goal.nbytes < 1:
        raise error("usage.argument", "", f"a budget of {goal.nbytes} bytes, it must be at least 1")
    if isinstance(goal, MaxError) and not 0 <= goal.error < math.inf:
        raise error("usage.argument", "", f"an error of at most {goal.error:g}, it must be 0 or more")
    if isinstance(goal, Energy) and not 0 <= goal.share <= 1:
        raise error("usage.argument", "", f"an energy of at least {goal.share:g}, it must be from 0 to 1")
    return goal or Quality(recipe.price or 1.0)


def make_plan(
    jobs: Callable[[str], Job],
    names: Sequence[str],
    goal: SettledGoal,
    *,
    sizes: Mapping[str, int],
    fixed: int,
    threads: int,
    weights: Mapping[str, float],
    progress: Progress,
) -> Plan:
    """Survey the tensors ``names`` and choose. ``sizes``: their bytes in tuned; ``fixed``: bytes of the pack without
    them. ``weights``: measured sensitivities, by name."""
    tuned_bytes = sum(sizes.values())
    is_bound = isinstance(goal, MaxError | Energy) or (isinstance(goal, Budget) and goal.max_error is not None)

    def work(name: str) -> Survey:
        # nothing is looked for that no budget would buy
        most = HEADROOM * goal.nbytes * sizes[name] / max(1, tuned_bytes) if isinstance(goal, Budget) else float("inf")
        return survey(jobs(name), most, measured=is_bound, weight=weights.get(name))

    surveys: dict[str, Survey] = {}
    done = 0
    for name, each in in_order(work, names, threads):
        surveys[name] = each
        done += sizes[name]
        progress("planning", done, tuned_bytes)

    def total(chosen: Mapping[str, Option]) -> int:
        return fixed + sum(option.nbytes for option in chosen.values())

    found = plan(list(surveys.values()), goal, tuned_bytes, total)
    for _ in range(REFINEMENTS):
        step = None if not isinstance(goal, Budget) else next_step(found, list(surveys.values()), goal, tuned_bytes)
        if step is None:
            break
        name, present, finer = step
        more = between(jobs(name), present, finer, measured=is_bound)
        surveys[name] = replace(surveys[name], options=(*surveys[name].options, *more))
        found = plan(list(surveys.values()), goal, tuned_bytes, total)
    return found
