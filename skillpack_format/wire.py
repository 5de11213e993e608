"""Strict msgpack: the bytes of the two header documents (spec/wire.md).

The profile is a bijection: every accepted document has exactly one byte form, so its digest is the digest of its
meaning. Only non-negative integers, strings, bytes, arrays and maps exist; every form is the shortest; map keys are
strictly ascending ASCII strings. Nothing is allocated on a claim: a length is compared with the bytes that remain.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from skillpack_format.errors import error
from skillpack_format.limits import Limits

Plain = Any  # int | str | bytes | list[Plain] | dict[str, Plain]

# first byte -> (kind, bytes of the length or value that follow, smallest value this form may carry)
_LENGTH_OF: Final = {
    0xC4: ("bin", 1, 0),
    0xC5: ("bin", 2, 1 << 8),
    0xC6: ("bin", 4, 1 << 16),
    0xCC: ("int", 1, 1 << 7),
    0xCD: ("int", 2, 1 << 8),
    0xCE: ("int", 4, 1 << 16),
    0xCF: ("int", 8, 1 << 32),
    0xD9: ("str", 1, 32),
    0xDA: ("str", 2, 1 << 8),
    0xDB: ("str", 4, 1 << 16),
    0xDC: ("array", 2, 16),
    0xDD: ("array", 4, 1 << 16),
    0xDE: ("map", 2, 16),
    0xDF: ("map", 4, 1 << 16),
}


def write(document: Plain) -> bytes:
    """The one byte form of ``document``; dict keys are sorted here, so callers need not."""
    import msgpack  # noqa: PLC0415 - reading needs only the decoder below, and inspect only reads

    packed: bytes = msgpack.packb(_sorted(document), use_bin_type=True)
    return packed


def read(data: bytes, limits: Limits, where: str) -> Plain:
    """The document in ``data``; a ManifestError (wire.*) or LimitError says why not, and at which byte."""
    decoder = _Decoder(data, limits, where)
    decoder.count(1)
    document = decoder.value(1)
    if decoder.at != len(data):
        decoder.refuse("wire.trailing", f"{len(data) - decoder.at} bytes follow the document")
    return document


def _sorted(value: Plain) -> Plain:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


class _Decoder:
    """A cursor over ``data``; ``nodes`` counts the values that the lengths read announce, ``keys`` the keys checked."""

    __slots__ = ("at", "data", "keys", "limits", "nodes", "where")

    def __init__(self, data: bytes, limits: Limits, where: str) -> None:
        self.data = data
        self.limits = limits
        self.where = where
        self.at = 0
        self.nodes = 0
        self.keys: dict[bytes, str] = {}

    def refuse(self, code: str, message: str) -> NoReturn:
        raise error(code, self.where, f"byte {self.at}: {message}")

    def value(self, depth: int) -> Plain:
        kind, count = self._head()
        if kind == "int":
            return count
        if kind == "str":
            return self._text(count)
        if kind == "bin":
            return self._take(count)
        if depth > self.limits.header_depth:
            self.limits.require("header_depth", depth, self.where)
        if kind == "array":
            self._require_left(count)
            self.count(count)
            return [self.value(depth + 1) for _ in range(count)]
        self._require_left(2 * count)
        self.count(2 * count)
        return self._map(count, depth)

    def count(self, nodes: int) -> None:
        """Have ``nodes`` more values, which a length has just announced."""
        self.nodes += nodes
        if self.nodes > self.limits.header_nodes:
            self.limits.require("header_nodes", self.nodes, self.where)

    def _map(self, count: int, depth: int) -> dict[str, Plain]:
        result: dict[str, Plain] = {}
        previous: bytes | None = None
        for _ in range(count):
            first = self.data[self.at] if self.at < len(self.data) else 0
            if 0xA0 <= first <= 0xBF:  # what nearly every key is
                self.at += 1
                raw = self._take(first & 0x1F)
            else:
                kind, length = self._head()
                if kind != "str":
                    self.refuse("wire.key-type", f"a map key is {kind}, keys are str")
                raw = self._take(length)
            key = self.keys.get(raw) or self._key(raw)
            if previous is not None and raw <= previous:
                self.refuse("wire.key-order", f"key {key!r} after {previous.decode()!r}; keys are strictly ascending")
            previous = raw
            result[key] = self.value(depth + 1)
        return result

    def _key(self, raw: bytes) -> str:
        if not raw.isascii():
            self.refuse("wire.key-type", "a map key is not ASCII")
        key = self.keys[raw] = raw.decode("ascii")
        return key

    def _head(self) -> tuple[str, int]:
        """The kind of the next value and its length (or, for an integer, its value)."""
        at = self.at
        if at >= len(self.data):
            self._require_left(1)
        first = self.data[at]
        self.at = at + 1
        if first <= 0x7F:
            return "int", first
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "array", first & 0x0F
        if first <= 0xBF:
            return "str", first & 0x1F
        if first not in _LENGTH_OF:
            self.at = at
            message = "is outside the profile (no nil, bool, float, ext, negative integer)"
            self.refuse("wire.type", f"0x{first:02x} {message}")
        kind, width, smallest = _LENGTH_OF[first]
        count = int.from_bytes(self._take(width), "big")
        if count < smallest:
            self.refuse("wire.not-shortest", f"{kind} {count} has a shorter form than 0x{first:02x}")
        return kind, count

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("wire.utf8", "a string is not UTF-8")

    def _take(self, count: int) -> bytes:
        end = self.at + count
        taken = self.data[self.at : end]
        if len(taken) != count:
            self._require_left(count)
        self.at = end
        return taken

    def _require_left(self, count: int) -> None:
        if count > len(self.data) - self.at:
            self.refuse("wire.truncated", f"needs {count} more bytes, {len(self.data) - self.at} are left")
