"""``dense``: values as they are, added or replacing (spec/encodings/dense.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from skillpack_format.arithmetic import Bench, Block, DeviceArray, require_finite
from skillpack_format.dtypes import Array, DType, bits_to_float32, dtype_named, require_bool, tensor_nbytes
from skillpack_format.encodings._base import Additive, Encoded, Parts, PartSpec, Rewriting, Target, Window, Windowed
from skillpack_format.errors import error
from skillpack_format.fields import made, one_of, require_keys, text
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODES: Final = ("add", "replace")
_KEYS: Final = frozenset(("dtype", "mode"))


class Params(NamedTuple):
    dtype: DType
    mode: str


@dataclass(frozen=True, slots=True)
class Replacing:
    values: Array  # (numel,) bit patterns

    span = 1

    def rewrite(self, bits: Array, first: int) -> Array:
        return self.values[first : first + bits.size]

    def placed(self) -> tuple[NDArray[np.int64] | None, Array]:
        return None, self.values


@dataclass(frozen=True, slots=True)
class Adding:
    values: NDArray[np.float32]  # (numel,), finite

    def touched(self, block: Block) -> NDArray[np.int64] | None:
        return None

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        bench.add_values(acc, self.values[block.items].reshape(block.shape))


class Dense:
    name = "dense"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, _KEYS, (), where)
        dtype = dtype_named(text(plain, "dtype", where), where)
        mode = one_of(plain, "mode", MODES, where, "manifest.parameter")
        if mode == "replace" and dtype.name != target.dtype.name:
            raise error("manifest.parameter", where, f"dtype {dtype.name} cannot replace {target.dtype.name} values")
        if mode == "add" and not dtype.is_arithmetic:
            raise error("manifest.parameter", where, f"dtype {dtype.name} cannot be added; F32, F16 and BF16 can")
        return made(Params, (dtype, mode))

    def adds(self, params: Params) -> bool:
        return params.mode == "add"

    def span(self, params: Params) -> int:
        return 1

    def products(self, params: Params) -> int:
        return 0

    def planes(self, params: Params, target: Target) -> list[int]:
        width = params.dtype.itemsize or 1
        return [tensor_nbytes(params.dtype, target.shape) // width] * width

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        width = params.dtype.itemsize or 1  # sub-byte types are carried as the bytes they fill
        return (PartSpec("values", width, tensor_nbytes(params.dtype, target.shape) // width),)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        if params.mode == "replace":
            require_bool(parts["values"], params.dtype, where)
            return Replacing(parts["values"])
        values = bits_to_float32(parts["values"], params.dtype)
        require_finite(values, where, "the added values")
        return Adding(values)

    def runs(self, params: Params, target: Target, window: Window) -> Mapping[str, slice]:
        return {"values": window.run(target.grid)}

    def open_window(
        self, params: Params, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        cut = {"values": window.cut(parts["values"], target.grid)}
        return self.open(params, Target(target.dtype, window.shape), cut, where)


def replacement(values: Array, dtype: DType) -> Encoded:
    """A component that replaces a tensor by ``values``: flat bit patterns (bytes for sub-byte dtypes)."""
    return Encoded("dense", {"dtype": dtype.name, "mode": "replace"}, {"values": values})


ENCODING: Final[Windowed] = Dense()
