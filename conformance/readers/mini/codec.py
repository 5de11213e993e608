"""codecs.md: raw and zstd. The only file that uses something beside the standard library."""

import zstandard

from .errors import Refusal

CODECS = ("raw", "zstd")
WINDOW = 2**24
BLOCK = 2**17  # RFC 8878, 3.1.1.2.4: Block_Maximum_Size is the window, but at most 128 KiB


def check_stored_length(codec: str, stored: int, decoded: int, where: str) -> None:
    if not 0 < stored <= decoded:  # storage.chunk-length
        raise Refusal("storage.chunk-length", f"{where}: stored length {stored}, decoded {decoded}")
    if codec == "raw" and stored != decoded:  # storage.chunk-length/raw
        raise Refusal("storage.chunk-length", f"{where}: stored length {stored} in a raw segment, decoded {decoded}")


def decode_chunk(codec: str, stored: bytes, decoded_length: int, where: str) -> bytes:
    if codec == "raw" or len(stored) == decoded_length:  # codec.raw, codec.as-is
        return stored
    start, window = check_frame_header(stored, decoded_length, where)
    check_blocks(stored, start, min(window, BLOCK), where)
    try:  # codec.zstd; codec.bounded: the content size has been found to be decoded_length
        decoded = zstandard.ZstdDecompressor().decompress(stored, decoded_length, allow_extra_data=False)
    except zstandard.ZstdError as error:  # payload.frame
        raise frame_refusal(where, str(error)) from None
    if len(decoded) != decoded_length:  # payload.frame
        raise frame_refusal(where, f"decodes to {len(decoded)} bytes instead of {decoded_length}")
    return decoded


def frame_refusal(where: str, text: str) -> Refusal:
    return Refusal("payload.frame", f"{where}: {text}")


def check_frame_header(frame: bytes, decoded_length: int, where: str) -> tuple[int, int]:
    """The fields of the profile; gives where the blocks start, and the window."""
    if frame[:4] != bytes.fromhex("28 B5 2F FD"):  # payload.frame/magic
        raise frame_refusal(where, f"the frame begins with {frame[:4].hex(' ')}")
    descriptor = frame[4] if len(frame) > 4 else 0
    size_flag, single_segment = descriptor >> 6, bool(descriptor & 0x20)
    if descriptor & 0x03:  # payload.frame/dictionary
        raise frame_refusal(where, "the frame has a dictionary ID")
    if descriptor & 0x04:  # payload.frame/checksum
        raise frame_refusal(where, "the frame has a content checksum")
    if descriptor & 0x08:  # payload.frame/reserved
        raise frame_refusal(where, "the reserved bit of the frame header is set")
    if size_flag == 0 and not single_segment:  # payload.frame/content-size
        raise frame_refusal(where, "the frame has no content size")
    at = 5 if single_segment else 6
    width = [1, 2, 4, 8][size_flag]
    if len(frame) < at + width:  # payload.frame
        raise frame_refusal(where, "the frame ends within its header")
    content_size = int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)
    if content_size != decoded_length:  # payload.frame/content-size
        raise frame_refusal(where, f"the content size is {content_size}, the chunk's decoded length {decoded_length}")
    window = content_size
    if not single_segment:  # RFC 8878, 3.1.1.1.2: five bits of exponent, three of mantissa
        base = 1 << (10 + (frame[5] >> 3))
        window = base + base // 8 * (frame[5] & 7)
    if window > WINDOW:  # payload.frame/window
        raise frame_refusal(where, f"the window is {window} bytes")
    return at + width, window


def check_blocks(frame: bytes, at: int, maximum: int, where: str) -> None:
    """RFC 8878, 3.1.1.2: the blocks end where the stored bytes end."""
    last = False
    while not last:
        header = int.from_bytes(frame[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if len(frame) < at + 3 or kind == 3 or size > maximum:  # payload.frame
            raise frame_refusal(where, f"byte {at}: no block header, or a block that is not allowed")
        at += 3 + (1 if kind == 1 else size)  # kind 1 is an RLE block: one byte, repeated size times
    if at < len(frame):  # payload.frame/trailing
        raise frame_refusal(where, f"bytes after the frame's last block, which ends at {at}")
    if at > len(frame):  # payload.frame
        raise frame_refusal(where, "the last block is cut")
