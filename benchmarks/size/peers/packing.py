"""Honest bytes for the clean-room versions: what they would have to ship, packed and written.

A file is a safetensors header and one zstd -19 frame a tensor, or the bytes as they are where that is smaller. That is
kinder than what the peers' own code writes, which is a pickle without compression, or no compressed file at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

LEVEL: Final = 19
HEADER_ENTRY: Final = '"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{size}]}},'


class Shipment:
    """The tensors of one file and their bytes; the frames of tensors that several files share are made once."""

    def __init__(self) -> None:
        self._frames: dict[tuple[str, torch.dtype], int] = {}

    def nbytes(self, own: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor]) -> int:
        """Bytes of the file that holds ``own``, packed now, and ``shared``, packed once for all files."""
        total = 8  # the length of the header
        header = ["{", "}"]
        for name, value in {**own, **shared}.items():
            if name in own:
                size = packed_size(value)
            else:
                key = (name, value.dtype)
                size = self._frames.setdefault(key, 0) or packed_size(value)
                self._frames[key] = size
            dtype = str(value.dtype).removeprefix("torch.")
            header.append(HEADER_ENTRY.format(name=name, dtype=dtype, shape=list(value.shape), size=size))
            total += size
        return total + len(zstandard.ZstdCompressor(level=LEVEL).compress("".join(header).encode()))


def packed_size(value: torch.Tensor) -> int:
    """Bytes of one tensor, compressed where that helps."""
    raw = raw_bytes(value)
    return min(len(raw), len(zstandard.ZstdCompressor(level=LEVEL).compress(raw)))


def raw_bytes(value: torch.Tensor) -> bytes:
    """The little-endian bytes of a tensor of any dtype."""
    flat = value.reshape(-1).clone(memory_format=torch.contiguous_format)  # one element may come with any stride
    return flat.view(torch.uint8).numpy().tobytes()


def pack_codes(codes: NDArray[np.uint8], bits: int) -> torch.Tensor:
    """Unsigned codes of ``bits`` each, one after the other, most significant bit first: uint8."""
    if bits == 8:
        return torch.from_numpy(codes.reshape(-1).copy())
    planes = (codes.reshape(-1, 1) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(planes.reshape(-1)))
