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
from pathlib import Path
from typing import Any, Final, TextIO

import click
from rich.box import ASCII, HORIZONTALS, Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skillpack_format.problems import Problem, printable
from skillpack_format.progress import Progress as OnProgress
from skillpack_format.progress import silent

SCHEMA_VERSION: Final = 1  # of every JSON output: spec/schema/cli-*.schema.json
UNBOUNDED: Final = 10_000  # columns of a pipe: long names must stay on one line there
SIZE_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class Page:
    """A result for people, built from top to bottom and shown at once."""

    def __init__(self) -> None:
        self._parts: list[Table | Text] = []

    def line(self, text: str, style: str = "") -> None:
        self._parts.append(Text(printable(text), style))

    def fields(self, fields: Mapping[str, str]) -> None:
        """Labels and values in two columns."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, value in fields.items():
            table.add_row(Text(printable(label)), Text(printable(value)))
        self._parts.append(table)

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table after an empty line; columns after the first whose header begins with ``>`` are set to the right."""
        if not rows:
            return
        table = Table(box=_box(), show_edge=False, pad_edge=False, header_style="bold")
        for header in headers:
            justify: Any = "right" if header.startswith(">") else "left"
            table.add_column(header.removeprefix(">"), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._parts += [Text(""), Text(title, "bold"), table]

    def show(self) -> None:
        """Print on standard output; plain and as wide as it needs to be where that is no terminal."""
        if sys.stdout is None:
            return
        buffer = io.StringIO()
        on_terminal = _is_terminal(sys.stdout)
        console = Console(
            file=buffer,
            width=None if on_terminal else UNBOUNDED,
            force_terminal=on_terminal,
            color_system="auto" if on_terminal and not os.environ.get("NO_COLOR") else None,
            markup=False,
            highlight=False,
            emoji=False,
        )
        for part in self._parts:
            console.print(part)
        click.echo("\n".join(line.rstrip(" ") for line in buffer.getvalue().splitlines()), color=True)


def show_json(plain: Mapping[str, Any]) -> None:
    """A result as one JSON document in ASCII."""
    click.echo(json.dumps(plain, indent=2, allow_nan=False))


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


def _box() -> Box:
    """Lines between header and rows, in ASCII where the output cannot show others."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return HORIZONTALS if encoding.lower().startswith("utf") else ASCII
