"""Base checkpoints and foreign deltas of a few tensors, written as their tools write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from builders import kind, write_checkpoint
from torch_files import saved

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float32, dtype_named, float32_to_bits


def bits_of(values: Any, dtype: str) -> np.ndarray:
    """float32 values as bit patterns of F32, F16 or BF16, in their shape."""
    array = np.ascontiguousarray(values, np.float32)
    return float32_to_bits(array, dtype_named(dtype)).reshape(array.shape)


def write(path: Path, tensors: Mapping[str, Any], dtype: str = "F32") -> Path:
    """A safetensors file of floats as ``dtype``, or of (dtype, items) as they are."""
    pairs = {k: v if isinstance(v, tuple) else (dtype, bits_of(v, dtype)) for k, v in tensors.items()}
    return write_checkpoint(path, {k: (kind(d, *a.shape), a.tobytes()) for k, (d, a) in pairs.items()})


def write_archive(path: Path, tensors: Mapping[str, Any], dtype: str = "F32") -> Path:
    """The same as a file of torch.save."""
    pairs = {k: v if isinstance(v, tuple) else (dtype, bits_of(v, dtype)) for k, v in tensors.items()}
    path.write_bytes(saved(pairs))
    return path


def write_adapter(folder: Path, tensors: Mapping[str, Any], dtype: str = "F32", **config: Any) -> Path:
    """A folder as PEFT saves it; keys without its prefix get it."""
    folder.mkdir()
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(plain))
    write(folder / "adapter_model.safetensors", {f"base_model.model.{k}": v for k, v in tensors.items()}, dtype)
    return folder


@dataclass(frozen=True)
class Imported:
    report: skp.ImportReport
    result: dict[str, tuple[str, np.ndarray]]  # dtype and bit patterns in their shape

    def values(self, name: str) -> np.ndarray:
        dtype, bits = self.result[name]
        return bits_to_float32(bits, dtype_named(dtype))

    def encodings(self, name: str) -> tuple[str, ...]:
        return next(each.encodings for each in self.report.tensors if each.name == name)

    def off_by_ulps(self, name: str, exact: np.ndarray) -> float:
        """The largest distance from ``exact`` (float64), in units in the last place of float32 there."""
        return float(np.max(np.abs(self.values(name) - exact) / np.spacing(np.abs(exact).astype(np.float32))))
