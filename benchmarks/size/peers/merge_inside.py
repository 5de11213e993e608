"""Runs inside the peers' environment: merge a PEFT adapter into its base, in float32, and write the checkpoint.

python -m benchmarks.size.peers.merge_inside BASE ADAPTER OUT
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
