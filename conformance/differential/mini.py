"""The reader ``mini`` as one of the readers of the differential run, in this process."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from .asked import LIMITS, Answer, Question

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "readers"))

from mini.apply import Pack, apply
from mini.errors import DEFAULTS, Refusal
from mini.fields import render
from mini.safetensors import Checkpoint, read_checkpoint

NAME = "mini"
LIMITS_HERE = DEFAULTS | LIMITS


class Reader:
    """Answers questions."""

    def __init__(self) -> None:
        self._bases: dict[bytes, Checkpoint] = {}

    def forget(self) -> None:
        self._bases.clear()

    def answer(self, question: Question) -> Answer:
        try:
            pack = Pack(io.BytesIO(question.pack), LIMITS_HERE)
            if question.op == "inspect":
                return Answer("", inspected(pack))
            if question.op == "apply":
                return Answer("", self._applied(pack, question.base))
            pack.read_everything()
            for file in pack.manifest.layout:
                pack.read_file(file)
            return Answer("", "valid")
        except Refusal as found:
            return Answer(found.code, "")

    def _applied(self, pack: Any, data: bytes) -> str:
        if data not in self._bases:
            self._bases[data] = read_checkpoint(io.BytesIO(data), LIMITS_HERE)
        result, files = apply(pack, self._bases[data])
        lines = []
        for name, stored in sorted(result.items()):
            shape = ",".join(map(str, stored.tensor.shape))
            lines.append(f"{name} {stored.tensor.dtype.name} {shape} {hashlib.sha256(stored.data).hexdigest()}")
        lines += [f"file {name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(files.items())]
        return "\n".join(lines)


def inspected(pack: Any) -> str:
    shown = {
        "pack_id": pack.container.pack_id.hex(),
        "manifest": render(pack.manifest_document),
        "storage": render(pack.storage_document),
    }
    return hashlib.sha256(json.dumps(shown, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
