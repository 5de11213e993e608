"""Importing as a whole: kinds are told from the delta, and a change while reading is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import refused
from deltas import write, write_adapter, write_archive

import skillpack_format as skp
from skillpack_format.ops.importing import IMPORTERS


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.safetensors", {"q.weight": np.ones((4, 32)), "n.weight": np.ones(3)})


def test_every_importer_is_named_after_its_module() -> None:
    assert list(IMPORTERS) == ["peft", "graftllm", "bitdelta", "wdelta"]
    for name, importer in IMPORTERS.items():
        assert type(importer).__module__ == f"skillpack_format.importers.{name}"


def test_kinds_are_told_from_the_delta(tmp_path: Path, base: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {"n.weight": np.zeros(3, np.float32)})
    factors = {"q.U": np.ones((4, 1)), "q.S": np.ones(1), "q.V": np.ones((32, 1))}
    signs = {"q.mask": ("I32", np.zeros((1, 4), np.uint32)), "q.coeff": np.float32(1)}
    deltas = {
        "peft": adapter,
        "graftllm": write_archive(tmp_path / "g.pt", factors),
        "bitdelta": write_archive(tmp_path / "b.pt", signs),
    }
    for kind, delta in deltas.items():
        report = skp.import_delta(delta, base, tmp_path / "p.skp", skp.ImportOptions(dry_run=True))
        assert report.kind == kind


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_pack_that_no_reader_would_take_is_refused_in_a_dry_run_too(
    tmp_path: Path, base: Path, dry_run: bool
) -> None:
    bands = {
        f"q.{part}_{bits}": np.ones(shape)
        for bits in range(9)
        for part, shape in zip("USV", [(4, 1), 1, (32, 1)], strict=True)
    }
    delta = write_archive(tmp_path / "d.pt", bands)
    options = skp.ImportOptions(dry_run=dry_run)
    refused("limit.exceeded", skp.import_delta, delta, base, tmp_path / "p.skp", options)


def test_an_unknown_kind_is_a_usage_error(tmp_path: Path, base: Path) -> None:
    options = skp.ImportOptions(kind="gguf")
    refused("usage.argument", skp.import_delta, tmp_path / "d", base, tmp_path / "p.skp", options)


@pytest.mark.parametrize("kind", ["graftllm", "bitdelta"])
def test_a_delta_without_a_tensor_is_refused(tmp_path: Path, base: Path, kind: str) -> None:
    delta = write_archive(tmp_path / "d.pt", {})
    refused("convert.delta", skp.import_delta, delta, base, tmp_path / "p.skp", skp.ImportOptions(kind=kind))


@pytest.mark.parametrize("changing", ["base.safetensors", "d.pt"])
def test_an_input_that_changes_meanwhile_is_refused(tmp_path: Path, base: Path, changing: str) -> None:
    delta = write_archive(tmp_path / "d.pt", {"q.U": np.ones((4, 1)), "q.S": np.ones(1), "q.V": np.ones((32, 1))})

    def touch(what: str, done: int, total: int) -> None:
        if what == "coding":
            (tmp_path / changing).touch()

    found = refused("integrity.source-changed", skp.import_delta, delta, base, tmp_path / "p.skp", progress=touch)
    assert changing in str(found)
    assert not (tmp_path / "p.skp").exists()


def test_importing_needs_no_torch(tmp_path: Path, base: Path) -> None:
    """In a process where importing torch fails, a file of torch.save is imported all the same."""
    import subprocess
    import sys

    delta = write_archive(tmp_path / "d.pt", {"q.U": np.ones((4, 1)), "q.S": np.ones(1), "q.V": np.ones((32, 1))})
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\nimport skillpack_format as skp\n"
        f"skp.import_delta(Path({str(delta)!r}), Path({str(base)!r}), Path({str(tmp_path / 'p.skp')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.skp").is_file()
