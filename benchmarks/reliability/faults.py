"""Every call of ``convert`` and ``apply`` goes wrong in every way it can, one at a time, and the command runs again.

After each fault the output is completely old or completely new, the exit status is a documented one, no traceback is
shown, and no input was touched. The command again, without a fault, gives what an undisturbed run gives, byte by byte.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.reliability.scenes import DOCUMENTED, Ended, Scene, Stage, Tree, leftovers, tree

ERRNOS: Final = {
    "open": ["EACCES", "EIO", "EMFILE", "ENOSPC"],
    "close": ["EIO", "ENOSPC"],
    "read": ["EIO", "EINTR"],
    "write": ["ENOSPC", "EIO", "EDQUOT", "EFBIG", "EINTR"],
    "fsync": ["EIO", "ENOSPC", "EINVAL"],
    "truncate": ["EIO", "ENOSPC"],
    "rename": ["EIO", "EACCES", "EXDEV", "EINVAL", "ENOSYS", "EEXIST"],
    "link": ["EIO", "EPERM", "EEXIST"],
    "unlink": ["EIO", "EACCES"],
    "mkdir": ["EIO", "EACCES", "ENOSPC", "EROFS", "EEXIST"],
    "rmdir": ["EIO", "EACCES"],
    "chmod": ["EPERM", "EIO"],
    "stat": ["EIO", "EACCES"],
    "list": ["EIO", "EACCES"],
    "lock": ["ENOLCK", "EINTR"],
    "space": ["EIO"],
}
HARMLESS: Final = {("read", "fail", "EINTR"), ("write", "fail", "EINTR"), ("lock", "fail", "EINTR")}
CALLS_OF_REMOVING: Final = ("unlink", "rmdir", "list", "stat", "open", "close", "rename")
KILLS: Final = ("kill-before", "kill-after", "kill-torn")


@dataclass(frozen=True)
class Point:
    """One fault: the ``nth`` call of a scene, which is a ``call``, goes wrong in this mode."""

    scene: str
    nth: int
    call: str
    mode: str
    number: str = ""

    def __str__(self) -> str:
        return f"{self.scene}: call {self.nth} ({self.call}) {self.mode} {self.number}".rstrip()


@dataclass
class Tally:
    """What was tried and what came out; ``bad`` lists every point at which a promise was broken."""

    points: int = 0
    resumed: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def points_of(scene: Scene, calls: list[str]) -> Iterator[Point]:
    """Everything that can go wrong in a scene."""
    for nth, call in enumerate(calls):
        for mode in ("kill-before", "kill-after", "interrupt"):
            yield Point(scene.name, nth, call, mode)
        for number in ERRNOS[call]:
            yield Point(scene.name, nth, call, "fail", number)
        if call in ("read", "write"):
            yield Point(scene.name, nth, call, "short")
            yield Point(scene.name, nth, call, "nothing")
        if call == "write":
            yield Point(scene.name, nth, call, "kill-torn")
        for number in ("EIO", "ENOSPC"):
            yield Point(scene.name, nth, call, "fail-from-here", number)


def try_point(stage: Stage, scene: Scene, point: Point, tally: Tally) -> None:
    """One fault, and the run after it."""
    stage.reset(scene)
    before = leftovers(stage.box)
    number = getattr(errno, point.number) if point.number else 0
    ended = stage.run(scene.arguments, point.nth, point.mode, number)
    found = tree(stage.box / scene.output)
    tally.points += 1
    tally.calls[point.call] += 1
    tally.ends["killed" if ended.status < 0 else str(ended.status)] += 1
    broken = list(broken_promises(scene, point, ended, found))
    if not stage.inputs_are_untouched():
        broken.append("an input was touched")
    unnamed = [name for name in leftovers(stage.box) if name not in ended.said and name not in before]
    if unnamed and must_name_what_it_leaves(point, ended):
        broken.append(f"left {unnamed} without a word")
    if scene.writes and not (found == scene.new and "--force" not in scene.arguments):  # done is done: it would refuse
        again = stage.run(scene.arguments)
        tally.resumed += 1
        if again.status != 0 or tree(stage.box / scene.output) != scene.new or leftovers(stage.box):
            broken.append(f"the run after it: {again.status} {again.said.strip()!r} {leftovers(stage.box)}")
    tally.bad += [f"{point}: {each}: {ended.status} {ended.said.strip()[-300:]!r}" for each in broken]


def broken_promises(scene: Scene, point: Point, ended: Ended, found: Tree | None) -> Iterator[str]:
    """What a run with a fault did that it must not do."""
    if found not in (scene.old, scene.new):
        yield "neither old nor new"
    if ended.status >= 0 and ended.status not in DOCUMENTED:
        yield "undocumented exit status"
    if ended.status < 0 and point.mode not in KILLS:
        yield "killed"
    if "Traceback" in ended.said:
        yield "traceback"
    if ended.status == 0 and found != scene.new:
        yield "success without the new content"
    is_harmless = point.mode == "short" or (point.call, point.mode, point.number) in HARMLESS
    if is_harmless and ended.status != 0:
        yield "a harmless event was not survived"


def must_name_what_it_leaves(point: Point, ended: Ended) -> bool:
    """Whether anything left beside the output must be named: not by a killed run, nor where removing it went wrong."""
    return ended.status >= 0 and point.mode == "fail" and point.call not in CALLS_OF_REMOVING


def sample(points: list[Point], count: int | None, seed: int = 1) -> list[Point]:
    """``count`` points, or all for None, in an order of chance, so that a run that is stopped is a fair sample."""
    return random.Random(seed).sample(points, min(count or len(points), len(points)))


def run(
    count: int | None, root: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Tally, int]:
    """Try ``count`` points, or all, or as many as there are until Ctrl-C; returns the tally and how many there are."""
    stage = Stage(root)
    scenes = {scene.name: scene for scene in stage.scenes()}
    points: list[Point] = []
    for scene in scenes.values():
        stage.reset(scene)
        points += points_of(scene, stage.run(scene.arguments).calls)
    tally = Tally()
    chosen = sample(points, count)
    with suppress(KeyboardInterrupt):
        for index, point in enumerate(chosen):
            try_point(stage, scenes[point.scene], point, tally)
            progress(index + 1, len(chosen))
    return tally, len(points)
