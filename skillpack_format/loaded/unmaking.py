"""Back from a result to its base with the help of the pack, so that next to nothing has to be kept.

A sum is computed back by subtraction, steps of ``ulp`` are walked back. Subtraction misses an element here and there;
sorted steps need the keys of the base, of which the result has nearly all, of F32 where the change is small. What
misses is what an undo keeps.
Every other change is undone by the difference of the bits alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skillpack_format.arithmetic import Grid
from skillpack_format.digest import TensorKind
from skillpack_format.encodings._base import Additive, Stepping
from skillpack_format.loaded.making import touched_by
from skillpack_format.loaded.stepping import keys_of, step_back_on
from skillpack_format.loaded.undo import Undo, undo_of
from skillpack_format.making import Change
from skillpack_format.torch_bridge import TorchBench, rounded_on


def undo_with(change: Change, base: torch.Tensor, result: torch.Tensor, kind: TensorKind, dtype: torch.dtype) -> Undo:
    """What ``base_with`` needs beside ``change``, kept where the tensors are: (numel,) signed bit patterns both."""
    rewriting = change.rewriting
    near, wanted = result, base
    if rewriting is None:
        near = subtracted(result.view(dtype), kind, change.additive).view(result.dtype)
    elif isinstance(rewriting, Stepping) and not change.additive:
        wanted = result
        if rewriting.key_at is not None:
            same = keys_of(base, rewriting.key_at) == keys_of(result, rewriting.key_at)
            wanted = torch.where(same, result, base)
    return undo_of(wanted, near, result.device)


def base_with(change: Change, undo: Undo, result: torch.Tensor, kind: TensorKind, dtype: torch.dtype) -> torch.Tensor:
    """The base's bit patterns from the result's, by the undo that ``undo_with`` made for the same change."""
    rewriting = change.rewriting
    if rewriting is None:
        return undo.revert(subtracted(result.view(dtype), kind, change.additive).view(result.dtype))
    if isinstance(rewriting, Stepping) and not change.additive:
        return step_back_on(result, undo.revert(result), rewriting, TorchBench(str(result.device)))
    return undo.revert(result)


def subtracted(result: torch.Tensor, kind: TensorKind, additive: Sequence[Additive]) -> torch.Tensor:
    """``result`` minus what ``additive`` add, rounded like a result: (numel,) of the tensor's torch dtype.

    Nearly every element is the base's, for a change is small beside its weight; which are not, only a comparison with
    the base can tell.
    """
    bench = TorchBench(str(result.device))
    near = torch.empty_like(result)
    for block in Grid.of(kind.shape).blocks(bench.block_items):
        source = result[block.items]
        touched = touched_by(additive, block, bench)
        acc = bench.sum_of(-source.view(block.shape), "")
        for component in additive:
            component.add(acc, block, bench)
        found = rounded_on(-acc.values.view(-1), source.dtype)
        near[block.items] = found if touched is None else torch.where(touched, found, source)
    return near
