"""``blockq``: integer codes with a scale a group (spec/encodings/blockq.md).

value = (2q - zero) * scale, an exact product. The zero point counts half steps, so one formula covers symmetric codes,
asymmetric ones and 1-bit signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from skillpack_format import bits as packing_of
from skillpack_format.arithmetic import SMALLEST_SCALE, Bench, Block, DeviceArray, Grid, require_scales
from skillpack_format.codes import CodeMatrix, Levels, spread
from skillpack_format.dtypes import DType, bits_to_float32, dtype_named, float32_to_bits
from skillpack_format.encodings._base import (
    Additive,
    Encoded,
    Parts,
    PartSpec,
    Rewriting,
    Target,
    Window,
    Windowed,
)
from skillpack_format.errors import error
from skillpack_format.fields import integer, made, one_of, require_keys
from skillpack_format.groups import symmetric_codes
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE_DTYPES: Final = ("BF16", "F16", "F32")
LARGEST_SCALE: Final = 2.0**127  # rounds to no infinity


class Params(NamedTuple):
    bits: int
    group: int
    packing: str
    scale: DType
    zero: int | None  # None: one a group, in the part `zeros`

    def groups(self, cols: int) -> int:
        return -(-cols // self.group)


@dataclass(frozen=True, slots=True)
class Adding:
    levels: Levels  # (stack * rows, cols)
    rows: int  # of one matrix

    def touched(self, block: Block) -> NDArray[np.int64] | None:
        return None

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        levels = self.levels.take(block.rows)
        bench.add_levels(acc, bench.half_steps(levels), levels.scales, levels.group)

    def crop(self, window: Window) -> Adding:
        return Adding(self.levels.take(_rows(window, self.rows)).narrow(window.cols), window.shape[0])


class Blockq:
    name = "blockq"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, ("bits", "group", "packing", "scale"), ("zero",), where)
        bits = integer(plain, "bits", 1, 8, where, "manifest.parameter")
        group = integer(plain, "group", 1, 1 << 32, where, "manifest.parameter")
        packing = one_of(plain, "packing", packing_of.PACKINGS, where, "manifest.parameter")
        scale = dtype_named(one_of(plain, "scale", SCALE_DTYPES, where, "manifest.parameter"), where)
        zero = integer(plain, "zero", 0, (2 << bits) - 2, where, "manifest.parameter") if "zero" in plain else None
        return made(Params, (bits, group, packing, scale, zero))

    def adds(self, params: Params) -> bool:
        return True

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return 0

    def planes(self, params: Params, target: Target) -> list[int]:
        grid = target.grid
        codes = packing_of.packed_nbytes(grid.items, params.bits, params.packing)
        scales = grid.stack * grid.rows * params.groups(grid.cols)
        return [codes] + [scales] * (params.scale.itemsize + (2 if params.zero is None else 0))

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        scales = grid.stack * grid.rows * params.groups(grid.cols)
        codes = PartSpec("codes", 1, packing_of.packed_nbytes(grid.items, params.bits, params.packing))
        zeros = () if params.zero is not None else (PartSpec("zeros", 2, scales),)
        return codes, PartSpec("scales", params.scale.itemsize, scales), *zeros

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        grid = target.grid
        return _adding(params, slice(0, grid.items), grid.items, grid, parts, where)

    def runs(self, params: Params, target: Target, window: Window) -> Mapping[str, slice]:
        grid, rows = target.grid, _rows(window, target.grid.rows)
        groups = params.groups(grid.cols)
        scales = slice(rows.start * groups, rows.stop * groups)
        codes = packing_of.packed_run(_items(rows, grid), grid.items, params.bits, params.packing)
        return {"codes": codes, "scales": scales, **({} if params.zero is not None else {"zeros": scales})}

    def open_window(
        self, params: Params, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        grid, rows = target.grid, _rows(window, target.grid.rows)
        height = window.shape[0]
        of_window = Grid(1, height, grid.cols)
        whole_rows = _adding(params, _items(rows, grid), grid.items, of_window, parts, where)
        return whole_rows.crop(Window(0, slice(0, height), window.cols))


def _rows(window: Window, rows: int) -> slice:
    """The window's rows, counted over the whole stack of matrices of ``rows``."""
    first = window.matrix * rows
    return slice(first + window.rows.start, first + window.rows.stop)


