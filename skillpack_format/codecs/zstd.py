"""``zstd``: a chunk is one zstd frame under a pinned profile, or as it is when that is no longer (spec/codecs.md).

zstandard's ``max_output_size`` is no limit once a frame declares its size, so the declared size is compared with the
computed one before anything is decompressed, and the decompressor then allocates exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from skillpack_format.codecs._base import Codec
from skillpack_format.errors import error

LEVEL: Final = 19
# Codes have no long matches to find: what zstd gains on them is the entropy coding of its literals. This setting does
# little else, within a tenth of level 19 at a hundred times its speed.
ENTROPY: Final = {"window_log": 17, "hash_log": 10, "chain_log": 6, "search_log": 1, "min_match": 7}
# Runs of zeros and short repeats pay when they are weighed against literals, and looking far for them does not: within
# 0.6 % of level 19 on codes, below it on most and on differences, at four times its speed (decision 0022).
WEIGHED: Final = {
    "window_log": 17,
    "hash_log": 12,
    "chain_log": 12,
    "search_log": 1,
    "min_match": 5,
    "target_length": 64,
}
WORTH_MORE: Final = 0.95  # a chunk that the entropy stage leaves above this share is left at that
HAS_MATCHES: Final = 0.9  # a chunk that weighing leaves below this share of that has matches worth looking for
MAX_WINDOW: Final = 1 << 24  # codecs.md: the largest chunk is also the largest window
_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Zstd:
    name = "zstd"

    def compress(self, chunk: bytes, *, thorough: bool) -> bytes:
        import zstandard  # noqa: PLC0415 - inspect names this codec and decodes nothing

        def compressed(strategy: int, settings: Mapping[str, int]) -> bytes:
            found = zstandard.ZstdCompressionParameters(strategy=strategy, write_checksum=False, **settings)
            return zstandard.ZstdCompressor(compression_params=found).compress(chunk)

        tried = [compressed(zstandard.STRATEGY_FAST, ENTROPY)]
        if len(tried[0]) < WORTH_MORE * len(chunk):
            tried.append(compressed(zstandard.STRATEGY_BTULTRA, WEIGHED))
            if thorough and len(tried[1]) < HAS_MATCHES * len(tried[0]):
                tried.append(zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(chunk))
        return min(chunk, *tried, key=len)

    def decompress(self, stored: bytes | memoryview, nbytes: int, where: str) -> bytes | memoryview:
        if len(stored) == nbytes:
            return stored
        if len(stored) > nbytes:
            raise error("storage.chunk-length", where, f"a chunk of {nbytes} bytes is stored in {len(stored)}")
        import zstandard  # noqa: PLC0415

        _require_profile(bytes(stored[:18]), nbytes, where)
        try:
            chunk = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as found:
            raise error("payload.frame", where, f"the zstd frame does not decode: {found}") from None
        if len(chunk) != nbytes:
            raise error("payload.frame", where, f"the zstd frame holds {len(chunk)} bytes, {nbytes} are due")
        return chunk


def _require_profile(head: bytes, nbytes: int, where: str) -> None:
    """The frame header says what version 1 allows: see spec/codecs.md for each condition."""
    if head[:4] != _MAGIC:
        raise error("payload.frame", where, "the chunk does not begin with a zstd frame")
    import zstandard  # noqa: PLC0415

    try:
        frame = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as found:
        raise error("payload.frame", where, f"the zstd frame header is malformed: {found}") from None
    if frame.content_size != nbytes:
        raise error("payload.frame", where, f"the zstd frame declares {frame.content_size} bytes, {nbytes} are due")
    if head[4] & 0x0F or frame.window_size > MAX_WINDOW:  # dictionary id, checksum and reserved flags
        raise error("payload.frame", where, "the zstd frame uses a dictionary, a checksum or a window above 2^24")


CODEC: Final[Codec] = Zstd()
