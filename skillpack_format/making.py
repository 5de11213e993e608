"""From a base tensor and opened components to the result tensor: the decode rule of the format (spec/numerics.md).

Used by ``apply`` on what a pack holds and by ``convert`` on what it is about to write, so both make the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from skillpack_format import estimation
from skillpack_format.arithmetic import Bench, Block, Grid, require_finite, require_range, round_to_bits
from skillpack_format.contents import is_compatible, target_of
from skillpack_format.digest import Bytes, TensorKind
from skillpack_format.dtypes import (
    Array,
    DType,
    bits_to_float32,
    bits_to_float64,
    convert_bits,
    dtype_named,
    tensor_nbytes,
)
from skillpack_format.encodings._base import Additive, Rewriting
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUN_ITEMS: Final = 1 << 18  # that a rewriting component is given at a time


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to one tensor: additive components in order, then perhaps one that rewrites."""

    additive: Sequence[Additive]
    rewriting: Rewriting | None


@dataclass(frozen=True, slots=True)
class Start:
    """START before any dtype conversion: bit patterns of ``dtype``, as many elements as the result has."""

    bits: Array
    dtype: DType


def start_of(base: Bytes | None, base_kind: TensorKind | None, result: TensorKind) -> Start:
    """The base's values, rows cut or zero rows added; all zeros where nothing can be made from the base (num.start)."""
    target = target_of(result)
    count = tensor_nbytes(target.dtype, target.shape) // (target.dtype.itemsize or 1)
    if base is None or base_kind is None or not is_compatible(base_kind, result):
        return Start(np.zeros(count, target.dtype.bit_pattern), target.dtype)
    dtype = dtype_named(base_kind.dtype)
    bits = np.frombuffer(base, dtype.bit_pattern)
    if bits.size > count:
        bits = bits[:count]
    elif bits.size < count:
        bits = np.concatenate([bits, np.zeros(count - bits.size, dtype.bit_pattern)])
    return Start(bits, dtype)


def start_blocks(
    read: Callable[[int], Bytes] | None, base_kind: TensorKind | None, result: TensorKind
) -> tuple[Callable[[slice], Array], DType]:
    """As ``start_of``, for a base whose next bytes ``read`` gives: what ``made_blocks`` takes, and its dtype."""
    target = target_of(result)
    if read is None or base_kind is None or not is_compatible(base_kind, result):
        return lambda items: np.zeros(items.stop - items.start, target.dtype.bit_pattern), target.dtype
    dtype = dtype_named(base_kind.dtype)
    width = dtype.bit_pattern.itemsize
    available = tensor_nbytes(dtype, base_kind.shape) // width

    def of_base(items: slice) -> Array:
        count = items.stop - items.start
        known = min(max(available - items.start, 0), count)
        bits = np.frombuffer(read(known * width), dtype.bit_pattern)
        return bits if known == count else np.concatenate([bits, np.zeros(count - known, bits.dtype)])

    return of_base, dtype


def make(start: Start, result: TensorKind, change: Change, bench: Bench, where: str) -> Array:
    """The result's bit patterns, flat. payload.nonfinite and payload.overflow name what cannot be added."""
    made = np.empty(start.bits.size, target_of(result).dtype.bit_pattern)
    for items, bits in made_blocks(lambda items: start.bits[items], start.dtype, result, change, bench, where):
        made[items] = bits
    return made


def made_blocks(
    read: Callable[[slice], Array], dtype: DType, result: TensorKind, change: Change, bench: Bench, where: str
) -> Iterator[tuple[slice, Array]]:
    """The result in blocks: which elements, in order and without gap, and their bit patterns.

    ``read`` gives the bit patterns, of ``dtype``, of elements of START; it is asked for each block once, in order.
    A block is valid until the next one is asked for.
    Where components add and one rewrites, there is one block: they see the tensor in different pieces.
    """
    target = target_of(result)
    grid = target.grid if target.dtype.itemsize else Grid.of((tensor_nbytes(target.dtype, target.shape),))
    if change.rewriting is None:
        yield from _added_blocks(read, dtype, target.dtype, grid, change.additive, bench, where)
    elif not change.additive:
        for items in _runs(grid.items, change.rewriting.span):
            source = read(items)
            bits = source if dtype == target.dtype else convert_bits(source, dtype, target.dtype)
            yield items, change.rewriting.rewrite(bits, items.start)
    else:
        made = np.empty(grid.items, target.dtype.bit_pattern)
        for items, bits in _added_blocks(read, dtype, target.dtype, grid, change.additive, bench, where):
            made[items] = bits
        for items in _runs(grid.items, change.rewriting.span):
            made[items] = change.rewriting.rewrite(made[items], items.start)
        yield slice(0, grid.items), made


