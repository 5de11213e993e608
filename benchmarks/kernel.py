"""Sums of low-rank slices, a nanosecond of processor an element: every variant of the kernel, and numpy.

BF16 matrices of a Llama's shapes, with the ranks that the packs of ``benchmarks.apply`` have, of about 1 % and 5 %. All
must make the same bits; ends with 1 where they do not. Times are the best of some runs, of one thread.

    python -m benchmarks.kernel [--runs 9]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.results import report
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.dtypes import DTYPES, float32_to_bits
from skillpack_format.native import NativeBench, kernel

SHAPES: Final = ((2048, 2048), (2048, 5632))
RANKS: Final = {"1 %": (3, 7, 20, 69), "5 %": (16, 39, 110, 385)}
BF16: Final = DTYPES["BF16"]
VARIANTS: Final = ("plain C", "AVX2", "AVX-512 and VNNI")


def benches() -> dict[str, Bench]:
    """Those that run here."""
    found: dict[str, Bench] = {"numpy": NUMPY_BENCH}
    built = kernel()
    if built is not None:
        best = NativeBench(built).variant
        found.update({f"kernel, {VARIANTS[each]}": NativeBench(built, each) for each in range(best + 1)})
    return found


def work(shape: tuple[int, int], ranks: tuple[int, ...]) -> Callable[[Bench], Any]:
    """All of a tensor, block by block as ``making`` does it."""
    rows, cols = shape
    random = np.random.default_rng(1)
    start = float32_to_bits(random.standard_normal(shape, np.float32) * np.float32(0.02), BF16)
    slices = [[random.integers(-8, 8, (dim, rank)).astype(np.int8) for dim in shape] for rank in ranks]

    def made(bench: Bench) -> Any:
        right = [bench.right(v) for _, v in slices]
        step = bench.block_items // cols
        found = []
        for first in range(0, rows, step):
            block = slice(first, min(first + step, rows))
            acc = bench.accumulator(start[block], BF16, start[block].shape, "")
            for (u, _), each in zip(slices, right, strict=True):
                bench.add_product(acc, bench.left(u[block]), each, 1e-6)
            found.append(bench.rounded(acc, BF16, ""))
        return np.concatenate(found)

    return made


def nanoseconds(made: Callable[[Bench], Any], bench: Bench, runs: int) -> float:
    """Of an element, the best of ``runs``."""
    times = []
    for _ in range(runs):
        start = time.thread_time_ns()
        size = made(bench).size
        times.append((time.thread_time_ns() - start) / size)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    rows, is_equal = [], True
    for name, ranks in RANKS.items():
        for shape in SHAPES:
            made = work(shape, ranks)
            wanted = made(NUMPY_BENCH)
            for label, bench in benches().items():
                is_equal &= np.array_equal(made(bench), wanted)
                rows.append([name, f"{shape[0]} x {shape[1]}", label, f"{nanoseconds(made, bench, options.runs):.2f}"])
    header = ["pack", "matrix", "bench", "ns an element"]
    report.show("Sums of low-rank slices", header, rows)
    table = report.markdown(header, rows)
    bits = "All made the same bits." if is_equal else "**They made different bits.**"
    if kernel() is None:
        bits += " The kernel is not built here."
    command = f"benchmarks.kernel --runs {options.runs}"
    report.write("kernel.md", command, "Sums of low-rank slices", f"{_about()}\n\n{table}\n\n{bits}")
    return 0 if is_equal else 1


def _about() -> str:
    return f"One thread, time of the processor, best of some runs; slices of ranks {RANKS['1 %']} and {RANKS['5 %']}."


if __name__ == "__main__":
    sys.exit(main())
