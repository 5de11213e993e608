"""The arithmetic of applying, defined to the bit (spec/numerics.md).

A tensor is a stack of matrices; it is made block by block, a block being some rows of one matrix, so that float64
accumulation never needs more memory than a block. The device enters only through ``Bench``: numpy is the reference,
``torch_bridge`` brings another. Every operation asked of a bench is exact or correctly rounded element by element,
so all benches give the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from skillpack_format.dtypes import Array, DType, float32_to_bits, largest_magnitude
from skillpack_format.errors import error
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT_PRODUCT: Final = 1 << 24  # num.exact-product: float32 holds every integer up to here
MAX_SLICES: Final = 64  # of a low-rank component; bands of factors likewise
SMALLEST_SCALE: Final = 2.0**-100  # payload.scale: products with codes and bases never become subnormal
BLOCK_ITEMS: Final = 1 << 18  # 2 MiB of float64: every step finds what the one before left in the cache

DeviceArray = Any  # what a bench computes with: numpy.ndarray or torch.Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """A tensor's shape seen as ``stack`` matrices of ``rows`` x ``cols`` (num.matrix)."""

    stack: int
    rows: int
    cols: int

    @staticmethod
    def of(shape: tuple[int, ...]) -> Grid:
        padded = (1, 1, *shape)
        stack = 1
        for dim in padded[:-2]:
            stack *= dim
        return Grid(stack, padded[-2], padded[-1])

    @property
    def items(self) -> int:
        return self.stack * self.rows * self.cols

    def blocks(self, items: int = BLOCK_ITEMS) -> Iterator[Block]:
        """Every element once, in order, about ``items`` at a time; how many changes no result."""
        if self.items == 0:
            return
        step = max(1, items // self.cols)
        for matrix in range(self.stack):
            for first in range(0, self.rows, step):
                yield Block(self, matrix, first, min(first + step, self.rows))


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``first`` to ``last`` (exclusive) of one matrix of the stack."""

    grid: Grid
    matrix: int
    first: int
    last: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.last - self.first, self.grid.cols

    @property
    def rows(self) -> slice:
        """The block's rows, counted over the whole stack."""
        start = self.matrix * self.grid.rows
        return slice(start + self.first, start + self.last)

    @property
    def items(self) -> slice:
        """The block's elements in the flat tensor."""
        rows = self.rows
        return slice(rows.start * self.grid.cols, rows.stop * self.grid.cols)


class Bench(Protocol):
    """The device an accumulator lives on."""

    @property
    def block_items(self) -> int:
        """How many elements to work on at a time."""

    @property
    def estimates(self) -> bool:
        """Whether float32 estimates on the host (``estimation``) are faster than exact sums here; same bits."""

    def float64(self, values: NDArray[Any]) -> DeviceArray:
        """``values`` widened exactly to float64 on the device, same shape."""

    def factor(self, codes: NDArray[np.int8]) -> DeviceArray:
        """Integer codes as the operand of ``product``."""

    def product(self, left: DeviceArray, right: DeviceArray) -> DeviceArray:
        """The exact integer product (rows, r) @ (r, cols) as float64; every sum stays within 2^24.

        It is the caller's to change, until it asks for the next one in the same thread.
        """

    def index(self, positions: NDArray[np.int64]) -> DeviceArray:
        """``positions`` for indexing a device array."""

    def float32(self, acc: DeviceArray) -> NDArray[np.float32]:
        """``acc`` rounded to float32, nearest even, on the host."""


class Scratch:
    """Arrays that each thread uses again and again: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._local = threading.local()

    def take(self, name: str, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
        """The thread's array of that name, its content whatever it was."""
        items = shape[0] * shape[1]
        whole: NDArray[Any] | None = getattr(self._local, name, None)
        if whole is None or whole.size < items:
            whole = np.empty(items, dtype)
            setattr(self._local, name, whole)
        return whole[:items].reshape(shape)


class NumpyBench:
    """The reference bench."""

    block_items = BLOCK_ITEMS
    estimates = True

    def __init__(self) -> None:
        self._scratch = Scratch()

    def float64(self, values: NDArray[Any]) -> DeviceArray:
        return values.astype(np.float64)

    def factor(self, codes: NDArray[np.int8]) -> DeviceArray:
        return codes.astype(np.float32)

    def product(self, left: DeviceArray, right: DeviceArray) -> DeviceArray:
        shape = (left.shape[0], right.shape[1])
        narrow = np.matmul(left, right, out=self._scratch.take("narrow", shape, np.float32))
        wide = self._scratch.take("wide", shape, np.float64)
        np.copyto(wide, narrow)
        return wide

    def index(self, positions: NDArray[np.int64]) -> DeviceArray:
        return positions

    def float32(self, acc: DeviceArray) -> NDArray[np.float32]:
        with np.errstate(over="ignore", under="ignore"):
            rounded: NDArray[np.float32] = acc.astype(np.float32)
        return rounded


NUMPY_BENCH: Final = NumpyBench()


def round_to_bits(values: NDArray[np.float32], dtype: DType, where: str) -> Array:
    """float32 to the result dtype, nearest even (num.round); payload.overflow when a value leaves its range."""
    bits = float32_to_bits(values, dtype)
    require_range(bits, dtype, where)
    return bits


def require_range(bits: Array, dtype: DType, where: str) -> None:
    """Raise payload.overflow when a rounded sum is infinite."""
    limit = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype.name]
    if largest_magnitude(bits) >= limit:
        raise error("payload.overflow", where, f"a result is outside the range of {dtype.name}")


def require_finite(values: NDArray[Any], where: str, what: str) -> None:
    """Raise payload.nonfinite when a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise error("payload.nonfinite", where, f"{what} holds NaN or infinity; only finite values can be added to")


def require_scales(scales: NDArray[Any], where: str) -> None:
    """Scales are finite, +0, or at least 2^-100 in magnitude (payload.scale)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused below, in words and without numpy's warning
        wide = scales.astype(np.float64)
    legal = np.isfinite(wide) & ((np.abs(wide) >= SMALLEST_SCALE) | ((wide == 0) & ~np.signbit(wide)))
    if not legal.all():
        raise error("payload.scale", where, "a scale is not finite, is -0, or is below 2^-100 without being zero")
