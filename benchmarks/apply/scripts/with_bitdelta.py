"""How BitDelta loads a model: the base by transformers, then for every linear layer a sign a weight and one scale.

Written from the paper (Liu et al., arXiv 2402.10193): the signs are packed eight a byte, and the model is saved at the
end so that the result is the same kind of thing.

    python with_bitdelta.py BASE DIFF.safetensors OUT
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base, diff, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
stored = load_file(diff)
shifts = torch.arange(8, dtype=torch.uint8)
with torch.no_grad():
    for name, module in model.named_modules():
        if f"{name}.mask" in stored:
            bits = (stored[f"{name}.mask"][..., None] >> shifts) & 1
            signs = bits.reshape(module.weight.shape).to(torch.bfloat16) * 2 - 1
            module.weight.add_(signs * stored[f"{name}.coeff"])
model.save_pretrained(out)
