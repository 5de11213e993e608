"""``raw``: every chunk as it is (spec/codecs.md)."""

from __future__ import annotations

from typing import Final

from skillpack_format.codecs._base import Codec
from skillpack_format.errors import error


class Raw:
    name = "raw"

    def compress(self, chunk: bytes, *, thorough: bool) -> bytes:
        return chunk

    def decompress(self, stored: bytes | memoryview, nbytes: int, where: str) -> bytes | memoryview:
        if len(stored) != nbytes:
            raise error("storage.chunk-length", where, f"a raw chunk of {nbytes} bytes is stored in {len(stored)}")
        return stored


CODEC: Final[Codec] = Raw()
