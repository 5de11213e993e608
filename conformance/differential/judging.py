"""Whether answers to one question agree, by the rules of the specification on which code may be given."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from .asked import Answer

SPEC = Path(__file__).resolve().parents[2] / "spec"
SAME, STAGE, LAX, DIFFER = "same", "one stage", "codec.lax", "differ"


@cache
def stages() -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The table of container.order: stage and codes, a code ending in ``*`` for a whole family."""
    text = (SPEC / "container.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return tuple((int(stage), tuple(codes.strip().split(", "))) for stage, codes in rows if "." in codes)


@cache
def stages_of(code: str) -> frozenset[int]:
    """The stages that may give ``code``; 14 and 15 count as one, for any of their codes will do."""
    family = code.partition(".")[0] + ".*"
    found = {min(stage, 14) for stage, codes in stages() if code in codes or family in codes}
    return frozenset(found)


def agreement(answers: dict[str, Answer], is_lax: bool) -> str:
    """How the answers of the readers (by name) to one question compare."""
    found = list(answers.values())
    if all(each == found[0] for each in found[1:]):
        return SAME
    if all(each.code for each in found):
        common = frozenset.intersection(*(stages_of(each.code) for each in found))
        return STAGE if common - {13} else DIFFER  # stage 13 has an order of its own: apply.verify
    if (
        is_lax
        and all(each.code in ("", "payload.frame") for each in found)
        and len({a.made for a in found if not a.code}) == 1
    ):
        return LAX
    return DIFFER
