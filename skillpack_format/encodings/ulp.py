"""``ulp``: the difference of order-preserving integers of the bit patterns (spec/encodings/ulp.md).

Integers only: lossless for every bit pattern (NaN payloads, -0, subnormals), the same on every device, and exactly
reversible. A change of one size is many steps of a small value and few of a large one, and rows that training never met
change otherwise than the rest. So the steps can be stored sorted by the class of their row and by what they apply to:
like beside like, which is what an entropy coder wants.
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

SORTS: Final = ("magnitude", "none", "rows")
SPAN: Final = 1 << 18  # elements that are sorted together (ulp.sort): few enough for reading a slice of a tensor
_KEY_AT: Final = {"BF16": 7, "F16": 10, "F32": 15}  # the exponent, of F32 with 8 bits of the fraction


@dataclass(frozen=True, slots=True)
class Params:
    sort: str
    cols: int  # of the tensor, which a window of it no longer tells


@dataclass(frozen=True, slots=True)
class Rewriter:
    """``classes``: of the rows that have elements here, None where these are not sorted by them; ``skipped``: elements
    of the first of these rows that lie before."""

    diff: Array  # (numel,) zigzag codes
    dtype: DType
    sort: str
    classes: Array | None = None
    cols: int = 1
    skipped: int = 0

    @property
    def span(self) -> int:
        return 1 if self.sort == "none" else SPAN

    @property
    def key_at(self) -> int | None:
        """The lowest bit of the key by which ``diff`` is sorted."""
        return None if self.sort == "none" else _KEY_AT[self.dtype.name]

    def classes_of(self, items: slice) -> Array | None:
        """Of every one of these elements the class of its row, uint8."""
        if self.classes is None:
            return None
        first, end = items.start + self.skipped, items.stop + self.skipped
        rows = slice(first // self.cols, -(-end // self.cols))
        begin = first - rows.start * self.cols
        return np.repeat(self.classes[rows], self.cols)[begin : begin + end - first]

    def rewrite(self, bits: Array, first: int) -> Array:
        items = slice(first, first + bits.size)
        zigzag = self.diff[items]
        if self.sort != "none":
            zigzag = _unsorted(zigzag, bits, self.dtype, self.classes_of(items))
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
        if sort != "none" and not target.dtype.is_arithmetic:
            raise error("manifest.parameter", where, f"{target.dtype.name} is not sorted; F32, F16 and BF16 can be")
        return Params(sort, target.grid.cols)

    def adds(self, params: Params) -> bool:
        return False

    def span(self, params: Params) -> int:
        return 1 if params.sort == "none" else SPAN

    def products(self, params: Params) -> int:
        return 0

    def planes(self, params: Params, target: Target) -> list[int]:
        grid = target.grid
        classes = [grid.stack * grid.rows] if params.sort == "rows" else []
        return classes + [target.numel] * target.dtype.itemsize

    def parts(self, params: Params, target: Target) -> tuple[PartSpec, ...]:
        grid = target.grid
        classes = (PartSpec("classes", 1, grid.stack * grid.rows),) if params.sort == "rows" else ()
        return (*classes, PartSpec("diff", target.dtype.itemsize, target.numel))

    def open(self, params: Params, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        return Rewriter(parts["diff"], target.dtype, params.sort, parts.get("classes"), params.cols)

    def runs(self, params: Params, target: Target, window: Window) -> Mapping[str, slice]:
        run = window.run(target.grid)
        if params.sort != "rows":
            return {"diff": run}
        return {"classes": slice(run.start // params.cols, -(-run.stop // params.cols)), "diff": run}

    def open_window(
        self, params: Params, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        """Sorted steps only fit a window of whole spans, which is one of a tensor of one row (``Encoding.span``)."""
        diff = window.cut(parts["diff"], target.grid)
        skipped = window.run(target.grid).start % params.cols
        return Rewriter(diff, target.dtype, params.sort, parts.get("classes"), params.cols, skipped)


def difference(start: Array, result: Array, dtype: DType, sort: str = "none", classes: Array | None = None) -> Encoded:
    """The component that turns the bit patterns ``start`` into ``result`` (flat, same dtype).

    ``classes``: uint8, one a row of the tensor, where ``sort`` is ``rows``.
    """
    signed = _order_of(result, dtype) - _order_of(start, dtype)  # modulo 2^width
    one = signed.dtype.type(1)
    sign = signed.dtype.type(0) - (signed >> signed.dtype.type(dtype.bits - 1))
    zigzag = (signed << one) ^ sign
    if sort == "none":
        return Encoded("ulp", {"sort": sort}, {"diff": zigzag})
    if classes is None:
        return Encoded("ulp", {"sort": sort}, {"diff": _sorted(zigzag, start, dtype, None)})
    each = np.repeat(classes, start.size // max(1, classes.size))
    return Encoded("ulp", {"sort": sort}, {"classes": classes, "diff": _sorted(zigzag, start, dtype, each)})


def _sorted(zigzag: Array, bits: Array, dtype: DType, classes: Array | None) -> Array:
    """Codes in the order of the elements to the order of the file. ``classes``: one an element."""
    found = np.empty_like(zigzag)
    for run, ranks in _sorted_runs(bits, dtype, classes):
        found[run] = zigzag[run][ranks]
    return found


def _unsorted(zigzag: Array, bits: Array, dtype: DType, classes: Array | None) -> Array:
    """The inverse of ``_sorted``. ``bits`` begins at a multiple of SPAN."""
    found = np.empty_like(zigzag)
    for run, ranks in _sorted_runs(bits, dtype, classes):
        found[run][ranks] = zigzag[run]
    return found


def _sorted_runs(bits: Array, dtype: DType, classes: Array | None) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Every run of SPAN elements, and its elements by ascending class and key, equal ones as they come (ulp.sort)."""
    lowest = bits.dtype.type(_KEY_AT[dtype.name])
    magnitude = bits.dtype.type((1 << (dtype.bits - 1)) - 1)
    narrow = np.uint8 if dtype.bits == 16 else np.uint16  # few bits: sorted by counting
    for first in range(0, bits.size, SPAN):
        run = slice(first, min(first + SPAN, bits.size))
        ranks = np.argsort(((bits[run] & magnitude) >> lowest).astype(narrow), kind="stable")
        yield run, ranks if classes is None else ranks[np.argsort(classes[run][ranks], kind="stable")]


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
