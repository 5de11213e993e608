"""The long run of the fuzz targets: rounds over all of them until the time is up, and a table of what it came to.

    python -m benchmarks.reliability.fuzz [--seconds S] [--slot S] [--engine mutators|atheris|both] [--only NAME ...]

Every round gives every target a slot of processor time in a process of its own: with a cap on its memory, with an
audit hook that refuses to start processes, connections and unpicklings, and with a seed of its own, so a finding can be
had again. What broke an oracle is written beside the results, and counts add up over runs until ``--fresh``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.results import report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.md"
COUNTS = RESULTS.with_suffix(".json")
GRACE_S = 60  # of processor time beyond the slot: for seeds, imports and instrumentation
ENGINES = ("mutators", "atheris")
KEPT_KEYS = ("executions", "accepted", "unfit", "seconds")

sys.path.insert(0, str(ROOT / "tests"))  # where builders.py and the targets are

from fuzz import oracles  # noqa: E402
from fuzz.targets import Target, targets  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit code is 1 where an oracle was broken."""
    options = _options().parse_args(arguments)
    counts = {} if options.fresh or not COUNTS.exists() else json.loads(COUNTS.read_bytes())
    every = {name: each for name, each in targets().items() if not options.only or name in options.only}
    ends = time.monotonic() + options.seconds
    for engine in cycle(ENGINES if options.engine == "both" else [options.engine]):
        if time.monotonic() > ends:
            break
        for target in every.values():
            seed = int.from_bytes(os.urandom(4), "little")
            _add(counts, target.name, _in_child(target, seed, options.slot, engine), engine)
            COUNTS.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
            if time.monotonic() > ends:
                break
    report.write(RESULTS.name, "benchmarks.reliability.fuzz", "Fuzzing", tell(counts))
    print(tell(counts))
    return int(any(each["findings"] for each in counts.values()))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="0: only the report  [default: 600]")
    parser.add_argument("--slot", type=float, default=10.0, help="of processor time, a target and round  [default: 10]")
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default=ENGINES[0], help="both: in turn")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="of targets")
    parser.add_argument("--fresh", action="store_true", help="forget the counts of earlier runs")
    return parser


def _in_child(target: Target, seed: int, slot: float, engine: str) -> dict[str, Any]:
    """One slot of one target in a forked process; a process that dies or stays is a finding."""
    with tempfile.TemporaryDirectory() as where:
        answer = Path(where) / "answer.json"
        child = os.fork()
        if child == 0:
            _work(target, seed, slot, engine, answer)
        status = _wait(child, slot + GRACE_S)
        if answer.exists():
            found: dict[str, Any] = json.loads(answer.read_bytes())
            return found
        end = "did not end" if status is None else f"ended with status {status}"
        finding = {"oracle": "hang" if status is None else "crash", "detail": f"{end}, seed {seed}", "data": ""}
        return {**dict.fromkeys(KEPT_KEYS, 0), "slowest": 0.0, "peak": 0, "codes": {}, "findings": [finding]}


def _work(target: Target, seed: int, slot: float, engine: str, answer: Path) -> None:
    """In the child: run, write what came of it, and end without the parent's clean-up."""

    def write(tally: oracles.Tally) -> None:
        plain = {key: getattr(tally, key) for key in (*KEPT_KEYS, "slowest", "peak")}
        found = [
            {"oracle": each.oracle, "detail": f"{each.detail} (seed {seed})", "data": each.data.hex()}
            for each in tally.findings
        ]
        answer.write_text(json.dumps({**plain, "codes": tally.codes, "findings": found}))

    status, most = 1, int(slot + GRACE_S)
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        with suppress(Exception):
            target.run(target.seeds()[0])  # so that what is imported when it is needed is there
        oracles.cap_memory()
        if engine == "atheris":
            from fuzz import guided  # noqa: PLC0415 - needs atheris, an extra

            guided.explore(target, seed, slot, write)
        oracles.forbid_events()
        write(oracles.loop(target, 1 << 62, seed, seconds=slot))
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees that the process failed; here stands why
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _wait(child: int, seconds: float) -> int | None:
    """The exit status of ``child``; None where it had to be ended, by its limit of processor time or by the clock."""
    ends = time.monotonic() + 60 * seconds  # one that waits for ever takes no processor time
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _add(counts: dict[str, Any], name: str, found: dict[str, Any], engine: str) -> None:
    empty = {**dict.fromkeys(KEPT_KEYS, 0), "guided": 0, "slowest": 0.0, "peak": 0, "codes": {}, "findings": []}
    held = counts.setdefault(name, empty)
    for key in KEPT_KEYS:
        held[key] += found[key]
    held["guided"] += found["executions"] if engine == "atheris" else 0
    held["slowest"], held["peak"] = max(held["slowest"], found["slowest"]), max(held["peak"], found["peak"])
    held["codes"] = dict(Counter(held["codes"]) + Counter(found["codes"]))
    held["findings"] = (held["findings"] + found["findings"])[:100]


def tell(counts: dict[str, Any]) -> str:
    """The table and what it means."""
    rows = []
    total = Counter[str]()
    for name, each in sorted(counts.items()):
        kinds = Counter(finding["oracle"] for finding in each["findings"])
        total += Counter({key: each[key] for key in ("executions", "guided")}) + kinds
        rows.append(
            [
                name,
                f"{each['executions']:,}",
                f"{each['executions'] / max(each['seconds'], 0.001):,.0f}",
                f"{each['accepted']:,}",
                f"{len(each['codes'])}",
                f"{1000 * each['slowest']:.0f}",
                f"{each['peak'] / 1024:,.0f}",
                *(str(number) for number in (kinds["escape"] + kinds["crash"], kinds["hang"], kinds["allocation"])),
            ]
        )
    summary = (
        f"**{total['executions']:,} executions over {len(counts)} targets**, {total['guided']:,} of them guided by "
        f"coverage (atheris): {total['escape'] + total['crash']} escapes, {total['hang']} hangs, "
        f"{total['allocation']} allocations."
    )
    return f"{summary}\n\n{ABOUT}\n{report.markdown(HEADERS, rows)}"


HEADERS = (
    "target",
    "executions",
    "a second",
    "accepted",
    "codes",
    "slowest ms",
    "peak KiB",
    "escapes",
    "hangs",
    "allocations",
)
ABOUT = """\
Inputs are mutants of valid ones, their digests repaired. `a second` is of processor time on one core; `accepted` of the
executions, `codes` the different error codes of those refused; the slowest execution in milliseconds of processor time;
the largest peak of traced memory, every 64th execution. An escape is any exception but a SkillPackError with a listed
code, a warning, a process or connection started, a re-encoding that differs, a crash; a hang is an execution of more
than 1 s; an allocation is more at once than 1 MiB (a few where a target decodes) and than the input. Counts add up over
the runs since the last `--fresh`, mended code included; the findings that were mended have tests of their own.
"""


if __name__ == "__main__":
    sys.exit(main())
