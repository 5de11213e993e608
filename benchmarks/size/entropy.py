"""How near a pack's bytes come to the zeroth-order entropy of its codes, header and tables included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import skillpack_format as skp
from skillpack_format.contents import target_of


@dataclass(frozen=True, slots=True)
class Entropy:
    """Bytes of a whole file, and of its codes at the zeroth-order entropy of each component's every part."""

    file_bytes: int
    entropy_bytes: float
    header_bytes: int

    @property
    def over(self) -> float:
        """The share by which the file is larger."""
        return self.file_bytes / self.entropy_bytes - 1 if self.entropy_bytes else 0.0


def entropy_of(path: Path) -> Entropy:
    """Decode every component of a pack and count its symbols."""
    with skp.open_pack(path) as pack:
        total = 0.0
        for name, entry in pack.entries.items():
            for planned in pack.contents.components.get(name, ()):
                if entry.result is None:
                    continue
                parts = pack.read_content(planned.segment)
                opened = planned.encoding.open(planned.params, target_of(entry.result.kind), parts, name)
                total += sum(order_zero_bytes(codes) for codes in _codes(opened, parts))
        return Entropy(pack.nbytes, total, pack.header_bytes)


def order_zero_bytes(codes: NDArray[Any]) -> float:
    """Bytes of ``codes`` at the entropy of their own frequencies, the table of which is not counted."""
    if codes.size == 0:
        return 0.0
    _, counts = np.unique(codes, return_counts=True)
    share = counts / codes.size
    return float(-(share * np.log2(share)).sum() * codes.size / 8)


def _codes(opened: Any, parts: dict[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The symbols of each part: integer factors as codes; others as items, or byte planes above two bytes."""
    slices = getattr(opened, "slices", None)
    if slices is not None:
        for each in slices:
            yield from (each.u.signed().reshape(-1), each.v.signed().reshape(-1), *_planes(each.scales))
        return
    for items in parts.values():
        yield from [items] if items.dtype.itemsize <= 2 else _planes(items)


def _planes(items: NDArray[Any]) -> list[NDArray[Any]]:
    table = np.ascontiguousarray(items).reshape(-1).view(np.uint8).reshape(-1, items.dtype.itemsize)
    return [table[:, plane] for plane in range(items.dtype.itemsize)]
