"""Truncated SVD in bfloat16: mergekit's own extraction, applied by PEFT, and a clean-room one for any architecture."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from benchmarks.size.change import Candidate, Change
from benchmarks.size.peers.environment import Absent, Environment
from benchmarks.size.peers.packing import Shipment

RANKS: Final = (4, 16, 32, 64, 128)
EXTRACTED_RANKS: Final = (8, 32, 64, 128, 256)
ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_config.json")


def clean_room(change: Change, *, embeddings: str) -> Iterator[Candidate]:
    """bf16 factors of every linear weight. Embeddings: "whole" in bf16, as mergekit does by default, or "low rank".

    Norms and biases are whole, in bf16 (float32 where the checkpoint has that).
    """
    shipment = Shipment()
    factored = change.linears + (change.embeddings if embeddings == "low rank" else [])
    whole = change.vectors + (change.embeddings if embeddings == "whole" else [])
    shared = {name: _whole(change, name) for name in whole}
    for rank in RANKS:
        own: dict[str, torch.Tensor] = {}
        deltas = {}
        for name in factored:
            u, s, vt = change.svd(name)
            kept = min(rank, s.numel())
            if kept * (u.shape[0] + vt.shape[1]) >= change.base[name].numel():  # the factors cost more than the delta
                own[name] = change.delta(name).bfloat16()
                deltas[name] = own[name].float()
                continue
            root = s[:kept].sqrt()
            a, b = (root[:, None] * vt[:kept]).bfloat16(), (u[:, :kept] * root).bfloat16()
            own[f"{name}.lora_A"], own[f"{name}.lora_B"] = a, b
            deltas[name] = b.float() @ a.float()
        tensors = change.rebuild(deltas)
        tensors.update({name: value.to(change.base[name].dtype) for name, value in shared.items()})
        yield Candidate(f"r={rank}", shipment.nbytes(own, shared), tensors)


def mergekit(change: Change, work: Path, environment: Environment, *, embed_lora: bool) -> Iterator[Candidate]:
    """``mergekit-extract-lora`` at several ranks; what PEFT makes of the adapter, merged in float32."""
    if change.pair.kind != "causal":
        raise Absent("mergekit has no definition of the BERT architecture")
    program = environment.program("mergekit-extract-lora")
    base, tuned = change.pair.base.resolve(), change.pair.tuned.resolve()
    for rank in EXTRACTED_RANKS:
        out, merged = work / "adapter", work / "merged"
        for folder in (out, merged):
            shutil.rmtree(folder, ignore_errors=True)
        command = [program, "--model", str(tuned), "--base-model", str(base), "--out-path", str(out)]
        environment.run([*command, "--max-rank", str(rank), "--quiet", *(["--embed-lora"] if embed_lora else [])])
        environment.module("benchmarks.size.peers.merge_inside", str(base), str(out), str(merged))
        tensors = load_file(merged / "model.safetensors")
        yield Candidate(f"r={rank}", sum((out / name).stat().st_size for name in ADAPTER_FILES), tensors)


def _whole(change: Change, name: str) -> torch.Tensor:
    """The tuned tensor: bf16 for a matrix, its own dtype for a vector, whose few bytes nobody saves."""
    value = change.tuned[name]
    return value.bfloat16() if value.dim() == 2 else value
