"""What SkillPack is asked for: the one list of settings that the benchmark measures, and how a pack is measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

import skillpack_format as skp
from benchmarks.size import causal
from benchmarks.size.change import Candidate, Change
from benchmarks.size.entropy import Entropy, entropy_of
from benchmarks.size.functions import Causal, Encoder, Function
from skillpack_format import planning, recipes

PRICES: Final = (12.0, 3.0, 0.7, 0.1, 0.01, 0.002, 0.0004, 0.0001)  # recipe small is 0.1, standard 0.01
LOSSLESS: Final = ("lossless", skp.ConvertOptions())


@dataclass(frozen=True, slots=True)
class Packed:
    """One pack: the candidate it is, how its bytes compare with its codes' entropy, the seconds it took."""

    candidate: Candidate
    entropy: Entropy
    convert_seconds: float
    apply_seconds: float
    is_exact: bool


def packs(change: Change, work: Path, weights: Mapping[str, float]) -> Iterator[Packed]:
    """Every lossy setting, with the weights that calibration measured or with none."""
    for price in PRICES:
        yield _pack(change, work, *lossy(price, weights))


def lossy(price: float, weights: Mapping[str, float]) -> tuple[str, skp.ConvertOptions]:
    """One lossy setting and what it is called."""
    goal = planning.Quality(price)
    return f"price {price:g}", skp.ConvertOptions(recipe=recipes.STANDARD, goal=goal, weights=weights)


def calibration(change: Change, function: Function, work: Path) -> skp.Calibration:
    """What ``convert --calibrate`` measures on training texts of the pair, which GPTQ of the peers is given as well.

    The texts that function error is measured on are not among them.
    """
    texts = work / "texts.jsonl"
    texts.write_text("".join(json.dumps(text) + "\n" for text in _training_texts(function)), encoding="utf-8")
    return skp.calibrate(change.pair.base, change.pair.tuned, texts)


def _training_texts(function: Function) -> list[str]:
    if isinstance(function, Encoder):
        return function.train
    assert isinstance(function, Causal)
    texts: list[str] = causal.load(function.pair.base)[1].batch_decode(function.train)
    return texts


def lossless(change: Change, work: Path) -> Packed:
    """The lossless pack; every tensor is compared."""
    packed = _pack(change, work, *LOSSLESS)
    if not packed.is_exact:
        raise AssertionError(f"the lossless pack of {change.pair.name} does not make the tuned checkpoint")
    return packed


def pack(change: Change, work: Path, label: str, options: skp.ConvertOptions) -> Candidate:
    """One setting, and nothing but what it makes."""
    return _pack(change, work, label, options).candidate


def _pack(change: Change, work: Path, label: str, options: skp.ConvertOptions) -> Packed:
    """Convert, read the file's size, apply with every proof, load what came out."""
    pack, result = work / "pack.skp", work / "applied"
    threads = min(2, os.cpu_count() or 1)
    start = time.perf_counter()
    skp.convert(change.pair.base, change.pair.tuned, pack, replace(options, threads=threads, overwrite=True))
    middle = time.perf_counter()
    skp.apply(change.pair.base, [pack], result, skp.ApplyOptions(threads=threads, overwrite=True))
    end = time.perf_counter()
    tensors = load_file(result / "model.safetensors")
    exact = all(torch.equal(value, tensors[name]) for name, value in change.tuned.items())
    candidate = Candidate(label, pack.stat().st_size, tensors)
    return Packed(candidate, entropy_of(pack), middle - start, end - middle, exact)
