"""Deltas imported and applied for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltas import Imported

import skillpack_format as skp
from skillpack_format.stores.safetensors_files import open_checkpoint


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Imported]:
    """Import a delta, apply the pack (which proves every digest), and read the result."""

    def run(delta: Path, base: Path, **options: Any) -> Imported:
        report = skp.import_delta(delta, base, tmp_path / "p.skp", skp.ImportOptions(overwrite=True, **options))
        assert skp.validate(tmp_path / "p.skp", base=base, deep=True).is_valid
        skp.apply(base, [tmp_path / "p.skp"], tmp_path / "out.safetensors", skp.ApplyOptions(overwrite=True))
        with open_checkpoint(tmp_path / "out.safetensors") as found:
            result = {
                name: (spec.dtype.name, np.frombuffer(found.read(name), spec.dtype.bit_pattern).reshape(spec.shape))
                for name, spec in found.specs.items()
            }
        return Imported(report, result)

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
