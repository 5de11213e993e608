"""Converting a checkpoint of 1.1 billion parameters: peak memory, seconds, and where they went.

The checkpoint has TinyLlama's shapes and generated weights in bfloat16; the change is planted: low rank and noise on
every linear layer, a few rows of the embedding. Both folders are written shard by shard, one tensor in memory at a
time. Converting and applying each run in a process of their own, whose peak memory the system tells.

    python -m benchmarks.size.large [--layers 22] [--threads 2] [--quality NAME] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import skillpack_format as skp
from benchmarks.peak import peak_bytes
from benchmarks.results import report
from benchmarks.size.pairs import OUT
from skillpack_format import recipes

HIDDEN, INTERMEDIATE, KEY_VALUE, VOCABULARY, LAYERS = 2048, 5632, 256, 32000, 22
WEIGHT_STD: Final = 0.02
CHANGE_STD: Final = 4e-4
RANK: Final = 32
ROWS_CHANGED: Final = 200  # of the embedding and of the head
SHARD_BYTES: Final = 500_000_000
MEMORY_LIMIT: Final = 6 * 2**30
MOST_FUNCTIONS: Final = 10  # of a profile
WAITING: Final = (
    "/threading.py",
    "/futures/thread.py",
    "/futures/_base.py",
)  # where a thread that waits for another is found
FOLDER: Final = OUT / "large"


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama checkpoint with an untied head, in the order in which they are stored."""
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (HIDDEN,)
        yield f"{prefix}post_attention_layernorm.weight", (HIDDEN,)
        for name, rows, columns in (
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("self_attn.k_proj", KEY_VALUE, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.v_proj", KEY_VALUE, HIDDEN),
        ):
            yield f"{prefix}{name}.weight", (rows, columns)
    yield "model.norm.weight", (HIDDEN,)


def generate(layers: int, base: Path, tuned: Path) -> int:
    """Write both checkpoints; the parameters of one. Every tensor depends on its name alone."""
    listed = list(shapes(layers))
    for folder, changed in ((base, False), (tuned, True)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plan = _shards(listed)
        weight_map = {}
        for index, names in enumerate(plan, start=1):
            file = f"model-{index:05d}-of-{len(plan):05d}.safetensors"
            _write_shard(folder / file, names, changed=changed)
            weight_map.update({name: file for name, _ in names})
        total = sum(2 * int(np.prod(shape)) for _, shape in listed)
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
        (folder / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(_config(layers), indent=1), encoding="utf-8")
    return sum(int(np.prod(shape)) for _, shape in listed)


def _shards(listed: Sequence[tuple[str, tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Tensors in shards of at most SHARD_BYTES, as published checkpoints are cut."""
    plan: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in listed:
        nbytes = 2 * int(np.prod(shape))
        if plan[-1] and size + nbytes > SHARD_BYTES:
            plan.append([])
            size = 0
        plan[-1].append((name, shape))
        size += nbytes
    return plan


def _write_shard(path: Path, listed: Sequence[tuple[str, tuple[int, ...]]], *, changed: bool) -> None:
    """A safetensors file, one tensor after the other: the whole shard is never in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in listed:
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in listed:
            file.write(_bf16(_tensor(name, shape, changed=changed)).data)


def _tensor(name: str, shape: tuple[int, ...], *, changed: bool) -> NDArray[np.float32]:
    """Weights as training leaves them, roughly; changed ones are rounded after the change is added in float32."""
    random = np.random.default_rng([zlib.crc32(name.encode()), 1])
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    value = random.standard_normal(shape, np.float32)
    value *= WEIGHT_STD
    if not changed:
        return value
    value = _widened(_bf16(value)).reshape(shape)
    if shape[0] == VOCABULARY:
        rows = random.choice(VOCABULARY, ROWS_CHANGED, replace=False)
        value[rows] += CHANGE_STD * random.standard_normal((ROWS_CHANGED, shape[1]), np.float32)
        return value
    left = random.standard_normal((shape[0], RANK), np.float32)
    right = random.standard_normal((RANK, shape[1]), np.float32)
    right *= (np.arange(1, RANK + 1, dtype=np.float32) ** -0.5)[:, None]
    low_rank = left @ right
    value += low_rank * (0.9 * CHANGE_STD / float(low_rank.std()))
    noise = random.standard_normal(shape, np.float32)
    noise *= 0.4 * CHANGE_STD
    value += noise
    return value


def _bf16(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even; the values are finite."""
    bits = value.reshape(-1).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


class Phases:
    """A progress callback that keeps the seconds spent between reports, by what the report says is being done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds[what] += now - self._last
        self._last = now


class Sampler(threading.Thread):
    """Looks now and then at what every other thread is in: the innermost function of the library on its stack.

    A profiler that hooks every call would slow down what it measures, and sees one thread.
    """

    INTERVAL: Final = 0.05  # seconds

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._counts: Counter[str] = Counter()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self.INTERVAL):
            for identity, frame in sys._current_frames().items():
                if identity != self.ident and (where := _innermost(frame)):
                    self._counts[where] += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def shares(self) -> dict[str, float]:
        """Shares of the time of all threads that worked, largest first."""
        total = self._counts.total() or 1
        return {where: count / total for where, count in self._counts.most_common(MOST_FUNCTIONS)}


def _innermost(frame: FrameType | None) -> str | None:
    """``module.function`` of the library's innermost frame; None for a thread that waits for others or is not of it."""
    if frame is not None and frame.f_code.co_filename.endswith(WAITING):
        return None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("skillpack_format."):
            return f"{module.removeprefix('skillpack_format.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return None


def run_step(step: str, folder: Path, threads: int, quality: str) -> dict[str, Any]:
    """``convert`` or ``apply`` in this process: seconds, phases, bytes, and its peak memory."""
    base, tuned, pack = folder / "base", folder / "tuned", folder / f"{quality}.skp"
    phases, sampler = Phases(), Sampler()
    sampler.start()
    start = time.perf_counter()
    if step == "convert":
        options = skp.ConvertOptions(recipe=recipes.RECIPES[quality], threads=threads, overwrite=True)
        skp.convert(base, tuned, pack, options, phases)
    else:
        skp.apply(base, [pack], folder / "applied", skp.ApplyOptions(threads=threads, overwrite=True), phases)
    seconds = time.perf_counter() - start
    sampler.stop()
    phases.seconds["the rest, mostly writing the header and making it durable"] = seconds - sum(phases.seconds.values())
    return {
        "seconds": seconds,
        "phases": dict(phases.seconds),
        "functions": sampler.shares(),
        "pack_bytes": pack.stat().st_size,
        "peak_bytes": peak_bytes(),
    }


def _in_child(step: str, folder: Path, threads: int, quality: str) -> dict[str, Any]:
    """``run_step`` in a process that has done nothing else, so that the peak is its own."""
    flags = ["--step", step, "--folder", str(folder), "--threads", str(threads), "--quality", quality]
    command = [sys.executable, "-m", "benchmarks.size.large", *flags]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, cwd=report.ROOT, env=settings, stdout=subprocess.PIPE, text=True)
    plain: dict[str, Any] = json.loads(found.stdout)
    return plain


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.size.large", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers of the checkpoint (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of convert and apply (default: %(default)s)")
    parser.add_argument("--quality", default="standard", choices=list(recipes.RECIPES), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where both checkpoints go (benchmarks/out)")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints for another run")
    parser.add_argument("--step", choices=("convert", "apply"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(run_step(options.step, options.folder, options.threads, options.quality)))
        return 0
    base, tuned, stamp = options.folder / "base", options.folder / "tuned", options.folder / f"READY-{options.layers}"
    if not stamp.exists():
        shutil.rmtree(options.folder, ignore_errors=True)
        print(f"generating {options.layers} layers", flush=True)
        generate(options.layers, base, tuned)
        stamp.touch()
    steps = {step: _in_child(step, options.folder, options.threads, options.quality) for step in ("convert", "apply")}
    parameters = sum(int(np.prod(shape)) for _, shape in shapes(options.layers))
    body, fits = _body(parameters, options, steps)
    print(body)
    if options.layers == LAYERS:
        report.write("large.md", "benchmarks.size.large", "A checkpoint of 1.1 billion parameters", body)
    if not options.keep:
        shutil.rmtree(options.folder)
    return 0 if fits else 1


def _body(parameters: int, options: argparse.Namespace, steps: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """The report, and whether converting stayed below MEMORY_LIMIT."""
    rows = []
    for step, found in steps.items():
        memory = f"{found['peak_bytes'] / 2**30:.2f} GiB"
        rows.append([step, f"{found['seconds']:.0f}", memory, f"{found['pack_bytes']:,}"])
    table = report.markdown(["step", "seconds", "peak memory", "bytes of the pack"], rows)
    parts = [
        f"{parameters:,} parameters in bfloat16 ({2 * parameters:,} bytes), {options.layers} layers of TinyLlama's "
        f"shapes; weights and change are generated. Recipe {options.quality}, {options.threads} threads; each step in "
        "a process of its own, peak memory as the system tells it (`VmHWM`).",
        table,
    ]
    for step, found in steps.items():
        spent = sorted(found["phases"].items(), key=lambda item: -item[1])
        where = [[what, f"{seconds:.1f}", f"{100 * seconds / found['seconds']:.0f} %"] for what, seconds in spent]
        parts += [f"Where the time of {step} went:", report.markdown(["phase", "seconds", "share"], where)]
        inside = [[name, f"{100 * share:.0f} %"] for name, share in found["functions"].items()]
        parts += ["And in which functions its threads were found:", report.markdown(["function", "share"], inside)]
    fits = steps["convert"]["peak_bytes"] < MEMORY_LIMIT
    parts.append(f"Aim: converting below {MEMORY_LIMIT / 2**30:.0f} GiB. {'Met.' if fits else 'Missed.'}")
    return "\n\n".join(parts), fits


if __name__ == "__main__":
    sys.exit(main())
