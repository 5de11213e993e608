"""Chunks of zstd segments: the profile, block by block, and what it excludes."""

from __future__ import annotations

from conformance.assembler import frames as z
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import write
from conformance.assembler.suite import Suite

from .models import dense, noise, single

RUN = b"\x2a" * 300
OF = "zstd-rle"

# What a real encoder made (zstd 1.5.7): literals in four Huffman streams, weights coded by FSE; sequences with tables
# of their own. The contents are made again by ``skewed`` and ``worded``; the frames are taken as they are.
FOUR_STREAMS = bytes.fromhex(
    "28b52ffd60bc01dd0900c6eb4d1080a76903bd0a2d167cb7194427dd82144800480048006431e8c98fb6ff45c06eb923b4534104fd55"
    "325db3602c9eacbfacc5ab8f19447d2d16f772ae92379b73f4060b73e4eaefc5aab17320160fde48f03b0e48b794a56fb6834079270a"
    "24c07f8e49ab3ce0bfc36deb3c3d4586fe5802431c783c5d16a9eb71a895db1708c99579f9a987feb37224c3eff40b22793ce3010e0a"
    "2bfcc330e5d84e36815e41ac17adab3ba179cfdf53960f2b8ff1880fffbf6b98e059c163a9c7bdfe081d901080c5ce583c5d1d6216b5"
    "0bdeb1c5d2978b237d01ff858cb9bfd093b0e5cd5e0a07c64a16231b7bddc3420140ee033f0baa7c87a41c780e628cbcc908aa5825e1"
    "1d5c525aeb0a971287184fed75be564f83f2cd270efcef73aa28fc1c66dbc3f2f71d34003e800ca6f51d94e2352ec37aa465fed95a01"
    "00"
)
OWN_TABLES = bytes.fromhex(
    "28b52ffd606404fd090022c50e10c0ebf3761789ec36952284550b8ceacc7abdf5fa1c0ad77abd4fefc335ae0fa4542ce09aec1ae288"
    "f04963a447d92e873a9f1ed709cbc7e9cf01808fa8a035858d35208420c4caec11202c6212463c2969da499883df0c190f577c399772"
    "e2640317f7c2e806b3bbdbaa68967e94236b61f3d308edb35968a82e25282302e02b765205258c8c48d73412c8d689ca9334de8cf6e7"
    "969976318b990a89fa0c04fde94af32c4c8cab58bf54ead31b9b50ce432426024d70601ce8308ed4125e8c6bd009f97814d225e9013f"
    "87140dd4fa14e4dd641f7db368c61ac7f50c3d0d7e03c51130eb248459da521e8c716525340b80856f1de0aa17dff327a5283514c38a"
    "35617188c987ee7bd778edb316d97b0f573dfc32869ca496d4a32b712ae34525e9e1cc28e3a500dcf332c813e7014dda76c250ba3bec"
    "544e321719"
)


def skewed() -> bytes:
    return bytes((x & y) * 7 % 61 for x, y in zip(noise(700, 21, 16), noise(700, 22, 16), strict=True))


def worded() -> bytes:
    words = (b"the ", b"pack ", b"holds ", b"a ", b"chunk ", b"and ", b"frame ", b"of ", b"bytes, ", b"zero ")
    return b"".join(words[k] for k in noise(300, 31, 10))


def packed(content: bytes, frame: bytes, chunk_bytes: int = 4096) -> Model:
    """One U8 tensor in one chunk, stored as ``frame``."""
    assert len(frame) < len(content), (len(frame), len(content))
    made = single(dense("U8", content), "U8", [len(content)], None, codec="zstd", chunk_bytes=chunk_bytes)
    made.frames[0, 0] = frame
    return made


def compressed(literals: bytes, sequences: bytes) -> bytes:
    return z.block(z.COMPRESSED, literals + sequences)


