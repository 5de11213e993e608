"""The only door to torch: devices as benches, and packs whose deltas are torch tensors.

A CPU stands for a device: what it computes is what a GPU is asked for. Where only a GPU can tell, the test is skipped.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import EXAMPLES, plan_of, refused, write_pack
from safetensors.numpy import save_file

import skillpack_format as skp
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.bits import PACKINGS, pack
from skillpack_format.codes import CodeMatrix, Levels
from skillpack_format.dtypes import DTYPES, bits_to_float32
from skillpack_format.errors import SkillPackError
from skillpack_format.native import cpu_bench
from skillpack_format.opening import safe_open
from skillpack_format.reader import open_pack
from skillpack_format.recipes import STANDARD

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


# ------------------------------------------------------------------------------------------------ values and rounding

SUMMED = [  # to be rounded to every dtype: ties, both roundings, subnormals, zeros, the edges of ranges
    0.0, -0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-30, 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50,
    1 + 2.0**-11,
    2.0**-126, 2.0**-127, 2.0**-133, 2.0**-134, 3 * 2.0**-134, 2.0**-149, 2.0**-150, 3 * 2.0**-150, 2.0**-151,
    2.0**-14, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 65504.0, 65519.99, 65520.0, 65536.0, 3.3895e38, 3.3961e38,
    3.4028234e38, 3.4028235677973366e38, 3.5e38, 1e300, -2.0**-200, -65519.99, -3.3961e38,
]  # fmt: skip


def outcome(bench: Bench, bits: Any, source: str, target: str, added: float = 0.0) -> Any:
    """The bits that a bench makes of START and one value added to all, or the code of its refusal."""
    try:
        acc = bench.accumulator(bits, DTYPES[source], bits.shape, "here")
        if added:
            bench.add_values(acc, np.full(bits.shape, added, np.float32))
        return bench.rounded(acc, DTYPES[target], "here").tobytes()
    except SkillPackError as found:
        return found.code, found.where


def rounding(bench: Bench, value: float, target: str) -> Any:
    """The bits of an accumulator of one value, or the code of the refusal."""
    acc = bench.accumulator(np.zeros((1, 1), "<u4"), DTYPES["F32"], (1, 1), "")
    (acc if isinstance(acc, np.ndarray) else acc.values)[0, 0] = value
    try:
        return bench.rounded(acc, DTYPES[target], "here").tobytes()
    except SkillPackError as found:
        return found.code, found.where


@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", SUMMED)
def test_rounds_as_numpy_does(value: float, target: str) -> None:
    assert rounding(bridge.TorchBench("cpu"), value, target) == rounding(NUMPY_BENCH, value, target)


@pytest.mark.parametrize("target", ["BF16", "F16"])
def test_every_upper_half_of_a_float32_rounds_as_numpy_does(target: str) -> None:
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0x9000, 0xFFFF], np.uint32)
    for upper in np.arange(1 << 16, dtype=np.uint32).reshape(-1, 128):  # 2^7 values share an exponent or two
        bits = ((upper[:, None] << 16) | lower).astype("<u4")
        assert outcome(bridge.TorchBench("cpu"), bits, "F32", target) == outcome(NUMPY_BENCH, bits, "F32", target)


@pytest.mark.parametrize("source", ["BF16", "F16"])
@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
def test_every_pattern_of_16_bits_is_widened_as_numpy_does(source: str, target: str) -> None:
    for bits in np.arange(1 << 16, dtype="<u2").reshape(-1, 64):
        for row in (bits[None], bits[:, None]):
            for added in (0.0, 2.0**-20):
                expected = outcome(NUMPY_BENCH, row, source, target, added)
                assert outcome(bridge.TorchBench("cpu"), row, source, target, added) == expected


def test_what_is_not_finite_comes_before_what_is_out_of_range() -> None:
    bits = np.array([[0x7F7F, 0x7F80]], "<u2")
    assert outcome(bridge.TorchBench("cpu"), bits, "BF16", "F16") == ("payload.nonfinite", "here")
    assert outcome(bridge.TorchBench("cpu"), bits[:, :1], "BF16", "F16") == ("payload.overflow", "here")


def test_widens_without_touching_what_it_was_given() -> None:
    bench, bits = bridge.TorchBench("cpu"), np.array([1.5, -2.0], np.float32).view("<u4")
    acc = bench.accumulator(bits, DTYPES["F32"], (1, 2), "")
    acc.values.add_(1)
    assert acc.values.dtype == torch.float64
    assert acc.values.tolist() == [[2.5, -1.0]]
    assert bits.view("<f4").tolist() == [1.5, -2.0]


def test_rounds_to_float32_on_the_host() -> None:
    bench = bridge.TorchBench("cpu")
    acc = bench.accumulator(np.zeros((1, 2), "<u4"), DTYPES["F32"], (1, 2), "")
    acc.values.copy_(torch.tensor([1 + 2.0**-24, 1e300]))
    found = bench.float32(acc)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[1.0, np.inf]]


def test_adds_at_positions() -> None:
    bench = bridge.TorchBench("cpu")
    acc = bench.accumulator(np.zeros((1, 3), "<u4"), DTYPES["F32"], (1, 3), "")
    bench.add_at(acc, np.array([2, 0]), np.array([1.0, 2.0], np.float32))
    assert acc.values.tolist() == [[2.0, 0.0, 1.0]]


def test_takes_what_torch_takes_only_as_a_copy() -> None:
    bench = bridge.TorchBench("cpu")
    fixed = np.frombuffer(np.arange(4, dtype="<u4").tobytes(), "<u4")
    found = bench.accumulator(fixed, DTYPES["F32"], (1, 4), "").values
    assert found.tolist() == [[each * 2.0**-149 for each in range(4)]]


# -------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize(("bits", "packing"), list(itertools.product(range(1, 9), PACKINGS)))
def test_codes_are_unpacked_on_the_device_as_on_the_host(bits: int, packing: str) -> None:
    bench, random = bridge.TorchBench("cpu"), np.random.default_rng(bits)
    codes = random.integers(0, 1 << bits, (11, 7)).astype(np.uint8)
    packed = pack(codes, bits, packing)
    whole = CodeMatrix.of_run(packed, slice(0, 77), 77, (11, 7), bits, packing, "here")
    for first, last in itertools.combinations(range(12), 2):
        for part in (whole.take(slice(first, last)), whole.take(slice(first, last)).narrow(slice(2, 6))):
            assert np.array_equal(bench.signed(part).numpy(), part.signed())
            scales = random.standard_normal((last - first, 2)).astype(np.float32)
            for zeros in (5, random.integers(0, 9, (last - first, 2)).astype(np.int16)):
                levels = Levels(part, zeros, scales, 4)
                assert np.array_equal(bench.half_steps(levels).numpy(), levels.half_steps())
                weights = random.standard_normal(last - first)
                assert np.array_equal(bench.factor(levels, None).numpy(), NUMPY_BENCH.factor(levels, None))
                assert np.array_equal(bench.factor(levels, weights).numpy(), NUMPY_BENCH.factor(levels, weights))
    assert np.array_equal(packed, pack(codes, bits, packing))  # nothing was written into it


def test_float_factors_are_widened_and_weighted() -> None:
    values = bits_to_float32(np.arange(0x7F80, dtype="<u2"), DTYPES["BF16"]).reshape(-1, 8)
    weights = np.random.default_rng(1).standard_normal(len(values)) * 2.0**-100
    found = bridge.TorchBench("cpu").factor(values, weights)
    assert found.dtype == torch.float64
    assert found.numpy().tobytes() == NUMPY_BENCH.factor(values, weights).tobytes()


# ----------------------------------------------------------------------------------------------------------- products

WAYS = pytest.mark.parametrize(
    "has_integers",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                not bridge.multiplies_integers(torch.device("cpu")), reason="int8 sums saturate on this processor"
            ),
        ),
    ],
    ids=["float64", "int8"],
)


def product_of(left: np.ndarray, right: np.ndarray, *, has_integers: bool) -> np.ndarray:
    bench = bridge.TorchBench("cpu", has_integers=has_integers)
    shape = len(left), len(right)
    acc = bench.accumulator(np.zeros(shape, "<u4"), DTYPES["F32"], shape, "")
    bench.add_product(acc, bench.left(torch.from_numpy(left)), bench.right(torch.from_numpy(right)), 1.0)
    return acc.values.numpy()


@WAYS
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 1024), (17, 8, 16), (32, 16, 16), (33, 1, 5), (5, 70, 31)], ids=str
)
def test_multiplies_integers_exactly(shape: tuple[int, int, int], *, has_integers: bool) -> None:
    rows, cols, rank = shape
    random = np.random.default_rng(rank)
    for low, high in ((-128, -127), (127, 128), (-128, 128)):
        left, right = (random.integers(low, high, (dim, rank)).astype(np.int8) for dim in (rows, cols))
        found = product_of(left, right, has_integers=has_integers)
        assert np.array_equal(found, left.astype(np.int64) @ right.T.astype(np.int64))


@WAYS
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_no_setting_of_torch_makes_a_product_inexact(precision: str, *, has_integers: bool) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        left, right = np.full((64, 512), 127, np.int8), np.full((64, 512), -127, np.int8)
        right[:, 0] = 126
        found = product_of(left, right, has_integers=has_integers)
        assert np.unique(found).tolist() == [127 * (126 - 127 * 511)]
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_where_int8_products_are_wrong_or_missing_float64_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left.to(torch.int32) @ right.to(torch.int32)).clamp(-32768, 32767)

    for broken in (saturating, lambda *_: (_ for _ in ()).throw(RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED"))):
        monkeypatch.setattr(torch, "_int_mm", broken)
        assert not bridge.multiplies_integers.__wrapped__(torch.device("cpu"))
    left, right = np.full((3, 40), -128, np.int8), np.full((2, 40), 127, np.int8)
    assert np.unique(product_of(left, right, has_integers=True)).tolist() == [-128 * 127 * 40]  # a shape is refused
    monkeypatch.delattr(torch, "_int_mm")
    assert not bridge.multiplies_integers.__wrapped__(torch.device("cpu"))


SATURATING = """
import torch
from skillpack_format.torch_bridge import TorchBench
bench, ones = TorchBench("cpu"), torch.ones(512, 384, dtype=torch.int8)
acc = bench.sum_of(torch.zeros(512, 512), "")
bench.add_product(acc, bench.left(ones * -128), bench.right(ones * 127), 1.0)
assert acc.values.unique().tolist() == [-128.0 * 127 * 384], acc.values.unique()
"""


@pytest.mark.parametrize("most", ["AVX2", "AVX512_CORE"])
def test_products_are_exact_where_the_processor_adds_in_16_bits(most: str) -> None:
    """oneDNN held to instructions without VNNI: its own int8 products are wrong then."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": most}
    done = subprocess.run(
        [sys.executable, "-c", SATURATING], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------- several devices


@pytest.mark.parametrize("bench", [bridge.TorchBench("cpu"), bridge.SpreadBench(["cpu", "cpu"])], ids=["one", "two"])
@pytest.mark.parametrize("shape", [(7, 3), (40, 40), (3000, 1500)])
def test_decomposes_as_numpy_does(bench: Bench, shape: tuple[int, int]) -> None:
    tall = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    values, vectors = bench.spectrum(tall)
    wanted, _ = NUMPY_BENCH.spectrum(tall)
    np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-9 * wanted[-1])
    gram = tall.T.astype(np.float64) @ tall.astype(np.float64)
    np.testing.assert_allclose((vectors * values) @ vectors.T, gram, atol=1e-9 * wanted[-1])


