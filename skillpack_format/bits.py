"""Codes of 1 to 8 bits to bytes and back (spec/packing.md).

``stream`` is one LSB-first bit stream: the smallest raw form. ``lanes`` puts floor(8 / bits) whole codes in a byte:
a code never straddles bytes, so zstd's entropy stage, which sees bytes, comes close to the entropy of the codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from skillpack_format.errors import error
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKINGS: Final = ("lanes", "stream")
Codes: TypeAlias = "NDArray[np.uint8]"


def packed_nbytes(count: int, bits: int, packing: str) -> int:
    """Bytes that ``count`` codes take."""
    if packing == "stream":
        return (count * bits + 7) // 8
    return -(-count // (8 // bits))


def bits_needed(codes: NDArray[np.int8]) -> int:
    """The fewest of 1, 2, 4 or 8 bits that hold every signed code as an offset; 1 for no code at all.

    Other widths would leave a lane's spare bits empty.
    """
    least, most = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    return next(bits for bits in (1, 2, 4, 8) if -(1 << (bits - 1)) <= least and most < 1 << (bits - 1))


def pack(codes: NDArray[Any], bits: int, packing: str) -> Codes:
    """``codes``: any shape, uint8 below 2^bits, read in C order."""
    flat = np.ascontiguousarray(codes, np.uint8).reshape(-1)
    if bits == 8:
        return flat
    if packing == "stream":
        ones = np.unpackbits(flat[:, None], axis=1, bitorder="little")[:, :bits]  # (count, bits)
        return np.packbits(ones.reshape(-1), bitorder="little")
    lanes = 8 // bits
    padded = np.zeros(-(-flat.size // lanes) * lanes, np.uint8)
    padded[: flat.size] = flat
    packed = np.zeros(padded.size // lanes, np.uint8)
    for lane in range(lanes):
        packed |= padded[lane::lanes] << np.uint8(lane * bits)
    return packed


def require_spare_bits_zero(packed: Codes, count: int, bits: int, packing: str, where: str) -> None:
    """payload.padding-bits when a bit of ``packed`` that belongs to none of the ``count`` codes is set."""
    lanes = 8 // bits
    used = 8 if packing == "stream" else lanes * bits
    of_last = count * bits % 8 if packing == "stream" else count % lanes * bits
    in_any = int(np.bitwise_or.reduce(packed)) >> used  # of every byte
    in_last = int(packed[-1]) >> of_last if of_last else 0
    if in_any or in_last:
        raise error("payload.padding-bits", where, "a spare bit of the packed codes is set, all must be zero")


def unpack(packed: Codes, count: int, bits: int, packing: str) -> Codes:
    """The ``count`` codes in ``packed``, of which ``require_spare_bits_zero`` has been asked.

    The caller has checked that ``packed`` has ``packed_nbytes(count, bits, packing)`` bytes.
    """
    if bits == 8:
        return packed[:count]
    if packing == "stream":
        ones = np.unpackbits(packed, bitorder="little")
        padded = np.zeros((count, 8), np.uint8)
        padded[:, :bits] = ones[: count * bits].reshape(count, bits)
        return np.packbits(padded, axis=1, bitorder="little").reshape(-1)
    lanes = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    codes = np.empty(packed.size * lanes, np.uint8)
    for lane in range(lanes):
        codes[lane::lanes] = (packed >> np.uint8(lane * bits)) & mask
    return codes[:count]


def packed_run(run: slice, count: int, bits: int, packing: str) -> slice:
    """Which of the bytes of ``count`` packed codes hold the codes ``run``: from whole bytes of eight codes on."""
    first, last = codes_beside(run, count)
    return slice(packed_nbytes(first, bits, packing), packed_nbytes(last, bits, packing))


def codes_beside(run: slice, count: int) -> tuple[int, int]:
    """From which code to which ``packed_run`` goes: eight codes fill whole bytes in either packing."""
    return run.start // 8 * 8, min(-(-run.stop // 8) * 8, count)


def split_planes(items: NDArray[Any], width: int) -> list[Codes]:
    """``items`` of ``width`` bytes each as ``width`` byte planes, least significant first (spec/storage.md)."""
    table = np.ascontiguousarray(items).reshape(-1).view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(table[:, plane]) for plane in range(width)]


def join_planes(planes: list[Codes], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The inverse of ``split_planes``: a flat array of ``dtype``."""
    if len(planes) == 1:
        return planes[0].view(dtype)
    table = np.empty((planes[0].size, len(planes)), np.uint8)
    for plane, values in enumerate(planes):
        table[:, plane] = values
    return table.reshape(-1).view(dtype)
