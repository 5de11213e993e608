"""Peak memory of ``apply`` on models of growing size, all of equal tensors: it must not grow with the model.

Each size is applied in a process of its own; what is compared is the most that program ever held.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

import skillpack_format as skp
from benchmarks.peak import peak_bytes
from skillpack_format.recipes import RECIPES

TIMES: Final = (1, 2, 5, 10, 20)
SHAPE: Final = (1024, 1024)  # 4 MiB of float32
TENSORS: Final = 8  # of the smallest model
ALLOWED_SPREAD: Final = 1.10


@dataclass(frozen=True)
class Figure:
    times: int
    nbytes: int
    peak: int  # bytes


def make(folder: Path, tensors: int) -> None:
    """A base folder of shards, eight tensors each, and a lossless pack that changes every tensor."""
    for name in ("base", "tuned"):
        (folder / name).mkdir()
    weight_map = []
    for shard in range(tensors // TENSORS):
        file_name = f"model-{shard + 1:05}-of-{tensors // TENSORS:05}.safetensors"
        random = np.random.default_rng(shard)
        names = [f"layers.{shard * TENSORS + each:03}.mlp.up_proj.weight" for each in range(TENSORS)]
        base = {name: random.standard_normal(SHAPE, np.float32) for name in names}
        save_file(base, folder / "base" / file_name)
        tuned = {name: value.copy() for name, value in base.items()}
        for value in tuned.values():
            value[::7] *= np.float32(1.001)
        save_file(tuned, folder / "tuned" / file_name)
        weight_map += [f'"{name}": "{file_name}"' for name in names]
    for name in ("base", "tuned"):
        (folder / name / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{", ".join(weight_map)}}}}}')
    options = skp.ConvertOptions(recipe=RECIPES["lossless"])
    skp.convert(folder / "base", folder / "tuned", folder / "p.skp", options)


def measure(folder: Path) -> int:
    """The peak of one apply, in bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability.memory", str(folder)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def run(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Figure]:
    """The peak at every size."""
    figures = []
    for index, times in enumerate(TIMES):
        folder = root / str(times)
        folder.mkdir()
        make(folder, times * TENSORS)
        nbytes = sum(each.stat().st_size for each in (folder / "base").iterdir())
        figures.append(Figure(times, nbytes, measure(folder)))
        shutil.rmtree(folder)
        progress(index + 1, len(TIMES))
    return figures


def spread(figures: list[Figure]) -> float:
    """The largest peak over the smallest."""
    peaks = [each.peak for each in figures]
    return max(peaks) / min(peaks)


def main() -> None:
    folder = Path(sys.argv[1])
    skp.apply(folder / "base", [folder / "p.skp"], folder / "out", skp.ApplyOptions(threads=2))
    print(peak_bytes())


if __name__ == "__main__":
    main()
