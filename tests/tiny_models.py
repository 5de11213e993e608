"""Random models of a few thousand weights as transformers saves them, each with a base beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UNKNOWN = "?"
WORDS = "the a model pack base tuned weight error of and is".split()
TEXTS = ["the model of the base", "a pack and the tuned model", "weight error is the error of a pack", "the base"]


def save_tokenizer(folder: Path) -> None:
    words = {word: index for index, word in enumerate([UNKNOWN, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN).save_pretrained(folder)


def llama(*, tied: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def bert() -> BertModel:
    config = BertConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    return BertModel(config)


def save_pair(folder: Path, model: torch.nn.Module) -> tuple[Path, Path]:
    """``base`` and ``tuned`` in ``folder``, the same model before and after a change of every matrix."""
    base, tuned = folder / "base", folder / "tuned"
    model.save_pretrained(base)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                left, right = (torch.randn(dim, generator=random) for dim in value.shape)
                value.add_(0.02 * torch.randn(value.shape, generator=random) + 0.1 * torch.outer(left, right))
    model.save_pretrained(tuned)
    save_tokenizer(tuned)
    return base, tuned


def save_texts(path: Path, texts: list[str] | None = None) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts or TEXTS))
    return path