def legal() -> dict[str, tuple[str, bytes, bytes]]:
    """name -> (title, content, frame)."""
    text = bytes(noise(40, 7, 26))
    mixed = text + b"\0" * 200 + text[:9] + b"\1" * 100
    two = z.block(z.RAW, text, last=False) + z.block(z.RLE, b"\0", 200, last=False)
    two += z.block(z.RAW, text[:9], last=False) + z.block(z.RLE, b"\1", 100)
    found = {
        "rle": ("One RLE block", RUN, z.run(0x2A, 300)),
        "rle-255": ("A content size of 255 in one byte", b"\0" * 255, z.run(0, 255)),
        "rle-256": ("A content size of 256 in two bytes, less 256", b"\0" * 256, z.run(0, 256)),
        "size-4": ("A content size in four bytes", RUN, z.frame(z.block(z.RLE, b"\x2a", 300), 300, flag=2)),
        "size-8": ("A content size in eight bytes", RUN, z.frame(z.block(z.RLE, b"\x2a", 300), 300, flag=3)),
        "unused-bit": (
            "The unused bit of the descriptor set",
            RUN,
            z.frame(z.block(z.RLE, b"\x2a", 300), 300, bits=0x10),
        ),
        "window-1-kib": (
            "A window of 2^10 and no single segment",
            RUN,
            z.frame(z.block(z.RLE, b"\x2a", 300), 300, flag=1, window=0),
        ),
        "window-2-24": ("A window of 2^24", RUN, z.frame(z.block(z.RLE, b"\x2a", 300), 300, flag=1, window=14 << 3)),
        "window-just-below": (
            "A window of 15 * 2^20",
            RUN,
            z.frame(z.block(z.RLE, b"\x2a", 300), 300, flag=1, window=13 << 3 | 7),
        ),
        "raw-and-rle": ("Raw and RLE blocks in turn", mixed, z.frame(two, len(mixed))),
        "empty-raw-blocks": (
            "Empty raw blocks before, between and after",
            RUN,
            z.frame(
                z.block(z.RAW, b"", last=False)
                + z.block(z.RLE, b"\x2a", 150, last=False)
                + z.block(z.RAW, b"", last=False)
                + z.block(z.RLE, b"\x2a", 150, last=False)
                + z.block(z.RAW, b""),
                300,
            ),
        ),
        "empty-rle-block": (
            "An RLE block of no bytes",
            RUN,
            z.frame(z.block(z.RLE, b"\x07", 0, last=False) + z.block(z.RLE, b"\x2a", 300), 300),
        ),
        "literals-rle": (
            "A compressed block of RLE literals and no sequences",
            RUN,
            z.frame(compressed(z.literals(z.LITERALS_RLE, b"\x2a", 300), z.NO_SEQUENCES), 300),
        ),
        "literals-raw": (
            "A compressed block of raw literals, then an RLE block",
            text + b"\0" * 100,
            z.frame(
                z.block(z.COMPRESSED, z.literals(z.LITERALS_RAW, text, 40) + z.NO_SEQUENCES, last=False)
                + z.block(z.RLE, b"\0", 100),
                140,
            ),
        ),
    }
    found["four-streams"] = ("Huffman literals in four streams, by a real encoder", skewed(), FOUR_STREAMS)
    found["own-tables"] = ("Sequences with tables of their own, by a real encoder", worded(), OWN_TABLES)
    found |= matches()
    return found


