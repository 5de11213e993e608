"""Asymmetric group quantisation, to the nearest or with error feedback (GPTQ, arXiv 2210.17323), clean-room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.size.change import Change
from benchmarks.size.functions import Function

GROUP: Final = 128
DAMP: Final = 0.01  # of the mean diagonal, as in the codes


@dataclass(frozen=True, slots=True)
class Inverse:
    """What error feedback needs of a Hessian: the order of the columns and an upper triangular root of its inverse."""

    order: torch.Tensor  # most important column first
    root: torch.Tensor

    @classmethod
    def of(cls, hessian: torch.Tensor) -> Inverse:
        """From X^T X of the inputs, damped."""
        diagonal = hessian.diagonal()
        order = diagonal.argsort(descending=True, stable=True)
        damped = hessian[order][:, order].double()
        damped += torch.eye(len(damped), dtype=torch.float64) * (DAMP * float(diagonal.mean()) + 1e-30)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return cls(order, torch.linalg.cholesky(inverse, upper=True).float())


@dataclass(frozen=True, slots=True)
class Coded:
    """A quantised matrix: what it decodes to, and all that the file must hold for that."""

    values: torch.Tensor  # (rows, columns) float32
    codes: NDArray[np.uint8]
    scales: torch.Tensor  # (rows, groups) float16
    zeros: NDArray[np.uint8]
    order: torch.Tensor | None  # of the columns, where groups follow another than their own


def quantise(weight: torch.Tensor, bits: int, inverse: Inverse | None) -> Coded:
    """``weight`` (rows, columns) in groups of GROUP columns of a row; ``inverse``: errors feed later columns."""
    order = inverse.order if inverse is not None else None
    work = weight[:, order].clone() if order is not None else weight.clone()
    rows, columns = work.shape
    codes = np.empty((rows, columns), np.uint8)
    scales, zeros = [], []
    values = torch.empty_like(work)
    for first in range(0, columns, GROUP):
        block = slice(first, min(first + GROUP, columns))
        scale, zero = _grid(work[:, block], bits)
        scales.append(scale)
        zeros.append(zero)
        if inverse is None:
            q = _nearest(work[:, block], scale[:, None], zero[:, None], bits)
            codes[:, block] = q.byte().numpy()
            values[:, block] = (q - zero[:, None]) * scale[:, None]
            continue
        errors = torch.zeros(rows, block.stop - first)
        for column in range(first, block.stop):
            q = _nearest(work[:, column], scale, zero, bits)
            codes[:, column] = q.byte().numpy()
            values[:, column] = (q - zero) * scale
            error = (work[:, column] - values[:, column]) / inverse.root[column, column]
            work[:, column : block.stop] -= error[:, None] * inverse.root[column, column : block.stop]
            errors[:, column - first] = error
        work[:, block.stop :] -= errors @ inverse.root[block, block.stop :]
    if order is not None:
        values = values[:, order.argsort()]
    kept = None if order is None else order.to(torch.int16)
    stacked = torch.stack(zeros, 1).byte().numpy()
    return Coded(values, codes, torch.stack(scales, 1).half(), stacked, kept)


def layer_inputs(change: Change, function: Function) -> dict[str, torch.Tensor]:
    """X^T X of what enters each changed linear layer of the tuned model, over the calibration text."""
    function.put(change.tuned)
    sums: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in function.model.named_modules():
        if f"{name}.weight" in change.linears:
            hooks.append(module.register_forward_pre_hook(_adder(f"{name}.weight", sums)))
    with torch.no_grad():
        for batch in function.calibrate():
            function.forward(batch)
    for hook in hooks:
        hook.remove()
    return sums


def _adder(name: str, sums: dict[str, torch.Tensor]) -> Any:
    def add(module: Any, inputs: Any) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        sums[name] = sums.get(name, 0) + x.T @ x

    return add


def _grid(block: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, rounded to the float16 that is stored, and zero point of each row; the range holds zero."""
    low, high = block.amin(1).clamp_max(0), block.amax(1).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp_min(2.0**-24)
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def _nearest(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (values / scale + zero).round().clamp(0, 2**bits - 1)
