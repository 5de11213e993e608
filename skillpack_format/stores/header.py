"""The header of a safetensors file, read strictly and written canonically.

A file is an 8-byte little-endian length N, N bytes of JSON padded with spaces, then the tensors. The rule: a header
means one thing or is refused. No key twice, no type but the expected, and tensors that cover the data exactly, in
order, without gap or overlap; so a tensor's place follows from the sizes of those before it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from skillpack_format.dtypes import DType, dtype_named, tensor_nbytes
from skillpack_format.errors import ManifestError, error, located
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.names import check_tensor_name
from skillpack_format.sources import SourceFile

LENGTH_BYTES: Final = 8
METADATA_KEY: Final = "__metadata__"
ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}
SIZE_BOUND: Final = 1 << 64  # sizes and offsets are 64-bit in every other reader

# The reference library sorts by its list of dtypes, last one first, then by name; files are to come out the same.
# fmt: off
DTYPE_ORDER: Final = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2",
    "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of one tensor. ``shape`` counts elements, for sub-byte dtypes too."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: the tensors in the order of their bytes, the first of which is at ``data_start``."""

    tensors: tuple[TensorSpec, ...]
    metadata: dict[str, str]
    data_start: int


def read_header(source: SourceFile, limits: Limits) -> Header:
    """The header of an open file; no more of it is read than the limit and the file's size allow."""
    with located(str(source.path)):
        if source.size < LENGTH_BYTES:
            raise error("checkpoint.header", "", f"{source.size} bytes are no safetensors file: the length takes 8")
        length = int.from_bytes(source.read_at(0, LENGTH_BYTES), "little")
        available = source.size - LENGTH_BYTES
        if length > available:
            raise error("checkpoint.header", "", f"a header of {length} bytes is claimed, {available} bytes follow")
        limits.require("checkpoint_header_bytes", length, "header")
        return parse_header(source.read_at(LENGTH_BYTES, length), available - length, limits)


def parse_header(raw: bytes | bytearray, data_nbytes: int | None, limits: Limits) -> Header:
    """Parse the ``raw`` JSON of a header that ``data_nbytes`` of tensors follow; None where the data are not there."""
    if not raw.startswith(b"{"):
        raise error("checkpoint.header", "", "the header does not start with '{'; is this a safetensors file?")
    entries = parse_json_object(raw.rstrip(b" "), "checkpoint.header", limits)
    metadata = _parse_metadata(entries.pop(METADATA_KEY, {}))
    limits.require("tensors", len(entries), "header")
    placed = [_parse_entry(name, entry, limits) for name, entry in entries.items()]
    placed.sort(key=lambda place: place[:2])  # stable: empty tensors at one offset stay in the header's order
    _require_cover(placed, data_nbytes)
    return Header(tuple(spec for _, _, spec in placed), metadata, LENGTH_BYTES + len(raw))


def parse_json_object(raw: bytes | bytearray, code: str, limits: Limits) -> dict[str, Any]:
    """Parse UTF-8 JSON that must be one object, with every key once and finite numbers; ``code`` for what is not.

    A key that comes twice is checkpoint.duplicate: readers differ in which one they believe. -0 becomes a float, so
    that it is no size to those who look for one.
    """
    # every value but the first follows one of these, so this bounds the memory that parsing takes
    limits.require("header_nodes", sum(raw.count(mark) for mark in (b",", b":", b"[")), "JSON")
    try:
        found = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_integer if b"-0" in raw else None,
        )
    except UnicodeDecodeError as failure:
        raise error(code, "", f"is not UTF-8 at byte {failure.start}") from failure
    except ValueError as failure:
        raise error(code, "", f"is not valid JSON: {failure}") from failure
    except RecursionError as failure:
        raise error("limit.exceeded", "", "is JSON nested too deeply for this reader") from failure
    if not isinstance(found, dict):
        raise error(code, "", "is JSON, but not an object")
    return found


