"""Options that several commands share, and the forms in which values are written on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from skillpack_format.errors import error
from skillpack_format.planning import Budget, Share

PATH: Final = click.Path(path_type=Path)  # whether it exists is for the library to say, in its own words and codes

threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    show_default="every core",
    metavar="N",
    help="Tensors in work at a time; the result is the same whatever N.",
)
device = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where to compute; the result is the same. cuda is every GPU, cuda:N one. Unmeasured: no GPU was at hand.",
)
force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and an error too.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print the path of the output and nothing else.")
no_side_files = click.option(
    "--no-side-files", is_flag=True, help="Leave tokenizer, configuration and chat template alone."
)


def bench(name: str) -> dict[str, Any]:
    """The ``bench`` of a library call as a keyword; none for cpu, whose bench needs no torch."""
    if name == "cpu":
        return {}
    try:
        from skillpack_format.torch_bridge import bench_on  # noqa: PLC0415 - an extra, and seconds to import
    except ModuleNotFoundError as found:
        message = f"{name!r} needs torch, and {found.name} is not installed: pip install 'skillpack[torch]'"
        raise error("unsupported.device", "", message) from None
    return {"bench": bench_on(name)}


def key_values(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` of a repeated option, as a click callback."""
    found: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        if key in found:
            raise click.BadParameter(f"{key!r} is given twice")
        found[key] = value
    return found


UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def budget(_: click.Context, __: click.Parameter, text: str | None) -> Budget | Share | None:
    """``300MB``, ``1.5GiB``, ``5%`` or plain bytes, as a click callback."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(%|[kmg]?i?b?)", text.strip(), re.IGNORECASE | re.ASCII)
    unit = found[2].upper() if found else "?"
    if not found or (unit != "%" and unit not in UNITS):
        raise click.BadParameter(f"{text!r} is no size such as 300MB, 1.5GiB, 5% or 1000000")
    number = float(found[1])
    return Share(number / 100) if unit == "%" else Budget(int(number * UNITS[unit]))


def schedule(_: click.Context, __: click.Parameter, text: str | None) -> tuple[tuple[int, float], ...] | None:
    """``BITS:SHARE,...``, the strongest components first, as a click callback."""
    if text is None:
        return None
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((int(bits), float(share)) for bits, share in pairs)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not BITS:SHARE,... such as 8:0.02,4:0.18,2:0.8") from None
