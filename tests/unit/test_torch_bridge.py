"""The only door to torch: a device as a bench, and packs whose deltas are torch tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from builders import EXAMPLES, plan_of, refused, write_pack

from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.dtypes import DTYPES
from skillpack_format.native import cpu_bench
from skillpack_format.opening import safe_open
from skillpack_format.reader import open_pack

torch = pytest.importorskip("torch", reason="torch is an extra")
bridge = pytest.importorskip("skillpack_format.torch_bridge")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "p.skp", plan_of(*EXAMPLES["lowrank"](), *EXAMPLES["ulp"]()))


@pytest.mark.parametrize("device", ["", "gpu", "cpux", "cuda:x", "cuda:99999999999999999999"])
def test_refuses_what_is_no_device(device: str) -> None:
    refused("unsupported.device", bridge.TorchBench, device)


@pytest.mark.parametrize("device", ["meta", "mps", "xpu"])
def test_refuses_a_device_without_float64(device: str) -> None:
    assert "no float64" in refused("unsupported.device", bridge.TorchBench, device).message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_refuses_cuda_where_there_is_none(device: str) -> None:
    assert "finds no CUDA device" in refused("unsupported.device", bridge.TorchBench, device).message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_refuses_a_cuda_device_of_a_number_that_is_not_there() -> None:
    refused("unsupported.device", bridge.TorchBench, "cuda:63")


def test_the_bench_for_the_cpu_needs_no_torch() -> None:
    assert bridge.bench_on("cpu") is cpu_bench()
    refused("unsupported.device", bridge.bench_on, "nowhere")


def test_widens_without_touching_what_it_was_given() -> None:
    bench, bits = bridge.TorchBench("cpu"), np.array([1.5, -2.0], np.float32).view("<u4")
    acc = bench.accumulator(bits, DTYPES["F32"], (1, 2), "")
    acc += 1
    assert acc.dtype == torch.float64
    assert acc.tolist() == [[2.5, -1.0]]
    assert bits.view("<f4").tolist() == [1.5, -2.0]


def product_of(left: np.ndarray, right: np.ndarray) -> list[float]:
    """Every different element of a product."""
    bench = bridge.TorchBench("cpu")
    acc = torch.zeros(left.shape[0], right.shape[0], dtype=torch.float64)
    bench.add_product(acc, bench.left(left), bench.right(right), 1.0)
    return acc.unique().tolist()


def test_multiplies_integers_exactly() -> None:
    assert product_of(np.full((2, 1024), -128, np.int8), np.full((3, 1024), -128, np.int8)) == [float(1 << 24)]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_no_setting_of_torch_makes_a_product_inexact(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        left, right = np.full((64, 512), 127, np.int8), np.full((64, 512), -127, np.int8)
        right[:, 0] = 126
        assert product_of(left, right) == [127 * (126 - 127 * 511)]
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_rounds_to_float32_on_the_host() -> None:
    found = bridge.TorchBench("cpu").float32(torch.tensor([1 + 2.0**-24, 1e300], dtype=torch.float64))
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1.0, np.inf]


def test_adds_at_positions() -> None:
    bench, acc = bridge.TorchBench("cpu"), torch.zeros(1, 3, dtype=torch.float64)
    bench.add_at(acc, np.array([2, 0]), np.array([1.0, 2.0], np.float32))
    assert acc.tolist() == [[2.0, 0.0, 1.0]]


@pytest.mark.parametrize("label", ["one", "two", "stack"])
def test_deltas_are_torch_tensors_with_the_values_of_numpy(path: Path, label: str) -> None:
    with safe_open(path, "pt") as found, open_pack(path) as expected:
        delta = found.get_delta(label)
        assert delta.dtype == torch.float32
        assert delta.device.type == "cpu"
        assert np.array_equal(delta.numpy(), expected.get_delta(label))


def test_what_has_no_delta_has_none_here_either(path: Path) -> None:
    with safe_open(path, "pt") as found:
        refused("unsupported.operation", found.get_delta, "bf16")


def test_a_bench_may_be_given(path: Path) -> None:
    with safe_open(path, "pt") as found:
        assert isinstance(found.get_delta("one", NUMPY_BENCH), torch.Tensor)


def test_refuses_a_device_before_the_file_is_opened(tmp_path: Path) -> None:
    refused("unsupported.device", safe_open, tmp_path / "missing.skp", "pt", "nowhere")


def test_takes_what_torch_takes_only_as_a_copy() -> None:
    bench = bridge.TorchBench("cpu")
    fixed = np.frombuffer(np.arange(4, dtype="<u4").tobytes(), "<u4")
    assert bench.accumulator(fixed, DTYPES["F32"], (1, 4), "").tolist() == [[each * 2.0**-149 for each in range(4)]]
    assert bench.left(np.arange(4, dtype=np.int8).reshape(2, 2).T).tolist() == [[0.0, 2.0], [1.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5, 3)])
def test_digests_are_those_of_the_bytes(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(bridge, "_HASH_BYTES", 7)
    values = torch.ones(shape, dtype=dtype)
    raw = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    assert bridge.sha256_on(values) == hashlib.sha256(raw).digest()


def test_a_lane_of_the_cpu_is_nothing_special() -> None:
    cpu = torch.device("cpu")
    bridge.settle(cpu)
    with bridge.lane(cpu):
        made = torch.ones(3)
    bridge.hand_over(made)
    assert made.sum() == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_lanes_of_a_gpu_wait_for_their_work_and_digests_agree() -> None:
    device = torch.device("cuda", 0)
    bridge.settle(device)
    with bridge.lane(device):
        made = torch.arange(1 << 20, device=device) * 3
    bridge.hand_over(made)
    assert bridge.sha256_on(made) == bridge.sha256_on(torch.arange(1 << 20) * 3)
    assert bridge.bench_on("cuda").device.index is not None
