"""Lossless packs against zstandard, alone and as a patch: bytes of one fine-tune in float32, float16 and bfloat16.

``zstd -19`` compresses the tuned checkpoint by itself; ``zstd -19 --patch-from`` compresses it given the base, with a
window that holds both. Every result is decoded again and compared, the pack's tensor by tensor.
Ends with 1 if one tensor differs.

    python -m benchmarks.lossless [--out DIR] [--seconds 75]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
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


def zstd_alone(out: Path, dtype: str) -> Row:
    """The tuned file at LEVEL on one thread."""
    tuned = _weights(out, dtype)[1].read_bytes()
    start = time.perf_counter()
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(tuned)
    middle = time.perf_counter()
    exact = zstandard.ZstdDecompressor().decompress(packed) == tuned
    end = time.perf_counter()
    return Row(dtype, f"zstd -{LEVEL}", len(packed), len(tuned), middle - start, end - middle, exact)


def zstd_patch(out: Path, dtype: str) -> Row:
    """The tuned file at LEVEL, given the base file: by the program, or where there is none by a raw dictionary."""
    program = shutil.which("zstd")
    return _patch_by_program(program, out, dtype) if program else _patch_by_dictionary(out, dtype)


def _patch_by_program(program: str, out: Path, dtype: str) -> Row:
    base, tuned = _weights(out, dtype)
    patch, result = out / "tuned.zst", out / "patched.safetensors"
    window = f"--long={_window_log(base, tuned)}"
    given = [f"--patch-from={base}", window, "--force", "--quiet"]
    start = time.perf_counter()
    _run([program, f"-{LEVEL}", *given, str(tuned), "-o", str(patch)])
    middle = time.perf_counter()
    _run([program, "--decompress", *given, str(patch), "-o", str(result)])
    end = time.perf_counter()
    exact = result.read_bytes() == tuned.read_bytes()
    name = f"zstd -{LEVEL} --patch-from base (zstd {_version(program)})"
    return Row(dtype, name, patch.stat().st_size, tuned.stat().st_size, middle - start, end - middle, exact)


def _patch_by_dictionary(out: Path, dtype: str) -> Row:
    """What Python's zstandard can do; it finds less than the program does, so the row says what it is."""
    files = _weights(out, dtype)
    base, tuned = (file.read_bytes() for file in files)
    start = time.perf_counter()
    given = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    settings = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(tuned), dict_size=len(base), window_log=_window_log(*files), enable_ldm=True
    )
    packed = zstandard.ZstdCompressor(dict_data=given, compression_params=settings).compress(tuned)
    middle = time.perf_counter()
    exact = zstandard.ZstdDecompressor(dict_data=given).decompress(packed) == tuned
    end = time.perf_counter()
    name = f"zstd -{LEVEL}, base as a raw dictionary"
    return Row(dtype, name, len(packed), len(tuned), middle - start, end - middle, exact)


def _weights(out: Path, dtype: str) -> tuple[Path, Path]:
    base, tuned = pair_of(out, dtype)
    return base / "model.safetensors", tuned / "model.safetensors"


def _window_log(base: Path, tuned: Path) -> int:
    """A window that holds both, so that all of the base stays in sight to the end."""
    return (base.stat().st_size + tuned.stat().st_size).bit_length()


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # it says how one might do better


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return said.partition(" v")[2].partition(",")[0]


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
        rows += [zstd_patch(options.out, dtype), zstd_alone(options.out, dtype)]
        for row in rows[-3:]:
            print(" ".join(row.cells()), flush=True)
    cells = [row.cells() for row in rows]
    report.show("MiniLM fine-tune without loss", HEADERS, cells)
    text = (
        "One fine-tune of all-MiniLM-L6-v2 (`benchmarks/minilm.py`) in three dtypes; bytes are those of whole files. "
    )
    text += "A pack also proves its base and its result by digest; the time of both is in its figures. "
    text += f"`zstd -{LEVEL}` is Python's zstandard {zstandard.__version__} on one thread; the patch is made by "
    text += "the program `zstd` as it stands, with a window that holds both files, where that is installed.\n\n"
    report.write("lossless.md", "benchmarks.lossless", "Lossless packs", text + report.markdown(HEADERS, cells))
    return 0 if all(row.exact for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
