"""The production library as one of the readers of the differential run, in this process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from skillpack_format import Limits, SkillPackError, open_pack, validate, wire
from skillpack_format.container import read_header
from skillpack_format.digest import sha256
from skillpack_format.native import cpu_bench
from skillpack_format.ops.chain import Chain
from skillpack_format.ops.inspection import inspect, render
from skillpack_format.progress import silent
from skillpack_format.sources import SourceFile
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint

from .asked import LIMITS, Answer, Question

NAME = "library"
LIMITS_HERE = Limits(**LIMITS)


class Reader:
    """Answers questions. ``folder`` holds the files that the library wants to open."""

    def __init__(self, folder: Path) -> None:
        self._pack = folder / "pack.skp"
        self._folder = folder
        self._bases: dict[bytes, Checkpoint] = {}

    def forget(self) -> None:
        """Close the bases seen so far."""
        for each in self._bases.values():
            each.close()
        self._bases.clear()

    def answer(self, question: Question) -> Answer:
        self._pack.write_bytes(question.pack)
        try:
            return Answer("", getattr(self, "_" + question.op)(question))
        except SkillPackError as found:
            return Answer(found.code, "")

    def _apply(self, question: Question) -> str:
        with open_pack(self._pack, LIMITS_HERE) as pack:
            checkpoint = self._base(question.base)
            chain = Chain(checkpoint, [pack], 1.0, cpu_bench())
            lines = []
            for name, spec in chain.specs.items():
                digest = hashlib.sha256()
                for block in chain.blocks(name):
                    digest.update(block)
                shape = ",".join(map(str, spec.shape))
                lines.append(f"{name} {spec.dtype.name} {shape} {digest.hexdigest()}")
            chain.require_proved(silent, threads=1)
            for each in pack.manifest.files:
                lines.append(f"file {each.name} {sha256(pack.read_side_file(each.name)).hex()}")
            return "\n".join(lines)

    def _base(self, data: bytes) -> Checkpoint:
        found = self._bases.get(data)
        if found is None:
            path = self._folder / f"base-{len(self._bases)}.safetensors"
            path.write_bytes(data)
            found = self._bases[data] = open_checkpoint(path, LIMITS_HERE)
        return found

    def _contents(self, question: Question) -> str:
        with open_pack(self._pack, LIMITS_HERE) as pack:
            for name in pack.entries:
                pack.open_components(name)
            for segment in range(pack.contents.first_file, len(pack.extents)):
                pack.read_content(segment)
        return "valid"

    def _validate(self, question: Question) -> str:
        report = validate(self._pack, deep=True, limits=LIMITS_HERE)
        if report.problems:
            first = report.problems[0]
            raise SkillPackError(first.code, first.where, first.message)
        return "valid"

    def _inspect(self, question: Question) -> str:
        report = inspect(self._pack, LIMITS_HERE)
        with SourceFile(self._pack) as source:
            header = read_header(lambda offset, count: bytes(source.read_at(offset, count)), source.size, LIMITS_HERE)
        storage = render(wire.read(header.storage, LIMITS_HERE, "STORAGE"))
        shown = {"pack_id": report.pack_id, "manifest": report.rendering(), "storage": storage}
        return hashlib.sha256(json.dumps(shown, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
