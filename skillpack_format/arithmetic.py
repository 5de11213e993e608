"""The arithmetic of applying, defined to the bit (spec/numerics.md).

A tensor is a stack of matrices; it is made block by block, a block being some rows of one matrix, so that float64
accumulation never needs more memory than a block. The device enters only through ``Bench``: numpy is the reference,
``torch_bridge`` brings another. Every operation asked of a bench is exact or correctly rounded element by element,
so all benches give the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from skillpack_format.codes import CodeMatrix, Levels
from skillpack_format.dtypes import Array, DType, bits_to_float32, float32_to_bits, largest_magnitude
from skillpack_format.errors import SkillPackError, error
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT_PRODUCT: Final = 1 << 24  # num.exact-product: float32 holds every integer up to here
MAX_SLICES: Final = 64  # of a low-rank component; bands of factors likewise
SMALLEST_SCALE: Final = 2.0**-100  # payload.scale: products with codes and bases never become subnormal
WIDENED_ITEMS: Final = 1 << 22  # 32 MiB of float64: a tall matrix is never widened whole
BLOCK_ITEMS: Final = 1 << 18  # 2 MiB of float64: every step finds what the one before left in the cache

DeviceArray = Any  # what a bench computes with: numpy.ndarray, torch.Tensor, or something of its own


class Grid(NamedTuple):
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
    """The device an accumulator lives on, and what can be added to it there.

    An accumulator holds (rows, cols) float64. Every ``add_`` adds in place, and what it is given stays as it is until
    ``rounded`` or ``float32``: a bench may put the work off till then.

    Codes come as they are stored and are unpacked where the bench computes: ``signed``, ``half_steps`` and ``factor``
    give arrays of the device, of which rows and columns may be taken by slices.
    """

    @property
    def block_items(self) -> int:
        """How many elements to work on at a time."""

    def accumulator(self, bits: Array, dtype: DType, shape: tuple[int, int], where: str) -> DeviceArray:
        """The values of F32, F16 or BF16 bit patterns, -0 as +0 (num.zero).

        payload.nonfinite, here or when the sum is asked for, where one is NaN or infinite.
        """

    def for_tensor(self, where: str, items: int) -> AbstractContextManager[Bench]:
        """The bench on which the calling thread makes one tensor, of ``items`` elements and called ``where``.

        A bench of several devices chooses one, and waits until there is room; the others are that bench themselves.
        """

    def signed(self, codes: CodeMatrix) -> DeviceArray:
        """(rows, cols) int8, the codes less 2^(bits - 1)."""

    def half_steps(self, levels: Levels) -> DeviceArray:
        """(rows, cols) int16, 2q - zero."""

    def factor(self, numbers: Levels | NDArray[np.float32], weights: NDArray[np.float64] | None) -> DeviceArray:
        """(r, dim) float64: ``numbers``, or each row of them times its weight (r,), that product rounded."""

    def left(self, codes: DeviceArray) -> DeviceArray:
        """Integer codes (rows, r), as ``signed`` gives them, as the left operand of ``add_product``."""

    def right(self, codes: DeviceArray) -> DeviceArray:
        """Integer codes (cols, r), as ``signed`` gives them, as the right operand of ``add_product``."""

    def add_product(self, acc: DeviceArray, left: DeviceArray, right: DeviceArray, scale: float) -> None:
        """``scale`` times the exact integer product (rows, r) @ (r, cols); every sum stays within 2^24."""

    def add_levels(self, acc: DeviceArray, levels: DeviceArray, scales: NDArray[np.float32], group: int) -> None:
        """Each of ``levels`` (rows, cols), as ``half_steps`` gives them, times the scale of its ``group`` columns:
        ``scales`` (rows, groups)."""

    def add_values(self, acc: DeviceArray, values: NDArray[np.float32]) -> None:
        """``values`` (rows, cols)."""

    def add_outer(self, acc: DeviceArray, left: DeviceArray, right: DeviceArray) -> None:
        """The outer products of the rows of ``left`` (r, rows) and ``right`` (r, cols), one after the other; both as
        ``factor`` gives them. Each product and each sum is rounded by itself (factors.md).
        """

    def add_at(self, acc: DeviceArray, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """``values`` at different ``positions`` of the flat accumulator."""

    def float32(self, acc: DeviceArray) -> NDArray[np.float32]:
        """``acc`` rounded to float32, nearest even, (rows, cols) on the host.

        Valid until the calling thread asks for the next, and so is what ``rounded`` gives.
        """

    def rounded(self, acc: DeviceArray, dtype: DType, where: str) -> Array:
        """``acc`` rounded to float32 and to ``dtype`` (num.round): (rows, cols) bit patterns on the host.

        payload.overflow where one is infinite.
        """

    def spectrum(self, tall: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For writers: eigenvalues, ascending (n,), and eigenvectors, in columns (n, n), of tall^T tall; tall (m, n).

        In float64, but to no bit: devices and numbers of threads differ in the last digits.
        """