def _runs(items: int, span: int) -> Iterator[slice]:
    """Runs of some elements that begin at multiples of ``span``, so that nothing is needed of a tensor's size twice."""
    step = -(-RUN_ITEMS // span) * span
    for first in range(0, items, step):
        yield slice(first, min(first + step, items))


def _added_blocks(
    read: Callable[[slice], Array],
    source_dtype: DType,
    dtype: DType,
    grid: Grid,
    additive: Sequence[Additive],
    bench: Bench,
    where: str,
) -> Iterator[tuple[slice, Array]]:
    """START with what the additive components add, in blocks of rows."""
    is_estimated = bench.estimates and source_dtype.name == dtype.name == "BF16" and _has_estimate(additive)
    for block in grid.blocks(estimation.BLOCK_ITEMS if is_estimated else bench.block_items):
        source = read(block.items)
        bits = _estimated(source, additive[0], dtype, block, where) if is_estimated else None
        if bits is None:
            bits = source if source_dtype == dtype else convert_bits(source, source_dtype, dtype)
            if additive:
                bits = _add(source, source_dtype, bits, dtype, block, additive, bench, where)
        yield block.items, bits


def _has_estimate(additive: Sequence[Additive]) -> bool:
    return len(additive) == 1 and hasattr(additive[0], "estimate")  # see encodings._base.Estimating


def delta_of(grid: Grid, additive: Sequence[Additive], bench: Bench) -> NDArray[np.float32]:
    """The sum of additive components alone, rounded to float32: flat."""
    delta = np.empty(grid.items, np.float32)
    for block in grid.blocks(bench.block_items):
        acc = bench.float64(np.zeros(block.shape))
        for component in additive:
            component.add(acc, block, bench)
        delta[block.items] = bench.float32(acc).reshape(-1)
    return delta


def _add(
    source: Array,
    source_dtype: DType,
    start: Array,
    dtype: DType,
    block: Block,
    additive: Sequence[Additive],
    bench: Bench,
    where: str,
) -> Array:
    """START's bits where nothing was added, the rounded sum where something was."""
    values = bits_to_float32(source, source_dtype)
    touched = _touched(additive, block)
    require_finite(values if touched is None else values[touched], where, "the base")
    with np.errstate(invalid="ignore"):  # a signalling NaN that no component addresses is no error
        acc = bench.float64(values.reshape(block.shape) + np.float32(0))  # num.zero: -0 counts as +0
    for component in additive:
        component.add(acc, block, bench)
    summed = bench.float32(acc).reshape(-1)
    if touched is None:
        return round_to_bits(summed, dtype, where)
    made = start.copy()
    made[touched] = round_to_bits(summed[touched], dtype, where)
    return made


def _estimated(start: Array, component: Any, dtype: DType, block: Block, where: str) -> Array | None:
    """What ``_add`` makes, by an estimate of every element; None where that cannot be, or settles too few."""
    estimate = component.estimate(block)
    found = estimation.settle(start, estimate) if estimate is not None else None
    if found is None or found[1].size > start.size // 16:
        return None
    made, positions = found
    acc = bits_to_float64(start[positions], dtype) + 0.0  # num.zero
    component.add_at(acc, block, positions)
    with np.errstate(over="ignore", under="ignore"):
        made[positions] = round_to_bits(acc.astype(np.float32), dtype, where)
    require_range(made, dtype, where)
    return made


def _touched(additive: Sequence[Additive], block: Block) -> NDArray[np.bool_] | None:
    """The elements of the flat block that any component addresses; None for all of them."""
    found = []
    for component in additive:
        positions = component.touched(block)
        if positions is None:
            return None
        found.append(positions)
    mask = np.zeros(block.items.stop - block.items.start, np.bool_)
    mask[np.concatenate(found)] = True
    return mask
