"""Real adapters: what PEFT saves, imported and applied, is what PEFT itself merges.

PEFT multiplies and adds in float32, in an order that the machine chooses; a pack adds the exact products in float64 and
rounds once. So they may differ by PEFT's own rounding: here by two units of the last place of the largest weight.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float64
from skillpack_format.stores.safetensors_files import open_checkpoint

needed = ("torch", "transformers", "peft")
missing = [name for name in needed if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}, which ./test installs"),
    pytest.mark.filterwarnings("ignore"),  # of PEFT and its dependencies
]

os.environ["HF_HUB_OFFLINE"] = "1"


def llama(**config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True, tie_word_embeddings=False, **config))


def llama_of_bf16() -> Any:
    import torch

    return llama().to(torch.bfloat16)


def gpt2() -> Any:
    """A model whose layers keep their weights (in, out), and whose head is tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 96, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=16))


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "every-linear": (llama, {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"}),
    "bf16": (llama_of_bf16, {"r": 4, "target_modules": "all-linear"}),
    "patterns": (
        llama,
        {
            "r": 4,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 6, r"^model.layers.\d+.mlp.up_proj": 3},
            "alpha_pattern": {"q_proj": 5.5},
        },
    ),
    "rslora": (llama, {"r": 5, "lora_alpha": 7, "use_rslora": True, "target_modules": ["down_proj"]}),
    "rank-above-the-sides": (llama, {"r": 40, "target_modules": ["q_proj", "k_proj"]}),
    "bias-all": (llama, {"r": 4, "bias": "all", "target_modules": ["q_proj"]}),
    "bias-lora-only": (llama, {"r": 4, "bias": "lora_only", "target_modules": ["q_proj"]}),
    "lora-bias": (llama, {"r": 4, "lora_bias": True, "target_modules": ["q_proj", "k_proj"]}),
    "embedding": (llama, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "modules-to-save": (llama, {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "tokens": (llama, {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [3, 1, 90]}),
    "tokens-of-two": (
        llama,
        {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 2], "lm_head": [7]}},
    ),
    "transposed": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "tied-embedding": (gpt2, {"r": 4, "target_modules": ["c_attn", "wte"], "fan_in_fan_out": True}),
    "classifier": (bert, {"r": 4, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]}),
}


def train(model: Any) -> None:
    """Trained weights, for what matters here: every trainable parameter moves."""
    import torch

    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws).to(parameter.dtype))


def values(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    with open_checkpoint(folder) as found:
        return {
            name: (
                spec.dtype.name,
                bits_to_float64(np.frombuffer(found.read(name), spec.dtype.bit_pattern), spec.dtype),
            )
            for name, spec in found.specs.items()
        }


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    make, config = CASES[case]
    model = make()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(**config))
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")

    report = skp.import_delta(tmp_path / "adapter", tmp_path / "base", tmp_path / "p.skp")
    skp.apply(tmp_path / "base", [tmp_path / "p.skp"], tmp_path / "out")

    base, merged, out = (values(tmp_path / folder) for folder in ("base", "merged", "out"))
    assert out.keys() == merged.keys()
    for name, (dtype, expected) in merged.items():
        unit = {"F32": 2.0**-23, "BF16": 2.0**-7}[dtype] * float(np.abs(expected).max())
        assert out[name][0] == dtype
        assert float(np.abs(out[name][1] - expected).max()) <= 2 * unit, name
    moved = {name for name in base if not np.array_equal(base[name][1], merged[name][1])}
    assert moved == {each.name for each in report.tensors if each.change == "changed"}
