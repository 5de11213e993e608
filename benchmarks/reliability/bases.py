"""Bases with one bit changed: each must be refused as the wrong base, and nothing may appear.

Changed and unchanged tensors of several dtypes alike; the bit is any of a tensor's data.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import skillpack_format as skp
from skillpack_format.errors import SkillPackError
from skillpack_format.recipes import RECIPES
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import read_header


@dataclass
class Tally:
    tried: int = 0
    by_tensor: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def make(root: Path) -> dict[str, tuple[Path, Path]]:
    """Two pairs of base and pack: a lossless one and a lossy one."""
    random_numbers = np.random.default_rng(11)
    base = {
        "embed.weight": random_numbers.standard_normal((12, 8)).astype(np.float32),
        "layers.0.mlp.up_proj.weight": random_numbers.standard_normal((8, 8)).astype(np.float16),
        "layers.0.norm.weight": random_numbers.standard_normal(8).astype(np.float32),
        "ids": np.arange(9, dtype=np.int64),
        "mask": np.arange(16) % 3 == 0,
        "unchanged.weight": random_numbers.standard_normal((4, 8)).astype(np.float64),
    }
    tuned = {name: value.copy() for name, value in base.items()}
    for name in ("embed.weight", "layers.0.mlp.up_proj.weight", "layers.0.norm.weight"):
        tuned[name] += np.asarray(0.1 * random_numbers.standard_normal(tuned[name].shape), tuned[name].dtype)
    tuned["ids"][3] = 77
    save_file(base, root / "base.safetensors", metadata={"format": "pt"})
    save_file(tuned, root / "tuned.safetensors", metadata={"format": "pt"})
    found = {}
    for recipe in ("lossless", "standard"):
        pack = root / f"{recipe}.skp"
        options = skp.ConvertOptions(recipe=RECIPES[recipe])
        skp.convert(root / "base.safetensors", root / "tuned.safetensors", pack, options)
        found[recipe] = (root / "base.safetensors", pack)
    return found


def run(count: int, root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Tally:
    """``count`` bases, or as many as there are until Ctrl-C, each with another bit changed, spread over the tensors."""
    tally = Tally()
    pairs = list(make(root).values())
    out = root / "out.safetensors"
    with SourceFile(pairs[0][0]) as source:
        header = read_header(source, skp.Limits())
    places, at = [], header.data_start
    for spec in header.tensors:
        places.append((spec.name, at, spec.nbytes))
        at += spec.nbytes
    harmed = root / "harmed.safetensors"
    blob = pairs[0][0].read_bytes()
    harmed.write_bytes(blob)
    chance = random.Random(3)
    descriptor = os.open(harmed, os.O_RDWR)
    with suppress(KeyboardInterrupt):
        for index in range(count):
            name, start, nbytes = places[index % len(places)]
            byte, bit = start + chance.randrange(nbytes), chance.randrange(8)
            os.pwrite(descriptor, bytes([blob[byte] ^ (1 << bit)]), byte)
            tally.tried += 1
            tally.by_tensor[name] += 1
            _refuse(
                harmed, pairs[index // len(places) % len(pairs)][1], out, f"bit {bit} of byte {byte}, in {name}", tally
            )
            os.pwrite(descriptor, blob[byte : byte + 1], byte)
            progress(index + 1, count)
    os.close(descriptor)
    return tally


def _refuse(base: Path, pack: Path, out: Path, what: str, tally: Tally) -> None:
    try:
        skp.apply(base, [pack], out)
    except SkillPackError as found:
        tally.codes[found.code] += 1
        if found.exit_status != 3:
            tally.bad.append(f"{what}: {found}")
    else:
        tally.bad.append(f"{what}: applied")
    left = [name for name in os.listdir(out.parent) if name.startswith((out.name, f".{out.name}"))]
    if left:
        tally.bad.append(f"{what}: left {left}")
