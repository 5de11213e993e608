"""Files that are read: regular files only, every read complete, and a file that changes meanwhile is noticed.

Reads are positioned reads through a descriptor kept open. Nothing is memory-mapped: a mapped file that another process
truncates ends this process with SIGBUS, where a read can be refused in words.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from skillpack_format.closing import Closing
from skillpack_format.errors import error

# O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever. Regular files ignore it.
READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
HASH_BLOCK_BYTES: Final = 1 << 20

HASHED_BYTES: Final = 1 << 20  # at a time: read, and hashed while it is still in the cache of the processor


class SourceFile(Closing):
    """A regular file, open for reading from any number of threads. ``size`` is its length when it was opened."""

    __slots__ = ("_descriptor", "_identity", "mode", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        with input_errors(path):
            self._descriptor = os.open(path, READ_FLAGS)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise error("input.failed", str(path), "is not a regular file")
        self.size = status.st_size
        self.mode = stat.S_IMODE(status.st_mode)
        self._identity = _identity(status)

    def fileno(self) -> int:
        """The descriptor, for what the kernel does by itself."""
        return self._descriptor

    def read_at(self, offset: int, nbytes: int) -> bytearray:
        """Exactly ``nbytes`` from ``offset`` on; integrity.source-changed when the file ends before."""
        data = bytearray(nbytes)
        self.read_into(memoryview(data), offset)
        return data

    def sha256_at(self, offset: int, nbytes: int) -> bytes:
        """The SHA-256 of ``nbytes`` from ``offset`` on; never more than HASHED_BYTES of them are in memory."""
        digest = hashlib.sha256()
        block = memoryview(bytearray(min(nbytes, HASHED_BYTES)))
        for at in range(offset, offset + nbytes, HASHED_BYTES):
            piece = block[: min(HASHED_BYTES, offset + nbytes - at)]
            self.read_into(piece, at)
            digest.update(piece)
        return digest.digest()

    def read_into(self, rest: memoryview, offset: int) -> None:
        """Fill ``rest``, a view of bytes, from ``offset`` on; integrity.source-changed when the file ends before."""
        with input_errors(self.path):
            while rest:
                count = os.preadv(self._descriptor, [rest], offset)
                if count == 0:
                    message = f"ends before byte {offset + len(rest)}; it had {self.size} bytes when it was opened"
                    raise error("integrity.source-changed", str(self.path), message)
                rest = rest[count:]
                offset += count

    def sha256(self) -> bytes:
        """The SHA-256 of the whole file, read block by block."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, HASH_BLOCK_BYTES):
            digest.update(self.read_at(offset, min(HASH_BLOCK_BYTES, self.size - offset)))
        return digest.digest()

    def require_unchanged(self) -> None:
        """Raise integrity.source-changed unless the path still leads to the file opened, as it was then."""
        try:
            status = os.stat(self.path)
        except OSError as found:
            message = f"cannot be found again: {found.strerror}"
            raise error("integrity.source-changed", str(self.path), message) from found
        if _identity(status) != self._identity:
            raise error("integrity.source-changed", str(self.path), "was changed or replaced while it was being read")

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def input_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into input.failed at ``path``."""
    try:
        yield
    except OSError as found:
        raise error("input.failed", str(path), f"cannot be read: {found.strerror or found}") from found
    except ValueError as found:  # a NUL in the path never reaches the system
        raise error("input.failed", str(path), f"cannot be read: {found}") from found


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
