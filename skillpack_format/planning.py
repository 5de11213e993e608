"""Which code every tensor gets, decided for the checkpoint as a whole. Pure: figures in, choices out.

A tensor has options, each with the bytes it costs and the damage it does. The fewest bytes for a damage, and
the least damage for a number of bytes, are both reached by giving every tensor the option with the least
``damage + price * bytes`` under one price (Everett's generalised Lagrange multipliers); what is asked for decides the
price. What that leaves of a budget is spent on single tensors.

Damage is in shares of what the fine-tune does, so that 1 is losing it all. Two things do damage (decision 0021):
noise of rounding, whose effects add up like squares; and components that are left out, whose effects point the same way
and add up like numbers. Shares are of what the matrices do: what a norm or a bias does comes on top (decision 0029), so
that no matrix's choice depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from skillpack_format.errors import error
from skillpack_format.recipes import Coding, Priced, Slices, Unchanged

NOISE: Final = 1e-3  # damage of noise as strong as the whole delta
MOST_PRICE: Final = 1e12  # of all the bytes of tuned; at it and at one over it, nothing but bytes or damage counts
IN_STEP: Final = 2.4  # times by which what a vector leaves out does more than its noise tells: all tokens feel the same
HALVINGS: Final = 80
SLACK: Final = 0.006  # of a budget that may stay unspent
HEADER_SHARE: Final = 0.35  # of a document's bytes left by compression; digests are most of them


@dataclass(frozen=True, slots=True)
class Quality:
    """A fixed price: what all the bytes of tuned would be worth in damage. Less is better and larger."""

    price: float


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many bytes for the whole pack; and, where ``max_error`` is given, no more than that error."""

    nbytes: int
    max_error: float | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A budget as a share of the bytes of tuned's tensors."""

    share: float
    max_error: float | None = None

    def of(self, tuned_bytes: int) -> Budget:
        return Budget(int(self.share * tuned_bytes), self.max_error)


@dataclass(frozen=True, slots=True)
class MaxError:
    """The squared error of all tensors together, as a share of the squared change, is at most ``error``."""

    error: float


@dataclass(frozen=True, slots=True)
class Energy:
    """Every tensor by itself keeps at least ``share`` of its change: its squared error is at most 1 - share."""

    share: float


Goal = Quality | Budget | Share | MaxError | Energy


