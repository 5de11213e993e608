"""Codes with one scale a group of columns: what ``blockq`` and ``factors`` share (spec/encodings/blockq.md).

value = (2q - zero) * scale. Encoders here are symmetric: zero = 2^bits - 1, so the codes stand for -zero, -zero + 2,
..., +zero half steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillpack_format.arithmetic import SMALLEST_SCALE
from skillpack_format.codes import spread
from skillpack_format.dtypes import Array, DType, bits_to_float32, float32_to_bits
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def symmetric_codes(
    values: NDArray[np.float32], bits: int, group: int, scale: DType, reach: float = 1.0
) -> tuple[NDArray[np.uint8], Array]:
    """Round ``values`` (rows, cols) to nearest: codes (rows, cols), and scales as bit patterns of dtype ``scale``.

    ``reach``: share of a group's largest magnitude that its levels go up to; what lies beyond gets the last one.
    """
    rows, cols = values.shape
    groups = -(-cols // group)
    group = min(group, cols)  # one short group is the whole row
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :cols] = values
    zero = (1 << bits) - 1
    exact = np.abs(padded.reshape(rows, groups, group)).max(axis=2) * np.float32(reach) / np.float32(zero)
    stored = float32_to_bits(np.where(exact >= np.float32(SMALLEST_SCALE), exact, np.float32(0)), scale)
    steps = spread(bits_to_float32(stored, scale).astype(np.float64), group, cols)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(steps > 0, np.rint((values / steps + zero) / 2), 0)
    return np.clip(codes, 0, zero).astype(np.uint8), stored.reshape(-1)
