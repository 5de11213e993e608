"""The long versions: every fault, power loss, race, damage and wrong base, and the page that tells what came out.

    python -m benchmarks.reliability               # everything; takes hours on two cores
    python -m benchmarks.reliability faults        # one part
    python -m benchmarks.reliability races --count 50

Parts: faults, powerloss, races, damage, large, bases, memory, cost. Each keeps its figures in results/reliability.json,
from which results/reliability.md is written; one that is stopped by Ctrl-C tells what it has done. Ends with 1 when a
promise was broken.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.reliability import bases as bases_room
from benchmarks.reliability import cost as cost_room
from benchmarks.reliability import damage as damage_room
from benchmarks.reliability import faults as faults_room
from benchmarks.reliability import memory as memory_room
from benchmarks.reliability import powerloss as powerloss_room
from benchmarks.reliability import races as races_room
from benchmarks.reliability import shim
from benchmarks.results import report

RESULTS: Final = report.FOLDER / "reliability.json"
MAX_BAD: Final = 20  # broken promises that are listed


@dataclass
class Part:
    """What one part found: a sentence for each row of its table, and every broken promise."""

    rows: list[list[str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def faults(root: Path, count: int | None) -> Part:
    tally, total = faults_room.run(count, root, progress("faults"))
    return Part(
        [
            ["fault points that there are", f"{total:,}"],
            ["fault points tried", f"{tally.points:,}"],
            ["outputs neither old nor new", _count(tally.bad, "neither old nor new")],
            ["runs after a fault, to an undisturbed result", f"{tally.resumed:,}"],
            ["by call", _listed(tally.calls)],
            ["exit statuses", _listed(tally.ends)],
            ["promises broken", f"{len(tally.bad):,}"],
        ],
        tally.bad,
    )


def powerloss(root: Path, count: int | None) -> Part:
    tally = powerloss_room.run(count or 400, 100, root, progress("powerloss"))
    return Part(
        [
            ["states of the disk", f"{tally.states:,}"],
            ["of which distinct", f"{tally.distinct:,}"],
            ["moments of power loss", f"{tally.moments:,}"],
            ["states neither old nor new", _count(tally.bad, "neither old nor new")],
            ["states from which the command was run again", f"{tally.recovered:,}"],
            ["promises broken", f"{len(tally.bad):,}"],
        ],
        tally.bad,
    )


def races(root: Path, count: int | None) -> Part:
    tally = races_room.run(count or 1000, root, progress("races"))
    return Part(
        [
            ["races", f"{tally.races:,}"],
            ["kinds", _listed(tally.kinds)],
            ["ends of writers", _listed(tally.ends)],
            ["readers that looked all the time", f"{tally.observations:,}"],
            ["promises broken", f"{len(tally.bad):,}"],
        ],
        tally.bad,
    )


def damage(root: Path, count: int | None) -> Part:
    tally = damage_room.run(root, 1 if count is None else count / 1_000_000, progress("damage"))
    return Part(
        [
            [f"packs of the corpus of up to {damage_room.LARGE:,} bytes", f"{tally.packs:,}, {tally.nbytes:,} bytes"],
            *_harms(tally),
        ],
        tally.bad,
    )


def large(root: Path, count: int | None) -> Part:
    tally = damage_room.run_large(root, count or damage_room.FLIPS, progress("large"))
    return Part(
        [
            ["larger packs of the corpus", f"{tally.packs:,}, {tally.nbytes:,} bytes"],
            ["of which a sample of everything, being huge", ", ".join(tally.sampled) or "none"],
            ["bits of each of the others, by chance", f"{count or damage_room.FLIPS:,}"],
            *_harms(tally),
        ],
        tally.bad,
    )


def _harms(tally: damage_room.Tally) -> list[list[str]]:
    return [
        *([kind, f"{number:,}"] for kind, number in tally.tried.items()),
        ["refused with", _listed(tally.codes)],
        ["promises broken", f"{len(tally.bad):,}"],
    ]


def bases(root: Path, count: int | None) -> Part:
    tally = bases_room.run(count or 10_000, root, progress("bases"))
    return Part(
        [
            ["bases with one changed bit", f"{tally.tried:,}"],
            ["by tensor", _listed(tally.by_tensor)],
            ["refused with", _listed(tally.codes)],
            ["promises broken", f"{len(tally.bad):,}"],
        ],
        tally.bad,
    )


def memory(root: Path, count: int | None) -> Part:
    figures = memory_room.run(root, progress("memory"))
    return Part(
        [
            *([f"{each.times}x the model, {each.nbytes >> 20} MiB", f"peak {each.peak >> 20} MiB"] for each in figures),
            ["largest over smallest peak", f"{memory_room.spread(figures):.3f}"],
        ],
        []
        if memory_room.spread(figures) <= memory_room.ALLOWED_SPREAD
        else ["peak memory grows with the size of the model"],
    )


def cost(root: Path, count: int | None) -> Part:
    costs = list(cost_room.run(root, progress("cost"), count or cost_room.REPEATS))
    late = [each for each in costs if each.seconds[-1] > cost_room.BOUND_S]
    return Part(
        [
            *(
                [
                    f"{each.shape.name}: `{each.shape.code}`",
                    f"{1000 * each.seconds[-1]:.0f} ms" + (f", x {each.growth:.2f}" if each.growth else ""),
                ]
                for each in sorted(costs, key=lambda each: -each.seconds[-1])
            ),
            [f"shapes within {1000 * cost_room.BOUND_S:.0f} ms", f"{len(costs) - len(late)} of {len(costs)}"],
        ],
        [
            f"{each.shape.name}: {each.growth:.2f} times longer for twice the size"
            for each in costs
            if each.growth and each.growth > cost_room.BOUND_GROWTH
        ],
    )


PARTS: Final[dict[str, Callable[[Path, int | None], Part]]] = {
    "faults": faults,
    "powerloss": powerloss,
    "races": races,
    "damage": damage,
    "large": large,
    "bases": bases,
    "memory": memory,
    "cost": cost,
}
UNDER_THE_SHIM: Final = ("faults", "powerloss")
TITLES: Final = {
    "faults": "Faults at every call",
    "powerloss": "Loss of power",
    "races": "Races of several processes",
    "damage": "Damaged packs",
    "large": "Damaged large packs",
    "bases": "Wrong bases",
    "memory": "Peak memory of apply",
    "cost": "CPU time of refusing a file of 1 MiB, and how it grows from half the size",
}


def progress(name: str) -> Callable[[int, int], None]:
    """Say every minute how far a part is."""
    start = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 60:
            last = now
            print(f"{name}: {done:,} of {total:,} after {now - start:.0f} s", flush=True)

    return say


def run_part(name: str, count: int | None) -> bool:
    """Run one part and keep its figures; whether every promise was kept."""
    start, commit = time.monotonic(), report.commit()  # of the code that runs, whatever is checked out at its end
    with tempfile.TemporaryDirectory(dir=_memory_folder(), prefix="skillpack-") as folder:
        root = Path(folder) / name
        root.mkdir()
        part = PARTS[name](root, count)
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    command = f"python -m benchmarks.reliability {name}" + (f" --count {count}" if count is not None else "")
    when = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"
    plain = {
        "command": command,
        "commit": commit,
        "when": when,
        "seconds": round(time.monotonic() - start),
        **asdict(part),
    }
    kept[name] = {**plain, "bad": part.bad[:MAX_BAD]}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    _write_page(kept)
    print(f"{name}: {plain['seconds']} s, {len(part.bad)} promises broken", flush=True)
    for each in part.bad[:MAX_BAD]:
        print(f"  {each}")
    return not part.bad


def _write_page(kept: dict[str, Any]) -> None:
    body = []
    for name in [each for each in PARTS if each in kept]:
        part = kept[name]
        body += [
            f"## {TITLES[name]}",
            "",
            f"`{part['command']}`, {part.get('commit', 'commit unknown')}, {part['when']}, {part['seconds']:,} s",
            "",
        ]
        body += [report.markdown(["", "figure"], part["rows"]), ""]
        body += [f"- broken: {each}" for each in part["bad"]]
    report.write("reliability.md", "benchmarks.reliability", "Reliability", "\n".join(body))


def _memory_folder() -> str | None:
    """A file system in memory, where there is one: what is tested are the calls, not the disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a private folder is made in it


def _count(bad: Sequence[str], what: str) -> str:
    return f"{sum(what in each for each in bad):,}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))


def main(arguments: Sequence[str] | None = None) -> int:
    for each in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs start without the first
        signal.signal(each, signal.default_int_handler)
    parser = argparse.ArgumentParser("python -m benchmarks.reliability", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all of them)")
    parser.add_argument(
        "--count",
        type=int,
        help="points, races, bases; damage: per million; large: bits; powerloss: per moment; cost: runs",
    )
    options = parser.parse_args(arguments)
    chosen = options.parts or list(PARTS)
    if unknown := [each for each in chosen if each not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if any(name in UNDER_THE_SHIM for name in chosen) and not shim.Shim.is_loaded():
        if reason := shim.why_not():
            print(f"without faults and powerloss: {reason}")
            chosen = [name for name in chosen if name not in UNDER_THE_SHIM]
        else:
            shim.restart_under(shim.build(Path(tempfile.mkdtemp())))
    kept = [run_part(name, options.count) for name in chosen]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
