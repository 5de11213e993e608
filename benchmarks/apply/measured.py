"""One command, measured from outside: wall time, processor time, peak memory, bytes read and written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took. Memory is the largest of its processes; bytes are those of read and write calls and copies
    by the kernel, of all its processes: what a program maps into memory instead of reading does not count."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int


class FailedError(Exception):
    """A command that ended with another status than 0; the last lines of what it said."""


def run(command: Sequence[str]) -> Measured:
    """Run ``command`` through a process of its own, so that nothing else is counted."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        done = subprocess.run(
            [sys.executable, __file__, report.name, *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FailedError("\n".join(done.stderr.splitlines()[-5:]))
        return Measured(**json.load(report))


def _main(report: str, command: Sequence[str]) -> int:
    before = _io()
    start = time.perf_counter()
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    seconds = time.perf_counter() - start
    after = _io()  # of this process and of the children it has waited for
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "read_bytes": after["rchar"] - before["rchar"],
        "written_bytes": after["wchar"] - before["wchar"],
    }
    Path(report).write_text(json.dumps(measured))
    return status


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
