"""Two tiny checkpoints, the packs between them, and ways to run a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from safetensors.numpy import save_file
from skillpack_tools.cli import skillpack

SCHEMAS = Path(__file__).parents[2] / "spec" / "schema"
SHAPES = {
    "lm_head.weight": (40, 16),
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.mlp.up_proj.bias": (32,),
    "model.layers.0.mlp.up_proj.weight": (32, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
}


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    def json(self, schema: str) -> dict:
        """The one JSON document printed, which its schema accepts: a result on stdout, an error on stderr."""
        text = self.stderr if schema == "error" else self.stdout
        assert text, self
        assert text.isascii()
        plain = json.loads(text)
        Draft202012Validator(json.loads((SCHEMAS / f"cli-{schema}.schema.json").read_bytes())).validate(plain)
        return plain


@dataclass(frozen=True)
class Models:
    """``base`` and ``tuned`` are folders; ``lossless`` and ``standard`` the packs between them."""

    base: Path
    tuned: Path
    lossless: Path
    standard: Path


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray], **files: str) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def base_tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {**tensors, "model.position_ids": np.arange(8)}


def tuned_tensors() -> dict[str, np.ndarray]:
    """The base plus changes of low rank for matrices, and of every element for the rest."""
    random = np.random.default_rng(8)
    tensors = base_tensors()
    for name, shape in SHAPES.items():
        if len(shape) == 2:
            change = random.standard_normal((shape[0], 2)) @ random.standard_normal((2, shape[1]))
        else:
            change = random.standard_normal(shape)
        tensors[name] = (tensors[name] + 0.01 * change).astype(np.float32)
    return tensors


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    base = write_checkpoint(folder / "base", base_tensors(), config__json="{}", chat_template__jinja="be helpful\n")
    tuned = write_checkpoint(folder / "tuned", tuned_tensors(), config__json="{}", chat_template__jinja="be brief\n")
    packs = [folder / "lossless.skp", folder / "standard.skp"]
    for pack in packs:
        arguments = ["convert", "--base", str(base), "--tuned", str(tuned), "-o", str(pack), "--recipe", pack.stem]
        outcome = CliRunner().invoke(skillpack, arguments)
        assert outcome.exit_code == 0, outcome.stderr
    return Models(base, tuned, *packs)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command within this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Outcome:
        result = CliRunner().invoke(skillpack, [str(each) for each in arguments], prog_name="skillpack")
        assert "Traceback" not in result.stderr
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def command() -> Callable[..., list[str]]:
    """The words that start a command as a process of its own."""
    return lambda *arguments: [sys.executable, "-m", "skillpack_tools", *map(str, arguments)]


@pytest.fixture
def spawn(tmp_path: Path, command: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess]:
    """Run a command as a process of its own, in an empty folder; what it prints comes back as bytes."""

    def run(*arguments: object, env: dict[str, str] | None = None, **streams: object) -> subprocess.CompletedProcess:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        environment = {**os.environ, **(env or {})}
        return subprocess.run(command(*arguments), cwd=tmp_path, env=environment, check=False, timeout=120, **streams)

    return run


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """``make_checkpoint(name, tensors, config__json=...)``: a checkpoint folder; ``__`` in a file name is a dot."""
    return lambda name, tensors, **files: write_checkpoint(tmp_path / name, tensors, **files)


@pytest.fixture
def convert(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """``skillpack convert`` of two checkpoints to ``out.skp``, and options."""

    def invoke(base: Path, tuned: Path, *options: object, output: Sequence[object] = ("-o", "out.skp")) -> Outcome:
        return run("convert", "--base", base, "--tuned", tuned, *output, *options)

    return invoke
