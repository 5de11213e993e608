"""Sums rounded to BF16 without making most of them exactly: the fast way through num.round, with the same bits.

A float32 estimate z of an element and a bound s on how far the exact rule's float32 can be from it settle the element
when z - s and z + s round to the same BF16: rounding is monotonic, so everything between rounds to that too. z = x + y
for the element x of START and a sum y of G addends. With u = 2^-24, the unit roundoff of float32, and N_g a bound on
the sum of the magnitudes of an addend's terms (Cauchy-Schwarz), the rule's f and z are at most this far apart:

    |f - z|  <=  2u |z|                     f is a float64 sum rounded to float32, and x + y was rounded once
               + sum of R_g u * 1.01 N_g    what float32 loses in y: R_g roundings in a row, in any order of summation
               + a few 2^-50 N              the float64 sums of the rule itself; N is the sum of the N_g
    s        =   4u |z| + sum of (R_g + 3) u * 1.01 N_g + 2^-126

R_g counts the G - 1 additions of addends and those within the addend: K + 1 for K products of which one factor was
rounded; 1 where the products are integers whose sums are exact and only the scale rounds. What s has more than the
bound covers the roundings of s, z - s and z + s, so f lies strictly between the two, and a tie never goes unnoticed.
2^-126 covers subnormal numbers, and brings every zero, whose sign has rules, to the exact rule.

A larger s is as good a bound. So a run of elements is first tried with one s for all, made of the largest |z| and N_g
that can be in it, which takes the fewest steps; what that leaves, with an s of its own; the rest is for the exact rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from skillpack_format.arithmetic import Scratch
from skillpack_format.dtypes import Array, largest_magnitude
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT: Final = 2.0**-24
MOST_TERMS: Final = 1 << 16  # of an addend: K u stays so small that 1.01 covers what is of second order
MOST_MAGNITUDE: Final = 2.0**126  # of N: no partial sum overflows
BLOCK_ITEMS: Final = 1 << 20  # to estimate at a time: a product of few rows spends its time on preparing the columns
RUN_ITEMS: Final = 1 << 17  # to settle at a time
_INFINITE: Final = 0x7F80  # the BF16 pattern; above it are the NaNs
_SCRATCH: Final = Scratch()


@dataclass(frozen=True, slots=True)
class Addend:
    """The product ``left`` (rows, K) @ ``right`` (K, cols), times ``scale`` where there is one.

    With a scale both factors are integers whose every sum of products is within 2^24, so that float32 holds it. The
    lengths are those of the rows of ``left`` times the scale and of the columns of ``right``, or a little more.
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    scale: np.float32 | None
    left_lengths: NDArray[np.float64]  # (rows,)
    right_lengths: NDArray[np.float64]  # (cols,)


@dataclass(frozen=True, slots=True)
class Estimate:
    """``values``, (rows, cols) float32: the sum y of ``addends``."""

    values: NDArray[np.float32]
    addends: Sequence[Addend]

    def largest(self, rows: slice) -> tuple[float, float]:
        """The largest N, and the largest of what s has beside |z|, in some rows."""
        bounds = [float(each.left_lengths[rows].max()) * float(each.right_lengths.max()) for each in self.addends]
        return sum(bounds), self._beside(bounds)

    def least(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
        """What s has beside |z|, of the elements at ``rows`` and ``cols``."""
        found: NDArray[np.float64] = self._beside(
            [each.left_lengths[rows] * each.right_lengths[cols] for each in self.addends]
        )
        return found

    def _beside(self, bounds: Sequence[Any]) -> Any:
        """What s has beside |z|, of N_g."""
        total: Any = 2.0**-126
        for each, bound in zip(self.addends, bounds, strict=True):
            within = each.right.shape[0] + 1 if each.scale is None else 1
            total = total + (within + len(bounds) - 1 + 3) * UNIT * 1.01 * bound
        return total


def summed(addends: Sequence[Addend]) -> Estimate | None:
    """The estimate, valid until the thread's next; None where the bound would not hold."""
    most = sum(float(each.left_lengths.max()) * float(each.right_lengths.max()) for each in addends)
    if max(each.right.shape[0] for each in addends) > MOST_TERMS or not most < MOST_MAGNITUDE:
        return None
    shape = addends[0].left.shape[0], addends[0].right.shape[1]
    values = _SCRATCH.take("values", shape, np.float32)
    for index, each in enumerate(addends):
        other = _SCRATCH.take("other", shape, np.float32) if index else values
        np.matmul(each.left, each.right, out=other)
        if each.scale is not None:
            other *= each.scale
        if index:
            values += other
    return Estimate(values, addends)


def settle(start: Array, estimate: Estimate) -> tuple[Array, NDArray[np.int64]] | None:
    """The flat BF16 bit patterns ``start`` plus the estimate, rounded, and where they are not settled.

    The bits are valid until the thread's next.
    None where ``start`` holds NaN or infinity, to which nothing can be added. Infinite results are settled as such.
    """
    made, cols = _scratch("made", start.size, np.uint16), estimate.values.shape[1]
    step = max(1, RUN_ITEMS // cols) * cols
    found = []
    for first in range(0, start.size, step):
        run = slice(first, min(first + step, start.size))
        positions = _settle_run(start[run], estimate, slice(run.start // cols, run.stop // cols), made[run])
        if positions is None:
            return None
        found.append(positions + first)
    positions = np.concatenate(found)
    z, bits = estimate.values.reshape(-1)[positions], np.empty(positions.size, np.uint16)
    slack = np.float32(4 * UNIT) * np.abs(z) + estimate.least(*np.divmod(positions, cols)).astype(np.float32)
    apart = _round(z, slack, bits)
    made[positions] = bits
    return made, positions[apart]


def _settle_run(start: Array, estimate: Estimate, rows: slice, made: Array) -> NDArray[np.int64] | None:
    """Some rows of the estimate become z; ``made`` gets their bits, and where one s for all does not settle them."""
    top = largest_magnitude(start)
    if top >= _INFINITE:
        return None
    wide = _scratch("low", start.size, np.uint32)
    np.copyto(wide, start)
    wide <<= np.uint32(16)
    z = estimate.values[rows].reshape(-1)
    most, least = estimate.largest(rows)
    largest = float(np.uint32(top << 16).view(np.float32)) + 1.01 * most  # |z| before it was rounded
    with np.errstate(over="ignore"):  # what becomes infinite overflows for good
        z += wide.view(np.float32)
    return np.flatnonzero(_round(z, np.float32(4 * UNIT * 1.01 * largest + least), made))


def _round(z: NDArray[np.float32], slack: NDArray[np.float32] | np.float32, made: Array) -> NDArray[np.bool_]:
    """``made`` gets z + slack as BF16. Whether z - slack is another, valid until the thread's next."""
    below, above = _scratch("low", z.size, np.uint32), _scratch("high", z.size, np.uint32)
    with np.errstate(over="ignore"):
        np.subtract(z, slack, out=below.view(np.float32))
        np.add(z, slack, out=above.view(np.float32))
    below += np.uint32(0x8000)  # the nearest BF16 is now in the upper half; a tie has one side of it there
    above += np.uint32(0x8000)
    below ^= above
    above >>= np.uint32(16)
    np.copyto(made, above, casting="same_kind")
    apart: NDArray[np.bool_] = np.greater(below, 0xFFFF, out=_scratch("apart", z.size, np.bool_))
    return apart


def _scratch(name: str, items: int, dtype: Any) -> NDArray[Any]:
    found: NDArray[Any] = _SCRATCH.take(name, (1, items), dtype)[0]
    return found