def matches() -> dict[str, tuple[str, bytes, bytes]]:
    """Frames with sequences and Huffman literals."""
    overlap = b"abc" * 40
    # offset value 3 + 3 = 6: code 2, rest 2; 3 literals, a match of 117 = 99 + 18: code 42, 5 bits
    section = z.sequences(1, z.RLE_MODES, bytes([3, 2, 42]), [(2, 2), (18, 5)])
    # states of the predefined tables: literals 3 is state 3, offset code 3 is state 5, match length 6 is state 3;
    # the offset value is 8 + rest, the offset 3 less, so 3 literals, then 6 bytes from 5 bytes back need 5 literals:
    # the RLE block before gives them
    three = b"!" * 60 + b"xyz" + b"!!xyz!"
    body = z.bitstream([(3, 6), (5, 5), (3, 6), (0, 3)])
    repeat = b"q" * 200
    # one literal, then offset value 1 (the first repeated offset is 1), a match of 199 = 131 + 68: code 43, 7 bits
    again = z.sequences(1, z.RLE_MODES, bytes([1, 0, 43]), [(0, 0), (68, 7)])
    symbols = bytes(k >> 1 & 1 for k in range(64))
    huffman_bits = z.bitstream([(int(symbol), 1) for symbol in symbols])
    huffman = z.huffman_literals([1], huffman_bits, len(symbols))
    return {
        "overlap": (
            "A match that overlaps itself",
            overlap,
            z.frame(z.block(z.COMPRESSED, z.literals(z.LITERALS_RAW, b"abc", 3) + section), 120),
        ),
        "predefined": (
            "A sequence coded by the predefined tables",
            three,
            z.frame(
                z.block(z.RLE, b"!", 60, last=False)
                + z.block(z.COMPRESSED, z.literals(z.LITERALS_RAW, b"xyz", 3) + bytes([1, 0]) + body),
                69,
            ),
        ),
        "repeat-offset": (
            "A match by the first repeated offset, which is 1",
            repeat,
            z.frame(z.block(z.COMPRESSED, z.literals(z.LITERALS_RAW, b"q", 1) + again), 200),
        ),
        "huffman": (
            "Huffman literals in one stream, weights written directly",
            symbols,
            z.frame(z.block(z.COMPRESSED, huffman + z.NO_SEQUENCES), 64),
        ),
    }


def accepted(suite: Suite) -> None:
    for name, (title, content, frame) in legal().items():
        suite.accept(
            f"zstd-{name}",
            title,
            packed(content, frame),
            "codec.zstd payload.frame payload.frame/magic payload.frame/content-size payload.frame/window "
            "payload.frame/dictionary payload.frame/checksum payload.frame/trailing payload.frame/reserved "
            "codec.bounded",
        )
    lookalike = z.run(0, 4096)
    made = single(dense("U8", lookalike), "U8", [len(lookalike)], None, codec="zstd")
    made.frames[0, 0] = lookalike
    suite.accept(
        "zstd-as-is-lookalike",
        "A chunk stored as it is that looks like a frame",
        made,
        "codec.as-is",
        "The stored length is the decoded length, so the chunk is taken as it is.",
    )
    suite.accept(
        "zstd-as-is",
        "Random bytes in a zstd segment, stored as they are",
        single(dense("U8", bytes(noise(5000))), "U8", [5000], None, codec="zstd"),
        "codec.as-is storage.chunk-length",
    )
    suite.accept(
        "raw-lookalike",
        "A raw chunk that is a zstd frame",
        single(dense("U8", lookalike), "U8", [len(lookalike)], None),
        "codec.raw",
        "Raw means raw.",
    )
    both = bytes(4096) + bytes(noise(4096)) + b"\7" * 100
    suite.accept(
        "zstd-mixed-chunks",
        "A segment of a frame, a chunk as it is, and a frame",
        single(dense("U8", both), "U8", [len(both)], None, codec="zstd"),
        "codec.as-is codec.zstd layout.segments",
    )
    large = b"\0" * (1 << 20)
    blocks = b"".join(z.block(z.RLE, b"\0", 131072, last=k == 7) for k in range(8))
    suite.accept(
        "zstd-ratio-20000",
        "1 MiB of zeros in 8 RLE blocks of 128 KiB",
        packed(large, z.frame(blocks, 1 << 20, flag=2), 1 << 20),
        "codec.zstd codec.bounded reader.least",
        "A legal ratio of 20000 to 1.",
        op="validate",
    )
    suite.accept(
        "zstd-window-smaller",
        "A window of 1 KiB and blocks of 1 KiB at most",
        packed(
            b"\5" * 2048, z.frame(z.block(z.RLE, b"\5", 1024, last=False) + z.block(z.RLE, b"\5", 1024), 2048, 1, 0)
        ),
        "codec.zstd payload.frame/window",
    )


