"""The right to write an output: one run at a time, and the names that its work has beside the target.

Two runs on one output exclude each other by ``flock`` on ``.NAME.skillpack-lock``. The system lets go of it when its
holder ends, however it ends, so a lock is never stale; a lock file that a kill leaves behind is empty of meaning.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from skillpack_format.errors import error

MAX_NAME_BYTES: Final = 200  # of a name within the 255 that file systems allow, the rest is for what is put around it


def beside(path: Path, what: str) -> Path:
    """``.NAME.skillpack-WHAT`` in the folder of ``path``: one name for each output, hidden, and nobody else's."""
    name = os.fsencode(path.name)
    if len(name) > MAX_NAME_BYTES:
        name = name[:MAX_NAME_BYTES] + hashlib.sha256(name).hexdigest()[:16].encode()
    return path.with_name(f".{os.fsdecode(name)}.skillpack-{what}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the output ``path`` alone; output.locked, naming who holds it, when another run does."""
    require_place(path)
    lock = beside(path, "lock")
    with output_errors(path):
        descriptor = _acquire(lock, path)
    try:
        yield
    finally:
        _release(lock, descriptor)


def _release(lock: Path, descriptor: int) -> None:
    with suppress(OSError):  # while it is held: whoever has it open already sees then that the name is gone
        os.unlink(lock)
    os.close(descriptor)


def require_place(path: Path) -> None:
    """Raise output.failed unless ``path`` names something in a folder that exists."""
    if path.name in ("", "..") or "\0" in path.name:
        raise error("output.failed", str(path), "does not name a file or a folder")
    if not path.parent.is_dir():
        raise error("output.failed", str(path), f"the folder {path.parent} does not exist")


def _acquire(lock: Path, path: Path) -> int:
    """A descriptor of the locked file that ``lock`` names now, not of one that its last holder has just removed."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).strip().decode("ascii", "replace") or "unknown"
            os.close(descriptor)
            raise error("output.locked", str(path), f"another run (process {holder}) is writing it") from None
        except OSError as found:  # the file stays: it may be the lock of another run
            os.close(descriptor)
            raise error("output.failed", str(path), f"{lock.name} cannot be locked: {found.strerror}") from found
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if _leads_to(lock, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)  # for the words of an error, nothing depends on it
                return descriptor
        except BaseException:
            _release(lock, descriptor)
            raise
        os.close(descriptor)


def _leads_to(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(lock, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
