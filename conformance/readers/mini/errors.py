"""errors.md and limits.md: what a refusal is, and what a file may ask for."""

# "Its first word gives its class."
CLASSES = {
    "framing": "FramingError",
    "wire": "ManifestError",
    "manifest": "ManifestError",
    "storage": "ManifestError",
    "integrity": "IntegrityError",
    "payload": "PayloadError",
    "unsupported": "UnsupportedError",
    "limit": "LimitError",
    "base": "BaseMismatchError",
    "checkpoint": "CheckpointError",
    "input": "InputError",
    "output": "OutputError",
    "usage": "UsageError",
}


class Refusal(Exception):  # noqa: N818 -- the word of the pages: "refuse"
    """The error is reported and no result handed out."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code  # error.code
        self.kind = CLASSES[code.partition(".")[0]]
        self.text = printable(text)
        super().__init__(f"{code}: {self.text}")


def printable(text: str) -> str:
    """error.text: printable ASCII only, everything else escaped, at most 500 characters."""
    shown = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text[:500])
    return shown[:500]


Limits = dict[str, int]

DEFAULTS: Limits = {
    "manifest_bytes": 67108864,
    "storage_bytes": 67108864,
    "header_nodes": 8388608,
    "header_depth": 8,
    "tensors": 262144,
    "tensor_rank": 8,
    "tensor_bytes": 68719476736,
    "name_bytes": 512,
    "components": 8,
    "tensor_products": 17592186044416,
    "chunk_bytes": 16777216,
    "metadata_entries": 256,
    "metadata_bytes": 1048576,
    "side_files": 64,
    "side_file_bytes": 67108864,
    "shards": 4096,
    "layout_bytes": 134217728,
    "checkpoint_header_bytes": 100000000,
}

# This reader holds tensors and contents as Python lists. reader.limits: it refuses larger ones as limit.exceeded
# when it comes to make them; what a document says of larger ones is checked against the limits above only.
READER_BYTES = 67108864


def within(limits: Limits, name: str, asked: int, what: str) -> None:
    """limit.exceeded: refuse, naming the limit, its value and what was asked. An equal value is within."""
    if asked > limits[name]:
        raise Refusal("limit.exceeded", f"{what}: {asked} is above the limit {name} of {limits[name]}")


def can_hold(size: int, what: str) -> None:
    """reader.limits: stop at the reader's own limit before anything of that size is allocated."""
    if size > READER_BYTES:
        raise Refusal("limit.exceeded", f"{what}: {size} bytes; this reader holds tensor_bytes up to {READER_BYTES}")
