"""The compiled bench: every bit is numpy's, whatever the numbers and shapes, and only what fits reaches the kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, native_bench
from hypothesis import given, settings
from hypothesis import strategies as st

from skillpack_format import native
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.dtypes import DTYPES, bits_to_float32
from skillpack_format.errors import SkillPackError
from skillpack_format.native import Packed

DTYPE_NAMES = ["BF16", "F16", "F32"]
KINDS = ["product", "levels", "values", "outer", "at"]
EACH = pytest.mark.parametrize("variant", VARIANTS)
ROOT = Path(__file__).parents[2]


def summed(bench: Bench, bits: Any, source: str, target: str, addends: list[tuple[str, Any]]) -> Any:
    """The bits that a bench makes, or the code of its refusal."""
    try:
        acc = bench.accumulator(bits, DTYPES[source], bits.shape, "here")
        for kind, given in addends:
            if kind == "product":
                u, v, scale = given
                bench.add_product(acc, bench.left(u), bench.right(v), scale)
            else:
                getattr(bench, f"add_{kind}")(acc, *given)
        return bench.rounded(acc, DTYPES[target], "here").tobytes()
    except SkillPackError as found:
        return found.code


def random_addend(rng: np.random.Generator, kind: str, shape: tuple[int, int], exponent: int) -> Any:
    """Something to add, of about 2^exponent."""
    rows, cols = shape

    def floats(*of: int) -> Any:
        return (rng.standard_normal(of) * 2.0 ** rng.integers(exponent - 3, exponent + 1, of)).astype(np.float32)

    if kind == "product":
        rank = int(rng.integers(1, 40))
        most = int(rng.integers(1, 129))
        u, v = (rng.integers(-most, min(most, 127) + 1, (dim, rank)).astype(np.int8) for dim in shape)
        return u, v, float(floats(1)[0])
    if kind == "levels":
        group = int(rng.integers(1, 2 * cols + 1))
        groups = -(-cols // min(group, cols))
        return rng.integers(-510, 511, shape).astype(np.int16), floats(rows, groups), group
    if kind == "values":
        return (floats(rows, cols),)
    if kind == "outer":
        rank = int(rng.integers(1, 12))
        return floats(rank, rows).astype(np.float64) * 1.1, floats(rank, cols).astype(np.float64) / 3
    positions = np.sort(rng.permutation(rows * cols)[: int(rng.integers(0, rows * cols + 1))])
    return positions, floats(positions.size)


def random_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> Any:
    """Bit patterns of finite values of every magnitude."""
    item = DTYPES[dtype].bit_pattern
    bits = rng.integers(0, 1 << (8 * item.itemsize), shape, dtype=np.uint64).astype(item)
    finite = np.isfinite(bits_to_float32(bits, DTYPES[dtype]))
    return np.where(finite, bits, bits & item.type(0x80FF)).astype(item)


@EACH
@settings(max_examples=250)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 80)),
    source=st.sampled_from(DTYPE_NAMES),
    target=st.sampled_from(DTYPE_NAMES),
    kinds=st.lists(st.sampled_from(KINDS), max_size=5),
    exponent=st.integers(-140, 120),
    seed=st.integers(0, 1 << 32),
)
def test_every_sum_has_the_bits_of_numpy_or_is_refused_likewise(
    variant: int, shape: tuple[int, int], source: str, target: str, kinds: list[str], exponent: int, seed: int
) -> None:
    bench, rng = native_bench(variant), np.random.default_rng(seed)
    bits = random_bits(rng, source, shape)
    addends = [(kind, random_addend(rng, kind, shape, exponent)) for kind in kinds]
    expected = summed(NUMPY_BENCH, bits, source, target, addends)
    assert summed(bench, bits, source, target, addends) == expected


@EACH
@pytest.mark.parametrize("source", ["BF16", "F16"])
@pytest.mark.parametrize("target", DTYPE_NAMES)
def test_every_pattern_of_16_bits_is_widened_as_by_numpy(variant: int, source: str, target: str) -> None:
    bits = np.arange(1 << 16, dtype="<u2").reshape(-1, 64)
    for row in bits:
        found = [summed(bench, row[None], source, target, []) for bench in (native_bench(variant), NUMPY_BENCH)]
        assert found[0] == found[1]


@EACH
@pytest.mark.parametrize("target", ["BF16", "F16"])
@pytest.mark.parametrize("beside", range(-2, 3))
def test_every_tie_of_16_bits_and_what_is_beside_it_is_rounded_as_by_numpy(
    variant: int, target: str, beside: int
) -> None:
    patterns = np.arange(1 << 16, dtype="<u2").reshape(-1, 64)
    wide = bits_to_float32(patterns, DTYPES[target])
    up = bits_to_float32((patterns + np.uint16(1)).astype("<u2"), DTYPES[target])
    with np.errstate(all="ignore"):
        middle = ((wide.astype(np.float64) + up) / 2).astype(np.float32)
    bits = (middle.view("<u4") + np.uint32(beside & 0xFFFFFFFF)).astype("<u4")
    for row in bits:
        found = [summed(bench, row[None], "F32", target, []) for bench in (native_bench(variant), NUMPY_BENCH)]
        assert found[0] == found[1]


@EACH
def test_a_sum_is_rounded_twice(variant: int) -> None:
    # 1 + 2^-8 + 2^-30 is 1 by way of float32, and 1 + 2^-7 directly (spec/encodings/dense.md)
    found = summed(
        native_bench(variant),
        np.array([[0x3F80]], "<u2"),
        "BF16",
        "BF16",
        [("values", (np.array([[each]], np.float32),)) for each in (2.0**-8, 2.0**-30)],
    )
    assert found == bytes.fromhex("803f")


@EACH
def test_subnormals_are_kept_where_torch_flushes_them(variant: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    bench, bits = native_bench(variant), np.array([[1, 0x80000003, 0x007FFFFF]], "<u4")
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormals on this processor")
    try:
        found = summed(bench, bits, "F32", "F32", [])
        still = (torch.tensor([2.0**-140]) * 1).tolist()
    finally:
        torch.set_flush_denormal(False)
    assert found == bits.tobytes()
    assert still == [0.0]  # torch finds its own setting as it was


@EACH
@pytest.mark.parametrize("rank", [1, 2, 3, 255, 5000])
@pytest.mark.parametrize("shape", [(1, 1), (8, 32), (9, 33), (7, 31), (17, 200)])
def test_products_of_every_rank_are_exact(variant: int, rank: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(rank)
    u, v = (rng.integers(-40, 41, (dim, rank)).astype(np.int8) for dim in shape)
    bench = native_bench(variant)
    acc = bench.accumulator(np.zeros(shape, "<u4"), DTYPES["F32"], shape, "")
    bench.add_product(acc, bench.left(u), bench.right(v), 1.0)
    assert np.array_equal(bench.float32(acc), (u.astype(np.int64) @ v.T.astype(np.int64)).astype(np.float32))


@EACH
def test_codes_may_lie_in_any_order(variant: int) -> None:
    bench, rng = native_bench(variant), np.random.default_rng(0)
    u, v = (rng.integers(-128, 128, (dim, 7)).astype(np.int8) for dim in (10, 40))
    bits = random_bits(rng, "BF16", (10, 40))
    plain = summed(bench, bits, "BF16", "F32", [("product", (u, v, 0.5))])
    lying = summed(bench, np.asfortranarray(bits), "BF16", "F32", [("product", (np.asfortranarray(u), v, 0.5))])
    assert lying == plain


@EACH
def test_a_tensor_without_elements_is_made(variant: int) -> None:
    for shape in ((0, 5), (5, 0)):
        assert summed(native_bench(variant), np.zeros(shape, "<u2"), "BF16", "F32", []) == b""


@EACH
def test_a_delta_may_leave_the_range_of_float32(variant: int) -> None:
    bench = native_bench(variant)
    acc = bench.accumulator(np.zeros((1, 1), "<u4"), DTYPES["F32"], (1, 1), "")
    for _ in range(2):
        bench.add_values(acc, np.array([[3e38]], np.float32))
    assert bench.float32(acc).tolist() == [[np.inf]]


# ------------------------------------------------------------------------------------- what never reaches the kernel


def test_only_what_fits_reaches_the_kernel() -> None:
    bench = native_bench(0)
    acc = bench.accumulator(np.zeros((4, 6), "<u2"), DTYPES["BF16"], (4, 6), "")
    left, right = bench.left(np.zeros((4, 3), np.int8)), bench.right(np.zeros((6, 3), np.int8))
    f32, f64, i16 = np.float32, np.float64, np.int16
    for work in (
        lambda: bench.accumulator(np.zeros((4, 6), "<u4"), DTYPES["BF16"], (4, 6), ""),
        lambda: bench.accumulator(np.zeros(23, "<u2"), DTYPES["BF16"], (4, 6), ""),
        lambda: bench.left(np.zeros((4, 3), np.int16)),
        lambda: bench.add_product(acc, bench.left(np.zeros((3, 3), np.int8)), right, 1.0),
        lambda: bench.add_product(acc, left, bench.right(np.zeros((7, 3), np.int8)), 1.0),
        lambda: bench.add_product(acc, left, bench.right(np.zeros((6, 5), np.int8)), 1.0),
        lambda: bench.add_product(acc, right, left, 1.0),
        lambda: bench.add_product(acc, Packed(left.tiles, (4, 9)), Packed(right.tiles, (6, 9)), 1.0),
        lambda: bench.add_product(acc, left, Packed(left.tiles, (6, 3)), 1.0),
        lambda: bench.add_product(acc, Packed(right.tiles, (4, 3)), right, 1.0),
        lambda: bench.add_values(acc, np.zeros((4, 5), f32)),
        lambda: bench.add_values(acc, np.zeros((4, 6), f64)),
        lambda: bench.add_levels(acc, np.zeros((4, 6), i16), np.zeros((4, 2), f32), 2),
        lambda: bench.add_levels(acc, np.zeros((4, 6), i16), np.zeros((3, 3), f32), 2),
        lambda: bench.add_levels(acc, np.zeros((4, 6), i16), np.zeros((4, 3), f32), 0),
        lambda: bench.add_levels(acc, np.zeros((4, 6), np.int8), np.zeros((4, 3), f32), 2),
        lambda: bench.add_outer(acc, np.zeros((2, 4)), np.zeros((3, 6))),
        lambda: bench.add_outer(acc, np.zeros((2, 3)), np.zeros((2, 6))),
    ):
        with pytest.raises(ValueError, match=r"is due|reshape|for a sum"):
            work()
    assert bench.float32(acc).tolist() == np.zeros((4, 6)).tolist()


# -------------------------------------------------------------------------------------------- where there is no kernel


def test_without_a_kernel_numpy_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernel", lambda: None)
    assert native.cpu_bench.__wrapped__() is NUMPY_BENCH


def test_a_processor_without_vectors_of_its_own_is_served_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernel", lambda: SimpleNamespace(skillpack_variant=lambda: 0))
    assert native.cpu_bench.__wrapped__() is NUMPY_BENCH


def test_a_library_that_is_none_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / f"_kernel{suffix}").write_bytes(b"no library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native.kernel.__wrapped__() is None


def test_a_kernel_of_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    native_bench(0)
    assert native.kernel.__wrapped__() is not None
    monkeypatch.setattr(native, "KERNEL", native.KERNEL + 1)
    assert native.kernel.__wrapped__() is None


# ------------------------------------------------------------------------------------------------------- sanitizers


WATCHED = """
import sys
sys.path[:0] = sys.argv[2:]
from test_native import *

