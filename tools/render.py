"""What the commands show: tables, progress, JSON, errors. The only module that imports rich.

The one rule: a string that may come from a file is escaped before a terminal sees it, and is never read as markup.
Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import click

from skillpack_format.problems import Problem, printable
from skillpack_format.progress import Progress as OnProgress
from skillpack_format.progress import silent

SCHEMA_VERSION: Final = 1  # of every JSON output: spec/schema/cli-*.schema.json
SIZE_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class Page:
    """A result for people, built from top to bottom and shown at once."""

    def __init__(self) -> None:
        self._parts: list[_Line | _Table] = []

    def line(self, text: str, style: str = "") -> None:
        self._parts.append(_Line(printable(text), style))

    def fields(self, fields: Mapping[str, str]) -> None:
        """Labels and values in two columns."""
        rows = [[printable(label), printable(value)] for label, value in fields.items()]
        self._parts.append(_Table([], rows))

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table after an empty line; columns after the first whose header begins with ``>`` are set to the right."""
        if not rows:
            return
        cells = [[printable(cell) for cell in row] for row in rows]
        self._parts += [_Line("", ""), _Line(title, "bold"), _Table(headers, cells)]

    def show(self) -> None:
        """Print on standard output: by rich on a terminal, as aligned plain lines of any width where it is none."""
        if sys.stdout is None:
            return
        text = _styled(self._parts) if _is_terminal(sys.stdout) else "\n".join(_plain(self._parts))
        click.echo("\n".join(line.rstrip(" ") for line in text.splitlines()), color=True)


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    style: str


@dataclass(frozen=True, slots=True)
class _Table:
    """Headers as ``Page.table`` takes them, none for labels and values; cells are printable."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def _plain(parts: Sequence[_Line | _Table]) -> Iterator[str]:
    """What a pipe gets, without rich, which takes longer to import than a header to read."""
    for part in parts:
        if isinstance(part, _Line):
            yield part.text
            continue
        titles = [header.removeprefix(">") for header in part.headers]
        columns = zip(*([titles] if titles else []), *part.rows, strict=True)
        widths = [max(map(len, column)) for column in columns]
        gap = "   " if titles else "  "
        to_right = [header.startswith(">") for header in part.headers] or [False] * len(widths)
        if titles:
            yield gap.join(_aligned(titles, widths, to_right))
            yield _rule() * (sum(widths) + len(gap) * (len(widths) - 1))
        for row in part.rows:
            yield gap.join(_aligned(row, widths, to_right))


def _aligned(cells: Sequence[str], widths: Sequence[int], to_right: Sequence[bool]) -> Iterator[str]:
    for cell, width, right in zip(cells, widths, to_right, strict=True):
        yield cell.rjust(width) if right else cell.ljust(width)


def _rule() -> str:
    """The line between header and rows, in ASCII where the output cannot show another."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return "\u2500" if encoding.lower().startswith("utf") else "-"


def _styled(parts: Sequence[_Line | _Table]) -> str:
    """What a terminal gets."""
    from rich.box import ASCII, HORIZONTALS  # noqa: PLC0415 - see _plain
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    buffer = io.StringIO()
    color: Any = None if os.environ.get("NO_COLOR") else "auto"
    console = Console(file=buffer, force_terminal=True, color_system=color, markup=False, highlight=False, emoji=False)
    for part in parts:
        if isinstance(part, _Line):
            console.print(Text(part.text, part.style))
            continue
        if part.headers:
            box = HORIZONTALS if _rule() != "-" else ASCII
            table = Table(box=box, show_edge=False, pad_edge=False, header_style="bold")
            for header in part.headers:
                justify: Any = "right" if header.startswith(">") else "left"
                table.add_column(header.removeprefix(">"), justify=justify, overflow="fold")
        else:
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
            table.add_column(style="dim", no_wrap=True)
            table.add_column(overflow="fold")
        for row in part.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    return buffer.getvalue()


def show_json(plain: Mapping[str, Any]) -> None:
    """A result as one JSON document in printable ASCII."""
    click.echo(json.dumps(plain, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def result(command: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """``plain`` as the JSON result of ``command``."""
    return {"schema_version": SCHEMA_VERSION, "command": command, **plain}


def show_path(path: Path) -> None:
    """A path alone on a line: its exact bytes for a program that reads them, escaped on a terminal."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(printable(str(path), max_chars=1 << 16) if on_terminal else os.fsencode(path))


def show_warning(text: str) -> None:
    click.echo(f"warning: {printable(text)}", err=True)


def show_hint(text: str) -> None:
    click.echo(f"hint: {printable(text)}", err=True)


def show_error(code: str, where: str, message: str, hint: str, *, as_json: bool) -> None:
    """The last line of a run that failed."""
    problem = Problem(code, where, message)
    if as_json:
        plain = {"schema_version": SCHEMA_VERSION, "error": problem.to_plain()}
        click.echo(json.dumps(plain), err=True)
        return
    click.echo(f"error: {problem}", err=True)
    if hint:
        show_hint(hint)


@contextmanager
def progress_bar(*, hidden: bool) -> Iterator[OnProgress]:
    """A callback for the library, shown as a bar on standard error while the block runs; nothing off a terminal."""
    if hidden or not _is_terminal(sys.stderr):
        yield silent
        return
    from rich.console import Console  # noqa: PLC0415 - only long work on a terminal needs it
    from rich.progress import (  # noqa: PLC0415 - only long work on a terminal needs it
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def size(nbytes: int) -> str:
    """Decimal units, as sizes are written on the command line: 12.3 MB."""
    value, unit = float(nbytes), 0
    while value >= 999.5 and unit < len(SIZE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{nbytes} B" if unit == 0 else f"{value:.3g} {SIZE_UNITS[unit]}"


def share(part: int, whole: int) -> str:
    """A percentage with about three digits."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    return f"{percent:.3g} %" if percent < 100 else f"{percent:.0f} %"


def bits_per_weight(nbytes: int, elements: int) -> str:
    """What a tensor of so many elements costs per element."""
    return f"{8 * nbytes / elements:.3g}" if elements else "-"


def loss(value: float | None) -> str:
    """The share of a change that is lost; exact when none is."""
    if value is None:
        return "-"
    return "exact" if value == 0 else f"{value:.3g}"


def _is_terminal(stream: TextIO | None) -> bool:
    """A terminal that knows more than plain lines."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
