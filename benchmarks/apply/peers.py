"""The other ways to the same kind of result, each as a command, in an environment of their own below ``out``."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from benchmarks.apply.generated import MOVED, SPREAD, shapes

SCRIPTS: Final = Path(__file__).parent / "scripts"
RANK: Final = 16  # of the adapter: about one percent of the model, like the smaller pack
PACKAGES: Final = ("peft", "mergekit")


@dataclass(frozen=True, slots=True)
class Peer:
    """A command that makes the folder ``OUT``, which stands in it as that word."""

    name: str
    command: tuple[str, ...]


def install(folder: Path) -> tuple[Path | None, str]:
    """The Python of an environment with PEFT and mergekit, None with the reason where that cannot be.

    Packages that are here already, torch above all, are used from here.
    """
    python = folder / "bin" / "python"
    if not (folder / "READY").exists():
        venv.create(folder, with_pip=True, clear=True)
        [packages] = folder.glob("lib/python*/site-packages")
        here = [each for each in sys.path if each.endswith("site-packages")]
        (packages / "shared.pth").write_text("\n".join(here) + "\n")
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return None, f"pip install {' '.join(PACKAGES)}: {done.stderr.strip().splitlines()[-1]}"
        (folder / "READY").touch()
    freeze = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in ('peft', 'mergekit')))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return python, freeze.stdout.strip()


def write_adapter(folder: Path, layers: int) -> None:
    """A LoRA of rank RANK on every linear layer, as PEFT saves one."""
    folder.mkdir()
    random = torch.Generator().manual_seed(2)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in _linears(layers).items():
        m, n = shape
        size = (MOVED * SPREAD) ** 0.5 / RANK**0.25
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{prefix}.lora_A.weight"] = (torch.randn(RANK, n, generator=random) * size).bfloat16()
        tensors[f"{prefix}.lora_B.weight"] = (torch.randn(m, RANK, generator=random) * size).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    modules = sorted({name.split(".")[-2] for name in _linears(layers)})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def write_signs(path: Path, layers: int) -> None:
    """A one-bit delta of every linear layer, as ``with_bitdelta.py`` reads it."""
    random = torch.Generator().manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for name, (m, n) in _linears(layers).items():
        module = name.removesuffix(".weight")
        tensors[f"{module}.mask"] = torch.randint(256, (m, n // 8), dtype=torch.uint8, generator=random)
        tensors[f"{module}.coeff"] = torch.tensor(MOVED * SPREAD).bfloat16()
    save_file(tensors, path)


def peers(python: Path, base: Path, adapter: Path, signs: Path, config: Path) -> list[Peer]:
    """Every peer, to be run from any folder."""
    config.write_text(
        json.dumps({"models": [{"model": f"{base}+{adapter}"}], "merge_method": "passthrough", "dtype": "bfloat16"})
    )
    mergekit = str(python.with_name("mergekit-yaml"))
    return [
        Peer("PEFT load, merge, save", (str(python), str(SCRIPTS / "with_peft.py"), str(base), str(adapter), "OUT")),
        Peer(
            "mergekit passthrough of base+adapter",
            (mergekit, str(config), "OUT", "--no-copy-tokenizer", "--lora-merge-cache", "OUT.cache"),
        ),
        Peer("plain torch script", (sys.executable, str(SCRIPTS / "with_torch.py"), str(base), str(adapter), "OUT")),
        Peer("BitDelta load, save", (sys.executable, str(SCRIPTS / "with_bitdelta.py"), str(base), str(signs), "OUT")),
    ]


def _linears(layers: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes(layers).items() if name.endswith("_proj.weight")}
