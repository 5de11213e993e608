"""A base and packs on top of it: which tensors come out, and each of them in blocks, proved at every step.

The rule: whatever is read of the base is hashed on the way, whatever is made is compared with the digest promised for
it, and when something is wrong and the base is too, then the base is what is reported (container.order).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from skillpack_format.arithmetic import Bench
from skillpack_format.digest import Bytes, TensorKind, sha256
from skillpack_format.dtypes import Array, bits_to_float64, dtype_named, float32_to_bits
from skillpack_format.errors import SkillPackError, error
from skillpack_format.listing import content_fault, is_expected, kind_fault, kind_of, listing_of, result_of
from skillpack_format.manifest import Entry
from skillpack_format.progress import Budget, Progress, silent
from skillpack_format.reader import Pack
from skillpack_format.sources import HASHED_BYTES
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import Checkpoint

HELD_BYTES: Final = 1 << 30  # that tensors in work may hold together, or the one alone that needs more
COPIES: Final = 3  # of a tensor while it is made whole (base, components, result), or of components while read


@dataclass(frozen=True, slots=True)
class Route:
    """How a tensor of the result comes about: the base tensor it begins as, and what packs do to it, in order."""

    base: str | None
    steps: tuple[tuple[Pack, Entry], ...]


class Chain:
    """A base and packs in a row. ``scale`` is the share of the change that is taken, of a single pack."""

    def __init__(self, checkpoint: Checkpoint, packs: Sequence[Pack], scale: float, bench: Bench) -> None:
        if not packs:
            raise error("usage.argument", "", "at least one pack is needed")
        if scale != 1.0 and len(packs) > 1:
            raise error(
                "usage.argument",
                "",
                "a scale goes with one pack: the packs of a chain each need the exact result before",
            )
        if not np.isfinite(scale):
            raise error("usage.argument", "", f"scale {scale} is not a finite number")
        self.checkpoint = checkpoint
        self.packs = packs
        self.scale = scale
        self._bench = bench
        self._index = {name: index for index, name in enumerate(checkpoint.specs)}
        self._digests: dict[str, bytes] = {}
        self._budget = Budget(HELD_BYTES)
        self._require_row()
        self.specs = self._result_specs()

    def route(self, name: str) -> Route:
        """How the tensor ``name`` of the result comes about."""
        steps: list[tuple[Pack, Entry]] = []
        for pack in reversed(self.packs):
            entry = pack.entries.get(name)
            if entry is not None and entry.alias is not None:
                steps.append((pack, entry))
                name = entry.alias
                entry = pack.entries.get(name)
            if entry is not None:
                steps.append((pack, entry))
                if entry.base is None:
                    return Route(None, tuple(reversed(steps)))
        return Route(name, tuple(reversed(steps)))

    def expected(self, name: str) -> bytes | None:
        """The SHA-256 that a pack promises for a tensor that it makes; None for others, and with a scale."""
        steps = self.route(name).steps
        last = steps[-1][1] if steps and self.scale == 1.0 else None
        return last.result.sha256 if last and last.result and last.alias is None else None

    def blocks(self, name: str) -> Iterator[Bytes]:
        """The bytes of a result tensor, in order; it is proved once the last block has been taken.

        A block is valid until the next one is asked for.
        """
        route = self.route(name)
        with self.base_first():
            if not route.steps:
                yield from self._base_blocks(name)
            elif self._is_streamed(route):
                yield from self._made_blocks(route)
            else:
                with self._budget.hold(COPIES * self.specs[name].nbytes):
                    yield self._whole(route)

    @contextmanager
    def base_first(self) -> Iterator[None]:
        """When something is wrong in this block, see whether the base is: that is what is reported then, and how wrong
        it is (container.order).
        """
        try:
            yield
        except SkillPackError:
            self._require_base(silent)
            raise

    def accept(self, name: str, digest: bytes) -> None:
        """Take note of the digest of a base tensor; base.content when it is not the one the first pack was made for."""
        if not is_expected(self.packs[0].manifest, self._index[name], digest):
            fault = error("base.content", f"tensor {name!r}", "it is not the base tensor this pack was made for")
            self._require_base(silent)
            raise fault
        self._digests[name] = digest

    def require_proved(self, progress: Progress, threads: int) -> None:
        """Hash what was not read on the way, and compare the base as a whole; see that no input changed meanwhile."""
        self._require_base(progress, threads)
        self.checkpoint.require_unchanged()
        for pack in self.packs:
            pack.require_unchanged()

    def _require_row(self) -> None:
        """Every pack was made for the result of the one before it."""
        for before, after in zip(self.packs, self.packs[1:], strict=False):
            if before.manifest.result.digest != after.manifest.base.digest:
                message = f"it was not made for the result of {before.path.name}; packs in a row build on each other"
                raise error("base.content", f"pack {after.path.name}", message)

    def _result_specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the result, ascending by name; each pack must fit what the ones before it leave."""
        specs = dict(self.checkpoint.specs)
        for pack in self.packs:
            fault = kind_fault(pack.manifest, specs)
            if fault is not None:
                raise fault
            with self.base_first():
                _require_alias_targets(pack, specs)
            for entry in pack.manifest.tensors:
                if entry.result is None:
                    specs.pop(entry.name, None)
                else:
                    kind = entry.result.kind
                    specs[entry.name] = TensorSpec(entry.name, dtype_named(kind.dtype), kind.shape)
        return dict(sorted(specs.items()))

    def _is_streamed(self, route: Route) -> bool:
        """Whether the tensor is made block by block as the base is read: one step whose components see like blocks."""
        if len(route.steps) > 1 or self.scale != 1.0:
            return False
        pack, entry = route.steps[0]
        return entry.alias is None and len({each.adds for each in pack.contents.components[entry.name]}) < 2

    def _base_blocks(self, name: str) -> Iterator[Bytes]:
        stream = _BaseStream(self.checkpoint, name)
        while data := stream.read(HASHED_BYTES):
            yield data
        self.accept(name, stream.finish())

    def _made_blocks(self, route: Route) -> Iterator[Bytes]:
        [(pack, entry)] = route.steps
        stream = _BaseStream(self.checkpoint, route.base) if route.base is not None else None
        parts = sum(each.nbytes for content in pack.contents.of(entry.name) for each in content.parts)
        with self._budget.hold(COPIES * parts):
            for bits in pack.get_blocks(entry.name, stream, self._bench):
                yield bits.view(np.uint8).data
        if route.base is not None and stream is not None:
            self.accept(route.base, stream.finish())

    def _whole(self, route: Route) -> Bytes:
        data = None if route.base is None else self._base(route.base)
        digest = self._digests[route.base] if route.base is not None else None
        for pack, entry in route.steps:
            if entry.alias is not None:
                _require_alias(pack, entry, data)
                continue
            made = pack.get_tensor(entry.name, data, self._bench, digest)
            if self.scale != 1.0 and data is not None and entry.base is not None and entry.result is not None:
                made = _scaled(data, made, entry.base.kind, entry.result.kind, self.scale, entry.name)
            data, digest = made.reshape(-1).view(np.uint8).data, entry.result.sha256 if entry.result else None
        return data or b""  # the last step has made it

    def _base(self, name: str) -> Bytes:
        """A base tensor whole, hashed."""
        data = self.checkpoint.read(name)
        self.accept(name, sha256(data))
        return data

    def _require_base(self, progress: Progress, threads: int = 1) -> None:
        listing = listing_of(self.checkpoint, dict(self._digests), threads, progress, "checking the base")
        fault = content_fault(self.packs[0].manifest, listing)
        if fault is not None:
            raise fault
        for pack in self.packs:
            listing = result_of(pack.manifest, listing)


