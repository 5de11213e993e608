"""The door to torch: its device as a bench, packs whose deltas are torch tensors, what threads and digests need there.

Everything a bench does is exact or correctly rounded element by element, so a GPU gives the CPU's bits. Products are
made in float64: torch may make float32 ones in TF32 or bfloat16, by settings that belong to the whole process.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from skillpack_format.arithmetic import Bench, DeviceArray, require_finite, round_to_bits
from skillpack_format.dtypes import Array, DType, bits_to_float32
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.native import cpu_bench
from skillpack_format.reader import Pack

_HASH_BYTES: Final = 1 << 26  # what a digest of GPU memory takes on the host at a time
_LANES: Final = threading.local()  # each thread's CUDA streams, by device


class TorchBench:
    """A torch device as the place of the accumulator."""

    block_items = 1 << 22  # 32 MiB of float64: enough to keep a GPU busy

    def __init__(self, device: str) -> None:
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise error("unsupported.device", "", f"{device!r} is not a torch device; cpu and cuda are") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise error("unsupported.device", "", f"{device!r} was asked for, and torch finds no CUDA device")
        if self.device.type not in ("cpu", "cuda"):
            raise error("unsupported.device", "", f"{device!r} has no float64; cpu and cuda have")

    def accumulator(self, bits: Array, dtype: DType, shape: tuple[int, int], where: str) -> DeviceArray:
        values = bits_to_float32(bits, dtype)
        require_finite(values, where, "the base")
        return self._moved(values).to(torch.float64).view(shape) + 0.0

    def left(self, codes: NDArray[np.int8]) -> DeviceArray:
        return self._moved(codes).to(torch.float64)

    def right(self, codes: NDArray[np.int8]) -> DeviceArray:
        return self._moved(codes).to(torch.float64).T

    def add_product(self, acc: DeviceArray, left: DeviceArray, right: DeviceArray, scale: float) -> None:
        product = left @ right
        product *= scale
        acc += product

    def add_levels(self, acc: DeviceArray, levels: NDArray[np.int16], scales: NDArray[np.float32], group: int) -> None:
        cols = acc.shape[1]
        wide = self._moved(scales).to(torch.float64).repeat_interleave(min(group, cols), dim=1)[:, :cols]
        acc += self._moved(levels).to(torch.float64) * wide

    def add_values(self, acc: DeviceArray, values: NDArray[np.float32]) -> None:
        acc += self._moved(values).to(torch.float64)

    def add_outer(self, acc: DeviceArray, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        us, vs = self._moved(left), self._moved(right)
        for k in range(us.shape[0]):
            acc += us[k][:, None] * vs[k]

    def add_at(self, acc: DeviceArray, positions: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        acc.view(-1)[self.index(positions)] += self._moved(values).to(torch.float64)

    def bits(self, patterns: NDArray[Any]) -> DeviceArray:
        """Bit patterns as they are, on the device: unsigned integers of the same width."""
        return self._moved(patterns)

    def index(self, positions: NDArray[np.int64]) -> DeviceArray:
        """``positions`` for indexing a tensor on the device."""
        return self._moved(positions)

    def float32(self, acc: DeviceArray) -> NDArray[np.float32]:
        rounded: NDArray[np.float32] = acc.to(torch.float32).cpu().numpy()
        return rounded

    def rounded(self, acc: DeviceArray, dtype: DType, where: str) -> Array:
        return round_to_bits(self.float32(acc), dtype, where)

    def _moved(self, values: NDArray[Any]) -> torch.Tensor:
        """``values`` on the device. From pinned memory a copy to a GPU goes on while the host decodes what is next."""
        # torch takes no memory that is read-only, and gives a warning or an error
        on_host = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        if self.device.type != "cuda":
            return on_host
        return on_host.pin_memory().to(self.device, non_blocking=True)


def bench_on(device: str) -> Bench:
    """The bench for ``--device``: torch for all but cpu; ``cuda`` is the GPU with most free memory."""
    if device == "cpu":
        return cpu_bench()
    bench = TorchBench(device)
    if device == "cuda":
        free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
        bench.device = torch.device("cuda", free.index(max(free)))
    return bench


def sha256_on(values: torch.Tensor) -> bytes:
    """The SHA-256 of a contiguous tensor's bytes, from a GPU block by block through the host."""
    digest = hashlib.sha256()
    flat = values.view(-1).view(torch.uint8) if values.numel() else values.new_empty(0, dtype=torch.uint8)
    for block in torch.split(flat, _HASH_BYTES):
        digest.update(block.cpu().numpy().data)
    return digest.digest()


@contextmanager
def lane(device: torch.device) -> Iterator[None]:
    """A CUDA stream of the calling thread, waited for at the end: the work of several threads overlaps on the GPU.

    ``settle`` comes before the first lane; a tensor made in a lane is used elsewhere after ``hand_over``.
    """
    if device.type != "cuda":
        yield
        return
    streams = _LANES.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not annotate it
    stream = streams[device]
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def settle(device: torch.device) -> None:
    """Wait for all that the device has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hand_over(values: torch.Tensor) -> None:
    """Let the caller's stream use what a lane made: its memory is not given away before that is done."""
    if values.is_cuda:
        values.record_stream(torch.cuda.current_stream(values.device))


class TorchPack(Pack):
    """A pack whose deltas are float32 torch tensors on a device."""

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS, device: str = "cpu") -> None:
        self._bench = TorchBench(device)
        super().__init__(path, limits)

    def get_delta(self, name: str, bench: Bench | None = None) -> Any:
        """The change of a tensor as a float32 torch tensor; see ``Pack.get_delta``."""
        return torch.from_numpy(super().get_delta(name, bench or self._bench)).to(self._bench.device)
