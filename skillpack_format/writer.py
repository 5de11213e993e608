"""Writing a pack: contents as they come, then the header, then the file appears at once.

The header comes first in the file but is known last, so stored chunks wait in a journal beside the target, from which a
run that was stopped takes them again. Same contents and manifest, same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from skillpack_format import wire
from skillpack_format.container import write_header
from skillpack_format.contents import StoredContent, plan
from skillpack_format.durable import atomic_file
from skillpack_format.errors import error
from skillpack_format.journal import Journal, journal_of, key_of
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.locks import locked
from skillpack_format.manifest import Manifest, parse
from skillpack_format.output_paths import require_absent, require_space
from skillpack_format.storage import Segment, Storage, lay_out
from skillpack_format.storage import parse as parse_storage

CODEC: Final = "zstd"


class PackWriter:
    """Collects stored contents in their final order; ``seal`` writes the file.

    A context manager: inside of it this run alone may write ``path``, and ``journal`` keeps what its work has finished.
    """

    journal: Journal

    def __init__(
        self, path: Path, *, chunk_bytes: int, overwrite: bool = False, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.path = path
        self._chunk_bytes = chunk_bytes
        self._overwrite = overwrite
        self._limits = limits
        self._segments: list[Segment] = []
        self._waiting: list[bytes] = []  # keys in the journal
        self._end = 0
        self._stack = ExitStack()

    def __enter__(self) -> PackWriter:
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            require_absent(self.path, overwrite=self._overwrite)
            self.journal = stack.enter_context(journal_of(self.path))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, found: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, found, trace)

    def has(self, content: StoredContent) -> bool:
        """Whether the stored chunks of ``content`` are there already, so that ``add`` needs none."""
        return _key(content) in self.journal

    def keep(self, content: StoredContent) -> bytes:
        """Have the stored chunks of ``content`` wait, wherever it will be added; returns their key in the journal."""
        key = _key(content)
        if key not in self.journal:
            self.journal.add(key, b"".join(content.chunks))
        return key

    def add(self, content: StoredContent) -> None:
        """Append the next content, in MANIFEST's order."""
        key = self.keep(content)
        self._waiting.append(key)
        self._end += content.nbytes
        self._segments.append(Segment(content.codec, content.table))

    def seal(self, manifest: Manifest) -> int:
        """Write the file durably and return its size in bytes; what no reader would take is refused first."""
        document, storage = manifest.to_bytes(), _storage_bytes(self._chunk_bytes, self._segments)
        contents = plan(parse(wire.read(document, self._limits, "MANIFEST"), self._limits), self._limits)
        place = parse_storage(wire.read(storage, self._limits, "STORAGE"), self._limits, len(contents.all))
        lay_out(place, (content.planes for content in contents.all), self._end)
        header = write_header(document, storage, self._end)
        nbytes = len(header) + self._end
        require_space(self.path, [nbytes])
        with atomic_file(self.path, overwrite=self._overwrite) as out:
            out.write(header)
            for key in self._waiting:
                out.write(self._stored(key))
        return nbytes

    def _stored(self, key: bytes) -> bytes:
        stored = self.journal.get(key)
        if stored is None:
            raise error("output.failed", str(self.path), "stored chunks are missing from the journal")
        return stored


def pack_bytes(manifest: Manifest, contents: Iterable[StoredContent], chunk_bytes: int) -> int:
    """The size of the file that ``PackWriter`` makes of these."""
    listed = list(contents)
    segments = [Segment(each.codec, each.table) for each in listed]
    data = sum(each.nbytes for each in listed)
    return len(write_header(manifest.to_bytes(), _storage_bytes(chunk_bytes, segments), data)) + data


def _storage_bytes(chunk_bytes: int, segments: Iterable[Segment]) -> bytes:
    return wire.write(Storage(chunk_bytes, tuple(segments)).to_plain())


def _key(content: StoredContent) -> bytes:
    """Where stored chunks wait: their lengths and checksums, and what they hold, say which they are."""
    return key_of(sha256=content.sha256, codec=content.codec, table=content.table)
