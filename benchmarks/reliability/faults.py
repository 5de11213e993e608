"""Every system call of ``convert`` and ``apply`` goes wrong in every way it can, one at a time, and then the command runs again.

After each fault the output is completely old or completely new, the exit status is a documented one, no traceback is
shown, and no input was touched. The command run again without a fault gives what an undisturbed run gives, byte by byte.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.reliability.scenes import DOCUMENTED, Scene, Stage, leftovers, tree

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
    number = getattr(errno, point.number) if point.number else 0
    ended = stage.run(scene.arguments, point.nth, point.mode, number)
    tally.points += 1
    tally.calls[point.call] += 1
    tally.ends["killed" if ended.status < 0 else str(ended.status)] += 1

    def complain(what: str) -> None:
        tally.bad.append(f"{point}: {what}: {ended.status} {ended.said.strip()[-300:]!r} {leftovers(stage.box)}")

    found = tree(stage.box / scene.output)
    if found not in (scene.old, scene.new):
        complain("neither old nor new")
    if ended.status >= 0 and ended.status not in DOCUMENTED:
        complain("undocumented exit status")
    if ended.status < 0 and point.mode not in KILLS:
        complain("killed")
    if "Traceback" in ended.said:
        complain("traceback")
    if ended.status == 0 and found != scene.new:
        complain("success without the new content")
    if point.mode == "short" or (point.call, point.mode, point.number) in HARMLESS:
        if ended.status != 0:
            complain("a harmless event was not survived")
    if not stage.inputs_are_untouched():
        complain("an input was touched")
    _complain_of_leftovers(stage, scene, point, ended.status, ended.said, complain)
    if not scene.writes:
        return
    if found == scene.new and "--force" not in scene.arguments:
        return  # it is done: the same command would rightly refuse to do it again
    again = stage.run(scene.arguments)
    tally.resumed += 1
    if again.status != 0 or tree(stage.box / scene.output) != scene.new:
        complain(f"the run after it ended with {again.status} {again.said.strip()!r}")
    if leftovers(stage.box):
        complain(f"the run after it left {leftovers(stage.box)}")


def _complain_of_leftovers(stage, scene, point, status, said, complain) -> None:
    """What may lie beside the output: after a kill anything; otherwise only what is named, or could not be removed."""
    left = leftovers(stage.box)
    if not left or status < 0:
        return
    if status == 0 and point.call in ("unlink", "rmdir", "list", "stat", "open", "close", "rename"):
        return  # removing what is not needed any more is not worth failing for
    unnamed = [name for name in left if name not in said]
    if unnamed and point.mode == "fail" and point.call not in ("unlink", "rmdir", "list", "stat", "open", "close"):
        complain("left something without a word")


def sample(points: list[Point], count: int | None, seed: int = 1) -> list[Point]:
    """``count`` points, spread over scenes, calls and modes by chance; all of them for None."""
    if count is None or count >= len(points):
        return points
    return random.Random(seed).sample(points, count)


def run(count: int | None, root: Path, progress=lambda done, total: None) -> tuple[Tally, int]:
    """Try ``count`` points, or all; returns the tally and how many points there are."""
    stage = Stage(root)
    scenes = {scene.name: scene for scene in stage.scenes()}
    points: list[Point] = []
    for scene in scenes.values():
        stage.reset(scene)
        points += points_of(scene, stage.run(scene.arguments).calls)
    tally = Tally()
    chosen = sample(points, count)
    for index, point in enumerate(chosen):
        try_point(stage, scenes[point.scene], point, tally)
        progress(index + 1, len(chosen))
    return tally, len(points)
