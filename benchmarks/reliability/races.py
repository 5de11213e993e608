"""Several processes at one output: what anyone sees there is old, or the whole result of one of them.

In each race some processes write the same output, from packs that make different results, others read it all the time,
and in some races writers are killed. A reader keeps the folder open while it reads; what it read counts when the folder
still has its name afterwards. At the end one more run, alone, must succeed and leave nothing beside the output.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import skillpack_format as skp
from benchmarks.reliability.scenes import leftovers, make_inputs
from skillpack_format.errors import SkillPackError
from skillpack_format.recipes import RECIPES

Content = dict[str, bytes]
READERS: Final = 2
PROMISED: Final = {"output.locked", "output.exists"}  # how a writer may lose a race


@dataclass
class Tally:
    races: int = 0
    observations: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Race:
    """One kind of race: what each writer does, and which contents anyone may see."""

    name: str
    output: str
    writers: Sequence[Callable[[Path, bool], object]]
    prepare: Callable[[Path], None]
    overwrite: bool
    kills: bool = False


class Ground:
    """Inputs, packs, and every content the outputs may have."""

    def __init__(self, root: Path) -> None:
        self.inputs, self.box = root / "inputs", root / "box"
        self.inputs.mkdir()
        self.box.mkdir()
        make_inputs(self.inputs)
        for name in ("tuned", "other"):
            options = skp.ConvertOptions(recipe=RECIPES["lossless"])
            skp.convert(self.inputs / "base", self.inputs / name, self.inputs / f"{name}.skp", options)
            skp.apply(self.inputs / "base", [self.inputs / f"{name}.skp"], self.inputs / f"{name} made")
            file = self.inputs / "base.safetensors"
            skp.apply(file, [self.inputs / f"{name}.skp"], self.inputs / f"{name} made.safetensors", NO_SIDE_FILES)
        results = ["tuned made", "other made", "base", "tuned.skp", "other.skp", "base.safetensors"]
        results += ["tuned made.safetensors", "other made.safetensors"]
        self.allowed = [observe(self.inputs / name) for name in results]

    def races(self) -> list[Race]:
        """Every kind of race."""
        base, file = self.inputs / "base", self.inputs / "base.safetensors"
        packs = [self.inputs / "tuned.skp", self.inputs / "other.skp"]

        def applying(pack: Path, what: Path) -> Callable[[Path, bool], object]:
            options = {"side_files": what.is_dir()}
            return lambda out, force: skp.apply(what, [pack], out, skp.ApplyOptions(overwrite=force, **options))

        def converting(name: str) -> Callable[[Path, bool], object]:
            recipe = RECIPES["lossless"]
            return lambda out, force: skp.convert(
                base, self.inputs / name, out, skp.ConvertOptions(recipe=recipe, overwrite=force)
            )

        folders = [applying(pack, base) for pack in packs]
        files = [applying(pack, file) for pack in packs]
        converts = [converting("tuned"), converting("other")]

        def old_folder(out: Path) -> None:
            shutil.copytree(base, out)

        def old_file(out: Path) -> None:
            shutil.copy(file, out)

        def nothing(out: Path) -> None:
            pass

        return [
            Race("two applies replace a folder", "out", folders, old_folder, overwrite=True),
            Race("two applies make a folder", "out", folders, nothing, overwrite=False),
            Race("two applies replace a file", "out.safetensors", files, old_file, overwrite=True),
            Race("four applies make a file", "out.safetensors", files * 2, nothing, overwrite=False),
            Race("two converts replace a pack", "p.skp", converts, old_file, overwrite=True),
            Race("two converts make a pack", "p.skp", converts, nothing, overwrite=False),
            Race("applies to a folder are killed", "out", folders * 2, old_folder, overwrite=True, kills=True),
            Race("converts are killed", "p.skp", converts * 2, nothing, overwrite=True, kills=True),
        ]

    def run(self, race: Race, chance: random.Random, tally: Tally) -> None:
        """One race from start to end."""
        for each in self.box.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        out = self.box / race.output
        race.prepare(out)
        start_read, start_write = os.pipe()
        writers = [
            self._fork(start_read, start_write, lambda w=w: _write(w, out, race.overwrite)) for w in race.writers
        ]
        readers = [self._fork(start_read, start_write, lambda: self._read(out)) for _ in range(READERS)]
        os.close(start_read)
        os.close(start_write)  # the start: every process waits for this
        if race.kills:
            for writer in writers:
                time.sleep(chance.random() * 0.02)
                if chance.random() < 0.7:
                    os.kill(writer, signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) for writer in writers]
        for reader in readers:
            os.kill(reader, signal.SIGTERM)
        seen = [os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) for reader in readers]
        self._judge(race, out, ends, seen, tally)

    def _judge(self, race: Race, out: Path, ends: list[int], seen: list[int], tally: Tally) -> None:
        tally.races += 1
        tally.kinds[race.name] += 1
        tally.observations += seen.count(0)
        tally.ends.update({0: "done", 1: "lost", 2: "failed"}.get(end, "killed") for end in ends)
        if 2 in ends:
            tally.bad.append(f"{race.name}: a writer failed otherwise than by losing")
        if 0 not in ends and not race.kills:
            tally.bad.append(f"{race.name}: nobody succeeded")
        if not {*seen} <= {0, -signal.SIGTERM}:  # the signal itself ends one that was stopped before its first look
            tally.bad.append(f"{race.name}: a reader saw something else: {seen}")
        if os.path.lexists(out) and observe(out) not in self.allowed:
            tally.bad.append(f"{race.name}: the end is neither old nor one result")
        race.writers[0](out, True)
        if observe(out) not in self.allowed or leftovers(self.box):
            tally.bad.append(f"{race.name}: after one more run there is {leftovers(self.box)}")

    def _fork(self, start_read: int, start_write: int, work: Callable[[], int]) -> int:
        child = os.fork()
        if child == 0:
            status = 3
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.close(start_write)
                os.read(start_read, 1)  # returns when nobody holds the other end any more
                status = work()
            finally:
                os._exit(status)
        return child

    def _read(self, out: Path) -> int:
        """Look until stopped; 4 when something else than an allowed content was there."""
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        while not stopped:
            found = observe(out)
            if found is not None and found not in self.allowed:
                return 4
        return 0


NO_SIDE_FILES: Final = skp.ApplyOptions(side_files=False)


def _write(work: Callable[[Path, bool], object], out: Path, overwrite: bool) -> int:
    """0 done, 1 lost in a way that is promised, 2 failed otherwise."""
    try:
        work(out, overwrite)
    except SkillPackError as found:
        return 1 if found.code in PROMISED else 2
    return 0


def observe(out: Path) -> Content | None:
    """The files at ``out`` as one content; None when there is nothing, or nothing that kept its name meanwhile."""
    try:
        if not out.is_dir():
            return {"": out.read_bytes()}
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        found: Content = {}
        for name in sorted(os.listdir(folder)):
            if os.stat(name, dir_fd=folder).st_mode & 0o040000:
                continue
            file = os.open(name, os.O_RDONLY, dir_fd=folder)
            with os.fdopen(file, "rb") as opened:
                found[name] = opened.read()
        return found if os.path.samestat(os.fstat(folder), os.stat(out)) else None
    except OSError:
        return None
    finally:
        os.close(folder)


def run(count: int, root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Tally:
    """``count`` races, or as many as there are until Ctrl-C, every kind in turn."""
    tally = Tally()
    ground = Ground(root)
    races = ground.races()
    chance = random.Random(7)
    with suppress(KeyboardInterrupt):
        for index in range(count):
            ground.run(races[index % len(races)], chance, tally)
            progress(index + 1, count)
    return tally
