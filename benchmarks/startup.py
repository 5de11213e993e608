"""How soon the command answers: ``skillpack --help`` and ``skillpack inspect``, beyond what an empty Python takes.

The three run in turn, so that a busy moment hits them alike; what counts is the median of the differences. The pack
inspected has 500 changed tensors. Ends with 1 beyond 150 ms for the help or 300 ms for the inspection.

    python -m benchmarks.startup [--runs 21]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

import skillpack_format as skp
from benchmarks.results import report
from skillpack_format import recipes

TENSORS: Final = 500
WIDTH: Final = 64
LIMIT_MS: Final = {"skillpack --help": 150.0, "skillpack inspect": 300.0}
EMPTY: Final = "python -c pass"


def make_pack(folder: Path) -> Path:
    """A pack of TENSORS small matrices, each changed by a component of rank 2 and a little noise."""
    random = np.random.default_rng(0)
    names = [f"model.layers.{i // 5}.mlp.part{i % 5}_proj.weight" for i in range(TENSORS)]
    base = {name: random.standard_normal((WIDTH, WIDTH), np.float32) for name in names}
    tuned = {name: value + _change(random) for name, value in base.items()}
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    pack = folder / "many.skp"
    options = skp.ConvertOptions(recipe=recipes.STANDARD)
    made = skp.convert(folder / "base.safetensors", folder / "tuned.safetensors", pack, options)
    assert len(made.tensors) == TENSORS
    return pack


def _change(random: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    left, right = random.standard_normal((WIDTH, 2), np.float32), random.standard_normal((2, WIDTH), np.float32)
    return 0.01 * (left @ right) + 0.001 * random.standard_normal((WIDTH, WIDTH), np.float32)


def milliseconds(command: Sequence[str]) -> float:
    """Wall time of one run that must succeed; Python may keep bytecode, as it does wherever a package is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return 1000 * (time.perf_counter() - start)


def measure(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[float]]:
    """``runs`` times of every command, in turn, after one run each that only fills the caches of files and bytecode."""
    for command in commands.values():
        milliseconds(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(milliseconds(command))
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.startup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=21, help="runs of each command (default: %(default)s)")
    options = parser.parse_args(arguments)
    skillpack = str(Path(sys.executable).with_name("skillpack"))
    with tempfile.TemporaryDirectory() as folder:
        pack = make_pack(Path(folder))
        commands = {
            EMPTY: [sys.executable, "-c", "pass"],
            "skillpack --help": [skillpack, "--help"],
            "skillpack inspect": [skillpack, "inspect", str(pack)],
        }
        times = measure(commands, options.runs)
        nbytes = pack.stat().st_size
    beyond = {name: _beyond(times, name) for name in LIMIT_MS}
    headers = ["command", "median ms", "least ms", "beyond empty Python ms", "limit ms", "within"]
    rows = [[EMPTY, f"{statistics.median(times[EMPTY]):.0f}", f"{min(times[EMPTY]):.0f}", "", "", ""]]
    for name, limit in LIMIT_MS.items():
        total = [f"{statistics.median(times[name]):.0f}", f"{min(times[name]):.0f}"]
        rows.append([name, *total, f"{beyond[name]:.0f}", f"{limit:.0f}", "yes" if beyond[name] <= limit else "no"])
    report.show("Start-up", headers, rows)
    text = f"{options.runs} runs of each, in turn; the fourth column is the median of the differences within a turn. "
    text += f"The pack inspected has {TENSORS} changed tensors and {nbytes:,} bytes.\n\n"
    report.write("startup.md", "benchmarks.startup", "Start-up", text + report.markdown(headers, rows))
    return 0 if all(beyond[name] <= limit for name, limit in LIMIT_MS.items()) else 1


def _beyond(times: Mapping[str, Sequence[float]], name: str) -> float:
    """What ``name`` takes longer than an empty Python of the same turn."""
    return statistics.median(one - empty for one, empty in zip(times[name], times[EMPTY], strict=True))


if __name__ == "__main__":
    sys.exit(main())
