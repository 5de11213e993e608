"""``ulp`` with torch's signed integers: the bits of the reference, sorted or not, over several spans."""

from __future__ import annotations

import numpy as np
import pytest
from builders import kind, opened, random_bytes

torch = pytest.importorskip("torch", reason="torch is an extra")

from skillpack_format.dtypes import DTYPES  # noqa: E402
from skillpack_format.encodings import ulp  # noqa: E402
from skillpack_format.loaded import stepping  # noqa: E402
from skillpack_format.loaded.slots import PATTERNS  # noqa: E402
from skillpack_format.torch_bridge import TorchBench  # noqa: E402

ORDERED = [name for name, dtype in DTYPES.items() if dtype.is_ordered]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def stepped(name: str, items: int, sort: str, device: str) -> None:
    """From any bits to any others: torch and numpy agree, and both arrive."""
    dtype = DTYPES[name]
    start, wanted = (np.frombuffer(random_bytes(items * dtype.itemsize, seed), dtype.bit_pattern) for seed in (1, 2))
    cols = 1 if sort != "rows" or items == 0 else next(n for n in (1000, 77, 7, 3, 1) if items % n == 0)
    shape = (items // cols, cols) if sort == "rows" else (items,)
    classes = np.frombuffer(random_bytes(shape[0], 3), np.uint8) if sort == "rows" else None
    component, _ = opened(ulp.difference(start, wanted, dtype, sort, classes), kind(name, *shape))
    present = torch.from_numpy(start.copy()).view(PATTERNS[dtype.itemsize]).to(device)
    found = stepping.step_on(present, component, TorchBench(device)).cpu().numpy().view(dtype.bit_pattern)
    assert np.array_equal(found, component.rewrite(start, 0))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ORDERED)
def test_steps_of_every_dtype(name: str, device: str) -> None:
    stepped(name, 5000, "none", device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("items", [0, 1, ulp.SPAN - 1, ulp.SPAN, 3 * ulp.SPAN + 77])
@pytest.mark.parametrize("sort", ["magnitude", "rows"])
def test_sorted_steps_over_several_spans(
    name: str, items: int, sort: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping, "_SORTED_ITEMS", 2 * ulp.SPAN)
    stepped(name, items, sort, device)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_by_rows_over_several_spans(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "_SORTED_ITEMS", 2 * ulp.SPAN)
    stepped("BF16", 1_000_000, "rows", device)
