"""From measured points to bytes at a given function error. Pure functions, tested in tests/unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

TARGETS: Final = (0.01, 0.003, 0.001)


@dataclass(frozen=True, slots=True)
class Point:
    """One file: what made it, its bytes, the function error of what it rebuilds."""

    label: str
    nbytes: int
    error: float


@dataclass(frozen=True, slots=True)
class Reach:
    """Bytes at which a method has an error. ``is_bound``: no point has a larger one, so fewer bytes might do."""

    nbytes: float
    is_bound: bool


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both bytes and error, ascending in bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.nbytes, each.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    return best


def reach(points: Iterable[Point], error: float) -> Reach | None:
    """Bytes at ``error``, log-log between the two points around it; None where no point has so small an error."""
    best = front(points)
    index = next((i for i, point in enumerate(best) if point.error <= error), None)
    if index is None:
        return None
    after = best[index]
    if index == 0:
        return Reach(after.nbytes, after.error < error)
    before = best[index - 1]
    if after.error <= 0 or after.error == error:  # an exact point has no logarithm
        return Reach(after.nbytes, is_bound=False)
    share = math.log(before.error / error) / math.log(before.error / after.error)
    return Reach(before.nbytes * (after.nbytes / before.nbytes) ** share, is_bound=False)


def best_of(curves: Sequence[tuple[str, Sequence[Point]]], error: float) -> tuple[str, Reach] | None:
    """The method that needs fewest bytes at ``error``."""
    found = [(name, reached) for name, points in curves if (reached := reach(points, error))]
    return min(found, key=lambda item: item[1].nbytes, default=None)
