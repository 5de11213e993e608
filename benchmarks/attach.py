"""Packs on a loaded model of 8B shape: attach, switch, detach and unmerged forward, against the speed of memory.

The roofline is one read and one write of the weights (``copy_``), measured beside each run. Three packs of generated
changes are used: two of low rank (about 1 % of the bytes) and one of ``ulp``. At the end many cycles in random order,
on narrower layers, must give the base's exact checkpoint digest. PEFT's adapters of the same shapes run where peft is
installed. Ends with 1 if a bit of the base is lost.

    python -m benchmarks.attach [--device cuda] [--layers 32] [--cycles 1000]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

import skillpack_format as skp
from benchmarks.results import report
from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.contents import store_encoded, target_of
from skillpack_format.digest import TensorIdentity, TensorKind, checkpoint_digest, sha256_of
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings import lowrank, ulp
from skillpack_format.encodings._base import Encoded
from skillpack_format.listing import base_ref
from skillpack_format.making import Change, make, start_of
from skillpack_format.manifest import Component, Entry, Manifest, ResultRef
from skillpack_format.writer import PackWriter

WIDTH, KV, WIDE = 4096, 1024, 14336  # a layer of Llama 3 8B
SHARE: Final = 0.01  # of the weights' bytes that the low-rank codes take
BITS: Final = 4
CYCLED: Final = 16  # a layer this much narrower goes through the cycles
ROWS: Final = 16  # of the batch that mixes packs
GAP: Final = chr(10) * 2
BF16: Final = DTYPES["BF16"]
Bits = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]


class Layer(nn.Module):
    """The linear maps of one decoder layer, without what has no weights worth mentioning."""

    def __init__(self, shrink: int) -> None:
        super().__init__()
        width, kv, wide = (each // shrink for each in (WIDTH, KV, WIDE))
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, kv, bias=False), nn.Linear(width, kv, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, wide, bias=False), nn.Linear(width, wide, bias=False)
        self.down_proj = nn.Linear(wide, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kv = self.k_proj(x) * self.v_proj(x)
        x = x + self.o_proj(self.q_proj(x)) * kv.mean(-1, keepdim=True)
        return x + self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Model(nn.Module):
    def __init__(self, layers: int, shrink: int, device: str) -> None:
        super().__init__()
        with torch.device("meta"):
            self.layers = nn.ModuleList(Layer(shrink) for _ in range(layers))
        self.to(torch.bfloat16).to_empty(device=device).requires_grad_(False)
        made = torch.Generator(device).manual_seed(1)
        for weight in self.parameters():
            weight.normal_(0, 0.02, generator=made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


# --------------------------------------------------------------------------------------------------------- packs


@dataclass(frozen=True)
class Slice:
    scales: np.ndarray[Any, np.dtype[np.float32]]
    u: np.ndarray[Any, np.dtype[np.int8]]
    v: np.ndarray[Any, np.dtype[np.int8]]


def low_rank(bits: Bits, kind: TensorKind, seed: int) -> Encoded:
    """Random codes of as many pairs as SHARE allows, about a hundredth of the weights in size."""
    rows, cols = kind.shape
    rank = max(1, round(SHARE * 2 * rows * cols * 8 / BITS / (rows + cols)))
    made = np.random.default_rng(seed)
    u, v = (made.integers(-7, 8, (1, rank, dim)).astype(np.int8) for dim in (rows, cols))
    scale = np.float32(0.02 * 0.01 / (4.3**2 * rank**0.5))
    return lowrank.packed([Slice(np.array([scale], np.float32), u, v)], "lanes")


def nudged(bits: Bits, kind: TensorKind, seed: int) -> Encoded:
    """A step of the last places for a third of the elements, as a light fine-tune makes them."""
    made = np.random.default_rng(seed)
    step = made.integers(-1, 2, bits.size).astype(np.int16) * (made.random(bits.size) < 0.5)
    return ulp.difference(bits, (bits.view(np.int16) + step.astype(np.int16)).view(np.uint16), BF16, "magnitude")


def patterns(weight: torch.Tensor) -> Bits:
    found: Bits = weight.detach().cpu().view(torch.uint16).numpy().reshape(-1)
    return found


def write_pack(path: Path, model: nn.Module, encode: Callable[[Bits, TensorKind, int], Encoded], seed: int) -> Path:
    """A pack that changes every weight of ``model``, written as ``convert`` would."""
    before: dict[str, TensorIdentity] = {}
    entries: list[Entry] = []
    with PackWriter(path, chunk_bytes=1 << 20) as writer:
        for index, (name, weight) in enumerate(sorted(model.named_parameters())):
            kind, bits = TensorKind("BF16", tuple(weight.shape)), patterns(weight)
            encoded = encode(bits, kind, 1000 * seed + index)
            stored = store_encoded(encoded, target_of(kind), "zstd", 1 << 20, thorough=False)
            writer.add(stored)
            before[name] = TensorIdentity(kind, sha256_of(bits))
            result = TensorIdentity(kind, sha256_of(_made(bits, kind, encoded)))
            component = Component(encoded.encoding, encoded.params, stored.sha256)
            entries.append(
                Entry(
                    name=name,
                    tensor_class="other",
                    module="",
                    base=before[name],
                    result=result,
                    components=(component,),
                )
            )
        after = {**before, **{entry.name: entry.result for entry in entries if entry.result}}
        whole = ResultRef(len(after), checkpoint_digest(after.items()))
        writer.seal(Manifest(base=base_ref(before), result=whole, tensors=tuple(entries)))
    return path


def _made(bits: Bits, kind: TensorKind, encoded: Encoded) -> Any:
    encoding = {"lowrank": lowrank.ENCODING, "ulp": ulp.ENCODING}[encoded.encoding]
    target = target_of(kind)
    opened: Any = encoding.open(encoding.parse(encoded.params, target, ""), target, encoded.parts, "")
    adds = encoded.encoding == "lowrank"
    change = Change([opened] if adds else [], None if adds else opened)
    return make(start_of(bits.tobytes(), kind, kind), kind, change, NUMPY_BENCH, "")


# -------------------------------------------------------------------------------------------------------- timing


def seconds(work: Callable[[], Any], device: str) -> float:
    """On a GPU the time that passes; on a CPU the time that the processor works for this process, which other
    processes disturb less."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    _settle(device)
    start = clock()
    work()
    _settle(device)
    return clock() - start


