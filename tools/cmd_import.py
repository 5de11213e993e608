"""``skillpack import``: a delta of another tool to a pack."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from skillpack_format import ImportOptions, ImportReport, import_delta
from skillpack_format.classes import user_rule
from skillpack_format.ops.importing import IMPORTERS

from . import options, render

LARGEST: Final = 10  # tensors shown by size


@click.command("import")
@click.argument("delta", type=options.PATH)
@click.option("--base", type=options.PATH, required=True, help="The checkpoint that the delta was made for.")
@click.option("-o", "--output", type=options.PATH, required=True, help="The pack to write.")
@click.option("--kind", type=click.Choice(list(IMPORTERS)), help="What DELTA is.  [default: told from it]")
@click.option("--add-new", is_flag=True, help="Add tensors that BASE lacks, such as a new head, instead of refusing.")
@click.option("--dry-run", is_flag=True, help="Do everything but write the pack.")
@click.option("--class", "classes", multiple=True, metavar="PATTERN=CLASS", help="Class of tensors whose name matches.")
@click.option(
    "--meta", multiple=True, callback=options.key_values, metavar="KEY=VALUE", help="A line of the pack's metadata."
)
@options.no_side_files
@options.threads
@options.device
@options.force
@options.as_json
@options.quiet
def command(
    delta: Path,
    base: Path,
    output: Path,
    kind: str | None,
    add_new: bool,
    dry_run: bool,
    classes: tuple[str, ...],
    meta: dict[str, str],
    no_side_files: bool,
    threads: int,
    device: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the pack of a LoRA adapter or another tool's delta.

    DELTA is a folder that PEFT saved, a .pt file of GraftLLM, Delta-CoMe or BitDelta, or a .wdelta file. The pack
    carries its numbers as they are and is bound to BASE. No pickle is run; one that holds more than tensors is refused.
    """
    settings = ImportOptions(
        kind=kind,
        add_new=add_new,
        dry_run=dry_run,
        rules=[user_rule(text) for text in classes],
        metadata=meta,
        side_files=not no_side_files,
        threads=threads,
        overwrite=force,
        **options.bench(device),
    )
    with render.progress_bar(hidden=quiet or as_json) as progress:
        report = import_delta(delta, base, output, settings, progress)
    if as_json:
        render.show_json(render.result("import", report.to_plain()))
        return
    for warning in report.warnings:
        render.show_warning(warning)
    if quiet:
        if not dry_run:
            render.show_path(output)
        return
    _show(report)
    if not dry_run:
        render.show_hint(f"skillpack apply {shlex.quote(str(base))} {shlex.quote(str(output))}")


def _show(report: ImportReport) -> None:
    page = render.Page()
    share = render.share(report.pack_bytes, report.base_bytes)
    changed = [each for each in report.tensors if each.change != "unchanged"]
    page.fields(
        {
            "pack": str(report.pack) if report.pack else "none (dry run)",
            "pack id": report.pack_id,
            "delta": report.kind,
            "size": f"{render.size(report.pack_bytes)}, {share} of base",
            "base": f"{render.size(report.base_bytes)} ({report.base_tensors} tensors)",
            "changes": f"{len(changed)} tensors; {len(report.tensors) - len(changed)} more are named and stay",
            "side files": ", ".join(report.side_files) or "none",
        }
    )
    rows = [
        [each.name, each.change, "+".join(each.encodings), render.size(each.nbytes)]
        for each in sorted(changed, key=lambda each: (-each.nbytes, each.name))[:LARGEST]
    ]
    page.table("largest changes", ["tensor", "change", "encoding", ">size"], rows)
    page.show()
