"""The first screen: a real fine-tune, made here and now, as three packs; what each costs and what it keeps.

Runs the ``skillpack`` command as a user would and prints every command before it runs. Needs no network.

    ./demo            (or: python -m benchmarks.demo [--seconds 45] [--out .demo])
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from safetensors import safe_open

from benchmarks import minilm
from benchmarks.results import report

SKILLPACK: Final = str(Path(sys.executable).with_name("skillpack"))
PACKS: Final = {"exact": ["--lossless"], "standard": ["--recipe", "standard"], "small": ["--recipe", "small"]}
WEIGHTS: Final = "model.safetensors"
WRONG_BASE: Final = 3  # the exit code
SPOILED: Final = "encoder.layer.3.output.dense.weight"  # the tensor that gets the wrong bit
SENTENCE: Final = "Return the index of the first element that is larger than the limit."

START: Final = time.perf_counter()

console: Final = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())


@dataclass(frozen=True, slots=True)
class Kept:
    """What one checkpoint does: its embeddings of the held-out texts and of SENTENCE."""

    texts: torch.Tensor
    sentence: torch.Tensor

    @classmethod
    def of(cls, folder: Path) -> Kept:
        """Loaded by transformers, as any checkpoint is."""
        model, tokenizer = minilm.load(folder)
        texts = minilm.embed_all(model, tokenizer, minilm.held_out_texts())
        return cls(texts, minilm.embed_all(model, tokenizer, [SENTENCE])[0])


def say(text: str) -> None:
    console.print(f"\n[{time.perf_counter() - START:3.0f} s] {text}", style="bold cyan")


def skillpack(folder: Path, *arguments: str, expect: int = 0) -> str:
    """Run the command in ``folder``, show the line and what it says; the exit code must be ``expect``."""
    console.print(f"$ skillpack {shlex.join(arguments)}", style="bold")
    start = time.perf_counter()
    ran = subprocess.run([SKILLPACK, *arguments], check=False, cwd=folder, text=True, capture_output=True)
    said = (ran.stdout + ran.stderr).rstrip()
    if said:
        console.print(said)
    console.print(f"[exit code {ran.returncode}, {time.perf_counter() - start:.1f} s]", style="dim")
    if ran.returncode != expect:
        raise SystemExit(f"demo: expected exit code {expect}, got {ran.returncode}")
    return said


def flip_one_bit(file: Path, tensor: str) -> None:
    """Change the lowest bit of the first byte of ``tensor`` in a safetensors file."""
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    begin, _ = json.loads(data[8 : 8 + length])[tensor]["data_offsets"]
    data[8 + length + begin] ^= 1
    file.write_bytes(data)


def make_packs(out: Path) -> None:
    """Convert three ways; look into one; validate and apply all."""
    say("Three packs of the change: one exact, two smaller ones.")
    for name, choice in PACKS.items():
        skillpack(out, "convert", "--base", "base", "--tuned", "tuned", "-o", f"{name}.skp", *choice, "--quiet")
    say("What is in one of them? Its header tells.")
    skillpack(out, "inspect", "standard.skp", "--top", "3")
    say("Is it sound, and does it make of this base what it promises?")
    skillpack(out, "validate", "standard.skp", "--base", "base", "--deep")
    say("The models back, every tensor proved by its digest.")
    for name in PACKS:
        skillpack(out, "apply", "base", f"{name}.skp", "-o", name, "--quiet")


def refuse_wrong_base(out: Path) -> None:
    """A base that differs in one bit is refused, by name, and nothing is written."""
    say(f"A wrong base: one bit of {SPOILED} is changed.")
    shutil.copytree(out / "base", out / "wrong-base")
    flip_one_bit(out / "wrong-base" / WEIGHTS, SPOILED)
    said = skillpack(out, "apply", "wrong-base", "standard.skp", "-o", "refused", expect=WRONG_BASE)
    assert SPOILED in said, "the message does not name the tensor"
    assert not (out / "refused").exists(), "something was written"


def same_tensors(left: Path, right: Path) -> bool:
    """Same names, dtypes, shapes and bits, told by the reference reader."""
    with safe_open(left, "pt") as a, safe_open(right, "pt") as b:
        names = set(a.keys())
        return names == set(b.keys()) and all(_same(a.get_tensor(name), b.get_tensor(name)) for name in names)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def compare(out: Path) -> None:
    """The last table: what each pack costs and keeps."""
    say("What did that cost, and what is left of the fine-tune? transformers loads all five models.")
    kept = {name: Kept.of(out / name) for name in ("base", "tuned", *PACKS)}
    base, tuned = kept["base"], kept["tuned"]
    tuned_bytes = (out / "tuned" / WEIGHTS).stat().st_size
    headers = ["pack", "bytes", "of tuned", "function error", "behaviour kept", "bit-exact"]
    rows = [["tuned, whole", f"{tuned_bytes:,}", "100 %", "", "", ""]]
    for name in PACKS:
        nbytes = (out / f"{name}.skp").stat().st_size
        error = minilm.error_ratio(base.texts, tuned.texts, kept[name].texts)
        exact = "yes" if same_tensors(out / name / WEIGHTS, out / "tuned" / WEIGHTS) else "no"
        share, behaviour = f"{100 * nbytes / tuned_bytes:.2f} %", f"{100 * (1 - error):.2f} %"
        rows.append([f"{name}.skp", f"{nbytes:,}", share, f"{error:.2g}", behaviour, exact])
    rows.append(["none: the base", "0", "0 %", "1", "0 %", ""])
    report.show("One fine-tune of all-MiniLM-L6-v2, three packs", headers, rows)
    console.print("Function error: squared distance from the tuned model's sentence embeddings, the base's being 1.")
    console.print(f"\nThe embedding of {SENTENCE!r}, beside the tuned model's:")
    for name in PACKS:
        same = torch.equal(kept[name].sentence, tuned.sentence)
        distance = float((kept[name].sentence - tuned.sentence).norm() / (base.sentence - tuned.sentence).norm())
        console.print(
            f"  {name:9}{'the same, bit for bit' if same else f'{distance:.3f} of the way that the base is off'}"
        )
    assert torch.equal(kept["exact"].sentence, tuned.sentence)
    assert same_tensors(out / "exact" / WEIGHTS, out / "tuned" / WEIGHTS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=45, help="about how long to train (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=report.ROOT / ".demo", help="a folder that is made anew (.demo)")
    options = parser.parse_args(arguments)
    out: Path = options.out
    if out.exists() and not (out / "base").is_dir() and any(out.iterdir()):
        raise SystemExit(f"demo: {out} holds something else; it is left alone")
    shutil.rmtree(out, ignore_errors=True)
    say(f"Fine-tuning all-MiniLM-L6-v2 on Python functions and their docstrings, for {options.seconds:.0f} s or so.")
    minilm.prepare_base(out / "base")
    before, after = minilm.fine_tune(out / "base", out / "tuned", seconds=options.seconds)
    console.print(f"Functions found by their docstring, mean reciprocal rank: {before:.4f} before, {after:.4f} after.")
    make_packs(out)
    refuse_wrong_base(out)
    compare(out)
    say(f"Done. Base, tuned, packs and what they make lie in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
