"""``skillpack convert``: two checkpoints to a pack."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from skillpack_format import Calibration, ConversionReport, ConvertOptions, PlanReport, convert, preview
from skillpack_format.classes import user_rule
from skillpack_format.errors import error
from skillpack_format.ops.conversion import TensorReport
from skillpack_format.output_paths import require_absent
from skillpack_format.planning import Budget, Energy, Goal, MaxError, Share
from skillpack_format.recipes import RECIPES, Planned, Recipe, graftllm, sliced

from . import options, render

DEFAULT_RECIPE: Final = "standard"
DEFAULT_COSINE: Final = 0.5
WORST: Final = 5  # tensors shown by error


@click.command("convert")
@click.option("--base", type=options.PATH, required=True, help="The checkpoint that users have.")
@click.option("--tuned", type=options.PATH, required=True, help="The checkpoint that the pack shall make of it.")
@click.option("-o", "--output", type=options.PATH, help="The pack to write; not needed with --dry-run.")
@click.option("--lossless", is_flag=True, help="Short for --recipe lossless: the result is TUNED, bit by bit.")
@click.option("--recipe", type=click.Choice(list(RECIPES)), help=f"How to code it.  [default: {DEFAULT_RECIPE}]")
@click.option(
    "--budget",
    callback=options.budget,
    metavar="SIZE",
    help="The most bytes of the pack: 300MB, 5% of tuned, or bytes.",
)
@click.option("--max-error", type=float, help="The most squared error of all tensors, as a share of the change.")
@click.option(
    "--energy",
    type=float,
    help="The least share of its change that every tensor keeps; graftllm: of an MLP's squared singular values.",
)
@click.option(
    "--calibrate",
    type=options.PATH,
    metavar="FILE",
    help="JSON lines of text: measure on them which tensors matter. Needs torch and transformers.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be chosen for every tensor and why; write nothing.")
@click.option("--step", type=float, help="One rounding step for every matrix, no plan; more is smaller and worse.")
@click.option("--cosine", type=float, help="With --step: components less like their original are dropped.  [0.5]")
@click.option("--keep", type=float, help="graftllm: share of an embedding's elements that is kept.")
@click.option("--rank", type=float, help="graftllm: rank of attention as a share of the smaller dimension.")
@click.option(
    "--bits",
    callback=options.schedule,
    metavar="BITS:SHARE,...",
    help="graftllm: bits by share of the rank, as 8:0.02,4:0.18,2:0.8.",
)
@click.option("--group", type=click.IntRange(min=1), help="graftllm: codes that share a scale.")
@click.option("--class", "classes", multiple=True, metavar="PATTERN=CLASS", help="Class of tensors whose name matches.")
@click.option("--exact", multiple=True, metavar="GLOB", help="Tensors to code exactly, whatever the recipe.")
@click.option(
    "--meta", multiple=True, callback=options.key_values, metavar="KEY=VALUE", help="A line of the pack's metadata."
)
@options.no_side_files
@click.option("--no-layout", is_flag=True, help="Do not keep how the files of TUNED lie; only for exact results.")
@options.threads
@options.device
@options.force
@options.as_json
@options.quiet
def command(
    base: Path,
    tuned: Path,
    output: Path | None,
    lossless: bool,
    recipe: str | None,
    budget: Budget | Share | None,
    max_error: float | None,
    energy: float | None,
    calibrate: Path | None,
    dry_run: bool,
    step: float | None,
    cosine: float | None,
    keep: float | None,
    rank: float | None,
    bits: tuple[tuple[int, float], ...] | None,
    group: int | None,
    classes: tuple[str, ...],
    exact: tuple[str, ...],
    meta: dict[str, str],
    no_side_files: bool,
    no_layout: bool,
    threads: int,
    device: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the pack that turns BASE into TUNED.

    Both are folders or .safetensors files. The default recipe keeps what a fine-tune does in a few percent of its
    size; with --lossless the result is TUNED itself. A budget or a bound is met by a plan for the whole checkpoint:
    every tensor gets the code that does least harm for its bytes. Either way apply gives the same bits everywhere.
    """
    _require_sense(output, lossless, recipe, dry_run)
    name = "lossless" if lossless else recipe or DEFAULT_RECIPE
    bands: dict[str, Any] = {"keep": keep, "rank": rank, "schedule": bits, "group": group}
    if name == "graftllm":
        bands["energy"], energy = energy, None
    settings = ConvertOptions(
        recipe=_recipe(name, {"step": step, "cosine": cosine}, bands),
        goal=_goal(budget, max_error, energy),
        rules=[user_rule(text) for text in classes],
        exact=exact,
        metadata=meta,
        side_files=not no_side_files,
        layout=not no_layout,
        threads=threads,
        overwrite=force,
        **options.bench(device),
    )
    notes: tuple[str, ...] = ()
    if calibrate is not None:
        out = None if dry_run else output
        measured = _calibrate(settings, base, tuned, out, calibrate, device=device, hidden=quiet or as_json)
        settings, notes = replace(settings, weights=measured.weights), measured.warnings
    if output is None or dry_run:
        with render.progress_bar(hidden=quiet or as_json) as progress:
            planned = preview(base, tuned, settings, progress)
        _show_plan(planned, notes, as_json=as_json)
        return
    with render.progress_bar(hidden=quiet or as_json) as progress:
        report = convert(base, tuned, output, settings, progress)
    report = replace(report, warnings=(*notes, *report.warnings))
    if as_json:
        render.show_json(render.result("convert", report.to_plain()))
        return
    for warning in (*report.warnings, *_losses(report)):
        render.show_warning(warning)
    if quiet:
        render.show_path(output)
        return
    _show(report)
    render.show_hint(f"skillpack apply {shlex.quote(str(base))} {shlex.quote(str(output))}")


