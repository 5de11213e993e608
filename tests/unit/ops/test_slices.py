"""Slices of the result: the same bits as of the whole, and no more read than they need."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from builders import (
    EXAMPLES,
    Case,
    Plan,
    added,
    bf16,
    full_plan,
    int_slice,
    kind,
    made_directly,
    plan_of,
    random_bytes,
    refused,
    same_kind,
    take_apart,
    ulp_of,
    write_base,
    write_pack,
)

from skillpack_format.dtypes import DTYPES, dtype_named
from skillpack_format.encodings import dense, lowrank
from skillpack_format.ops.slices import Applied, open_applied
from skillpack_format.sources import HASHED_BYTES

CASES = [case for cases in EXAMPLES.values() for case in cases()]
OURS = [case for case in CASES if dtype_named(case.result.dtype).itemsize]


def opened(folder: Path, plan: Plan, **options: object) -> Applied:
    base = write_base(folder / "b.safetensors", plan)
    return open_applied(base, write_pack(folder / "p.skp", plan, **options))


def some_slices(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The whole, nothing, halves, middles and single places of every dimension."""
    found: list[tuple[slice, ...]] = [(), tuple(slice(1, 1) for _ in shape)]
    for axis, size in enumerate(shape):
        before = tuple(slice(None) for _ in range(axis))
        found += [(*before, slice(*each)) for each in ((0, size // 2), (size // 2, None), (-1, None), (1, size - 1))]
    found.append(tuple(slice(size // 3, size // 3 + 2) for size in shape))
    return found


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.label)
def test_a_slice_has_the_bits_of_the_whole(tmp_path: Path, case: Case) -> None:
    with opened(tmp_path, plan_of(case)) as applied:
        whole = applied.get_tensor(case.label)
        part = applied.get_slice(case.label)
        assert part.get_shape() == list(whole.shape) == list(case.result.shape)
        assert part.get_dtype() == case.result.dtype
        for index in some_slices(case.result.shape):
            assert np.array_equal(part[index], whole[index]), index
            assert part[index].dtype == whole.dtype


def test_unchanged_added_aliased_and_resized_tensors_have_slices_too(tmp_path: Path) -> None:
    plan = full_plan()
    with opened(tmp_path, plan) as applied:
        assert applied.keys() == sorted(plan.result())
        for name, (what, raw) in plan.result().items():
            whole = np.frombuffer(raw, DTYPES[what.dtype].bit_pattern).reshape(what.shape)
            assert np.array_equal(applied.get_tensor(name), whole)
            for index in some_slices(what.shape):
                assert np.array_equal(applied.get_slice(name)[index], whole[index]), (name, index)


def test_a_tensor_of_several_blocks_is_whole(tmp_path: Path) -> None:
    what = kind("U8", 5, HASHED_BYTES // 2)
    same, other = random_bytes(5 * HASHED_BYTES // 2, 1), random_bytes(5 * HASHED_BYTES // 2, 2)
    plan = Plan(
        {"changed": same_kind("changed", what, same, ulp_of("U8", same, other))}, unchanged={"same": (what, same)}
    )
    with opened(tmp_path, plan) as applied:
        assert applied.get_tensor("changed").tobytes() == other
        assert applied.get_tensor("same").tobytes() == same


def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    real = os.preadv

    def counting(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = real(descriptor, buffers, offset)
        counts.append(count)
        return count

    monkeypatch.setattr(os, "preadv", counting)
    return counts


@pytest.mark.parametrize("index", [np.s_[64:128, :], np.s_[:, 32:64]], ids=["rows", "columns"])
def test_a_slice_of_a_low_rank_change_reads_its_part_of_the_base_and_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: tuple[slice, slice]
) -> None:
    what, random = kind("BF16", 512, 256), np.random.default_rng(3)
    u, v = random.integers(-2, 2, (1, 4, 512)).tolist(), random.integers(-2, 2, (1, 4, 256)).tolist()
    raw = np.random.default_rng(4).integers(0x3C00, 0x3C80, 512 * 256).astype("<u2").tobytes()
    case = same_kind("t", what, raw, lowrank.packed([int_slice([1e-3], u, v)], "lanes"))
    with opened(tmp_path, plan_of(case)) as applied:
        counts = bytes_read(monkeypatch)
        part = applied.get_slice("t")[index]
    content = 4 + (4 * 512 * 2 + 4 * 256 * 2) // 8
    assert part.size == 512 * 256 // 8
    assert sum(counts) == len(raw) // 8 + content


def test_a_slice_of_rows_reads_only_the_chunks_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = kind("U8", 64, 1024)
    case = same_kind("t", what, random_bytes(1 << 16), ulp_of("U8", random_bytes(1 << 16), random_bytes(1 << 16, 2)))
    with opened(tmp_path, plan_of(case), chunk_bytes=4096) as applied:
        counts = bytes_read(monkeypatch)
        _ = applied.get_slice("t")[8:16]
    assert sum(counts) == 8 * 1024 + 8 * 1024  # of the base, and two chunks


def test_a_damaged_chunk_is_found_where_it_is_read(tmp_path: Path) -> None:
    case = added("t", kind("U8", 2, 4096), dense.replacement(np.zeros(8192, np.uint8), DTYPES["U8"]))
    base = write_base(tmp_path / "b.safetensors", plan_of(case))
    pack = write_pack(tmp_path / "p.skp", plan_of(case))
    blob = bytearray(pack.read_bytes())
    blob[len(blob) - len(take_apart(pack).data) + 4096] ^= 1
    pack.write_bytes(blob)
    with open_applied(base, pack) as applied:
        assert not applied.get_slice("t")[0:1].any()
        refused("integrity.chunk", applied.get_slice("t").__getitem__, slice(1, 2))


@pytest.mark.parametrize("index", [0, (slice(0, 2, 2),), (slice(None),) * 3, (slice(None), None), ...])
def test_refuses_what_is_no_slice_of_step_1(tmp_path: Path, index: object) -> None:
    case = same_kind("t", kind("U8", 2, 4), bytes(8), ulp_of("U8", bytes(8), bytes(range(8))))
    with opened(tmp_path, plan_of(case)) as applied:
        refused("usage.argument", applied.get_slice("t").__getitem__, index)


def test_refuses_a_tensor_that_the_result_has_not(tmp_path: Path) -> None:
    with opened(tmp_path, full_plan()) as applied:
        refused("usage.argument", applied.get_slice, "m.old")
        refused("usage.argument", applied.get_tensor, "m.old")


def test_refuses_slices_of_elements_that_share_bytes(tmp_path: Path) -> None:
    case = added("t", kind("F4", 2, 4), dense.replacement(np.arange(4, dtype=np.uint8), DTYPES["F4"]))
    with opened(tmp_path, plan_of(case)) as applied:
        refused("unsupported.operation", applied.get_slice, "t")
        assert applied.get_tensor("t").tolist() == [0, 1, 2, 3]


def test_a_wrong_base_is_found_by_a_whole_tensor_and_by_the_whole_base(tmp_path: Path) -> None:
    plan = plan_of(same_kind("t", kind("U8", 8, 8), bytes(64), ulp_of("U8", bytes(64), random_bytes(64))))
    base, pack = write_base(tmp_path / "b.safetensors", plan), write_pack(tmp_path / "p.skp", plan)
    base.write_bytes(base.read_bytes()[:-1] + b"x")
    with open_applied(base, pack) as applied:
        refused("base.content", applied.get_tensor, "t")
        refused("base.content", applied.require_proved)
        assert applied.get_slice("t")[0:1].size == 8  # which no slice can notice


def test_sorted_steps_are_made_in_whole_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what, rows, cols = kind("BF16", 600, 1000), 600, 1000  # three spans, the last one short
    raw, wanted = (random_bytes(2 * rows * cols, seed) for seed in (1, 2))
    case = same_kind("t", what, raw, ulp_of("BF16", raw, wanted, "exponent"))
    with opened(tmp_path, plan_of(case), chunk_bytes=1 << 16) as applied:
        whole = np.frombuffer(wanted, "<u2").reshape(rows, cols)
        for index in some_slices((rows, cols)):
            assert np.array_equal(applied.get_slice("t")[index], whole[index]), index
        counts = bytes_read(monkeypatch)
        assert np.array_equal(applied.get_slice("t")[10:20], whole[10:20])
        assert sum(counts) == 2 * (1 << 18) + 2 * (
            1 << 18
        )  # a span of the base, and the four chunks a plane that hold it


def test_additions_below_sorted_steps_are_made_whole_and_proved(tmp_path: Path) -> None:
    what = kind("BF16", 4, 6)
    raw = bf16(*range(24))
    change = lowrank.packed([int_slice([1.0], [[[1, 1, 0, 1]]], [[[1, 0, 1, 0, -1, 0]]])], "stream")
    middle = made_directly(same_kind("t", what, raw, change))
    case = same_kind("t", what, raw, change, ulp_of("BF16", middle, random_bytes(48), "exponent"))
    with opened(tmp_path, plan_of(case)) as applied:
        whole = np.frombuffer(random_bytes(48), "<u2").reshape(4, 6)
        for index in some_slices((4, 6)):
            assert np.array_equal(applied.get_slice("t")[index], whole[index]), index
