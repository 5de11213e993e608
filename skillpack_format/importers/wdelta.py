"""``.wdelta`` files of deltatensors 0.2: sparse values, signs with a scale a row, or 4-bit codes with outliers.

A file is a magic, a version, a JSON header, arrays that each name their tensor and field, and the SHA-256 of all that.
It says what is added to every tensor of the base, whose digest it holds. deltatensors adds in float32; the result here
is that sum, bit for bit, rounded to the dtype that the base has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skillpack_format.bits import pack
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import Array, bits_to_float32, dtype_named, float32_to_bits, numel
from skillpack_format.encodings._base import Encoded, Target
from skillpack_format.errors import SkillPackError, error, located
from skillpack_format.importers._base import PACKING, Change, Delta, Factors, Importer
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import Limits
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import parse_json_object, require_tensor_name
from skillpack_format.stores.safetensors_files import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC: Final = b"wdelta\0"
_DIGEST_BYTES: Final = 32
_HASH_BYTES: Final = 1 << 22  # read at a time to prove the file
_NAME_BYTES: Final = 512  # of a field's or dtype's name and, as everywhere, of a tensor's
_FIELDS: Final[Mapping[str, Mapping[str, str]]] = {  # of each strategy, with their dtypes
    "sparse": {"indices": "int64", "values": "float32"},
    "quantized": {"scales": "float16", "packed_signs": "uint8"},
    "int4": {
        "outlier_idx": "int64",
        "outlier_vals": "float16",
        "scale": "float16",
        "zero_point": "float16",
        "packed": "uint8",
    },
}
_KNOWN: Final = {field for fields in _FIELDS.values() for field in fields}
_ITEMS: Final = {"int64": "<i8", "float32": "<f4", "float16": "<f2", "uint8": "|u1"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One array: its dtype's name, its length, and where its bytes are."""

    dtype: str
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """What the file says of one tensor; arrays are read when they are needed."""

    name: str
    strategy: str
    shape: tuple[int, ...]
    stored: Mapping[str, Stored]
    source: SourceFile

    @property
    def where(self) -> str:
        return f"tensor {self.name!r} of the delta"

    def array(self, field: str) -> NDArray[Any]:
        found = self.stored[field]
        item = np.dtype(_ITEMS[found.dtype])
        return np.frombuffer(self.source.read_at(found.offset, found.count * item.itemsize), item)

    def numbers(self, field: str, count: int) -> NDArray[np.float32]:
        """``count`` finite numbers as float32."""
        found = self.array(field).astype(np.float32)
        if found.size != count:
            raise self.wrong(f"{field} has {found.size} items, {count} are due")
        if not np.isfinite(found).all():
            raise error("convert.nonfinite", self.where, f"{field} holds NaN or infinity")
        return found

    def positions(self, field: str) -> NDArray[np.int64]:
        """Ascending positions within the tensor; each is about to become an address."""
        found = self.array(field)
        if found.size and (found[0] < 0 or found[-1] >= numel(self.shape) or (np.diff(found) <= 0).any()):
            raise self.wrong(f"{field} must ascend from 0 to at most {numel(self.shape) - 1}")
        return found

    def wrong(self, message: str) -> SkillPackError:
        return error("convert.delta", self.where, message)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise self.wrong(f"its shape is {list(self.shape)}, and the base's tensor is {list(shape)}")

    def wanted(self, base: Array, kind: TensorKind) -> Array:
        """The bits of base + delta, summed in float32, in the base's dtype."""
        self.require_shape(kind.shape)
        delta = _DELTAS[self.strategy](self)
        dtype = dtype_named(kind.dtype)
        if not dtype.is_arithmetic:
            if delta.any():
                raise error(
                    "unsupported.operation", self.where, f"the base has it as {kind.dtype}, which cannot be added to"
                )
            return base
        with np.errstate(over="ignore", invalid="ignore"):
            return float32_to_bits(bits_to_float32(base, dtype) + delta, dtype)

    def components(self, target: Target, where: str) -> list[Encoded]:
        """A short way to most of it: the codes of the file as codes of a pack."""
        self.require_shape(target.shape)
        if not target.dtype.is_arithmetic or not target.numel:
            return []
        if self.strategy == "quantized":
            return _sign_components(self, target)
        return _code_components(self, target, where) if self.strategy == "int4" else []


def _sparse_delta(tensor: Tensor) -> NDArray[np.float32]:
    positions = tensor.positions("indices")
    delta = np.zeros(numel(tensor.shape), np.float32)
    delta[positions] = tensor.numbers("values", positions.size)
    return delta


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """deltatensors' own view of a tensor as a matrix: its first dimension by all others."""
    return (shape[0], numel(shape[1:])) if len(shape) > 1 else (1, numel(shape))


