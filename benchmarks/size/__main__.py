"""Make the pairs, run every method on every pair, write results/size.md and results/size.svg.

Ends with 1 when a target is missed; the report says which, by how much.

    python -m benchmarks.size [--pairs NAME,...] [--again] [--only-ours] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.results import report
from benchmarks.size import pairs, tables
from benchmarks.size.chart import Panel, draw
from benchmarks.size.curves import TARGETS
from benchmarks.size.functions import HELD_OUT_PAIRS
from benchmarks.size.measured import NAME, Measured
from benchmarks.size.peers.environment import PACKAGES, Environment

NAMES = [pair.name for pair in pairs.PAIRS]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.size", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", default=",".join(NAMES), help="names, separated by commas (default: all)")
    parser.add_argument("--again", action="store_true", help="measure peers anew, whatever an earlier run kept")
    parser.add_argument("--only-ours", action="store_true", help="peers from earlier runs alone, for a quick look")
    parser.add_argument("--jobs", type=int, default=2, help="pairs measured at a time (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the report of what is there")
    options = parser.parse_args(arguments)
    names = options.pairs.split(",")
    if not options.report:
        chosen = pairs.ensure(names)
        Environment().ensure()
        flags = ["--again"] * options.again + ["--only-ours"] * options.only_ours
        with ThreadPoolExecutor(options.jobs) as pool:
            codes = list(pool.map(lambda pair: _measure(pair.name, flags), chosen))
        if any(codes):
            return 2
    found = [
        Measured.load(pairs.MEASURED / f"{name}.json") for name in names if (pairs.MEASURED / f"{name}.json").exists()
    ]
    missed = write(found)
    print("\n".join(missed) or "every target is met")
    return 1 if missed else 0


def write(found: Sequence[Measured]) -> list[str]:
    """Write the report and the picture; what was missed."""
    missed = tables.missed(found)
    panels = [
        Panel(f"{each.pair}: {each.tuned_bytes / 1e6:.1f} MB", list(each.curves.items()), each.tuned_bytes)
        for each in found
    ]
    (report.FOLDER / "size.svg").write_text(draw(panels, NAME), encoding="utf-8")
    report.write("size.md", "benchmarks.size", "Bytes against function error", _body(found, missed))
    return missed


def _measure(name: str, flags: Sequence[str]) -> int:
    """One pair in a process of its own, so that memory is given back and two pairs use two cores."""
    command = [sys.executable, "-m", "benchmarks.size.measure", name, *flags]
    return subprocess.run(command, check=False, cwd=report.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def _body(found: Sequence[Measured], missed: Sequence[str]) -> str:
    kept, families = sum(each.kept for each in found), sum(each.families for each in found)
    run = (
        f"Of {families} families of peers, each counted once a pair, {kept} come from an earlier run of the same code."
    )
    parts = [
        HOW.format(held_out=2 * HELD_OUT_PAIRS, run=run if kept else "Peers and SkillPack were measured together.")
    ]
    parts += ["## In short", tables.headline(found), "![Bytes against function error](size.svg)"]
    parts += ["## What was aimed at and missed", "\n".join(f"- {line}" for line in missed) or "Nothing."]
    parts += ["## The pairs", _pairs(found)]
    lacking = [name for name in NAMES if name not in {each.pair for each in found}]
    parts += [f"Not in this report, because not measured: {', '.join(lacking)}."] * bool(lacking)
    parts += ["## SkillPack against the best peer", tables.ratios(found)]
    parts += ["## Without loss", LOSSLESS, tables.lossless(found)]
    parts.append(f"## Bytes at a function error of {', '.join(f'{target:g}' for target in TARGETS)}")
    for each in found:
        parts += [f"### {each.pair}", tables.at_errors(each)]
        parts += [f"Left out: {'; '.join(f'{name}: {why}' for name, why in each.absent.items())}."] * bool(each.absent)
    parts += ["## Packs against the entropy of their codes", ENTROPY, tables.entropy(found)]
    return "\n\n".join(parts)


def _pairs(found: Sequence[Measured]) -> str:
    headers = ["pair", "bytes", "weights that differ", "what the training moved", "measured"]
    rows = [[e.pair, f"{e.tuned_bytes:,}", f"{100 * e.weights_changed:.1f} %", e.reached, e.when] for e in found]
    return report.markdown(headers, rows)


HOW = f"""Each pair is trained by `benchmarks/size/pairs.py` from local text. Bytes are those of all that has to be
shipped beside the base, read from the file; an error is measured on the checkpoint that the method really rebuilds,
in float32: for MiniLM E|f(packed) - f(tuned)|² / E|f(base) - f(tuned)|² over {{held_out}} held-out texts, f the
sentence embedding; for the language model KL(tuned || packed) / KL(tuned || base) over held-out text.
0 keeps everything, 1 is as far away as the base. {{run}}

Real peers: {", ".join(requirements[0] for requirements in PACKAGES.values())}, zstd, xdelta3, bsdiff. "Clean-room" is a
version written here from the paper; its file is a safetensors header and one zstd -19 frame a tensor, which is
kinder than what the peer's code writes. GPTQ and `SkillPack --calibrate` are given the same training texts, none of
which is held out; everything else sees weights alone. "≤" is the smallest file measured, whose error is lower than
asked."""

LOSSLESS = "Bytes; every file was undone and compared, bit by bit."

ENTROPY = """Zeroth-order entropy of the codes of each part of each component, the frequency tables not counted, against
the bytes of the whole file. Aim: at most 5 % over, on packs of more than 1 MB."""


if __name__ == "__main__":
    sys.exit(main())
