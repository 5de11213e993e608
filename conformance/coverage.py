"""Which cases show which requirement of the specification, on both sides.

    python -m conformance.coverage            # the table and what is missing
    python -m conformance.coverage --write    # and conformance/COVERAGE.md

A requirement is covered by an accepting and a rejecting case. Where no file can show a side, EXEMPT says why.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SPEC = ROOT.parent / "spec"
PAGE = ROOT / "COVERAGE.md"
REQUIREMENT = re.compile(r"\[`([a-z0-9.\-/]+)`\]")
CONDUCT = "conduct of a program, which no file and no answer shows"
WRITER = "a rule for writers or for the specification itself; a reader has no part in it"
PERMISSION = "what is refused has no legal twin: the rule is only about refusing"

EXEMPT: dict[str, dict[str, str]] = {  # requirement -> side -> why no case shows it
    "apply.alias": {
        "reject": "an alias that is wrong has the code manifest.alias; one left out shows as a wrong result"
    },
    "apply.removed": {"reject": "a removed tensor that stays shows as a wrong result of the accepting cases"},
    "apply.unchanged": {"reject": "a tensor that changes without entry shows as a wrong result of the accepting cases"},
    "apply.complete": {
        "accept": "that the place is complete at every moment needs a crash in between: tests/, not files"
    },
    "apply.layout": {"reject": "nothing is refused; other files in the folder fail the accepting cases"},
    "apply.side-files-shown": {"accept": CONDUCT, "reject": CONDUCT},
    "codec.lax": dict.fromkeys(("accept", "reject"), "left to the reader: cases of the verdict either"),
    "document.informative": {"reject": "the rule forbids to refuse"},
    "document.names-opaque": {"reject": "the rule forbids to interpret; every visible name is accepted"},
    "error.text": {"accept": "there is a text only where something is refused"},
    "integrity.source-changed": {
        "accept": "a file that changes while it is read cannot be a case; tests/ has it",
        "reject": "a file that changes while it is read cannot be a case; tests/ has it",
    },
    "json.rendering": {"reject": "nothing is refused; a wrong rendering fails the accepting cases"},
    "reader.allocation": {"accept": PERMISSION},
    "reader.least": {"reject": "the rule is about accepting"},
    "safe.digest-first": {"accept": PERMISSION},
    "safe.no-result": {"accept": PERMISSION},
    "safe.no-reach": {"reject": CONDUCT},
    "safe.size-first": {"accept": PERMISSION},
    "version.layout": {"accept": WRITER, "reject": WRITER},
    "version.minor": {"accept": WRITER, "reject": WRITER},
    "version.private": {"accept": "no reader knows a private name"},
    "version.refuse": {"accept": PERMISSION},
    "writer.valid": {"reject": WRITER},
}


@dataclass
class Cover:
    """The cases of one requirement."""

    accept: list[str] = field(default_factory=list)
    reject: list[str] = field(default_factory=list)

    def cases(self, side: str) -> list[str]:
        return self.accept if side == "accept" else self.reject


def requirements() -> list[str]:
    """Every requirement id, in the order of the pages."""
    pages = [page for page in sorted(SPEC.rglob("*.md")) if "decisions" not in page.parts]
    return [found for page in pages for found in REQUIREMENT.findall(page.read_text(encoding="utf-8"))]


def covered(cases: Path = ROOT / "cases") -> dict[str, Cover]:
    """Requirement -> its cases; with those that only a case names."""
    found = {each: Cover() for each in requirements()}
    for path in sorted(cases.rglob("*.json")):
        case = json.loads(path.read_bytes())
        for each in case["requirements"]:
            cover = found.setdefault(each, Cover())
            if case["expect"]["verdict"] != "either":
                cover.cases(case["expect"]["verdict"]).append(case["id"])
    return found


def missing(found: dict[str, Cover]) -> list[tuple[str, str]]:
    """(requirement, side) that no case shows and no exemption explains."""
    return [
        (name, side)
        for name, cover in found.items()
        for side in ("accept", "reject")
        if not cover.cases(side) and side not in EXEMPT.get(name, {})
    ]


def idle(found: dict[str, Cover]) -> list[tuple[str, str]]:
    """Exemptions that are not needed: a case shows the side, or the requirement is gone."""
    return [
        (name, side) for name, sides in EXEMPT.items() for side in sides if name not in found or found[name].cases(side)
    ]


def page(found: dict[str, Cover]) -> str:
    """COVERAGE.md."""
    total = {side: len({c for cover in found.values() for c in cover.cases(side)}) for side in ("accept", "reject")}
    lines = [
        "# Coverage",
        "",
        "Made by `python -m conformance.coverage --write`; do not edit. How many cases show each requirement",
        "of the specification, and one of each side by name.",
        f"{total['accept']} accepting and {total['reject']} rejecting cases.",
        "",
        "| requirement | accept | for example | reject | for example |",
        "|---|---|---|---|---|",
    ]
    for name, cover in sorted(found.items()):
        cells = [f"`{name}`"]
        for side in ("accept", "reject"):
            cases = cover.cases(side)
            why = EXEMPT.get(name, {}).get(side, "**missing**")
            cells += [str(len(cases)), f"`{cases[0]}`"] if cases else ["-", why]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    if list(arguments) not in ([], ["--write"]):
        sys.stderr.write("usage: python -m conformance.coverage [--write]\n")
        return 2
    found = covered()
    text = page(found)
    if arguments:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    unknown = sorted(set(found) - set(requirements()))
    for name in unknown:
        print(f"no such requirement: {name}")
    for name, side in missing(found):
        print(f"no {side}ing case: {name}")
    for name, side in idle(found):
        print(f"an exemption that is not needed: {name}, {side}")
    return int(bool(unknown or missing(found)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