def _items(rows: slice, grid: Grid) -> slice:
    return slice(rows.start * grid.cols, rows.stop * grid.cols)


def _adding(params: Params, run: slice, count: int, grid: Grid, parts: Parts, where: str) -> Adding:
    """Rows of ``grid``, whole: the codes ``run`` of ``count``, and their groups' items in ``parts``."""
    shape = grid.stack * grid.rows, grid.cols
    codes = CodeMatrix.of_run(parts["codes"], run, count, shape, params.bits, params.packing, where)
    scales = bits_to_float32(parts["scales"], params.scale)
    require_scales(scales, where)
    table = shape[0], params.groups(grid.cols)
    zeros = params.zero if params.zero is not None else _zeros(params, parts, where).reshape(table)
    return Adding(Levels(codes, zeros, scales.reshape(table), params.group), grid.rows)


def _zeros(params: Params, parts: Parts, where: str) -> NDArray[np.int16]:
    zeros = parts["zeros"]
    if (zeros > (2 << params.bits) - 2).any():
        raise error("payload.code", where, f"a zero point is above {(2 << params.bits) - 2} half steps")
    return zeros.astype(np.int16)


def rounded(
    delta: NDArray[np.float32], bits: int, group: int, packing: str, reaches: Sequence[float] = (1.0,)
) -> Encoded:
    """Round-to-nearest codes of ``delta`` (rows, cols), symmetric, and unbiased BF16 scales, one a group of columns.

    Unbiased: what a group makes keeps its inner product with the delta, for shrinkage does more harm than noise.
    ``reaches``: shares of a group's largest magnitude that its levels may go up to; that of least error is taken.
    """
    starts = np.arange(0, delta.shape[1], min(group, delta.shape[1]))
    energy = np.add.reduceat(np.square(delta, dtype=np.float64), starts, axis=1)  # (rows, groups)
    codes, scales, error = _unbiased(delta, energy, starts, bits, group, reaches[0])
    for reach in reaches[1:]:
        more, found, found_error = _unbiased(delta, energy, starts, bits, group, reach)
        is_less = found_error < error  # (rows, groups)
        codes = np.where(spread(is_less, group, delta.shape[1]), more, codes)
        scales, error = np.where(is_less, found, scales), np.minimum(found_error, error)
    stored = float32_to_bits(scales, dtype_named("BF16")).reshape(-1)
    params = {"bits": bits, "group": group, "packing": packing, "scale": "BF16", "zero": (1 << bits) - 1}
    return Encoded("blockq", params, {"codes": packing_of.pack(codes, bits, packing), "scales": stored})


def _unbiased(
    delta: NDArray[np.float32],
    energy: NDArray[np.float64],
    starts: NDArray[np.int64],
    bits: int,
    group: int,
    reach: float,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float64]]:
    """Codes (rows, cols), scales (rows, groups), and the squared error (rows, groups) before those become BF16."""
    codes, _ = symmetric_codes(delta, bits, group, dtype_named("BF16"), reach)
    levels = 2 * codes.astype(np.float32) - np.float32((1 << bits) - 1)
    agreement = np.add.reduceat(np.multiply(delta, levels, dtype=np.float64), starts, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = energy / agreement  # infinite or no number where nothing agrees: no scale that can be used
    scales = np.where((exact >= SMALLEST_SCALE) & (exact < LARGEST_SCALE), exact, 0.0)
    lengths = np.add.reduceat(np.square(levels, dtype=np.float64), starts, axis=1)
    return codes, scales.astype(np.float32), energy - 2 * scales * agreement + scales**2 * lengths


ENCODING: Final[Windowed] = Blockq()
