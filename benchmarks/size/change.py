"""What every method is given: the tensors of both checkpoints, their difference, and its singular vectors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from benchmarks.size.pairs import Pair


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one method makes of a pair: the bytes of all that must be shipped, and the checkpoint it leads to."""

    label: str
    nbytes: int
    tensors: Mapping[str, torch.Tensor]  # by the names of the checkpoint, in the dtype the method rebuilds


class Change:
    """The change between two checkpoints of one pair; singular vectors are computed once, when first asked for."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.base: dict[str, torch.Tensor] = load_file(pair.base_file())
        self.tuned: dict[str, torch.Tensor] = load_file(pair.tuned_file())
        changed = [name for name, value in self.tuned.items() if not torch.equal(value, self.base[name])]
        self.unchanged = sorted(self.tuned.keys() - set(changed))
        self.embeddings = sorted(name for name in changed if "embed" in name and self.tuned[name].dim() == 2)
        self.linears = sorted(n for n in changed if self.tuned[n].dim() == 2 and n not in self.embeddings)
        self.vectors = sorted(set(changed) - set(self.embeddings) - set(self.linears))

    def delta(self, name: str) -> torch.Tensor:
        """tuned - base, from float32 values."""
        return self.tuned[name].float() - self.base[name].float()

    @functools.cache  # noqa: B019 - one Change lives as long as its pair is measured
    def svd(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U (rows, r), S (r,), Vt (r, columns) of the delta, strongest first."""
        delta = self.delta(name)
        if delta.shape[0] > 8 * delta.shape[1]:
            values, vectors = torch.linalg.eigh(delta.T.double() @ delta.double())
            s = values.flip(0).clamp_min(0).sqrt()
            v = vectors.flip(1)
            u = (delta.double() @ v) / s.clamp_min(1e-30)
            return u.float(), s.float(), v.T.float().contiguous()
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        return u, s, vt

    def rebuild(
        self, deltas: Mapping[str, torch.Tensor], whole: Iterable[str] = (), dtype: torch.dtype | None = None
    ) -> dict[str, torch.Tensor]:
        """The checkpoint of the base, ``deltas`` added in float32 and rounded once, ``whole`` taken from the tuned one.

        ``dtype``: that in which the whole tensors were shipped, if less than they are stored in.
        """
        result = dict(self.base)
        for name, delta in deltas.items():
            result[name] = (self.base[name].float() + delta).to(self.base[name].dtype)
        for name in whole:
            value = self.tuned[name]
            result[name] = value.to(dtype).to(value.dtype) if dtype else value
        return result
