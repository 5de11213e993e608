"""The element types of tensors, as safetensors names them (spec/numerics.md, "Element types").

numpy has no bfloat16 and no 8-bit floats, so every tensor is handled as its *bit patterns*: an array of unsigned
integers of the element's width. Values are made from bits, and bits from values, here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from skillpack_format.errors import error
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. ``bits`` is its width; ``kind`` is float, int, uint, bool or complex."""

    name: str
    bits: int
    kind: str

    @property
    def itemsize(self) -> int:
        """Bytes an element, 0 for the sub-byte types."""
        return self.bits // 8

    @property
    def bit_pattern(self) -> np.dtype[Any]:
        """The unsigned integer of this width, little-endian; bytes for the sub-byte types."""
        return np.dtype(f"<u{self.itemsize or 1}")

    @property
    def is_arithmetic(self) -> bool:
        """Whether values can be added to: F32, F16 and BF16 (numerics.md)."""
        return self.name in ("F32", "F16", "BF16")

    @property
    def is_ordered(self) -> bool:
        """Whether ``ulp`` is defined: every whole-byte float and integer."""
        return self.kind in ("float", "int", "uint") and self.bits >= 8


_TABLE: Final = (
    DType("F64", 64, "float"),
    DType("F32", 32, "float"),
    DType("F16", 16, "float"),
    DType("BF16", 16, "float"),
    DType("F8_E4M3", 8, "float"),
    DType("F8_E5M2", 8, "float"),
    DType("F8_E8M0", 8, "uint"),
    DType("F8_E4M3FNUZ", 8, "float"),
    DType("F8_E5M2FNUZ", 8, "float"),
    DType("F6_E2M3", 6, "float"),
    DType("F6_E3M2", 6, "float"),
    DType("F4", 4, "float"),
    DType("I64", 64, "int"),
    DType("I32", 32, "int"),
    DType("I16", 16, "int"),
    DType("I8", 8, "int"),
    DType("U64", 64, "uint"),
    DType("U32", 32, "uint"),
    DType("U16", 16, "uint"),
    DType("U8", 8, "uint"),
    DType("BOOL", 8, "bool"),
    DType("C64", 64, "complex"),
)
QUIET_NAN: Final = {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}
DTYPES: Final[dict[str, DType]] = {dtype.name: dtype for dtype in _TABLE}


def dtype_named(name: str, where: str = "") -> DType:
    """The dtype called ``name``; unsupported.dtype when there is none."""
    found = DTYPES.get(name)
    if found is None:
        raise error("unsupported.dtype", where, f"unknown dtype {name!r}; this reader knows {', '.join(DTYPES)}")
    return found


def tensor_nbytes(dtype: DType, shape: tuple[int, ...], where: str = "") -> int:
    """Bytes of a tensor, as a Python integer; sub-byte tensors must fill whole bytes (numerics.md)."""
    bits = dtype.bits
    for dim in shape:
        bits *= dim
    if bits % 8:
        raise error("manifest.shape", where, f"{dtype.name} of shape {list(shape)} does not fill whole bytes")
    return bits // 8


def numel(shape: tuple[int, ...]) -> int:
    """The number of elements, as a Python integer (numpy's product wraps at 2^64)."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def require_bool(bits: Array, dtype: DType, where: str) -> None:
    """A BOOL is 0 or 1 (payload.value); other dtypes allow every bit pattern."""
    if dtype.name == "BOOL" and (bits > 1).any():
        raise error("payload.value", where, "a BOOL is neither 0 nor 1")


def largest_magnitude(bits: Array) -> int:
    """The pattern, without its sign, of the value farthest from zero of F32, F16 or BF16; 0 where there is none."""
    top = (1 << (8 * bits.itemsize - 1)) - 1
    # of unsigned patterns the largest is a negative value's, of signed ones a positive value's
    signed = bits.view(f"<i{bits.itemsize}")
    return max(int(bits.max(initial=0)) & top, int(signed.max(initial=0)))


def bits_to_float64(bits: Array, dtype: DType) -> NDArray[np.float64]:
    """The exact values of F32, F16 or BF16 bit patterns, any shape."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one, which is no error here
        return bits_to_float32(bits, dtype).astype(np.float64)


def bits_to_float32(bits: Array, dtype: DType) -> NDArray[np.float32]:
    """The exact values of F32, F16 or BF16 bit patterns as float32, any shape."""
    if dtype.name == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype.name == "F32":
        return bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        return bits.view(np.float16).astype(np.float32)


def float32_to_bits(values: NDArray[np.float32], dtype: DType) -> Array:
    """Round float32 to ``dtype``, nearest even (numerics.md, num.round). Infinities and NaNs stay such."""
    if dtype.name == "F32":
        return values.view(np.uint32)
    if dtype.name == "F16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    # add half of the discarded unit, and one more where the kept part is odd: ties go to even
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = QUIET_NAN["BF16"]
    return rounded.astype(np.uint16)


def convert_bits(bits: Array, source: DType, target: DType) -> Array:
    """Bit patterns of ``source`` as ``target``, both arithmetic: the START of a tensor whose dtype changes.

    value -> float32 -> nearest even; every NaN becomes the positive quiet NaN, so the result does not depend on how a
    processor treats NaN payloads (num.convert).
    """
    values = bits_to_float32(bits, source)
    converted = float32_to_bits(values, target)
    return np.where(np.isnan(values), QUIET_NAN[target.name], converted).astype(target.bit_pattern)
