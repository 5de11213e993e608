"""Zstandard frames written by hand, block by block (RFC 8878), legal and not."""

from __future__ import annotations

from collections.abc import Sequence

MAGIC = bytes.fromhex("28b52ffd")
RAW, RLE, COMPRESSED, RESERVED = range(4)
LITERALS_RAW, LITERALS_RLE = 0, 1


def block(kind: int, data: bytes, size: int | None = None, last: bool = True) -> bytes:
    """A block; ``size`` is what its header says (for RLE the regenerated size)."""
    size = len(data) if size is None else size
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + data


def frame(
    blocks: bytes,
    content: int | None,
    flag: int | None = None,
    window: int | None = None,
    bits: int = 0,
    extra: bytes = b"",
    magic: bytes = MAGIC,
) -> bytes:
    """A frame. ``flag`` is the Frame_Content_Size_flag, ``window`` the window descriptor of a frame that is not a
    single segment, ``bits`` is or-ed to the descriptor, ``extra`` stands where a dictionary id would."""
    if content is None:
        size, flag = b"", 0
    else:
        if flag is None:
            flag = 0 if content < 256 and window is None else 1 if 256 <= content < 65792 else 2
        size = (content - (256 if flag == 1 else 0)).to_bytes((1, 2, 4, 8)[flag], "little")
    single = window is None
    head = bytes([flag << 6 | single << 5 | bits]) + (b"" if window is None else bytes([window]))
    return magic + head + extra + size + blocks


def run(byte: int, count: int) -> bytes:
    """A frame of one RLE block."""
    return frame(block(RLE, bytes([byte]), count), count)


def literals(kind: int, data: bytes, size: int) -> bytes:
    """The literals section, raw or RLE, with the shortest header."""
    if size < 32:
        return bytes([kind | size << 3]) + data
    if size < 4096:
        return (kind | 1 << 2 | size << 4).to_bytes(2, "little") + data
    return (kind | 3 << 2 | size << 4).to_bytes(3, "little") + data


def huffman_literals(weights: Sequence[int], stream: bytes, regenerated: int) -> bytes:
    """Compressed literals, one stream, the weights written directly (4 bits each, the last left out)."""
    nibbles = [*weights, 0] if len(weights) % 2 else list(weights)
    tree = bytes([127 + len(weights)]) + bytes(
        high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2], strict=True)
    )
    body = tree + stream
    return (2 | 0 << 2 | regenerated << 4 | len(body) << 14).to_bytes(3, "little") + body


def bitstream(fields: Sequence[tuple[int, int]]) -> bytes:
    """(value, bits) in the order in which a decoder reads them: backwards from the end, after a bit 1."""
    total, at = 0, 0
    for value, bits in reversed(fields):
        total |= value << at
        at += bits
    total |= 1 << at
    return total.to_bytes(at // 8 + 1, "little")


def sequences(count: int, modes: int, tables: bytes, bits: Sequence[tuple[int, int]]) -> bytes:
    """The sequences section for fewer than 128 sequences."""
    if count == 0:
        return b"\0"
    return bytes([count, modes]) + tables + bitstream(bits)


NO_SEQUENCES = b"\0"
RLE_MODES = 0b01010100  # one code each for literal lengths, offsets and match lengths
