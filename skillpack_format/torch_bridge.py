"""The door to torch: its devices as benches, packs whose deltas are torch tensors, digests of tensors.

Everything a bench does is exact or correctly rounded element by element, so a GPU gives the CPU's bits. START travels
as bit patterns and codes as they are stored; a device widens, unpacks, multiplies, adds, rounds and checks, and what
comes back are result bits and two flags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from skillpack_format.arithmetic import BLOCK_ITEMS, Bench, DeviceArray, nonfinite, overflow, runs_of_rows
from skillpack_format.codes import CodeMatrix, Levels
from skillpack_format.devices import STAGED_BYTES, Room, lane, staging
from skillpack_format.dtypes import Array, DType
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.making import summed_blocks
from skillpack_format.native import cpu_bench
from skillpack_format.reader import Pack

_HASH_BYTES: Final = 2 * STAGED_BYTES  # what a digest of GPU memory takes on the host at a time
_BLOCK_COPIES: Final = 8  # of a block of float64 that a device holds while it makes a tensor, temporaries and codes too
_FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PATTERNS: Final = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
_INFINITY: Final = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}


@dataclass(frozen=True, slots=True)
class Sum:
    """An accumulator, and whether what it began with was finite: read when the result is, so that no work waits."""

    values: torch.Tensor  # (rows, cols) float64
    is_finite: torch.Tensor  # () bool
    where: str


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of an integer product: (items, rank) int8 padded with zeros where ``_int_mm`` wants that, or float64."""

    codes: torch.Tensor
    items: int


class TorchBench:
    """A torch device as the place of the accumulator.

    Products of integer codes are made of int8 with int32 sums (``torch._int_mm``), which no setting can change: every
    sum is exact, in any order, and tensor cores are made for it. Its shapes are padded with zeros to what cuBLAS
    takes. float32 would be exact too, were it not for TF32, which any library may switch on for the whole process;
    float64 is exact, and many GPUs do a small part as many of them. float64 is used where ``_int_mm`` is missing or
    gives wrong sums of extreme codes: on processors without VNNI oneDNN adds in 16 bits and saturates.
    """

    block_items = BLOCK_ITEMS

    def __init__(self, device: str, *, has_integers: bool | None = None) -> None:
        self.device = _device_named(device)
        if self.device.type == "cuda":
            self.block_items = 1 << 22  # 32 MiB of float64, enough to keep a GPU busy; 8 MiB of 16-bit results
        self._has_integers = multiplies_integers(self.device) if has_integers is None else has_integers

    def for_tensor(self, where: str, items: int) -> AbstractContextManager[Bench]:
        return nullcontext(self)

    def accumulator(self, bits: Array, dtype: DType, shape: tuple[int, int], where: str) -> Sum:
        patterns = self._moved(bits.view(f"<i{bits.itemsize}"))
        return self.sum_of(patterns.view(_FLOATS[dtype.name]).view(shape), where)

    def sum_of(self, values: torch.Tensor, where: str, touched: torch.Tensor | None = None) -> Sum:
        """An accumulator of ``values`` (rows, cols), which are on the device and stay as they are.

        They must be finite where ``touched``, a flat mask, is set; everywhere without one.
        """
        wide = values.to(torch.float64, copy=True).add_(0.0)  # num.zero: -0 counts as +0
        return Sum(wide, all_finite(values, touched), where)

    def signed(self, codes: CodeMatrix) -> DeviceArray:
        return (self._unpacked(codes) - codes.half).view(torch.int8)  # wraps below zero

    def half_steps(self, levels: Levels) -> DeviceArray:
        zeros: Any = levels.zeros
        if not isinstance(zeros, int):
            zeros = _spread(self._moved(zeros), levels.group, levels.shape[1])
        return self._unpacked(levels.codes).to(torch.int16).mul_(2).sub_(zeros)

    def factor(self, numbers: Levels | NDArray[np.float32], weights: NDArray[np.float64] | None) -> DeviceArray:
        if isinstance(numbers, Levels):
            scales = _spread(self._moved(numbers.scales).to(torch.float64), numbers.group, numbers.shape[1])
            values = self.half_steps(numbers).to(torch.float64).mul_(scales)
        else:
            values = self._moved(numbers).to(torch.float64)
        return values if weights is None else values.mul_(self._moved(weights)[:, None])

    def left(self, codes: DeviceArray) -> Operand:
        return self._operand(codes, 32)  # more than 16 rows are asked for

    def right(self, codes: DeviceArray) -> Operand:
        return self._operand(codes, 16)

    def _operand(self, codes: torch.Tensor, multiple: int) -> Operand:
        items, rank = codes.shape
        if not self._has_integers:
            return Operand(codes.to(torch.float64), items)
        padding = (0, -rank % 16, 0, -items % multiple)
        return Operand(functional.pad(codes, padding) if any(padding) else codes, items)

    def add_product(self, acc: Sum, left: Operand, right: Operand, scale: float) -> None:
        if not self._has_integers:
            acc.values.add_(left.codes @ right.codes.T, alpha=scale)
            return
        product = _integer_product(left.codes, right.codes)[: left.items, : right.items]
        # a GPU widens within the sum; torch on a CPU takes many times as long for that as for both, one by one
        acc.values.add_(product if product.is_cuda else product.to(torch.float64), alpha=scale)

    def add_levels(self, acc: Sum, levels: DeviceArray, scales: NDArray[np.float32], group: int) -> None:
        wide = _spread(self._moved(scales).to(torch.float64), group, levels.shape[1])
        acc.values.add_(levels.to(torch.float64).mul_(wide))

    def add_values(self, acc: Sum, values: NDArray[np.float32]) -> None:
        acc.values.add_(self._moved(values).to(torch.float64))

    def add_outer(self, acc: Sum, left: DeviceArray, right: DeviceArray) -> None:
        for k in range(left.shape[0]):
            product = left[k][:, None] * right[k]  # rounded by itself, so not addcmul_, which may fuse
            acc.values.add_(product)

    def add_at(self, acc: Sum, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        acc.values.view(-1)[self.index(positions)] += self._moved(values).to(torch.float64)

    def spectrum(self, tall: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        gram = torch.zeros((tall.shape[1],) * 2, dtype=torch.float64, device=self.device)
        for rows in runs_of_rows(tall):
            wide = self._moved(np.ascontiguousarray(tall[rows])).to(torch.float64)
            gram += wide.T @ wide
        values, vectors = torch.linalg.eigh(gram)
        return values.cpu().numpy(), vectors.cpu().numpy()

    def bits(self, patterns: NDArray[Any]) -> DeviceArray:
        """Bit patterns as they are, on the device: unsigned integers of the same width."""
        return self._moved(patterns)

    def index(self, positions: NDArray[np.int64]) -> DeviceArray:
        """``positions`` for indexing a tensor on the device."""
        return self._moved(positions)

    def float32(self, acc: Sum) -> NDArray[np.float32]:
        return _on_host(acc.values.to(torch.float32))

    def rounded(self, acc: Sum, dtype: DType, where: str) -> Array:
        made = rounded_on(acc.values, _FLOATS[dtype.name])
        found = _on_host(made.view(_PATTERNS[made.dtype]))
        raise_faults(torch.stack((acc.is_finite, all_finite(made))), dtype.name, where)
        return found.view(dtype.bit_pattern)

    def _unpacked(self, codes: CodeMatrix) -> torch.Tensor:
        """(rows, cols) uint8 on the device, to which the packed bytes travel."""
        flat = unpack_on(self._moved(codes.packed), codes.bits, codes.packing)[codes.skip : codes.count]
        return flat.view(codes.rows, codes.width)[:, codes.cols]

    def _moved(self, values: NDArray[Any]) -> torch.Tensor:
        """``values`` on the device, of the same dtype and shape."""
        if self.device.type == "cuda":
            return staging().send(values, self.device)
        # torch takes no memory that is read-only, and gives a warning or an error
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))


