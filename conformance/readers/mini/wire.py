"""wire.md: strict msgpack; every value has exactly one byte form."""

from typing import Any

from .errors import Limits, Refusal, within

# Forms: first byte -> (value, bytes of the integer or length that follows, start of its range)
FORMS = {
    0xCC: ("integer", 1, 128),
    0xCD: ("integer", 2, 2**8),
    0xCE: ("integer", 4, 2**16),
    0xCF: ("integer", 8, 2**32),
    0xD9: ("str", 1, 32),
    0xDA: ("str", 2, 2**8),
    0xDB: ("str", 4, 2**16),
    0xC4: ("bin", 1, 0),
    0xC5: ("bin", 2, 2**8),
    0xC6: ("bin", 4, 2**16),
    0xDC: ("array", 2, 16),
    0xDD: ("array", 4, 2**16),
    0xDE: ("map", 2, 16),
    0xDF: ("map", 4, 2**16),
}
# Forms whose first byte holds the integer or length: first byte of the range, its size
SHORT = {"integer": (0x00, 128), "map": (0x80, 16), "array": (0x90, 16), "str": (0xA0, 32)}


def decode(data: bytes, name: str, limits: Limits) -> Any:
    decoder = Decoder(data, name, limits)
    decoder.count(1)
    value = decoder.value(1)
    if decoder.at != len(data):  # wire.trailing
        raise decoder.refusal("wire.trailing", "bytes follow the document's one value")
    return value


class Decoder:
    def __init__(self, data: bytes, name: str, limits: Limits) -> None:
        self.data, self.name, self.limits = data, name, limits
        self.at = 0
        self.nodes = 0

    def refusal(self, code: str, text: str) -> Refusal:
        return Refusal(code, f"{self.name}, byte {self.at}: {text}")

    def take(self, count: int) -> bytes:
        self.fits(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def fits(self, count: int) -> None:
        if count > len(self.data) - self.at:  # wire.truncated, reader.allocation
            raise self.refusal("wire.truncated", f"needs {count} bytes, {len(self.data) - self.at} are left")

    def count(self, values: int) -> None:
        """So many values more, which a length has just announced."""
        self.nodes += values
        within(self.limits, "header_nodes", self.nodes, f"values of {self.name}")  # limit.exceeded/nodes
        most = 4096 + len(self.data) // 5
        if self.nodes > most:  # limit.exceeded/density
            raise self.refusal("limit.exceeded", f"{self.nodes} values, its bytes allow {most}")

    def head(self) -> tuple[str, int]:
        """What a value is, and its integer or length."""
        first = self.take(1)[0]
        for kind, (low, size) in SHORT.items():
            if low <= first < low + size:
                return kind, first - low
        if first not in FORMS:  # wire.type
            raise self.refusal("wire.type", f"first byte {first:02X}")
        kind, width, low = FORMS[first]
        number = int.from_bytes(self.take(width), "big")
        if number < low:  # wire.not-shortest
            raise self.refusal("wire.not-shortest", f"{number} after {first:02X}")
        return kind, number

    def value(self, depth: int) -> Any:
        kind, number = self.head()
        if kind == "integer":
            return number
        if kind == "bin":
            return self.take(number)
        if kind == "str":
            try:
                return self.take(number).decode("utf-8")  # strict: no surrogates, no overlong forms
            except UnicodeDecodeError:  # wire.utf8
                raise self.refusal("wire.utf8", "a str that is not UTF-8") from None
        self.fits(number if kind == "array" else 2 * number)
        within(self.limits, "header_depth", depth, f"nesting of {self.name}")  # limit.exceeded/depth
        self.count(number if kind == "array" else 2 * number)
        if kind == "array":
            return [self.value(depth + 1) for _ in range(number)]
        return self.pairs(number, depth)

    def pairs(self, count: int, depth: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        before: str | None = None
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str) or not key.isascii():  # wire.key-type
                raise self.refusal("wire.key-type", "a map key that is not an ASCII str")
            if before is not None and key <= before:  # wire.key-order: of ASCII, the order of str is that of bytes
                raise self.refusal("wire.key-order", f"key {key} after {before}")
            pairs[key] = self.value(depth + 1)
            before = key
        return pairs


def encode(value: Any) -> bytes:
    """The one byte form of a value; digest.checkpoint needs it."""
    if isinstance(value, int):
        return encode_head("integer", value)
    if isinstance(value, str):
        data = value.encode("utf-8")
        return encode_head("str", len(data)) + data
    if isinstance(value, bytes):
        return encode_head("bin", len(value)) + value
    if isinstance(value, list):
        return encode_head("array", len(value)) + b"".join(map(encode, value))
    items = sorted(value.items())
    return encode_head("map", len(items)) + b"".join(encode(key) + encode(item) for key, item in items)


def encode_head(kind: str, number: int) -> bytes:
    if kind in SHORT and number < SHORT[kind][1]:
        return bytes([SHORT[kind][0] + number])
    first, width = next((f, w) for f, (k, w, _) in FORMS.items() if k == kind and number < 2 ** (8 * w))
    return bytes([first]) + number.to_bytes(width, "big")
