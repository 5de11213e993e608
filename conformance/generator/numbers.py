"""Bit patterns, shapes and names, chosen so that edges come often."""

from __future__ import annotations

from random import Random

from conformance import assemble as oracle
from conformance.assemble import BINARY, WIDTH

FLOATS = oracle.ARITHMETIC
DTYPES = tuple(WIDTH)
VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
ODD_NAMES = (
    "__proto__",
    "constructor",
    "../up",
    "/abs",
    "C:\\x",
    "-rf",
    "a/b",
    "toString",
    "[bold]",
    "{0}",
    "%n",
    "0",
    "10",
    "9",
)


def pattern(rng: Random, dtype: str) -> int:
    """Any bit pattern that the dtype may hold."""
    bits = WIDTH[dtype][0]
    if dtype == "BOOL":
        return rng.randrange(2)
    if dtype in BINARY and rng.random() < 0.7:
        return finite(rng, dtype)
    return rng.choice([0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, rng.randrange(1 << bits)])


def finite(rng: Random, dtype: str) -> int:
    """A finite value of a binary format, as its bits: often small, sometimes a zero, a subnormal, or near the end."""
    bits, (precision, least, most, stored) = WIDTH[dtype][0], BINARY[dtype]
    sign = rng.randrange(2) << (bits - 1)
    fraction = rng.choice([0, 0, 1, (1 << stored) - 1, 1 << (stored - 1), rng.randrange(1 << stored)])
    draw = rng.random()
    if draw < 0.08:
        return sign
    if draw < 0.2:
        return sign | fraction  # subnormal, or a zero
    if draw < 0.23:
        return sign | (most - least + 1) << stored | fraction
    exponent = rng.randint(-3, 3) if draw < 0.8 else rng.randint(max(least, -precision - 8), min(most, precision))
    return sign | (exponent - least + 1) << stored | fraction


def scale(rng: Random, dtype: str) -> int:
    """What payload.scale allows: +0, or finite and not below 2^-100 in magnitude."""
    while True:
        found = finite(rng, dtype) if rng.random() < 0.9 else 0
        value = oracle.value_of(found, dtype)
        if found == 0 or abs(value) >= oracle.Fraction(1, 1 << 100):
            return found


def patterns(rng: Random, dtype: str, count: int) -> bytes:
    """``count`` elements; a dtype below a byte as the bytes they fill."""
    bits = WIDTH[dtype][0]
    if bits < 8:
        return rng.randbytes(count * bits // 8)
    if rng.random() < 0.2:
        return oracle.from_items([pattern(rng, dtype)] * count, bits // 8)
    return oracle.from_items([pattern(rng, dtype) for _ in range(count)], bits // 8)


def finites(rng: Random, dtype: str, count: int) -> bytes:
    return oracle.from_items([finite(rng, dtype) for _ in range(count)], WIDTH[dtype][0] // 8)


def scales(rng: Random, dtype: str, count: int) -> bytes:
    return oracle.from_items([scale(rng, dtype) for _ in range(count)], WIDTH[dtype][0] // 8)


def shape(rng: Random, dtype: str, most: int = 24) -> list[int]:
    """Rank 0 to 8, at most ``most`` elements, now and then none; a dtype below a byte fills whole bytes."""
    while True:
        draw = rng.random()
        rank = rng.choice([0, 1, 2, 2, 2, 3, 4]) if draw < 0.96 else rng.randint(5, 8)
        dims = [rng.choice([1, 1, 2, 2, 3, 4, 5, 7]) for _ in range(rank)]
        if rank and rng.random() < 0.04:
            dims[rng.randrange(rank)] = 0
        if rank and rng.random() < 0.04:
            far = 3 if dtype in FLOATS and rng.random() < 0.9 else 20  # the oracle takes its time with sums
            dims = [1] * (rank - 1) + [rng.randint(1, far * most)]
            if oracle.numel(dims) * WIDTH[dtype][0] % 8 == 0:
                return dims
        if oracle.numel(dims) <= most and oracle.numel(dims) * WIDTH[dtype][0] % 8 == 0:
            return dims


def name(rng: Random) -> str:
    """A name that MANIFEST may hold and safetensors too."""
    draw = rng.random()
    if draw < 0.15:
        return rng.choice(ODD_NAMES)
    if draw < 0.16:
        return rng.choice(VISIBLE) * 512
    return "".join(rng.choice(VISIBLE if draw < 0.5 else "ab.w1") for _ in range(rng.randint(1, 8)))


def stem(rng: Random) -> str:
    """What may stand before the suffix of a file of a layout."""
    letters = "abcXYZ019_"
    if rng.random() < 0.05:
        return "m" * 105
    return rng.choice(letters) + "".join(rng.choice(letters + ".-") for _ in range(rng.randrange(8)))


def text(rng: Random, most: int = 20) -> str:
    """Any text that UTF-8 can hold."""
    ranges = (
        (0x20, 0x7E),
        (0x20, 0x7E),
        (0x00, 0x1F),
        (0x7F, 0x7FF),
        (0x800, 0xD7FF),
        (0xE000, 0xFFFF),
        (0x10000, 0x10FFFF),
    )
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, most)))


def compressible(rng: Random, count: int) -> bytes:
    """Bytes in which a compressor finds something."""
    draw = rng.random()
    if draw < 0.2:
        return rng.choice([b" ", b"\0", b"\xff"]) * count
    if draw < 0.5:
        return bytes(rng.choice(b"aab\n") for _ in range(count))
    words = [rng.randbytes(rng.randint(1, 12)) for _ in range(rng.randint(1, 6))]
    found = b""
    while len(found) < count:
        found += rng.choice(words)
    return found[:count]
