"""``skillpack apply``: base and packs to a checkpoint, or with --dry-run the proof that it would work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from skillpack_format import ApplicationReport, ApplyOptions, apply, prove
from skillpack_format.side_files import CODE, NOTES

from . import options, render


@click.command("apply")
@click.argument("base", type=options.PATH)
@click.argument("packs", type=options.PATH, nargs=-1, required=True, metavar="PACK...")
@click.option("-o", "--output", type=options.PATH, help="What to write.  [default: named as the last pack]")
@options.device
@click.option("--scale", type=float, default=1.0, show_default=True, help="Take this share of the change of one pack.")
@click.option(
    "--require-signature",
    "signed_by",
    type=options.PATH,
    metavar="KEY",
    help="Refuse a PACK without a signature PACK.sig by the owner of this public key.",
)
@options.threads
@options.no_side_files
@options.force
@click.option("--dry-run", is_flag=True, help="Prove that every tensor comes out as promised; write nothing.")
@options.as_json
@options.quiet
def command(
    base: Path,
    packs: tuple[Path, ...],
    output: Path | None,
    device: str,
    scale: float,
    signed_by: Path | None,
    threads: int,
    no_side_files: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the checkpoint that packs turn BASE into.

    BASE is a folder or a .safetensors file, and so is what is made of it. Several packs are applied one after the
    other, each made for the result of the one before. With -q the path written is the only line on standard output.
    """
    chosen = ApplyOptions(
        scale=scale,
        signed_by=signed_by,
        threads=threads,
        overwrite=force,
        side_files=not no_side_files,
        **options.bench(device),
    )
    out = output or _default_output(base, packs[-1])
    with render.progress_bar(hidden=quiet or as_json) as progress:
        report = prove(base, packs, chosen, progress) if dry_run else apply(base, packs, out, chosen, progress)
    if not as_json:
        for each in report.side_files:
            if CODE in each.notes:
                render.show_warning(f"{each.name} of the pack {NOTES[CODE]}; load the result only if you trust it")
    if as_json:
        render.show_json(render.result("apply", report.to_plain()))
    elif quiet:
        if not dry_run:
            render.show_path(out)
    else:
        _show(report, packs)


def _default_output(base: Path, pack: Path) -> Path:
    """A folder here named after the pack; a file where the base is one."""
    return Path(pack.stem if base.is_dir() else f"{pack.stem}.safetensors")


def _show(report: ApplicationReport, packs: Sequence[Path]) -> None:
    page = render.Page()
    proof = report.result_digest or "not the pack's own result, for the scale is not 1"
    page.fields(
        {
            "output": str(report.out) if report.out else "none, this was a dry run",
            "packs": ", ".join(map(str, packs)),
            "tensors": f"{report.tensors}: {report.changed} changed, {report.added} added, {report.removed} removed",
            "size": render.size(report.nbytes),
            "proved": proof,
            "files": "those of the fine-tune, to the byte" if report.layout else "named and laid out as in the base",
        }
    )
    if not (report.changed or report.added or report.removed):
        page.line("no tensor changed")
    if _changes_nothing(report):
        page.line("nothing changed: the result is the base", "bold")
    rows = [[each.name, each.action, "; ".join(NOTES[note] for note in each.notes)] for each in report.side_files]
    page.table("side files", ["name", "action", "note"], rows)
    for each in report.side_files:
        for line in each.diff.splitlines():
            page.line(f"  {line}", "green" if line.startswith("+") else "red" if line.startswith("-") else "dim")
    page.show()


def _changes_nothing(report: ApplicationReport) -> bool:
    files = any(each.action != "same" for each in report.side_files)
    return not (report.changed or report.added or report.removed or files)
