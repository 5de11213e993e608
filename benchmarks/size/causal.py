"""A small Llama-style language model: trained from scratch on Python, then tuned in two ways; KL is its function error.

Stored in bfloat16 with a tied head. ``tune`` trains hard on C++ headers and rounds once, at the end. ``prefer`` takes
few and tiny steps of direct preference optimisation, rounding every weight to bfloat16 after each, as pure-bfloat16
training does: most weights never move.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.size import texts

VOCABULARY: Final = 4096
END: Final = "<|end|>"
WINDOW: Final = 128  # tokens of one training text
BATCH: Final = 12
SEED: Final = 20240522
BASE_STEPS, BASE_RATE = 420, 1.5e-3
TUNE_STEPS, TUNE_RATE = 80, 1.5e-3
PREFER_STEPS, PREFER_RATE = 24, 4e-6
PREFER_BATCH: Final = 8
PREFER_BETA: Final = 0.1
EVALUATED: Final = 48  # held-out windows
PYTHON_CHARACTERS, HEADER_CHARACTERS = 5_000_000, 2_500_000


def make_base(out: Path) -> str:
    """A model of 5.5 million parameters, trained from nothing on Python source, and its tokenizer; what it reached."""
    torch.manual_seed(SEED)
    train, held_out = texts.python_text(PYTHON_CHARACTERS)
    tokenizer = _train_tokenizer(train)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    before, after = _train(model, tokenizer, train, held_out, BASE_STEPS, BASE_RATE)
    _save(model, tokenizer, out)
    return f"held-out loss on Python {before:.3f} -> {after:.3f}"


def tune(base: Path, out: Path) -> str:
    """The base tuned hard on C++ headers; what it reached."""
    torch.manual_seed(SEED)
    model, tokenizer = load(base)
    train, held_out = texts.header_text(HEADER_CHARACTERS)
    before, after = _train(model, tokenizer, train, held_out, TUNE_STEPS, TUNE_RATE)
    _save(model, tokenizer, out)
    return f"held-out loss on C++ headers {before:.3f} -> {after:.3f}"


def prefer(base: Path, out: Path) -> str:
    """The base taught to prefer a text's own second half to that of another; bfloat16 after every step."""
    torch.manual_seed(SEED)
    model, tokenizer = load(base)
    train, held_out = texts.python_text(PYTHON_CHARACTERS)
    windows, unseen = _windows(tokenizer, train), _windows(tokenizer, held_out)[: 4 * PREFER_BATCH]
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    reference, _ = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PREFER_RATE, weight_decay=0.0)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(SEED))
    before = _margin(model, reference, unseen)
    for step in range(PREFER_STEPS):
        batch = windows[order[step * PREFER_BATCH : (step + 1) * PREFER_BATCH]]
        loss = -functional.logsigmoid(PREFER_BETA * _preferences(model, reference, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(value.bfloat16())  # the weights themselves are bfloat16: small steps are lost
        _progress(f"step {step + 1}/{PREFER_STEPS} loss {loss.item():.4f}", step + 1 == PREFER_STEPS)
    after = _margin(model, reference, unseen)
    changed = sum(int((value != start[name]).sum()) for name, value in model.named_parameters())
    total = sum(value.numel() for value in start.values())
    _save(model, tokenizer, out)
    return (
        f"held-out preference margin {before:.4f} -> {after:.4f}; {100 * changed / total:.1f} % of the weights changed"
    )


def load(folder: Path) -> tuple[Any, Any]:
    """The model of ``folder`` in float32, whatever it is stored in, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def windows(folder: Path, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token windows of "python" or "headers" by the folder's tokenizer: (training, EVALUATED that no training saw)."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    source = texts.python_text(PYTHON_CHARACTERS) if kind == "python" else texts.header_text(HEADER_CHARACTERS)
    train, unseen = (_windows(tokenizer, text) for text in source)
    return train, unseen[:: max(1, len(unseen) // EVALUATED)][:EVALUATED]


def kl_ratio(base: torch.Tensor, tuned: torch.Tensor, packed: torch.Tensor) -> float:
    """KL(tuned || packed) / KL(tuned || base), both summed over all tokens."""
    return _kl(tuned, packed) / _kl(tuned, base)


def _kl(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Sum over tokens of E_p[r - 1 - log r], r = q / p: KL, as both sum to one, in a form that rounding leaves above 0.

    One window at a time in float64.
    """
    total = 0.0
    for p, q in zip(wanted, found, strict=True):
        log_r = q.double() - p.double()
        total += float((p.double().exp() * (log_r.expm1() - log_r)).sum())
    return total


def _train(model: Any, tokenizer: Any, train: str, held_out: str, steps: int, rate: float) -> tuple[float, float]:
    """Train every parameter for ``steps``; held-out loss before and after."""
    windows, unseen = _windows(tokenizer, train), _windows(tokenizer, held_out)[:EVALUATED]
    before = _loss(model, unseen)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    factor = lambda step: min((step + 1) / max(1, steps // 20), max(0.05, (steps - step) / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(SEED))
    model.train()
    for step in range(steps):
        chosen = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        batch = windows[chosen]
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _progress(f"step {step + 1}/{steps} loss {loss.item():.3f}", step + 1 == steps)
    model.eval()
    return before, _loss(model, unseen)


def _loss(model: Any, windows: torch.Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return float(torch.stack([model(part, labels=part).loss for part in windows.split(BATCH)]).mean())


def _preferences(model: Any, reference: Any, batch: torch.Tensor) -> torch.Tensor:
    """How much more than ``reference`` the model prefers each text's own second half to its neighbour's: (batch,)."""
    half = WINDOW // 2
    rejected = torch.cat([batch[:, :half], batch.roll(1, 0)[:, half:]], 1)
    both = torch.cat([batch, rejected])
    with torch.no_grad():
        given = _second_half(reference, both)
    own = _second_half(model, both)
    chosen, other = (own - given).chunk(2)
    return chosen - other


def _second_half(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Log-probability of the second half of each window given the first: (windows,)."""
    half = WINDOW // 2
    log_p = model(windows).logits[:, half - 1 : -1].log_softmax(-1)
    return log_p.gather(-1, windows[:, half:, None]).squeeze(-1).sum(-1)


def _margin(model: Any, reference: Any, windows: torch.Tensor) -> float:
    with torch.no_grad():
        return float(_preferences(model, reference, windows).mean())


def _train_tokenizer(text: str) -> Any:
    """Byte-level BPE of VOCABULARY tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)


def _windows(tokenizer: Any, text: str) -> torch.Tensor:
    """``text`` cut into (windows, WINDOW) tokens; what is left over is dropped."""
    tokens = torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)
    count = len(tokens) // WINDOW
    return tokens[: count * WINDOW].reshape(count, WINDOW)


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """In bfloat16, as such models are published."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _progress(line: str, last: bool) -> None:
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if last else "", file=sys.stderr, flush=True)
