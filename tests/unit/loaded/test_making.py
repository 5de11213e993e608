"""The decode rule on a torch device: the bits of ``making`` for every example, and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import EXAMPLES, Case, change_of, f32, kind, made_directly, refused, same_kind, u16, u32

torch = pytest.importorskip("torch", reason="torch is an extra")

from skillpack_format.dtypes import DTYPES, float32_to_bits  # noqa: E402
from skillpack_format.encodings import dense, sparse  # noqa: E402
from skillpack_format.encodings._base import Encoded  # noqa: E402
from skillpack_format.loaded import making  # noqa: E402
from skillpack_format.loaded.slots import DTYPE_NAMES  # noqa: E402
from skillpack_format.making import Change  # noqa: E402
from skillpack_format.torch_bridge import TorchBench  # noqa: E402

TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
CASES = [(name, case) for name, build in EXAMPLES.items() for case in build() if case.base == case.result]
ALL = pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{name}-{case.label}" for name, case in CASES])
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def made_on(device: str, case: Case) -> bytes:
    raw = torch.frombuffer(bytearray(case.raw or b""), dtype=torch.uint8)
    base = raw.view(TORCH_DTYPES[case.result.dtype]).to(device)
    made = making.make_on(torch.device(device), base, case.result, change_of(case), "here")
    return made.view(torch.uint8).cpu().numpy().tobytes()


def add_f32(*values: float) -> Encoded:
    return Encoded("dense", {"dtype": "F32", "mode": "add"}, {"values": np.frombuffer(f32(*values), "<u4")})


@ALL
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("items", [1, 5, 1 << 24])
def test_makes_the_bits_of_the_reference(case: Case, device: str, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchBench, "block_items", items)
    assert made_on(device, case) == made_directly(case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_rounds_as_the_reference_does(name: str, device: str) -> None:
    """float64 to float32 to the dtype, both to nearest even: random bits, ties, subnormals, and the largest values."""
    random = np.random.default_rng(3)
    wide = random.integers(0, 1 << 64, 200_000, dtype=np.uint64).view(np.float64)
    exponents = 2.0 ** random.integers(-155, 129, 200_000)
    values = np.concatenate([wide, (1 + random.random(200_000)) * exponents, _ties(name)])
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore", under="ignore"):
        expected = float32_to_bits(values.astype(np.float32), DTYPES[name])
    on_device = torch.from_numpy(values).to(device).to(torch.float32).to(TORCH_DTYPES[name])
    found = on_device.cpu().view(torch.uint8).numpy().view(DTYPES[name].bit_pattern)
    assert np.array_equal(found, expected)


def _ties(name: str) -> np.ndarray:
    """Every value of a 16-bit dtype and the midpoints between neighbours; for float32 those around its subnormals."""
    if name == "F32":
        steps = np.arange(0, 4096) / 2
        return np.concatenate([steps * 2.0**-149, -steps * 2.0**-149, 1 + steps * 2.0**-23])
    patterns = np.arange(0, 0x7F80 if name == "BF16" else 0x7C00, dtype=np.uint16)
    wide = patterns.astype(np.uint32) << 16
    exact = (wide.view(np.float32) if name == "BF16" else patterns.view(np.float16)).astype(np.float64)
    middle = (exact[1:] + exact[:-1]) / 2
    return np.concatenate([exact, middle, -middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])


@pytest.mark.parametrize("device", DEVICES)
def test_refuses_what_the_reference_refuses(device: str) -> None:
    infinite = same_kind("t", kind("BF16", 1, 2), u16(0x3F80, 0x7F80).tobytes(), add_f32(1.0, 1.0))
    refused("payload.nonfinite", made_on, device, infinite)
    beyond = same_kind("t", kind("F16", 1, 1), u16(0x7BFF).tobytes(), add_f32(1000.0))
    refused("payload.overflow", made_on, device, beyond)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_addressed_keeps_its_bits(device: str) -> None:
    at = sparse.placed(np.array([1]), u32(0x3F800000), DTYPES["F32"], 4, "add")
    raw = u32(0x7F800001, 0x80000000, 0xFF800000, 0x80000000).tobytes()
    case = same_kind("t", kind("F32", 1, 4), raw, at)
    assert made_on(device, case) == u32(0x7F800001, 0x3F800000, 0xFF800000, 0x80000000).tobytes()
    assert made_directly(case) == made_on(device, case)


def placed(name: str, values: list[int]) -> list[Encoded]:
    """Replacing all of four elements, and the second and the last."""
    bits = np.array(values, DTYPES[name].bit_pattern)
    few = sparse.placed(np.array([1, 3]), bits[[1, 3]], DTYPES[name], 4, "replace")
    return [dense.replacement(bits, DTYPES[name]), few]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(TORCH_DTYPES))
def test_values_of_any_dtype_are_put_in_place(name: str, device: str) -> None:
    most = 1 if name == "BOOL" else (1 << min(DTYPES[name].bits, 63)) - 1
    for encoded in placed(name, [0, most, 1, most // 2]):
        case = same_kind("t", kind(name, 4), bytes(4 * DTYPES[name].itemsize), encoded)
        assert made_on(device, case) == made_directly(case)


@pytest.mark.parametrize("device", DEVICES)
def test_minus_zero_counts_as_plus_zero_where_something_is_added(device: str) -> None:
    nothing = Encoded("dense", {"dtype": "BF16", "mode": "add"}, {"values": u16(0x8000, 0x0000)})
    case = same_kind("t", kind("BF16", 1, 2), u16(0x8000, 0x8000).tobytes(), nothing)
    assert made_on(device, case) == made_directly(case) == bytes(4)


class Flipped:
    """A rewriting component of a sort that no device knows."""

    span = 1

    def rewrite(self, bits: Any, first: int) -> Any:
        return ~bits


def test_a_component_that_no_device_knows_works_on_the_host() -> None:
    base = torch.tensor([0, 5, -1], dtype=torch.int16)
    made = making.make_on(torch.device("cpu"), base, kind("I16", 3), Change([], Flipped()), "here")
    assert made.tolist() == [-1, -6, 0]
