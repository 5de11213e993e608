"""``ulp``: the difference of order-preserving integers of the bit patterns (spec/encodings/ulp.md).

Integers only: lossless for every bit pattern (NaN payloads, -0, subnormals), the same on every device, and exactly
reversible in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from skillpack_format.arithmetic import Block
from skillpack_format.dtypes import Array, DType
from skillpack_format.encodings._base import Additive, Encoded, Encoding, Parts, PartSpec, Rewriting, Target
from skillpack_format.errors import error
from skillpack_format.fields import require_keys


@dataclass(frozen=True, slots=True)
class Params:
    pass


@dataclass(frozen=True, slots=True)
class Rewriter:
    diff: Array  # (numel,) zigzag codes
    dtype: DType

    def rewrite(self, bits: Array, block: Block) -> Array:
        zigzag = self.diff[block.items]
        one = zigzag.dtype.type(1)
        signed = (zigzag >> one) ^ (zigzag.dtype.type(0) - (zigzag & one))
        return _bits_of(_order_of(bits, self.dtype) + signed, self.dtype)


class Ulp:
    name = "ulp"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, (), (), where)
        if not target.dtype.is_ordered:
            raise error(
                "manifest.parameter", where, f"{target.dtype.name} has no order-preserving integers of whole bytes"
            )
        return Params()

    def adds(self, params: Params) -> bool:
        return False

    def terms(self, params: Params) -> int:
        return 0

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        return (PartSpec("diff", target.dtype.itemsize, target.numel),)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        return Rewriter(parts["diff"], target.dtype)


def difference(start: Array, result: Array, dtype: DType) -> Encoded:
    """The component that turns the bit patterns ``start`` into ``result`` (flat, same dtype)."""
    signed = _order_of(result, dtype) - _order_of(start, dtype)  # modulo 2^width
    one = signed.dtype.type(1)
    sign = signed.dtype.type(0) - (signed >> signed.dtype.type(dtype.bits - 1))
    return Encoded("ulp", {}, {"diff": (signed << one) ^ sign})


def _order_of(bits: Array, dtype: DType) -> Array:
    """Unsigned integers in the order of the values: the float line from -NaN to +NaN, or the integers."""
    top = bits.dtype.type(1 << (dtype.bits - 1))
    if dtype.kind == "float":
        negative = bits.dtype.type(0) - (bits >> bits.dtype.type(dtype.bits - 1))  # all ones where the sign is set
        ordered: Array = bits ^ (negative | top)
        return ordered
    return bits ^ top if dtype.kind == "int" else bits


def _bits_of(order: Array, dtype: DType) -> Array:
    """The inverse of ``_order_of``."""
    top = order.dtype.type(1 << (dtype.bits - 1))
    if dtype.kind == "float":
        negative = (order >> order.dtype.type(dtype.bits - 1)) - order.dtype.type(
            1
        )  # all ones where the top bit is clear
        bits: Array = order ^ (negative | top)
        return bits
    return order ^ top if dtype.kind == "int" else order


ENCODING: Final[Encoding] = Ulp()