class SpreadBench(TorchBench):
    """Several devices: every tensor is made on one of them, the one with most free memory that is not promised.

    Each thread works on a stream of its own, so that the copies of one tensor overlap with the work on another.
    """

    def __init__(self, devices: Sequence[str], free: Sequence[int] | None = None) -> None:
        super().__init__(devices[0])
        self._benches = tuple(TorchBench(device) for device in devices)
        self._room = Room([free_bytes(each.device) for each in self._benches] if free is None else free)

    def spectrum(self, tall: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        with self.for_tensor("a matrix being decomposed", tall.size) as bench:
            return bench.spectrum(tall)

    @contextmanager
    def for_tensor(self, where: str, items: int) -> Iterator[Bench]:
        with self._room.hold(_BLOCK_COPIES * 8 * min(items, self.block_items)) as chosen:
            bench = self._benches[chosen]
            try:
                with lane(bench.device):
                    yield bench
            except torch.OutOfMemoryError as found:
                message = f"{bench.device} has too little free memory for it; fewer threads work on fewer at a time"
                raise error("resource.memory", where, message) from found


def bench_on(device: str) -> Bench:
    """The bench for ``--device``: torch for all but cpu; ``cuda`` is every GPU, ``cuda:N`` one."""
    if device == "cpu":
        return cpu_bench()
    if _device_named(device) == torch.device("cuda"):
        return SpreadBench([f"cuda:{index}" for index in range(torch.cuda.device_count())])
    return SpreadBench([device])


def _device_named(device: str) -> torch.device:
    """unsupported.device for what is not there, or cannot keep the arithmetic."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise error("unsupported.device", "", f"{device!r} is not a torch device; cpu and cuda are") from None
    if found.type not in ("cpu", "cuda"):
        raise error("unsupported.device", "", f"{device!r} has no float64; cpu and cuda have")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise error("unsupported.device", "", f"{device!r} was asked for, and torch finds no CUDA device")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        message = f"{device!r} was asked for, and torch finds {torch.cuda.device_count()} CUDA devices, the first 0"
        raise error("unsupported.device", "", message)
    return found


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody has taken; of the host, whose memory other budgets bound, more than is ever asked."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 1 << 62


@cache
def multiplies_integers(device: torch.device) -> bool:
    """Whether ``_int_mm`` is there and right for codes where every narrower sum would overflow or saturate."""
    signs = torch.tensor([[-128], [127]], dtype=torch.int8).repeat(32, 64)  # (64, 64)
    left, right = signs.to(device), torch.cat((signs[1:], signs[:1])).to(device)
    wanted = left.to(torch.float64) @ right.to(torch.float64).T
    try:
        return torch.equal(torch._int_mm(left, right.T).to(torch.float64), wanted)
    except (AttributeError, RuntimeError):  # an older torch; a GPU for which cuBLAS has no such product
        return False


def _integer_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left`` (m, r) times ``right`` (n, r) transposed, both int8: int32, or float64 for a shape that is refused."""
    try:
        return torch._int_mm(left, right.T)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # which shapes and layouts cuBLAS takes depends on its version and the GPU
        return left.to(torch.float64) @ right.to(torch.float64).T


def unpack_on(packed: torch.Tensor, bits: int, packing: str) -> torch.Tensor:
    """Every code in ``packed``, bytes of whole groups of eight codes or the last ones: flat uint8, where they are.

    Spare bits have been checked; what lies behind the last code is anything.
    """
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    if packing == "lanes":
        shifts = torch.arange(0, 8 // bits * bits, bits, dtype=torch.uint8, device=packed.device)
        return (packed[:, None] >> shifts).bitwise_and_(mask).view(-1)
    groups = functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits)  # eight codes a row
    codes = torch.empty((groups.shape[0], 8), dtype=torch.uint8, device=packed.device)
    for code in range(8):
        first, shift = divmod(code * bits, 8)
        found = groups[:, first] >> shift
        if shift + bits > 8:
            found |= groups[:, first + 1] << (8 - shift)
        codes[:, code] = found
    return codes.bitwise_and_(mask).view(-1)


def _on_host(values: torch.Tensor) -> NDArray[Any]:
    """``values`` on the host; from a GPU, valid until the thread asks for the next."""
    found: NDArray[Any] = staging().receive(values) if values.is_cuda else values.numpy()
    return found


def _spread(per_group: torch.Tensor, group: int, cols: int) -> torch.Tensor:
    """(rows, groups) to (rows, cols), as ``codes.spread``."""
    return per_group.repeat_interleave(min(group, cols), dim=1)[:, :cols]


def rounded_on(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to float32 to ``dtype``, each to nearest, ties to even (num.round)."""
    return values.to(torch.float32).to(dtype)


def all_finite(values: torch.Tensor, touched: torch.Tensor | None = None) -> torch.Tensor:
    """Whether every element of floats, or every one that a flat mask is set for, is finite: () bool, where they are."""
    most = torch.iinfo(_PATTERNS[values.dtype]).max
    magnitudes = values.view(_PATTERNS[values.dtype]) & most
    if touched is not None:
        magnitudes = magnitudes.view(-1) * touched
    return magnitudes.amax() < _INFINITY[values.dtype]


def raise_faults(flags: torch.Tensor, dtype: str, where: str) -> None:
    """payload.nonfinite, payload.overflow: ``flags`` (2,) bool say that START and that the result is finite."""
    is_finite, is_within = flags.tolist()
    if not is_finite:
        raise nonfinite(where)
    if not is_within:
        raise overflow(dtype, where)


def sha256_on(values: torch.Tensor) -> bytes:
    """The SHA-256 of a contiguous tensor's bytes, from a GPU block by block through the host."""
    digest = hashlib.sha256()
    flat = values.view(-1).view(torch.uint8) if values.numel() else values.new_empty(0, dtype=torch.uint8)
    for block in torch.split(flat, _HASH_BYTES):
        digest.update(_on_host(block).data)
    return digest.digest()


class TorchPack(Pack):
    """A pack whose deltas are float32 torch tensors on a device."""

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS, device: str = "cpu") -> None:
        self._bench = TorchBench(device)
        super().__init__(path, limits)

    def get_delta(self, name: str, bench: Bench | None = None) -> Any:
        """The change of a tensor as a float32 torch tensor, made on the device; see ``Pack.get_delta``."""
        device = self._bench.device
        if bench is not None:
            return torch.from_numpy(super().get_delta(name, bench)).to(device)
        target, additive = self._summands(name)
        if not target.numel:
            return torch.from_numpy(super().get_delta(name)).to(device)
        delta = torch.empty(target.numel, dtype=torch.float32, device=device)
        for items, acc in summed_blocks(target.grid, additive, self._bench):
            delta[items] = acc.values.view(-1)  # rounded by the assignment
        return delta.view(target.shape)
