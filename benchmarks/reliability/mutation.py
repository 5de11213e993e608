"""Mutation testing of the code that checks: every mutant must make a test fail.

    python -m benchmarks.reliability.mutation [--only MODULE ...] [--sample N --seed S] [--write]

pytest collects once. Every test runs once under coverage, which tells what tests reach which line. Then each mutant
gets a forked process, in which the code of its functions is exchanged and the tests that reach its lines run, those of
the module itself first, until one fails. A mutant that no test kills is a missing test, or it is equivalent and listed
with the reason in equivalents.json. Ctrl-C ends it, and it tells what it has done; with --sample those are by chance.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import coverage
import pytest
from _pytest.runner import runtestprotocol
from _pytest.warnings import catch_warnings_for_item

from benchmarks.reliability.mutants import Mutant, exchange, mutants_of
from benchmarks.results import report

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "skillpack_format"
RESULTS = ROOT / "benchmarks" / "results" / "mutation.md"
EQUIVALENTS = Path(__file__).with_name("equivalents.json")
KINDS = ("delete", "negate", "operand", "bound", "range")

CHECKING = """
wire container manifest storage contents fields names limits bits dtypes arithmetic groups listing reader making catalog
sources side_files records journal signatures encodings/* codecs/* stores/*
""".split()
TESTS = ("unit", "laws", "spec", "hostile")
# slow, and the others come to the same; the last runs its commands in processes of their own, where no mutant is
LEFT_OUT = ("unit/test_torch_bridge.py", "hostile/test_damage.py", "hostile/test_interruptions.py")
CPU_S = 20  # of processor time beyond what the tests took without a mutant; one that runs on is killed
MEMORY = 4 << 30


@dataclass
class Outcome:
    """How the mutants ended: the test that killed each, ``time`` for one that ran on or died, None for a survivor."""

    killers: dict[Mutant, str | None] = field(default_factory=dict)
    equivalents: dict[str, str] = field(default_factory=dict)

    def survivors(self) -> list[Mutant]:
        return [each for each, killer in self.killers.items() if killer is None and each.key not in self.equivalents]

    @property
    def share(self) -> float:
        counted = [each for each in self.killers if each.key not in self.equivalents or self.killers[each]]
        return 1 - len(self.survivors()) / max(1, len(counted))


def modules() -> list[tuple[str, Path]]:
    paths = [path for pattern in CHECKING for path in sorted(PACKAGE.glob(f"{pattern}.py")) if path.stem[0] != "_"]
    return [(".".join(path.relative_to(PACKAGE).with_suffix("").parts), path) for path in paths]


def all_mutants() -> list[Mutant]:
    return [mutant for name, path in modules() for mutant in mutants_of(path, name)]


def equivalents() -> dict[str, str]:
    """The mutants that change nothing anyone could see, each with the reason."""
    found: dict[str, str] = json.loads(EQUIVALENTS.read_bytes())
    return found


class Judge:
    """A pytest plugin that, instead of running the collected tests, runs them against every mutant."""

    def __init__(self, mutants: list[Mutant], most_s: float) -> None:
        self.mutants = mutants
        self.most_s = most_s
        self.outcome = Outcome(equivalents=equivalents())
        self.scratch = Path(tempfile.mkdtemp(prefix="skillpack-mutation-"))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Failed  # pytest has told why the tests cannot be collected
        try:
            items = {item.nodeid: item for item in session.items}
            reached = self._in_child(lambda: self._baseline(session.items), 3600, resource.RLIM_INFINITY)
            if not isinstance(reached, dict) or reached["failed"]:
                found = reached["failed"] if isinstance(reached, dict) else reached
                pytest.exit(f"tests fail without a mutant: {found}", returncode=2)
            for done, mutant in enumerate(self.mutants):
                self.outcome.killers[mutant] = self._kill(mutant, items, reached)
                if self.outcome.killers[mutant] is None and mutant.key not in self.outcome.equivalents:
                    print(f"\n{done + 1}/{len(self.mutants)} survives: line {mutant.line}: {mutant.key}", flush=True)
        except KeyboardInterrupt:
            print(f"\nstopped after {len(self.outcome.killers)} of {len(self.mutants)}", flush=True)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return True

    def _baseline(self, items: list[pytest.Item]) -> dict[str, Any]:
        """What tests reach each line, how long each takes, and which fail as it is."""
        watch = coverage.Coverage(data_file=None, include=[f"{PACKAGE}/*"], config_file=False)
        seconds, failed = {}, []
        watch.start()
        for index, item in enumerate(items):
            watch.switch_context(item.nodeid)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            if not _passes(item, items[index + 1] if index + 1 < len(items) else None):
                failed.append(item.nodeid)
            seconds[item.nodeid] = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        watch.stop()
        data = watch.get_data()
        lines = {name: data.contexts_by_lineno(name) for name in data.measured_files()}
        return {"lines": lines, "seconds": seconds, "failed": failed}

    def _kill(self, mutant: Mutant, items: dict[str, pytest.Item], reached: dict[str, Any]) -> str | None:
        lines = reached["lines"].get(str(mutant.path), {})
        ids = {each for line in range(mutant.line, mutant.last_line + 1) for each in lines.get(str(line), ())}
        mirror = (
            f"unit/{'/'.join(mutant.module.split('.')[:-1])}".rstrip("/") + f"/test_{mutant.module.split('.')[-1]}.py"
        )
        seconds = reached["seconds"]
        order = sorted(ids & items.keys(), key=lambda each: (mirror not in each, seconds[each], each))
        spent = list(accumulate(seconds[each] for each in order))
        order = [each for each, sofar in zip(order, spent, strict=True) if mirror in each or sofar <= self.most_s]
        budget = CPU_S + 2 * sum(seconds[each] for each in order)

        def hunt() -> str | None:
            importing = importlib.import_module(f"skillpack_format.{mutant.module}")
            exchange(importing, mutant.code())
            chosen = [items[each] for each in order]
            for index, item in enumerate(chosen):
                if not _passes(item, chosen[index + 1] if index + 1 < len(chosen) else None):
                    return item.nodeid
            return None

        found = self._in_child(hunt, budget)
        return str(found) if found is not None else None

    def _in_child(self, work: Any, seconds: float, memory: int = MEMORY) -> Any:
        """What ``work`` returns in a forked process of its own; ``time`` where that did not end by itself."""
        answer = self.scratch / "answer.json"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
                os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.mkdtemp(dir=self.scratch)
                answer.write_text(json.dumps(work()))
                status = 0
            except BaseException:  # noqa: BLE001 - the parent ends with it; here stands why
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        try:
            _, status = os.waitpid(child, 0)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("a mutant could not be judged; the reason stands above")
        return json.loads(answer.read_bytes()) if os.WIFEXITED(status) else "time"


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    with catch_warnings_for_item(item.config, item.ihook, "runtest", item):  # the marks of the test count too
        return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def tell(outcome: Outcome, there_are: int) -> str:
    """The matrix: killed of all, by module and kind; of ``there_are`` some may not have been tried."""
    counts: dict[str, Counter[str]] = {}
    for mutant, killer in outcome.killers.items():
        if killer is None and mutant.key in outcome.equivalents:
            for name in (mutant.module, "all"):
                counts.setdefault(name, Counter())["equivalent"] += 1
            continue
        for name in (mutant.module, "all"):
            row = counts.setdefault(name, Counter())
            for column in (mutant.kind, "all"):
                row[f"{column} of"] += 1
                row[column] += killer is not None
    rows = [
        [
            name,
            *(f"{row[k]}/{row[k + ' of']}" if row[f"{k} of"] else "" for k in (*KINDS, "all")),
            str(row["equivalent"]),
        ]
        for name, row in sorted(counts.items(), key=lambda item: (item[0] != "all", item[0]))
    ]
    left = [f"- {each.module} line {each.line}: `{each.kind}` {each.change}" for each in outcome.survivors()]
    matrix = report.markdown(["module", *KINDS, "all", "equivalent"], rows)
    return "\n".join(
        [
            f"**{100 * outcome.share:.2f} % killed**, {len(outcome.killers):,} of {there_are:,} tried.",
            "",
            ABOUT,
            matrix,
            "",
            *(["Survivors:", "", *left] if left else []),
        ]
    )


ABOUT = """\
Killed of all mutants, by module and by kind of change: a check deleted, a condition negated, an operand of it left out,
a bound off by one, an end of an accepted range off by one (mutants.py). Those that change nothing anyone could see
stand with their reasons in equivalents.json and are not counted.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit code is 1 where a mutant survives that is not listed as equivalent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODULE", help="as wire or encodings.sparse")
    parser.add_argument("--sample", type=int, metavar="N", help="of the mutants, chosen by --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", nargs="*", default=[f"tests/{each}" for each in TESTS], metavar="PATH")
    parser.add_argument(
        "--most", type=float, default=60.0, metavar="S", help="of tests a mutant may take  [default: 60]"
    )
    parser.add_argument("--write", action="store_true", help=f"put the report into {RESULTS.relative_to(ROOT)}")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    for each in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs start without the first
        signal.signal(each, signal.default_int_handler)
    mutants = [each for each in all_mutants() if not options.only or each.module in options.only]
    if options.sample:
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    judge = Judge(mutants, options.most)
    left_out = [f"--ignore={ROOT / 'tests' / each}" for each in LEFT_OUT]
    status = pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *left_out, *options.tests], [judge])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):  # none ran in this process itself
        return 2
    page = tell(judge.outcome, len(all_mutants()))
    if options.write:
        title = "Mutants of the code that checks"
        report.write(RESULTS.name, f"benchmarks.reliability.mutation {' '.join(given)}", title, page)
    print(page)
    return int(bool(judge.outcome.survivors()))


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
