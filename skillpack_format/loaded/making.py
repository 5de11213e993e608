"""The decode rule of the format on a torch device, for a tensor that keeps its kind (spec/numerics.md).

The base is on the device already; what travels are the components' values, and the result stays. Everything asked of
torch here is exact or correctly rounded element by element, so the bits are those of ``making``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skillpack_format.arithmetic import Block, Grid
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import dtype_named
from skillpack_format.encodings._base import Additive, Placing, Rewriting, Stepping
from skillpack_format.errors import error
from skillpack_format.loaded.slots import PATTERNS
from skillpack_format.loaded.stepping import step_on
from skillpack_format.making import Change
from skillpack_format.torch_bridge import TorchBench


def make_on(device: torch.device, base: torch.Tensor, kind: TensorKind, change: Change, where: str) -> torch.Tensor:
    """The result on ``device``, where ``base`` is: both (numel,) of the tensor's torch dtype.

    payload.nonfinite and payload.overflow as ``making.make``. The caller proves the result by its digest.
    """
    bench = TorchBench(str(device))
    shaped = Grid.of(kind.shape if dtype_named(kind.dtype).itemsize else (base.numel(),))
    made = torch.empty_like(base)
    for block in shaped.blocks(bench.block_items):
        bits = base[block.items]
        if change.additive:
            bits = _add(bits, block, change.additive, bench, where)
        made[block.items] = bits
    return made if change.rewriting is None else _rewrite(made, change.rewriting, bench)


def _add(
    source: torch.Tensor, block: Block, additive: Sequence[Additive], bench: TorchBench, where: str
) -> torch.Tensor:
    """START's bits where nothing was added, the rounded sum where something was."""
    touched = touched_by(additive, block, bench)
    finite = torch.isfinite(source)
    if not bool((finite if touched is None else finite | ~touched).all()):
        raise error("payload.nonfinite", where, "the base holds NaN or infinity; only finite values can be added to")
    acc = source.to(torch.float64).view(block.shape) + 0.0  # num.zero: -0 counts as +0
    for component in additive:
        component.add(acc, block, bench)
    summed = acc.view(-1).to(torch.float32).to(source.dtype)  # num.round: two roundings, each to nearest even
    finite = torch.isfinite(summed)
    if not bool((finite if touched is None else finite | ~touched).all()):
        raise error("payload.overflow", where, f"a result is outside the range of {source.dtype}")
    return summed if touched is None else torch.where(touched, summed, source)


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
