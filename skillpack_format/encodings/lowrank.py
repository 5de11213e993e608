"""``lowrank``: slices of integer factors (spec/encodings/lowrank.md).

A slice adds scale * (Qu Qv^T). The codes are small integers and rank * max|qu| * max|qv| stays within 2^24, so a
float32 matrix product computes the sum exactly, in any order, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from skillpack_format import bits as packing_of
from skillpack_format import estimation
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, Bench, Block, DeviceArray, Grid, require_scales
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
from skillpack_format.estimation import Estimate
from skillpack_format.fields import array, integer, one_of, require_keys
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SliceParams:
    bits_u: int
    bits_v: int
    rank: int


@dataclass(frozen=True, slots=True)
class Params:
    packing: str
    slices: tuple[SliceParams, ...]


@dataclass(frozen=True, slots=True)
class OpenSlice:
    scales: NDArray[np.float32]  # (stack,)
    u: NDArray[np.int8]  # (stack, rows, rank)
    v: NDArray[np.int8]  # (stack, cols, rank)


@dataclass(frozen=True, slots=True)
class _SideBySide:
    """The slices of one matrix as one of rank r, their codes and what an estimate takes."""

    u: NDArray[np.int8]  # (rows, r)
    v: NDArray[np.int8]  # (cols, r)
    starts: NDArray[np.int64]  # (slices,): where in r each begins
    left: NDArray[np.float32]  # (rows, r): u times the scales
    lengths: NDArray[np.float64]  # (rows,): of the rows of ``left``
    right: NDArray[np.float32]  # (r, cols): v
    longest: float  # of its columns


@dataclass(frozen=True, slots=True)
class Adding:
    slices: tuple[OpenSlice, ...]
    right: dict[int, list[DeviceArray]] = field(default_factory=dict)  # factors V of the matrix last asked for
    joined: dict[int, _SideBySide] = field(default_factory=dict)  # its slices as one

    def touched(self, block: Block) -> NDArray[np.int64] | None:
        return None

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        if block.matrix not in self.right:
            self.right.clear()
            self.right[block.matrix] = [bench.factor(each.v[block.matrix].T) for each in self.slices]
        for each, right in zip(self.slices, self.right[block.matrix], strict=True):
            left = bench.factor(each.u[block.matrix, block.first : block.last])  # (rows, r)
            product = bench.product(left, right)  # (rows, cols)
            product *= float(each.scales[block.matrix])  # exact: 24 + 24 bits
            acc += product

    def estimate(self, block: Block) -> Estimate | None:
        """The contribution in float32, by one product for all slices; None where it has no bound."""
        found = self._side_by_side(block.matrix)
        rows = slice(block.first, block.last)
        return estimation.product(found.left[rows], found.right, float(found.lengths[rows].max()) * found.longest)

    def add_at(self, acc: NDArray[np.float64], block: Block, positions: NDArray[np.int64]) -> None:
        """``add`` for single elements of the flat block, exactly: ``acc`` holds theirs."""
        rows, cols = np.divmod(positions, block.grid.cols)
        found = self._side_by_side(block.matrix)
        terms = found.u[block.first + rows].astype(np.float32)  # (elements, r of all slices)
        terms *= found.v[cols]
        dots = np.add.reduceat(terms, found.starts, axis=1)  # (elements, slices): sums of integers within 2^24
        for each, dot in zip(self.slices, dots.T, strict=True):
            acc += dot.astype(np.float64) * float(each.scales[block.matrix])

    def _side_by_side(self, matrix: int) -> _SideBySide:
        """All slices of the matrix asked for as one."""
        if matrix not in self.joined:
            self.joined.clear()
            u = np.concatenate([each.u[matrix] for each in self.slices], axis=1)
            v = np.concatenate([each.v[matrix] for each in self.slices], axis=1)
            with np.errstate(over="ignore"):
                left = np.concatenate([each.u[matrix] * each.scales[matrix] for each in self.slices], axis=1)
            lengths = np.sqrt(np.einsum("kr,kr->k", left, left, dtype=np.float64))
            others = np.sqrt(np.einsum("kr,kr->k", v, v, dtype=np.float64))
            starts = np.cumsum([0, *(each.u.shape[2] for each in self.slices[:-1])])
            right = np.ascontiguousarray(v.T, np.float32)
            self.joined[matrix] = _SideBySide(u, v, starts, left, lengths, right, float(others.max()))
        return self.joined[matrix]

    def crop(self, window: Window) -> Adding:
        e = slice(window.matrix, window.matrix + 1)
        return Adding(
            tuple(OpenSlice(each.scales[e], each.u[e, window.rows], each.v[e, window.cols]) for each in self.slices)
        )

    def terms(self) -> tuple[Term, ...]:
        return tuple(
            Term(_repeated(each.scales, each.u.shape[2]), each.u.swapaxes(1, 2), each.v.swapaxes(1, 2))
            for each in self.slices
        )


def _repeated(scales: NDArray[np.float32], rank: int) -> NDArray[np.float64]:
    """(stack,) to (stack, rank)."""
    return np.repeat(scales.astype(np.float64)[:, None], rank, axis=1)


class Lowrank:
    name = "lowrank"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, ("packing", "slices"), (), where)
        packing = one_of(plain, "packing", packing_of.PACKINGS, where, "manifest.parameter")
        listed = array(plain, "slices", where)
        if not 1 <= len(listed) <= MAX_SLICES:
            raise error("manifest.parameter", where, f"{len(listed)} slices, there must be 1 to {MAX_SLICES}")
        grid = target.grid
        return Params(packing, tuple(_parse_slice(each, grid, f"{where} slice {k}") for k, each in enumerate(listed)))

    def adds(self, params: Params) -> bool:
        return True

    def span(self, params: Params) -> int | None:
        return None

    def products(self, params: Params) -> int:
        return sum(each.rank for each in params.slices)

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        found: list[PartSpec] = []
        for k, each in enumerate(params.slices):
            for name, dim, bits in (("u", grid.rows, each.bits_u), ("v", grid.cols, each.bits_v)):
                nbytes = packing_of.packed_nbytes(grid.stack * each.rank * dim, bits, params.packing)
                found.append(PartSpec(f"{name}{k}", 1, nbytes))
            found.insert(3 * k, PartSpec(f"scales{k}", 4, grid.stack))
        return tuple(found)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        grid = target.grid
        return Adding(tuple(_open_slice(k, each, params, grid, parts, where) for k, each in enumerate(params.slices)))


def _parse_slice(plain: Any, grid: Grid, where: str) -> SliceParams:
    require_keys(plain, ("bits_u", "bits_v", "rank"), (), where)
    bits_u = integer(plain, "bits_u", 1, 8, where, "manifest.parameter")
    bits_v = integer(plain, "bits_v", 1, 8, where, "manifest.parameter")
    largest = min(EXACT_PRODUCT >> (bits_u + bits_v - 2), grid.rows, grid.cols)
    return SliceParams(bits_u, bits_v, integer(plain, "rank", 1, largest, where, "manifest.parameter"))


def _open_slice(k: int, params: SliceParams, whole: Params, grid: Grid, parts: Parts, where: str) -> OpenSlice:
    scales = parts[f"scales{k}"].view(np.float32)
    require_scales(scales, where)
    factors = []
    for name, dim, bits in (("u", grid.rows, params.bits_u), ("v", grid.cols, params.bits_v)):
        shape = (grid.stack, dim, params.rank)
        codes = packing_of.unpack(parts[f"{name}{k}"], grid.stack * params.rank * dim, bits, whole.packing, where)
        factors.append((codes - np.uint8(1 << (bits - 1))).view(np.int8).reshape(shape))  # wraps below zero, as meant
    return OpenSlice(scales, *factors)


class IntegerSlice(Protocol):
    """What an encoder hands over: float32 ``scales`` (stack,), int8 ``u`` (stack, r, rows), ``v`` (stack, r, cols)."""

    @property
    def scales(self) -> NDArray[np.float32]: ...
    @property
    def u(self) -> NDArray[np.int8]: ...
    @property
    def v(self) -> NDArray[np.int8]: ...


def packed(slices: Sequence[IntegerSlice], packing: str) -> Encoded:
    """The component that holds ``slices``, each factor in the fewest bits of 1, 2, 4 or 8 that hold its codes."""
    listed: list[dict[str, int]] = []
    parts: dict[str, NDArray[Any]] = {}
    for k, each in enumerate(slices):
        bits = {name: packing_of.bits_needed(codes) for name, codes in (("u", each.u), ("v", each.v))}
        parts[f"scales{k}"] = np.ascontiguousarray(each.scales, "<f4").view("<u4")
        for name, codes in (("u", each.u), ("v", each.v)):
            lying = np.ascontiguousarray(codes.swapaxes(1, 2)).view(np.uint8)  # (stack, rows or cols, r)
            offset = lying + np.uint8(1 << (bits[name] - 1))  # wraps back above zero
            parts[f"{name}{k}"] = packing_of.pack(offset, bits[name], packing)
        listed.append({"bits_u": bits["u"], "bits_v": bits["v"], "rank": int(each.u.shape[1])})
    return Encoded("lowrank", {"packing": packing, "slices": listed}, parts)


ENCODING: Final[Encoding] = Lowrank()
