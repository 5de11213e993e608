"""Codes as they are stored, seen as matrices: a bench unpacks them where it computes (spec/packing.md).

What is unpacked here, with numpy, is the reference. Spare bits are checked before, on the host whatever the bench: the
digests are made there, and what is refused, and when, does not depend on where a tensor is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skillpack_format import bits as packing_of
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CodeMatrix:
    """Codes of ``bits`` bits, row after row; ``skip`` codes come before the first in ``packed``.

    A row has ``width`` codes, and ``cols`` of them belong to the matrix.
    """

    packed: NDArray[np.uint8]
    skip: int
    rows: int
    width: int
    cols: slice
    bits: int
    packing: str

    @staticmethod
    def of_run(
        packed: NDArray[np.uint8], run: slice, count: int, shape: tuple[int, int], bits: int, packing: str, where: str
    ) -> CodeMatrix:
        """The codes ``run`` of ``count`` as a matrix, from the bytes ``packed_run``.

        payload.padding-bits when a spare bit of these bytes is set.
        """
        first, last = packing_of.codes_beside(run, count)
        packing_of.require_spare_bits_zero(packed, last - first, bits, packing, where)
        return CodeMatrix(packed, run.start - first, *shape, slice(0, shape[1]), bits, packing)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols.stop - self.cols.start

    @property
    def count(self) -> int:
        """Of the codes in ``packed`` to the last one of the matrix."""
        return self.skip + self.rows * self.width

    @property
    def half(self) -> int:
        """What a signed code is stored above zero."""
        return 1 << (self.bits - 1)

    def take(self, rows: slice) -> CodeMatrix:
        """Some of the rows; nothing is copied."""
        start, stop = (self.skip + each * self.width for each in (rows.start, rows.stop))
        held = packing_of.packed_run(slice(start, stop), self.count, self.bits, self.packing)
        return replace(self, packed=self.packed[held], skip=start % 8, rows=rows.stop - rows.start)

    def narrow(self, cols: slice) -> CodeMatrix:
        """Some of the columns; nothing is copied."""
        return replace(self, cols=slice(self.cols.start + cols.start, self.cols.start + cols.stop))

    def unpacked(self) -> NDArray[np.uint8]:
        """(rows, cols)."""
        codes = packing_of.unpack(self.packed, self.count, self.bits, self.packing)
        return codes[self.skip :].reshape(self.rows, self.width)[:, self.cols]

    def signed(self) -> NDArray[np.int8]:
        """(rows, cols), the codes less 2^(bits - 1)."""
        return (self.unpacked() - np.uint8(self.half)).view(np.int8)  # wraps below zero


@dataclass(frozen=True, slots=True)
class Levels:
    """Numbers (rows, cols) as group codes: (2q - zero) * scale, an exact product (spec/encodings/blockq.md)."""

    codes: CodeMatrix
    zeros: int | NDArray[np.int16]  # (rows, groups)
    scales: NDArray[np.float32]  # (rows, groups)
    group: int  # columns that share a zero and a scale

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    def take(self, rows: slice) -> Levels:
        """Some of the rows."""
        zeros = self.zeros if isinstance(self.zeros, int) else self.zeros[rows]
        return Levels(self.codes.take(rows), zeros, self.scales[rows], self.group)

    def narrow(self, cols: slice) -> Levels:
        """Some of the columns, each a group of its own: they may begin within one."""

        def cut(per_group: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(spread(per_group, self.group, self.shape[1])[:, cols])

        zeros = self.zeros if isinstance(self.zeros, int) else cut(self.zeros)
        return Levels(self.codes.narrow(cols), zeros, cut(self.scales), 1)

    def half_steps(self) -> NDArray[np.int16]:
        """(rows, cols): 2q - zero."""
        zeros = self.zeros if isinstance(self.zeros, int) else spread(self.zeros, self.group, self.shape[1])
        found: NDArray[np.int16] = 2 * self.codes.unpacked().astype(np.int16) - np.asarray(zeros, np.int16)
        return found

    def numbers(self) -> NDArray[np.float64]:
        """(rows, cols)."""
        product: NDArray[np.float64] = self.half_steps() * spread(
            self.scales.astype(np.float64), self.group, self.shape[1]
        )
        return product


def spread(per_group: NDArray[Any], group: int, cols: int) -> NDArray[Any]:
    """(..., groups) to (..., cols): every column gets its group's entry; the last group may be short."""
    return np.repeat(per_group, min(group, cols), axis=-1)[..., :cols]
