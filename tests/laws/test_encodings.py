"""Laws that every encoding keeps, parametrised over the catalog: a new file is tested the day it appears."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    EXAMPLES,
    VARIANTS,
    Case,
    change_of,
    chunks_of,
    content_of,
    kind,
    made_directly,
    native_bench,
    nbytes,
    plan_of,
    put_together,
    random_bytes,
    refused,
    same_kind,
    take_apart,
    ulp_of,
    with_chunks,
    write_pack,
)

from skillpack_format import arithmetic, native
from skillpack_format.arithmetic import NUMPY_BENCH, Bench
from skillpack_format.catalog import ENCODINGS, encoding_named
from skillpack_format.contents import target_of
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import DTYPES
from skillpack_format.encoders import StackedSlice
from skillpack_format.encodings import dense, factors, lowrank, sparse
from skillpack_format.making import delta_of
from skillpack_format.reader import Pack

CASES = [(name, case) for name, build in EXAMPLES.items() for case in build()]
IDS = [f"{name}-{case.label}" for name, case in CASES]
ALL = pytest.mark.parametrize("case", [case for _, case in CASES], ids=IDS)
CODECS = pytest.mark.parametrize("codec", ["raw", "zstd"])


def test_every_encoding_has_examples() -> None:
    assert set(EXAMPLES) == set(ENCODINGS)


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_examples_of_an_encoding_use_it(name: str) -> None:
    assert EXAMPLES[name]()
    assert all(name in [each.encoding for each in case.encoded] for case in EXAMPLES[name]())


@ALL
def test_parts_are_what_the_encoder_returned(case: Case) -> None:
    target = target_of(case.result)
    for each in case.encoded:
        encoding = encoding_named(each.encoding, "")
        specs = encoding.parts(encoding.parse(each.params, target, ""), target)
        assert [spec.name for spec in specs] == [spec.name for spec in specs if spec.name in each.parts]
        assert {spec.name: spec.nbytes for spec in specs} == {name: part.nbytes for name, part in each.parts.items()}


@ALL
def test_planes_are_those_of_the_parts(case: Case) -> None:
    target = target_of(case.result)
    for each in case.encoded:
        encoding = encoding_named(each.encoding, "")
        params = encoding.parse(each.params, target, "")
        specs = encoding.parts(params, target)
        assert encoding.planes(params, target) == [spec.count for spec in specs for _ in range(spec.width)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_encoding_is_deterministic(name: str) -> None:
    for one, other in zip(EXAMPLES[name](), EXAMPLES[name](), strict=True):
        for first, second in zip(one.encoded, other.encoded, strict=True):
            assert first.params == second.params
            assert {k: v.tobytes() for k, v in first.parts.items()} == {k: v.tobytes() for k, v in second.parts.items()}


@ALL
@CODECS
def test_a_pack_makes_the_bits_that_its_components_make(case: Case, codec: str, tmp_path: Path) -> None:
    with Pack(write_pack(tmp_path / "p.skp", plan_of(case), codec=codec)) as pack:
        assert pack.get_tensor(case.label, case.raw).tobytes() == made_directly(case)


@ALL
def test_the_pack_id_does_not_depend_on_how_contents_are_stored(case: Case, tmp_path: Path) -> None:
    found = set()
    for codec, chunk_bytes in (("raw", 4096), ("zstd", 4096), ("zstd", 1 << 20)):
        with Pack(
            write_pack(tmp_path / f"{codec}{chunk_bytes}", plan_of(case), codec=codec, chunk_bytes=chunk_bytes)
        ) as pack:
            found.add(pack.pack_id)
    assert len(found) == 1


@ALL
@CODECS
def test_writing_twice_gives_the_same_bytes(case: Case, codec: str, tmp_path: Path) -> None:
    one, other = (write_pack(tmp_path / name, plan_of(case), codec=codec).read_bytes() for name in "ab")
    assert one == other


@ALL
@pytest.mark.parametrize("items", [1, 5, 1000])
def test_the_block_size_changes_no_bit(case: Case, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made_directly(case)
    for bench in (arithmetic.NumpyBench, native.NativeBench):
        monkeypatch.setattr(bench, "block_items", items)
    assert made_directly(case) == whole
    assert made_directly(case, native.cpu_bench()) == whole


@ALL
def test_made_from_every_sort_of_bytes(case: Case) -> None:
    if case.raw is not None:
        for sort in (bytearray, memoryview):
            assert made_directly(replace(case, raw=sort(case.raw))) == made_directly(case)


@ALL
def test_the_base_is_left_as_it_is(case: Case) -> None:
    if case.raw is not None:
        base = bytearray(case.raw)
        made_directly(replace(case, raw=base))
        assert base == case.raw


# ----------------------------------------------------------------------------------------------------------- damage


@ALL
def test_a_flipped_byte_in_any_part_is_refused_by_the_digest(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    parts = take_apart(write_pack(path, plan_of(case)))
    for segment in range(len(case.encoded)):
        chunks = chunks_of(parts, segment)
        for k, chunk in enumerate(chunks):
            harmed = [*chunks[:k], bytes([chunk[0] ^ 0x10]) + chunk[1:], *chunks[k + 1 :]]
            path.write_bytes(put_together(with_chunks(parts, segment, harmed)))
            with Pack(path) as pack:
                refused("integrity.content", pack.read_content, segment)


@ALL
@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_less_or_more_in_any_part_is_refused(case: Case, change: int, tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    parts = take_apart(write_pack(path, plan_of(case)))
    for segment in range(len(case.encoded)):
        chunks = chunks_of(parts, segment)
        for k, chunk in enumerate(chunks):
            harmed = [*chunks[:k], chunk[:-1] if change < 0 else chunk + b"\0", *chunks[k + 1 :]]
            digest = hashlib.sha256(b"".join(harmed)).digest()
            path.write_bytes(put_together(with_chunks(parts, segment, harmed, sha=digest)))
            refused("storage.chunk-length", Pack, path)


@ALL
def test_one_chunk_less_or_more_is_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    parts = take_apart(write_pack(path, plan_of(case)))
    for segment in range(len(case.encoded)):
        chunks = chunks_of(parts, segment)
        for harmed in ([*chunks, b"\0"], chunks[:-1]):
            if harmed != chunks:
                path.write_bytes(put_together(with_chunks(parts, segment, harmed)))
                refused("storage.chunk-table", Pack, path)


@ALL
def test_permuted_planes_are_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    parts = take_apart(write_pack(path, plan_of(case)))
    for segment in range(len(case.encoded)):
        chunks = chunks_of(parts, segment)
        lengths = [len(each) for each in chunks]
        for i, j in combinations(range(len(chunks)), 2):
            if lengths[i] == lengths[j] and chunks[i] != chunks[j]:
                harmed = list(chunks)
                harmed[i], harmed[j] = harmed[j], harmed[i]
                assert b"".join(harmed) != content_of(parts, segment)
                path.write_bytes(put_together(with_chunks(parts, segment, harmed)))
                with Pack(path) as pack:
                    refused("integrity.content", pack.read_content, segment)


# -------------------------------------------------------------------------------------------------- lossless codes

SPECIAL = {
    "F32": [0, 1 << 31, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000,
            0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0x7FA5A5A5],
    "F64": [0, 1 << 63, 1, (1 << 63) | 1, 0x7FF0 << 48, 0xFFF0 << 48, (0x7FF0 << 48) + 1, (1 << 64) - 1],
}  # fmt: skip


def patterns(dtype: str, shape: tuple[int, ...], seed: int) -> bytes:
    """Bytes of a tensor: random, and every special pattern that fits; a BOOL is 0 or 1."""
    size = nbytes(kind(dtype, *shape))
    raw = np.frombuffer(random_bytes(size, seed), np.uint8)
    if dtype == "BOOL":
        return (raw & 1).tobytes()
    special = np.array(SPECIAL.get(dtype, []), DTYPES[dtype].bit_pattern).tobytes()
    return (special + raw.tobytes())[:size] if seed % 2 else raw.tobytes()


def exact_codes(what: TensorKind, start: bytes, wanted: bytes) -> list[Any]:
    dtype = DTYPES[what.dtype]
    old, new = np.frombuffer(start, dtype.bit_pattern), np.frombuffer(wanted, dtype.bit_pattern)
    found = [dense.replacement(new, dtype)]
    if dtype.itemsize:
        changed = np.flatnonzero(old != new)
        found.append(sparse.placed(changed, new[changed], dtype, new.size, "replace"))
    if dtype.is_ordered:
        found.append(ulp_of(what.dtype, start, wanted))
    return found


@pytest.mark.parametrize("shape", [(8,), (), (1, 1), (2, 3, 4), (64, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_codes_give_back_every_bit(dtype: str, shape: tuple[int, ...]) -> None:
    if not DTYPES[dtype].itemsize and shape in ((), (1, 1)):
        pytest.skip("a single element of this dtype fills no whole byte")
    what = kind(dtype, *shape)
    for first, second in ((1, 2), (2, 1), (1, 1), (3, 5)):
        start, wanted = patterns(dtype, shape, first), patterns(dtype, shape, second)
        for encoded in exact_codes(what, start, wanted):
            assert made_directly(same_kind("t", what, start, encoded)) == wanted, encoded.encoding


@pytest.mark.parametrize("dtype", [name for name, each in DTYPES.items() if each.bits in (8, 16) and each.is_ordered])
def test_ulp_reaches_every_pattern_from_every_neighbourhood(dtype: str) -> None:
    every = np.arange(1 << DTYPES[dtype].bits).astype(DTYPES[dtype].bit_pattern)
    what = kind(dtype, every.size)
    for shift in (0, 1, -1, every.size // 2, every.size // 2 - 1, 77):
        wanted = np.roll(every, shift)
        case = same_kind("t", what, every.tobytes(), ulp_of(dtype, every.tobytes(), wanted.tobytes()))
        assert made_directly(case) == wanted.tobytes()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.1, 0.5, 1.0])
def test_sparse_is_exact_whatever_the_share_of_changes(share: float) -> None:
    rng = np.random.default_rng(1)
    start = rng.integers(0, 1 << 16, 140_000).astype("<u2")
    wanted = start.copy()
    wanted[rng.permutation(start.size)[: int(share * start.size)]] ^= 0x8001
    (_, encoded, _) = exact_codes(kind("BF16", 140_000), start.tobytes(), wanted.tobytes())
    assert made_directly(same_kind("t", kind("BF16", 140_000), start.tobytes(), encoded)) == wanted.tobytes()


# ------------------------------------------------------------------------------------------------------------ benches


DEVICES = pytest.mark.parametrize("device", ["cpu", "cpu, float64", "cpu and cpu", "cuda"])


def torch_bench(device: str) -> Bench:
    """A CPU as a device, with the products of integers that it has and with those of float64; two as several devices"""
    torch = pytest.importorskip("torch", reason="torch is an extra")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here: equal bits on a GPU are not checked by this run")
    bridge = pytest.importorskip("skillpack_format.torch_bridge")
    if device == "cpu and cpu":
        return bridge.SpreadBench(["cpu", "cpu"], [1, 2])
    return bridge.TorchBench("cpu", has_integers=False) if device == "cpu, float64" else bridge.TorchBench(device)


def wide_cases() -> list[Case]:
    """Larger tensors of many magnitudes, subnormals included, so that order and rounding show."""
    rng = np.random.default_rng(7)
    shape = (24, 40)
    base = (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, shape)).astype("<f4")
    tiny = (rng.standard_normal(shape) * 2.0**-135).astype("<f4")
    found = []
    for name, build in EXAMPLES.items():
        for case in build():
            for values in (base, tiny):
                if case.result == kind("F32", 2, 3) and case.raw is not None:
                    found.append(replace(case, label=f"{name}-{case.label}", raw=values[:2, :3].tobytes()))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@ALL
def test_the_kernel_gives_the_bits_of_numpy(case: Case, variant: int) -> None:
    assert made_directly(case, native_bench(variant)) == made_directly(case, NUMPY_BENCH)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", wide_cases(), ids=lambda case: case.label)
def test_the_kernel_gives_the_bits_of_numpy_for_every_magnitude(case: Case, variant: int) -> None:
    assert made_directly(case, native_bench(variant)) == made_directly(case, NUMPY_BENCH)


@pytest.mark.parametrize("variant", VARIANTS)
@ALL
def test_the_kernel_gives_the_deltas_of_numpy(case: Case, variant: int) -> None:
    additive, grid = change_of(case).additive, target_of(case.result).grid
    delta = delta_of(grid, additive, native_bench(variant))
    assert delta.tobytes() == delta_of(grid, additive, NUMPY_BENCH).tobytes()


@DEVICES
@ALL
def test_torch_gives_the_bits_of_numpy(case: Case, device: str) -> None:
    assert made_directly(case, torch_bench(device)) == made_directly(case, NUMPY_BENCH)


@DEVICES
@pytest.mark.parametrize("case", wide_cases(), ids=lambda case: case.label)
def test_torch_gives_the_bits_of_numpy_for_every_magnitude(case: Case, device: str) -> None:
    assert made_directly(case, torch_bench(device)) == made_directly(case, NUMPY_BENCH)


@DEVICES
@ALL
def test_torch_gives_the_deltas_of_numpy(case: Case, device: str) -> None:
    change, grid = change_of(case), target_of(case.result).grid
    bench = torch_bench(device)
    assert delta_of(grid, change.additive, bench).tobytes() == delta_of(grid, change.additive, NUMPY_BENCH).tobytes()


@DEVICES
def test_torch_gives_the_bits_of_numpy_for_large_factors(device: str) -> None:
    case = large_factors()
    assert made_directly(case, torch_bench(device)) == made_directly(case, NUMPY_BENCH)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kernel_gives_the_bits_of_numpy_for_large_factors(variant: int) -> None:
    case = large_factors()
    assert made_directly(case, native_bench(variant)) == made_directly(case, NUMPY_BENCH)


def large_factors() -> Case:
    rng = np.random.default_rng(3)
    m, n, r = 70, 130, 16
    codes = [rng.integers(-128, 128, (1, r, dim)).astype(np.int8) for dim in (m, n)]
    slices = lowrank.packed([StackedSlice(np.array([2.0**-13 * 1.37], np.float32), *codes)], "lanes")
    u, v = (rng.standard_normal((1, r, dim)).astype(np.float32) for dim in (m, n))
    bands = factors.banded([factors.Band(code, np.abs(u[:, :, 0]), u, v) for code in ("F32", "Q4")], 16, "stream")
    base = rng.standard_normal((m, n)).astype("<f4").tobytes()
    return same_kind("t", kind("F32", m, n), base, slices, bands)
