"""Writing a pack: contents as they come, then the header, then the file appears at once.

The header comes first in the file but is known last, so stored chunks wait in an unnamed temporary file beside the
target. Same contents and manifest, same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

from skillpack_format import wire
from skillpack_format.container import write_header
from skillpack_format.contents import StoredContent, plan
from skillpack_format.durable import atomic_file, output_errors
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.manifest import Manifest, parse
from skillpack_format.storage import Segment, Storage, align, lay_out
from skillpack_format.storage import parse as parse_storage

CODEC: Final = "zstd"


class PackWriter:
    """Collects stored contents in their final order; ``seal`` writes the file. A context manager."""

    def __init__(
        self, path: Path, *, chunk_bytes: int, overwrite: bool = False, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.path = path
        self._chunk_bytes = chunk_bytes
        self._overwrite = overwrite
        self._limits = limits
        self._segments: list[Segment] = []
        self._end = 0
        with output_errors(path):
            self._waiting = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, found: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.close()

    def add(self, content: StoredContent) -> None:
        """Append the next content, in MANIFEST's order."""
        with output_errors(self.path):
            self._waiting.write(bytes(align(self._end) - self._end))
            self._end = align(self._end)
            for chunk in content.chunks:
                self._waiting.write(chunk)
                self._end += len(chunk)
        self._segments.append(Segment(content.codec, content.table))

    def seal(self, manifest: Manifest) -> int:
        """Write the file durably and return its size in bytes; what no reader would take is refused first."""
        document = manifest.to_bytes()
        storage = wire.write(Storage(self._chunk_bytes, tuple(self._segments)).to_plain())
        contents = plan(parse(wire.read(document, self._limits, "MANIFEST"), self._limits), self._limits)
        planes = [content.planes for content in contents.all]
        lay_out(parse_storage(wire.read(storage, self._limits, "STORAGE"), self._limits), planes, self._end)
        header = write_header(document, storage, self._end)
        with output_errors(self.path):
            self._waiting.seek(0)
            with atomic_file(self.path, overwrite=self._overwrite) as out:
                out.write(header)
                shutil.copyfileobj(self._waiting, out, self._chunk_bytes)
        return len(header) + self._end