def median(work: Callable[[], Any], device: str, runs: int) -> float:
    return statistics.median(seconds(work, device) for _ in range(runs))


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copying(model: nn.Module, device: str, runs: int) -> float:
    """The roofline: every weight read once and written once, by torch itself."""
    largest = max(weight.numel() for weight in model.parameters())
    room = torch.empty(largest, dtype=torch.bfloat16, device=device)
    work = [(room[: weight.numel()].view(weight.shape), weight) for weight in model.parameters()]
    return median(lambda: [target.copy_(weight) for target, weight in work], device, runs)


def merged(
    model: nn.Module, packs: Sequence[Path], options: skp.AttachOptions, device: str, runs: int
) -> dict[str, float]:
    """Median seconds of attach, switch and detach, and the bytes that undo takes."""
    times: dict[str, list[float]] = {"attach": [], "switch": [], "detach": []}
    nbytes = 0
    for _ in range(runs):
        times["attach"].append(seconds(lambda: skp.attach(model, packs[0], options), device))
        times["switch"].append(seconds(lambda: skp.switch(model, packs[1]), device))
        attachment = skp.switch(model, packs[1])
        nbytes = attachment.undo_nbytes
        times["detach"].append(seconds(attachment.detach, device))
    return {**{what: statistics.median(each) for what, each in times.items()}, "undo": nbytes}


def forwards(model: nn.Module, packs: Mapping[str, Path], device: str, runs: int) -> dict[str, float]:
    """Median seconds of one forward pass: the base, one pack at batch 1, and a batch of ROWS that mixes packs."""
    width = next(model.parameters()).shape[1]
    one = torch.randn(1, 1, width, device=device).to(torch.bfloat16)
    many = torch.randn(ROWS, 1, width, device=device).to(torch.bfloat16)
    found = {}
    with torch.inference_mode(), skp.unmerged(model, packs) as held:
        for what, batch in (("batch 1", one), (f"batch {ROWS}", many)):
            held.select(None)
            model(batch)
            found[f"base, {what}"] = median(lambda batch=batch: model(batch), device, 3 * runs)
        held.select("a")
        model(one)
        found["one pack, batch 1"] = median(lambda: model(one), device, 3 * runs)
        mixed: list[str | None] = [("a", "b", None)[row % 3] for row in range(ROWS)]
        held.select(mixed)
        model(many)
        found[f"two packs and the base mixed, batch {ROWS}"] = median(lambda: model(many), device, 3 * runs)
    return found


