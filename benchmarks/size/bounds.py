"""What no method of a kind gets below, on one pair: the reasons that the report gives where a target is missed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.size.change import Change
from benchmarks.size.entropy import order_zero_bytes

EXPONENT_AT = 7  # the lowest bit of the exponent in BF16


def with_noise(change: Change) -> dict[str, torch.Tensor]:
    """tuned, and in every matrix white noise as strong as the matrix's own change."""
    made = dict(change.tuned)
    generator = torch.Generator().manual_seed(1)
    for name in [*change.linears, *change.embeddings]:
        delta = change.delta(name)
        noise = torch.randn(delta.shape, generator=generator) * delta.square().mean().sqrt()
        made[name] = change.tuned[name].float() + noise
    return made


def bytes_by_exponent(change: Change) -> int:
    """Bytes of the differences of BF16 patterns on the float line, at their entropy given the base's exponent.

    Of every tensor that differs; what tells the frequencies is not counted. A code that knows of an element no more
    than its exponent cannot be smaller.
    """
    total = 0.0
    for name in [*change.linears, *change.embeddings, *change.vectors]:
        before, after = (_patterns(values) for values in (change.base[name], change.tuned[name]))
        exponents = (before >> EXPONENT_AT) & 0xFF
        difference = _on_a_line(after) - _on_a_line(before)
        total += sum(order_zero_bytes(difference[exponents == each]) for each in np.unique(exponents))
    return round(total)


def _patterns(values: torch.Tensor) -> NDArray[np.int32]:
    return values.view(torch.int16).numpy().reshape(-1).astype(np.int32) & 0xFFFF


def _on_a_line(patterns: NDArray[np.int32]) -> NDArray[np.int32]:
    magnitude = patterns & 0x7FFF
    return np.where(patterns & 0x8000, -magnitude, magnitude)
