"""A small language model in plain torch, with the names of a Llama checkpoint, and packs for it made by hand.

``Llama(fused=True)`` has its projections fused as some servers fuse them; ``tied=True`` shares head and embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import Case, Plan, kind, same_kind, ulp_of, write_pack
from torch import nn

from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings import dense, factors, lowrank, sparse
from skillpack_format.encodings._base import Encoded
from skillpack_format.loaded.slots import DTYPE_NAMES

WIDTH, WIDE, VOCABULARY = 12, 20, 30
Q_ROWS, KV_ROWS = 12, 6


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)


class Attention(nn.Module):
    """Without softmax: rows of a batch do not meet, and that is all the tests need."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv_proj = nn.Linear(WIDTH, Q_ROWS + 2 * KV_ROWS)
        else:
            self.q_proj = nn.Linear(WIDTH, Q_ROWS)
            self.k_proj = nn.Linear(WIDTH, KV_ROWS)
            self.v_proj = nn.Linear(WIDTH, KV_ROWS)
        self.o_proj = nn.Linear(Q_ROWS, WIDTH, bias=False)
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            q, k, v = self.qkv_proj(x).split([Q_ROWS, KV_ROWS, KV_ROWS], -1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(q * torch.cat([torch.sigmoid(k), v], -1))


class Mlp(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        if fused:
            self.gate_up_proj = nn.Linear(WIDTH, 2 * WIDE, bias=False)
        else:
            self.gate_proj = nn.Linear(WIDTH, WIDE, bias=False)
            self.up_proj = nn.Linear(WIDTH, WIDE, bias=False)
        self.down_proj = nn.Linear(WIDE, WIDTH, bias=False)
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(nn.functional.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.input_layernorm = Norm()
        self.self_attn = Attention(fused=fused)
        self.mlp = Mlp(fused=fused)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(x)


class Body(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer(fused=fused)])
        self.norm = Norm()
        self.register_buffer("steps", torch.arange(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(nn.Module):
    def __init__(self, *, fused: bool = False, tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> None:
        torch.manual_seed(7)
        super().__init__()
        self.model = Body(fused=fused)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.to(dtype).requires_grad_(False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(ids))


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def kind_of(tensor: torch.Tensor) -> TensorKind:
    return kind(DTYPE_NAMES[tensor.dtype], *tensor.shape)


def stored(model: nn.Module) -> dict[str, tuple[TensorKind, bytes]]:
    """The model as a checkpoint has it: every tensor once, under its first name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (kind_of(tensor), bytes_of(tensor)) for name, tensor in named}


def snapshot(model: nn.Module) -> dict[str, bytes]:
    return {name: bytes_of(tensor) for name, tensor in model.state_dict().items()}


def load(model: nn.Module, checkpoint: Mapping[str, tuple[TensorKind, bytes]]) -> nn.Module:
    """Give every tensor of the checkpoint to the model, by copying bits."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, (_, raw) in checkpoint.items():
        values = torch.frombuffer(bytearray(raw), dtype=own[name].dtype)
        own[name].data.copy_(values.view(own[name].shape))
    return model


class _Slice:
    def __init__(self, scale: float, u: np.ndarray, v: np.ndarray) -> None:
        self.scales, self.u, self.v = np.array([scale], np.float32), u[None], v[None]


def low_rank(what: TensorKind, seed: int, slices: int = 2, rank: int = 2, scale: float = 0.0002) -> Encoded:
    """``slices`` slices of random 4-bit codes, about a hundredth of what the weights of a ``Llama`` are."""
    random = np.random.default_rng(seed)
    made = [
        _Slice(
            scale / 4**k,
            random.integers(-8, 8, (rank, what.shape[0])).astype(np.int8),
            random.integers(-8, 8, (rank, what.shape[1])).astype(np.int8),
        )
        for k in range(slices)
    ]
    return lowrank.packed(made, "lanes")


def bands(what: TensorKind, seed: int) -> Encoded:
    random = np.random.default_rng(seed)
    s = np.array([[0.005, 0.002]], np.float32)
    u, v = (random.standard_normal((1, 2, dim)).astype(np.float32) for dim in what.shape)
    return factors.banded([factors.Band("Q8", s, u, v), factors.Band("F16", s / 4, u, v)], 4, "lanes")


def nudged(what: TensorKind, raw: bytes, seed: int) -> Encoded:
    """``ulp``: other values nearby."""
    random = np.random.default_rng(seed)
    pattern = DTYPES[what.dtype].bit_pattern
    wanted = np.frombuffer(raw, pattern) ^ random.integers(0, 8, len(raw) // pattern.itemsize).astype(pattern)
    return ulp_of(what.dtype, raw, wanted.tobytes(), "magnitude" if seed % 2 else "none")


def replaced(what: TensorKind, seed: int) -> Encoded:
    random = np.random.default_rng(seed)
    values = torch.from_numpy(random.standard_normal(what.shape).astype(np.float32))
    dtype = {name: each for each, name in DTYPE_NAMES.items()}[what.dtype]
    pattern = DTYPES[what.dtype].bit_pattern
    return dense.replacement(np.frombuffer(bytes_of(values.to(dtype)), pattern), DTYPES[what.dtype])


def few(what: TensorKind, mode: str) -> Encoded:
    at, dtype = np.array([0, 3, 5]), DTYPES[what.dtype]
    values = np.array([0x3F80, 0xBF80, 0x0000] if what.dtype == "BF16" else [0, 1, 2], dtype.bit_pattern)
    return sparse.placed(at, values, dtype, int(np.prod(what.shape)), mode)


def pack_of(
    path: Path,
    checkpoint: Mapping[str, tuple[TensorKind, bytes]],
    changes: Mapping[str, Sequence[Encoded]],
    **more: Any,
) -> tuple[Path, dict[str, bytes]]:
    """A pack with ``changes`` to the tensors of ``checkpoint``, and the bytes of the result by name."""
    cases: dict[str, Case] = {name: same_kind(name, *checkpoint[name], *each) for name, each in changes.items()}
    rest = {
        name: each for name, each in checkpoint.items() if name not in cases and name not in more.get("removed", {})
    }
    plan = Plan(cases, unchanged=rest, **more)
    write_pack(path, plan)
    return path, {name: raw for name, (_, raw) in plan.result().items()}


def every_encoding(checkpoint: Mapping[str, tuple[TensorKind, bytes]], seed: int) -> dict[str, list[Encoded]]:
    """A change of nearly every tensor of a ``Llama``, one encoding or stack of them each."""
    at = "model.layers.0."
    kinds = {name: what for name, (what, _) in checkpoint.items()}
    q, up, down = (f"{at}{name}.weight" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"))
    head, norm, bias = "lm_head.weight", "model.norm.weight", f"{at}self_attn.k_proj.bias"
    return {
        q: [low_rank(kinds[q], seed)],
        up: [low_rank(kinds[up], seed + 1), few(kinds[up], "add")],
        down: [bands(kinds[down], seed + 2)],
        **({head: [nudged(*checkpoint[head], seed + 3)]} if head in kinds else {}),
        norm: [replaced(kinds[norm], seed + 4)],
        bias: [few(kinds[bias], "replace")],
        "model.embed_tokens.weight": [low_rank(kinds["model.embed_tokens.weight"], seed + 5)],
        "model.steps": [replaced_steps(seed)],
    }


def replaced_steps(seed: int) -> Encoded:
    return dense.replacement(np.arange(seed, seed + 4, dtype="<u8"), DTYPES["I64"])