def canonical_order(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """``tensors`` in the order in which the reference library lays them out."""
    return tuple(sorted(tensors, key=lambda spec: (DTYPE_ORDER.index(spec.dtype.name), spec.name)))


def encode_header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The length and header of a file that holds ``tensors`` in this order, a multiple of 8 bytes long."""
    entries: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))}
    offset = 0
    for spec in tensors:
        end = offset + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype.name, "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    DEFAULT_LIMITS.require("checkpoint_header_bytes", len(raw), "header to be written")
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def require_tensor_name(name: str, limits: Limits) -> None:
    """Refuse a name that no pack can carry (checkpoint.name)."""
    try:
        check_tensor_name(name, limits, "tensor name")
    except ManifestError as found:
        message = f"{found.message}; rename the tensor, since other characters can look alike or mislead a terminal"
        raise error("checkpoint.name", "", message) from found


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise error("checkpoint.duplicate", "", f"{repeated!r} is there more than once")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int | float:
    return float(text) if text == "-0" else int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _parse_metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise error("checkpoint.header", METADATA_KEY, "must map strings to strings")
    try:
        "".join((*found, *found.values())).encode("utf-8")
    except UnicodeEncodeError as failure:  # JSON can spell half a surrogate pair, which no file can hold
        raise error(
            "checkpoint.header", METADATA_KEY, "holds half a surrogate pair, which is no character"
        ) from failure
    return found


def _parse_entry(name: str, entry: object, limits: Limits) -> tuple[int, int, TensorSpec]:
    """Where a tensor begins and ends in the data, and its spec."""
    require_tensor_name(name, limits)
    with located(f"tensor {name!r}"):
        if not isinstance(entry, dict) or entry.keys() != ENTRY_KEYS:
            raise error("checkpoint.header", "", "must be an object of dtype, shape and data_offsets, nothing else")
        if not isinstance(entry["dtype"], str):
            raise error("checkpoint.header", "dtype", "must be a string")
        shape = _parse_sizes(entry["shape"], "shape")
        limits.require("tensor_rank", len(shape), "shape")
        offsets = _parse_sizes(entry["data_offsets"], "data_offsets")
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise error("checkpoint.header", "data_offsets", "must be a begin and an end that is not before it")
        spec = TensorSpec(name, dtype_named(entry["dtype"]), tuple(shape))
        begin, end = offsets
        _require_size(spec, end - begin, limits)
        return begin, end, spec


def _parse_sizes(found: object, where: str) -> list[int]:
    # type() and not isinstance(): true is no size
    if not isinstance(found, list) or not all(type(size) is int and 0 <= size < SIZE_BOUND for size in found):
        raise error("checkpoint.header", where, "must be a list of integers from 0 to 2^64 - 1")
    return found


def _require_size(spec: TensorSpec, nbytes: int, limits: Limits) -> None:
    try:
        needed = spec.nbytes
    except ManifestError as found:
        raise error("checkpoint.layout", "", found.message) from found
    limits.require("tensor_bytes", needed, "")
    if nbytes != needed:
        message = f"{spec.dtype.name} of shape {list(spec.shape)} takes {needed} bytes, its offsets span {nbytes}"
        raise error("checkpoint.layout", "", message)


def _require_cover(placed: Sequence[tuple[int, int, TensorSpec]], data_nbytes: int | None) -> None:
    """Refuse tensors, sorted by offset, that do not cover the data exactly (checkpoint.layout)."""
    covered = 0
    for begin, end, spec in placed:
        if begin != covered:
            fault = "overlaps the tensor before it" if begin < covered else "leaves a gap before it"
            raise error("checkpoint.layout", f"tensor {spec.name!r}", f"{fault}: {begin}, not {covered}, is its offset")
        covered = end
    if data_nbytes is not None and covered != data_nbytes:
        raise error("checkpoint.layout", "", f"the tensors take {covered} bytes, {data_nbytes} follow the header")
