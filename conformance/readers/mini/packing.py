"""packing.md: codes of 1 to 8 bits in bytes."""

from .errors import Refusal

PACKINGS = ("stream", "lanes")


def packed_bytes(packing: str, count: int, b: int) -> int:
    if packing == "stream":
        return (count * b + 7) // 8
    lanes = 8 // b
    return (count + lanes - 1) // lanes


def unpack(packing: str, data: bytes, count: int, b: int, where: str) -> list[int]:
    codes = unpack_stream(data, count, b) if packing == "stream" else unpack_lanes(data, b)
    if codes is None or any(codes[count:]):  # payload.padding-bits
        raise Refusal("payload.padding-bits", f"{where}: a bit that belongs to no code is set")
    return codes[:count]


def unpack_stream(data: bytes, count: int, b: int) -> list[int] | None:
    """packing.stream: one run of bits; None where a bit after the last code is set."""
    codes: list[int] = []
    bits, held = 0, 0  # bits read and not yet used, and how many
    mask = 2**b - 1
    for byte in data:
        bits |= byte << held
        held += 8
        while held >= b and len(codes) < count:
            codes.append(bits & mask)
            bits >>= b
            held -= b
    return None if bits else codes


def unpack_lanes(data: bytes, b: int) -> list[int] | None:
    """packing.lanes: 8 // b codes a byte; None where a bit above them is set. Unused lanes come last."""
    codes = []
    mask = 2**b - 1
    shifts = [lane * b for lane in range(8 // b)]
    above = 8 // b * b
    for byte in data:
        if byte >> above:
            return None
        for shift in shifts:
            codes.append(byte >> shift & mask)
    return codes
