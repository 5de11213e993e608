"""numerics.md: element types, matrix view, START, rounding, conversion."""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import Limits, Refusal, within


class Dtype(NamedTuple):
    name: str
    bits: int
    kind: str
    add: bool
    ulp: bool

    @property
    def width(self) -> int:
        """Bytes of an item; sub-byte types are handled as the bytes they fill."""
        return max(1, self.bits // 8)


DTYPES = {
    name: Dtype(name, bits, kind, add, ulp)
    for name, bits, kind, add, ulp in [
        ("F64", 64, "float", False, True),
        ("F32", 32, "float", True, True),
        ("F16", 16, "float", True, True),
        ("BF16", 16, "float", True, True),
        ("F8_E4M3", 8, "float", False, True),
        ("F8_E5M2", 8, "float", False, True),
        ("F8_E8M0", 8, "uint", False, True),
        ("F8_E4M3FNUZ", 8, "float", False, True),
        ("F8_E5M2FNUZ", 8, "float", False, True),
        ("F6_E2M3", 6, "float", False, False),
        ("F6_E3M2", 6, "float", False, False),
        ("F4", 4, "float", False, False),
        ("I64", 64, "int", False, True),
        ("I32", 32, "int", False, True),
        ("I16", 16, "int", False, True),
        ("I8", 8, "int", False, True),
        ("U64", 64, "uint", False, True),
        ("U32", 32, "uint", False, True),
        ("U16", 16, "uint", False, True),
        ("U8", 8, "uint", False, True),
        ("BOOL", 8, "bool", False, False),
        ("C64", 64, "complex", False, False),
    ]
}
ARITHMETIC = tuple(name for name, dtype in DTYPES.items() if dtype.add)  # F32, F16, BF16


def find_dtype(name: str, where: str) -> Dtype:
    if name not in DTYPES:  # unsupported.dtype
        raise Refusal("unsupported.dtype", f"{where}: the dtype {name} is not known")
    return DTYPES[name]


@dataclass(frozen=True)
class Tensor:
    """What `base` and `result` of an entry say: dtype, shape, digest."""

    dtype: Dtype
    shape: tuple[int, ...]
    sha256: bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.elements * self.dtype.bits // 8

    def matrix(self) -> tuple[int, int, int]:
        """num.matrix: E, m, n"""
        shape = (1, 1, *self.shape)
        return math.prod(shape[:-2]), shape[-2], shape[-1]


def check_tensor(tensor: Tensor, limits: Limits, where: str) -> None:
    within(limits, "tensor_rank", len(tensor.shape), f"{where}: dimensions")  # limit.exceeded/rank
    if tensor.elements * tensor.dtype.bits % 8:  # manifest.shape
        raise Refusal("manifest.shape", f"{where}: {tensor.elements} {tensor.dtype.name} fill no whole bytes")
    within(limits, "tensor_bytes", tensor.size, f"{where}: bytes")  # limit.exceeded/tensor-bytes


# Bit patterns and numbers

LETTER = {1: "B", 2: "H", 4: "I", 8: "Q"}


def to_ints(data: bytes, width: int) -> list[int]:
    return list(struct.unpack(f"<{len(data) // width}{LETTER[width]}", data))


def from_ints(items: Sequence[int], width: int) -> bytes:
    return struct.pack(f"<{len(items)}{LETTER[width]}", *items)


def widen(dtype: str, data: bytes) -> list[float]:
    """num.widen: the exact values of items of F32, F16 or BF16."""
    if dtype == "F16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    if dtype == "BF16":
        data = from_ints([bits << 16 for bits in to_ints(data, 2)], 4)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def check_finite(values: Iterable[float], where: str) -> None:
    if not all(map(math.isfinite, values)):  # payload.nonfinite and its three subordinates
        raise Refusal("payload.nonfinite", f"{where}: NaN or infinity")


def check_scales(scales: Iterable[float], where: str) -> None:
    for scale in scales:
        negative_zero = scale == 0 and math.copysign(1, scale) < 0
        if not math.isfinite(scale) or negative_zero or 0 < abs(scale) < 2**-100:  # payload.scale
            raise Refusal("payload.scale", f"{where}: the scale {scale!r} is not allowed")


# START


def is_compatible(base: Tensor, result: Tensor) -> bool:
    dtypes = base.dtype == result.dtype or (base.dtype.name in ARITHMETIC and result.dtype.name in ARITHMETIC)
    shapes = base.shape == result.shape or (len(base.shape) == len(result.shape) and base.shape[1:] == result.shape[1:])
    return dtypes and shapes


def make_start(base: Tensor | None, data: bytes, result: Tensor) -> tuple[bytes, str, bytes]:
    """START, and the source: its dtype and its bytes."""
    if base is None or not is_compatible(base, result):  # num.start, num.source: zero bytes everywhere else
        zeros = bytes(result.size)
        return zeros, result.dtype.name, zeros
    size = result.elements * base.dtype.bits // 8
    source = data[:size].ljust(size, b"\0")  # num.source: cut or continued with zero bytes
    return convert(source, base.dtype.name, result.dtype.name), base.dtype.name, source  # num.start


NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}


