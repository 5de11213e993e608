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

# limit.exceeded/density: a document may have so many values, and one more for every so many of its bytes
FREE_VALUES: Final = 4096
BYTES_A_VALUE: Final = 5

_KEPT_KEYS: Final = 256  # more than the format has; a document of ever new keys would only fill the table

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
    return _Decoder(data, limits, where).document()


def _sorted(value: Plain) -> Plain:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


def _heads() -> tuple[tuple[str, int, int], ...]:
    """What each first byte says: as in _LENGTH_OF, or the value or length itself where no bytes of it follow."""
    found = [("none", 0, 1 << 64)] * 256
    for kind, first, count in (("int", 0x00, 128), ("map", 0x80, 16), ("array", 0x90, 16), ("str", 0xA0, 32)):
        found[first : first + count] = [(kind, 0, number) for number in range(count)]
    for first, form in _LENGTH_OF.items():
        found[first] = form
    return tuple(found)


_HEADS: Final = _heads()
_KEY_BYTES: Final = tuple(1 + (first & 0x1F) for first in range(256))  # of a key that is as short as nearly all are


class _Decoder:
    """One document in bytes. ``most``: values it may have; ``keys``: map keys met before, by head and text."""

    __slots__ = ("data", "keys", "limits", "most", "where")

    def __init__(self, data: bytes, limits: Limits, where: str) -> None:
        self.data = data
        self.limits = limits
        self.where = where
        self.most = min(limits.header_nodes, FREE_VALUES + len(data) // BYTES_A_VALUE)
        self.keys: dict[bytes, str] = {}

    def document(self) -> Plain:
        self.require_values(1)
        document, end = self.value()
        if end != len(self.data):
            self.refuse("wire.trailing", end, f"{len(self.data) - end} bytes follow the document")
        return document

    def value(self) -> tuple[Plain, int]:  # noqa: C901, PLR0912, PLR0915 - one loop: a call a value would double the time
        """What ``data`` begins with, and where it ends."""
        data, keys, size, deepest, most = self.data, self.keys, len(self.data), self.limits.header_depth, self.most
        at, values = 0, 1  # values: as many as the lengths read have announced
        whole: list[Plain] = []
        value: Any
        # the container that is open: itself, how many members are to come, and a map's last key, None in an array
        opened: Any = whole
        left, key = 1, None
        around: list[Any] = []  # the same of those around it
        try:
            while True:
                while left:
                    left -= 1
                    if key is not None:
                        end = at + _KEY_BYTES[data[at]]
                        found = keys.get(data[at:end])
                        if found is None:
                            found, end = self.key(at)
                        if found <= key and opened:  # the first may be empty
                            self.refuse("wire.key-order", at, f"key {found!r} after {key!r}; keys strictly ascend")
                        key, at = found, end
                    kind, width, value = _HEADS[data[at]]
                    at += 1
                    if width:
                        least, value = value, data[at] if width == 1 else int.from_bytes(data[at : at + width], "big")
                        at += width
                        if at > size or value < least:
                            self.refuse_number(at - width, width, kind, value)
                    if kind == "str":
                        end = at + value
                        if end > size:
                            self.refuse_end(value, at)
                        value, at = data[at:end].decode(), end
                    elif kind == "bin":
                        end = at + value
                        if end > size:
                            self.refuse_end(value, at)
                        value, at = data[at:end], end
                    elif kind != "int":
                        in_array, count = kind == "array", value
                        announced = count if in_array else 2 * count
                        values += announced
                        if announced > size - at or values > most or len(around) >= deepest:
                            self.refuse_container(at, kind, announced, len(around) + 1, values)
                        value = [] if in_array else {}
                        if count:
                            if key is None:
                                opened.append(value)
                            else:
                                opened[key] = value
                            around.append((opened, left, key))
                            opened, left, key = value, count, None if in_array else ""
                            continue
                    if key is None:
                        opened.append(value)
                    else:
                        opened[key] = value
                if not around:
                    return whole[0], at
                opened, left, key = around.pop()
        except IndexError:  # of data[at]
            self.refuse_end(1, size)
        except UnicodeDecodeError:
            self.refuse("wire.utf8", at, "a string is not UTF-8")

    def key(self, at: int) -> tuple[str, int]:
        """The map key at ``at``, and where it ends."""
        data = self.data
        kind, width, count = _HEADS[data[at]]
        start = at + 1 + width
        if width:
            least, count = count, int.from_bytes(data[at + 1 : start], "big")
            if start > len(data) or count < least:
                self.refuse_number(at + 1, width, kind, count)
        if kind != "str":
            if kind == "none":
                self.refuse_type(at)
            self.refuse("wire.key-type", at, f"a map key is {kind}, keys are str")
        end = start + count
        raw = data[start:end]
        if len(raw) < count:
            self.refuse_end(count, start)
        if not raw.isascii():
            self.refuse("wire.key-type", at, "a map key is not ASCII")
        key = raw.decode()
        if len(self.keys) < _KEPT_KEYS:
            self.keys[data[at:end]] = key
        return key, end

    def refuse_container(self, at: int, kind: str, announced: int, depth: int, values: int) -> None:
        """Refuse the array or map whose members would begin at ``at``."""
        if kind == "none":
            self.refuse_type(at - 1)
        if announced > len(self.data) - at:
            self.refuse_end(announced, at)
        self.limits.require("header_depth", depth, self.where)
        self.require_values(values)

    def refuse_number(self, at: int, width: int, kind: str, number: int) -> NoReturn:
        """Refuse the ``number`` of ``width`` bytes at ``at``."""
        if width > len(self.data) - at:
            self.refuse_end(width, at)
        self.refuse("wire.not-shortest", at - 1, f"{kind} {number} has a shorter form than 0x{self.data[at - 1]:02x}")

    def refuse_type(self, at: int) -> NoReturn:
        message = "is outside the profile (no nil, bool, float, ext, negative integer)"
        self.refuse("wire.type", at, f"0x{self.data[at]:02x} {message}")

    def refuse_end(self, count: int, at: int) -> NoReturn:
        """Refuse a document that ends within the ``count`` bytes at ``at``."""
        self.refuse("wire.truncated", at, f"needs {count} more bytes, {len(self.data) - at} are left")

    def require_values(self, values: int) -> None:
        self.limits.require("header_nodes", values, self.where)
        if values > self.most:
            message = f"has {values} values or more in {len(self.data)} bytes, {self.most} are the most"
            raise error("limit.exceeded", self.where, message)

    def refuse(self, code: str, at: int, message: str) -> NoReturn:
        raise error(code, self.where, f"byte {at}: {message}")
