"""The decode rule of the format on a torch device, for a tensor that keeps its kind (spec/numerics.md).

The base is on the device already; what travels are the components' values, and the result stays. Everything asked of
torch here is exact or correctly rounded element by element, so the bits are those of ``making``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skillpack_format.arithmetic import Block, Grid
from skillpack_format.digest import TensorKind
from skillpack_format.encodings._base import Additive, Placing, Rewriting, Stepping
from skillpack_format.loaded.slots import PATTERNS
from skillpack_format.loaded.stepping import step_on
from skillpack_format.making import Change
from skillpack_format.torch_bridge import TorchBench, all_finite, raise_faults, rounded_on


def make_on(device: torch.device, base: torch.Tensor, kind: TensorKind, change: Change, where: str) -> torch.Tensor:
    """The result on ``device``, where ``base`` is: both (numel,) of the tensor's torch dtype.

    payload.nonfinite and payload.overflow as ``making.make``. The caller proves the result by its digest.
    """
    bench = TorchBench(str(device))
    made = _sum(base, kind, change.additive, bench, where) if change.additive and base.numel() else base.clone()
    return made if change.rewriting is None else _rewrite(made, change.rewriting, bench)


def _sum(
    base: torch.Tensor, kind: TensorKind, additive: Sequence[Additive], bench: TorchBench, where: str
) -> torch.Tensor:
    """START's bits where nothing was added, the rounded sum where something was."""
    made = torch.empty_like(base)
    flags = []
    for block in Grid.of(kind.shape).blocks(bench.block_items):
        source, touched = base[block.items], touched_by(additive, block, bench)
        acc = bench.sum_of(source.view(block.shape), where, touched)
        for component in additive:
            component.add(acc, block, bench)
        summed = rounded_on(acc.values.view(-1), source.dtype)
        flags.append(torch.stack((acc.is_finite, all_finite(summed, touched))))
        made[block.items] = summed if touched is None else torch.where(touched, summed, source)
    raise_faults(torch.stack(flags).all(0), kind.dtype, where)  # read once: a device that waits does nothing
    return made


def touched_by(additive: Sequence[Additive], block: Block, bench: TorchBench) -> torch.Tensor | None:
    """A mask over the flat block of the elements that any component addresses; None for all of them."""
    mask = torch.zeros(block.items.stop - block.items.start, dtype=torch.bool, device=bench.device)
    for component in additive:
        positions = component.touched(block)
        if positions is None:
            return None
        mask[bench.index(positions)] = True
    return mask


def _rewrite(bits: torch.Tensor, rewriting: Rewriting, bench: TorchBench) -> torch.Tensor:
    """What the component holds travels to the device; one that no device knows works on the host."""
    present = bits.view(PATTERNS[bits.element_size()])
    if isinstance(rewriting, Placing):
        positions, values = rewriting.placed()
        made: torch.Tensor = bench.bits(values).view(present.dtype)
        if positions is not None:
            made = present.index_copy(0, bench.index(positions), made)
    elif isinstance(rewriting, Stepping):
        made = step_on(present, rewriting, bench)
    else:
        unsigned = present.cpu().numpy().view(f"<u{bits.element_size()}")
        made = bench.bits(rewriting.rewrite(unsigned, 0)).view(present.dtype)
    return made.view(bits.dtype)
