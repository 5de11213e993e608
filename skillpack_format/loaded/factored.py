"""A low-rank delta kept in factors on a device, and its product with activations.

The codes stay int8, one byte each whatever their width in the file. The arithmetic is float: that of the activations,
in float32 where they are float16 (a product of codes can leave its range). It is close to the merged result and not
equal to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from skillpack_format.encodings._base import Factored
from skillpack_format.torch_bridge import TorchBench


@dataclass(frozen=True, slots=True)
class _Block:
    """All terms of one dtype, one beside the other: delta = u @ diag(scale) @ v."""

    scale: torch.Tensor  # (r,) float32
    u: torch.Tensor  # (rows, r) int8 or float32
    v: torch.Tensor  # (r, cols), likewise


@dataclass(frozen=True, slots=True)
class FactoredDelta:
    """The change of one matrix (rows, cols): at most one block of integers and one of floats."""

    blocks: tuple[_Block, ...]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for block in self.blocks for each in (block.scale, block.u, block.v))

    def of_input(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` (..., cols) times the delta, transposed: (..., rows), what a linear layer adds."""
        dtype = _computed_in(values.dtype)
        total: torch.Tensor | None = None
        for block in self.blocks:
            inner = functional.linear(values.to(dtype), block.v.to(values.device, dtype))  # (..., r)
            scaled = (inner * block.scale.to(values.device)).to(dtype)
            part = functional.linear(scaled, block.u.to(values.device, dtype))  # (..., rows)
            total = part if total is None else total + part
        return _some(total).to(values.dtype)

    def of_rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The delta's rows ``ids`` (...): (..., cols), what an embedding adds."""
        total: torch.Tensor | None = None
        for block in self.blocks:
            u = block.u.to(ids.device)[ids].to(torch.float32) * block.scale.to(ids.device)  # (..., r)
            part = u @ block.v.to(ids.device, torch.float32)
            total = part if total is None else total + part
        return _some(total).to(dtype)


def factored(components: Sequence[Factored], device: torch.device) -> FactoredDelta:
    """The delta that ``components`` of one matrix (stack 1) add up to; codes are unpacked on ``device``."""
    bench = TorchBench(str(device))
    terms = [each for component in components for each in component.terms(bench)]
    blocks = []
    for dtype in (torch.int8, torch.float32):
        kept = [each for each in terms if (each.u.dtype == torch.int8) == (dtype == torch.int8)]
        if not kept:
            continue
        scale = torch.from_numpy(np.concatenate([each.scale[0] for each in kept])).to(device, torch.float32)
        u = torch.cat([each.u[0].T.to(dtype) for each in kept], dim=1)
        v = torch.cat([each.v[0].to(dtype) for each in kept])
        blocks.append(_Block(scale, u, v))
    return FactoredDelta(tuple(blocks))


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


def _some(total: torch.Tensor | None) -> torch.Tensor:
    if total is None:
        raise AssertionError("a component has at least one term")
    return total