def _signs(tensor: Tensor) -> NDArray[np.uint8]:
    """1 for plus and 0 for minus, (rows, cols)."""
    rows, cols = _sides(tensor.shape)
    packed = tensor.array("packed_signs")
    if packed.size != (rows * cols + 7) // 8:
        raise tensor.wrong(f"packed_signs has {packed.size} bytes, {(rows * cols + 7) // 8} are due")
    return np.unpackbits(packed)[: rows * cols].reshape(rows, cols)


def _signed_delta(tensor: Tensor) -> NDArray[np.float32]:
    scales = tensor.numbers("scales", _sides(tensor.shape)[0])
    return np.where(_signs(tensor), scales[:, None], -scales[:, None]).reshape(-1)


def _sign_components(tensor: Tensor, target: Target) -> list[Encoded]:
    grid = target.grid
    rows, _ = _sides(tensor.shape)
    scales = tensor.numbers("scales", rows) + np.float32(0)  # -0 becomes +0, which is a scale
    per_row = np.repeat(scales, grid.stack * grid.rows // rows).astype("<f2").view("<u2")
    params = {"bits": 1, "group": grid.cols, "packing": PACKING, "scale": "F16", "zero": 1}
    return [Encoded("blockq", params, {"codes": pack(_signs(tensor), 1, PACKING), "scales": per_row})]


def _codes(tensor: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.uint8], float, float]:
    """Which elements have a code, every element's code (0 where it has none), scale and zero point."""
    coded = np.ones(numel(tensor.shape), np.bool_)
    coded[tensor.positions("outlier_idx")] = False
    count = int(np.count_nonzero(coded))
    packed = tensor.array("packed")
    if packed.size != (count + 1) // 2:
        raise tensor.wrong(f"packed has {packed.size} bytes, {(count + 1) // 2} are due")
    codes = np.zeros(coded.size, np.uint8)
    codes[coded] = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    return coded, codes, float(tensor.numbers("scale", 1)[0]), float(tensor.numbers("zero_point", 1)[0])


def _coded_delta(tensor: Tensor) -> NDArray[np.float32]:
    _, codes, scale, zero_point = _codes(tensor)
    # deltatensors' own steps, each rounded to float32: other steps of the same meaning would give other bits
    delta: NDArray[np.float32] = codes.astype(np.float32) / np.float32(15) * np.float32(scale * 15) + np.float32(
        zero_point
    )
    positions = tensor.positions("outlier_idx")
    delta[positions] = tensor.numbers("outlier_vals", positions.size)
    return delta


def _code_components(tensor: Tensor, target: Target, where: str) -> list[Encoded]:
    """code * scale + zero point, the latter as factors of ones; outliers are not in it."""
    _, codes, scale, zero_point = _codes(tensor)
    grid = target.grid
    found = []
    if scale:
        half = np.full(grid.stack * grid.rows, scale / 2, "<f4").view("<u4")
        params = {"bits": 4, "group": grid.cols, "packing": PACKING, "scale": "F32", "zero": 0}
        found.append(Encoded("blockq", params, {"codes": pack(codes, 4, PACKING), "scales": half}))
    if grid.stack == 1:
        rows, cols = np.ones((1, grid.rows), np.float32), np.ones((1, grid.cols), np.float32)
        found += Factors(rows, np.full(1, zero_point, np.float32), cols, "BF16").components(target, where)
    return found


_DELTAS: Final[Mapping[str, Callable[[Tensor], NDArray[np.float32]]]] = {
    "sparse": _sparse_delta,
    "quantized": _signed_delta,
    "int4": _coded_delta,
}


class Wdelta:
    name = "wdelta"

    def is_kind(self, path: Path, names: Sequence[str]) -> bool:
        if not path.is_file():
            return False
        with SourceFile(path) as source:
            return source.read_at(0, min(source.size, len(MAGIC))) == MAGIC

    @contextmanager
    def open(self, path: Path, limits: Limits) -> Iterator[Delta]:
        with SourceFile(path) as source:
            with located(str(path)):
                header, tensors = _read(source, limits)
            yield Delta(
                changes={name: Change(wanted=each.wanted, terms=(each,)) for name, each in tensors.items()},
                require_base=lambda base: _require_base(base, header["parent_hash"]),
                require_unchanged=source.require_unchanged,
            )


def _read(source: SourceFile, limits: Limits) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = _Reader(source)
    if source.size < len(MAGIC) + 8 + _DIGEST_BYTES or reader.take(len(MAGIC)) != MAGIC:
        raise error("convert.delta", "", "it does not begin like a .wdelta file")
    version = reader.integer(4)
    if version != 1:
        message = f"version {version} of .wdelta is not read, 1 is: what deltatensors 0.2 writes"
        raise error("unsupported.checkpoint", "", message)
    _require_digest(source)
    length = reader.integer(4)
    limits.require("checkpoint_header_bytes", length, "header")
    header = parse_json_object(reader.take(length), "convert.delta", limits)
    listed = header.get("tensors")
    if not isinstance(listed, dict) or not isinstance(header.get("parent_hash"), str):
        raise error("convert.delta", "header", "parent_hash and tensors must be there")
    limits.require("tensors", len(listed), "header")
    arrays = _read_arrays(reader, limits)
    tensors = {name: _tensor(name, plain, arrays.pop(name, {}), source, limits) for name, plain in listed.items()}
    if arrays:
        raise error("convert.delta", "", f"an array is for {next(iter(arrays))!r}, which the header does not list")
    return header, tensors


