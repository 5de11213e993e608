"""``lowrank``: slices of integer factors (spec/encodings/lowrank.md).

A slice adds scale * (Qu Qv^T). The codes are small integers and rank * max|qu| * max|qv| stays within 2^24, so a
float32 matrix product computes the sum exactly, in any order, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from skillpack_format import bits as packing_of
from skillpack_format.arithmetic import EXACT_PRODUCT, MAX_SLICES, Bench, Block, DeviceArray, Grid, require_scales
from skillpack_format.codes import CodeMatrix
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
from skillpack_format.fields import array, integer, one_of, require_keys
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


SCALE_BYTES: Final = 4
_SLICE_KEYS: Final = ("bits_u", "bits_v", "rank")
_values_of: Final = itemgetter(*_SLICE_KEYS)
SliceParams: TypeAlias = tuple[int, int, int]  # bits of U and V, rank


class Params(NamedTuple):
    packing: str
    slices: Sequence[SliceParams]


@dataclass(frozen=True, slots=True)
class OpenSlice:
    scales: NDArray[np.float32]  # (stack,)
    u: CodeMatrix  # (stack * rows, rank)
    v: CodeMatrix  # (stack * cols, rank)


@dataclass(frozen=True, slots=True)
class Adding:
    slices: tuple[OpenSlice, ...]
    stack: int
    held: dict[tuple[int, Bench], list[tuple[DeviceArray, DeviceArray]]] = field(default_factory=dict)

    def touched(self, block: Block) -> NDArray[np.int64] | None:
        return None

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        for each, (u, right) in zip(self.slices, self._operands(block.matrix, bench), strict=True):
            bench.add_product(acc, bench.left(u[block.first : block.last]), right, float(each.scales[block.matrix]))

    def _operands(self, matrix: int, bench: Bench) -> list[tuple[DeviceArray, DeviceArray]]:
        """U as codes and V as an operand, of the matrix last asked for."""
        key = matrix, bench
        if key not in self.held:
            self.held.clear()
            self.held[key] = [
                (
                    bench.signed(_of_matrix(each.u, matrix, self.stack)),
                    bench.right(bench.signed(_of_matrix(each.v, matrix, self.stack))),
                )
                for each in self.slices
            ]
        return self.held[key]

    def terms(self, bench: Bench) -> tuple[Term, ...]:
        found = []
        for each in self.slices:
            rank = each.u.width
            u, v = (bench.signed(codes).reshape(self.stack, -1, rank).swapaxes(1, 2) for codes in (each.u, each.v))
            found.append(Term(_repeated(each.scales, rank), u, v))
        return tuple(found)


def _of_matrix(codes: CodeMatrix, matrix: int, stack: int) -> CodeMatrix:
    rows = codes.rows // stack
    return codes.take(slice(matrix * rows, (matrix + 1) * rows))


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
        most = min(grid.rows, grid.cols)
        slices = _plain_slices(listed, most)
        if slices is None:
            slices = [_parse_slice(each, most, f"{where} slice {k}") for k, each in enumerate(listed)]
        return Params(packing, slices)

    def adds(self, params: Params) -> bool:
        return True

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return sum([rank for _, _, rank in params.slices])

    def planes(self, params: Params, target: Target) -> list[int]:
        packing, slices = params
        stack, rows, cols = target.grid
        found = [stack * len(slices)] * SCALE_BYTES
        for bits_u, bits_v, rank in slices:
            u = packing_of.packed_nbytes(stack * rank * rows, bits_u, packing)
            v = packing_of.packed_nbytes(stack * rank * cols, bits_v, packing)
            found += u, v
        return found

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        found = [PartSpec("scales", SCALE_BYTES, grid.stack * len(params.slices))]
        for k, (bits_u, bits_v, rank) in enumerate(params.slices):
            columns = grid.stack * rank
            u = packing_of.packed_nbytes(columns * grid.rows, bits_u, params.packing)
            v = packing_of.packed_nbytes(columns * grid.cols, bits_v, params.packing)
            found += PartSpec(f"u{k}", 1, u), PartSpec(f"v{k}", 1, v)
        return tuple(found)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        return _open(params, target, None, parts, where)

    def runs(self, params: Params, target: Target, window: Window) -> Mapping[str, slice]:
        slices = len(params.slices)
        found = {"scales": slice(window.matrix * slices, (window.matrix + 1) * slices)}
        for k, each in enumerate(params.slices):
            for name, bits, count, run, _ in _factors(each, target.grid, window):
                found[f"{name}{k}"] = packing_of.packed_run(run, count, bits, params.packing)
        return found

    def open_window(
        self, params: Params, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        return _open(params, target, window, parts, where)


def _plain_slices(listed: list[Any], most: int) -> list[SliceParams] | None:
    """What ``_parse_slice`` makes of all, in a fifth of the time; None where it would refuse one."""
    try:
        found: list[SliceParams] = list(map(_values_of, listed))
        fit = [
            1 <= u <= 8 and 1 <= v <= 8 and 1 <= rank <= most and rank << (u + v - 2) <= EXACT_PRODUCT
            for u, v, rank in found
        ]
    except (KeyError, TypeError):  # no map, a key that is not there, no integer
        return None
    return found if False not in fit and set(map(len, listed)) == {len(_SLICE_KEYS)} else None


def _parse_slice(plain: Any, most: int, where: str) -> SliceParams:
    """A slice of a matrix whose smaller side is ``most``."""
    require_keys(plain, _SLICE_KEYS, (), where)
    bits_u = integer(plain, "bits_u", 1, 8, where, "manifest.parameter")
    bits_v = integer(plain, "bits_v", 1, 8, where, "manifest.parameter")
    largest = min(EXACT_PRODUCT >> (bits_u + bits_v - 2), most)
    return bits_u, bits_v, integer(plain, "rank", 1, largest, where, "manifest.parameter")


def _factors(
    params: SliceParams, grid: Grid, window: Window | None
) -> Iterator[tuple[str, int, int, slice, tuple[int, int, int]]]:
    """Of U and V: the name, bits a code, the number of codes; which of them a window needs, None for the whole tensor,
    and in what shape. The codes of some rows of one matrix lie together, and so do those of some columns.
    """
    rows, cols = (window.rows, window.cols) if window else (slice(0, grid.rows), slice(0, grid.cols))
    first, stack = (window.matrix, 1) if window else (0, grid.stack)
    bits_u, bits_v, rank = params
    for name, bits, dim, chosen in (("u", bits_u, grid.rows, rows), ("v", bits_v, grid.cols, cols)):
        shape = stack, chosen.stop - chosen.start, rank
        start = (first * dim + chosen.start) * rank
        run = slice(start, start + shape[0] * shape[1] * shape[2])
        yield name, bits, grid.stack * dim * rank, run, shape


def _open(params: Params, target: Target, window: Window | None, parts: Parts, where: str) -> Adding:
    found = []
    scales = parts["scales"].view(np.float32)
    require_scales(scales, where)
    of_slices = scales.reshape(-1, len(params.slices)).T  # (slices, stack)
    for k, each in enumerate(params.slices):
        factors = []
        for name, bits, count, run, (stack, dim, rank) in _factors(each, target.grid, window):
            table = stack * dim, rank
            codes = CodeMatrix.of_run(parts[f"{name}{k}"], run, count, table, bits, params.packing, where)
            factors.append(codes)
        found.append(OpenSlice(of_slices[k], *factors))
    return Adding(tuple(found), 1 if window else target.grid.stack)


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
    scales = np.stack([each.scales for each in slices], axis=1)  # (stack, slices)
    parts: dict[str, NDArray[Any]] = {"scales": np.ascontiguousarray(scales, "<f4").view("<u4").reshape(-1)}
    for k, each in enumerate(slices):
        bits = {name: packing_of.bits_needed(codes) for name, codes in (("u", each.u), ("v", each.v))}
        for name, codes in (("u", each.u), ("v", each.v)):
            lying = np.ascontiguousarray(codes.swapaxes(1, 2)).view(np.uint8)  # (stack, rows or cols, r)
            offset = lying + np.uint8(1 << (bits[name] - 1))  # wraps back above zero
            parts[f"{name}{k}"] = packing_of.pack(offset, bits[name], packing)
        listed.append({"bits_u": bits["u"], "bits_v": bits["v"], "rank": int(each.u.shape[1])})
    return Encoded("lowrank", {"packing": packing, "slices": listed}, parts)


ENCODING: Final[Windowed] = Lowrank()
