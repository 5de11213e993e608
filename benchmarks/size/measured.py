"""What was measured of one pair, as it is kept between a measurement and a report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.size.curves import Point

NAME: Final = "SkillPack"
CALIBRATED: Final = "SkillPack --calibrate"
OURS: Final = (NAME, CALIBRATED)
LOW_RANK: Final = "bf16 SVD"
MERGEKIT: Final = "mergekit-extract-lora 0.1.5"


def is_low_rank(method: str) -> bool:
    """Whether a method is a low-rank extraction in bfloat16."""
    return method.startswith((LOW_RANK, MERGEKIT))


@dataclass(slots=True)
class Measured:
    """All that was measured of one pair."""

    pair: str
    dtype: str
    reached: str
    tuned_bytes: int
    curves: dict[str, list[Point]] = field(default_factory=dict)
    exact: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    entropy: list[dict[str, Any]] = field(default_factory=list)
    weights_changed: float = 0.0
    noise_harm: float = 0.0  # function error of white noise as strong as every matrix's own change
    by_exponent: int | None = None  # bytes of differences at their entropy, given the exponent each applies to
    when: str = ""  # date and commit
    kept: int = 0  # families whose points come from an earlier run
    families: int = 0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Measured:
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain["curves"] = {name: [Point(**point) for point in points] for name, points in plain["curves"].items()}
        return cls(**plain)
