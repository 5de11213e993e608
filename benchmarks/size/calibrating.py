"""What calibrating costs when a model's parameters stay on disk: processor time and peak memory, by how much is held.

The model is generated, with TinyLlama's shapes (``size.large``), or given. It is measured three times, each in a
process of its own: nothing held between two uses of a parameter, as much as the library holds, and everything, which
is a model in memory. The figures must be the same.

    python -m benchmarks.size.calibrating [--layers 4] [--texts 8] [--base FOLDER --tuned FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import skillpack_format as skp
from benchmarks.peak import peak_bytes
from benchmarks.results import report
from benchmarks.size.large import generate
from benchmarks.size.pairs import OUT
from benchmarks.size.texts import python_text
from skillpack_format.loaded import probing
from skillpack_format.stores.safetensors_files import open_checkpoint

CORPUS: Final = 400_000  # characters that texts and the generated model's tokenizer are from
CHARACTERS: Final = 1200  # of a text: more than the 256 tokens that are used
WORDS: Final = 8000  # of the generated model's tokenizer
HELD: Final = {"nothing": 0, "as the library does": probing.HELD_BYTES, "everything": sys.maxsize}
FOLDER: Final = OUT / "calibrating"


def write_texts(count: int, path: Path) -> str:
    """``count`` texts of Python source into ``path``; gives the whole of which they are the beginning."""
    text, _ = python_text(CORPUS)
    pieces = [text[at : at + CHARACTERS] for at in range(0, CHARACTERS * count, CHARACTERS)]
    path.write_text("".join(json.dumps(piece) + "\n" for piece in pieces), encoding="utf-8")
    return text


def write_tokenizer(text: str, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=WORDS, show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def measure(base: Path, tuned: Path, texts: Path, held: int) -> dict[str, Any]:
    """One calibration in this process."""
    probing.HELD_BYTES = held
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = skp.calibrate(base, tuned, texts)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "peak_bytes": peak_bytes(),
        "tokens": found.tokens,
        "weights": dict(found.weights),
    }


def _in_child(base: Path, tuned: Path, texts: Path, held: int) -> dict[str, Any]:
    """``measure`` in a process that has done nothing else, so that the peak is its own."""
    flags = ["--base", str(base), "--tuned", str(tuned), "--file", str(texts), "--held", str(held)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.size.calibrating", *flags]
    done = subprocess.run(command, check=True, cwd=report.ROOT, env=settings, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    first = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks.size.calibrating", description=first)
    parser.add_argument("--layers", type=int, default=4, help="of the generated model (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=8, help="to calibrate on (default: %(default)s)")
    parser.add_argument("--base", type=Path, help="a model that is there, instead of a generated one")
    parser.add_argument("--tuned", type=Path, help="its fine-tune")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--held", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.file:
        print(json.dumps(measure(options.base, options.tuned, options.file, options.held)))
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    base, tuned, texts = options.base or FOLDER / "base", options.tuned or FOLDER / "tuned", FOLDER / "texts.jsonl"
    text = write_texts(options.texts, texts)
    if options.base is None:
        print(f"generating {options.layers} layers", flush=True)
        generate(options.layers, base, tuned)
        write_tokenizer(text, tuned)
    found = {name: _in_child(base, tuned, texts, held) for name, held in HELD.items()}
    with open_checkpoint(tuned) as checkpoint:
        nbytes = sum(4 * math.prod(each.shape) for each in checkpoint.specs.values())
    print(_body(found, nbytes, options.texts))
    shutil.rmtree(FOLDER)
    return 0 if len({json.dumps(each["weights"]) for each in found.values()}) == 1 else 1


def _body(found: dict[str, dict[str, Any]], nbytes: int, texts: int) -> str:
    rows = [
        [name, f"{each['user']:.1f}", f"{each['system']:.1f}", f"{each['peak_bytes'] / 2**20:.0f}"]
        for name, each in found.items()
    ]
    tokens = next(iter(found.values()))["tokens"]
    table = report.markdown(["held", "user seconds", "system seconds", "peak memory, MiB"], rows)
    return f"{nbytes / 2**20:.0f} MiB in float32; {texts} texts, {tokens} tokens; one thread.\n\n{table}"


if __name__ == "__main__":
    sys.exit(main())