def test_a_pack_made_on_a_device_is_one_that_every_bench_makes_the_same_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    base = rng.standard_normal((90, 70)).astype(np.float32)
    change = rng.standard_normal((90, 5)) @ rng.standard_normal((5, 70)) / 100
    save_file({"l.mlp.weight": base}, tmp_path / "base.safetensors")
    save_file({"l.mlp.weight": (base + change).astype(np.float32)}, tmp_path / "tuned.safetensors")
    options = skp.ConvertOptions(recipe=STANDARD, bench=bridge.TorchBench("cpu"))
    skp.convert(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "a.skp", options)
    with skp.open_pack(tmp_path / "a.skp") as pack:
        assert "lowrank" in pack.info("l.mlp.weight").encodings
        made = [
            pack.get_tensor("l.mlp.weight", base.tobytes(), bench) for bench in (NUMPY_BENCH, bridge.TorchBench("cpu"))
        ]
    np.testing.assert_array_equal(*made)


def test_a_tensor_is_made_on_the_device_with_most_room() -> None:
    need = 8 * 8 * bridge.TorchBench.block_items
    bench = bridge.SpreadBench(["cpu", "cpu"], [2 * need, 3 * need])
    first, second = bench._benches
    with (
        bench.for_tensor("a", 1 << 40) as one,
        bench.for_tensor("b", 1 << 40) as two,
        bench.for_tensor("c", 1) as three,
    ):
        assert (one, two, three) == (second, first, second)


def test_a_device_without_memory_is_an_error_that_names_the_tensor() -> None:
    bench = bridge.SpreadBench(["cpu"], [1])
    for _ in range(2):  # its room is given back
        with pytest.raises(SkillPackError) as found, bench.for_tensor("tensor 'm.w'", 100):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        assert (found.value.code, found.value.where) == ("resource.memory", "tensor 'm.w'")
        assert "cpu has too little free memory" in found.value.message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_every_gpu_and_a_number_one_of_them() -> None:
    every = [each.device for each in bridge.bench_on("cuda")._benches]
    assert every == [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    assert [each.device for each in bridge.bench_on("cuda:0")._benches] == every[:1]


# ------------------------------------------------------------------------------------------------------------- deltas


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5, 3)])
def test_digests_are_those_of_the_bytes(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(bridge, "_HASH_BYTES", 7)
    values = torch.ones(shape, dtype=dtype)
    raw = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    assert bridge.sha256_on(values) == hashlib.sha256(raw).digest()
