"""``lowrank``: slices of integer factors (spec/encodings/lowrank.md).

A slice adds scale * (Qu Qv^T). The codes are small integers and rank * max|qu| * max|qv| stays within 2^24, so a
float32 matrix product computes the sum exactly, in any order, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from skillpack_format import bits as packing_of
from skillpack_format import estimation
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, Bench, Block, DeviceArray, Grid, require_scales
from skillpack_format.encodings._base import (
    Additive,
    Encoded,
    Parts,
    PartSpec,
    Rewriting,
    Target,
    Term,
    Window,
    Windowed,
)
from skillpack_format.errors import error
from skillpack_format.estimation import Addend, Estimate
from skillpack_format.fields import array, integer, one_of, require_keys
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


JOINED_RANK: Final = 128  # one product for several slices takes fewer steps and has a wider bound
_LONGER: Final = 1 + 2.0**-7  # times a length: more than float32 loses in a sum of squares


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
class _Joined:
    """Slices of one matrix that are estimated by one product, their factors V side by side."""

    slices: Sequence[OpenSlice]
    right: NDArray[np.float32]  # (r of all of them, cols)
    lengths: NDArray[np.float64]  # (cols,): of its columns, or a little more


@dataclass(frozen=True, slots=True)
class Adding:
    slices: tuple[OpenSlice, ...]
    right: dict[int, list[DeviceArray]] = field(default_factory=dict)  # factors V of the matrix last asked for
    joined: dict[int, list[_Joined]] = field(default_factory=dict)  # likewise, for estimates

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
        """The contribution in float32; None where it has no bound."""
        if block.matrix not in self.joined:
            self.joined.clear()
            self.joined[block.matrix] = [_joined(group, block.matrix) for group in _groups(self.slices)]
        return estimation.summed([_addend(each, block) for each in self.joined[block.matrix]])

    def add_at(self, acc: NDArray[np.float64], block: Block, positions: NDArray[np.int64]) -> None:
        """``add`` for single elements of the flat block, exactly: ``acc`` holds theirs."""
        step = 1 + (1 << 17) // max(each.u.shape[2] for each in self.slices)
        for first in range(0, positions.size, step):
            run = slice(first, first + step)
            rows, cols = np.divmod(positions[run], block.grid.cols)
            for each in self.slices:
                u = each.u[block.matrix].take(block.first + rows, axis=0).astype(np.float32)  # (elements, r)
                v = each.v[block.matrix].take(cols, axis=0).astype(np.float32)
                dots = np.einsum("er,er->e", u, v)  # sums of integers within 2^24: exact
                acc[run] += dots.astype(np.float64) * float(each.scales[block.matrix])

    def terms(self) -> tuple[Term, ...]:
        return tuple(
            Term(_repeated(each.scales, each.u.shape[2]), each.u.swapaxes(1, 2), each.v.swapaxes(1, 2))
            for each in self.slices
        )


def _groups(slices: Sequence[OpenSlice]) -> list[list[OpenSlice]]:
    """Slices one after the other whose ranks are small together, and each of the others alone."""
    groups: list[list[OpenSlice]] = []
    for each in slices:
        if groups and sum(other.u.shape[2] for other in groups[-1]) + each.u.shape[2] <= JOINED_RANK:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _joined(slices: Sequence[OpenSlice], matrix: int) -> _Joined:
    factors = [each.v[matrix].astype(np.float32) for each in slices]  # (cols, r) each
    right = np.empty((sum(each.shape[1] for each in factors), factors[0].shape[0]), np.float32)
    at = 0
    for each in factors:
        right[at : at + each.shape[1]] = each.T
        at += each.shape[1]
    return _Joined(slices, right, np.sqrt(sum(map(_squares, factors))) * _LONGER)


def _addend(joined: _Joined, block: Block) -> Addend:
    """For an estimate of the rows of ``block``: one slice as integers with its scale, several with theirs in U."""
    factors = [each.u[block.matrix, block.first : block.last].astype(np.float32) for each in joined.slices]
    scales = [each.scales[block.matrix] for each in joined.slices]
    squares = sum(_squares(u) * float(scale) ** 2 for u, scale in zip(factors, scales, strict=True))
    lengths = np.sqrt(squares) * _LONGER
    if len(factors) == 1:
        return Addend(factors[0], joined.right, scales[0], lengths, joined.lengths)
    with np.errstate(over="ignore"):  # then the lengths are beyond what has a bound
        left = np.concatenate([u * scale for u, scale in zip(factors, scales, strict=True)], axis=1)
    return Addend(left, joined.right, None, lengths, joined.lengths)


def _squares(codes: NDArray[np.float32]) -> NDArray[np.float64]:
    """The squared lengths of the rows, to float32's precision."""
    squares: NDArray[np.float32] = np.einsum("kr,kr->k", codes, codes)
    return squares.astype(np.float64)


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

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return sum(each.rank for each in params.slices)

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        found: list[PartSpec] = []
        for k, each in enumerate(params.slices):
            found.append(PartSpec(f"scales{k}", 4, grid.stack))
            for name, bits, count, _, _ in _factors(each, grid, None):
                found.append(PartSpec(f"{name}{k}", 1, packing_of.packed_nbytes(count, bits, params.packing)))
        return tuple(found)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        return _open(params, target, None, parts, where)

    def runs(self, params: Params, target: Target, window: Window) -> Mapping[str, slice]:
        found = {}
        for k, each in enumerate(params.slices):
            found[f"scales{k}"] = slice(window.matrix, window.matrix + 1)
            for name, bits, count, run, _ in _factors(each, target.grid, window):
                found[f"{name}{k}"] = packing_of.packed_run(run, count, bits, params.packing)
        return found

    def open_window(
        self, params: Params, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        return _open(params, target, window, parts, where)


def _parse_slice(plain: Any, grid: Grid, where: str) -> SliceParams:
    require_keys(plain, ("bits_u", "bits_v", "rank"), (), where)
    bits_u = integer(plain, "bits_u", 1, 8, where, "manifest.parameter")
    bits_v = integer(plain, "bits_v", 1, 8, where, "manifest.parameter")
    largest = min(EXACT_PRODUCT >> (bits_u + bits_v - 2), grid.rows, grid.cols)
    return SliceParams(bits_u, bits_v, integer(plain, "rank", 1, largest, where, "manifest.parameter"))


def _factors(
    params: SliceParams, grid: Grid, window: Window | None
) -> Iterator[tuple[str, int, int, slice, tuple[int, int, int]]]:
    """Of U and V: the name, bits a code, the number of codes; which of them a window needs, None for the whole tensor,
    and in what shape. The codes of some rows of one matrix lie together, and so do those of some columns.
    """
    rows, cols = (window.rows, window.cols) if window else (slice(0, grid.rows), slice(0, grid.cols))
    first, stack = (window.matrix, 1) if window else (0, grid.stack)
    for name, bits, dim, chosen in (("u", params.bits_u, grid.rows, rows), ("v", params.bits_v, grid.cols, cols)):
        shape = stack, chosen.stop - chosen.start, params.rank
        start = (first * dim + chosen.start) * params.rank
        run = slice(start, start + shape[0] * shape[1] * shape[2])
        yield name, bits, grid.stack * dim * params.rank, run, shape


def _open(params: Params, target: Target, window: Window | None, parts: Parts, where: str) -> Adding:
    found = []
    for k, each in enumerate(params.slices):
        scales = parts[f"scales{k}"].view(np.float32)
        require_scales(scales, where)
        factors = []
        for name, bits, count, run, shape in _factors(each, target.grid, window):
            codes = packing_of.unpack_run(parts[f"{name}{k}"], run, count, bits, params.packing, where)
            factors.append((codes - np.uint8(1 << (bits - 1))).view(np.int8).reshape(shape))  # wraps below zero
        found.append(OpenSlice(scales, *factors))
    return Adding(tuple(found))


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


ENCODING: Final[Windowed] = Lowrank()
