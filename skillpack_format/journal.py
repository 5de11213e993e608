"""What a long work has finished, kept so that a run that was stopped can go on.

A journal is one file of records, each under a key made of everything its payload depends on: inputs, options, version.
A record counts only if its digest is right, so a journal that is torn, cut or forged by accident costs time and never
changes a result; it is therefore never forced to disk. It lies beside the output as ``.NAME.skillpack-journal``.

    record = key (32 bytes) | length of payload (8, little-endian) | SHA-256 of key, length and payload (32) | payload
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from skillpack_format import wire
from skillpack_format.closing import Closing
from skillpack_format.digest import sha256
from skillpack_format.durable import RunInterruptedError
from skillpack_format.errors import SkillPackError, error
from skillpack_format.locks import beside
from skillpack_format.output_files import OutputFile
from skillpack_format.sources import input_errors

MAGIC: Final = b"skillpack journal 1\n"
KEY_BYTES: Final = 32
HEAD_BYTES: Final = KEY_BYTES + 8 + 32
BLOCK_BYTES: Final = 1 << 20
MACHINE_FAILED: Final = 5  # exit status of what failed in the machine and not in the inputs (spec/errors.md)


def key_of(**depends_on: Any) -> bytes:
    """The key of a work that depends on these values: natural numbers, str, bytes, and lists and dicts of such."""
    return sha256(wire.write(depends_on))


class Journal(Closing):
    """An open journal. ``get`` and ``add`` may be called from many threads at once."""

    __slots__ = ("_end", "_file", "_lock", "_places", "path")

    def __init__(self, path: Path, *, shown_as: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._file = OutputFile(path, mode=0o600, shown_as=shown_as, resume=True)
        try:
            self._end = self._read_records()
            self._file.cut(self._end)
            if self._end == 0:
                self._end = self._file.write(MAGIC)
        except BaseException:
            self.close() if self._places else self.remove()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def get(self, key: bytes) -> bytes | None:
        """The payload added under ``key``, by this run or by one before it; None when there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        offset, nbytes = place
        payload = self._read(offset, nbytes)
        if len(payload) < nbytes:
            raise error("integrity.source-changed", str(self.path), "was cut while it was in use")
        return payload

    def add(self, key: bytes, payload: bytes) -> None:
        """Keep ``payload`` under ``key`` (32 bytes, see ``key_of``); a later one under the same key counts."""
        length = len(payload).to_bytes(8, "little")
        with self._lock:
            self._file.seek(self._end)  # not where a write that failed may have left off
            self._file.write(key + length + _digest(key, length, payload))
            self._file.write(payload)
            self._places[key] = (self._end + HEAD_BYTES, len(payload))
            self._end += HEAD_BYTES + len(payload)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Close and remove it: the work is done, or not worth going on with."""
        self._file.discard()

    def _read_records(self) -> int:
        """Find every whole record with the right digest; returns where the first other one begins."""
        if self._read(0, len(MAGIC)) != MAGIC:
            return 0
        at = len(MAGIC)
        while len(head := self._read(at, HEAD_BYTES)) == HEAD_BYTES:
            key, length, digest = head[:KEY_BYTES], head[KEY_BYTES:-32], head[-32:]
            nbytes = int.from_bytes(length, "little")
            if self._digest_at(at + HEAD_BYTES, nbytes, key + length) != digest:
                break
            self._places[key] = (at + HEAD_BYTES, nbytes)
            at += HEAD_BYTES + nbytes
        return at

    def _digest_at(self, offset: int, nbytes: int, start: bytes) -> bytes | None:
        """SHA-256 of ``start`` and a stretch of the file, None when the file ends before."""
        digest = hashlib.sha256(start)
        for at in range(0, nbytes, BLOCK_BYTES):
            count = min(BLOCK_BYTES, nbytes - at)
            block = self._read(offset + at, count)
            if len(block) < count:
                return None
            digest.update(block)
        return digest.digest()

    def _read(self, offset: int, nbytes: int) -> bytes:
        """Up to ``nbytes`` from ``offset`` on, fewer only where the file ends."""
        blocks = []
        with input_errors(self.path):
            while nbytes and (block := os.pread(self._file.fileno(), min(nbytes, BLOCK_BYTES), offset)):
                blocks.append(block)
                offset += len(block)
                nbytes -= len(block)
        return b"".join(blocks)


@contextmanager
def journal_of(path: Path) -> Iterator[Journal]:
    """The journal of the output ``path``, whose lock the caller holds.

    Gone when the block ends or finds that the inputs are wrong; kept, and named in the error, when the run was
    interrupted or the machine failed it (exit status 5), so that the same command can go on.
    """
    journal = Journal(beside(path, "journal"), shown_as=path)
    try:
        yield journal
    except KeyboardInterrupt as found:
        journal.close()
        raise RunInterruptedError(journal.path) from found
    except SkillPackError as found:
        if found.exit_status != MACHINE_FAILED or not len(journal):
            journal.remove()
            raise
        journal.close()
        message = f"{found.message}; what is done is kept in {journal.path.name}, and the same command goes on from it"
        raise error(found.code, found.where, message) from found
    except MemoryError:
        journal.close()
        raise
    except BaseException:
        journal.remove()
        raise
    journal.remove()


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
