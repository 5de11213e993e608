"""``skillpack validate``: every problem of a pack, and an exit code that tells their kind."""

from __future__ import annotations

from pathlib import Path

import click

from skillpack_format import ValidationReport, validate

from . import options, render


@click.command("validate")
@click.argument("pack", type=options.PATH)
@click.option("--base", type=options.PATH, help="The checkpoint to prove the pack on: every result digest is checked.")
@click.option("--deep", is_flag=True, help="Decode every component as well.")
@options.threads
@options.as_json
@click.pass_context
def command(ctx: click.Context, pack: Path, base: Path | None, deep: bool, threads: int, as_json: bool) -> None:
    """Check a pack by every rule; list all problems.

    Ends with 0 when there is none, otherwise with the exit code of the first.
    """
    with render.progress_bar(hidden=as_json) as progress:
        report = validate(pack, base=base, deep=deep, threads=threads, progress=progress)
    if as_json:
        render.show_json(render.result("validate", report.to_plain()))
    else:
        _show(report)
    ctx.exit(report.exit_status)


def _show(report: ValidationReport) -> None:
    page = render.Page()
    page.fields({"pack": str(report.path), "pack id": report.pack_id or "-", "checked": ", ".join(report.checked)})
    for problem in report.problems:
        page.line(str(problem), "red")
    if report.problem_count > len(report.problems):
        page.line(f"... and {report.problem_count - len(report.problems)} more")
    verdict = "valid" if report.is_valid else f"not valid: {report.problem_count} problem(s)"
    page.line(verdict, "bold green" if report.is_valid else "bold red")
    page.show()
