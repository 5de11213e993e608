"""The bench made of ``kernel.c``: what ``NumpyBench`` does, without leaving the cache of the processor.

The library is compiled when the package is installed, if there is a C compiler; where it is missing, numpy makes the
same bits. Only this module calls it, and what it passes on is checked here: every size is that of an array, every array
has the dtype, shape and order that the kernel reads or writes. The call gives the interpreter lock back.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING, Any, Final

from skillpack_format.arithmetic import NUMPY_BENCH, Bench, HostBench, nonfinite, overflow
from skillpack_format.dtypes import Array, DType
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

KERNEL: Final = 1  # SKILLPACK_KERNEL of kernel.c: a library left from another version is not called
_ROWS, _COLS = 8, 32  # of a tile, and so of packed factors
_KINDS: Final = {"product": 0, "levels": 1, "values": 2, "outer": 3}
_DTYPES: Final = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}
_NONFINITE, _OVERFLOW = 1, 2


class _Addend(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("addends", ctypes.POINTER(_Addend)),
        ("source_dtype", ctypes.c_int64),
        ("target_dtype", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("addend_count", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """Codes (items, rank) as the kernel multiplies them: tiles of rows or columns, four codes of each side by side."""

    tiles: Array
    shape: tuple[int, int]


@dataclass(slots=True)
class Pending:
    """An accumulator that is not summed up before its result is wanted."""

    source: Array  # (rows, cols) bit patterns or float64
    dtype: str
    where: str
    addends: list[tuple[str, int, float, Array, Array | None]] = field(default_factory=list)


class NativeBench(HostBench):
    """The compiled bench. ``variant`` is one of the kernel's that this processor has, the best if not given."""

    block_items = 1 << 19  # fewer calls; a tile at a time is in the first cache whatever the block

    def __init__(self, library: ctypes.CDLL, variant: int | None = None) -> None:
        self._library = library
        self.variant = int(library.skillpack_variant()) if variant is None else variant

    def accumulator(self, bits: Array, dtype: DType, shape: tuple[int, int], where: str) -> Pending:
        return Pending(_checked(bits.reshape(shape), dtype.bit_pattern, shape), dtype.name, where)

    def left(self, codes: NDArray[np.int8]) -> Packed:
        rows, rank = codes.shape
        tiles = np.empty((-(-rows // _ROWS), -(-rank // 4), _ROWS, 4), np.uint8)
        self._library.skillpack_pack_left(_address(_checked(codes, np.int8, codes.shape)), rows, rank, _address(tiles))
        return Packed(tiles, (rows, rank))

    def right(self, codes: NDArray[np.int8]) -> Packed:
        cols, rank = codes.shape
        tiles = np.empty((-(-cols // _COLS), 1 + -(-rank // 4), _COLS, 4), np.int8)
        self._library.skillpack_pack_right(_address(_checked(codes, np.int8, codes.shape)), cols, rank, _address(tiles))
        return Packed(tiles, (cols, rank))

    def add_product(self, acc: Pending, left: Packed, right: Packed, scale: float) -> None:
        (rows, cols), rank = acc.source.shape, left.shape[1]
        if (left.shape, right.shape) != ((rows, rank), (cols, rank)):
            raise ValueError(f"factors of shapes {left.shape} and {right.shape} for a sum of shape {rows, cols}")
        quads = -(-rank // 4)
        tiles = (
            _checked(left.tiles, np.uint8, (-(-rows // _ROWS), quads, _ROWS, 4)),
            _checked(right.tiles, np.int8, (-(-cols // _COLS), 1 + quads, _COLS, 4)),
        )
        acc.addends.append(("product", quads, scale, *tiles))

    def add_levels(self, acc: Pending, levels: NDArray[np.int16], scales: NDArray[np.float32], group: int) -> None:
        rows, cols = acc.source.shape
        group = max(1, min(group, cols))  # the kernel divides by it
        checked = _checked(levels, np.int16, (rows, cols)), _checked(scales, np.float32, (rows, -(-cols // group)))
        acc.addends.append(("levels", group, 0.0, *checked))

    def add_values(self, acc: Pending, values: NDArray[np.float32]) -> None:
        acc.addends.append(("values", 0, 0.0, _checked(values, np.float32, acc.source.shape), None))

    def add_outer(self, acc: Pending, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        rows, cols = acc.source.shape
        rank = left.shape[0]
        checked = _checked(left, np.float64, (rank, rows)), _checked(right, np.float64, (rank, cols))
        acc.addends.append(("outer", rank, 0.0, *checked))

    def add_at(self, acc: Pending, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        summed = self._summed(acc, "F64", np.dtype(np.float64))
        NUMPY_BENCH.add_at(summed, positions, values)
        acc.source, acc.dtype, acc.addends = summed, "F64", []

    def float32(self, acc: Pending) -> NDArray[np.float32]:
        return self._summed(acc, "F32", np.dtype(np.float32))

    def rounded(self, acc: Pending, dtype: DType, where: str) -> Array:
        return self._summed(acc, dtype.name, dtype.bit_pattern, bounded_at=where)

    def _summed(self, acc: Pending, dtype: str, item: np.dtype[Any], *, bounded_at: str | None = None) -> NDArray[Any]:
        """The one call: ``acc`` as (rows, cols) of ``dtype``. payload.nonfinite; where bounded, payload.overflow."""
        rows, cols = acc.source.shape
        target = np.empty((rows, cols), item)
        addends = (_Addend * len(acc.addends))()
        for slot, (kind, count, scale, left, right) in zip(addends, acc.addends, strict=True):
            slot.kind, slot.count, slot.scale = _KINDS[kind], count, scale
            slot.left, slot.right = _address(left), None if right is None else _address(right)
        job = _Job(
            source=_address(acc.source),
            target=_address(target),
            addends=addends,
            source_dtype=_DTYPES[acc.dtype],
            target_dtype=_DTYPES[dtype],
            rows=rows,
            cols=cols,
            addend_count=len(acc.addends),
        )
        found = self._library.skillpack_make(ctypes.byref(job), self.variant)
        if found & _NONFINITE:
            raise nonfinite(acc.where)
        if found & _OVERFLOW and bounded_at is not None:
            raise overflow(dtype, bounded_at)
        return target


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel; None where it was not built, or is another version's."""
    folder = os.path.dirname(__file__)
    names = EXTENSION_SUFFIXES if sys.byteorder == "little" else ()
    return next(filter(None, (_loaded(os.path.join(folder, f"_kernel{name}")) for name in names)), None)


@cache
def cpu_bench() -> Bench:
    """The faster bench of this processor; the bits are the same.

    numpy's where nothing was compiled, and where the kernel has plain C alone: its products are slower than a BLAS's.
    """
    found = kernel()
    return NUMPY_BENCH if found is None or found.skillpack_variant() == 0 else NativeBench(found)


def _loaded(path: str) -> ctypes.CDLL | None:
    number, address = ctypes.c_int64, ctypes.c_void_p
    try:
        found = ctypes.CDLL(path)
        for name, result, arguments in (
            ("kernel", number, ()),
            ("variant", number, ()),
            ("make", number, (ctypes.POINTER(_Job), number)),
            ("pack_left", None, (address, number, number, address)),
            ("pack_right", None, (address, number, number, address)),
        ):
            function = getattr(found, f"skillpack_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # not there, of another machine, or of something else
        return None
    return found if found.skillpack_kernel() == KERNEL else None


def _checked(values: Array, dtype: Any, shape: tuple[int, ...]) -> Array:
    """``values`` as the kernel reads them: of this dtype and shape, row after row."""
    if values.dtype != dtype or values.shape != shape:
        raise ValueError(f"{values.dtype} of shape {values.shape}, {np.dtype(dtype)} of shape {shape} is due")
    return np.ascontiguousarray(values)


def _address(values: Array) -> int:
    address: int = values.__array_interface__["data"][0]
    return address