def convert(data: bytes, dtype: str, target: str) -> bytes:
    """num.convert. Equal dtypes are not converted: every bit pattern stays."""
    if dtype == target:
        return data
    items = []
    for bits in to_ints(data, DTYPES[dtype].width):
        f32 = widen_bits(bits, dtype)
        is_nan = f32 & 0x7FFFFFFF > 0x7F800000
        items.append(NAN[target] if is_nan else narrow_bits(f32, target))
    return from_ints(items, DTYPES[target].width)


def widen_bits(bits: int, dtype: str) -> int:
    """Bits of F32, BF16 or F16 to the bits of the same value in F32."""
    if dtype == "F32":
        return bits
    if dtype == "BF16":
        return bits << 16
    sign, exponent, fraction = bits >> 15 << 31, bits >> 10 & 31, bits & 0x3FF
    if exponent == 31:
        return sign | 0x7F800000 | fraction << 13
    if exponent > 0:
        return sign | exponent - 15 + 127 << 23 | fraction << 13
    if fraction == 0:
        return sign
    top = fraction.bit_length() - 1  # subnormal: fraction * 2^-24, its leading bit has the value 2^(top - 24)
    return sign | top - 24 + 127 << 23 | (fraction << 23 - top) & 0x7FFFFF


def narrow_bits(f32: int, target: str) -> int:
    """Bits of an F32 that is no NaN to the target dtype: to nearest, ties to even, with gradual underflow."""
    if target == "F32":
        return f32
    if target == "BF16":
        return shift_to_even(f32, 16)  # a carry out of the fraction makes the next exponent, at last infinity
    sign, exponent, fraction = f32 >> 31 << 15, f32 >> 23 & 255, f32 & 0x7FFFFF
    if exponent - 127 + 15 >= 31:  # 2^16 and above, infinity too
        return sign | 0x7C00
    if exponent - 127 + 15 >= 1:
        return sign | shift_to_even(exponent - 127 + 15 << 23 | fraction, 13)
    significand = fraction | (0x800000 if exponent else 0)  # becomes an F16 subnormal: a multiple of 2^-24
    return sign | shift_to_even(significand, 126 - max(exponent, 1))


def shift_to_even(value: int, count: int) -> int:
    """value / 2^count, rounded to nearest, ties to even."""
    quotient, rest, half = value >> count, value & (1 << count) - 1, 1 << count - 1
    return quotient + (1 if rest > half or (rest == half and quotient & 1) else 0)


def round_all(acc: list[float], dtype: str, where: str) -> list[int]:
    """num.round: float64 to F32, F32 to the result's dtype, each to nearest, ties to even."""
    try:
        f32s = to_ints(struct.pack(f"<{len(acc)}f", *acc), 4)
    except OverflowError:  # payload.overflow: struct refuses what rounds to infinity
        raise Refusal("payload.overflow", f"{where}: an element is out of range of F32") from None
    items = [narrow_bits(f32, dtype) for f32 in f32s]
    infinity = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}[dtype]
    if any(bits & infinity == infinity for bits in items):  # payload.overflow
        raise Refusal("payload.overflow", f"{where}: an element is out of range of {dtype}")
    return items
