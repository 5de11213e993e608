"""Runs inside the peers' environment: write a ``.wdelta`` file, read it again, keep what it leads to.

python -m benchmarks.size.peers.deltatensors_inside BASE TUNED FILE REBUILT STRATEGY SETTING
"""

from __future__ import annotations

import sys

import deltatensors
import numpy as np
from safetensors.numpy import save_file


def main(base: str, tuned: str, file: str, rebuilt: str, strategy: str, setting: str) -> None:
    name, _, value = setting.partition("=")
    deltatensors.save_delta_from_paths(file, tuned, base, strategy=strategy, **({name: float(value)} if name else {}))
    arrays = deltatensors.load_delta_from_paths(file, base)
    save_file({key: np.ascontiguousarray(array, dtype=np.float32) for key, array in arrays.items()}, rebuilt)


if __name__ == "__main__":
    main(*sys.argv[1:])
