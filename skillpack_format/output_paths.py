"""What the path of an output must be before any work: free, with room, and no input by any name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from skillpack_format.errors import SkillPackError, error
from skillpack_format.locks import beside, output_errors


def require_absent(path: Path, *, overwrite: bool = False) -> None:
    """Raise output.exists when there is anything at ``path``, a dangling link included, unless it may go."""
    if not overwrite and os.path.lexists(path):
        raise error("output.exists", str(path), "exists already and is not to be overwritten")


def require_space(path: Path, sizes: Iterable[int]) -> None:
    """Raise output.space when files of these sizes in bytes do not fit where ``path`` is to be written.

    Each takes whole blocks of the file system. What a stopped run left for ``path`` counts as free: it is used or goes.
    """
    with output_errors(path):
        status = os.statvfs(path.parent)
    block = status.f_frsize
    needed = sum(-(-nbytes // block) * block for nbytes in sizes)
    available = status.f_bavail * block + sum(map(_bytes_on_disk, (beside(path, "partial"), beside(path, "journal"))))
    if needed > available:
        raise error("output.space", str(path), f"{needed} bytes are needed, {available} are free")


def require_not_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise output.alias when ``output`` is an input, lies in one or holds one, by whatever name, link or mount.

    The files in an input folder count as inputs, wherever they lead; so do all of them against the names that work
    on ``output`` has beside it.
    """
    written = [output, *(beside(output, what) for what in ("partial", "journal", "lock", "exchanged", "old"))]
    real, identities = {os.path.realpath(each) for each in written}, {_identity(each) for each in written} - {None}
    above_output = _identities_upwards(output)
    for path in inputs:
        above_input = _identities_upwards(path)
        if os.path.realpath(path) in real or _identity(path) in above_output or above_input & identities:
            raise _alias(output, path)
        for entry in _entries(path):
            above_entry = _identities_upwards(entry) if entry.is_symlink() else {_identity(entry)}
            if above_entry & identities:
                raise _alias(output, entry)


def _alias(output: Path, path: Path) -> SkillPackError:
    return error("output.alias", str(output), f"is, holds or lies in the input {path}, which is never written")


def _bytes_on_disk(path: Path) -> int:
    """What removing ``path`` would give back, as far as that can be told."""
    with suppress(OSError):
        if not path.is_symlink() and path.is_dir():
            return sum(map(_bytes_on_disk, path.iterdir()))
        status = path.lstat()
        return status.st_blocks * 512 if status.st_nlink == 1 else 0
    return 0


def _entries(path: Path) -> list[Path]:
    """What lies in a folder; nothing in what is none."""
    with suppress(OSError):
        return sorted(path.iterdir())
    return []


def _identity(path: Path | str) -> tuple[int, int] | None:
    """Which file ``path`` leads to, whatever it is called; None when it leads nowhere."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identities_upwards(path: Path) -> set[tuple[int, int] | None]:
    """The identities of ``path`` and of every folder above it, as far as they exist."""
    resolved = Path(os.path.realpath(path))
    return {_identity(each) for each in (resolved, *resolved.parents)} - {None}
