"""Bytes into new files: all of them, durably, from a copy by the kernel where it can; no file is ever taken over."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skillpack_format.errors import error
from skillpack_format.locks import output_errors
from skillpack_format.sources import SourceFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COPY_BLOCK_BYTES: Final = 1 << 20
KERNEL_COPY_BYTES: Final = 1 << 26  # in one call, which no interruption ends


class OutputFile(io.FileIO):
    """A file being written: every write complete, every failure an output.* error.

    It must not exist yet. With ``resume`` it may, if it is a regular file of this user with no other name, so that it
    is nobody's input; its content can be read then. ``shown_as`` is the path that errors name, where ``path`` passes.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, shown_as: Path | None = None, resume: bool = False) -> None:
        self.path = path
        self.shown_as = shown_as or path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if resume else os.O_EXCL)
        with output_errors(self.shown_as):
            super().__init__(os.fspath(path), "r+b", opener=lambda name, _: os.open(name, flags, mode))
            if resume and not is_own(os.fstat(self.fileno()), stat.S_IFREG):
                self.close()
                raise error("output.failed", str(self.shown_as), f"{path.name} is in the way, and not of this program")

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data`` and return its size in bytes."""
        return write_exact(self.fileno(), data, str(self.shown_as))

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        """Write all of ``data`` from ``offset`` on, from any thread."""
        rest = _as_bytes(data)
        with output_errors(self.shown_as):
            while rest:
                count = os.pwrite(self.fileno(), rest, offset)
                _require_progress(count)
                rest = rest[count:]
                offset += count

    def copy_at(self, offset: int, source: SourceFile, start: int, nbytes: int) -> None:
        """``nbytes`` of ``source`` from ``start`` on to ``offset``, from any thread, moved by the kernel where it can.

        A file system with reflinks shares the blocks instead of copying them. Whoever needs to know what was copied
        reads it back: ``source`` may have changed since it was last read.
        """
        done = 0
        with suppress(OSError, AttributeError):  # not here, or not between these: by hand, which says what is wrong
            while done < nbytes:
                wanted = min(nbytes - done, KERNEL_COPY_BYTES)
                count = os.copy_file_range(source.fileno(), self.fileno(), wanted, start + done, offset + done)
                if count == 0:
                    break
                done += count
        while done < nbytes:
            count = min(nbytes - done, COPY_BLOCK_BYTES)
            self.write_at(offset + done, source.read_at(start + done, count))
            done += count

    def begin_writing(self, offset: int, nbytes: int) -> None:
        """Have the system begin to write these bytes to disk, so that ``finish`` has less to wait for."""
        with suppress(OSError, AttributeError):  # where there is no such advice, finish waits for all of it
            os.posix_fadvise(self.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)  # on Linux it writes what is dirty

    def cut(self, nbytes: int) -> None:
        """Keep the first ``nbytes`` and go on writing after them."""
        with output_errors(self.shown_as):
            os.ftruncate(self.fileno(), nbytes)
            self.seek(nbytes)

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


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a regular file into a new one, durably. Permissions are kept, and the owner may write."""
    with SourceFile(source) as origin, new_file(target, mode=(origin.mode & 0o777) | 0o600) as copy:
        copy.copy_at(0, origin, 0, origin.size)
        origin.require_unchanged()


def write_exact(descriptor: int, data: ReadableBuffer, where: str = "") -> int:
    """Write all of ``data`` (C-contiguous), however little each call takes, and return its size in bytes."""
    whole = rest = _as_bytes(data)
    with output_errors(where):
        while rest:
            count = os.write(descriptor, rest)
            _require_progress(count)
            rest = rest[count:]
    return whole.nbytes


def is_own(status: os.stat_result, kind: int) -> bool:
    """Whether a file or folder can only be this program's: of this user and, if a file, without a second name."""
    is_kind = stat.S_IFMT(status.st_mode) == kind
    return is_kind and status.st_uid == os.geteuid() and (kind == stat.S_IFDIR or status.st_nlink == 1)


def _as_bytes(data: ReadableBuffer) -> memoryview:
    whole = memoryview(data)
    return whole.cast("B") if whole.nbytes else memoryview(b"")  # an empty array cannot be cast


def _require_progress(count: int) -> None:
    if count == 0:
        raise OSError(errno.EIO, "the system took none of the bytes")
