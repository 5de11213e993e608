"""Every cap on what a file may ask for, named once (spec/limits.md). Only the caller can raise one."""

from __future__ import annotations

from dataclasses import dataclass, fields

from skillpack_format.errors import error


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Defaults of version 1. Sizes are bytes unless the name says otherwise."""

    manifest_bytes: int = 1 << 26
    storage_bytes: int = 1 << 26
    header_nodes: int = 1 << 23
    header_depth: int = 8
    tensors: int = 1 << 18
    tensor_rank: int = 8
    tensor_bytes: int = 1 << 36
    tensor_products: int = 1 << 44
    name_bytes: int = 512
    components: int = 8
    chunk_bytes: int = 1 << 24
    metadata_entries: int = 256
    metadata_bytes: int = 1 << 20
    side_files: int = 64
    side_file_bytes: int = 1 << 26
    shards: int = 1 << 12
    layout_bytes: int = 1 << 27
    checkpoint_header_bytes: int = 100_000_000
    signature_bytes: int = 1 << 20

    def require(self, name: str, asked: int, where: str) -> None:
        """Raise limit.exceeded when ``asked`` is above the limit called ``name``."""
        allowed = getattr(self, name)
        if asked > allowed:
            raise error("limit.exceeded", where, f"asks for {name} = {asked}, the limit is {allowed}")

    def to_plain(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


DEFAULT_LIMITS = Limits()
