"""deltatensors 0.2.0 as it is published, every strategy: ``.wdelta`` files written and read by its own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from safetensors.torch import load_file

from benchmarks.size.change import Candidate, Change
from benchmarks.size.peers.environment import Environment

SETTINGS: Final = (  # method, label, strategy, the one argument it takes
    ("int4", "0.1 % outliers", "int4", "outlier_fraction=0.001"),
    ("int4", "1 % outliers", "int4", "outlier_fraction=0.01"),
    ("int4", "5 % outliers", "int4", "outlier_fraction=0.05"),
    ("1-bit rows", "1-bit rows", "quantized", ""),
    ("sparse", "90 % zeros", "sparse", "sparsity=0.9"),
)


def candidates(change: Change, work: Path, environment: Environment) -> Iterator[tuple[str, Candidate]]:
    """(strategy, candidate): nothing lies between two strategies, so each is a curve of its own."""
    environment.require("deltatensors")
    file, rebuilt = work / "change.wdelta", work / "wdelta.safetensors"
    for method, label, strategy, setting in SETTINGS:
        folders = [str(change.pair.base), str(change.pair.tuned)]
        environment.module(
            "benchmarks.size.peers.deltatensors_inside", *folders, str(file), str(rebuilt), strategy, setting
        )
        tensors = {name: value.to(change.base[name].dtype) for name, value in load_file(rebuilt).items()}
        yield method, Candidate(label, file.stat().st_size, tensors)
