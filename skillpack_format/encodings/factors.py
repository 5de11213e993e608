"""``factors``: U S V^T in bands of floats or group codes, as GraftLLM writes it (spec/encodings/factors.md).

Float factors have no exact product, so the order is the specification: components one after the other, each product
and each sum rounded to float64 by itself. That makes the result the same everywhere, at the cost of speed on a CPU;
``lowrank`` has no such cost and is preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from skillpack_format import bits as packing_of
from skillpack_format.arithmetic import MAX_SLICES, Bench, Block, DeviceArray, Grid, require_finite, require_scales
from skillpack_format.codes import CodeMatrix, Levels
from skillpack_format.dtypes import DType, bits_to_float32, dtype_named, float32_to_bits
from skillpack_format.encodings._base import (
    Additive,
    Encoded,
    Encoding,
    Parts,
    PartSpec,
    Rewriting,
    Target,
    Term,
    Window,
)
from skillpack_format.errors import error
from skillpack_format.fields import array, integer, one_of, require_keys
from skillpack_format.groups import symmetric_codes
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE_DTYPES: Final = ("BF16", "F16", "F32")
CODES: Final = ("BF16", "F16", "F32", "Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8")
Numbers: TypeAlias = "Levels | NDArray[np.float32]"  # (rows, cols), finite
_BAND_KEYS: Final = ("code", "rank")
_values_of: Final = itemgetter(*_BAND_KEYS)
_BITS: Final = {code: int(code[1:]) if code[0] == "Q" else None for code in CODES}  # None: factors are floats
BandParams: TypeAlias = tuple[str, int]  # code, rank


class Params(NamedTuple):
    bands: Sequence[BandParams]
    group: int
    packing: str
    scale: DType


@dataclass(frozen=True, slots=True)
class OpenBand:
    s: NDArray[np.float64]  # (stack, rank)
    u: Numbers  # (stack * rank, rows)
    v: Numbers  # (stack * rank, cols)

    def weighted(self, matrix: int, bench: Bench) -> tuple[DeviceArray, DeviceArray]:
        """Of one matrix: S U, (rank, rows), and V, (rank, cols)."""
        rank = self.s.shape[1]
        rows = slice(matrix * rank, (matrix + 1) * rank)
        return bench.factor(_taken(self.u, rows), self.s[matrix]), bench.factor(_taken(self.v, rows), None)


@dataclass(frozen=True, slots=True)
class Adding:
    bands: tuple[OpenBand, ...]
    held: dict[tuple[int, Bench], list[tuple[DeviceArray, DeviceArray]]] = field(default_factory=dict)

    def touched(self, block: Block) -> NDArray[np.int64] | None:
        return None

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        key = block.matrix, bench
        if key not in self.held:
            self.held.clear()  # the matrix last asked for is the only one kept
            self.held[key] = [band.weighted(block.matrix, bench) for band in self.bands]
        for us, v in self.held[key]:
            bench.add_outer(acc, us[:, block.first : block.last], v)

    def crop(self, window: Window) -> Adding:
        found = []
        for band in self.bands:
            rank = band.s.shape[1]
            rows = slice(window.matrix * rank, (window.matrix + 1) * rank)
            u, v = _narrowed(_taken(band.u, rows), window.rows), _narrowed(_taken(band.v, rows), window.cols)
            found.append(OpenBand(band.s[window.matrix : window.matrix + 1], u, v))
        return Adding(tuple(found))

    def terms(self, bench: Bench) -> tuple[Term, ...]:
        found = []
        for band in self.bands:
            stack, rank = band.s.shape
            u, v = (bench.factor(each, None).reshape(stack, rank, -1) for each in (band.u, band.v))
            found.append(Term(band.s, u, v))
        return tuple(found)


def _taken(numbers: Numbers, rows: slice) -> Numbers:
    return numbers.take(rows) if isinstance(numbers, Levels) else numbers[rows]


def _narrowed(numbers: Numbers, cols: slice) -> Numbers:
    return numbers.narrow(cols) if isinstance(numbers, Levels) else numbers[:, cols]


class Factors:
    name = "factors"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, ("bands", "group", "packing", "scale"), (), where)
        listed = array(plain, "bands", where)
        if not 1 <= len(listed) <= MAX_SLICES:
            raise error("manifest.parameter", where, f"{len(listed)} bands, there must be 1 to {MAX_SLICES}")
        grid = target.grid
        most = min(grid.rows, grid.cols)
        bands = _plain_bands(listed, most)
        if bands is None:
            bands = [_parse_band(each, most, f"{where} band {k}") for k, each in enumerate(listed)]
        group = integer(plain, "group", 1, 1 << 32, where, "manifest.parameter")
        packing = one_of(plain, "packing", packing_of.PACKINGS, where, "manifest.parameter")
        return Params(
            bands,
            group,
            packing,
            dtype_named(one_of(plain, "scale", SCALE_DTYPES, where, "manifest.parameter"), where),
        )

    def adds(self, params: Params) -> bool:
        return True

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return sum([rank for _, rank in params.bands])

    def planes(self, params: Params, target: Target) -> list[int]:
        bands, group, packing, scale = params
        stack, rows, cols = target.grid
        scales_u, scales_v, width = -(-rows // group), -(-cols // group), scale.itemsize
        found: list[int] = []
        for code, rank in bands:
            bits, s = _BITS[code], stack * rank
            found += s, s, s, s
            if bits is None:
                found += [s * rows] * dtype_named(code).itemsize + [s * cols] * dtype_named(code).itemsize
            else:
                found.append(packing_of.packed_nbytes(s * rows, bits, packing))
                found += [s * scales_u] * width
                found.append(packing_of.packed_nbytes(s * cols, bits, packing))
                found += [s * scales_v] * width
        return found

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        found: list[PartSpec] = []
        scale = params.scale.itemsize
        factors = [(name, dim, -(-dim // params.group)) for name, dim in (("u", grid.rows), ("v", grid.cols))]
        for k, (code, rank) in enumerate(params.bands):
            bits, rows_of_factor = _BITS[code], grid.stack * rank
            found.append(PartSpec(f"s{k}", 4, rows_of_factor))
            for name, dim, groups in factors:
                if bits is None:
                    found.append(PartSpec(f"{name}{k}", dtype_named(code).itemsize, rows_of_factor * dim))
                    continue
                nbytes = packing_of.packed_nbytes(rows_of_factor * dim, bits, params.packing)
                found.append(PartSpec(f"{name}{k}", 1, nbytes))
                found.append(PartSpec(f"{name}_scales{k}", scale, rows_of_factor * groups))
        return tuple(found)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        grid = target.grid
        return Adding(tuple(_open_band(k, band, params, grid, parts, where) for k, band in enumerate(params.bands)))


def _plain_bands(listed: list[Any], most: int) -> list[BandParams] | None:
    """What ``_parse_band`` makes of all, in a fifth of the time; None where it would refuse one."""
    try:
        found: list[BandParams] = list(map(_values_of, listed))
        fit = [code in _BITS and 1 <= rank <= most for code, rank in found]
    except (KeyError, TypeError):  # no map, a key that is not there, no text or no integer
        return None
    return found if False not in fit and set(map(len, listed)) == {len(_BAND_KEYS)} else None


def _parse_band(plain: Any, most: int, where: str) -> BandParams:
    """A band of a matrix whose smaller side is ``most``."""
    require_keys(plain, _BAND_KEYS, (), where)
    code = one_of(plain, "code", CODES, where, "manifest.parameter")
    return code, integer(plain, "rank", 1, most, where, "manifest.parameter")


def _open_band(k: int, band: BandParams, params: Params, grid: Grid, parts: Parts, where: str) -> OpenBand:
    s = parts[f"s{k}"].view(np.float32)
    require_finite(s, where, "S")  # before it is widened: numpy warns of signalling NaNs
    u = _open_factor("u", k, grid.rows, band, params, parts, grid, where)
    v = _open_factor("v", k, grid.cols, band, params, parts, grid, where)
    return OpenBand(s.astype(np.float64).reshape(grid.stack, band[1]), u, v)


def _open_factor(
    name: str, k: int, dim: int, band: BandParams, params: Params, parts: Parts, grid: Grid, where: str
) -> Numbers:
    stored = parts[f"{name}{k}"]
    code, rank = band
    shape, bits = (grid.stack * rank, dim), _BITS[code]
    if bits is None:
        values = bits_to_float32(stored, dtype_named(code))
        require_finite(values, where, name.upper())
        return values.reshape(shape)
    count = shape[0] * dim
    codes = CodeMatrix.of_run(stored, slice(0, count), count, shape, bits, params.packing, where)
    scales = bits_to_float32(parts[f"{name}_scales{k}"], params.scale)
    require_scales(scales, where)
    return Levels(codes, (1 << bits) - 1, scales.reshape(shape[0], -(-dim // params.group)), params.group)


@dataclass(frozen=True, slots=True)
class Band:
    """What an encoder hands over: float32 ``s`` (stack, r), ``u`` (stack, r, rows), ``v`` (stack, r, cols); a code."""

    code: str
    s: NDArray[np.float32]
    u: NDArray[np.float32]
    v: NDArray[np.float32]


def banded(bands: Sequence[Band], group: int, packing: str) -> Encoded:
    """The component that holds ``bands``; group codes round to nearest, with BF16 scales."""
    parts: dict[str, NDArray[Any]] = {}
    scale = dtype_named("BF16")
    for k, band in enumerate(bands):
        parts[f"s{k}"] = np.ascontiguousarray(band.s, "<f4").view("<u4")
        for name, factor in (("u", band.u), ("v", band.v)):
            values = np.ascontiguousarray(factor).reshape(-1, factor.shape[-1])  # (stack * r, dim)
            if not band.code.startswith("Q"):
                parts[f"{name}{k}"] = float32_to_bits(values, dtype_named(band.code)).reshape(-1)
                continue
            bits = int(band.code[1:])
            codes, scales = symmetric_codes(values, bits, group, scale)
            parts[f"{name}{k}"] = packing_of.pack(codes, bits, packing)
            parts[f"{name}_scales{k}"] = scales
    listed = [{"code": band.code, "rank": int(band.s.shape[-1])} for band in bands]
    return Encoded("factors", {"bands": listed, "group": group, "packing": packing, "scale": "BF16"}, parts)


ENCODING: Final[Encoding] = Factors()
