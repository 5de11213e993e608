"""A plain script: every shard loaded, the products of an adapter's factors added in float32, every shard saved.

python with_torch.py BASE ADAPTER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

base, adapter, out = (Path(each) for each in sys.argv[1:4])
factors = load_file(adapter / "adapter_model.safetensors")
out.mkdir()
for shard in sorted(base.glob("*.safetensors")):
    tensors = load_file(shard)
    for name, weight in tensors.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in factors:
            delta = factors[f"{prefix}.lora_B.weight"].float() @ factors[f"{prefix}.lora_A.weight"].float()
            tensors[name] = (weight.float() + delta).to(torch.bfloat16)
    save_file(tensors, out / shard.name, {"format": "pt"})
