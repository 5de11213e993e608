"""``skillpack conformance``: ask another reader every case of the corpus."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from skillpack_format.errors import error

from . import render

SHOWN = 50  # failures in the table; --report has all


@click.command("conformance", context_settings={"ignore_unknown_options": True})
@click.option("--json", "json_path", type=click.Path(dir_okay=False), metavar="FILE", help="Write the report as JSON.")
@click.option("--junit", "junit_path", type=click.Path(dir_okay=False), metavar="FILE", help="Write it as JUnit XML.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Only cases or areas that match; may be repeated.")
@click.option("--memory", type=click.IntRange(min=0), default=0, metavar="MB", help="Bound the reader's address space.")
@click.option("--time", "time_factor", type=float, default=1.0, metavar="FACTOR", help="Multiply every case's time.")
@click.argument("reader", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def command(
    ctx: click.Context,
    json_path: str | None,
    junit_path: str | None,
    only: tuple[str, ...],
    memory: int,
    time_factor: float,
    reader: tuple[str, ...],
) -> None:
    """Ask a reader every case of the corpus.

    READER is the command of an adapter (conformance/PROTOCOL.md), after --. Ends with 0 if every case of the operations
    it declares passes, otherwise with 1.
    """
    runner = _runner()
    try:
        report = runner.run(reader, only, memory, time_factor)
    except (runner.CrashError, runner.HangError) as found:
        raise error("usage.argument", "reader", f"it does not work: {found}") from None
    runner.write_reports(report, json_path, junit_path)
    _show(report)
    ctx.exit(0 if report.is_passed else 1)


def _runner() -> Any:
    """The corpus and its runner, which are part of a checkout and not of the installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "conformance" / "runner.py").is_file():
        raise error("usage.argument", "", "the corpus is part of the source; run this in a checkout of it")
    sys.path.insert(0, str(root))
    return import_module("conformance.runner")


def _show(report: Any) -> None:
    headers, rows = report.table()
    page = render.Page()
    page.table("Cases", [headers[0], *(f">{header}" for header in headers[1:])], rows)
    failed = [[each.outcome, each.case, each.op, each.detail] for each in report.failures]
    page.table("Failures", ["outcome", "case", "op", "what"], failed[:SHOWN])
    if len(failed) > SHOWN:
        page.line(f"... and {len(failed) - SHOWN} more; --json lists all")
    page.line(report.verdict, "green" if report.is_passed else "red")
    page.show()
