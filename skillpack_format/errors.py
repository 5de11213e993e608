"""Every exception this library raises on purpose.

SkillPackError                  .code .where .message .problem; str() is at most 500 printable ASCII characters
├─ FormatError                  the pack is wrong
│  ├─ FramingError              framing.*    magic, lengths, padding, truncation, trailing bytes
│  ├─ ManifestError             wire.* manifest.* storage.*    the two header documents
│  ├─ IntegrityError            integrity.*  a checksum or digest does not match
│  └─ PayloadError              payload.*    the bytes of a component cannot mean what they claim
├─ LimitError                   limit.*      which limit, its value, what was asked
├─ UnsupportedError             unsupported.*  maybe fine, not known here: says what is known
├─ BaseMismatchError            base.*       the right pack on another base
├─ CheckpointError              checkpoint.* input.*  a checkpoint or file that cannot be read
├─ ConvertError                 convert.*    inputs that no pack can express
├─ PlanError                    plan.*       a bound or a budget that nothing meets; says what can be reached
├─ OutputError                  output.*     the result cannot be written
├─ SignatureError               signature.*  a pack is not signed as was asked
├─ ResourceError                resource.*   memory that the machine or its GPU does not have
└─ UsageError                   usage.*      an argument that makes no sense

The class follows from the code's first word, so raise with ``error(code, where, message)``. Sentences are lower case
without a full stop and say what was found and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from skillpack_format.problems import CODES, Problem


class SkillPackError(Exception):
    """The root of the tree. ``exit_status`` is what the command line ends with (spec/errors.md)."""

    exit_status: ClassVar[int] = 1

    def __init__(self, code: str, where: str, message: str) -> None:
        super().__init__(code, where, message)  # the three fields in args keep the error picklable
        self.code = code
        self.where = where
        self.message = message

    @property
    def problem(self) -> Problem:
        return Problem(self.code, self.where, self.message)

    def __str__(self) -> str:
        return str(self.problem)


class FormatError(SkillPackError):
    exit_status = 4


class FramingError(FormatError):
    pass


class ManifestError(FormatError):
    pass


class IntegrityError(FormatError):
    pass


class PayloadError(FormatError):
    pass


class LimitError(SkillPackError):
    exit_status = 4


class UnsupportedError(SkillPackError):
    exit_status = 6


class BaseMismatchError(SkillPackError):
    exit_status = 3


class CheckpointError(SkillPackError):
    exit_status = 4


class ConvertError(SkillPackError):
    exit_status = 1


class PlanError(SkillPackError):
    exit_status = 7


class OutputError(SkillPackError):
    exit_status = 5


class SignatureError(SkillPackError):
    exit_status = 4


class ResourceError(SkillPackError):
    exit_status = 5


class UsageError(SkillPackError):
    exit_status = 2


class InputError(CheckpointError):
    """The operating system refused a read."""

    exit_status = 5


CLASS_OF: Final[dict[str, type[SkillPackError]]] = {
    "framing": FramingError,
    "wire": ManifestError,
    "manifest": ManifestError,
    "storage": ManifestError,
    "integrity": IntegrityError,
    "payload": PayloadError,
    "limit": LimitError,
    "unsupported": UnsupportedError,
    "base": BaseMismatchError,
    "checkpoint": CheckpointError,
    "input": InputError,
    "convert": ConvertError,
    "plan": PlanError,
    "output": OutputError,
    "resource": ResourceError,
    "signature": SignatureError,
    "usage": UsageError,
}


def error(code: str, where: str, message: str) -> SkillPackError:
    """The exception for ``code``, to be raised by the caller. An unlisted code is a bug in this library."""
    if code not in CODES:
        raise LookupError(f"{code!r} is not in problems.CODES")
    return CLASS_OF[code.partition(".")[0]](code, where, message)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Prefix ``where`` to the place of any SkillPackError that passes through."""
    try:
        yield
    except SkillPackError as found:
        place = f"{where}, {found.where}" if found.where else where
        raise error(found.code, place, found.message) from found


def placed(where: str, found: SkillPackError) -> SkillPackError:
    """``found`` with ``where`` before its place. For loops: a place that is right costs nothing, not even a text."""
    return error(found.code, f"{where} {found.where}".rstrip(), found.message)
