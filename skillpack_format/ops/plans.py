"""The plan of a conversion: what every tensor gets (spec says nothing of this: it is the writer's).

At a known price every tensor can choose for itself once the size of all changes is known. A budget or a bound needs a
look at all options of all tensors first, and the price follows from them; what it chooses is then coded, and chosen
anew while the facts are not those that were expected. Figures and entries are kept in between, and no chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from skillpack_format.coding import Coded, Job
from skillpack_format.errors import error
from skillpack_format.planning import (
    Budget,
    Choice,
    Energy,
    Goal,
    MaxError,
    Option,
    Plan,
    Quality,
    SettledGoal,
    Share,
    Survey,
    corrected,
    next_step,
    plan,
    rates,
    reason,
    require_bound,
)
from skillpack_format.progress import Done, Progress, in_order
from skillpack_format.recipes import Coding, Planned, Recipe, Treatment
from skillpack_format.surveying import between, choose, figures, measured, survey

HEADROOM: Final = 8  # a tensor may take so many times its share of a budget
ROUNDS: Final = 16  # of choosing and trying; after them only what was tried is chosen


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a conversion would do."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """The tensors that get components, and what can be done with them.

    ``job``: one with its bytes. ``code``: the same, coded to the end, or found where that is kept. ``sizes``: their
    bytes in tuned. ``pack_bytes``: of the whole file, when they are so coded. ``weights``: measured sensitivities, by
    name.
    """

    names: Sequence[str]
    job: Callable[[str], Job]
    code: Callable[[str, Coding], Coded]
    sizes: Mapping[str, int]
    pack_bytes: Callable[[Sequence[Coded]], int]
    weights: Mapping[str, float]
    threads: int
    progress: Progress

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def each(self, what: str, work: Callable[[str], Done], names: Sequence[str]) -> Iterator[tuple[str, Done]]:
        """``work`` on each of ``names``, in their order, with progress."""
        done, whole = 0, sum(self.sizes[name] for name in names)
        for name, found in in_order(work, names, self.threads):
            yield name, found
            done += self.sizes[name]
            self.progress(what, done, whole)


def at_price(tensors: Tensors, goal: Quality) -> dict[str, Treatment]:
    """What every tensor chooses by; one that does not change in numbers is not among them, and stays exact."""
    return _at_price(tensors, _figures(tensors), goal)


def plan_at_price(tensors: Tensors, goal: Quality) -> Plan:
    """What they then choose."""
    surveys = _figures(tensors)
    treatments = _at_price(tensors, surveys, goal)

    def choice(name: str) -> tuple[Choice, Coded]:
        job = tensors.job(name)
        found = choose(replace(job, treatment=treatments.get(name, job.treatment)))
        return Choice(name, found.option, reason(found.options, found.option, goal)), _without_chunks(found.coded)

    made = [found for _, found in tensors.each("coding", choice, tensors.names)]
    choices, coded = [each for each, _ in made], [each for _, each in made]
    energy = sum(each.energy for each in surveys) or 1.0
    error = sum(each.energy * choice.option.noise for each, choice in zip(surveys, choices, strict=True)) / energy
    return Plan(tuple(choices), goal.price, tensors.pack_bytes(coded), error)


def _figures(tensors: Tensors) -> list[Survey]:
    def look(name: str) -> Survey:
        return figures(tensors.job(name), tensors.weights.get(name))

    return [found for _, found in tensors.each("comparing", look, tensors.names)]


def _at_price(tensors: Tensors, surveys: Sequence[Survey], goal: Quality) -> dict[str, Treatment]:
    priced = rates(surveys, goal.price, tensors.nbytes)
    return {each.name: priced[each.name] for each in surveys if each.energy}


def make_plan(tensors: Tensors, goal: Budget | MaxError | Energy) -> Plan:
    """Survey the tensors and choose. Every option of the plan is measured."""
    surveys: dict[str, Survey] = {}

    def look(name: str) -> Survey:
        # nothing is looked for that no budget would buy
        most = float("inf")
        if isinstance(goal, Budget):
            most = HEADROOM * goal.nbytes * tensors.sizes[name] / max(1, tensors.nbytes)
        return survey(tensors.job(name), most, weight=tensors.weights.get(name))

    for name, found in tensors.each("planning", look, tensors.names):
        surveys[name] = found
    settled = _settle(tensors, surveys, replace(goal, max_error=None) if isinstance(goal, Budget) else goal)
    require_bound(settled, goal)
    return settled


def _settle(tensors: Tensors, surveys: dict[str, Survey], goal: Budget | MaxError | Energy) -> Plan:
    """Choose, try what was chosen, and choose again by what came out, until all that is chosen has been tried."""
    tried: dict[tuple[str, Coding], Coded] = {}
    rest = tensors.pack_bytes(())  # and how far options' sizes are from the file's, once that is known

    def total(chosen: Mapping[str, Option]) -> int:
        return rest + sum(option.nbytes for option in chosen.values())

    best: Plan | None = None
    turn = 0
    while True:
        turn += 1
        given = list(surveys.values()) if turn <= ROUNDS else _facts(surveys.values(), goal)
        chosen = plan(given, goal, tensors.nbytes, total)
        expected = {each.name: each.option for each in chosen.choices if not each.option.is_measured}
        for name, done in tensors.each("trying", partial(_code, tensors, expected), list(expected)):
            option = expected[name]
            tried[name, option.coding] = done
            surveys[name] = corrected(surveys[name], option, measured(option.coding, done, option.lost))
        if expected:
            continue
        nbytes = tensors.pack_bytes([tried[each.name, each.option.coding] for each in chosen.choices])
        rest += nbytes - chosen.nbytes
        chosen = replace(chosen, nbytes=nbytes)
        if not isinstance(goal, Budget):
            return chosen
        if nbytes > goal.nbytes:  # so there is more to the rest than it seemed
            continue
        best = chosen if best is None or nbytes > best.nbytes else best
        step = next_step(chosen, given, goal, tensors.nbytes) if turn <= ROUNDS else None
        if step is None:
            return best
        name, present, finer = step
        more = between(tensors.job(name), present, finer)
        surveys[name] = replace(surveys[name], options=(*surveys[name].options, *more))


def _facts(surveys: Iterable[Survey], goal: SettledGoal) -> list[Survey]:
    """The options that are certain to give what is asked for: measured ones, and for a bound the exact one."""

    def is_certain(option: Option) -> bool:
        return option.is_measured or (not option.noise and not isinstance(goal, Budget))

    return [replace(each, options=tuple(filter(is_certain, each.options))) for each in surveys]


def _code(tensors: Tensors, expected: Mapping[str, Option], name: str) -> Coded:
    return _without_chunks(tensors.code(name, expected[name].coding))


def _without_chunks(coded: Coded) -> Coded:
    return replace(coded, contents=tuple(replace(each, chunks=()) for each in coded.contents))
