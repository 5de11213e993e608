"""What it takes to get a base tensor back from the result that was put over it, in less than the base itself.

Bit patterns are integers, so base = result + step, modulo 2^width, for every dtype and encoding. Fine-tuned weights
are near their base: most steps fit into 8 bits, and where few elements changed only those are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

_CHUNK_ITEMS: Final = 1 << 24  # bounds what is needed beside the two tensors, and lets each stretch have its own form
_POSITION_BYTES: Final = 4  # positions count within a chunk


@dataclass(frozen=True, slots=True)
class _Chunk:
    """``steps``: (items,) int8 or the full width, None where they are 0; then the listed elements as they were."""

    items: int
    steps: torch.Tensor | None
    positions: torch.Tensor  # int32
    bits: torch.Tensor  # of the base, at the positions

    def revert(self, result: torch.Tensor, base: torch.Tensor) -> None:
        base.copy_(result)
        if self.steps is not None:
            base.add_(self.steps.to(base.device, base.dtype))
        base[self.positions.to(base.device).long()] = self.bits.to(base.device)


@dataclass(frozen=True, slots=True)
class Undo:
    """The way back of one tensor."""

    chunks: tuple[_Chunk, ...]

    @property
    def nbytes(self) -> int:
        tensors = [each for chunk in self.chunks for each in (chunk.steps, chunk.positions, chunk.bits)]
        return sum(each.nbytes for each in tensors if each is not None)

    def revert(self, result: torch.Tensor) -> torch.Tensor:
        """The base's bit patterns from the result's: both (numel,) signed integers of the element's width."""
        base = torch.empty_like(result)
        at = 0
        for chunk in self.chunks:
            chunk.revert(result[at : at + chunk.items], base[at : at + chunk.items])
            at += chunk.items
        return base


def undo_of(base: torch.Tensor, result: torch.Tensor, device: torch.device) -> Undo:
    """The way from ``result`` back to ``base``, kept on ``device``; both (numel,) signed integers, see ``Undo``."""
    pairs = zip(torch.split(base, _CHUNK_ITEMS), torch.split(result, _CHUNK_ITEMS), strict=True)
    return Undo(tuple(_chunk_of(before, after, device) for before, after in pairs))


def _chunk_of(base: torch.Tensor, result: torch.Tensor, device: torch.device) -> _Chunk:
    steps = base - result  # wraps, as meant
    near = steps.to(torch.int8)
    beyond = near.to(steps.dtype) ^ steps  # 0 where 8 bits hold the step
    listed = _POSITION_BYTES + base.element_size()
    forms = {
        "listed": int(steps.count_nonzero()) * listed,
        "near": base.numel() + int(beyond.count_nonzero()) * listed,
        "whole": steps.nbytes,
    }
    best = min(forms, key=lambda form: forms[form])
    kept = {"listed": None, "near": near, "whole": steps}[best]
    exceptions = {"listed": steps, "near": beyond, "whole": steps[:0]}[best]
    positions = exceptions.nonzero().view(-1)
    return _Chunk(
        base.numel(),
        None if kept is None else kept.to(device),
        positions.to(torch.int32).to(device),
        base[positions].to(device),
    )