@dataclass(frozen=True, slots=True)
class Option:
    """One way to code a tensor: what it adds to the pack, and the harm it does.

    ``header``: bytes in MANIFEST and STORAGE, before these are compressed together. ``segments``: stored bytes of every
    content. ``noise``: squared error of what is made; ``lost``: share of what the tensor does that is left out; both as
    shares of the tensor's own change. ``is_measured``: found by coding the tensor in this way, to the last byte;
    figures of others are near, and for the most part above, what that will give.
    """

    coding: Coding
    label: str
    header: int
    segments: tuple[int, ...]
    noise: float
    lost: float
    is_measured: bool = False

    @property
    def nbytes(self) -> int:
        return math.ceil(HEADER_SHARE * self.header) + sum(self.segments)

    def harm(self, rates: Priced) -> float:
        return rates.noise * self.noise + rates.lost * self.lost

    def cost(self, rates: Priced) -> float:
        return self.harm(rates) + rates.byte * self.nbytes


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of one tensor that differs. ``energy``: squared norm of its change; ``weight``: see sensitivity.

    The first option is the exact one. ``is_vector``: a norm or a bias.
    """

    name: str
    energy: float
    weight: float
    options: tuple[Option, ...] = ()
    is_vector: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What a tensor gets, and why, in words."""

    name: str
    option: Option
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A choice for every tensor. ``price``: in damage, of all the bytes of tuned. ``nbytes``: of the pack, about.

    ``error``: squared error of all tensors as a share of the squared change.
    """

    choices: tuple[Choice, ...]
    price: float
    nbytes: int
    error: float

    @property
    def codings(self) -> dict[str, Coding]:
        return {each.name: each.option.coding for each in self.choices}


SettledGoal = Quality | Budget | MaxError | Energy
Total = Callable[[Mapping[str, Option]], int]  # bytes of the whole file when these are chosen


def rates(surveys: Sequence[Survey], price: float, tuned_bytes: int) -> dict[str, Priced]:
    """What noise, loss and bytes of every tensor count for at ``price``: enough to choose its option by itself.

    Of the surveys, options are not needed.
    """
    table = _Table(surveys, tuned_bytes, _damage_rates)
    return {each.name: table.rates(each.name, price) for each in surveys}


def plan(surveys: Sequence[Survey], goal: SettledGoal, tuned_bytes: int, total: Total) -> Plan:
    """The choices that reach ``goal`` with the fewest bytes, or with the least damage.

    ``tuned_bytes``: of all tensors of tuned. ``total``: the file's bytes for given options.

    Raises:
        PlanError: plan.unreachable, with what can be reached.
    """
    table = _Table(surveys, tuned_bytes, _error_rates if isinstance(goal, MaxError) else _damage_rates)
    price = 0.0
    if isinstance(goal, Quality):
        price = goal.price
        chosen = table.cheapest(price)
    elif isinstance(goal, Budget):
        price, chosen = _within_budget(table, goal.nbytes, total)
    elif isinstance(goal, MaxError):
        price, chosen = _within_error(table, goal.error)
    else:
        chosen = table.smallest(1 - goal.share)
    found = table.error(chosen)
    choices = tuple(
        Choice(each.name, chosen[each.name], reason(each.options, chosen[each.name], goal)) for each in surveys
    )
    result = Plan(choices, price, total(chosen), found)
    require_bound(result, goal)
    return result


def require_bound(found: Plan, goal: SettledGoal) -> None:
    """Refuse a plan whose budget does not allow the error that was asked for beside it (plan.unreachable)."""
    if isinstance(goal, Budget) and goal.max_error is not None and found.error > goal.max_error:
        message = (
            f"an error of at most {goal.max_error:g} was asked for, in {goal.nbytes} bytes {found.error:.3g} can be had"
        )
        raise error("plan.unreachable", "plan", message)


@dataclass(frozen=True, slots=True)
class _Shares:
    """A tensor's share of the checkpoint: of all change, of the harm that noise does, of what the fine-tune does.

    ``bound``: what a unit of its noise counts for under a bound on the change; no less than ``change``.
    """

    change: float
    noise: float
    content: float
    bound: float


Rates = Callable[[_Shares, float, float], Priced]  # (shares, price of all the bytes of tuned, price of one)


def _damage_rates(shares: _Shares, price: float, byte: float) -> Priced:
    return Priced(NOISE * shares.noise, _slope(price) * shares.content, byte)


def _error_rates(shares: _Shares, price: float, byte: float) -> Priced:
    return Priced(shares.bound, 0.0, byte)


def _slope(price: float) -> float:
    """What leaving out one more share of everything does, where ``price`` is paid for bytes.

    Damage falls about as one over the bytes, with a product of some 2e-5 of tuned, so at a price p it is about the root
    of 2e-5 p. Half of it is the square of what is left out, and the slope of a square is twice its root.
    """
    return 0.095 * math.sqrt(math.sqrt(price))


class _Table:
    """Every tensor's options, weighed."""

    def __init__(self, surveys: Sequence[Survey], tuned_bytes: int, of_shares: Rates) -> None:
        self.surveys = surveys
        self._bytes = max(1, tuned_bytes)
        self._of_shares = of_shares
        self._shares = _shares_of(surveys)

    def rates(self, name: str, price: float) -> Priced:
        return self._of_shares(self._shares[name], price, price / self._bytes)

    def cheapest(self, price: float) -> dict[str, Option]:
        """Every tensor's option of least harm + price * bytes; the earlier one of equals."""
        found = {}
        for each in self.surveys:
            found[each.name] = min(each.options, key=partial(Option.cost, rates=self.rates(each.name, price)))
        return found

    def smallest(self, noise: float) -> dict[str, Option]:
        """Every tensor's smallest option of at most ``noise``, a vector's of less by its weight; the exact one is."""
        found = {}
        for each in self.surveys:
            most = noise / max(1.0, each.weight) if each.is_vector else noise
            found[each.name] = min((o for o in each.options if o.noise <= most), key=lambda o: o.nbytes)
        return found

    def upgrades(self, chosen: Mapping[str, Option], price: float) -> list[tuple[float, str, Option]]:
        """(harm saved a byte, name, option) of every option that costs more than the chosen one and does less harm."""
        found = []
        for each in self.surveys:
            present, rates = chosen[each.name], self.rates(each.name, price)
            for option in each.options:
                more, saved = option.nbytes - present.nbytes, present.harm(rates) - option.harm(rates)
                if more > 0 and saved > 0:
                    found.append((saved / more, each.name, option))
        return sorted(found, key=lambda each: (-each[0], each[1], each[2].nbytes))

    def error(self, chosen: Mapping[str, Option]) -> float:
        return sum(self._shares[name].change * option.noise for name, option in chosen.items())


