"""Clean-room BitDelta: one sign a weight and one scale a matrix, the scales fitted to the tuned model's outputs or not.

Written from the paper. Everything but the linear weights is whole in bfloat16, as its code stores it; a kinder variant
codes the embeddings in one bit too. (The released code also drops biases; here they are carried.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch.func import functional_call

from benchmarks.size.change import Candidate, Change
from benchmarks.size.functions import Function
from benchmarks.size.peers.packing import Shipment, pack_codes

STEPS: Final = 24
RATE: Final = 0.05  # of the logarithm of a scale


def candidates(change: Change, function: Function) -> Iterator[tuple[str, Candidate]]:
    """(embeddings, candidate): "whole" with mean and with fitted scales, "in 1 bit" with fitted scales."""
    signs = {name: _signs(change.delta(name)) for name in change.linears}
    means = {name: change.delta(name).abs().mean() for name in signs}
    fitted = _fit(change, function, signs, means)
    shipment = Shipment()
    vectors = {name: change.tuned[name] for name in change.vectors}
    embeddings = {name: change.tuned[name].bfloat16() for name in change.embeddings}
    for label, scales in (("scales not trained", means), ("scales trained", fitted)):
        own = _arrays(signs, scales)
        tensors = change.rebuild({name: signs[name] * scales[name] for name in signs}, change.vectors)
        tensors |= {name: value.to(change.base[name].dtype) for name, value in embeddings.items()}
        yield "whole", Candidate(label, shipment.nbytes(own, vectors | embeddings), tensors)
    more = {name: _signs(change.delta(name)) for name in change.embeddings}
    scales = fitted | {name: change.delta(name).abs().mean() for name in more}
    both = signs | more
    tensors = change.rebuild({name: both[name] * scales[name] for name in both}, change.vectors)
    yield "in 1 bit", Candidate("scales trained", shipment.nbytes(_arrays(both, scales), vectors), tensors)


def _signs(delta: torch.Tensor) -> torch.Tensor:
    return torch.where(delta < 0, -1.0, 1.0)


def _arrays(signs: dict[str, torch.Tensor], scales: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    arrays: dict[str, torch.Tensor] = {}
    for name, value in signs.items():
        arrays[f"{name}.mask"] = pack_codes((value > 0).numpy().astype(np.uint8), 1)
        arrays[f"{name}.coeff"] = scales[name].reshape(1).float()
    return arrays


def _fit(
    change: Change, function: Function, signs: dict[str, torch.Tensor], means: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Scales whose outputs on calibration text are nearest to the tuned model's, all else being the tuned model's."""
    function.put(change.tuned)
    batches = function.calibrate()
    with torch.no_grad():
        wanted = [function.forward(batch) for batch in batches]
    logs = {name: torch.zeros((), requires_grad=True) for name in signs}
    optimizer = torch.optim.Adam(list(logs.values()), lr=RATE)
    base = {name: change.base[name].float() for name in signs}
    for step in range(STEPS):
        weights = {name: base[name] + signs[name] * (means[name] * logs[name].exp()) for name in signs}
        index = step % len(batches)
        found = _forward_with(function, weights, batches[index])
        loss = (found - wanted[index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: (means[name] * logs[name].exp()).detach() for name in signs}


class _Bound:
    """The model with other weights, called as the model is."""

    def __init__(self, model: Any, weights: dict[str, torch.Tensor]) -> None:
        self._model, self._weights = model, weights

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return functional_call(self._model, self._weights, arguments, named)


def _forward_with(function: Function, weights: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    model = function.model
    function.model = _Bound(model, weights)
    try:
        return function.forward(batch)
    finally:
        function.model = model
