"""Clean-room Delta-CoMe and GraftLLM: a truncated SVD whose factors are quantised in bands of falling precision.

Written from the papers' formulas. V is quantised in groups along the inputs, U in groups along the components; S stays
in bfloat16. Embeddings either pruned to the largest changes, as the GraftLLM paper says, or whole in bfloat16, as both
codes leave them. With GPTQ, V is fitted to the inputs of its layer and U to S V x, V's errors included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch

from benchmarks.size.change import Candidate, Change
from benchmarks.size.functions import Function
from benchmarks.size.peers.gptq import Inverse, layer_inputs, quantise
from benchmarks.size.peers.packing import Shipment, pack_codes

SCHEDULE: Final = ((8, 0.02), (4, 0.18), (2, 0.80))  # (bits, share of the rank): 20, 180 and 800 of 1000
SHARES: Final = (0.02, 0.05, 0.12, 0.3, 0.7)  # of the full rank
MLP_MORE: Final = 1.4  # an MLP's rank over that of attention, as in the codes
PRUNED: Final = (0.001, 0.005, 0.02, 0.05, 0.15)  # share of an embedding's elements that is kept, one a rank


def candidates(change: Change, function: Function, *, calibrated: bool) -> Iterator[tuple[str, Candidate]]:
    """(embeddings, candidate): "pruned" and "whole" at every rank."""
    hessians = layer_inputs(change, function) if calibrated else {}
    inverses = {name: Inverse.of(h) for name, h in hessians.items()}
    shipment = Shipment()
    vectors = {name: change.tuned[name] for name in change.vectors}
    whole = {name: change.tuned[name].bfloat16() for name in change.embeddings}
    for share, kept in zip(SHARES, PRUNED, strict=True):
        own: dict[str, torch.Tensor] = {}
        deltas = {}
        for name in change.linears:
            rank = _rank(change, name, share)
            parts, deltas[name] = _banded(change.svd(name), rank, hessians.get(name), inverses.get(name))
            own.update({f"{name}.{part}": value for part, value in parts.items()})
        linears = change.rebuild(deltas, change.vectors)
        embedded = {name: value.to(change.base[name].dtype) for name, value in whole.items()}
        yield "whole", Candidate(f"{share:.0%} of the rank", shipment.nbytes(own, vectors | whole), linears | embedded)
        pruned, added = _pruned(change, kept)
        label = f"{share:.0%} of the rank, {kept:.1%} of the embeddings"
        yield "pruned", Candidate(label, shipment.nbytes(own | pruned, vectors), linears | _embeddings(change, added))


def _embeddings(change: Change, added: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The embeddings of the base with their pruned changes added."""
    return {name: (change.base[name].float() + value).to(change.base[name].dtype) for name, value in added.items()}


def _rank(change: Change, name: str, share: float) -> int:
    full = min(change.base[name].shape)
    more = MLP_MORE if any(word in name for word in ("mlp", "intermediate", "layer.output", ".output.dense")) else 1.0
    more = 1.0 if "attention" in name else more
    return max(1, min(full, round(full * share * more)))


def _banded(
    svd: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rank: int,
    hessian: torch.Tensor | None,
    inverse: Inverse | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The arrays of one matrix and the delta they stand for."""
    u, s, vt = svd
    rank = min(rank, s.numel())
    arrays: dict[str, torch.Tensor] = {"s": s[:rank].bfloat16()}
    delta = torch.zeros(u.shape[0], vt.shape[1])
    start = 0
    for index, (bits, share) in enumerate(SCHEDULE):
        stop = rank if index == len(SCHEDULE) - 1 else min(rank, start + max(1, round(share * rank)))
        if stop <= start:
            continue
        band = slice(start, stop)
        scales = arrays["s"][band].float()
        right = quantise(vt[band], bits, inverse)
        inner = None
        if hessian is not None:  # the inputs of U are S V x
            carried = scales[:, None] * right.values
            inner = Inverse.of(carried @ hessian @ carried.T)
        left = quantise(u[:, band], bits, inner)
        delta += (left.values * scales) @ right.values
        for side, coded in (("u", left), ("v", right)):
            arrays[f"{side}{bits}.codes"] = pack_codes(coded.codes, bits)
            arrays[f"{side}{bits}.scales"] = coded.scales
            arrays[f"{side}{bits}.zeros"] = pack_codes(coded.zeros, bits)
            if coded.order is not None:  # all bands of V follow that of the inputs: stored once
                arrays["v.order" if side == "v" else f"u{bits}.order"] = coded.order
        start = stop
    return arrays, delta


def _pruned(change: Change, kept: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The share ``kept`` of every embedding that changed most, in bf16, with gaps as positions (zstd codes them)."""
    arrays: dict[str, torch.Tensor] = {}
    deltas = {}
    for name in change.embeddings:
        delta = change.delta(name).reshape(-1)
        count = max(1, min(round(kept * delta.numel()), int(torch.count_nonzero(delta))))
        positions = delta.abs().topk(count).indices.sort().values
        values = delta[positions].bfloat16()
        gaps = np.diff(positions.numpy(), prepend=-1) - 1
        arrays[f"{name}.values"] = values
        arrays[f"{name}.gaps"] = torch.from_numpy(_bytes_of_gaps(gaps))
        added = torch.zeros_like(delta)
        added[positions] = values.float()
        deltas[name] = added.reshape(change.base[name].shape)
    return arrays, deltas


def _bytes_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """A byte a gap, 255 meaning that 255 is to be added to the next."""
    wraps = gaps // 255
    ends = np.cumsum(wraps + 1) - 1
    out = np.full(int(ends[-1]) + 1, 255, np.uint8)
    out[ends] = gaps % 255
    return out
