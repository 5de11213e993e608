"""Every accepted pack of the conformance corpus, damaged in every small way: all of it must be refused, with a code.

Each bit flipped, each length cut, each byte taken out, a byte put in at each place, and each two neighbouring sectors
of 512 bytes exchanged. Of the few packs above LARGE bytes, which have to be large, the bits are a sample.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from conformance import build
from skillpack_format.errors import SkillPackError
from skillpack_format.problems import CODES
from skillpack_format.reader import Pack

LARGE: Final = 100_000
HUGE: Final = 1 << 21
FLIPS: Final = 100_000
SAMPLE: Final = 2_000
SECTOR: Final = 512
KINDS: Final = ("bit flip", "truncation", "deletion", "insertion", "sector swap")


@dataclass
class Tally:
    packs: int = 0
    nbytes: int = 0
    sampled: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def accepted_packs() -> dict[str, Path]:
    """Every pack of the corpus that is accepted as a whole by the default limits, once each, by the id of a case.

    A few cases accept a pack whose damage lies outside of what they ask for; those are no packs to damage.
    """
    build.ensure_inputs()
    found: dict[Path, str] = {}
    for path in sorted(build.CASES.rglob("*.json")):
        case = json.loads(path.read_bytes())
        if case["expect"]["verdict"] == "accept" and "limits" not in case["args"]:
            found.setdefault(build.input_path("pack", case["inputs"]["pack"]["sha256"]), case["id"])
    return {name: path for path, name in found.items() if is_whole(path)}


def is_whole(path: Path) -> bool:
    try:
        read(path)
    except SkillPackError:
        return False
    return True


def read(path: Path) -> None:
    """Open a pack, prove every content and open every component."""
    with Pack(path) as pack:
        for segment in range(len(pack.contents.all)):
            pack.read_content(segment)
        for name in pack.entries:
            pack.open_components(name)


def refuse(path: Path, kind: str, what: str, tally: Tally) -> None:
    tally.tried[kind] += 1
    try:
        read(path)
    except SkillPackError as found:
        text = str(found)
        tally.codes[found.code] += 1
        if found.code not in CODES or len(text) > 500 or not (text.isascii() and text.isprintable()):
            tally.bad.append(f"{what}: {text!r}")
    except Exception as found:  # noqa: BLE001 - any other exception is what this looks for
        tally.bad.append(f"{what}: {found!r}")
    else:
        tally.bad.append(f"{what}: accepted")


def places(count: int, share: float, chance: random.Random) -> list[int]:
    """Which of ``count`` places to damage."""
    if share < 1:
        return sorted(chance.sample(range(count), min(count, max(1, int(count * share)))))
    return list(range(count))


def damage(name: str, pack: Path, path: Path, tally: Tally, share: float = 1, flips: float = 1) -> None:
    """All damage of one pack, done to ``path`` and read, or a ``share`` of it; of its bits ``flips`` of that share."""
    blob = pack.read_bytes()
    path.write_bytes(blob)
    read(path)
    tally.packs += 1
    tally.nbytes += len(blob)
    chance = random.Random(name)
    with open(path, "r+b", buffering=0) as file:
        for kind, what in _harms(blob, file.fileno(), share, share * flips, chance):
            refuse(path, kind, f"{name}: {what}", tally)


def _harms(blob: bytes, file: int, share: float, flips: float, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Harm the file, which holds ``blob``, in one way after the other, by writing what differs from the way before."""
    for bit in places(8 * len(blob), flips, chance):
        at = bit // 8
        os.pwrite(file, bytes([blob[at] ^ (1 << bit % 8)]), at)
        yield "bit flip", f"bit {bit % 8} of byte {at} flipped"
        os.pwrite(file, blob[at : at + 1], at)
    for at in places(len(blob) // SECTOR, min(1, share * SECTOR), chance):
        first = blob[at * SECTOR : (at + 1) * SECTOR]
        second = blob[(at + 1) * SECTOR : (at + 2) * SECTOR]
        if first + second != second + first:  # else the pack is not damaged
            os.pwrite(file, second + first, at * SECTOR)
            yield "sector swap", f"sectors at {at * SECTOR} exchanged"
            os.pwrite(file, first + second, at * SECTOR)
    os.pwrite(file, blob[1:], 0)
    os.ftruncate(file, len(blob) - 1)
    before = 0
    for at in places(len(blob), share, chance):
        os.pwrite(file, blob[before:at], before)
        yield "deletion", f"without byte {at}"
        before = at
    os.pwrite(file, b"\0" + blob, 0)
    before = 0
    for at in places(len(blob) + 1, share, chance):
        os.pwrite(file, blob[before:at] + bytes([chance.randrange(256)]), before)
        yield "insertion", f"a byte before {at}"
        before = at
    os.pwrite(file, blob, 0)
    for length in reversed(places(len(blob), share, chance)):
        os.ftruncate(file, length)
        yield "truncation", f"the first {length} bytes"


def run(root: Path, share: float = 1, progress: Callable[[int, int], None] = lambda done, total: None) -> Tally:
    """Damage every pack of up to LARGE bytes, or as many as there are until Ctrl-C; ``root`` is a scratch folder."""
    tally = Tally()
    packs = {name: path for name, path in accepted_packs().items() if path.stat().st_size <= LARGE}
    with suppress(KeyboardInterrupt):
        for index, (name, path) in enumerate(packs.items()):
            damage(name, path, root / "harmed.skp", tally, share)
            progress(index + 1, len(packs))
    return tally


def run_large(root: Path, count: int = FLIPS, progress: Callable[[int, int], None] = lambda done, total: None) -> Tally:
    """The packs above LARGE bytes: about ``count`` bits of each, for each costs a digest of all of it, and everything
    else; of those above HUGE bytes SAMPLE harms of a kind.
    """
    tally = Tally()
    packs = {name: path for name, path in accepted_packs().items() if path.stat().st_size > LARGE}
    with suppress(KeyboardInterrupt):
        for index, (name, path) in enumerate(packs.items()):
            nbytes = path.stat().st_size
            if nbytes > HUGE:
                damage(name, path, root / "harmed.skp", tally, SAMPLE / nbytes, 1 / 8)
                tally.sampled.append(name)
            else:
                damage(name, path, root / "harmed.skp", tally, 1, min(1, count / (8 * nbytes)))
            progress(index + 1, len(packs))
    return tally