def _require_digest(source: SourceFile) -> None:
    digest = hashlib.sha256()
    end = source.size - _DIGEST_BYTES
    for at in range(0, end, _HASH_BYTES):
        digest.update(source.read_at(at, min(_HASH_BYTES, end - at)))
    if digest.digest() != source.read_at(end, _DIGEST_BYTES):
        raise error("checkpoint.layout", "", "the SHA-256 at its end is not that of the file; it is damaged or cut off")


class _Reader:
    """Numbers and strings in the order of the file, none beyond the digest at its end."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.at = 0
        self.end = source.size - _DIGEST_BYTES

    def skip(self, count: int) -> int:
        """Where the next ``count`` bytes begin."""
        if count > self.end - self.at:
            raise error(
                "convert.delta", "", f"{count} bytes are claimed at byte {self.at}, {self.end - self.at} are there"
            )
        at, self.at = self.at, self.at + count
        return at

    def take(self, count: int) -> bytes:
        return bytes(self.source.read_at(self.skip(count), count))

    def integer(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self) -> str:
        length = self.integer(4)
        if length > _NAME_BYTES:
            raise error("convert.delta", "", f"a name of {length} bytes at byte {self.at}, {_NAME_BYTES} are allowed")
        return self.take(length).decode("latin-1")  # another name than the header's is refused, whatever its encoding


def _read_arrays(reader: _Reader, limits: Limits) -> dict[str, dict[str, Stored]]:
    found: dict[str, dict[str, Stored]] = {}
    while reader.at < reader.end:
        tensor, field, dtype = reader.text(), reader.text(), reader.text()
        where = f"array {field!r} of {tensor!r}"
        if reader.integer(4) != 1 or dtype not in _ITEMS:
            raise error("convert.delta", where, f"a list of {', '.join(_ITEMS)} is due, {dtype!r} is not")
        count, nbytes = reader.integer(8), reader.integer(8)
        if nbytes != count * np.dtype(_ITEMS[dtype]).itemsize:
            raise error("convert.delta", where, f"{count} items of {dtype} are not {nbytes} bytes")
        fields = found.setdefault(tensor, {})
        limits.require("tensors", len(found), "arrays")
        if field in fields or field not in _KNOWN:
            raise error("convert.delta", where, "it is there more than once, or of a field that is not known")
        fields[field] = Stored(dtype, count, reader.skip(nbytes))
    return found


def _tensor(name: str, plain: Any, stored: dict[str, Stored], source: SourceFile, limits: Limits) -> Tensor:
    require_tensor_name(name, limits)
    where = f"tensor {name!r} of the delta"
    if not isinstance(plain, dict) or plain.get("strategy") not in tuple(_FIELDS):  # a tuple: it may be unhashable
        raise error("convert.delta", where, f"it must have a strategy: {', '.join(_FIELDS)}")
    strategy, shape = plain["strategy"], plain.get("shape")
    if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim < 1 << 48 for dim in shape):
        raise error("convert.delta", where, "its shape must be a list of sizes")
    limits.require("tensor_rank", len(shape), where)
    due = _FIELDS[strategy]
    if {field: each.dtype for field, each in stored.items()} != due:
        message = f"its arrays must be {', '.join(f'{field} ({dtype})' for field, dtype in due.items())}"
        raise error("convert.delta", where, message)
    return Tensor(name, strategy, tuple(shape), stored, source)


def _require_base(base: Checkpoint, parent_hash: str) -> None:
    """Compare the base with the digest in the file. deltatensors takes it of the tensors by name or shard by shard, as
    they are stored or, where a program gave it float32 arrays, of those."""
    names = list(base.specs)
    shards = sorted(sorted(spec.name for spec in shard.tensors) for shard in base.shards)
    by_shard = [name for shard in shards for name in shard]
    as_stored = _digest_of(base, names, widened=False)
    is_base = (
        parent_hash == as_stored
        or (by_shard != names and parent_hash == _digest_of(base, by_shard, widened=False))
        or parent_hash == _digest_of(base, names, widened=True)
    )
    if not is_base:
        message = f"deltatensors' digest of it is {as_stored}, and the delta was made for {parent_hash}"
        raise error("base.content", "base", message)


def _digest_of(base: Checkpoint, names: Sequence[str], *, widened: bool) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("ascii"))
        raw, dtype = base.read(name), base.specs[name].dtype
        if widened and dtype.is_arithmetic and raw:
            digest.update(bits_to_float32(np.frombuffer(raw, dtype.bit_pattern), dtype).data)
        else:
            digest.update(raw)
    return digest.hexdigest()


IMPORTER: Final[Importer] = Wdelta()
