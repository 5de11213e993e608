"""Output that is all or nothing: the path named holds the complete old content or the complete new one, never a mix.

New content is written beside the target under a name of its own, forced to disk, put in place by one rename, and the
folder is forced to disk after it. A process killed on the way leaves a ``.NAME.RANDOM.partial`` behind that nothing
ever reads. An fsync that fails is final: the pages it lost cannot be found by asking again.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from skillpack_format.errors import error
from skillpack_format.sources import READ_FLAGS, SourceFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COPY_BLOCK_BYTES: Final = 1 << 20
AT_FDCWD: Final = -100  # linux/fcntl.h
RENAME_NOREPLACE: Final = 1  # linux/fs.h
RENAME_EXCHANGE: Final = 2


class OutputFile(io.FileIO):
    """A new file being written: never one that existed, every write complete, every failure an output.* error.

    ``shown_as`` is the path that errors name, where ``path`` is a passing one.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, shown_as: Path | None = None) -> None:
        self.path = path
        self.shown_as = shown_as or path
        with output_errors(self.shown_as):
            super().__init__(os.fspath(path), "xb", opener=lambda name, flags: os.open(name, flags, mode))

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data`` and return its size in bytes."""
        return write_exact(self.fileno(), data, str(self.shown_as))

    def finish(self) -> None:
        """Force the content to disk and close."""
        with output_errors(self.shown_as):
            os.fsync(self.fileno())
            self.close()

    def discard(self) -> None:
        """Close and remove the file, whatever state it is in."""
        with suppress(OSError):
            self.close()
        with suppress(OSError):
            self.path.unlink()


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, shown_as: Path | None = None) -> Iterator[OutputFile]:
    """A file that must not exist yet, durable when the block ends and gone when it raises."""
    file = OutputFile(path, mode=mode, shown_as=shown_as)
    try:
        yield file
        file.finish()
    except BaseException:
        file.discard()
        raise


@contextmanager
def atomic_file(path: Path, *, overwrite: bool) -> Iterator[OutputFile]:
    """The coming content of ``path``, published when the block ends and gone without a trace when it raises."""
    # content that replaces a private file must not be public for a moment; publication sets the final mode
    mode = 0o600 if os.path.lexists(path) else 0o666
    with atomic_path(path, overwrite=overwrite) as partial, new_file(partial, mode=mode, shown_as=path) as file:
        yield file


@contextmanager
def atomic_path(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """As ``atomic_file``, for a writer that wants a path: it makes the file there and forces it to disk."""
    replaced_mode = _require_target(path, overwrite=overwrite, kind="regular file")
    partial = _partial_beside(path)
    try:
        yield partial
        with output_errors(path):
            _publish_file(partial, path, overwrite=overwrite, replaced_mode=replaced_mode)
        with output_errors(path, "is in place, but may not survive a power failure"):
            _fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder that becomes ``path`` when the block ends and is gone when it raises.

    An existing folder is exchanged in one step and then removed; what cannot be removed of it stays as a partial
    folder. Where the system cannot exchange (``_exchange``), a moment without a folder at ``path`` remains.
    """
    replaced_mode = _require_target(path, overwrite=overwrite, kind="folder")
    partial = _partial_beside(path)
    with output_errors(path):
        partial.mkdir(0o777 if replaced_mode is None else 0o700)
    try:
        yield partial
        with output_errors(path):
            if replaced_mode is not None:
                partial.chmod(replaced_mode)
            _fsync_tree(partial)
            if replaced_mode is None:
                _rename_new_folder(partial, path)
            else:
                _exchange(partial, path)
        with output_errors(path, "is in place, but may not survive a power failure"):
            _fsync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # unfinished content, or after an exchange the old one


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a regular file into a new one, durably. Permissions are kept, and the owner may write."""
    with SourceFile(source) as origin, new_file(target, mode=(origin.mode & 0o777) | 0o600) as copy:
        for offset in range(0, origin.size, COPY_BLOCK_BYTES):
            copy.write(origin.read_at(offset, min(COPY_BLOCK_BYTES, origin.size - offset)))
        origin.require_unchanged()


def write_exact(descriptor: int, data: ReadableBuffer, where: str = "") -> int:
    """Write all of ``data`` (C-contiguous), however little each call takes, and return its size in bytes."""
    whole = memoryview(data)
    rest = whole.cast("B") if whole.nbytes else memoryview(b"")  # an empty array cannot be cast
    with output_errors(where):
        while rest:
            count = os.write(descriptor, rest)
            if count == 0:
                raise OSError(errno.EIO, "the system took none of the bytes")
            rest = rest[count:]
    return whole.nbytes


def require_absent(path: Path, *, overwrite: bool = False) -> None:
    """Raise output.exists when there is anything at ``path``, a dangling link included, unless it may go."""
    if not overwrite and os.path.lexists(path):
        raise error("output.exists", str(path), "exists already and is not to be overwritten")


def require_space(folder: Path, nbytes: int) -> None:
    """Raise output.space when the file system of ``folder`` has less than ``nbytes`` to give."""
    with output_errors(folder):
        status = os.statvfs(folder)
    available = status.f_bavail * status.f_frsize
    if nbytes > available:
        raise error("output.space", str(folder), f"{nbytes} bytes are needed, {available} are free")


def require_not_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise output.alias when ``output`` is an input, lies in one or holds one, by whatever name, link or mount."""
    above_output = _identities_upwards(output)
    for path in inputs:
        same_path = os.path.realpath(path) == os.path.realpath(output)
        if same_path or _identity(path) in above_output or _identity(output) in _identities_upwards(path):
            raise error("output.alias", str(output), f"is, holds or lies in the input {path}, which is never written")


