"""Output that is all or nothing: the path named holds the complete old content or the complete new one, never a mix.

New content is made beside the target as ``.NAME.skillpack-partial``, forced to disk, put in place by one rename, and
the folder is forced to disk after it. Whoever does this holds the lock of the target (``locks.py``). A killed process
leaves its partial content behind: the next run on that output takes from it what it can prove and removes the rest. An
fsync that fails is final: the pages it lost cannot be found by asking again, so that content is given up.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from skillpack_format.errors import error
from skillpack_format.locks import beside, output_errors, require_place
from skillpack_format.output_files import OutputFile, is_own
from skillpack_format.output_paths import require_absent
from skillpack_format.sources import READ_FLAGS

AT_FDCWD: Final = -100  # linux/fcntl.h
RENAME_NOREPLACE: Final = 1  # linux/fs.h
RENAME_EXCHANGE: Final = 2


class RunInterruptedError(KeyboardInterrupt):
    """An interruption after which the work done so far lies in ``kept``; the same call goes on from it."""

    def __init__(self, kept: Path) -> None:
        super().__init__()
        self.kept = kept


@contextmanager
def atomic_file(path: Path, *, overwrite: bool) -> Iterator[OutputFile]:
    """The coming content of ``path``, published when the block ends and gone without a trace when it raises."""
    with atomic_path(path, overwrite=overwrite) as partial:
        file = OutputFile(partial, shown_as=path, resume=True)
        try:
            yield file
            file.finish()
        finally:
            with suppress(OSError):  # after finish there is nothing to close; before, the content is given up
                file.close()


@contextmanager
def atomic_path(path: Path, *, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """As ``atomic_file``, for a writer that wants a path: a file is there, and the writer forces its content to disk.

    The file is empty, or with ``resume`` holds what a stopped run left of it, of which nothing may be believed. With
    ``resume`` an interruption keeps it.
    """
    replaced_mode = _require_target(path, overwrite=overwrite, kind="regular file")
    partial = beside(path, "partial")
    with output_errors(path):
        _start_file(partial, is_private=replaced_mode is not None, resume=resume)
    with _gone_on_failure(partial, resume=resume):
        yield partial
        with output_errors(path):
            _publish_file(partial, path, overwrite=overwrite, replaced_mode=replaced_mode)
    with output_errors(path, "is in place, but may not survive a power failure"):
        _fsync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool, resume: Collection[str] = ()) -> Iterator[Path]:
    """A folder that becomes ``path`` when the block ends and is gone when it raises.

    It is empty, or holds what a stopped run left of the files named in ``resume``, of which nothing may be believed;
    with such names an interruption keeps it. An existing folder is exchanged in one step and then removed. Where the
    system cannot exchange (``_exchange``), a moment without a folder at ``path`` remains.
    """
    _end_exchange(path)
    replaced_mode = _require_target(path, overwrite=overwrite, kind="folder")
    partial, exchanged = beside(path, "partial"), beside(path, "exchanged")
    with output_errors(path):
        _start_folder(partial, is_private=replaced_mode is not None, kept=resume)
    with _gone_on_failure(partial, exchanged, resume=bool(resume)):
        yield partial
        with output_errors(path):
            if replaced_mode is not None:
                partial.chmod(replaced_mode)
            _fsync_tree(partial)
            if replaced_mode is None:
                _rename_new_folder(partial, path)
            else:
                os.rename(partial, exchanged)  # so that what is replaced never has the name of what can be gone on with
                _exchange(exchanged, path)
    kept = "" if replaced_mode is None else f" (what it replaced is kept in {exchanged.name})"
    with output_errors(path, f"is in place, but may not survive a power failure{kept}"):
        _fsync_folder(path.parent)  # when this fails, the folder replaced stays: a crash may bring its name back
    _remove(exchanged)


def _require_target(path: Path, *, overwrite: bool, kind: str) -> int | None:
    """The permissions of what is to be replaced at ``path``, None when nothing is. Links are not followed."""
    require_place(path)
    require_absent(path, overwrite=overwrite)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as found:
        raise error("output.failed", str(path), f"cannot be written: {found.strerror}") from found
    is_kind = stat.S_ISDIR(mode) if kind == "folder" else stat.S_ISREG(mode)
    if not is_kind:
        raise error("output.exists", str(path), f"is not a {kind}; nothing else is ever overwritten")
    return stat.S_IMODE(mode) & 0o777


@contextmanager
def _gone_on_failure(partial: Path, *others: Path, resume: bool) -> Iterator[None]:
    """Remove what is named when the block raises, but not ``partial`` if it was interrupted and can be gone on with."""
    try:
        yield
    except BaseException as found:
        is_kept = resume and isinstance(found, KeyboardInterrupt) and os.path.lexists(partial)
        for path in others if is_kept else (partial, *others):
            _remove(path)
        if is_kept:
            raise RunInterruptedError(partial) from found
        raise


def _start_file(partial: Path, *, is_private: bool, resume: bool) -> None:
    """Have a file at ``partial``. What replaces a private file is never public; publication sets the final mode."""
    if os.path.lexists(partial):
        if not (resume and is_own(partial.lstat(), stat.S_IFREG)):
            _remove(partial)
        elif is_private:
            partial.chmod(0o600)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600 if is_private else 0o666))


def _start_folder(partial: Path, *, is_private: bool, kept: Collection[str]) -> None:
    """Have a folder at ``partial`` with nothing in it but files of the names ``kept``."""
    if os.path.lexists(partial):
        if not (kept and is_own(partial.lstat(), stat.S_IFDIR)):
            _remove(partial)
        elif is_private:
            partial.chmod(0o700)
    partial.mkdir(0o700 if is_private else 0o777, exist_ok=True)
    for name in sorted(os.listdir(partial)):
        if name not in kept or not is_own((partial / name).lstat(), stat.S_IFREG):
            _remove(partial / name)


def _remove(path: Path) -> None:
    """Remove whatever is at ``path``, links unfollowed, as far as the system lets us."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _publish_file(partial: Path, path: Path, *, overwrite: bool, replaced_mode: int | None) -> None:
    if overwrite:
        if replaced_mode is not None:
            partial.chmod(replaced_mode)
            _fsync_path(partial)  # or a power failure could publish the private mode it had until here
        os.replace(partial, path)
    elif not _rename_with(RENAME_NOREPLACE, partial, path):
        os.link(partial, path)  # refuses an existing name too, where the file system knows hard links
        os.unlink(partial)


