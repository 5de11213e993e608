"""Torch devices at work: a stream for every thread, pinned memory for copies, and room that is promised before it is
taken.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

STAGED_BYTES: Final = 1 << 22  # of a pinned buffer for the way to a GPU; that for the way back has twice as many
_THREAD: Final = threading.local()  # each thread's streams, by device, and its pinned buffers


@contextmanager
def lane(device: torch.device) -> Iterator[None]:
    """A CUDA stream of the calling thread, waited for at the end: the work of several threads overlaps on the GPU.

    ``settle`` comes before the first lane; a tensor made in a lane is used elsewhere after ``hand_over``.
    """
    if device.type != "cuda":
        yield
        return
    streams = _THREAD.__dict__.setdefault("streams", {})
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


def staging() -> Staging:
    """The calling thread's way to and from GPUs."""
    if "staging" not in _THREAD.__dict__:
        _THREAD.staging = Staging()
    found: Staging = _THREAD.staging
    return found


class Staging:
    """Copies between the host and GPUs through pinned memory that is used again and again: two buffers for the way
    there, so that one is filled while the other travels, and one for the way back.

    Work is queued on the current stream. With a CPU as the device, where the tests run it, it copies at once.
    """

    def __init__(self, nbytes: int = STAGED_BYTES) -> None:
        sizes = nbytes, nbytes, 2 * nbytes
        pinned = torch.cuda.is_available()
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
        self._sent: list[Any] = [None, None]  # of either buffer for the way there: an event, after which it is free
        self._turn = 0

    def send(self, values: NDArray[Any], device: torch.device) -> torch.Tensor:
        """``values`` on a device, of the same dtype and shape. They may be written over at once."""
        source = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        target = torch.empty(source.size, dtype=torch.uint8, device=device)
        step = self._buffers[0].numel()
        for first in range(0, source.size, step):
            piece = source[first : first + step]
            self._send_piece(piece, target[first : first + piece.size])
        return target.view(_torch_dtype(values.dtype)).view(values.shape)

    def _send_piece(self, piece: NDArray[np.uint8], target: torch.Tensor) -> None:
        turn, self._turn = self._turn, 1 - self._turn
        if self._sent[turn] is not None:
            self._sent[turn].synchronize()
        buffer = self._buffers[turn][: piece.size]
        np.copyto(buffer.numpy(), piece)
        target.copy_(buffer, non_blocking=True)
        self._sent[turn] = torch.cuda.current_stream(target.device).record_event() if target.is_cuda else None

    def receive(self, values: torch.Tensor) -> NDArray[Any]:
        """``values`` on the host, of the same dtype and shape. Valid until the thread receives again."""
        if values.nbytes > self._buffers[2].numel():
            whole: NDArray[Any] = values.cpu().numpy()
            return whole
        buffer = self._buffers[2][: values.nbytes].view(values.dtype).view(values.shape)
        buffer.copy_(values, non_blocking=True)
        if values.is_cuda:
            torch.cuda.current_stream(values.device).synchronize()
        found: NDArray[Any] = buffer.numpy()
        return found


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Room:
    """Free bytes of several devices, promised to tensors before any is taken.

    ``free`` is what each has when nothing is promised. Who finds no room waits; on a device where nothing is promised
    work begins whatever it needs, for there it will never find more.
    """

    def __init__(self, free: Sequence[int]) -> None:
        self._free = tuple(free)
        self._promised = [0] * len(self._free)
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[int]:
        """Which device to work on: of those with room the one with most free memory that is not promised."""
        with self._changed:
            usable = self._changed.wait_for(lambda: self._usable(nbytes))
            chosen = max(usable, key=self._left)
            self._promised[chosen] += nbytes
        try:
            yield chosen
        finally:
            with self._changed:
                self._promised[chosen] -= nbytes
                self._changed.notify_all()

    def _usable(self, nbytes: int) -> list[int]:
        every = range(len(self._free))
        return [index for index in every if self._left(index) >= nbytes or not self._promised[index]]

    def _left(self, index: int) -> int:
        return self._free[index] - self._promised[index]
