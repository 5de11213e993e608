"""From a base tensor and opened components to the result tensor: the decode rule of the format (spec/numerics.md).

Used by ``apply`` on what a pack holds and by ``convert`` on what it is about to write, so both make the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from skillpack_format.arithmetic import Bench, Block, DeviceArray, Grid
from skillpack_format.contents import is_compatible, target_of
from skillpack_format.digest import Bytes, TensorKind
from skillpack_format.dtypes import (
    Array,
    DType,
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
        with bench.for_tensor(where, grid.items) as chosen:
            yield from _added_blocks(read, dtype, target.dtype, grid, change.additive, chosen, where)
    elif not change.additive:
        for items in _runs(grid.items, change.rewriting.span):
            source = read(items)
            bits = source if dtype == target.dtype else convert_bits(source, dtype, target.dtype)
            yield items, change.rewriting.rewrite(bits, items.start)
    else:
        made = np.empty(grid.items, target.dtype.bit_pattern)
        with bench.for_tensor(where, grid.items) as chosen:
            for items, bits in _added_blocks(read, dtype, target.dtype, grid, change.additive, chosen, where):
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
    for block in grid.blocks(bench.block_items):
        source = read(block.items)
        bits = source if source_dtype == dtype else convert_bits(source, source_dtype, dtype)
        yield block.items, _add(source, source_dtype, bits, dtype, block, additive, bench, where) if additive else bits


def delta_of(grid: Grid, additive: Sequence[Additive], bench: Bench, where: str = "") -> NDArray[np.float32]:
    """The sum of additive components alone, rounded to float32: flat."""
    delta = np.empty(grid.items, np.float32)
    with bench.for_tensor(where, grid.items) as chosen:
        for items, acc in summed_blocks(grid, additive, chosen):
            delta[items] = chosen.float32(acc).reshape(-1)
    return delta


def summed_blocks(grid: Grid, additive: Sequence[Additive], bench: Bench) -> Iterator[tuple[slice, DeviceArray]]:
    """The sum of additive components alone, in blocks: which elements, in order, and the bench's accumulator."""
    zero = dtype_named("F32")
    for block in grid.blocks(bench.block_items):
        acc = bench.accumulator(np.zeros(block.shape, zero.bit_pattern), zero, block.shape, "")
        for component in additive:
            component.add(acc, block, bench)
        yield block.items, acc


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
    touched = _touched(additive, block)
    addressed = source if touched is None else np.where(touched, source, source.dtype.type(0))
    acc = bench.accumulator(addressed, source_dtype, block.shape, where)
    for component in additive:
        component.add(acc, block, bench)
    made = bench.rounded(acc, dtype, where).reshape(-1)
    return made if touched is None else np.where(touched, made, start)


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
