"""Assembles the input of every case, and holds the case files against the sources.

    python -m conformance.build --check    # every input and every case file as the sources make them (the default)
    python -m conformance.build --write    # regenerate conformance/cases/

Inputs go into ``conformance/.cache/``, named by their digests; git ignores them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from conformance.assembler.draft import assembled
from conformance.assembler.suite import Case, Suite
from conformance.sources import (
    base,
    blockq,
    chunks,
    container,
    dense,
    factors,
    folders,
    found,
    layout,
    limits,
    lowrank,
    manifest,
    names,
    numerics,
    rendering,
    sparse,
    storage,
    ulp,
    wire,
)

ROOT = Path(__file__).resolve().parent
CASES = ROOT / "cases"
CACHE = ROOT / ".cache"
SUFFIXES = {"pack": ".skp", "before": ".skp", "base": ".safetensors"}
AREAS: tuple[tuple[str, Callable[[Suite], None]], ...] = (
    ("container", container.cases),
    ("dense", dense.cases),
    ("manifest", manifest.cases),
    ("wire", wire.cases),
    ("storage", storage.cases),
    ("chunks", chunks.cases),
    ("names", names.cases),
    ("limits", limits.cases),
    ("base", base.cases),
    ("sparse", sparse.cases),
    ("blockq", blockq.cases),
    ("lowrank", lowrank.cases),
    ("factors", factors.cases),
    ("ulp", ulp.cases),
    ("numerics", numerics.cases),
    ("rendering", rendering.cases),
    ("found", found.cases),
    ("layout", layout.cases),
    ("folders", folders.cases),
)


def all_cases() -> Iterator[Case]:
    """Every case of every area, in order."""
    known: dict[str, Case] = {}
    for area, fill in AREAS:
        suite = Suite(area, known)
        fill(suite)
        known |= suite.cases
        yield from suite.cases.values()


def input_path(kind: str, digest: str) -> Path:
    """Where the cache keeps an input."""
    return CACHE / digest[:2] / (digest + SUFFIXES[kind])


def assemble(case: Case) -> dict[str, Any]:
    """The case file of ``case``; its inputs are in the cache afterwards."""
    files = assembled(case.model, case.changes)
    plain = case.plain(files)
    for kind, data in (("pack", files.pack), ("before", files.before), ("base", files.base)):
        if kind in plain["inputs"]:
            path = input_path(kind, plain["inputs"][kind]["sha256"])
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(f"{path.name}.{os.getpid()}")
                beside.write_bytes(data)
                beside.replace(path)  # whole or not at all: several runs may share the cache
    return plain


def case_text(plain: dict[str, Any]) -> str:
    return json.dumps(plain, indent=1, ensure_ascii=True) + "\n"


def assemble_all() -> dict[str, str]:
    """Every case file: its path below ``cases/`` -> its text."""
    return {f"{case.area}/{case.id}.json": case_text(assemble(case)) for case in all_cases()}


def ensure_inputs() -> None:
    """The cache holds every input of the case files, right to the digest."""
    for path in sorted(CASES.rglob("*.json")):
        for kind, each in json.loads(path.read_bytes())["inputs"].items():
            found = input_path(kind, each["sha256"])
            if not found.exists() or hashlib.sha256(found.read_bytes()).hexdigest() != each["sha256"]:
                found.unlink(missing_ok=True)
                assemble_all()
                return


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.build", description=__doc__.split("\n", 1)[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="compare the case files with the sources (default)")
    choice.add_argument("--write", action="store_true", help="write the case files")
    write = parser.parse_args(arguments).write
    made = assemble_all()
    present = {path.relative_to(CASES).as_posix(): path for path in CASES.rglob("*.json")}
    stale = [name for name, text in made.items() if name not in present or present[name].read_text() != text]
    gone = sorted(set(present) - set(made))
    if write:
        for name in stale:
            (CASES / name).parent.mkdir(parents=True, exist_ok=True)
            (CASES / name).write_text(made[name])
        for name in gone:
            present[name].unlink()
    for name in [*stale, *gone]:
        print(f"{'wrote' if write and name in made else 'removed' if write else 'differs:'} {name}")
    print(f"{len(made)} cases assembled, {len(stale) + len(gone)} case files {'changed' if write else 'differ'}")
    return 0 if write else int(bool(stale or gone))


if __name__ == "__main__":
    sys.exit(main())
