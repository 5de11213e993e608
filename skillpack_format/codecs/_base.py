"""What a codec is."""

from __future__ import annotations

from typing import Protocol


class Codec(Protocol):
    """The contract every module of this room signs with its constant CODEC."""

    @property
    def name(self) -> str:
        """The word in the file; equals the module's name."""

    def compress(self, chunk: bytes, *, thorough: bool) -> bytes:
        """The stored bytes, at most ``len(chunk)``. Not ``thorough``: quick, and near enough to compare codes."""

    def decompress(self, stored: bytes | memoryview, nbytes: int, where: str) -> bytes | memoryview:
        """Exactly ``nbytes`` bytes, or payload.frame. ``nbytes`` was computed from shapes and parameters."""
