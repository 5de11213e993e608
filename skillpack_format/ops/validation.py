"""``validate``: every rule, all problems collected.

The same checks as opening a pack, reported instead of raised: header, storage, checksums and digests of every
content; ``deep`` also decodes each one; with a base, its binding and every result digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from skillpack_format.errors import SkillPackError, error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.ops import application
from skillpack_format.ops.inspection import render
from skillpack_format.problems import Problem
from skillpack_format.progress import Progress, in_order, silent
from skillpack_format.reader import Pack

MAX_SHOWN = 1000  # problems kept; one broken table can produce a million


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What was checked and what was found. ``problems`` is empty exactly when the pack is valid as far as checked."""

    path: Path
    pack_id: str | None
    checked: tuple[str, ...]
    problems: tuple[Problem, ...]
    problem_count: int
    exit_status: int

    @property
    def is_valid(self) -> bool:
        return not self.problems

    def to_plain(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "pack_id": self.pack_id,
            "valid": self.is_valid,
            "checked": list(self.checked),
            "problem_count": self.problem_count,
            "problems": [problem.to_plain() for problem in self.problems],
        }


class _Findings:
    """Collects problems, and remembers the class of the first for the exit status."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.count = 0
        self.first: SkillPackError | None = None

    def add(self, found: SkillPackError) -> None:
        self.count += 1
        self.first = self.first or found
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(found.problem)

    def collect(self, check: Callable[[], object]) -> bool:
        """Run ``check``; whether it found nothing."""
        try:
            check()
        except SkillPackError as found:
            self.add(found)
            return False
        return True


def validate(
    path: Path,
    *,
    base: Path | None = None,
    deep: bool = False,
    threads: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> ValidationReport:
    """Check ``path`` by every rule of the specification that can be checked with what was given."""
    findings = _Findings()
    checked = ["header"]
    pack_id = None
    try:
        pack = Pack(path, limits, findings.add)
    except SkillPackError as found:
        findings.add(found)
    else:
        with pack:
            pack_id = pack.pack_id
            findings.collect(lambda: _check_schema(pack))
            if findings.count == 0:  # with a wrong header, contents cannot be told apart
                checked += ["contents", "values"] if deep else ["contents"]
                _check_contents(pack, deep, threads, findings, progress)
            if base is not None and findings.count == 0:
                checked.append("base")
                options = application.Options(threads=threads, limits=limits)
                findings.collect(lambda: application.prove(base, [path], options, progress))
            findings.collect(pack.require_unchanged)
    status = findings.first.exit_status if findings.first else 0
    return ValidationReport(path, pack_id, tuple(checked), tuple(findings.problems), findings.count, status)


def _check_contents(pack: Pack, deep: bool, threads: int, findings: _Findings, progress: Progress) -> None:
    """Padding, checksums and digests of DATA; with ``deep`` the meaning of every component too."""

    def check(segment: int) -> SkillPackError | None:
        try:
            pack.read_content(segment)
        except SkillPackError as found:
            return found
        return None

    done, total = 0, sum(extent.length for extent in pack.extents)
    for segment, found in in_order(check, range(len(pack.extents)), threads):
        done += pack.extents[segment].length
        progress("checking contents", done, total)
        if found is not None:
            findings.add(found)
    if deep:
        for name in pack.entries:
            findings.collect(lambda name=name: pack.open_components(name))  # type: ignore[misc]


def _check_schema(pack: Pack) -> None:
    """The JSON Schema must agree with the parser on everything that was accepted."""
    import jsonschema  # noqa: PLC0415 - heavy, and only wanted here

    schema = json.loads(files("skillpack_format").joinpath("schema/manifest.schema.json").read_bytes())
    validator = jsonschema.Draft202012Validator(schema)
    fault = next(validator.iter_errors(render(pack.manifest.to_plain())), None)
    if fault is not None:
        place = "/".join(map(str, fault.absolute_path))
        raise error("manifest.value", f"MANIFEST {place}", f"the JSON Schema refuses it by its rule {fault.validator}")
