"""What an encoding is: named parts of computed size, and what they do to a tensor.

``planes`` and ``parts`` are the keystone: they compute from parameters and shape alone how many bytes everything has,
so nothing is allocated on a claim. ``open`` checks the decoded values once; the object it returns then works block by
block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from skillpack_format.arithmetic import Bench, Block, DeviceArray, Grid
from skillpack_format.dtypes import Array, DType, numel
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Parts = Mapping[str, Array]


class PartSpec(NamedTuple):  # which is made in half the time of a dataclass; a header asks for thousands
    """A part's name and size: ``count`` items of ``width`` bytes, stored as ``width`` byte planes."""

    name: str
    width: int
    count: int  # type: ignore[assignment]  # tuple.count, which nobody asks of a part

    @property
    def nbytes(self) -> int:
        return self.width * self.count

    @property
    def item(self) -> np.dtype[Any]:
        """Items as little-endian unsigned integers of ``width`` bytes."""
        return np.dtype(f"<u{self.width}")


class Target(NamedTuple):
    """The tensor a component helps to make."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def grid(self) -> Grid:
        return Grid.of(self.shape)

    @property
    def numel(self) -> int:
        return numel(self.shape)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a writer hands on: the parameters as they stand in MANIFEST, and the parts."""

    encoding: str
    params: dict[str, Any]
    parts: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Window:
    """Some rows and columns of one matrix of a tensor's stack."""

    matrix: int
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    def run(self, grid: Grid) -> slice:
        """The elements of the tensor from the first to the last in the window."""
        above = self.matrix * grid.rows
        first, last = above + self.rows.start, above + self.rows.stop - 1
        return slice(first * grid.cols + self.cols.start, last * grid.cols + self.cols.stop)

    def cut(self, items: Array, grid: Grid) -> Array:
        """Of the items of ``run`` those in the window, flat."""
        height, width = self.shape
        padded = np.zeros(height * grid.cols, items.dtype)
        padded[: items.size] = items
        return padded.reshape(height, grid.cols)[:, :width].reshape(-1)


class Additive(Protocol):
    """An opened component that adds to the accumulator."""

    def touched(self, block: Block) -> NDArray[np.int64] | None:
        """Positions within the flat block that ``add`` addresses; None means all of them."""

    def add(self, acc: DeviceArray, block: Block, bench: Bench) -> None:
        """Add the contribution to ``acc``: (block rows, cols) float64, in place."""


@dataclass(frozen=True, slots=True)
class Term:
    """The matrices sum over k of scale[e, k] * outer(u[e, k], v[e, k]): a delta that need not be multiplied out."""

    scale: NDArray[np.float64]  # (stack, rank)
    u: DeviceArray  # (stack, rank, rows): int8 or float64, where the bench computes
    v: DeviceArray  # (stack, rank, cols), of the same dtype


@runtime_checkable
class Factored(Protocol):
    """An additive component whose whole contribution is a sum of terms."""

    def terms(self, bench: Bench) -> tuple[Term, ...]:
        """The terms, in the order in which ``add`` adds them."""


class Rewriting(Protocol):
    """An opened component that works on bit patterns."""

    @property
    def span(self) -> int:
        """Elements that must be rewritten together: a run begins at a multiple of it and ends at one or at the end."""

    def rewrite(self, bits: Array, first: int) -> Array:
        """The new bit patterns of the run of elements from ``first`` on, from the present ones ``bits``, flat."""


@runtime_checkable
class Placing(Protocol):
    """A rewriting component that does not look at the present bits: a device needs only what it puts in their place."""

    def placed(self) -> tuple[NDArray[np.int64] | None, Array]:
        """Positions in the flat tensor, None for all of them, and the bit patterns there."""


@runtime_checkable
class Stepping(Protocol):
    """A rewriting component of steps along the line of ordered bit patterns, which a device can walk by itself."""

    @property
    def diff(self) -> Array:
        """(numel,) zigzag codes, in the order of the file."""

    @property
    def dtype(self) -> DType:
        """Of the tensor; its kind says what the line is."""

    @property
    def key_at(self) -> int | None:
        """The lowest bit of the key by which codes are sorted, None where they are not."""

    def classes_of(self, items: slice) -> Array | None:
        """Of every one of these elements the class that codes are sorted by before the key; None where by no class."""

    @property
    def span(self) -> int:
        """Elements that are sorted together."""


class Encoding(Protocol):
    """The contract every module of this room signs with its constant ENCODING."""

    @property
    def name(self) -> str:
        """The word in the file; equals the module's name."""

    def parse(self, plain: dict[str, Any], target: Target, where: str) -> Any:
        """The component's parameters, checked against ``target``; manifest.parameter when one is out of range."""

    def adds(self, params: Any) -> bool:
        """Whether the component is additive; otherwise it rewrites."""

    def span(self, params: Any) -> int:
        """How many elements of the result need each other's items: 1, or n where runs of n elements are mixed."""

    def products(self, params: Any) -> int:
        """How many products are summed for one element of the tensor; 0 for an encoding that multiplies no matrices."""

    def planes(self, params: Any, target: Target) -> list[int]:
        """The length of every byte plane of the parts, in stored order: all that opening a pack asks of them."""

    def parts(self, params: Any, target: Target) -> tuple[PartSpec, ...]:
        """Every part and its size, in stored order."""

    def open(self, params: Any, target: Target, parts: Parts, where: str) -> Additive | Rewriting:
        """The component, its values checked (payload.*). ``parts`` holds flat arrays of ``PartSpec.item``."""


@runtime_checkable
class Windowed(Encoding, Protocol):
    """An encoding whose parts are in the order of rows or of elements: a window of the tensor needs a run of each.

    Components of the others, once open, have ``crop(window)``: the same component for that window as a matrix of its
    own.
    """

    def runs(self, params: Any, target: Target, window: Window) -> Mapping[str, slice]:
        """Of every part the items that ``open_window`` takes."""

    def open_window(
        self, params: Any, target: Target, window: Window, parts: Parts, where: str
    ) -> Additive | Rewriting:
        """``open`` for a window of ``target`` as a matrix of its own; ``parts`` holds the items ``runs``."""
