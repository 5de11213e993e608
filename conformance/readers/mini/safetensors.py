"""Checkpoint files. No page defines them: a little strict reader and writer of safetensors.

    u64 n | n bytes of JSON | data          JSON: name -> {"dtype", "shape", "data_offsets": [begin, end)}

The JSON may begin with `{` only, may end in blanks, and may hold `__metadata__`, a map of strings. The data of the
tensors lie without gap or overlap and fill the rest of the file.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

from .errors import Limits, Refusal, within
from .manifest import is_visible
from .numerics import Tensor, check_tensor, find_dtype


@dataclass
class Stored:
    """A tensor of a checkpoint: what it is, and its bytes."""

    tensor: Tensor
    data: bytes


Checkpoint = dict[str, Stored]


def header_refusal(text: str) -> Refusal:
    return Refusal("checkpoint.header", text)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Refusal("checkpoint.duplicate", "a key of the header occurs twice")
    return dict(pairs)


def no_constant(text: str) -> Any:
    raise ValueError(text)


def strict_json(data: bytes) -> Any:
    """manifest.md, Layout. An integer with a sign becomes a float, which is no size."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=no_duplicates,
            parse_constant=no_constant,
            parse_int=lambda digits: float(digits) if digits.startswith("-") else int(digits),
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair has no UTF-8
    except RecursionError:  # reader.limits
        raise Refusal("limit.exceeded", "JSON nested deeper than this reader goes") from None
    except ValueError:
        raise header_refusal("the header is not JSON") from None
    return value


@dataclass
class Place:
    """Where a header puts a tensor, whose digest it does not say."""

    name: str
    tensor: Tensor
    begin: int
    end: int


def read_header(header: bytes, limits: Limits) -> list[Place]:
    """The tensors of a header in the order of their data."""
    if not header.startswith(b"{"):
        raise header_refusal("the header is no JSON object")
    values = strict_json(header)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise header_refusal("__metadata__ is not a map of strings")
    within(limits, "tensors", len(values), "the checkpoint")  # limit.exceeded/base
    places = [read_place(name, value, limits) for name, value in values.items()]
    places.sort(key=lambda place: (place.begin, place.end))
    at = 0
    for place in places:
        if place.begin != at:
            raise Refusal("checkpoint.layout", f"tensor {place.name} begins at {place.begin} instead of {at}")
        at = place.end
    return places


def read_checkpoint(file: BinaryIO, limits: Limits) -> Checkpoint:
    """The whole file is read once, so that what is used is what was verified (integrity.source-changed)."""
    length = int.from_bytes(file.read(8), "little")
    within(limits, "checkpoint_header_bytes", length, "header of the checkpoint")
    header = file.read(length)
    data = file.read()
    if len(header) != length:
        raise header_refusal("the header is cut")
    places = read_header(header, limits)
    if sum(place.tensor.size for place in places) != len(data):
        raise Refusal("checkpoint.layout", f"the tensors do not fill the {len(data)} bytes of data")
    listing = {}
    for place in sorted(places, key=lambda place: place.name):  # ascending by the bytes of the names
        bits = data[place.begin : place.end]
        digest = hashlib.sha256(bits).digest()
        listing[place.name] = Stored(Tensor(place.tensor.dtype, place.tensor.shape, digest), bits)
    return listing


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64


def read_place(name: str, value: Any, limits: Limits) -> Place:
    where = f"tensor {name} of the checkpoint"
    if name == "" or not is_visible(name):  # apply.base-names
        raise Refusal("checkpoint.name", f"{where}: a pack cannot hold the name")
    within(limits, "name_bytes", len(name), f"{where}: name")  # limit.exceeded/base, with what check_tensor checks
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise header_refusal(f"{where}: other keys than dtype, shape, data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(map(is_size, shape)):
        raise header_refusal(f"{where}: dtype or shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise header_refusal(f"{where}: data_offsets")
    tensor = Tensor(find_dtype(dtype, where), tuple(shape), b"")
    check_tensor(tensor, limits, where)
    begin, end = offsets
    if end - begin != tensor.size:
        raise Refusal("checkpoint.layout", f"{where}: data_offsets {begin} to {end} for {tensor.size} bytes")
    return Place(name, tensor, begin, end)


def write_checkpoint(file: BinaryIO, checkpoint: Checkpoint) -> None:
    header, at = {}, 0
    for name, stored in sorted(checkpoint.items()):
        offsets = [at, at + len(stored.data)]
        header[name] = {"dtype": stored.tensor.dtype.name, "shape": stored.tensor.shape, "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text = text.ljust((len(text) + 7) // 8 * 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, stored in sorted(checkpoint.items()):
        file.write(stored.data)
