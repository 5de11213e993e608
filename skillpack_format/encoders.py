"""From two tensors and a treatment to components: the writer's side of the encodings. Pure and deterministic.

An encoder may choose what it likes; what it wrote is judged by making the tensor again (``making``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format import linalg, slicing
from skillpack_format.arithmetic import NUMPY_BENCH, Bench, Grid
from skillpack_format.contents import target_of
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import Array, bits_to_float64, convert_bits, dtype_named, float32_to_bits
from skillpack_format.encodings import blockq, dense, factors, lowrank, sparse, ulp
from skillpack_format.encodings._base import Encoded
from skillpack_format.errors import error
from skillpack_format.making import Start
from skillpack_format.recipes import Bands, Blocks, Prune, Slices

RUN_ITEMS: Final = 1 << 18  # 2 MiB of float64: memory that is used again, and not asked of the system every time
SAMPLE_ITEMS: Final = 1 << 17
LEAST_ROWS: Final = 16  # that are told apart by how much they change (decision 0031)
LEAST_SPREAD: Final = 4.0  # octaves between the row that changes least and the one that changes most
FEWEST_STEPS: Final = 2.0**-10  # a row that does not change counts as one of so many steps an element
CLASSES: Final = (2, 8)
REACHES: Final = (1.0, 0.8, 0.65, 0.5, 0.35)  # of a vector's levels, in shares of its largest change
PACKING: Final = "lanes"  # contents are compressed; packing.md says why whole codes per byte


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor to be made: START, and the bit patterns wanted, of ``kind``.

    The first ``old_items`` elements of START come from the base; the others are rows that a resize adds, zeros so far.
    """

    name: str
    kind: TensorKind
    start: Start
    wanted: Array
    old_items: int

    @property
    def converted(self) -> Array:
        """START in the result's dtype."""
        dtype = target_of(self.kind).dtype
        return self.start.bits if self.start.dtype == dtype else convert_bits(self.start.bits, self.start.dtype, dtype)

    def delta(self) -> NDArray[np.float32]:
        """wanted - START, from exact values, flat; zero in new rows, which are no change of anything.

        convert.nonfinite where there is no such number.
        """
        dtype = dtype_named(self.kind.dtype)
        delta = np.zeros(self.wanted.size, np.float32)
        for run in runs(self.old_items):
            wanted = bits_to_float64(self.wanted[run], dtype)
            start = bits_to_float64(self.start.bits[run], self.start.dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                delta[run] = wanted - start
            if not np.isfinite(delta[run]).all():
                message = "NaN or infinity where a lossy code was asked for; code this tensor exactly with --exact"
                raise error("convert.nonfinite", f"tensor {self.name!r}", message)
        return delta


def mean_square(pair: Pair) -> float:
    """Of START's values in the elements that come from the base."""
    total = 0.0
    for run in runs(pair.old_items):
        values = bits_to_float64(pair.start.bits[run], pair.start.dtype)
        total += float(values @ values)
    return total / max(1, pair.old_items)


def runs(items: int) -> Iterator[slice]:
    """Slices of at most RUN_ITEMS that cover ``items``, in order."""
    for first in range(0, items, RUN_ITEMS):
        yield slice(first, min(first + RUN_ITEMS, items))


def sample(pair: Pair) -> tuple[Pair, float]:
    """Some of the rows that change, as a tensor of its own, and how many times as many there are.

    A small tensor, a vector, and one that does not change in rows of the base, is its own sample.
    """
    if not is_matrix(pair):
        return pair, 1.0
    cols = Grid.of(pair.kind.shape).cols
    start, wanted = (bits[: pair.old_items].reshape(-1, cols) for bits in (pair.start.bits, pair.wanted))
    if pair.wanted.size <= 2 * SAMPLE_ITEMS:
        return pair, 1.0
    changed = np.flatnonzero(
        (pair.converted[: pair.old_items] != pair.wanted[: pair.old_items]).reshape(wanted.shape).any(axis=1)
    )
    if not changed.size:
        return pair, 1.0
    count = min(changed.size, -(-SAMPLE_ITEMS // cols))
    chosen = changed[np.arange(count) * changed.size // count]
    kind = TensorKind(pair.kind.dtype, (count, cols))
    part = Pair(
        pair.name, kind, Start(start[chosen].reshape(-1), pair.start.dtype), wanted[chosen].reshape(-1), count * cols
    )
    return part, changed.size / count


def lossless(pair: Pair) -> Iterator[Encoded]:
    """Every exact code that can make ``wanted``; the caller keeps the one that is smallest once stored."""
    target = target_of(pair.kind)
    if target.dtype.itemsize:
        start = pair.converted
        positions = np.flatnonzero(start != pair.wanted)
        if positions.size * 2 < pair.wanted.size or positions.size == 0:
            yield sparse.placed(positions, pair.wanted[positions], target.dtype, target.numel, "replace")
        if target.dtype.is_ordered:
            yield from differences(pair, start)
    yield dense.replacement(pair.wanted, target.dtype)


def differences(pair: Pair, made: Array) -> Iterator[Encoded]:
    """The exact codes that make ``wanted`` of ``made``, bit patterns of the result's dtype.

    Sorted by rows too where some rows change by far less than others: those of an embedding that training never met.
    """
    dtype = target_of(pair.kind).dtype
    plain = ulp.difference(made, pair.wanted, dtype)
    if not dtype.is_arithmetic:
        yield plain
        return
    yield ulp.difference(made, pair.wanted, dtype, "magnitude")
    grid = Grid.of(pair.kind.shape)
    if grid.stack * grid.rows < LEAST_ROWS:
        return
    steps = plain.parts["diff"].reshape(-1, grid.cols).mean(axis=1, dtype=np.float64)
    octaves = np.log2(steps + FEWEST_STEPS)
    low, spread = octaves.min(), np.ptp(octaves)
    if spread < LEAST_SPREAD:
        return
    for number in CLASSES:
        classes = np.minimum((octaves - low) / spread * number, number - 1).astype(np.uint8)
        yield ulp.difference(made, pair.wanted, dtype, "rows", classes)


def is_lossy_possible(pair: Pair) -> bool:
    """Whether an additive code applies: floats, a vector or a matrix, and something to add to."""
    dtype = dtype_named(pair.kind.dtype)
    return dtype.is_arithmetic and pair.start.dtype.is_arithmetic and len(pair.kind.shape) >= 1 and pair.old_items > 0


def is_matrix(pair: Pair) -> bool:
    """Whether it has rows and columns, or is a stack of what has."""
    return len(pair.kind.shape) >= 2


def decomposed(pair: Pair, reach: float = 0.0, bench: Bench = NUMPY_BENCH) -> list[slicing.Decomposed]:
    """The components of every matrix of the delta, down to a reach (``slicing.reach``)."""
    grid = Grid.of(pair.kind.shape)
    delta = pair.delta().reshape(grid.stack, grid.rows, grid.cols)
    return [slicing.decomposed(each, reach, bench) for each in delta]


def sliced(
    pair: Pair, matrices: Sequence[slicing.Decomposed], treatment: Slices, *, is_nearest: bool = False
) -> SlicedPair:
    """``lowrank``; rows that the base does not have are carried exactly. ``is_nearest``: see ``slicing.sliced``."""
    step, cosine = treatment.step, treatment.cosine
    found = [slicing.sliced(each, step=step, cosine=cosine, is_nearest=is_nearest) for each in matrices]
    stacks = [each.slices for each in found]
    grid = Grid.of(pair.kind.shape)
    merged = [_merge(stacks, k, grid) for k in range(max((len(each) for each in stacks), default=0))]
    encoded = ([lowrank.packed(merged, PACKING)] if merged else []) + _new_rows(pair)
    energy = sum(each.energy for each in found) or 1.0
    spectrum = np.sort(np.concatenate([each.components.s[:4] for each in matrices]))[::-1][:4]
    return SlicedPair(
        tuple(encoded),
        energy=sum(each.kept for each in found) / energy,
        noise=sum(each.noise for each in found) / energy,
        spectrum=tuple(map(float, spectrum)),
    )


@dataclass(frozen=True, slots=True)
class SlicedPair:
    """Components of a tensor's change as slices; ``energy`` kept and ``noise`` made as shares of all energy;
    ``spectrum``: up to four singular values, the largest of all matrices."""

    encoded: tuple[Encoded, ...]
    energy: float
    noise: float
    spectrum: tuple[float, ...]


def blocked(pair: Pair, treatment: Blocks) -> list[Encoded]:
    """``blockq``, its scales such that every group of a row keeps its inner product with the delta."""
    grid = Grid.of(pair.kind.shape)
    delta = pair.delta().reshape(grid.stack * grid.rows, grid.cols)
    reaches = (1.0,) if is_matrix(pair) else REACHES
    return [blockq.rounded(delta, treatment.bits, treatment.group, PACKING, reaches), *_new_rows(pair)]


@dataclass(frozen=True, slots=True)
class StackedSlice:
    """The k-th slice of every matrix of a stack, ranks padded with zero components."""

    scales: NDArray[np.float32]  # (stack,)
    u: NDArray[np.int8]  # (stack, r, rows)
    v: NDArray[np.int8]  # (stack, r, cols)


def _merge(stacks: Sequence[tuple[slicing.Slice, ...]], k: int, grid: Grid) -> StackedSlice:
    rank = max(each[k].u.shape[0] for each in stacks if len(each) > k)
    scales = np.zeros(grid.stack, np.float32)
    u = np.zeros((grid.stack, rank, grid.rows), np.int8)
    v = np.zeros((grid.stack, rank, grid.cols), np.int8)
    for matrix, each in enumerate(stacks):
        if len(each) > k:
            scales[matrix] = each[k].scale
            u[matrix, : each[k].u.shape[0]] = each[k].u
            v[matrix, : each[k].v.shape[0]] = each[k].v
    return StackedSlice(scales, u, v)


def pruned(pair: Pair, treatment: Prune) -> list[Encoded]:
    """``sparse``: the largest changes, in BF16; ties go to the lower position."""
    delta = pair.delta()
    count = min(math.ceil(treatment.keep * delta.size), int(np.count_nonzero(delta)))
    magnitude = np.abs(delta)
    least = np.partition(magnitude, magnitude.size - count)[magnitude.size - count] if count else np.float32(np.inf)
    stronger, equal = np.flatnonzero(magnitude > least), np.flatnonzero(magnitude == least)
    positions = np.sort(np.concatenate([stronger, equal[: count - stronger.size]]))
    bf16 = dtype_named("BF16")
    values = float32_to_bits(np.ascontiguousarray(delta[positions]), bf16)
    numel = target_of(pair.kind).numel
    return [sparse.placed(positions, values, bf16, numel, "add"), *_new_rows(pair)]


def banded(pair: Pair, treatment: Bands, bench: Bench = NUMPY_BENCH) -> list[Encoded]:
    """``factors``. The matrices of a stack share ranks: those of the one that needs most."""
    grid = Grid.of(pair.kind.shape)
    delta = pair.delta().reshape(grid.stack, grid.rows, grid.cols)
    parts = [linalg.svd(each, bench=bench) for each in delta]
    rank = max(min(_rank(s, treatment, min(grid.rows, grid.cols)), s.size) for _, s, _ in parts)
    u = np.zeros((grid.stack, rank, grid.rows), np.float32)
    s = np.zeros((grid.stack, rank), np.float32)
    v = np.zeros((grid.stack, rank, grid.cols), np.float32)
    for matrix, (left, values, right) in enumerate(parts):
        kept = min(rank, values.size)
        u[matrix, :kept], s[matrix, :kept], v[matrix, :kept] = left.T[:kept], values[:kept], right[:kept]
    bands = [
        factors.Band(f"Q{bits}", s[:, part], u[:, part], v[:, part])
        for bits, part in _schedule(treatment.schedule, rank)
    ]
    return ([factors.banded(bands, treatment.group, PACKING)] if bands else []) + _new_rows(pair)


def _schedule(schedule: tuple[tuple[int, float], ...], rank: int) -> Iterator[tuple[int, slice]]:
    """Bits and components of every band that gets any: at least one each, the last takes the rest."""
    start = 0
    for index, (bits, share) in enumerate(schedule):
        stop = rank if index == len(schedule) - 1 else min(rank, start + max(1, round(share * rank)))
        if stop > start:
            yield bits, slice(start, stop)
        start = stop


def _rank(s: NDArray[np.float64], treatment: Bands, most: int) -> int:
    if treatment.rank is not None:
        return max(1, round(treatment.rank * most))
    energy = np.cumsum(s**2)
    if energy.size == 0:
        return 0
    return int(np.searchsorted(energy, (treatment.energy or 1.0) * energy[-1] * (1 - 1e-12)) + 1)


def _new_rows(pair: Pair) -> list[Encoded]:
    first = pair.old_items
    if first >= pair.wanted.size:
        return []
    target = target_of(pair.kind)
    positions = np.arange(first, pair.wanted.size, dtype=np.int64)
    return [sparse.placed(positions, pair.wanted[first:], target.dtype, target.numel, "replace")]
