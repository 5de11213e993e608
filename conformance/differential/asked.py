"""What the readers of a differential run are asked, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Lower than the defaults, so that a mutated shape costs a refusal and not a minute.
LIMITS: Final = {"tensor_bytes": 1 << 16, "manifest_bytes": 1 << 18, "storage_bytes": 1 << 18}
OPERATIONS: Final = {"apply": 82, "inspect": 10, "contents": 7, "validate": 1}  # with how often


@dataclass(frozen=True)
class Question:
    """``op`` is apply (the whole result), inspect (both renderings), contents or validate (no base)."""

    op: str
    pack: bytes
    base: bytes


@dataclass(frozen=True)
class Answer:
    """A code, or nothing and what was made, as text that must be the same everywhere."""

    code: str
    made: str