bench = native.NativeBench(native._loaded(sys.argv[1]), int(sys.argv[4]))
for seed in range(400):
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 20)), int(rng.integers(1, 80))
    source, target = rng.choice(DTYPE_NAMES, 2)
    bits = random_bits(rng, source, shape)
    addends = [(kind, random_addend(rng, kind, shape, -4)) for kind in rng.choice(KINDS, rng.integers(6))]
    assert summed(bench, bits, source, target, addends) == summed(NUMPY_BENCH, bits, source, target, addends), seed
print("same")
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc and its sanitizers")
@EACH
def test_the_kernel_stays_within_its_arrays(variant: int, tmp_path: Path) -> None:
    """Built with AddressSanitizer and UBSan, it makes sums of every kind and odd shape in arrays that both watch."""
    native_bench(variant)
    built = tmp_path / "watched.so"
    flags = ["-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    gcc = shutil.which("gcc") or "gcc"
    asked = [gcc, *flags, "-shared", "-fPIC", "-o", str(built), str(ROOT / "skillpack_format/kernel.c")]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("this gcc has no sanitizers")
    asan = subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, check=True, text=True)
    watched = {"LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    program = [sys.executable, "-c", WATCHED, str(built), *folders, str(variant)]
    outcome = subprocess.run(
        program, capture_output=True, check=False, text=True, env={**os.environ, **watched}, cwd=ROOT
    )
    assert (outcome.returncode, outcome.stdout) == (0, "same\n"), outcome.stderr[-3000:]