class _BaseStream:
    """The bytes of a base tensor from first to last, each hashed as it is read."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._source, self._at = checkpoint.place(name)
        self._end = self._at + checkpoint.specs[name].nbytes
        self._digest = hashlib.sha256()
        self._buffer = bytearray()

    def read(self, nbytes: int) -> memoryview:
        """The next ``nbytes``, fewer at the end; valid until the next call."""
        nbytes = min(nbytes, self._end - self._at)
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        block = memoryview(self._buffer)[:nbytes]
        self._source.read_into(block, self._at)
        self._digest.update(block)
        self._at += nbytes
        return block

    def finish(self) -> bytes:
        """The SHA-256 of the whole tensor; what was not asked for is read now."""
        while self.read(HASHED_BYTES):
            pass
        return self._digest.digest()


def _require_alias(pack: Pack, entry: Entry, data: Bytes | None) -> None:
    """An alias of a tensor that the pack leaves alone has the bytes of that tensor (manifest.alias)."""
    listed = entry.alias in pack.entries  # then it is that entry's result, which has been proved
    if not listed and data is not None and entry.result and sha256(data) != entry.result.sha256:
        raise error("manifest.alias", f"tensor {entry.name!r}", f"it is to be {entry.alias!r}, which has other bytes")


def _require_alias_targets(pack: Pack, specs: Mapping[str, TensorSpec]) -> None:
    """An alias of a tensor that the pack leaves alone: the base must have it, of the same kind (manifest.alias)."""
    for entry in pack.manifest.tensors:
        if entry.alias is None or entry.result is None or entry.alias in pack.entries:
            continue
        target = specs.get(entry.alias)
        if target is None or kind_of(target) != entry.result.kind:
            message = f"it is to be {entry.alias!r}, which the base does not have as {entry.result.kind}"
            raise error("manifest.alias", f"tensor {entry.name!r}", message)


def _scaled(base: Bytes, made: Array, before: TensorKind, after: TensorKind, scale: float, name: str) -> Array:
    """base + scale * (made - base) in float64, rounded to float32, then to the dtype; other kinds are taken whole."""
    dtype = dtype_named(after.dtype)
    if before != after or not dtype.is_arithmetic:
        return made
    old_bits = np.frombuffer(base, dtype.bit_pattern)
    old, new = bits_to_float64(old_bits, dtype), bits_to_float64(made, dtype)
    with np.errstate(all="ignore"):
        values = (old + scale * (new - old)).astype(np.float32)
    bits = float32_to_bits(values, dtype)
    if not np.isfinite(bits_to_float64(bits, dtype)[np.isfinite(old) & np.isfinite(new)]).all():
        raise error("payload.overflow", f"tensor {name!r}", f"scaled by {scale} it leaves the range of {dtype.name}")
    return np.where(made == old_bits, old_bits, bits)  # what the pack leaves alone stays as it is, to the bit
