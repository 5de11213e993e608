"""What a disk may hold after the power failed at any moment, by a deliberately weak model of a file system.

A run is traced: every write, fsync, rename. For every moment of it, states of the disk are made in which

- data of a file is there for certain only after an fsync of that file; before, any of its writes may be missing, or be
  there in some sectors of 512 bytes only, and where the file grew, zeros may stand instead;
- a name in a folder is certain only after an fsync of that folder; before, any of its changes may be missing: all after
  some moment, all in one folder after some moment, or any of them;
- one rename is done or not done, and so is one exchange.

In each state the output must be completely old or completely new, and once the command has said that it succeeded, new.
From a sample of the states the command is run again and must give what an undisturbed run gives.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.reliability.scenes import Scene, Stage, Tree, leftovers, tree
from benchmarks.reliability.shim import CALLS

SECTOR: Final = 512
EXCHANGE: Final = 2  # RENAME_EXCHANGE of linux/fs.h
HEAD: Final = struct.Struct("<BiqII")
UMASK: Final = 0o022


@dataclass(frozen=True)
class Event:
    """One call that succeeded, as the shim wrote it down."""

    call: str
    descriptor: int
    number: int
    first: bytes
    second: bytes


@dataclass
class File:
    """A file: what is on disk for certain, and what was done to it since."""

    data: bytes = b""
    mode: int = 0
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)  # write, truncate or chmod; number; data


@dataclass
class Folder:
    """A folder: the names on disk for certain, and the changes since, each with its moment."""

    names: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    mode: int = 0
    pending: list[tuple[int, dict[str, int | None]]] = field(default_factory=list)
    pending_mode: int | None = None


@dataclass
class Tally:
    states: int = 0
    distinct: int = 0
    recovered: int = 0
    moments: int = 0
    bad: list[str] = field(default_factory=list)


def trace(stage: Stage, scene: Scene) -> list[Event]:
    """What an undisturbed run of a scene does to files."""
    stage.reset(scene)
    path = stage.files.parent / "trace"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    old = os.umask(UMASK)
    try:
        assert stage.run(scene.arguments, trace=descriptor).status == 0
    finally:
        os.umask(old)
        os.close(descriptor)
    blob = path.read_bytes()
    events, at = [], 0
    while at < len(blob):
        call, descriptor, number, first, second = HEAD.unpack_from(blob, at)
        at += HEAD.size
        a, b = blob[at : at + first], blob[at + first : at + first + second]
        events.append(Event(CALLS[call], descriptor, number, a, b))
        at += first + second
    return events


class Disk:
    """The box of a scene on a disk that keeps only what it must."""

    def __init__(self, box: Path) -> None:
        self.root = str(box)
        self.nodes: list[File | Folder] = []
        self.open: dict[int, int] = {}
        self.moment = 0
        self._take(box)

    def _take(self, path: Path) -> int:
        mode = stat.S_IMODE(path.lstat().st_mode)
        index = len(self.nodes)
        if not path.is_dir():
            self.nodes.append(File(path.read_bytes(), mode))
            return index
        folder = Folder(mode=mode)
        self.nodes.append(folder)
        folder.names = {each.name: self._take(each) for each in sorted(path.iterdir())}
        folder.now = dict(folder.names)
        return index

    def happen(self, event: Event) -> None:
        """Take one more event into what may be on disk."""
        self.moment += 1
        path = os.fsdecode(event.first)
        if event.call == "open":
            self._open(event, path)
        elif event.call == "close":
            self.open.pop(event.descriptor, None)
        elif event.call in ("write", "truncate", "fsync"):
            self._to_file(event)
        elif event.call == "chmod":
            self._chmod(event, path)
        elif event.call in ("rename", "link"):
            self._rename(event, path, os.fsdecode(event.second))
        elif event.call == "mkdir":
            self.nodes.append(Folder(mode=event.number & ~UMASK))
            self._change(path, {os.path.basename(path): len(self.nodes) - 1})
        elif event.call in ("unlink", "rmdir"):
            self._change(path, {os.path.basename(path): None})

    def _to_file(self, event: Event) -> None:
        if event.descriptor not in self.open:
            return
        node = self.nodes[self.open[event.descriptor]]
        if event.call == "fsync":
            self._sync(node)
        else:
            assert isinstance(node, File)
            node.pending.append((event.call, event.number, event.first))

    def _chmod(self, event: Event, path: str) -> None:
        found = self._find(path)
        if found is None:
            return
        node = self.nodes[found]
        if isinstance(node, File):
            node.pending.append(("chmod", event.number, b""))
        else:
            node.pending_mode = event.number

    def _open(self, event: Event, path: str) -> None:
        flags, mode = event.number & 0xFFFFFFFF, event.number >> 32
        found = self._find(path)
        if found is None:
            if not flags & os.O_CREAT or self._folder_of(path) is None:
                return
            self.nodes.append(File(mode=mode & ~UMASK))
            found = len(self.nodes) - 1
            self._change(path, {os.path.basename(path): found})
        elif flags & os.O_TRUNC:
            self.nodes[found].pending.append(("truncate", 0, b""))  # type: ignore[union-attr, arg-type]
        self.open[event.descriptor] = found

    def _rename(self, event: Event, first: str, second: str) -> None:
        one, other = self._find(first), self._find(second)
        assert os.path.dirname(first) == os.path.dirname(second), "every rename stays within its folder"
        replaced = one if event.call == "link" else other if event.number == EXCHANGE else None
        self._change(second, {os.path.basename(first): replaced, os.path.basename(second): one})

    def _change(self, path: str, names: dict[str, int | None]) -> None:
        folder = self._folder_of(path)
        if folder is None:
            return
        folder.pending.append((self.moment, names))
        _apply(folder.now, names)

    def _sync(self, node: File | Folder) -> None:
        if isinstance(node, File):
            node.data, node.mode = file_state(node, node.pending)
            node.pending = []
        else:
            node.names = dict(node.now)
            node.pending = []
            node.mode = node.mode if node.pending_mode is None else node.pending_mode
            node.pending_mode = None

    def _folder_of(self, path: str) -> Folder | None:
        found = self._find(os.path.dirname(path))
        node = None if found is None else self.nodes[found]
        return node if isinstance(node, Folder) else None

    def _find(self, path: str) -> int | None:
        """The node that ``path`` leads to now; None outside of the box or where nothing is."""
        if path != self.root and not path.startswith(self.root + "/"):
            return None
        index: int | None = 0
        for name in filter(None, path[len(self.root) :].split("/")):
            node = self.nodes[index] if index is not None else None
            index = node.now.get(name) if isinstance(node, Folder) else None
        return index

    def state(self, choose: Choice) -> Tree:
        """One state of the disk: the whole box."""
        found: Tree = {}
        self._show(0, "", choose, found)
        return found

    def _show(self, index: int, path: str, choose: Choice, found: Tree) -> None:
        node = self.nodes[index]
        if isinstance(node, File):
            data, mode = file_state(node, choose.data(index, node.pending))
            found[path] = (stat.S_IFREG | mode, data)
            return
        mode = node.mode if node.pending_mode is None or not choose.mode(index) else node.pending_mode
        found[path] = (stat.S_IFDIR | mode, b"")
        names: dict[str, int] = dict(node.names)
        for change in choose.names(index, node.pending):
            _apply(names, change)
        for name, child in sorted(names.items()):
            self._show(child, f"{path}/{name}" if path else name, choose, found)


def _apply(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, index in change.items():
        if index is None:
            names.pop(name, None)
        else:
            names[name] = index


def file_state(file: File, done: Sequence[tuple[str, int, bytes]]) -> tuple[bytes, int]:
    """Content and mode after what is ``done``."""
    data, mode = bytearray(file.data), file.mode
    for what, number, block in done:
        if what == "chmod":
            mode = number
        elif what == "truncate":
            del data[number:]
            data.extend(bytes(number - len(data)))
        else:
            data.extend(bytes(max(0, number + len(block) - len(data))))
            data[number : number + len(block)] = block
    return bytes(data), mode


class Choice:
    """What of the pending work has reached the disk: all or nothing of it, or what chance decides."""

    def __init__(self, names: str, data: str, chance: random.Random, last: int) -> None:
        self._names, self._data, self._chance = names, data, chance
        self._until = chance.randint(0, last)
        self._last = last

    def names(
        self, index: int, pending: Sequence[tuple[int, dict[str, int | None]]]
    ) -> Iterator[dict[str, int | None]]:
        until = self._chance.randint(0, self._last) if self._names == "per folder" else self._until
        for moment, change in pending:
            if self._names == "any":
                if self._chance.random() < 0.5:
                    yield change
            elif self._names == "all" or (self._names in ("in order", "per folder") and moment <= until):
                yield change

    def mode(self, index: int) -> bool:
        return self._names == "all" or (self._names != "none" and self._chance.random() < 0.5)

    def data(self, index: int, pending: Sequence[tuple[str, int, bytes]]) -> list[tuple[str, int, bytes]]:
        if self._data == "all":
            return list(pending)
        if self._data == "none":
            return []
        done: list[tuple[str, int, bytes]] = []
        for what, number, block in pending:
            if what != "write":
                done += [(what, number, block)] if self._chance.random() < 0.5 else []
                continue
            kind = self._chance.choice(("there", "lost", "zeros", "torn"))
            if kind == "there":
                done.append((what, number, block))
            elif kind == "zeros":
                done.append((what, number + len(block), b""))  # the file has grown, its blocks were never written
            elif kind == "torn":
                done += [each for each in sectors(number, block) if self._chance.random() < 0.5]
        return done


def sectors(offset: int, block: bytes) -> Iterator[tuple[str, int, bytes]]:
    """A write, sector by sector of the file."""
    at = 0
    while at < len(block):
        step = SECTOR - (offset + at) % SECTOR
        yield "write", offset + at, block[at : at + step]
        at += step


NAMES: Final = ("none", "all", "in order", "per folder", "any")
DATA: Final = ("none", "all", "some")


def choices(chance: random.Random, last: int, count: int) -> Iterator[Choice]:
    """Every extreme once, then ``count`` by chance."""
    for names in ("none", "all"):
        for data in ("none", "all"):
            yield Choice(names, data, chance, last)
    for _ in range(count):
        yield Choice(chance.choice(NAMES), chance.choice(DATA), chance, last)


def below(state: Tree, name: str) -> Tree | None:
    """The part of a box that is one output, as ``scenes.tree`` gives it."""
    found = {path[len(name) + 1 :]: each for path, each in state.items() if path == name or path.startswith(name + "/")}
    return found or None


def lose_power(
    stage: Stage,
    scene: Scene,
    events: Sequence[Event],
    per_moment: int,
    recoveries: int,
    tally: Tally,
    seed: int = 1,
) -> None:
    """Every moment of a run: ``per_moment`` states of the disk, and ``recoveries`` in all from which to run again."""
    stage.reset(scene)
    disk = Disk(stage.box)
    chance = random.Random(f"{scene.name} {seed}")
    seen: dict[bytes, Tree] = {}
    for moment in range(len(events) + 1):
        if moment:
            disk.happen(events[moment - 1])
        tally.moments += 1
        for choice in choices(chance, moment, per_moment):
            state = disk.state(choice)
            tally.states += 1
            found = below(state, scene.output)
            if found not in (scene.old, scene.new):
                tally.bad.append(f"{scene.name}: neither old nor new after event {moment} of {len(events)}")
            if moment == len(events) and found != scene.new:
                tally.bad.append(f"{scene.name}: old after success")
            seen.setdefault(_digest(state), state)
    tally.distinct += len(seen)
    for state in chance.sample(list(seen.values()), min(recoveries, len(seen))):
        _recover(stage, scene, state, tally)


def _digest(state: Tree) -> bytes:
    digest = hashlib.sha256()
    for path, (mode, data) in sorted(state.items()):
        digest.update(f"{path}\0{mode}\0{len(data)}\0".encode() + data)
    return digest.digest()


def _recover(stage: Stage, scene: Scene, state: Tree, tally: Tally) -> None:
    """The command again, on a disk in this state."""
    if below(state, scene.output) == scene.new and "--force" not in scene.arguments:
        return
    empty = Scene(scene.name, scene.arguments, scene.output)
    stage.reset(empty)
    for path, (mode, data) in sorted(state.items()):
        place = stage.box / path
        if stat.S_ISDIR(mode):
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(data)
        place.chmod(stat.S_IMODE(mode))
    ended = stage.run(scene.arguments)
    tally.recovered += 1
    if ended.status != 0 or tree(stage.box / scene.output) != scene.new or leftovers(stage.box):
        what = f"{ended.status} {ended.said.strip()!r} {leftovers(stage.box)}"
        tally.bad.append(f"{scene.name}: the run after a power loss ended with {what}")


def run(
    per_moment: int, recoveries: int, root: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Tally:
    """All scenes that write, or as many as there are until Ctrl-C."""
    stage = Stage(root)
    tally = Tally()
    scenes = [scene for scene in stage.scenes() if scene.writes]
    with suppress(KeyboardInterrupt):
        for index, scene in enumerate(scenes):
            lose_power(stage, scene, trace(stage, scene), per_moment, recoveries, tally)
            progress(index + 1, len(scenes))
    return tally
