"""The only door to torch: a device as a bench, and packs whose deltas are torch tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import EXAMPLES, plan_of, refused, write_pack

from skillpack_format.arithmetic import NUMPY_BENCH
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


def test_the_bench_for_the_cpu_is_numpy() -> None:
    assert bridge.bench_on("cpu") is NUMPY_BENCH
    refused("unsupported.device", bridge.bench_on, "nowhere")


def test_widens_without_touching_what_it_was_given() -> None:
    bench, values = bridge.TorchBench("cpu"), np.array([1.5, -2.0])
    acc = bench.float64(values.astype(np.float32))
    acc += 1
    assert acc.dtype == torch.float64
    assert values.tolist() == [1.5, -2.0]


def test_multiplies_integers_exactly() -> None:
    bench = bridge.TorchBench("cpu")
    left, right = np.full((2, 1024), -128, np.int8), np.full((1024, 3), -128, np.int8)
    assert bench.product(bench.factor(left), bench.factor(right)).unique().tolist() == [float(1 << 24)]


def test_leaves_the_settings_of_torch_as_they_were() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for setting in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = setting
            bench = bridge.TorchBench("cpu")
            bench.product(bench.factor(np.ones((1, 1), np.int8)), bench.factor(np.ones((1, 1), np.int8)))
            assert torch.backends.cuda.matmul.allow_tf32 is setting
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_rounds_to_float32_on_the_host() -> None:
    found = bridge.TorchBench("cpu").float32(torch.tensor([1 + 2.0**-24, 1e300], dtype=torch.float64))
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1.0, np.inf]


def test_indexes_with_positions() -> None:
    bench = bridge.TorchBench("cpu")
    acc = bench.float64(np.zeros(3))
    acc[bench.index(np.array([2, 0]))] += bench.float64(np.array([1.0, 2.0]))
    assert acc.tolist() == [2.0, 0.0, 1.0]


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