@contextmanager
def output_errors(path: Path | str, claim: str = "cannot be written") -> Iterator[None]:
    """Turn every OSError that passes through into an output.* error at ``path`` that says ``claim`` and why."""
    try:
        yield
    except OSError as found:
        code = "output.failed"
        if found.errno in (errno.ENOSPC, errno.EDQUOT):
            code = "output.space"
        elif found.errno in (errno.EEXIST, errno.ENOTEMPTY):
            code = "output.exists"
        raise error(code, str(path), f"{claim}: {found.strerror or found}") from found


def _require_target(path: Path, *, overwrite: bool, kind: str) -> int | None:
    """The permissions of what is to be replaced at ``path``, None when nothing is. Links are not followed."""
    if path.name in ("", "..") or "\0" in path.name:
        raise error("output.failed", str(path), f"does not name a {kind}")
    if not path.parent.is_dir():
        raise error("output.failed", str(path), f"the folder {path.parent} does not exist")
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


def _partial_beside(path: Path) -> Path:
    """A name nobody has; the target's is cut so that a long one still leaves room for the rest."""
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(8)}.partial")


def _publish_file(partial: Path, path: Path, *, overwrite: bool, replaced_mode: int | None) -> None:
    if overwrite:
        if replaced_mode is not None:
            partial.chmod(replaced_mode)
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


def _exchange(partial: Path, path: Path) -> None:
    """Swap two folders; without help from the system by three renames, undone when the second one fails."""
    if _rename_with(RENAME_EXCHANGE, partial, path):
        return
    aside = partial.with_name(f"{partial.name}.old")
    os.rename(path, aside)
    try:
        os.rename(partial, path)
    except BaseException:
        os.rename(aside, path)
        raise
    os.rename(aside, partial)


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


def _identity(path: Path | str) -> tuple[int, int] | None:
    """Which file ``path`` leads to, whatever it is called; None when it leads nowhere."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identities_upwards(path: Path) -> set[tuple[int, int]]:
    """The identities of ``path`` and of every folder above it, as far as they exist."""
    resolved = Path(os.path.realpath(path))
    return {found for found in map(_identity, (resolved, *resolved.parents)) if found is not None}
