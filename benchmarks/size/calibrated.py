"""What `--calibrate` is worth: bytes against function error with and without measured weights, on one pair.

The texts are training texts of the pair, those that the function error is measured on are not among them. Ends with 1
where calibrated packs are larger at an error that both reach.

    python -m benchmarks.size.calibrated PAIR [--prices 0.7,0.1,0.01,0.002] [--classes]
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks.results import report
from benchmarks.size import ours, pairs
from benchmarks.size.change import Change
from benchmarks.size.curves import TARGETS, Point, reach
from benchmarks.size.functions import Function, function_of
from skillpack_format import sensitivity

PRICES: Final = (0.7, 0.1, 0.01, 0.002)
CLASSES: Final = {  # as sensitivity.py tells them
    "queries and keys": r".*(query|key|q_proj|k_proj)\.weight",
    "values": r".*(value|v_proj)\.weight",
    "output projections": r".*(attention\.output\.dense|o_proj)\.weight",
    "MLP": r".*(intermediate\.dense|(?<!attention\.)output\.dense|gate_proj|up_proj|down_proj)\.weight",
}


def curve(
    change: Change, function: Function, work: Path, prices: Sequence[float], weights: Mapping[str, float]
) -> list[Point]:
    """Packs at every price, whole file, the function error of what ``apply`` makes of them."""
    points = []
    for price in prices:
        packed = ours.pack(change, work, *ours.lossy(price, weights))
        points.append(Point(packed.label, packed.nbytes, function.error(packed.tensors)))
        how = "calibrated" if weights else "data-free"
        print(
            f"{change.pair.name} {how} {points[-1].label}: {points[-1].nbytes:,} bytes, error {points[-1].error:.3g}",
            flush=True,
        )
    return points


def show_classes(weights: Mapping[str, float]) -> None:
    """The constants of ``sensitivity`` beside what was measured: geometric means by class, an MLP's being 1."""
    means = {}
    for name, pattern in CLASSES.items():
        found = [math.log(value) for tensor, value in weights.items() if re.fullmatch(pattern, tensor)]
        means[name] = math.exp(sum(found) / len(found)) if found else math.nan
    rows = []
    for name, pattern in CLASSES.items():
        constants = {sensitivity.of_name(tensor) for tensor in weights if re.fullmatch(pattern, tensor)}
        ratio = means[name] / means["MLP"]
        rows.append([name, f"{ratio:.2f}", f"{math.sqrt(ratio):.2f}", ", ".join(f"{each:g}" for each in constants)])
    print(report.markdown(["class", "harm of a unit of squared error", "its root", "sensitivity.py"], rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one pair that is there, or is trained now."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.size.calibrated", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("pair", choices=[pair.name for pair in pairs.PAIRS])
    parser.add_argument("--prices", default=",".join(map(str, PRICES)), help="of the plans (default: %(default)s)")
    parser.add_argument("--classes", action="store_true", help="only show what was measured by class of matrix")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pair = pairs.ensure([options.pair])[0]
    change, function = Change(pair), function_of(pair)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        found = ours.calibration(change, function, work)
        print(f"{found.texts} texts, {found.tokens} tokens")
        show_classes(found.weights)
        if options.classes:
            return 0
        function.prepare(change.base, change.tuned)
        prices = [float(price) for price in options.prices.split(",")]
        free, calibrated = (curve(change, function, work, prices, each) for each in ({}, found.weights))
    rows, is_worse = [], False
    for target in TARGETS:
        before, after = reach(free, target), reach(calibrated, target)
        if before is None or after is None or before.is_bound or after.is_bound:
            continue
        rows.append(
            [
                f"{target:g}",
                f"{before.nbytes / 1e6:.3f} MB",
                f"{after.nbytes / 1e6:.3f} MB",
                f"{after.nbytes / before.nbytes:.3f}",
            ]
        )
        is_worse |= after.nbytes > before.nbytes
    print(report.markdown(["error", "data-free", "calibrated", "ratio"], rows))
    return int(is_worse)


if __name__ == "__main__":
    sys.exit(main())
