"""``factors``: U S V^T in bands of floats or group codes, as GraftLLM writes it (spec/encodings/factors.md).

Float factors have no exact product, so the order is the specification: components one after the other, each product
and each sum rounded to float64 by itself. That makes the result the same everywhere, at the cost of speed on a CPU;
``lowrank`` has no such cost and is preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from skillpack_format.errors import SkillPackError, error, placed
from skillpack_format.fields import array, integer, one_of, require_keys
from skillpack_format.groups import symmetric_codes
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE_DTYPES: Final = ("BF16", "F16", "F32")
CODES: Final = ("BF16", "F16", "F32", "Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8")
Numbers: TypeAlias = "Levels | NDArray[np.float32]"  # (rows, cols), finite
_BAND_KEYS: Final = frozenset(("code", "rank"))
_BITS: Final = {code: int(code[1:]) for code in CODES if code.startswith("Q")}


class BandParams(NamedTuple):
    code: str
    rank: int

    @property
    def bits(self) -> int | None:
        """Bits of a group code, None for float factors."""
        return _BITS.get(self.code)


@dataclass(frozen=True, slots=True)
class Params:
    bands: tuple[BandParams, ...]
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
        bands = []
        for k, each in enumerate(listed):
            try:
                bands.append(_parse_band(each, most))
            except SkillPackError as fault:
                raise placed(f"{where} band {k}", fault) from None
        group = integer(plain, "group", 1, 1 << 32, where, "manifest.parameter")
        packing = one_of(plain, "packing", packing_of.PACKINGS, where, "manifest.parameter")
        return Params(
            tuple(bands),
            group,
            packing,
            dtype_named(one_of(plain, "scale", SCALE_DTYPES, where, "manifest.parameter"), where),
        )

    def adds(self, params: Params) -> bool:
        return True

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return sum(band.rank for band in params.bands)

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        found: list[PartSpec] = []
        scale = params.scale.itemsize
        factors = [(name, dim, -(-dim // params.group)) for name, dim in (("u", grid.rows), ("v", grid.cols))]
        for k, band in enumerate(params.bands):
            bits, rows_of_factor = band.bits, grid.stack * band.rank
            found.append(PartSpec(f"s{k}", 4, rows_of_factor))
            for name, dim, groups in factors:
                if bits is None:
                    found.append(PartSpec(f"{name}{k}", dtype_named(band.code).itemsize, rows_of_factor * dim))
                    continue
                nbytes = packing_of.packed_nbytes(rows_of_factor * dim, bits, params.packing)
                found.append(PartSpec(f"{name}{k}", 1, nbytes))
                found.append(PartSpec(f"{name}_scales{k}", scale, rows_of_factor * groups))
        return tuple(found)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        grid = target.grid
        return Adding(tuple(_open_band(k, band, params, grid, parts, where) for k, band in enumerate(params.bands)))


def _parse_band(plain: Any, most: int) -> BandParams:
    require_keys(plain, _BAND_KEYS, (), "")
    code = one_of(plain, "code", CODES, "", "manifest.parameter")
    return BandParams(code, integer(plain, "rank", 1, most, "", "manifest.parameter"))


def _open_band(k: int, band: BandParams, params: Params, grid: Grid, parts: Parts, where: str) -> OpenBand:
    s = parts[f"s{k}"].view(np.float32)
    require_finite(s, where, "S")  # before it is widened: numpy warns of signalling NaNs
    u = _open_factor("u", k, grid.rows, band, params, parts, grid, where)
    v = _open_factor("v", k, grid.cols, band, params, parts, grid, where)
    return OpenBand(s.astype(np.float64).reshape(grid.stack, band.rank), u, v)


def _open_factor(
    name: str, k: int, dim: int, band: BandParams, params: Params, parts: Parts, grid: Grid, where: str
) -> Numbers:
    stored = parts[f"{name}{k}"]
    shape = (grid.stack * band.rank, dim)
    if band.bits is None:
        values = bits_to_float32(stored, dtype_named(band.code))
        require_finite(values, where, name.upper())
        return values.reshape(shape)
    count = shape[0] * dim
    codes = CodeMatrix.of_run(stored, slice(0, count), count, shape, band.bits, params.packing, where)
    scales = bits_to_float32(parts[f"{name}_scales{k}"], params.scale)
    require_scales(scales, where)
    return Levels(codes, (1 << band.bits) - 1, scales.reshape(shape[0], -(-dim // params.group)), params.group)


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
