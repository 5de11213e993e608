"""How large the chunks of a lossless pack are, told from a look at what changed (decision 0027).

Differences lie sorted, and what lies near is alike: a table of symbols for every 16 KiB follows them closely where most
elements differ. Where few do there are long runs of zeros, and chunks of 64 KiB have more of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format.coding import CHUNK_BYTES
from skillpack_format.stores.safetensors_files import Checkpoint

DENSE_CHUNK_BYTES: Final = 1 << 14
DENSE: Final = 0.15  # share of elements that differ
LOOKS: Final = 64  # tensors looked at
LOOK_BYTES: Final = 1 << 16  # in the middle of each


def chunk_bytes_of(before: Checkpoint, after: Checkpoint, names: Sequence[str]) -> int:
    """Decoded bytes of a chunk, for a pack that codes the differences of the tensors ``names`` exactly."""
    common = [name for name in names if before.specs.get(name) == after.specs[name]]
    different = total = 0
    for name in common[:: -(-len(common) // LOOKS) or 1]:
        spec = after.specs[name]
        width = spec.dtype.itemsize or 1
        count = min(spec.nbytes, LOOK_BYTES) // width * width
        start = (spec.nbytes - count) // 2 // width * width
        old, new = (_items(each, name, start, count, width) for each in (before, after))
        different += int(np.count_nonzero((old != new).any(axis=1)))
        total += len(new)
    return DENSE_CHUNK_BYTES if different > DENSE * total else CHUNK_BYTES


def _items(checkpoint: Checkpoint, name: str, start: int, count: int, width: int) -> NDArray[np.uint8]:
    """Bytes of some elements: (elements, width)."""
    source, offset = checkpoint.place(name)
    return np.frombuffer(source.read_at(offset + start, count), np.uint8).reshape(-1, width)
