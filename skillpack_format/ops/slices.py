"""Parts of the tensors that a pack makes of a base: what each process of a tensor-parallel server loads.

The rule: as little is read as the part needs, and what that cannot prove is said (``AppliedSlice``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from skillpack_format.arithmetic import Grid
from skillpack_format.closing import Closing
from skillpack_format.contents import PlannedComponent, is_compatible, target_of
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import Array, dtype_named, numel
from skillpack_format.encodings._base import Target, Window, Windowed
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.listing import kind_of
from skillpack_format.making import Change, Start, make
from skillpack_format.manifest import Entry
from skillpack_format.native import cpu_bench
from skillpack_format.ops.chain import Chain
from skillpack_format.progress import Progress, silent
from skillpack_format.reader import Pack, open_pack
from skillpack_format.stores.safetensors_files import open_checkpoint

Index: TypeAlias = "slice | tuple[slice, ...]"


class Applied(Closing):
    """A base with a pack applied, of which nothing exists until it is asked for. Made by ``open_applied``."""

    def __init__(self, chain: Chain, files: ExitStack) -> None:
        self._chain = chain
        self._files = files

    def close(self) -> None:
        """Close base and pack; a second call does nothing."""
        self._files.close()

    def keys(self) -> list[str]:
        """The names of the tensors of the result, ascending."""
        return list(self._chain.specs)

    def get_tensor(self, name: str) -> Array:
        """A whole tensor as bit patterns of its shape, proved: base tensor and result have their digests."""
        kind = self._kind(name)
        dtype = dtype_named(kind.dtype)
        return _whole(self._chain, name).reshape(kind.shape if dtype.itemsize else -1)

    def get_slice(self, name: str) -> AppliedSlice:
        """A tensor to be indexed: ``m.get_slice(name)[rows, cols]``."""
        return AppliedSlice(self._chain, name, self._kind(name))

    def require_proved(self, threads: int = 1, progress: Progress = silent) -> None:
        """Hash the whole base: base.content where it is not the one the pack was made for (apply.verify)."""
        self._chain.require_proved(progress, threads)

    def _kind(self, name: str) -> TensorKind:
        if name not in self._chain.specs:
            raise error("usage.argument", f"tensor {name!r}", "the result has no such tensor")
        return kind_of(self._chain.specs[name])


class AppliedSlice:
    """A tensor of the result that is made as far as it is indexed: one slice of step 1 for each dimension.

    Indexing reads of the base the bytes of the part, and of the pack the chunks that hold what the part needs: of
    ``dense``, ``ulp`` and ``blockq`` all from its first row to its last, of ``lowrank`` its rows of U and its columns
    of V, of ``factors`` and ``sparse`` everything. Sorted ``ulp`` (ulp.sort) needs base and steps of whole spans.

    What it proves: base and pack fit by names, dtypes and shapes; every chunk read has its CRC-32, every content read
    whole its digest. What it cannot prove: that the part is the result's, or that the base tensor is the right one,
    for their digests are of all their bytes (spec/apply.md, "Parts of tensors"). ``Applied.get_tensor`` and
    ``Applied.require_proved`` prove that.
    """

    def __init__(self, chain: Chain, name: str, kind: TensorKind) -> None:
        self._chain = chain
        self._kind = kind
        route = chain.route(name)
        made = [(pack, entry) for pack, entry in route.steps if entry.alias is None]
        self._made: tuple[Pack, Entry] | None = made[-1] if made else None
        self._name = name
        self._base = route.base
        self._opened: dict[int, Any] = {}
        if not dtype_named(kind.dtype).itemsize:
            message = f"{kind.dtype} elements share bytes; there are no slices of them, use get_tensor"
            raise error("unsupported.operation", f"tensor {name!r}", message)
        self._where = f"tensor {name!r}"

    def get_shape(self) -> list[int]:
        return list(self._kind.shape)

    def get_dtype(self) -> str:
        """The dtype's name in safetensors."""
        return self._kind.dtype

    def __getitem__(self, index: Index) -> Array:
        """The bit patterns of the part, of its shape; ``.view(np.float32)`` and the like make numbers of them.

        usage.argument for anything but slices of step 1; dimensions without one are taken whole.
        """
        given = index if isinstance(index, tuple) else (index,)
        shape = self._kind.shape
        if len(given) > len(shape) or not all(map(_is_plain, given)):
            raise error("usage.argument", self._where, f"{len(shape)} slices of step 1 are taken, not {index!r}")
        whole = (*given, *(slice(None) for _ in shape[len(given) :]))
        if self._mixed() is not None and len(self._components()) > 1:
            return _whole(self._chain, self._name).reshape(shape)[whole]
        ranges = [range(*each.indices(size)) for each, size in zip(whole, shape, strict=True)]
        parts = [self._make(window) for window in self._windows(ranges)]
        bits = np.concatenate(parts) if parts else np.empty(0, dtype_named(self._kind.dtype).bit_pattern)
        return bits.reshape([len(each) for each in ranges])

    def _windows(self, ranges: list[range]) -> Iterator[Window]:
        """The part of every matrix of the stack, in order; none where there is no element."""
        if not all(ranges):
            return
        *stack, rows, cols = [range(1), range(1), *ranges][-max(2, len(ranges)) :]
        shape = self._kind.shape[:-2]
        for place in itertools.product(*stack):
            matrix = 0
            for position, size in zip(place, shape, strict=True):
                matrix = matrix * size + position
            yield Window(matrix, slice(rows.start, rows.stop), slice(cols.start, cols.stop))

    def _make(self, window: Window) -> Array:
        """The result's bits in a window, flat."""
        grid = Grid.of(self._kind.shape)
        span = self._mixed()
        if span is not None:  # as a window of a tensor of one row: the whole runs that have elements in this window
            run = window.run(grid)
            first, last = run.start // span * span, min(-(-run.stop // span) * span, grid.items)
            made = self._made_in(Grid(1, 1, grid.items), Window(0, slice(0, 1), slice(first, last)))
            return window.cut(made[run.start - first : run.stop - first], grid)
        return self._made_in(grid, window)

    def _made_in(self, grid: Grid, window: Window) -> Array:
        """The result's bits in a window of the tensor seen as ``grid``, flat."""
        kind = TensorKind(self._kind.dtype, window.shape)
        opened = [self._open(each, grid, window) for each in self._components()]
        rewriting = opened.pop() if opened and not self._components()[-1].adds else None
        return make(self._start(grid, window), kind, Change(opened, rewriting), cpu_bench(), self._where)

    def _mixed(self) -> int | None:
        """How many elements the rewriting component mixes, None where it mixes none."""
        last = self._components()[-1:]
        span = last[0].encoding.span(last[0].params) if last else 1
        return span if span > 1 else None

    def _start(self, grid: Grid, window: Window) -> Start:
        """START in a window, from the base's bytes in that window alone."""
        base = None if self._base is None else kind_of(self._chain.checkpoint.specs[self._base])
        height, width = window.shape
        if self._base is None or base is None or not is_compatible(base, self._kind):
            dtype = dtype_named(self._kind.dtype)
            return Start(np.zeros(height * width, dtype.bit_pattern), dtype)
        dtype = dtype_named(base.dtype)
        source, offset = self._chain.checkpoint.place(self._base)
        bits = np.zeros(height * width, dtype.bit_pattern)
        view = bits.view(np.uint8).data
        available = numel(base.shape)
        for at, (first, last) in _runs(grid, window):
            count = max(min(last, available) - first, 0)  # rows that the base does not have stay zero
            start = at * dtype.itemsize
            source.read_into(view[start : start + count * dtype.itemsize], offset + first * dtype.itemsize)
        return Start(bits, dtype)

    def _components(self) -> tuple[PlannedComponent, ...]:
        return self._made[0].contents.components[self._made[1].name] if self._made else ()

    def _open(self, planned: PlannedComponent, grid: Grid, window: Window) -> Any:
        """A component, open for the window as a matrix of its own."""
        pack, encoding = self._chain.packs[0], planned.encoding
        where = pack.contents.all[planned.segment].where
        if isinstance(encoding, Windowed):
            target = Target(dtype_named(self._kind.dtype), (grid.stack, grid.rows, grid.cols))
            parts = pack.read_content_runs(planned.segment, encoding.runs(planned.params, target, window))
            return encoding.open_window(planned.params, target, window, parts, where)
        if planned.segment not in self._opened:
            parts = pack.read_content(planned.segment)
            self._opened[planned.segment] = encoding.open(planned.params, target_of(self._kind), parts, where)
        return self._opened[planned.segment].crop(window)


