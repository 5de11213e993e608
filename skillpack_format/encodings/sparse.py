"""``sparse``: positions and values, added or replacing (spec/encodings/sparse.md).

Positions are gaps, so they ascend and cannot repeat by construction; what is left to check is the count and the last
position. Indices are data that becomes addresses: every check comes before any use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from skillpack_format.arithmetic import Bench, Block, DeviceArray, Grid, require_finite
from skillpack_format.dtypes import Array, DType, bits_to_float32, dtype_named, require_bool
from skillpack_format.encodings._base import Additive, Encoded, Encoding, Parts, PartSpec, Rewriting, Target, Window
from skillpack_format.errors import error
from skillpack_format.fields import integer, made, one_of, require_keys, text
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self  # typing has it from Python 3.11 on

MODES: Final = ("add", "replace")
INDEXES: Final = ("bitmap", "gap16", "gap8")
_KEYS: Final = frozenset(("count", "dtype", "gaps", "index", "mode"))
_WIDTH: Final = {"gap8": 1, "gap16": 2}
Positions: TypeAlias = "NDArray[np.int64]"


class Params(NamedTuple):
    count: int  # type: ignore[assignment]  # this and index are methods of tuple, of which nobody asks
    dtype: DType
    gaps: int
    index: str  # type: ignore[assignment]
    mode: str


@dataclass(frozen=True, slots=True)
class _Placed:
    """Ascending flat positions, one value each."""

    positions: Positions
    values: Array
    grid: Grid

    def crop(self, window: Window) -> Self:
        cols = self.grid.cols
        first = (window.matrix * self.grid.rows + window.rows.start) * cols
        last = (window.matrix * self.grid.rows + window.rows.stop) * cols
        run = slice(*np.searchsorted(self.positions, (first, last)))
        row, col = np.divmod(self.positions[run] - first, cols)
        inside = (col >= window.cols.start) & (col < window.cols.stop)
        width = window.cols.stop - window.cols.start
        positions = row[inside] * width + col[inside] - window.cols.start
        return type(self)(positions, self.values[run][inside], Grid(1, window.rows.stop - window.rows.start, width))

    def within(self, start: int, stop: int) -> tuple[Positions, Array]:
        """Positions in a run of elements, relative to its ``start``, and their values."""
        first, last = np.searchsorted(self.positions, (start, stop))
        return self.positions[first:last] - start, self.values[first:last]


class Replacing(_Placed):
    """Values are bit patterns of the target's dtype."""

    span = 1

    def rewrite(self, bits: Array, first: int) -> Array:
        positions, values = self.within(first, first + bits.size)
        rewritten = bits.copy()
        rewritten[positions] = values
        return rewritten

    def placed(self) -> tuple[Positions | None, Array]:
        return self.positions, self.values


class Adding(_Placed):
    """Values are finite float32."""

    def touched(self, block: Block) -> Positions | None:
        return self.within(block.items.start, block.items.stop)[0]

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        positions, values = self.within(block.items.start, block.items.stop)
        bench.add_at(acc, positions, values)


