"""Memory that is not there: the n-th allocation of Python fails, or the system gives the process no more.

After each, the command has succeeded or says resource.memory (exit status 5), without a traceback, and the output is
completely old or completely new.
"""

from __future__ import annotations

import random
import re
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.reliability.scenes import Scene, Stage, tree

MIB: Final = 1 << 20
ALLOCATIONS: Final = 200_000  # more than any of the commands makes
FIRST: Final = 20  # those before are made by this program and by click, before the command line can catch anything
ROOM: Final = 160  # MiB beyond what the process has already, with which every command succeeds
# Where the MemoryError is lost below this program, which cannot know then what happened. C code of CPython or numpy
# returns without it; CPython takes the failure to look up __fspath__ for a type that has none, and says that a Path is
# no path; it tells what it ignores, such as an error in a generator that nobody asks any more; Rust code below
# jsonschema panics.
LOST: Final = re.compile(
    r"SystemError: .*(without exception set|without setting an exception)"
    r"|TypeError: .*os\.PathLike.*, not PosixPath"
    r"|Exception ignored in: .*MemoryError"
    r"|RUST_BACKTRACE",
    re.DOTALL,
)


@dataclass
class Tally:
    tried: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def nth_fails(nth: int) -> Callable[[], None]:
    """Have the ``nth`` allocation from now on fail, and only that one."""
    import _testcapi  # noqa: PLC0415 - CPython's own test support, which some builds leave out

    return lambda: _testcapi.set_nomemory(nth, nth + 1)


def no_more_than(nbytes: int) -> Callable[[], None]:
    """Give this process at most ``nbytes`` of address space more than it has."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + nbytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return limit


def try_one(stage: Stage, scene: Scene, what: str, starve: Callable[[], None], tally: Tally) -> None:
    stage.reset(scene)
    ended = stage.run(scene.arguments, starve=starve)
    tally.tried += 1
    tally.ends[str(ended.status)] += 1
    found = tree(stage.box / scene.output)
    is_said = ended.status == 0 or (ended.status == 5 and "[resource.memory]" in ended.said)
    is_lost = LOST.search(ended.said) is not None
    tally.ends["of which the MemoryError was lost below"] += is_lost
    is_said = is_lost or (is_said and "Traceback" not in ended.said)
    is_whole = found == scene.new if ended.status == 0 else found in (scene.old, scene.new)
    if not is_said or not is_whole or not stage.inputs_are_untouched():
        tally.bad.append(f"{scene.name}, {what}: {ended.status} {ended.said.strip()[-400:]!r}")


def run(count: int, root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Tally:
    """``count`` allocations that fail, and a tenth as many limits of the system."""
    stage, tally = Stage(root), Tally()
    scenes = stage.scenes()
    chance = random.Random(5)
    for index in range(count):
        scene = scenes[index % len(scenes)]
        nth = FIRST + int(ALLOCATIONS ** chance.random())
        try_one(stage, scene, f"allocation {nth}", nth_fails(nth), tally)
        progress(index + 1, count)
    for index in range(count // 10):
        scene = scenes[index % len(scenes)]
        nbytes = chance.randrange(ROOM * MIB)
        try_one(stage, scene, f"{nbytes} more bytes", no_more_than(nbytes), tally)
    return tally