def headers() -> dict[str, tuple[str, bytes, str]]:
    """name -> (title, stored bytes of 300 times 2A, requirement)."""
    body = z.block(z.RLE, b"\x2a", 300)
    skippable = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"skip"
    good = z.run(0x2A, 300)
    return {
        "no-content-size": ("A frame without a content size", z.frame(body, None, window=0), "content-size"),
        "content-size-299": ("A content size one too small", z.frame(body, 299), "content-size"),
        "content-size-301": ("A content size one too large", z.frame(body, 301), "content-size"),
        "content-size-0": ("A content size of 0", z.frame(z.block(z.RAW, b""), 0), "content-size"),
        "content-size-2-33": ("A content size of 2^33", z.frame(body, 1 << 33, flag=3), "content-size"),
        "content-size-2-64": ("A content size of 2^64 - 1", z.frame(body, (1 << 64) - 1, flag=3), "content-size"),
        "dictionary-1": ("A dictionary id of one byte", z.frame(body, 300, bits=1, extra=b"\7"), "dictionary"),
        "dictionary-2": ("A dictionary id of two bytes", z.frame(body, 300, bits=2, extra=b"\7\0"), "dictionary"),
        "dictionary-4": ("A dictionary id of four bytes", z.frame(body, 300, bits=3, extra=b"\7\0\0\0"), "dictionary"),
        "dictionary-0": (
            "A dictionary id of one byte that is 0",
            z.frame(body, 300, bits=1, extra=b"\0"),
            "dictionary",
        ),
        "checksum": (
            "A content checksum, and a right one",
            z.frame(body, 300, bits=4) + bytes.fromhex(xxh64(RUN)),
            "checksum",
        ),
        "checksum-flag": ("The checksum flag without a checksum", z.frame(body, 300, bits=4), "checksum"),
        "checksum-wrong": ("A wrong content checksum", z.frame(body, 300, bits=4) + bytes(4), "checksum"),
        "window-above": ("A window of 9/8 * 2^24", z.frame(body, 300, 1, window=14 << 3 | 1), "window"),
        "window-2-25": ("A window of 2^25", z.frame(body, 300, 1, window=15 << 3), "window"),
        "window-2-31": ("A window of 2^31", z.frame(body, 300, 1, window=21 << 3), "window"),
        "window-largest": ("A window of 15 * 2^38", z.frame(body, 300, 1, window=0xFF), "window"),
        "magic-legacy": ("The magic of version 0.7", z.frame(body, 300, magic=b"\x27\xb5\x2f\xfd"), "magic"),
        "magic-v1": ("The magic of version 0.1", z.frame(body, 300, magic=b"\xfd\x2f\xb5\x1e"), "magic"),
        "magic-less": ("A frame without its magic", z.frame(body, 300, magic=b""), "magic"),
        "skippable-first": ("A skippable frame before the frame", skippable + good, "magic"),
        "skippable-only": ("A skippable frame and nothing else", skippable, "magic"),
        "skippable-after": ("A skippable frame after the frame", good + skippable, "trailing"),
        "two-frames": ("The same frame twice", good * 2, "trailing"),
        "two-halves": ("Two frames of half the content each", z.run(0x2A, 150) * 2, "content-size"),
        "byte-after": ("A zero byte after the frame", good + b"\0", "trailing"),
        "empty-frame-after": ("An empty frame after the frame", good + z.frame(z.block(z.RAW, b""), 0), "trailing"),
        "gzip": ("A gzip stream instead of a frame", bytes.fromhex("1f8b0800000000000203") + bytes(20), "magic"),
        "zeros": ("Zero bytes instead of a frame", bytes(20), "magic"),
    }


