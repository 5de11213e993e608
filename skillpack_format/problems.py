"""The closed list of things that can be wrong, each with a stable code.

A code is the same string in the specification (spec/errors.md), in every error this library raises, in the JSON of
every command and in the conformance corpus. Its first word names the error class; see ``errors.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_PROBLEM_CHARS: Final = 500  # errors.md: the longest text an error may print

CODES: Final[frozenset[str]] = frozenset(
    """
    framing.magic framing.truncated framing.trailing-bytes framing.preamble-crc framing.reserved
    framing.header-length
    wire.truncated wire.trailing wire.type wire.not-shortest wire.key-type wire.key-order wire.utf8
    manifest.missing-key manifest.unknown-key manifest.type manifest.value manifest.order manifest.name
    manifest.shape manifest.tensor manifest.alias manifest.components manifest.parameter manifest.file-name
    storage.segments storage.chunk-bytes storage.chunk-table storage.chunk-length storage.data-length
    integrity.header integrity.manifest integrity.storage integrity.chunk integrity.content integrity.result
    integrity.source-changed
    payload.frame payload.padding-bits payload.code payload.position payload.scale payload.nonfinite payload.overflow
    payload.value payload.layout
    unsupported.version unsupported.encoding unsupported.codec unsupported.dtype unsupported.checkpoint
    unsupported.device unsupported.operation
    limit.exceeded
    base.missing base.extra base.kind base.content
    checkpoint.missing checkpoint.ambiguous checkpoint.header checkpoint.layout checkpoint.index checkpoint.name
    checkpoint.duplicate checkpoint.pickle
    convert.unrelated convert.nonfinite convert.delta convert.unmatched convert.texts convert.model
    plan.unreachable
    output.exists output.alias output.locked output.space output.failed
    input.failed
    resource.memory
    signature.missing signature.invalid signature.mismatch signature.key
    usage.argument
    """.split()
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: what rule (``code``), in which thing (``where``, may be empty), and what was found (``message``)."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return printable(f"{place}{self.message} [{self.code}]")

    def to_plain(self) -> dict[str, str]:
        return {"code": self.code, "where": printable(self.where), "message": printable(self.message)}


def printable(text: str, max_chars: int = MAX_PROBLEM_CHARS) -> str:
    """``text`` with everything but printable ASCII escaped, cut in the middle to ``max_chars`` characters.

    Names and messages can come from a hostile file: a terminal must never interpret them.
    """
    if len(text) > 4 * max_chars:  # escape no more than can be shown
        text = text[: 2 * max_chars] + " ... " + text[-2 * max_chars :]
    safe = "".join(c if " " <= c <= "~" else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    if len(safe) > max_chars:
        half = (max_chars - 5) // 2
        safe = f"{safe[:half]} ... {safe[-half:]}"
    return safe
