"""What an importer is: a foreign delta opened as changes of tensors by the names that the delta uses.

A change is stated as exactly as the delta states it. Where the delta adds something to the base (factors, signs), the
terms become components that add just that; where it says what a tensor shall be, the result is that tensor. Nothing is
approximated, and nothing a delta holds is left out: what an importer does not know, it refuses by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from skillpack_format.arithmetic import MAX_SLICES
from skillpack_format.digest import Bytes, TensorKind
from skillpack_format.dtypes import Array, bits_to_float32, require_bool
from skillpack_format.encodings import factors
from skillpack_format.encodings._base import Encoded, Target
from skillpack_format.errors import SkillPackError, error
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import Limits
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKING: Final = "lanes"  # contents are compressed; packing.md says why whole codes per byte


class Weights(Protocol):
    """Named tensors in a file: a safetensors checkpoint or a torch archive."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...
    def read(self, name: str) -> Bytes: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of a delta: the key it has there, and where to read it."""

    key: str
    weights: Weights

    @property
    def spec(self) -> TensorSpec:
        return self.weights.specs[self.key]

    @property
    def kind(self) -> TensorKind:
        return TensorKind(self.spec.dtype.name, self.spec.shape)

    def bits(self) -> Array:
        """Its bit patterns, flat."""
        dtype = self.spec.dtype
        bits = np.frombuffer(self.weights.read(self.key), dtype.bit_pattern)
        require_bool(bits, dtype, f"tensor {self.key!r} of the delta")
        return bits

    def numbers(self) -> NDArray[np.float32]:
        """Its exact values as float32, in its shape; convert.nonfinite and convert.delta say what cannot be one."""
        where = f"tensor {self.key!r} of the delta"
        if not self.spec.dtype.is_arithmetic:
            raise error("convert.delta", where, f"{self.spec.dtype.name} cannot be added; F32, F16 and BF16 can")
        values = bits_to_float32(self.bits(), self.spec.dtype).reshape(self.spec.shape)
        if not np.isfinite(values).all():
            raise error("convert.nonfinite", where, "it holds NaN or infinity, which cannot be added to a base")
        return values


class Term(Protocol):
    """Something that a delta adds to a tensor."""

    def components(self, target: Target, where: str) -> list[Encoded]:
        """Additive components that add it to ``target``, none where it is zero; convert.delta when it does not fit."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a matrix that a delta replaces: ``values`` (rows, cols) at ``indices``."""

    values: Source
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a delta does to one tensor: ``whole`` first, then ``rows``, then every term is added.

    Values of ``whole`` and ``rows`` are rounded to the dtype that the base has. ``wanted(base bits, kind)``, where it
    is given, says what the result must be to the bit; the terms are then only a short way to most of it. ``original``
    is what the delta holds the base's tensor to be.
    """

    whole: Source | None = None
    rows: Rows | None = None
    terms: tuple[Term, ...] = ()
    wanted: Callable[[Array, TensorKind], Array] | None = None
    original: Source | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """An open delta. ``changes`` is by the names of tensors as the delta has them.

    ``require_base`` refuses a base that is not the one the delta was made for, where the delta says so itself.
    """

    changes: Mapping[str, Change]
    require_base: Callable[[Checkpoint], None] | None = None
    require_unchanged: Callable[[], None]
    folder: Path | None = None  # with the tokenizer and other side files, where there is one
    warnings: Sequence[str] = ()


class Importer(Protocol):
    """The contract every module of this room signs with its constant IMPORTER."""

    @property
    def name(self) -> str:
        """The kind, as the command line takes it; equals the module's name."""

    def is_kind(self, path: Path, names: Sequence[str]) -> bool:
        """Whether a delta at ``path`` looks like one; ``names`` are the tensors of a torch archive, none otherwise."""

    def open(self, path: Path, limits: Limits) -> AbstractContextManager[Delta]:
        """The delta, every key of it accounted for."""


def wrong(key: str, message: str) -> SkillPackError:
    """convert.delta at a tensor of the delta."""
    return error("convert.delta", f"tensor {key!r} of the delta", message)


@dataclass(frozen=True, slots=True)
class Factors:
    """u (r, rows), s (r,), v (r, cols), all float32, and the float code that holds u and v exactly."""

    u: NDArray[np.float32]
    s: NDArray[np.float32]
    v: NDArray[np.float32]
    code: str

    def components(self, target: Target, where: str) -> list[Encoded]:
        """One ``factors`` component, in as many bands as the rank needs; none when a factor is all zero."""
        grid = target.grid
        rank, most = int(self.s.size), min(grid.rows, grid.cols)
        if grid.stack != 1 or (self.u.shape[1], self.v.shape[1]) != (grid.rows, grid.cols):
            found = f"factors for {self.u.shape[1]} x {self.v.shape[1]}"
            raise error("convert.delta", where, f"{found}, and the base's tensor is {list(target.shape)}")
        if not (rank and most and self.u.any() and self.s.any() and self.v.any()):
            return []
        if rank > MAX_SLICES * most:
            raise error("convert.delta", where, f"rank {rank} is more than {MAX_SLICES} times {most}, its smaller side")
        bands = [
            factors.Band(self.code, self.s[None, part], self.u[None, part], self.v[None, part])
            for part in (slice(first, first + most) for first in range(0, rank, most))
        ]
        return [factors.banded(bands, 1, PACKING)]


def code_of(*sources: Source) -> str:
    """The float code that holds the values of all ``sources`` exactly."""
    dtypes = {source.spec.dtype.name for source in sources}
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def split_key(key: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """``key`` as the name of a module and the one of ``suffixes`` that follows it; ("", "") where none does."""
    for suffix in suffixes:
        if key.endswith(f".{suffix}") and len(key) > len(suffix) + 1:
            return key[: -len(suffix) - 1], suffix
    return "", ""
