"""Sums rounded to BF16 without making most of them exactly: the fast way through num.round, with the same bits.

A float32 estimate z of an element and a bound s on how far the exact rule's float32 can be from it settle the element
when z - s and z + s round to the same BF16: rounding is monotonic, so everything between rounds to that too. The few
elements for which they do not are left to the exact rule. With u = 2^-24, the unit roundoff of float32, the rule's f
and the estimate are at most this far apart:

    |f - z|  <=  2u |z|              f is a float64 sum rounded to float32, and z = x + y was rounded once
               + (K + 2) u * 1.01 N  the product y sums K terms of which one factor was rounded; N bounds the sum of
                                     their magnitudes (Cauchy-Schwarz), and no order of summation is assumed
               + a few 2^-50 N       the float64 sums of the rule itself
    s        =   4u |z| + (K + 4) u * 1.01 N + 2^-126

What s has more than the bound covers the roundings of s, z - s and z + s, so f lies strictly between the two, and a tie
never goes unnoticed. 2^-126 covers subnormal numbers, and brings every zero, whose sign has rules, to the exact rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from skillpack_format.arithmetic import Scratch
from skillpack_format.dtypes import Array
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT: Final = 2.0**-24
MOST_TERMS: Final = 1 << 16  # K u stays so small that 1.01 covers what is of second order
MOST_MAGNITUDE: Final = 2.0**126  # of N: no partial sum of a product overflows
_SCRATCH: Final = Scratch()


@dataclass(frozen=True, slots=True)
class Estimate:
    """``values``, (rows, cols) float32, the product y of ``terms`` terms; ``magnitude`` is N, for every element."""

    values: NDArray[np.float32]
    terms: int
    magnitude: float


def product(left: NDArray[np.float32], right: NDArray[np.float32], magnitude: float) -> Estimate | None:
    """The estimate (rows, r) @ (r, cols), valid until the thread's next; None where the bound would not hold."""
    if left.shape[1] > MOST_TERMS or not magnitude < MOST_MAGNITUDE:
        return None
    values = _SCRATCH.take("values", (left.shape[0], right.shape[1]), np.float32)
    return Estimate(np.matmul(left, right, out=values), left.shape[1], magnitude)


def settle(values: NDArray[np.float32], estimate: Estimate) -> tuple[Array, NDArray[np.int64]]:
    """BF16 bit patterns of ``values`` plus the estimate, flat, and where they are not settled.

    ``values``: (rows, cols), finite.
    """
    z, shape = estimate.values, values.shape
    low, high = (_SCRATCH.take(name, shape, np.float32) for name in ("low", "high"))
    least = (estimate.terms + 4) * UNIT * 1.01 * estimate.magnitude + 2.0**-126
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is not settled, or overflows for good
        z += values
        slack = np.abs(z, out=high)
        slack *= np.float32(4 * UNIT)
        slack += np.float32(least)
        np.subtract(z, slack, out=low)
        np.add(z, slack, out=high)
    below, above = low.view(np.uint32), high.view(np.uint32)
    below += np.uint32(0x8000)  # the nearest BF16 is now in the upper half; ties, away from zero here, are not settled
    above += np.uint32(0x8000)
    below ^= above
    unsettled = np.greater(below, 0xFFFF, out=_SCRATCH.take("unsettled", shape, np.bool_))
    above >>= np.uint32(16)
    return above.astype(np.uint16).reshape(-1), np.flatnonzero(unsettled)
