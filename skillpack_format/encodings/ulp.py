"""``ulp``: the difference of order-preserving integers of the bit patterns (spec/encodings/ulp.md).

Integers only: lossless for every bit pattern (NaN payloads, -0, subnormals), the same on every device, and exactly
reversible. A change of one size is many steps of a small value and few of a large one, so the steps can be stored
sorted by the exponent of what they apply to: like beside like, which is what an entropy coder wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from skillpack_format.dtypes import Array, DType
from skillpack_format.encodings._base import Additive, Encoded, Parts, PartSpec, Rewriting, Target, Window, Windowed
from skillpack_format.errors import error
from skillpack_format.fields import one_of, require_keys
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SORTS: Final = ("exponent", "none")
SPAN: Final = 1 << 18  # elements that are sorted together (ulp.sort): few enough for reading a slice of a tensor
_STORED_BITS: Final = {"BF16": 7, "F16": 10, "F32": 23}  # of the significand, below the exponent


@dataclass(frozen=True, slots=True)
class Params:
    sort: str


@dataclass(frozen=True, slots=True)
class Rewriter:
    diff: Array  # (numel,) zigzag codes
    dtype: DType
    sort: str

    @property
    def span(self) -> int:
        return SPAN if self.sort == "exponent" else 1

    @property
    def exponent_at(self) -> int | None:
        """The lowest bit of the exponent by which ``diff`` is sorted."""
        return _STORED_BITS[self.dtype.name] if self.sort == "exponent" else None

    def rewrite(self, bits: Array, first: int) -> Array:
        zigzag = self.diff[first : first + bits.size]
        if self.sort == "exponent":
            zigzag = _unsorted(zigzag, bits, self.dtype)
        one = zigzag.dtype.type(1)
        signed = (zigzag >> one) ^ (zigzag.dtype.type(0) - (zigzag & one))
        return _bits_of(_order_of(bits, self.dtype) + signed, self.dtype)


class Ulp:
    name = "ulp"

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Params:
        require_keys(plain, ("sort",), (), where)
        sort = one_of(plain, "sort", SORTS, where, "manifest.parameter")
        if not target.dtype.is_ordered:
            raise error(
                "manifest.parameter", where, f"{target.dtype.name} has no order-preserving integers of whole bytes"
            )
        if sort == "exponent" and not target.dtype.is_arithmetic:
            raise error("manifest.parameter", where, f"{target.dtype.name} is not sorted; F32, F16 and BF16 can be")
        return Params(sort)

    def adds(self, params: Params) -> bool:
        return False

    def span(self, params: Params) -> int:
        return SPAN if params.sort == "exponent" else 1

    def products(self, params: Params) -> int:
        return 0

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        return (PartSpec("diff", target.dtype.itemsize, target.numel),)

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        return Rewriter(parts["diff"], target.dtype, params.sort)

    def runs(self, params: Params, target: Target, window: Window) -> Mapping[str, slice]:
        return {"diff": window.run(target.grid)}

    def open_window(
        self, params: Params, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        cut = {"diff": window.cut(parts["diff"], target.grid)}
        return self.open(params, Target(target.dtype, window.shape), cut, where)


def difference(start: Array, result: Array, dtype: DType, sort: str) -> Encoded:
    """The component that turns the bit patterns ``start`` into ``result`` (flat, same dtype)."""
    signed = _order_of(result, dtype) - _order_of(start, dtype)  # modulo 2^width
    one = signed.dtype.type(1)
    sign = signed.dtype.type(0) - (signed >> signed.dtype.type(dtype.bits - 1))
    zigzag = (signed << one) ^ sign
    return Encoded("ulp", {"sort": sort}, {"diff": _sorted(zigzag, start, dtype) if sort == "exponent" else zigzag})


def _sorted(zigzag: Array, bits: Array, dtype: DType) -> Array:
    """Codes in the order of the elements to the order of the file."""
    found = np.empty_like(zigzag)
    for run, ranks in _sorted_runs(bits, dtype):
        found[run] = zigzag[run][ranks]
    return found


def _unsorted(zigzag: Array, bits: Array, dtype: DType) -> Array:
    """The inverse of ``_sorted``. ``bits`` begins at a multiple of SPAN."""
    found = np.empty_like(zigzag)
    for run, ranks in _sorted_runs(bits, dtype):
        found[run][ranks] = zigzag[run]
    return found


def _sorted_runs(bits: Array, dtype: DType) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Every run of SPAN elements, and its elements by ascending exponent, equal ones as they come (ulp.sort)."""
    stored = bits.dtype.type(_STORED_BITS[dtype.name])
    magnitude = bits.dtype.type((1 << (dtype.bits - 1)) - 1)
    for first in range(0, bits.size, SPAN):
        run = slice(first, min(first + SPAN, bits.size))
        exponents = ((bits[run] & magnitude) >> stored).astype(np.uint8)  # at most 8 bits: sorted by counting
        yield run, np.argsort(exponents, kind="stable")


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


ENCODING: Final[Windowed] = Ulp()
