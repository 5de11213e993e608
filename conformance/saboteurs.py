"""Readers broken on purpose: one line of the mini reader changed at a time. A corpus is worth what it kills.

    python -m conformance.saboteurs                # run all, print who survives
    python -m conformance.saboteurs --write        # and conformance/SABOTEURS.md, the kill matrix
    python -m conformance.saboteurs --only 'num-*'

``saboteurs.json`` lists them: a file of readers/mini, a text that occurs there once, what it becomes, what that breaks.
A saboteur is killed when at least one case ends otherwise than with the reader as it is.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from conformance import build, runner

MINI = build.ROOT / "readers" / "mini"
PAGE = build.ROOT / "SABOTEURS.md"
LIST = build.ROOT / "saboteurs.json"


@dataclass(frozen=True)
class Saboteur:
    """One change of one line."""

    id: str
    file: str
    before: str
    after: str
    what: str


def saboteurs() -> list[Saboteur]:
    return [Saboteur(**row) for row in json.loads(LIST.read_bytes())]


def broken(saboteur: Saboteur, folder: Path) -> Path:
    """A copy of the mini reader with the one change; ValueError where its text is not there exactly once."""
    copy = folder / saboteur.id / "mini"
    shutil.copytree(MINI, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / saboteur.file
    text = path.read_text(encoding="utf-8")
    if text.count(saboteur.before) != 1:
        raise ValueError(f"{saboteur.id}: its text occurs {text.count(saboteur.before)} times in {saboteur.file}")
    path.write_text(text.replace(saboteur.before, saboteur.after), encoding="utf-8")
    return copy


def outcomes(reader: Path, only: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """case -> area and outcome."""
    report = runner.run([sys.executable, str(reader)], only)
    return {each.case: (each.area, each.outcome) for each in report.results}


def killers(
    saboteur: Saboteur, folder: Path, whole: dict[str, tuple[str, str]], only: Sequence[str] = ()
) -> dict[str, str]:
    """case -> area of every case that ends otherwise than with the whole reader."""
    reader = broken(saboteur, folder)
    try:
        found = outcomes(reader, only)
    except (runner.CrashError, runner.HangError):
        return dict.fromkeys(["hello"], "protocol")
    finally:
        shutil.rmtree(reader.parent)
    return {case: area for case, (area, outcome) in found.items() if whole[case][1] != outcome}


def rows_of(found: dict[str, dict[str, str]], of: Sequence[Saboteur]) -> dict[str, str]:
    """The row of every saboteur: of those asked now, and of the others as SABOTEURS.md has it."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for each in of:
        if each.id in found:
            areas = Counter(found[each.id].values())
            by_area = ", ".join(f"{area} {count}" for area, count in areas.most_common(5)) or "**survives**"
            rows[each.id] = f"| `{each.id}` | {each.what} | {sum(areas.values())} | {by_area} |"
    return {each.id: rows[each.id] for each in of if each.id in rows}


def page(rows: dict[str, str]) -> str:
    """SABOTEURS.md."""
    survivors = sum("**survives**" in row for row in rows.values())
    lines = [
        "# Saboteurs",
        "",
        "Made by `python -m conformance.saboteurs --write`; do not edit. Each row is the mini reader with",
        f"one line broken, and the cases that notice. {len(rows)} saboteurs, {survivors} survive.",
        "",
        "| saboteur | what is broken | cases that notice | by area |",
        "|---|---|---|---|",
        *rows.values(),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.saboteurs", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write SABOTEURS.md; with --only, its other rows stay")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="saboteurs whose id matches")
    parser.add_argument("--cases", action="append", default=[], metavar="PATTERN", help="cases or areas that match")
    asked = parser.parse_args(arguments)
    chosen = [s for s in saboteurs() if not asked.only or any(fnmatch.fnmatch(s.id, each) for each in asked.only)]
    whole = outcomes(MINI, asked.cases)
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        work = {each.id: pool.submit(killers, each, Path(folder), whole, asked.cases) for each in chosen}
        for each in chosen:
            found[each.id] = work[each.id].result()
            print(f"{len(found[each.id]):5} cases notice {each.id}: {each.what}", flush=True)
    survivors = [each.id for each in chosen if not found[each.id]]
    print(f"{len(chosen)} saboteurs, {len(survivors)} survive: {', '.join(survivors) or 'none'}")
    if asked.write:
        PAGE.write_text(page(rows_of(found, saboteurs())), encoding="utf-8")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
