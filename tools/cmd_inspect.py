"""``skillpack inspect``: a pack's header for people, or as JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import click

from skillpack_format import InspectionReport, inspect
from skillpack_format.ops.inspection import SideFileRow
from skillpack_format.side_files import CODE, NOTES, TEMPLATE

from . import options, render

CAN: Final = {  # told by the name alone
    TEMPLATE: "can hold a chat template, which other programs run",
    CODE: "can name code to run; --side-files looks",
}


@click.command("inspect")
@click.argument("pack", type=options.PATH)
@options.as_json
@click.option("--manifest", is_flag=True, help="Print MANIFEST in its JSON rendering (spec/manifest.md) instead.")
@click.option("--side-files", is_flag=True, help="Read the side files too: which hold a chat template or name code?")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, metavar="N", help="Tensors to show.")
@click.option("--by", type=click.Choice(["size", "error"]), default="size", show_default=True, help="Which come first.")
def command(pack: Path, as_json: bool, manifest: bool, side_files: bool, top: int, by: str) -> None:
    """Show what a pack is, from its header alone.

    Figures on quality are the author's; digests are what apply proves. --top and --by choose what people see, the
    JSON has every tensor. An error is the share of a tensor's change that is lost: 0.01 is 1 % of its energy.
    """
    report = inspect(pack, side_files=side_files)
    if manifest:
        render.show_json(report.rendering())
        return
    if as_json:
        render.show_json(render.result("inspect", report.to_plain()))
        return
    page = render.Page()
    _identity(page, report)
    _classes(page, report)
    _tensors(page, report, top, by)
    page.show()


def _identity(page: render.Page, report: InspectionReport) -> None:
    fields = {
        "pack": str(report.path),
        "pack id": report.pack_id,
        "size": f"{render.size(report.file_bytes)}, of it header {render.size(report.header_bytes)}",
        "base": f"{report.base_digest} ({report.base_tensors} tensors)",
        "result": f"{report.result_digest} ({report.result_tensors} tensors)",
        "layout": _layout(report),
        "codecs": ", ".join(report.codecs) or "none",
    }
    page.fields(fields)
    page.table("metadata (the author's claims)", ["key", "value"], list(report.metadata.items()))
    rows = [[row.name, render.size(row.nbytes), _note(row)] for row in report.side_files]
    page.table("side files", ["name", ">bytes", "note"], rows)


def _layout(report: InspectionReport) -> str:
    if not report.shards:
        return "none: files are named and laid out as in the base"
    more = f" and {len(report.shards) - 1} more" if len(report.shards) > 1 else ""
    return f"gives {report.shards[0]}{more} back to the byte"


def _note(row: SideFileRow) -> str:
    """What a side file can make other programs do, or does where it was read."""
    if row.notes is None:
        return "; ".join(CAN[note] for note in row.can_hold)
    return "; ".join(NOTES[note] for note in row.notes)


def _classes(page: render.Page, report: InspectionReport) -> None:
    stored = sum(row.nbytes for row in report.classes)
    rows = [
        [
            row.tensor_class,
            str(row.tensors),
            str(row.elements),
            render.size(row.nbytes),
            render.share(row.nbytes, stored),
            render.bits_per_weight(row.nbytes, row.elements),
            render.loss(row.error),
        ]
        for row in report.classes
    ]
    page.table("module classes", ["class", ">tensors", ">elements", ">bytes", ">share", ">bits/weight", ">error"], rows)
    counts = Counter(_coding(row.change, row.encodings) for row in report.tensors)
    page.table("encodings", ["encoding", ">tensors"], [[name, str(count)] for name, count in counts.most_common()])
    if not report.tensors:
        page.line("no tensor changes: the result is the base")


def _tensors(page: render.Page, report: InspectionReport, top: int, by: str) -> None:
    def rank(index: int) -> tuple[float, int]:
        row = report.tensors[index]
        return (-row.nbytes if by == "size" else -(row.error or 0.0), index)

    chosen = [report.tensors[index] for index in sorted(range(len(report.tensors)), key=rank)[:top]]
    rows = [
        [
            row.name,
            row.tensor_class,
            row.kind,
            _coding(row.change, row.encodings),
            render.size(row.nbytes),
            render.bits_per_weight(row.nbytes, row.elements),
            render.loss(row.error),
        ]
        for row in chosen
    ]
    title = f"{len(chosen)} of {len(report.tensors)} tensors, by {by}"
    page.table(title, ["tensor", "class", "kind", "encoding", ">bytes", ">bits/weight", ">error"], rows)


def _coding(change: str, encodings: tuple[str, ...]) -> str:
    """In one cell how a tensor is written: its encodings, or that it needs none."""
    return " + ".join(encodings) if encodings and change != "alias" else change