def peft_times(layers: int, shrink: int, device: str, runs: int) -> dict[str, float]:
    """PEFT's LoRA adapters of the same rank on the same layers: merge, unmerge, unmerged forward; bits it loses."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - it may not be there

    model = Model(layers, shrink, device)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    rank = max(1, round(SHARE * 2 * WIDTH * WIDTH * 8 / BITS / (2 * WIDTH) / shrink))
    # an untrained B and A of torch's own initial values give a quarter of the weights in size; a hundredth is wanted
    config = LoraConfig(r=rank, lora_alpha=0.04 * rank, target_modules=r".*_proj", init_lora_weights=False)
    tuned = get_peft_model(model, config)
    tuned.add_adapter("other", config)
    one = torch.randn(1, 1, WIDTH // shrink, device=device).to(torch.bfloat16)
    found: dict[str, float] = {}
    with torch.inference_mode():
        tuned(one)
        found["unmerged forward, batch 1"] = median(lambda: tuned(one), device, 3 * runs)
    found["merge_adapter"] = seconds(tuned.merge_adapter, device)
    found["unmerge_adapter"] = seconds(tuned.unmerge_adapter, device)

    def switch() -> None:
        tuned.unmerge_adapter()
        tuned.set_adapter("other")
        tuned.merge_adapter()

    tuned.merge_adapter()
    found["unmerge, set_adapter, merge"] = seconds(switch, device)
    tuned.unmerge_adapter()
    bare = {name.replace(".base_layer", ""): weight for name, weight in tuned.base_model.model.named_parameters()}
    lost = sum(int((bare[name] != weight).sum()) for name, weight in before.items())
    found["lost"] = lost / sum(weight.numel() for weight in before.values())
    return found


def cycles(count: int, device: str, folder: Path) -> tuple[int, bool]:
    """``count`` packs attached or switched to, in random order with detachings between: is the base still itself?"""
    model = Model(1, CYCLED, device)
    packs = [
        write_pack(folder / f"cycle{k}.skp", model, encode, k) for k, encode in enumerate((low_rank, nudged, low_rank))
    ]

    def digest() -> bytes:
        kinds = {name: TensorKind("BF16", tuple(weight.shape)) for name, weight in model.named_parameters()}
        named = model.named_parameters()
        return checkpoint_digest((name, TensorIdentity(kinds[name], sha256_of(patterns(w)))) for name, w in named)

    before, chosen, attached, detached = digest(), random.Random(1), False, 0
    for _ in range(count):
        pack = chosen.choice(packs)
        if attached and chosen.random() < 0.5:
            skp.switch(model, pack)
            continue
        if attached:
            skp.detach(model)
            detached += 1
        skp.attach(model, pack)
        attached = True
    skp.detach(model)
    return detached + 1, digest() == before


# -------------------------------------------------------------------------------------------------------- report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.attach", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layers", type=int, default=1, help="of 8B shape; the model has 32 (default: %(default)s)")
    parser.add_argument("--shrink", type=int, default=1, help="divide every dimension by this (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=1000)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing was measured")
        return 1
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)  # more of them wait for each other, and waiting is processor time too
    with tempfile.TemporaryDirectory() as name:
        body, kept = _measure(Path(name), options)
    report.write("attach.md" if options.device == "cpu" else "attach-cuda.md", _command(options), "Loaded models", body)
    return 0 if kept else 1


def _command(options: argparse.Namespace) -> str:
    chosen = f"--device {options.device} --layers {options.layers} --threads {options.threads}"
    chosen += f" --runs {options.runs} --cycles {options.cycles}"
    return f"benchmarks.attach {chosen}" + (f" --shrink {options.shrink}" if options.shrink != 1 else "")


def _measure(folder: Path, options: argparse.Namespace) -> tuple[str, bool]:
    device, load = options.device, os.getloadavg()[0]
    model = Model(options.layers, options.shrink, device)
    nbytes = sum(weight.nbytes for weight in model.parameters())
    low = [write_pack(folder / f"low{seed}.skp", model, low_rank, seed) for seed in (1, 2)]
    exact = [write_pack(folder / f"ulp{seed}.skp", model, nudged, seed) for seed in (1, 2)]
    roofline = copying(model, device, options.runs)
    text = [
        f"{options.layers} layer(s) of 8B shape in bfloat16, {nbytes:,} bytes of weights, on {_name(device)}. "
        f"Reading and writing all of them once (`copy_`): {_ms(roofline)}, which is 1x below. "
        f"Load of the machine at the start: {load:.1f} on {os.cpu_count()} cores.",
        "Times are of the processor, all threads together, and not of the clock on the wall."
        if device == "cpu"
        else "",
        "**CUDA is unmeasured**: no GPU was at hand." if device == "cpu" else "",
        "## In place" + GAP + _in_place(model, low, exact, options, nbytes, roofline),
        "## Unmerged" + GAP + _beside(model, low, options, nbytes),
        "## PEFT" + GAP + _peft(options, roofline),
    ]
    detached, kept = cycles(options.cycles, device, folder)
    outcome = "the base's exact checkpoint digest" if kept else "**another checkpoint than the base**"
    text.append(
        f"## Cycles\n\n{options.cycles} packs attached or switched to in random order among three (two low rank, one "
        f"`ulp`), {detached} detachings between, on a layer 1/{CYCLED} as wide: at the end {outcome}."
    )
    return GAP.join(each for each in text if each), kept


def _in_place(
    model: nn.Module,
    low: Sequence[Path],
    exact: Sequence[Path],
    options: argparse.Namespace,
    nbytes: int,
    roofline: float,
) -> str:
    ways: dict[str, dict[str, Any]] = {
        "verified": {},
        "`verify=False`": {"verify": False},
        '`undo="pack"`': {"undo": "pack"},
    }
    headers = ["pack, options", "pack bytes of weights", "attach", "switch", "detach", "undo bytes of weights"]
    rows = []
    for label, packs in (("low rank", low), ("ulp", exact)):
        for way, chosen in ways.items():
            found = merged(
                model, packs, skp.AttachOptions(threads=options.threads, **chosen), options.device, options.runs
            )
            times = [f"{_ms(found[what])} ({found[what] / roofline:.1f}x)" for what in ("attach", "switch", "detach")]
            share = packs[0].stat().st_size / nbytes
            rows.append([f"{label}, {way}", f"{share:.2%}", *times, f"{found['undo'] / nbytes:.2%}"])
    report.show("In place", headers, rows)
    head = (
        f"Medians of {options.runs}. Verified: the SHA-256 of every tensor before it is written, and of every one made."
    )
    return head + GAP + report.markdown(headers, rows)


def _beside(model: nn.Module, packs: Sequence[Path], options: argparse.Namespace, nbytes: int) -> str:
    with skp.unmerged(model, {"a": packs[0]}) as held:
        share = held.nbytes("a") / nbytes
    found = forwards(model, dict(zip("ab", packs, strict=True)), options.device, options.runs)
    headers = ["forward", "time", "of the base at that batch"]
    rows = []
    for what, each in found.items():
        base = found[f"base, {what.rpartition(', ')[2]}"]
        rows.append([what, _ms(each), f"{each / base:.2f}x"])
    report.show("Unmerged", headers, rows)
    head = f"Low-rank packs beside the weights; one takes {share:.2%} of the weights' bytes, its codes of {BITS} bits "
    return head + "kept as bytes." + GAP + report.markdown(headers, rows)


def _peft(options: argparse.Namespace, roofline: float) -> str:
    if importlib.util.find_spec("peft") is None:
        return "Not installed: not measured."
    found = peft_times(options.layers, options.shrink, options.device, options.runs)
    lost = found.pop("lost")
    headers = ["PEFT, LoRA of the same rank", "time", "of the roofline"]
    rows = [[what, _ms(each), f"{each / roofline:.1f}x"] for what, each in found.items()]
    report.show("PEFT", headers, rows)
    return (
        report.markdown(headers, rows) + f"\n\nAfter two merges and unmerges {lost:.2%} of the base's elements differ."
    )


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"


def _ms(value: float) -> str:
    return f"{1000 * value:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