class HostBench:
    """What benches of the host's memory do alike: codes are unpacked by numpy, and every tensor is made there."""

    def for_tensor(self, where: str, items: int) -> AbstractContextManager[Any]:
        return nullcontext(self)

    def signed(self, codes: CodeMatrix) -> DeviceArray:
        return codes.signed()

    def half_steps(self, levels: Levels) -> DeviceArray:
        return levels.half_steps()

    def factor(self, numbers: Levels | NDArray[np.float32], weights: NDArray[np.float64] | None) -> DeviceArray:
        values = numbers.numbers() if isinstance(numbers, Levels) else numbers.astype(np.float64)
        return values if weights is None else values * weights[:, None]

    def spectrum(self, tall: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        gram = np.zeros((tall.shape[1], tall.shape[1]))
        for rows in runs_of_rows(tall):
            wide = tall[rows].astype(np.float64)
            gram += wide.T @ wide
        values, vectors = np.linalg.eigh(gram)
        return values, vectors


def runs_of_rows(matrix: NDArray[Any], items: int = WIDENED_ITEMS) -> Iterator[slice]:
    """Slices of rows of at most about ``items`` items, which cover ``matrix`` in order."""
    step = max(1, items // matrix.shape[1])
    for first in range(0, matrix.shape[0], step):
        yield slice(first, first + step)


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


class NumpyBench(HostBench):
    """The reference bench: every operation at once, and the only one where nothing was compiled."""

    block_items = BLOCK_ITEMS

    def __init__(self) -> None:
        self._scratch = Scratch()

    def accumulator(self, bits: Array, dtype: DType, shape: tuple[int, int], where: str) -> DeviceArray:
        values = bits_to_float32(bits, dtype)
        require_finite(values, where, "the base")
        return values.reshape(shape).astype(np.float64) + 0.0

    def left(self, codes: NDArray[np.int8]) -> DeviceArray:
        return codes.astype(np.float32)

    def right(self, codes: NDArray[np.int8]) -> DeviceArray:
        return np.ascontiguousarray(codes.T, np.float32)

    def add_product(self, acc: DeviceArray, left: DeviceArray, right: DeviceArray, scale: float) -> None:
        narrow = np.matmul(left, right, out=self._scratch.take("narrow", acc.shape, np.float32))
        wide = self._scratch.take("wide", acc.shape, np.float64)
        np.copyto(wide, narrow)
        wide *= scale  # exact: 24 + 24 bits
        acc += wide

    def add_levels(self, acc: DeviceArray, levels: NDArray[np.int16], scales: NDArray[np.float32], group: int) -> None:
        cols = acc.shape[1]
        spread = np.repeat(scales.astype(np.float64), min(group, cols), axis=1)[:, :cols]
        acc += levels * spread

    def add_values(self, acc: DeviceArray, values: NDArray[np.float32]) -> None:
        acc += values

    def add_outer(self, acc: DeviceArray, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        for k in range(left.shape[0]):
            acc += left[k][:, None] * right[k]

    def add_at(self, acc: DeviceArray, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        acc.reshape(-1)[positions] += values

    def float32(self, acc: DeviceArray) -> NDArray[np.float32]:
        with np.errstate(over="ignore", under="ignore"):
            rounded: NDArray[np.float32] = acc.astype(np.float32)
        return rounded

    def rounded(self, acc: DeviceArray, dtype: DType, where: str) -> Array:
        return round_to_bits(self.float32(acc), dtype, where)


NUMPY_BENCH: Final = NumpyBench()


def round_to_bits(values: NDArray[np.float32], dtype: DType, where: str) -> Array:
    """float32 to the result dtype, nearest even (num.round); payload.overflow when a value leaves its range."""
    bits = float32_to_bits(values, dtype)
    limit = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype.name]
    if largest_magnitude(bits) >= limit:
        raise overflow(dtype.name, where)
    return bits


def require_finite(values: NDArray[Any], where: str, what: str) -> None:
    """Raise payload.nonfinite when a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise nonfinite(where, what)


def nonfinite(where: str, what: str = "the base") -> SkillPackError:
    """What a bench says of a value to which nothing can be added."""
    return error("payload.nonfinite", where, f"{what} holds NaN or infinity; only finite values can be added to")


def overflow(dtype: str, where: str) -> SkillPackError:
    """What a bench says of a sum that its dtype cannot hold."""
    return error("payload.overflow", where, f"a result is outside the range of {dtype}")


def require_scales(scales: NDArray[Any], where: str) -> None:
    """Scales are finite, +0, or at least 2^-100 in magnitude (payload.scale)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused below, in words and without numpy's warning
        wide = scales.astype(np.float64)
    legal = np.isfinite(wide) & ((np.abs(wide) >= SMALLEST_SCALE) | ((wide == 0) & ~np.signbit(wide)))
    if not legal.all():
        raise error("payload.scale", where, "a scale is not finite, is -0, or is below 2^-100 without being zero")
