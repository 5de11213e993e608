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
    """The inverse of ``step_on``. ``alike`` has the exponents of the bits that were stepped from."""
    steps = _steps(alike, rewriting, bench)
    if rewriting.dtype.kind != "float":
        return result - steps
    return _mirrored(_mirrored(result) - steps)


def exponents_of(patterns: torch.Tensor, exponent_at: int) -> torch.Tensor:
    """What sorted codes are sorted by: uint8 of the shape of ``patterns``."""
    return ((patterns & torch.iinfo(patterns.dtype).max) >> exponent_at).to(torch.uint8)


def _steps(alike: torch.Tensor, rewriting: Stepping, bench: TorchBench) -> torch.Tensor:
    codes: torch.Tensor = bench.bits(rewriting.diff).view(alike.dtype)
    if rewriting.exponent_at is not None:
        codes = _unsorted(codes, alike, rewriting.exponent_at, rewriting.span)
    most = torch.iinfo(alike.dtype).max
    return ((codes >> 1) & most) ^ -(codes & 1)  # zigzag; the mask makes the shift a logical one


def _mirrored(values: torch.Tensor) -> torch.Tensor:
    """Bit patterns of floats to their order, or an order to bit patterns: the negative half runs the other way."""
    info = torch.iinfo(values.dtype)
    return values ^ ((values >> (info.bits - 1)) & info.max)


def _unsorted(codes: torch.Tensor, present: torch.Tensor, exponent_at: int, span: int) -> torch.Tensor:
    """Codes in the order of the file to the order of the elements (ulp.sort)."""
    found = torch.empty_like(codes)
    whole = codes.numel() // span * span
    step = max(1, _SORTED_ITEMS // span) * span
    for first in range(0, whole, step):
        run = slice(first, min(first + step, whole))
        _unsort(codes[run].view(-1, span), present[run].view(-1, span), exponent_at, found[run].view(-1, span))
    if whole < codes.numel():
        _unsort(codes[None, whole:], present[None, whole:], exponent_at, found[None, whole:])
    return found


def _unsort(codes: torch.Tensor, present: torch.Tensor, exponent_at: int, found: torch.Tensor) -> None:
    """The same for spans side by side: (spans, items) each."""
    found.scatter_(1, torch.argsort(exponents_of(present, exponent_at), dim=1, stable=True), codes)