class Sparse:
    name = "sparse"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, _KEYS, (), where)
        dtype = dtype_named(text(plain, "dtype", where), where)
        mode = one_of(plain, "mode", MODES, where, "manifest.parameter")
        if mode == "replace" and dtype.name != target.dtype.name:
            raise error("manifest.parameter", where, f"dtype {dtype.name} cannot replace {target.dtype.name} values")
        if mode == "add" and not dtype.is_arithmetic:
            raise error("manifest.parameter", where, f"dtype {dtype.name} cannot be added; F32, F16 and BF16 can")
        if not dtype.itemsize:
            raise error("manifest.parameter", where, f"dtype {dtype.name} has no whole-byte elements to address")
        index = one_of(plain, "index", INDEXES, where, "manifest.parameter")
        count = integer(plain, "count", 0, target.numel, where, "manifest.parameter")
        escapes = 0 if index == "bitmap" else target.numel // _escape(index)
        least, most = (0, 0) if index == "bitmap" else (count, count + escapes)
        gaps = integer(plain, "gaps", least, most, where, "manifest.parameter")
        return made(Params, (count, dtype, gaps, index, mode))

    def adds(self, params: Params) -> bool:
        return params.mode == "add"

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return 0

    def planes(self, params: Params, target: Target) -> list[int]:
        width, count = _index_of(params, target)
        return [count] * width + [params.count] * params.dtype.itemsize

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        return PartSpec("index", *_index_of(params, target)), PartSpec("values", params.dtype.itemsize, params.count)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        read = _from_bitmap if params.index == "bitmap" else _from_gaps
        positions = read(parts["index"], params, target.numel, where)
        if params.mode == "replace":
            require_bool(parts["values"], params.dtype, where)
            return Replacing(positions, parts["values"], target.grid)
        values = bits_to_float32(parts["values"], params.dtype)
        require_finite(values, where, "the added values")
        return Adding(positions, values, target.grid)


def _index_of(params: Params, target: Target) -> tuple[int, int]:
    """Of the part ``index``: bytes an item, and how many items."""
    return (1, (target.numel + 7) // 8) if params.index == "bitmap" else (_WIDTH[params.index], params.gaps)


def _escape(index: str) -> int:
    """The code that means: this many positions further, no element."""
    return (1 << (8 * _WIDTH[index])) - 1


def _from_gaps(codes: Array, params: Params, numel: int, where: str) -> Positions:
    escape = _escape(params.index)
    is_element = codes != escape
    if int(np.count_nonzero(is_element)) != params.count or (codes.size and not is_element[-1]):
        raise error("payload.position", where, f"the gaps do not hold {params.count} elements ending with one")
    # position after code k = sum of codes so far + elements before k
    ends = np.cumsum(codes, dtype=np.int64)[is_element]
    positions: Positions = ends + np.arange(params.count, dtype=np.int64)
    if params.count and positions[-1] >= numel:
        raise error("payload.position", where, f"position {positions[-1]} is outside the {numel} elements")
    return positions


def _from_bitmap(packed: Array, params: Params, numel: int, where: str) -> Positions:
    ones = np.unpackbits(packed, bitorder="little")
    if ones[numel:].any():
        raise error("payload.padding-bits", where, "a spare bit of the bitmap is set, all must be zero")
    positions: Positions = np.flatnonzero(ones[:numel])
    if positions.size != params.count:
        raise error("payload.position", where, f"the bitmap holds {positions.size} elements, not {params.count}")
    return positions


def placed(positions: Positions, values: Array, dtype: DType, numel: int, mode: str) -> Encoded:
    """A component with ``values`` (bit patterns of ``dtype``) at ascending flat ``positions``.

    The index coding is the one with the fewest expected bytes: a bitmap above one element in eight, 16-bit gaps
    below one in 250, 8-bit gaps between.
    """
    if positions.size * 8 > numel:
        ones = np.zeros(numel, np.uint8)
        ones[positions] = 1
        index, codes, gaps = "bitmap", np.packbits(ones, bitorder="little"), 0
    else:
        index = "gap16" if positions.size * 250 < numel else "gap8"
        codes = _to_gaps(positions, index)
        gaps = codes.size
    params = {"count": int(positions.size), "dtype": dtype.name, "gaps": gaps, "index": index, "mode": mode}
    return Encoded("sparse", params, {"index": codes, "values": values})


def _to_gaps(positions: Positions, index: str) -> Array:
    escape = _escape(index)
    gaps = np.diff(positions, prepend=-1) - 1
    escapes = gaps // escape
    ends = np.cumsum(escapes + 1)  # index just past each element's code
    codes = np.full(int(ends[-1]) if ends.size else 0, escape, f"<u{_WIDTH[index]}")
    codes[ends - 1] = gaps % escape
    return codes


ENCODING: Final[Encoding] = Sparse()
