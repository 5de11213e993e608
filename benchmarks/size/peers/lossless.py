"""Lossless changes: programs and libraries that are published, and clean-room versions of published layouts.

Each yields the bytes of what must be shipped, having undone it and compared every bit.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import zstandard

from benchmarks.size.change import Change
from benchmarks.size.peers.environment import Absent, Environment
from benchmarks.size.peers.packing import LEVEL, raw_bytes

MOST_FOR_BSDIFF: Final = 16_000_000  # it sorts all suffixes: minutes and 17 times the memory


@dataclass(frozen=True, slots=True)
class Exact:
    """One lossless file."""

    method: str
    nbytes: int


def zstd_patch(change: Change, work: Path, environment: Environment) -> Exact:
    """``zstd -19 --patch-from``, with a window that holds both files."""
    program = _program("zstd")
    base, tuned = change.pair.base_file(), change.pair.tuned_file()
    patch, back = work / "patch.zst", work / "back"
    window = (base.stat().st_size + tuned.stat().st_size).bit_length()
    given = [f"--patch-from={base}", f"--long={window}", "--force", "--quiet"]
    _run([program, f"-{LEVEL}", *given, str(tuned), "-o", str(patch)])
    _run([program, "--decompress", *given, str(patch), "-o", str(back)])
    return Exact(f"zstd -{LEVEL} --patch-from", _checked(patch, back, tuned))


def xdelta(change: Change, work: Path, environment: Environment) -> Exact:
    """``xdelta3 -9 -S lzma``, with a source window that holds the base."""
    program = _program("xdelta3")
    base, tuned = change.pair.base_file(), change.pair.tuned_file()
    patch, back = work / "patch.xd3", work / "back"
    window = ["-B", str(max(1 << 26, 1 << base.stat().st_size.bit_length()))]
    _run([program, "-e", "-9", "-S", "lzma", *window, "-f", "-s", str(base), str(tuned), str(patch)])
    _run([program, "-d", *window, "-f", "-s", str(base), str(patch), str(back)])
    return Exact("xdelta3 -9 -S lzma", _checked(patch, back, tuned))


def bsdiff(change: Change, work: Path, environment: Environment) -> Exact:
    """``bsdiff``, on files small enough for its memory and time."""
    program, undo = _program("bsdiff"), _program("bspatch")
    base, tuned = change.pair.base_file(), change.pair.tuned_file()
    if tuned.stat().st_size > MOST_FOR_BSDIFF:
        raise Absent(f"left out above {MOST_FOR_BSDIFF:,} bytes: it takes minutes and 17 times the memory")
    patch, back = work / "patch.bs", work / "back"
    _run([program, str(base), str(tuned), str(patch)])
    _run([undo, str(base), str(back), str(patch)])
    return Exact("bsdiff", _checked(patch, back, tuned))


def zipnn(change: Change, work: Path, environment: Environment) -> Exact:
    """ZipNN's delta, by its own code."""
    version = environment.require("zipnn")
    out = work / "zipnn"
    dtype = {"bf16": "bfloat16", "f32": "float32"}[change.pair.dtype]
    files = [str(change.pair.base_file()), str(change.pair.tuned_file())]
    environment.module("benchmarks.size.peers.zipnn_inside", *files, dtype, str(out))
    return Exact(f"ZipNN {version} delta", out.stat().st_size)


def xor_planes(change: Change, work: Path, environment: Environment) -> Exact:
    """XOR with the base, byte planes, zstd: ZipLLM's BitX, clean-room."""
    return Exact(
        "XOR, byte planes, zstd -19 (BitX's layout, clean-room)", _planes(change, np.bitwise_xor, np.bitwise_xor)
    )


def ordered_planes(change: Change, work: Path, environment: Environment) -> Exact:
    """Difference of order-preserving integers, zigzag, byte planes, zstd: clean-room."""

    def code(tuned: np.ndarray, base: np.ndarray) -> np.ndarray:
        difference = _ordered(tuned) - _ordered(base)  # modulo 2^bits
        signed = difference.view(difference.dtype.str.replace("u", "i"))
        return ((signed << 1) ^ (signed >> (8 * signed.itemsize - 1))).view(difference.dtype)

    def undo(coded: np.ndarray, base: np.ndarray) -> np.ndarray:
        one = coded.dtype.type(1)
        difference = (coded >> one) ^ (~(coded & one) + one)
        return _unordered(_ordered(base) + difference)

    return Exact("float-ordered difference, byte planes, zstd -19 (clean-room)", _planes(change, code, undo))


def sparse_values(change: Change, work: Path, environment: Environment) -> Exact:
    """Positions as int32 and values of all that differs, one file, zstd: TRL's weight sync, clean-room."""
    total = 0
    for name, base, tuned in _changed_bits(change):
        positions = np.flatnonzero(base != tuned).astype(np.int32)
        back = base.copy()
        back[positions] = tuned[positions]
        assert np.array_equal(back, tuned), name
        total += min(
            _compressed(positions.tobytes()) + _compressed(tuned[positions].tobytes()), _compressed(tuned.tobytes())
        )
    return Exact("int32 positions and values, zstd -19 (TRL's weight sync, clean-room)", total)


METHODS: Final[Sequence[Callable[[Change, Path, Environment], Exact]]] = (
    zipnn,
    zstd_patch,
    xdelta,
    bsdiff,
    xor_planes,
    ordered_planes,
    sparse_values,
)


def _planes(change: Change, code: Callable[..., np.ndarray], undo: Callable[..., np.ndarray]) -> int:
    """Bytes of all changed tensors, each byte of the code in a plane of its own; every tensor undone and compared."""
    total = 0
    for name, base, tuned in _changed_bits(change):
        coded = code(tuned, base)
        assert np.array_equal(undo(coded, base), tuned), name
        planes = coded.view(np.uint8).reshape(-1, coded.itemsize)
        total += sum(_compressed(np.ascontiguousarray(planes[:, k]).tobytes()) for k in range(coded.itemsize))
    return total


def _changed_bits(change: Change) -> list[tuple[str, np.ndarray, np.ndarray]]:
    names = [*change.linears, *change.embeddings, *change.vectors]
    return [(name, _bits(change.base[name]), _bits(change.tuned[name])) for name in names]


def _bits(value: torch.Tensor) -> np.ndarray:
    return np.frombuffer(raw_bytes(value), f"<u{value.element_size()}")


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of the floats they are the bits of."""
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _unordered(ordered: np.ndarray) -> np.ndarray:
    top = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
    return np.where(ordered & top, ordered & ~top, ~ordered)


def _compressed(data: bytes) -> int:
    return min(len(data), len(zstandard.ZstdCompressor(level=LEVEL).compress(data)))


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Absent(f"the program {name} is not installed")
    return path


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _checked(patch: Path, back: Path, tuned: Path) -> int:
    assert back.read_bytes() == tuned.read_bytes(), "the patch does not make the file again"
    return patch.stat().st_size
