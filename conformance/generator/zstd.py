"""Legal Zstandard frames (RFC 8878) that no usual compressor writes, chosen by a random generator.

Blocks of any size, raw, RLE and compressed ones mixed, empty ones among them; literals raw, RLE, Huffman coded in one
or four streams, with a tree written directly, as FSE, or taken from the block before; sequences with the predefined, an
RLE, a described or a repeated table; headers longer than they need to be; windows from 1 KiB on. What is not legal is
in ``assembler/frames.py``; the words are those of the RFC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from conformance.assembler.frames import MAGIC, bitstream, block

Bits = list[tuple[int, int]]  # (value, bits) in the order a decoder reads them
RAW, RLE, COMPRESSED, REPEAT = range(4)
BLOCK_MAXIMUM = 1 << 17
HUFFMAN_BITS = 11

# code -> baseline and extra bits (RFC 8878, 3.1.1.3.2.1.1)
LITERAL_LENGTHS = [(k, 0) for k in range(16)] + [
    (16, 1), (18, 1), (20, 1), (22, 1), (24, 2), (28, 2), (32, 3), (40, 3), (48, 4), (64, 6), (128, 7), (256, 8),
    (512, 9), (1024, 10), (2048, 11), (4096, 12), (8192, 13), (16384, 14), (32768, 15), (65536, 16),
]  # fmt: skip
MATCH_LENGTHS = [(k + 3, 0) for k in range(32)] + [
    (35, 1), (37, 1), (39, 1), (41, 1), (43, 2), (47, 2), (51, 3), (59, 3), (67, 4), (83, 4), (99, 5), (131, 7),
    (259, 8), (515, 9), (1027, 10), (2051, 11), (4099, 12), (8195, 13), (16387, 14), (32771, 15), (65539, 16),
]  # fmt: skip
# the predefined distributions (3.1.1.3.2.2): accuracy log and counts, -1 for "less than 1"
PREDEFINED = {
    "literal lengths": (6, [4, 3, *[2] * 6, 2, 2, 2, 2, 2, 1, 1, 1, *[2] * 8, 2, 3, 2, *[1] * 5, *[-1] * 4]),
    "offsets": (5, [1, 1, 1, 1, 1, 1, 2, 2, 2, *[1] * 15, *[-1] * 5]),
    "match lengths": (6, [1, 4, 3, 2, 2, 2, 2, 2, 2, *[1] * 37, *[-1] * 7]),
}
LARGEST = {"literal lengths": (9, 35), "offsets": (8, 31), "match lengths": (9, 52)}  # accuracy log, code


# ------------------------------------------------------------------------------------------------ FSE


@dataclass(frozen=True)
class Table:
    """A decoding table: for every state its symbol, the bits to read and what to add to them."""

    log: int
    rows: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, log: int, counts: Sequence[int]) -> Table:
        size = 1 << log
        symbols: list[int | None] = [None] * size
        high = size - 1
        for symbol, count in enumerate(counts):
            if count == -1:
                symbols[high] = symbol
                high -= 1
        at = 0
        for symbol, count in enumerate(counts):
            for _ in range(max(count, 0)):
                symbols[at] = symbol
                at = (at + (size >> 1) + (size >> 3) + 3) & (size - 1)
                while at > high:
                    at = (at + (size >> 1) + (size >> 3) + 3) & (size - 1)
        following = {symbol: max(count, 1) for symbol, count in enumerate(counts)}
        rows = []
        for symbol in symbols:
            assert symbol is not None
            state = following[symbol]
            following[symbol] += 1
            bits = log + 1 - state.bit_length()
            rows.append((symbol, bits, (state << bits) - size))
        return cls(log, tuple(rows))

    @classmethod
    def single(cls, symbol: int) -> Table:
        return cls(0, ((symbol, 0, 0),))

    def before(self, symbol: int, state: int) -> tuple[int, int, int]:
        """The state with ``symbol`` from which ``state`` follows, and the value and number of bits read then."""
        for at, (found, bits, base) in enumerate(self.rows):
            if found == symbol and base <= state < base + (1 << bits):
                return at, state - base, bits
        raise AssertionError((symbol, state))

    def states(self, symbol: int) -> list[int]:
        return [at for at, row in enumerate(self.rows) if row[0] == symbol]


def normalized(rng: Random, symbols: Sequence[int], most_log: int) -> tuple[int, list[int]]:
    """An accuracy log and counts that have every one of ``symbols``; now and then symbols that do not occur."""
    counts = Counter(symbols)
    if rng.random() < 0.2:
        counts.setdefault(rng.randrange(max(counts) + 1), 1)
    log = max(5, (len(counts) - 1).bit_length())
    if len(counts) == 1:  # two symbols at least: decoders differ on tables of one
        counts[next(iter(counts)) ^ 1] = 1
    log = min(most_log, log + rng.randrange(3))
    size = 1 << log
    total = sum(counts.values())
    shares = {s: max(1, c * size // total) for s, c in counts.items()}
    while (spare := size - sum(shares.values())) != 0:
        most = max(shares, key=lambda s: shares[s])
        shares[most] += spare if spare > 0 else max(spare, 1 - shares[most])
    found = [0] * (max(shares) + 1)
    for symbol, share in shares.items():
        found[symbol] = -1 if share == 1 and rng.random() < 0.5 else share
    return log, found


def described(log: int, counts: Sequence[int]) -> bytes:
    """An FSE table description (4.1.1)."""
    total, at = log - 5, 4
    remaining, k = (1 << log) + 1, 0
    while remaining > 1:
        count = counts[k]
        value, most = count + 1, remaining
        bits = most.bit_length()
        short = (1 << bits) - 1 - most
        half = 1 << (bits - 1)
        if value < short:
            total |= value << at
            at += bits - 1
        else:
            total |= (value + short if value >= half else value) << at
            at += bits
        remaining -= abs(count)
        k += 1
        if count == 0:
            zeros = 0
            while counts[k + zeros] == 0:
                zeros += 1
            k += zeros
            while zeros >= 3:
                total |= 3 << at
                at, zeros = at + 2, zeros - 3
            total |= zeros << at
            at += 2
    return total.to_bytes((at + 7) // 8, "little")


# ------------------------------------------------------------------------------------------------ Huffman


@dataclass(frozen=True)
class Tree:
    """Weights by symbol, and the code of every symbol that has one."""

    weights: tuple[int, ...]
    codes: dict[int, tuple[int, int]]  # symbol -> code, bits

    @classmethod
    def of(cls, lengths: dict[int, int]) -> Tree:
        most = max(lengths.values())
        weights = tuple(most + 1 - lengths[s] if s in lengths else 0 for s in range(max(lengths) + 1))
        codes, at = {}, 0
        for symbol in sorted(lengths, key=lambda s: (weights[s], s)):
            codes[symbol] = (at >> (most - lengths[symbol]), lengths[symbol])
            at += 1 << (weights[symbol] - 1)
        assert at == 1 << most
        return cls(weights, codes)


def code_lengths(rng: Random, data: bytes) -> dict[int, int]:
    """Lengths of a complete prefix code of at most 11 bits for the bytes of ``data``; mostly not the best one."""
    counts = Counter(data)
    while len(counts) < 2:
        counts.setdefault(rng.randrange(256), 1)
    if rng.random() < 0.5:
        counts = Counter({symbol: rng.randint(1, 60) for symbol in counts})
    heap = [(count, [symbol]) for symbol, count in sorted(counts.items())]
    lengths = dict.fromkeys(counts, 0)
    while len(heap) > 1:
        heap.sort(key=lambda each: each[0])
        (first, some), (second, others) = heap[0], heap[1]
        for symbol in some + others:
            lengths[symbol] += 1
        heap[:2] = [(first + second, some + others)]
    if max(lengths.values()) > HUFFMAN_BITS:
        return flat_lengths(sorted(counts))
    return lengths


def flat_lengths(symbols: Sequence[int]) -> dict[int, int]:
    bits = (len(symbols) - 1).bit_length()
    short = (1 << bits) - len(symbols)
    return {symbol: bits - (k < short) for k, symbol in enumerate(symbols)}


def tree_bytes(rng: Random, tree: Tree) -> bytes | None:
    """The tree description (4.2.1), the last weight left out; None where it has no form."""
    weights = tree.weights[:-1]
    coded = fse_weights(rng, weights) if len(weights) >= 3 and len(set(weights)) > 1 else None
    if coded is not None and len(coded) < 128 and (rng.random() < 0.5 or len(weights) > 128):
        return bytes([len(coded)]) + coded
    if len(weights) > 128:
        return None
    nibbles = [*weights, 0] if len(weights) % 2 else list(weights)
    return bytes([127 + len(weights)]) + bytes(a << 4 | b for a, b in zip(nibbles[::2], nibbles[1::2], strict=True))


def fse_weights(rng: Random, weights: Sequence[int]) -> bytes | None:
    """Weights by two states that take turns, until a state needs bits that are not there."""
    log, counts = normalized(rng, weights, 6)
    table = Table.of(log, counts)
    last = len(weights) - 1
    ending = [s for s in table.states(weights[last - 1]) if table.rows[s][1] > 0]
    if not ending:
        return None
    states = {(last - 1) % 2: rng.choice(ending), last % 2: rng.choice(table.states(weights[last]))}
    fields: Bits = []
    for k in range(last - 2, -1, -1):
        at, value, bits = table.before(weights[k], states[k % 2])
        fields.insert(0, (value, bits))
        states[k % 2] = at
    return described(log, counts) + bitstream([(states[0], log), (states[1], log), *fields])


def huffman_stream(tree: Tree, data: bytes) -> bytes:
    return bitstream([tree.codes[byte] for byte in data])


# ------------------------------------------------------------------------------------------------ a block


@dataclass
class Frame:
    """What a frame under way remembers from block to block."""

    rng: Random
    window: int
    offsets: list[int] = field(default_factory=lambda: [1, 4, 8])
    tree: Tree | None = None
    tables: dict[str, Table] = field(default_factory=dict)


def literals_section(frame: Frame, data: bytes) -> bytes:
    rng = frame.rng
    if data and len(set(data)) == 1 and rng.random() < 0.8:
        return plain_literals(rng, 1, data[:1], len(data))
    if len(data) >= 2 and rng.random() < 0.8:
        coded = huffman_section(frame, data)
        if coded is not None:
            return coded
    return plain_literals(rng, 0, data, len(data))


def plain_literals(rng: Random, kind: int, data: bytes, size: int) -> bytes:
    """Raw or RLE, the header in any of the forms that hold the size."""
    form = rng.choice([f for f, most in ((0, 32), (2, 32), (1, 4096), (3, 1 << 20)) if size < most])
    if form in (0, 2):
        return bytes([kind | size << 3]) + data
    return (kind | form << 2 | size << 4).to_bytes(2 if form == 1 else 3, "little") + data


def huffman_section(frame: Frame, data: bytes) -> bytes | None:
    """Compressed or treeless literals; None where they have no form."""
    rng = frame.rng
    known = frame.tree
    if known is not None and set(data) <= known.codes.keys() and rng.random() < 0.6:
        kind, tree, body = 3, known, b""
    else:
        tree = Tree.of(code_lengths(rng, data))
        described_tree = tree_bytes(rng, tree)
        if described_tree is None:
            return None
        kind, body = 2, described_tree
    if len(data) >= 6 and (rng.random() < 0.5 or len(data) >= 1024):
        part = (len(data) + 3) // 4
        streams = [huffman_stream(tree, data[k * part : (k + 1) * part]) for k in range(3)]
        streams.append(huffman_stream(tree, data[3 * part :]))
        if 3 * part >= len(data) or max(map(len, streams)) >= 1 << 16:
            return None
        body += b"".join(len(s).to_bytes(2, "little") for s in streams[:3]) + b"".join(streams)
        forms = [(1, 10, 3), (2, 14, 4), (3, 18, 5)]
    else:
        body += huffman_stream(tree, data)
        forms = [(0, 10, 3)]
    fitting = [f for f in forms if len(data) < 1 << f[1] and len(body) < 1 << f[1]]
    if not fitting or len(body) > len(data) + 64:
        return None
    form, bits, width = rng.choice(fitting)
    frame.tree = tree
    return (kind | form << 2 | len(data) << 4 | len(body) << (4 + bits)).to_bytes(width, "little") + body


@dataclass(frozen=True)
class Copy:
    """A sequence: so many literals, then ``match`` bytes from ``offset`` bytes back."""

    literals: int
    offset: int
    match: int


def found_sequences(rng: Random, whole: bytes, first: int, end: int, window: int) -> tuple[list[Copy], bytes]:
    """Matches of ``whole[first:end]`` with anything before, and the literals left over."""
    seen: dict[bytes, list[int]] = {}
    for k in range(max(0, first - window), first):
        seen.setdefault(whole[k : k + 3], []).append(k)
    sequences: list[Copy] = []
    literals = bytearray()
    at, run = first, 0
    while at < end:
        places = [p for p in seen.get(whole[at : at + 3], []) if at - p <= window] if at + 3 <= end else []
        length = 0
        if places and rng.random() < 0.85:
            place = rng.choice(places)
            length = 3
            while at + length < end and whole[place + length] == whole[at + length]:
                length += 1
            length = length if rng.random() < 0.7 else rng.randint(3, length)
            sequences.append(Copy(run, at - place, length))
            run = 0
        else:
            literals.append(whole[at])
            run += 1
            length = 1
        for k in range(at, at + length):
            seen.setdefault(whole[k : k + 3], []).append(k)
        at += length
    return sequences, bytes(literals)


def offset_value(rng: Random, offsets: list[int], sequence: Copy) -> int:
    """What stands for the offset: it itself plus 3, or a repeat of one of the last three, which are updated."""
    candidates = offsets if sequence.literals else [offsets[1], offsets[2], offsets[0] - 1]
    value = sequence.offset + 3
    if sequence.offset in candidates and rng.random() < 0.8:
        value = candidates.index(sequence.offset) + 1
    if value > 3:
        offsets[:] = [sequence.offset, offsets[0], offsets[1]]
    else:
        which = value - 1 + (sequence.literals == 0)
        if which == 1:
            offsets[:] = [offsets[1], offsets[0], offsets[2]]
        elif which >= 2:
            offsets[:] = [sequence.offset, offsets[0], offsets[1]]
    return value


def code_of(value: int, codes: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
    """Code, extra value and extra bits."""
    code = max(k for k, (base, _) in enumerate(codes) if base <= value)
    base, bits = codes[code]
    return code, value - base, bits


def chosen_table(frame: Frame, kind: str, codes: Sequence[int]) -> tuple[int, bytes, Table]:
    """A mode, what describes the table, and the table."""
    rng = frame.rng
    log, counts = PREDEFINED[kind]
    modes = [2]
    if max(codes) < len(counts):
        modes.append(0)
    if len(set(codes)) == 1:
        modes += [1, 1]
    before = frame.tables.get(kind)
    if before is not None and set(codes) <= {row[0] for row in before.rows}:
        modes += [3, 3]
    mode = rng.choice(modes)
    if mode == 0:
        return 0, b"", Table.of(log, counts)
    if mode == 1:
        return 1, bytes([codes[0]]), Table.single(codes[0])
    if mode == 3:
        assert before is not None
        return 3, b"", before
    log, counts = normalized(rng, codes, LARGEST[kind][0])
    if len(counts) > LARGEST[kind][1] + 1:
        return 0, b"", Table.of(*PREDEFINED[kind])
    return 2, described(log, counts), Table.of(log, counts)


def sequences_section(frame: Frame, sequences: Sequence[Copy]) -> bytes:
    count = len(sequences)
    if count == 0:
        return b"\0"
    coded = []
    for each in sequences:
        value = offset_value(frame.rng, frame.offsets, each)
        power = value.bit_length() - 1
        coded.append(
            (
                code_of(each.literals, LITERAL_LENGTHS),
                (power, value - (1 << power), power),
                code_of(each.match, MATCH_LENGTHS),
            )
        )
    picked = [chosen_table(frame, kind, [row[k][0] for row in coded]) for k, kind in enumerate(PREDEFINED)]
    for kind, (_, _, table) in zip(PREDEFINED, picked, strict=True):
        frame.tables[kind] = table
    head = bytes([count]) if count < 128 and frame.rng.random() < 0.9 else None
    if head is None:
        head = (
            bytes([128 + (count >> 8), count & 255])
            if count < 0x7F00
            else b"\xff" + (count - 0x7F00).to_bytes(2, "little")
        )
    modes = picked[0][0] << 6 | picked[1][0] << 4 | picked[2][0] << 2
    return (
        head
        + bytes([modes])
        + b"".join(description for _, description, _ in picked)
        + sequence_bits(frame.rng, coded, [table for _, _, table in picked])
    )


Coded = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]


def sequence_bits(rng: Random, coded: Sequence[Coded], tables: Sequence[Table]) -> bytes:
    """The bitstream: three states, then for every sequence its extra bits and what moves the states on."""
    lengths, offsets, matches = range(3)
    states = [rng.choice(table.states(code[0])) for table, code in zip(tables, coded[-1], strict=True)]
    fields: Bits = []
    for k in range(len(coded) - 1, -1, -1):
        moves: dict[int, tuple[int, int]] = {}
        if k < len(coded) - 1:
            for which in range(3):
                states[which], value, bits = tables[which].before(coded[k][which][0], states[which])
                moves[which] = (value, bits)
        row = [coded[k][which][1:] for which in (offsets, matches, lengths)]
        fields[:0] = [*row, *(moves[which] for which in (lengths, matches, offsets) if which in moves)]
    first = [(states[which], tables[which].log) for which in (lengths, offsets, matches)]
    return bitstream([*first, *fields])


def compressed_block(frame: Frame, whole: bytes, first: int, end: int) -> bytes:
    """The content of a compressed block that makes ``whole[first:end]``."""
    sequences, literals = found_sequences(frame.rng, whole, first, end, frame.window)
    return literals_section(frame, literals) + sequences_section(frame, sequences)


# ------------------------------------------------------------------------------------------------ the frame


def header(rng: Random, size: int) -> tuple[bytes, int]:
    """A frame header of the profile in ``codecs.md``, and the window."""
    descriptor = rng.choice([0, 0x10])  # bit 4 may have either value
    single = rng.random() < 0.5
    widths = [f for f, fits in ((0, single and size < 256), (1, 256 <= size < 65792), (2, True), (3, True)) if fits]
    flag = rng.choice(widths)
    content = (size - (256 if flag == 1 else 0)).to_bytes((1, 2, 4, 8)[flag], "little")
    if single:
        return MAGIC + bytes([flag << 6 | 0x20 | descriptor]) + content, size
    exponent, eighths = rng.choice([0, 0, 0, 1, 2, 7, 13]), rng.randrange(8)
    window = (1 << (10 + exponent)) // 8 * (8 + eighths)
    return MAGIC + bytes([flag << 6 | descriptor, exponent << 3 | eighths]) + content, window


def compressed(rng: Random, data: bytes) -> bytes:
    """One frame of ``data``, which is not empty."""
    head, window = header(rng, len(data))
    frame = Frame(rng, window)
    most = min(window, BLOCK_MAXIMUM)
    blocks = b""
    at = 0
    while at < len(data) or not blocks:
        if rng.random() < 0.06:
            blocks += block(RAW, b"", 0, last=False)
        size = min(
            len(data) - at, most, rng.choice([len(data), len(data), rng.randint(1, len(data)), rng.randint(1, 40)])
        )
        piece = data[at : at + size]
        last = at + size == len(data)
        choice = rng.random()
        if len(set(piece)) == 1 and choice < 0.5:
            blocks += block(RLE, piece[:1], size, last)
        elif choice < 0.12:
            blocks += block(RAW, piece, size, last)
        else:
            blocks += _compressed_or_raw(frame, data, at, size, last, most)
        at += size
    return head + blocks


def _compressed_or_raw(frame: Frame, data: bytes, at: int, size: int, last: bool, most: int) -> bytes:
    before = (list(frame.offsets), frame.tree, dict(frame.tables))
    body = compressed_block(frame, data, at, at + size)
    if len(body) <= most:
        return block(COMPRESSED, body, None, last)
    frame.offsets, frame.tree, frame.tables = before
    return block(RAW, data[at : at + size], size, last)
