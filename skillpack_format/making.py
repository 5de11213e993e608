"""From a base tensor and opened components to the result tensor: the decode rule of the format (spec/numerics.md).

Used by ``apply`` on what a pack holds and by ``convert`` on what it is about to write, so both make the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillpack_format.arithmetic import Bench, Block, Grid, require_finite, round_to_bits
from skillpack_format.contents import is_compatible, target_of
from skillpack_format.digest import Bytes, TensorKind
from skillpack_format.dtypes import Array, DType, bits_to_float64, convert_bits, dtype_named, tensor_nbytes
from skillpack_format.encodings._base import Additive, Rewriting
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def make(start: Start, result: TensorKind, change: Change, bench: Bench, where: str) -> Array:
    """The result's bit patterns, flat. payload.nonfinite and payload.overflow name what cannot be added."""
    target = target_of(result)
    grid = target.grid if target.dtype.itemsize else Grid.of((start.bits.size,))
    made = np.empty(start.bits.size, target.dtype.bit_pattern)
    for block in grid.blocks():
        source = start.bits[block.items]
        bits = source if start.dtype == target.dtype else convert_bits(source, start.dtype, target.dtype)
        if change.additive:
            bits = _add(source, start.dtype, bits, target.dtype, block, change.additive, bench, where)
        made[block.items] = bits
    return made if change.rewriting is None else change.rewriting.rewrite(made, 0)


def delta_of(grid: Grid, additive: Sequence[Additive], bench: Bench) -> NDArray[np.float32]:
    """The sum of additive components alone, rounded to float32: flat."""
    delta = np.empty(grid.items, np.float32)
    for block in grid.blocks():
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
    values = bits_to_float64(source, source_dtype)
    touched = _touched(additive, block)
    require_finite(values[touched], where, "the base")
    acc = bench.float64(values.reshape(block.shape) + 0.0)  # num.zero: -0 counts as +0
    for component in additive:
        component.add(acc, block, bench)
    summed = bench.float32(acc).reshape(-1)
    made = start.copy()
    made[touched] = round_to_bits(summed[touched], dtype, where)
    return made


def _touched(additive: Sequence[Additive], block: Block) -> slice | NDArray[np.bool_]:
    """The elements of the flat block that any component addresses."""
    mask = np.zeros(block.items.stop - block.items.start, np.bool_)
    for component in additive:
        positions = component.touched(block)
        if positions is None:
            return slice(None)
        mask[positions] = True
    return mask