def _require_sense(output: Path | None, lossless: bool, recipe: str | None, dry_run: bool) -> None:
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if lossless and recipe not in (None, "lossless"):
        raise click.UsageError(f"--lossless and --recipe {recipe} exclude each other")


def _calibrate(
    settings: ConvertOptions,
    base: Path,
    tuned: Path,
    output: Path | None,
    texts: Path,
    *,
    device: str,
    hidden: bool,
) -> Calibration:
    """What the texts tell of the model; what would make it useless is refused before the model is run."""
    if not any(isinstance(each, Planned) for each in settings.recipe.treatments.values()):
        message = f"recipe {settings.recipe.name} codes every tensor in one way: there is nothing to calibrate"
        raise error("usage.argument", "", message)
    if isinstance(settings.goal, MaxError | Energy):
        message = "--max-error alone and --energy bound the error of the weights, whatever it does: calibrate a budget"
        raise error("usage.argument", "", message)
    if output is not None:
        require_absent(output, overwrite=settings.overwrite)
    try:
        from skillpack_format.loaded.probing import calibrate  # noqa: PLC0415 - an extra, and seconds to import
    except ModuleNotFoundError as found:
        message = f"--calibrate needs {found.name}, which is not installed: pip install 'skillpack[transformers]'"
        raise error("unsupported.operation", "", message) from None
    with render.progress_bar(hidden=hidden) as progress:
        return calibrate(base, tuned, texts, progress, settings.limits, device=device)


def _recipe(name: str, slices: Mapping[str, Any], bands: Mapping[str, Any]) -> Recipe:
    """The recipe ``name``, with those of its parameters that were given."""
    known = RECIPES[name]
    slices = {key: value for key, value in slices.items() if value is not None}
    bands = {key: value for key, value in bands.items() if value is not None}
    if slices and not isinstance(known.treatment("mlp"), Planned):
        raise click.UsageError(f"--{next(iter(slices))} goes with --recipe standard or small, not {name}")
    if slices and "step" not in slices:
        raise click.UsageError("--cosine goes with --step")
    if bands and name != "graftllm":
        option = {"schedule": "bits"}.get(key := next(iter(bands)), key)
        raise click.UsageError(f"--{option} goes with --recipe graftllm, not {name}")
    if bands:
        return graftllm(**bands)
    return sliced("custom", **{"cosine": DEFAULT_COSINE, **slices}) if slices else known