def xxh64(data: bytes) -> str:
    """The low four bytes of XXH64 with seed 0, as a frame's checksum has them."""
    p1, p2, p3, p4, p5 = (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
    mask = (1 << 64) - 1

    def turn(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & mask

    def mix(acc: int, lane: int) -> int:
        return turn((acc + lane * p2) & mask, 31) * p1 & mask

    def lane_at(k: int) -> int:
        return int.from_bytes(data[k : k + 8], "little")

    accs = [(p1 + p2) & mask, p2, 0, -p1 & mask]
    at = 0
    while at + 32 <= len(data):
        accs = [mix(acc, lane_at(at + 8 * k)) for k, acc in enumerate(accs)]
        at += 32
    total = sum(turn(acc, by) for acc, by in zip(accs, (1, 7, 12, 18), strict=True)) & mask
    for acc in accs:
        total = ((total ^ mix(0, acc)) * p1 + p4) & mask
    total = (total + len(data)) & mask
    while at + 8 <= len(data):
        total = (turn(total ^ mix(0, lane_at(at)), 27) * p1 + p4) & mask
        at += 8
    if at + 4 <= len(data):
        total = (turn(total ^ int.from_bytes(data[at : at + 4], "little") * p1 & mask, 23) * p2 + p3) & mask
        at += 4
    for byte in data[at:]:
        total = turn(total ^ byte * p5 & mask, 11) * p1 & mask
    total = (total ^ total >> 33) * p2 & mask
    total = (total ^ total >> 29) * p3 & mask
    return ((total ^ total >> 32) & 0xFFFFFFFF).to_bytes(4, "little").hex()


def bodies() -> dict[str, tuple[str, bytes]]:
    """Blocks that RFC 8878 does not define, or of another length; the content is 300 times 2A."""
    good = z.run(0x2A, 300)

    def of(blocks: bytes) -> bytes:
        return z.frame(blocks, 300)

    far = z.sequences(1, z.RLE_MODES, bytes([3, 4, 43]), [(15, 4), (41, 7)])
    return {
        "blocks-short": ("Blocks that deliver one byte less", of(z.block(z.RLE, b"\x2a", 299))),
        "blocks-long": ("Blocks that deliver one byte more", of(z.block(z.RLE, b"\x2a", 301))),
        "blocks-bomb": (
            "Blocks that deliver a thousand times as much",
            of(b"".join(z.block(z.RLE, b"\x2a", 131072, last=k == 2) for k in range(3))),
        ),
        "block-reserved": ("A block of the reserved type", of(z.block(z.RESERVED, b"\x2a", 300))),
        "block-not-last": ("No block is the last one", of(z.block(z.RLE, b"\x2a", 300, last=False))),
        "no-blocks": ("A frame header and no block", of(b"")),
        "header-cut": ("A frame cut within its header", good[:5]),
        "magic-cut": ("The first three bytes of a frame", good[:3]),
        "block-cut": ("A frame cut within a block header", good[:8]),
        "raw-cut": ("A raw block that is cut", of(z.block(z.RAW, b"\x2a" * 250, 300))),
        "reserved-bit": ("The reserved bit of the descriptor set", z.frame(z.block(z.RLE, b"\x2a", 300), 300, bits=8)),
        "literals-more": (
            "Literals that claim more than the block has",
            of(compressed(z.literals(z.LITERALS_RAW, b"\x2a" * 20, 300), b"")),
        ),
        "literals-treeless": (
            "Literals by the tree of a block before, of which there is none",
            of(compressed((3 | 300 << 4 | 10 << 14).to_bytes(3, "little") + b"\xff" * 10, z.NO_SEQUENCES)),
        ),
        "tables-repeated": (
            "Sequences by the tables of a block before, of which there is none",
            of(compressed(z.literals(z.LITERALS_RAW, b"abc", 3), bytes([1, 0b11111100, 0xFF]))),
        ),
        "offset-before-start": (
            "A match that begins before the content",
            of(compressed(z.literals(z.LITERALS_RAW, b"abc", 3), far)),
        ),
        "compressed-empty": ("A compressed block of no bytes", of(z.block(z.COMPRESSED, b""))),
        "compressed-bits-left": (
            "A bit stream without its final 1 bit",
            of(compressed(z.literals(z.LITERALS_RAW, b"abc", 3), bytes([1, z.RLE_MODES, 3, 2, 42, 0]))),
        ),
        "huffman-weights": (
            "Huffman weights that add up to nothing",
            of(compressed((2 | 300 << 4 | 3 << 14).to_bytes(3, "little") + b"\x80\0\1", z.NO_SEQUENCES)),
        ),
    }


def rejected(suite: Suite) -> None:
    for name, (title, stored, requirement) in headers().items():
        suite.reject(
            f"zstd-{name}",
            title,
            OF,
            Change(stored={"0/0": stored}),
            "payload.frame",
            f"payload.frame/{requirement}",
            op="validate",
        )
    for name, (title, stored) in bodies().items():
        suite.reject(
            f"zstd-{name}",
            title,
            OF,
            Change(stored={"0/0": stored}),
            "payload.frame",
            "payload.frame codec.zstd codec.bounded" + (" payload.frame/reserved" if name == "reserved-bit" else ""),
            op="validate",
            rss_mb=64,
        )
    chunk: tuple[tuple[str, str, Change, str, str], ...] = (
        (
            "longer",
            "A stored chunk longer than its content",
            Change(stored={"0/0": z.frame(z.block(z.RAW, RUN), 300)}),
            "storage.chunk-length",
            "storage.chunk-length",
        ),
        (
            "length-0",
            "A stored length of 0",
            Change(stored={"0/0": b""}),
            "storage.chunk-length",
            "storage.chunk-length",
        ),
        (
            "padded-to-as-is",
            "A frame padded to the decoded length",
            Change(stored={"0/0": z.run(0x2A, 300).ljust(300, b"\0")}),
            "integrity.content",
            "codec.as-is",
        ),
        (
            "crc-before-frame",
            "A chunk that is no frame, its CRC-32 stale",
            Change(data=[write(0, b"\0")]),
            "integrity.chunk",
            "integrity.chunk safe.digest-first",
        ),
        (
            "other-byte",
            "A frame of the right length with another byte",
            Change(stored={"0/0": z.run(0x2B, 300)}),
            "integrity.content",
            "integrity.content codec.zstd",
        ),
    )
    for name, title, change, code, requirement in chunk:
        suite.reject(f"zstd-{name}", title, OF, change, code, requirement, op="validate")
    suite.reject(
        "raw-holding-frame",
        "A raw segment whose chunk is a frame",
        "storage-plane-4096",
        Change(stored={"0/0": z.run(0, 4096)}),
        "storage.chunk-length",
        "storage.chunk-length/raw",
        op="validate",
    )
    suite.reject(
        "raw-other-bytes",
        "A raw chunk that decodes to another chunk, its CRC-32 right",
        "raw-lookalike",
        Change(stored={"0/0": z.run(1, 4096)}),
        "integrity.content",
        "codec.raw integrity.content",
        op="validate",
    )
    seven = b"".join(z.block(z.RLE, b"\0", 131072, last=False) for _ in range(6))
    above = z.block(z.RLE, b"\0", 131073, last=False) + seven + z.block(z.RLE, b"\0", 131071)
    suite.either(
        "zstd-rle-above-128-kib",
        "An RLE block of 128 KiB and one byte",
        "zstd-ratio-20000",
        Change(stored={"0/0": z.frame(above, 1 << 20, 2)}),
        "payload.frame",
        "codec.lax",
        "RFC 8878 has no block above 128 KiB; some decoders repeat a byte more often.",
    )
    suite.either(
        "zstd-rle-above-window",
        "An RLE block of more bytes than the window",
        "zstd-window-smaller",
        Change(stored={"0/0": z.frame(z.block(z.RLE, b"\5", 2048), 2048, 1, 0)}),
        "payload.frame",
        "codec.lax",
        "RFC 8878 has no block above the window; some decoders do not mind.",
    )
    good = z.run(0x2A, 300)
    for k in (0, 31, 32, 34, 35, 37, 38, 40, 55, 56, 57, 58, 59, 60, 79):
        stored = bytes(byte ^ (1 << k % 8 if at == k // 8 else 0) for at, byte in enumerate(good))
        suite.reject(
            f"zstd-flip-{k}",
            f"Bit {k} of a frame flipped, CRC-32 repaired",
            OF,
            Change(stored={"0/0": stored}),
            "payload.frame",
            "payload.frame",
            op="validate",
        )


def cases(suite: Suite) -> None:
    accepted(suite)
    rejected(suite)
