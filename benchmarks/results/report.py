"""How every result file begins: what was run, when, and on what machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parents[1]


def write(name: str, module: str, title: str, body: str) -> Path:
    """Write ``results/<name>`` as Markdown: the title, how it was made, the body."""
    path = FOLDER / name
    made = [
        f"Command: `python -m {module}`",
        f"Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC; {commit()}",
        f"Machine: {machine()}",
        f"Software: Python {platform.python_version()}, {_versions('skillpack', 'numpy', 'zstandard', 'torch')}",
    ]
    lines = "\n".join(f"- {line}" for line in made)
    path.write_text(f"# {title}\n\nMeasured, not edited by hand.\n\n{lines}\n\n{body.strip()}\n", encoding="utf-8")
    return path


def machine() -> str:
    """Processor, cores this process may use, memory and system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {_cores()} cores, {memory:.0f} GiB of memory, {platform.system()} {platform.machine()}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    rule = [":--", *["--:"] * (len(headers) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headers, rule, *rows))


def show(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same table on the terminal, as wide as it needs to be where the output is a pipe."""
    table = Table(title=title, title_justify="left")
    for index, header in enumerate(headers):
        justify: Any = "right" if index else "left"
        table.add_column(header, justify=justify, no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; a container may own fewer than there are
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def _versions(*packages: str) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def commit() -> str:
    """The commit measured, and whether the library had changed since."""
    try:
        head = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", "skillpack_format", "tools")
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
    return f"commit {head}" + (" with uncommitted changes" if changed.strip() else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