def _goal(budget: Budget | Share | None, max_error: float | None, energy: float | None) -> Goal | None:
    """A budget may have an error bound beside it; a bound on every tensor stands alone."""
    if energy is not None and (budget is not None or max_error is not None):
        raise click.UsageError("--energy excludes --budget and --max-error")
    if budget is not None:
        return replace(budget, max_error=max_error)
    if max_error is not None:
        return MaxError(max_error)
    return Energy(energy) if energy is not None else None


def _show_plan(report: PlanReport, notes: Sequence[str], *, as_json: bool) -> None:
    """What would be done: totals, then a line a tensor with its reason, the largest first."""
    if as_json:
        render.show_json(render.result("plan", report.to_plain()))
        return
    for note in notes:
        render.show_warning(note)
    page = render.Page()
    tuned = render.share(report.plan.nbytes, report.tuned_bytes)
    page.fields(
        {
            "recipe": report.recipe,
            "size": f"at most {render.size(report.plan.nbytes)}, {tuned} of tuned",
            "error": render.loss(report.plan.error),
            "written": "nothing: a dry run",
        }
    )
    rows = [
        [each.name, report.classes[each.name], each.option.label, render.size(each.option.nbytes), each.reason]
        for each in sorted(report.plan.choices, key=lambda each: (-each.option.nbytes, each.name))
    ]
    page.table("plan", ["tensor", "class", "coding", ">bytes", "because"], rows)
    page.show()


def _losses(report: ConversionReport) -> list[str]:
    """A recipe can find nothing worth its bytes, which looks like success and may not be what was wanted."""
    lost = sum(each.change == "unchanged" for each in report.tensors)
    return [f"{lost} tensors differ and keep nothing of their change, so they stay as in the base"] if lost else []


def _show(report: ConversionReport) -> None:
    page = render.Page()
    tuned = render.share(report.pack_bytes, report.tuned_bytes)
    page.fields(
        {
            "pack": str(report.pack),
            "pack id": report.pack_id,
            "recipe": report.recipe,
            "size": f"{render.size(report.pack_bytes)}, {tuned} of tuned",
            "base": f"{render.size(report.base_bytes)} ({report.base_tensors} tensors)",
            "tuned": f"{render.size(report.tuned_bytes)} ({len(report.tensors)} tensors differ)",
            "side files": ", ".join(report.side_files) or "none",
        }
    )
    if not report.tensors:
        page.line("no tensor differs: the pack makes the base again")
    _classes(page, report)
    _worst(page, report)
    page.show()


def _classes(page: render.Page, report: ConversionReport) -> None:
    stored = sum(each.nbytes for each in report.tensors)
    classes: dict[str, list[TensorReport]] = {}
    for each in report.tensors:
        classes.setdefault(each.tensor_class, []).append(each)
    costs = {name: sum(each.nbytes for each in members) for name, members in classes.items()}
    rows = []
    for name, nbytes in sorted(costs.items(), key=lambda item: (-item[1], item[0])):
        elements = sum(each.elements for each in classes[name])
        rows.append(
            [
                name,
                str(len(classes[name])),
                str(elements),
                render.size(nbytes),
                render.share(nbytes, stored),
                render.bits_per_weight(nbytes, elements),
                render.loss(max((each.error for each in classes[name] if each.error is not None), default=None)),
            ]
        )
    headers = ["class", ">tensors", ">elements", ">bytes", ">share", ">bits/weight", ">worst error"]
    page.table("module classes", headers, rows)


def _worst(page: render.Page, report: ConversionReport) -> None:
    """The tensors that lose the largest share of their change."""
    lossy = sorted((each for each in report.tensors if each.error), key=lambda each: (-(each.error or 0.0), each.name))
    rows = [
        [each.name, each.tensor_class, _coding(each), render.size(each.nbytes), render.loss(each.error)]
        for each in lossy[:WORST]
    ]
    title = f"largest errors, {len(rows)} of {len(lossy)} tensors that are not exact"
    page.table(title, ["tensor", "class", "encoding", ">bytes", ">error"], rows)


def _coding(tensor: TensorReport) -> str:
    return " + ".join(tensor.encodings) or tensor.change
