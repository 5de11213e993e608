"""The pairs of checkpoints that are measured: what each is, how it is trained, where it lies.

Each is made once, below benchmarks/out/size, with one thread and fixed seeds, and kept while the file READY lies
beside it. Delete a folder to train it anew.

    python -m benchmarks.size.pairs [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.results import report

OUT: Final = report.ROOT / "benchmarks" / "out" / "size"
MEASURED: Final = OUT / "measured"
READY: Final = "READY"  # beside a finished training: what it reached


@dataclass(frozen=True, slots=True)
class Training:
    """How hard the encoder is tuned."""

    steps: int
    rate: float


RANKED: Final = 100  # held-out queries whose answers are ranked, to say what a training reached
LIGHT: Final = Training(30, 5e-5)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two checkpoints. ``kind`` says how function error is computed, ``held_out`` on what."""

    name: str
    kind: str  # "encoder" or "causal"
    dtype: str  # what is stored
    held_out: str  # "functions", "declarations", "python" or "headers"
    base: Path
    tuned: Path
    made: Path  # the training whose READY says what was reached
    training: Training | None = None  # of the encoder; the language model's is in ``causal``

    def base_file(self) -> Path:
        return self.base / "model.safetensors"

    def tuned_file(self) -> Path:
        return self.tuned / "model.safetensors"

    def reached(self) -> str:
        """What the training moved, in words."""
        return (self.made / READY).read_text(encoding="utf-8").strip()


def _encoder(task: str, weight: str, dtype: str, held_out: str, training: Training) -> Pair:
    suffix = "" if dtype == "f32" else f"-{dtype}"
    made = OUT / f"minilm-{task}-{weight}"
    base, tuned = OUT / "minilm" / f"base{suffix}", made / f"tuned{suffix}"
    return Pair(f"minilm-{task}-{weight}-{dtype}", "encoder", dtype, held_out, base, tuned, made, training)


def _causal(name: str, held_out: str) -> Pair:
    made = OUT / f"llama-{name}"
    return Pair(f"llama-{name}-bf16", "causal", "bf16", held_out, OUT / "llama" / "base", made / "tuned", made)


PAIRS: Final = (
    _causal("headers", "headers"),
    _encoder("python", "light", "bf16", "functions", LIGHT),
    _encoder("python", "heavy", "bf16", "functions", Training(70, 4e-4)),
    _causal("preference", "python"),
    _encoder("headers", "light", "bf16", "declarations", Training(16, 1e-4)),
    _encoder("headers", "heavy", "bf16", "declarations", Training(40, 5e-4)),
    _encoder("python", "light", "f32", "functions", LIGHT),
    _encoder("headers", "medium", "bf16", "declarations", Training(26, 2.2e-4)),
)


def ensure(names: Sequence[str]) -> list[Pair]:
    """The pairs of these names, those that are not there yet trained now: one process a family, in turn for two."""
    chosen = [pair for pair in PAIRS if pair.name in names]
    unknown = set(names) - {pair.name for pair in chosen}
    if unknown:
        raise SystemExit(f"no such pair: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PAIRS)}")
    running = []
    for kind in ("causal", "encoder"):
        missing = [pair.name for pair in chosen if pair.kind == kind and not (pair.made / READY).exists()]
        if missing:
            print(f"training {', '.join(missing)}", flush=True)
            command = [sys.executable, "-m", "benchmarks.size.pairs", *missing]
            running.append(subprocess.Popen(command, cwd=report.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a training failed")
    return chosen


def _make(pair: Pair) -> None:
    import torch  # noqa: PLC0415 - the pairs' names are wanted without it

    torch.set_num_threads(1)  # one thread, or the sums depend on how many there are
    if pair.kind == "causal":
        _make_causal(pair)
    else:
        _make_encoder(pair)


def _make_causal(pair: Pair) -> None:
    from benchmarks.size import causal  # noqa: PLC0415

    _once(pair.base.parent, lambda folder: causal.make_base(folder / "base"))
    change = causal.tune if pair.held_out == "headers" else causal.prefer
    _once(pair.made, lambda folder: change(pair.base, folder / "tuned"))


def _make_encoder(pair: Pair) -> None:
    from benchmarks import minilm  # noqa: PLC0415
    from benchmarks.size import texts  # noqa: PLC0415

    plain = OUT / "minilm" / "base"

    def prepare(folder: Path) -> str:
        minilm.prepare_base(folder / "base")
        minilm.cast_checkpoint(folder / "base", folder / "base-bf16", "bf16")
        return "all-MiniLM-L6-v2"

    def tune(folder: Path) -> str:
        train, held_out = minilm.harvest() if pair.held_out == "functions" else texts.declarations()
        data = train, held_out[:RANKED]
        assert pair.training is not None
        steps, rate = pair.training.steps, pair.training.rate
        tuned = folder / "tuned"
        before, after = minilm.train_on(data, plain, tuned, steps=steps, learning_rate=rate, threads=1)
        minilm.cast_checkpoint(tuned, folder / "tuned-bf16", "bf16")
        return f"held-out MRR {before:.3f} -> {after:.3f} in {steps} steps at {rate:g}"

    _once(plain.parent, prepare)
    _once(pair.made, tune)


def _once(folder: Path, make: Callable[[Path], str]) -> None:
    """Fill ``folder`` unless an earlier run finished doing so."""
    if (folder / READY).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reached = make(folder)
    (folder / READY).write_text(reached + "\n", encoding="utf-8")
    print(f"{folder.name}: {reached}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the pairs named, or all of them, one after the other."""
    parser = argparse.ArgumentParser("python -m benchmarks.size.pairs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[pair.name for pair in PAIRS], metavar="NAME")
    names = parser.parse_args(arguments).names
    for pair in PAIRS:
        if pair.name in names:
            _make(pair)
    return 0


if __name__ == "__main__":
    sys.exit(main())