def open_applied(base: str | Path, pack: str | Path, limits: Limits = DEFAULT_LIMITS) -> Applied:
    """Open a base and a pack for it, to read parts of the result without making it.

        with skp.open_applied("base", "math.skp") as m:
            part = m.get_slice("model.layers.0.mlp.up_proj.weight")[0:512, :]

    base.* where names, dtypes or shapes do not fit; contents are read, and proved as far as can be, when asked for.
    """
    with ExitStack() as files:
        checkpoint = files.enter_context(open_checkpoint(Path(base), limits))
        opened = files.enter_context(open_pack(Path(pack), limits))
        return Applied(Chain(checkpoint, [opened], 1.0, cpu_bench()), files.pop_all())


def _whole(chain: Chain, name: str) -> Array:
    """The bit patterns of a whole tensor, flat and proved. A block is copied before the next one takes its place."""
    data = bytearray()
    for block in chain.blocks(name):
        data += block
    return np.frombuffer(data, chain.specs[name].dtype.bit_pattern)


def _is_plain(index: Any) -> bool:
    return isinstance(index, slice) and index.step in (None, 1)


def _runs(grid: Grid, window: Window) -> Iterator[tuple[int, tuple[int, int]]]:
    """Elements that lie together in tensor and window: where in the window they begin, first and end in the tensor."""
    run, (height, width) = window.run(grid), window.shape
    if width == grid.cols:
        yield 0, (run.start, run.stop)
        return
    for row in range(height):
        first = run.start + row * grid.cols
        yield row * width, (first, first + width)