def _rename_new_folder(partial: Path, path: Path) -> None:
    if not _rename_with(RENAME_NOREPLACE, partial, path):
        # folders cannot be linked; a plain rename replaces at most an empty folder made this very moment
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(partial, path)


def _exchange(exchanged: Path, path: Path) -> None:
    """Swap two folders; without help from the system by three renames, undone when the second one fails."""
    if _rename_with(RENAME_EXCHANGE, exchanged, path):
        return
    aside = beside(path, "old")
    os.rename(path, aside)
    try:
        os.rename(exchanged, path)
    except BaseException:
        os.rename(aside, path)
        raise
    os.rename(aside, exchanged)


def _end_exchange(path: Path) -> None:
    """Bring an exchange that was stopped to an end: the old folder back where there is no new one, and away else."""
    aside = beside(path, "old")
    with output_errors(path):
        if os.path.lexists(aside) and not os.path.lexists(path):
            os.rename(aside, path)
    _remove(aside)
    _remove(beside(path, "exchanged"))


def _rename_with(flags: int, source: Path, target: Path) -> bool:
    """Linux renameat2, which Python does not offer; False where kernel, C library or file system lack it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number))


def _fsync_tree(folder: Path) -> None:
    """Force every file and folder to disk, children before parents."""
    for root, _, names in os.walk(folder, topdown=False, onerror=_reraise):
        for name in names:
            _fsync_path(Path(root, name))
        _fsync_folder(Path(root))


def _reraise(found: OSError) -> NoReturn:
    raise found


def _fsync_folder(folder: Path) -> None:
    try:
        _fsync_path(folder)
    except OSError as found:
        if found.errno != errno.EINVAL:  # some network and FUSE file systems cannot sync a folder
            raise


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, READ_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
