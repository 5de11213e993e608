"""``ulp`` on a torch device: steps along the line of ordered bit patterns (spec/encodings/ulp.md).

torch has no unsigned arithmetic to speak of; signed integers that wrap do the same, with the line's middle at zero.
"""

from __future__ import annotations

from typing import Final

import torch

from skillpack_format.encodings._base import Stepping
from skillpack_format.torch_bridge import TorchBench

_SORTED_ITEMS: Final = 1 << 23  # sorted at a time: their ranks take 8 bytes each


def step_on(present: torch.Tensor, rewriting: Stepping, bench: TorchBench) -> torch.Tensor:
    """The new bit patterns from the present ones: both (numel,) signed integers of the element's width."""
    steps = _steps(present, rewriting, bench)
    if rewriting.dtype.kind != "float":
        return present + steps
    return _mirrored(_mirrored(present) + steps)


def step_back_on(result: torch.Tensor, alike: torch.Tensor, rewriting: Stepping, bench: TorchBench) -> torch.Tensor:
    """The inverse of ``step_on``. ``alike`` has the keys of the bits that were stepped from."""
    steps = _steps(alike, rewriting, bench)
    if rewriting.dtype.kind != "float":
        return result - steps
    return _mirrored(_mirrored(result) - steps)


def keys_of(patterns: torch.Tensor, key_at: int) -> torch.Tensor:
    """What sorted codes are sorted by: int32 below 2^16, of the shape of ``patterns``."""
    return ((patterns & torch.iinfo(patterns.dtype).max) >> key_at).to(torch.int32)


def _steps(alike: torch.Tensor, rewriting: Stepping, bench: TorchBench) -> torch.Tensor:
    codes: torch.Tensor = bench.bits(rewriting.diff).view(alike.dtype)
    if rewriting.key_at is not None:
        codes = _unsorted(codes, alike, rewriting, rewriting.key_at)
    most = torch.iinfo(alike.dtype).max
    return ((codes >> 1) & most) ^ -(codes & 1)  # zigzag; the mask makes the shift a logical one


def _mirrored(values: torch.Tensor) -> torch.Tensor:
    """Bit patterns of floats to their order, or an order to bit patterns: the negative half runs the other way."""
    info = torch.iinfo(values.dtype)
    return values ^ ((values >> (info.bits - 1)) & info.max)


def _unsorted(codes: torch.Tensor, present: torch.Tensor, rewriting: Stepping, key_at: int) -> torch.Tensor:
    """Codes in the order of the file to the order of the elements (ulp.sort)."""
    found = torch.empty_like(codes)
    span, count = rewriting.span, codes.numel()
    step = max(1, _SORTED_ITEMS // span) * span
    whole = count // span * span
    runs = [slice(first, min(first + step, whole)) for first in range(0, whole, step)]
    for run in [*runs, slice(whole, count)] if whole < count else runs:
        keys = keys_of(present[run], key_at)
        classes = rewriting.classes_of(run)
        if classes is not None:
            keys += torch.from_numpy(classes).to(keys.device, torch.int32) << 16
        side_by_side = (-1, min(span, run.stop - run.start))
        ranks = torch.argsort(keys.view(side_by_side), dim=1, stable=True)
        found[run].view(side_by_side).scatter_(1, ranks, codes[run].view(side_by_side))
    return found
