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


def unpack(packed: Codes, count: int, bits: int, packing: str, where: str) -> Codes:
    """The ``count`` codes in ``packed``; payload.padding-bits when a spare bit is set.

    The caller has checked that ``packed`` has ``packed_nbytes(count, bits, packing)`` bytes.
    """
    if bits == 8:
        return packed
    if packing == "stream":
        ones = np.unpackbits(packed, bitorder="little")
        _require_zero(ones[count * bits :], where)
        padded = np.zeros((count, 8), np.uint8)
        padded[:, :bits] = ones[: count * bits].reshape(count, bits)
        return np.packbits(padded, axis=1, bitorder="little").reshape(-1)
    lanes = 8 // bits
    if lanes * bits < 8:
        _require_zero(packed >> np.uint8(lanes * bits), where)
    mask = np.uint8((1 << bits) - 1)
    codes = np.empty(packed.size * lanes, np.uint8)
    for lane in range(lanes):
        codes[lane::lanes] = (packed >> np.uint8(lane * bits)) & mask
    _require_zero(codes[count:], where)
    return codes[:count]


def packed_run(run: slice, count: int, bits: int, packing: str) -> slice:
    """Which of the bytes of ``count`` packed codes ``unpack_run`` takes for the codes ``run``."""
    first, last = _groups_of_eight(run, count)
    return slice(packed_nbytes(first, bits, packing), packed_nbytes(last, bits, packing))


def unpack_run(packed: Codes, run: slice, count: int, bits: int, packing: str, where: str) -> Codes:
    """The codes ``run`` of ``count``, from the bytes ``packed_run``; as ``unpack``."""
    first, last = _groups_of_eight(run, count)
    return unpack(packed, last - first, bits, packing, where)[run.start - first : run.stop - first]


def _groups_of_eight(run: slice, count: int) -> tuple[int, int]:
    """From which code to which: eight codes fill whole bytes in either packing."""
    return run.start // 8 * 8, min(-(-run.stop // 8) * 8, count)


def _require_zero(spare: Codes, where: str) -> None:
    if spare.any():
        raise error("payload.padding-bits", where, "a spare bit of the packed codes is set, all must be zero")


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
