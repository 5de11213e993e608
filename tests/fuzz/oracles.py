"""What an execution of a target must not do: let an exception escape, take long, or allocate on a claim.

Warnings count as escapes. Every ``sampled``-th execution runs under tracemalloc; the address space of a long run is
capped as well (``cap_memory``), so that an allocation between two samples that is out of all proportion fails.
"""

from __future__ import annotations

import resource
import sys
import tracemalloc
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

from fuzz.targets import Target, UnfitError
from skillpack_format.errors import SkillPackError
from skillpack_format.problems import CODES, MAX_PROBLEM_CHARS

HANG_S = 1.0  # of processor time, which a busy machine does not stretch
MAX_KEPT = 20
REFUSED_EVENTS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
                            "socket.bind", "pickle.find_class", "ctypes.dlopen"})  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """An input that broke an oracle."""

    target: str
    oracle: str  # escape, hang, allocation
    detail: str
    data: bytes


@dataclass
class Tally:
    """What the executions of one target came to."""

    executions: int = 0
    accepted: int = 0
    unfit: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0  # bytes, of the sampled executions
    codes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


class Watch:
    """Executes one target and judges it."""

    def __init__(self, target: Target, *, sampled: int = 64) -> None:
        self.target = target
        self.sampled = sampled
        self.tally = Tally()

    def execute(self, data: bytes) -> bool:
        """Run the target once; whether it accepted the input."""
        tally = self.tally
        tally.executions += 1
        traced = tally.executions % self.sampled == 0
        if traced:
            tracemalloc.start()
        began = process_time()
        try:
            accepted = self._judge(data)
        finally:
            took = process_time() - began
            if traced:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                self._weigh(peak, data)
        if took > tally.slowest:
            tally.slowest = took
            if took > HANG_S:
                self._find("hang", f"{took:.2f} s of processor time", data)
        return accepted

    def _judge(self, data: bytes) -> bool:
        try:
            if self.target.run(data) is False:
                return False
        except UnfitError:
            self.tally.unfit += 1
            return False
        except SkillPackError as found:
            self.tally.codes[found.code] += 1
            fault = fault_of(found)
            if fault:
                self._find("escape", fault, data)
            return False
        except Exception as found:  # noqa: BLE001 - whatever else comes out is what a fuzzer looks for
            self._find("escape", f"{type(found).__name__}: {found!s:.300}", data)
            return False
        self.tally.accepted += 1
        return True

    def _weigh(self, peak: int, data: bytes) -> None:
        self.tally.peak = max(self.tally.peak, peak)
        allowed = max(self.target.allowance, len(data))
        if peak > allowed:
            self._find("allocation", f"{peak} bytes at once for an input of {len(data)}, {allowed} are allowed", data)

    def _find(self, oracle: str, detail: str, data: bytes) -> None:
        if len(self.tally.findings) < MAX_KEPT:
            self.tally.findings.append(Finding(self.target.name, oracle, detail, data))


def fault_of(found: SkillPackError) -> str:
    """What is wrong with an error itself: an unlisted code, a message no terminal should see, memory that ran out."""
    text = str(found)
    if found.code not in CODES or not text.isascii() or not text.isprintable() or len(text) > MAX_PROBLEM_CHARS:
        return f"an error that is not fit to print: {text!r:.300}"
    return "memory ran out" if found.code == "resource.memory" else ""


def loop(target: Target, executions: int, seed: int, *, seconds: float = 1e9, sampled: int = 64) -> Tally:
    """Execute the seeds, then mutants of them and of what was accepted or refused in a new way.

    Ends after ``executions``, or after about ``seconds`` of processor time.
    """
    random, watch = Random(seed), Watch(target, sampled=sampled)
    tally = watch.tally
    pool = list(target.seeds())
    kept = len(pool)
    began = process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not sum(watch.execute(data) for data in pool):
            raise AssertionError(f"{target.name}: no seed is accepted: {dict(tally.codes)}")
        while tally.executions < executions:
            data = target.mutate(pool[int(random.random() * len(pool))], random)
            known = len(tally.codes)
            if watch.execute(data) or len(tally.codes) > known:
                _keep(pool, data, kept, random)
            if not tally.executions & 63 and process_time() - began > seconds:
                break
    tally.seconds = process_time() - began
    return tally


def _keep(pool: list[bytes], data: bytes, seeds: int, random: Random) -> None:
    """Into the pool, in place of an earlier find where it is full: inputs wander, the seeds stay."""
    if len(pool) < seeds + 256:
        pool.append(data)
    else:
        pool[seeds + int(random.random() * 256)] = data


def cap_memory(beyond: int = 1 << 28) -> None:
    """Let this process have ``beyond`` bytes more than it has now; more than that fails as MemoryError."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + beyond, hard))


def forbid_events() -> None:
    """From now on, starting a process, a connection or an unpickling in this process raises; it cannot be undone."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in REFUSED_EVENTS and arguments != (None,):  # dlopen of None is this program itself
            raise AssertionError(f"{event} was reached from an input")

    sys.addaudithook(hook)