def corrected(survey: Survey, expected: Option, fact: Option) -> Survey:
    """The survey after one of its options was tried: other codes of its kind are now expected to come out likewise."""
    ratio = sum(fact.segments) / max(1, sum(expected.segments))
    more = fact.noise - expected.noise

    def after(option: Option) -> Option:
        if option is expected:
            return fact
        if option.is_measured or type(option.coding) is not type(expected.coding):
            return option
        sizes = tuple(math.ceil(size * ratio) for size in option.segments)
        return replace(option, segments=sizes, noise=max(0.0, option.noise + more))

    return replace(survey, options=tuple(map(after, survey.options)))


def next_step(
    found: Plan, surveys: Sequence[Survey], budget: Budget, tuned_bytes: int
) -> tuple[str, Option, Option] | None:
    """The most useful change that the rest of a budget does not pay for: a tensor, its option, and the larger one.

    None where no more than SLACK of the budget is left, or no low rank code could be a little finer.
    """
    chosen = {each.name: each.option for each in found.choices}
    rest = budget.nbytes - found.nbytes
    if rest <= SLACK * budget.nbytes:
        return None
    for _, name, option in _Table(surveys, tuned_bytes, _damage_rates).upgrades(chosen, found.price):
        is_finer = isinstance(option.coding, Slices) and isinstance(chosen[name].coding, Slices)
        if is_finer and option.nbytes - chosen[name].nbytes > rest:
            return name, chosen[name], option
    return None


def _shares_of(surveys: Sequence[Survey]) -> dict[str, _Shares]:
    """By name. Noise and content are shares of those of the matrices, where any of them changes."""
    whole = sum(each.energy for each in surveys) or 1.0
    known = [each for each in surveys if each.energy and not each.is_vector] or surveys
    noise, content = (sum(map(part, known)) or 1.0 for part in (_noise, _content))
    found = {}
    for each in surveys:
        change, of_noise = each.energy / whole, _noise(each) / noise
        # a bound on the change alone would give up vectors, whose few entries do much
        bound = max(change, of_noise) if each.is_vector else change
        found[each.name] = _Shares(change, of_noise, _content(each) / content, bound)
    return found


def _noise(survey: Survey) -> float:
    return survey.weight * survey.energy


def _content(survey: Survey) -> float:
    return (IN_STEP if survey.is_vector else 1.0) * math.sqrt(survey.weight) * survey.energy


def _within_budget(table: _Table, nbytes: int, total: Total) -> tuple[float, dict[str, Option]]:
    """The lowest price whose choices fit, and what then still fits, the most useful first."""
    least = total(table.cheapest(MOST_PRICE))
    if least > nbytes:
        raise error("plan.unreachable", "plan", f"at most {nbytes} bytes were asked for, the smallest pack has {least}")
    price = _lowest(lambda price: total(table.cheapest(price)) <= nbytes)
    chosen = table.cheapest(price)
    while True:
        for _, name, option in table.upgrades(chosen, price):
            after = {**chosen, name: option}
            if total(after) <= nbytes:
                chosen = after
                break
        else:
            return price, chosen


def _within_error(table: _Table, bound: float) -> tuple[float, dict[str, Option]]:
    """The choices of fewest bytes whose squared error is at most ``bound`` of the squared change."""
    low = 1 / MOST_PRICE
    if table.error(table.cheapest(low)) > bound:  # rounding to bytes of nothing: what is exact has no error
        return low, table.smallest(0.0)
    price = 1 / _lowest(lambda inverse: table.error(table.cheapest(1 / inverse)) <= bound)
    return price, table.cheapest(price)


def _lowest(fits: Callable[[float], bool]) -> float:
    """About the lowest value that fits, all above it fitting too; MOST_PRICE does."""
    low, high = -math.log(MOST_PRICE), math.log(MOST_PRICE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(math.exp(middle)) else (middle, high)
    return math.exp(high)


def reason(options: Sequence[Option], option: Option, goal: SettledGoal) -> str:
    """Why a tensor gets this one of its options, in words."""
    if len(options) == 1:
        return "coded exactly: no lossy code applies or was asked for"
    if option.nbytes == min(each.nbytes for each in options if each.noise <= option.noise) and not option.noise:
        smaller = [each for each in options if each.nbytes < option.nbytes]
        return "exact, and nothing is smaller" if not smaller else "exact: what is smaller does too much harm"
    if isinstance(goal, Energy):
        return f"the smallest that keeps {goal.share:g} of the change"
    if isinstance(option.coding, Unchanged):
        return "left as in the base: every code costs more than it is worth"
    return "least harm for its bytes at the price of the plan"
