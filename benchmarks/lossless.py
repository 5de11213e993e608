"""Lossless packs against zstandard, alone and as a patch: bytes of one fine-tune in float32, float16 and bfloat16.

``zstd -19`` compresses the tuned checkpoint by itself; ``zstd -19 --patch-from`` (here: the base as a raw dictionary,
a window that holds both) compresses it given the base. Every result is decoded again and compared, the pack's tensor
by tensor. Ends with 1 if one tensor differs.

    python -m benchmarks.lossless [--out DIR] [--seconds 75]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import zstandard
from safetensors import safe_open

import skillpack_format as skp
from benchmarks.kept import DTYPES, OUT, ensure_pair, pair_of
from benchmarks.results import report

LEVEL: Final = 19
HEADERS: Final = ["pair", "code", "bytes", "of tuned", "make s", "undo s", "bit-exact"]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to carry the tuned checkpoint of one pair."""

    dtype: str
    code: str
    nbytes: int
    tuned_bytes: int
    make_seconds: float
    undo_seconds: float
    exact: bool

    def cells(self) -> list[str]:
        share = f"{100 * self.nbytes / self.tuned_bytes:.1f} %"
        seconds = [f"{self.make_seconds:.1f}", f"{self.undo_seconds:.1f}"]
        return [self.dtype, self.code, f"{self.nbytes:,}", share, *seconds, "yes" if self.exact else "no"]


def skillpack(out: Path, dtype: str) -> Row:
    """Convert without loss, apply with every proof."""
    base, tuned = pair_of(out, dtype)
    pack, result = out / "lossless.skp", out / "lossless"
    threads = os.cpu_count() or 1
    start = time.perf_counter()
    skp.convert(base, tuned, pack, skp.ConvertOptions(threads=threads, overwrite=True))
    middle = time.perf_counter()
    skp.apply(base, [pack], result, skp.ApplyOptions(threads=threads, overwrite=True))
    end = time.perf_counter()
    file = tuned / "model.safetensors"
    exact = same_tensors(result / file.name, file)
    name = f"skillpack --lossless, {threads} threads"
    return Row(dtype, name, pack.stat().st_size, file.stat().st_size, middle - start, end - middle, exact)


def zstd(out: Path, dtype: str, *, patch: bool) -> Row:
    """The tuned file at LEVEL on one thread, given the base file or not."""
    base, tuned = ((folder / "model.safetensors").read_bytes() for folder in pair_of(out, dtype))
    start = time.perf_counter()
    if patch:
        given = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        window_log = (len(base) + len(tuned)).bit_length()  # so that all of the base stays in sight to the end
        settings = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, source_size=len(tuned), dict_size=len(base), window_log=window_log, enable_ldm=True
        )
        packed = zstandard.ZstdCompressor(dict_data=given, compression_params=settings).compress(tuned)
    else:
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(tuned)
    middle = time.perf_counter()
    undo = zstandard.ZstdDecompressor(dict_data=given if patch else None)
    exact = undo.decompress(packed) == tuned
    end = time.perf_counter()
    name = f"zstd -{LEVEL} --patch-from base" if patch else f"zstd -{LEVEL}"
    return Row(dtype, name, len(packed), len(tuned), middle - start, end - middle, exact)


def same_tensors(left: Path, right: Path) -> bool:
    """Same names, dtypes, shapes and bits, told by the reference reader."""
    with safe_open(left, "pt") as a, safe_open(right, "pt") as b:
        return set(a.keys()) == set(b.keys()) and all(_same(a.get_tensor(n), b.get_tensor(n)) for n in b.keys())  # noqa: SIM118 - no dict


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.lossless", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where checkpoints and packs go (benchmarks/out)")
    parser.add_argument("--seconds", type=float, default=75, help="about how long to train (default: %(default)s)")
    options = parser.parse_args(arguments)
    ensure_pair(options.out, options.seconds)
    rows = []
    for dtype in DTYPES:
        rows.append(skillpack(options.out, dtype))
        rows += [zstd(options.out, dtype, patch=patch) for patch in (True, False)]
        for row in rows[-3:]:
            print(" ".join(row.cells()), flush=True)
    cells = [row.cells() for row in rows]
    report.show("MiniLM fine-tune without loss", HEADERS, cells)
    text = (
        "One fine-tune of all-MiniLM-L6-v2 (`benchmarks/minilm.py`) in three dtypes; bytes are those of whole files. "
    )
    text += "A pack also proves its base and its result by digest; the time of both is in its figures. "
    text += f"zstd runs on one thread, as Python's zstandard {zstandard.__version__} does it.\n\n"
    report.write("lossless.md", "benchmarks.lossless", "Lossless packs", text + report.markdown(HEADERS, cells))
    return 0 if all(row.exact for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
