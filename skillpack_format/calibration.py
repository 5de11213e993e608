"""Texts to calibrate on, and what is measured with them: how much harm a unit of squared error does in each tensor.

The one rule: figures only. The model is run elsewhere (``loaded.probing``); this module reads the file of texts, which
may hold anything, and gives the figures the scale of ``sensitivity``, whose place they take in a plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from skillpack_format.errors import error

TEXTS: Final = 64  # that are used of a file; further lines are not read
MAX_LINE_BYTES: Final = 1 << 20  # of one line; no line is longer than a model's context by so much
MAX_FILE_BYTES: Final = 1 << 28  # that are looked through for usable lines
DIGITS: Final = 3  # of a weight that count: what lies below is the rounding of a device


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts to run a model on, and the numbers of the lines that held none."""

    texts: tuple[str, ...]
    skipped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured sensitivities, for ``ConvertOptions.weights``: by tensor name, the harm of a unit of squared error.

    ``texts`` and ``tokens``: what they were measured on. ``skipped``: numbers of the file's lines that held no text.
    """

    weights: Mapping[str, float]
    texts: int
    tokens: int
    skipped: tuple[int, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self.skipped:
            return ()
        count, first = len(self.skipped), self.skipped[0]
        lines = f"line {first} holds" if count == 1 else f"{count} lines, the first of them line {first}, hold"
        return (f"calibration: {lines} no text and {'was' if count == 1 else 'were'} left out",)


def read_texts(path: Path, most: int = TEXTS) -> Texts:
    """The first ``most`` texts of a file of JSON lines, each a string or an object whose "text" is one.

    Blank lines are passed over; a line that is something else is left out and counted.

    Raises:
        InputError: input.failed, the file cannot be read.
        ConvertError: convert.texts, no line of it can be used; names the first line and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            return _read(file, str(path), most)
    except OSError as found:
        raise error("input.failed", str(path), f"cannot be read: {found.strerror or found}") from found


def _read(file: BinaryIO, where: str, most: int) -> Texts:
    texts: list[str] = []
    faults: dict[int, str] = {}
    number = 0
    while len(texts) < most and file.tell() < MAX_FILE_BYTES:
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            break
        number += 1
        is_cut = len(line) > MAX_LINE_BYTES
        if not is_cut and not line.strip():
            continue
        found = f"is longer than {MAX_LINE_BYTES} bytes" if is_cut else _text_of(line)
        if isinstance(found, _Text):
            texts.append(found.text)
        else:
            faults[number] = found
        while is_cut and line and not line.endswith(b"\n") and file.tell() < MAX_FILE_BYTES:
            line = file.readline(MAX_LINE_BYTES)
    if texts:
        return Texts(tuple(texts), tuple(faults))
    first = next((f"line {line} {fault}" for line, fault in faults.items()), "it has no line but blank ones")
    message = f'no usable line: {first}; a line is a JSON string or an object such as {{"text": "..."}}'
    raise error("convert.texts", where, message)


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


def _text_of(line: bytes) -> _Text | str:
    """The text of a line, or what is wrong with it."""
    try:
        plain = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (ValueError, RecursionError):  # ValueError also of an integer with thousands of digits
        return "is not JSON"
    text = plain.get("text") if isinstance(plain, dict) else plain
    if not isinstance(text, str):
        return 'has no "text"' if isinstance(plain, dict) else "is neither a string nor an object"
    if not text.strip():
        return "has a blank text"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "has half of a surrogate pair"
    return _Text(text)


def weights_of(harm: Mapping[str, float], vectors: Collection[str] = ()) -> dict[str, float]:
    """Measured harm on the scale of ``sensitivity``, where a typical matrix has 1: divided by the geometric mean.

    ``vectors``: the names that are none of a matrix; the mean is without them. A tensor that the outputs do not depend
    on was not measured by them, and is left to ``sensitivity``; nothing is known where they depend on no matrix.
    """
    logs = {name: math.log(value) for name, value in harm.items() if value > 0}
    matrices = [value for name, value in logs.items() if name not in vectors]
    if not matrices:
        return {}
    mean = math.fsum(matrices) / len(matrices)
    return {name: float(f"{math.exp(value - mean):.{DIGITS}g}") for name, value in logs.items()}
