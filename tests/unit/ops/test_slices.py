"""Slices of the result: the same bits as of the whole, and no more read than they need."""

from __future__ import annotations

import itertools
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
    chunks_of,
    full_plan,
    int_slice,
    kind,
    made_directly,
    plan_of,
    put_together,
    random_bytes,
    refused,
    same_kind,
    take_apart,
    ulp_of,
    with_chunks,
    write_base,
    write_pack,
)

from skillpack_format import bits as bit_packing
from skillpack_format.dtypes import DTYPES, dtype_named
from skillpack_format.encodings import blockq, dense, factors, lowrank, sparse
from skillpack_format.encodings._base import Encoded
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


def random_windows(shape: tuple[int, ...], seed: int, count: int = 40) -> list[tuple[slice, ...]]:
    random = np.random.default_rng(seed)
    found = [np.sort(random.integers(0, size + 1, (count, 2)), axis=1) for size in shape]
    return [tuple(slice(*map(int, dim[k])) for dim in found) for k in range(count)]


STACK = (3, 13, 11)  # with few multiples of eight among the codes before a window


def stacks() -> dict[str, Encoded]:
    """Every encoding for a stack of matrices, codes of every width in both packings."""
    random = np.random.default_rng(1)
    delta = random.standard_normal((STACK[0] * STACK[1], STACK[2])).astype(np.float32)
    start, wanted = (random_bytes(2 * delta.size, seed) for seed in (1, 2))
    positions = np.sort(random.permutation(delta.size)[:90])
    u, v = (random.standard_normal((STACK[0], 4, dim)).astype(np.float32) for dim in STACK[1:])
    bands = [factors.Band(code, u[:, :, 0], u, v) for code in ("BF16", "Q3")]
    found = {
        "dense": dense.replacement(np.frombuffer(wanted, "<u2"), DTYPES["BF16"]),
        "ulp": ulp_of("BF16", start, wanted),
        "sorted": ulp_of("BF16", start, wanted, "magnitude"),
        "rows": ulp_of("BF16", start, wanted, "rows", random_bytes(39, 3)),
        "sparse": sparse.placed(positions, np.arange(90).astype("<u2"), DTYPES["BF16"], delta.size, "replace"),
        "factors": factors.banded(bands, 4, "stream"),
    }
    for bits, packing in itertools.product(range(1, 9), bit_packing.PACKINGS):
        found[f"blockq-{bits}-{packing}"] = blockq.rounded(delta, bits, 4, packing)
        found[f"lowrank-{bits}-{packing}"] = Encoded(
            "lowrank",
            {"packing": packing, "slices": [{"bits_u": bits, "bits_v": 9 - bits, "rank": 5}]},
            {
                "scales": random.uniform(0.5, 2, STACK[0]).astype("<f4").view("<u4"),
                **{
                    name: bit_packing.pack(random.integers(0, 1 << width, STACK[0] * dim * 5), width, packing)
                    for name, dim, width in (("u0", STACK[1], bits), ("v0", STACK[2], 9 - bits))
                },
            },
        )
    return found


STACKS = stacks()


def test_every_encoding_has_a_stack() -> None:
    assert {each.encoding for each in STACKS.values()} == set(EXAMPLES)


@pytest.mark.parametrize("label", STACKS)
def test_any_window_has_the_bits_of_the_whole(tmp_path: Path, label: str) -> None:
    encoded, raw = STACKS[label], random_bytes(2 * 3 * 13 * 11, 1)
    if encoded.encoding in ("blockq", "factors", "lowrank"):  # nothing is added to what is not finite
        raw = (np.frombuffer(raw, "<u2") & 0xBFFF).tobytes()
    with opened(tmp_path, plan_of(same_kind("t", kind("BF16", *STACK), raw, encoded))) as applied:
        whole, part = applied.get_tensor("t"), applied.get_slice("t")
        for index in random_windows(STACK, 7):
            assert np.array_equal(part[index], whole[index]), index


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


@pytest.mark.parametrize(
    ("index", "chunks"),
    [(np.s_[1024:1536, :], 1 + 2), (np.s_[:, 256:512], 8 + 1), (np.s_[0:512, 0:256], 1 + 1), (np.s_[:, :], 8 + 2)],
    ids=["rows", "columns", "both", "whole"],
)
def test_rows_and_columns_of_a_low_rank_change_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: tuple[slice, slice], chunks: int
) -> None:
    what, random = kind("BF16", 4096, 1024), np.random.default_rng(3)
    u, v = (random.integers(-8, 8, (1, 16, dim)).tolist() for dim in what.shape)  # 4 bits, 8 bytes a row
    case = same_kind("t", what, bytes(2 * 4096 * 1024), lowrank.packed([int_slice([1e-3], u, v)], "lanes"))
    with opened(tmp_path, plan_of(case), chunk_bytes=4096) as applied:
        counts = bytes_read(monkeypatch)
        part = applied.get_slice("t")[index]
    assert sum(counts) == 2 * part.size + 4 + 4096 * chunks


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_rows_of_group_codes_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    delta = np.random.default_rng(3).standard_normal((512, 256)).astype(np.float32)
    case = same_kind("t", kind("BF16", 512, 256), bytes(2 * 512 * 256), blockq.rounded(delta, bits, 32, "stream"))
    with opened(tmp_path, plan_of(case), chunk_bytes=4096) as applied:
        counts = bytes_read(monkeypatch)
        part = applied.get_slice("t")[128:256]
    assert sum(counts) == 2 * part.size + bits * 4096 + 2 * 4096  # a quarter of the codes, both planes of the scales


def test_a_content_read_whole_is_proved(tmp_path: Path) -> None:
    change = lowrank.packed([int_slice([1], [[[0, -1] * 8]], [[[0, -1, 0]]])], "stream")
    plan = plan_of(same_kind("t", kind("BF16", 16, 3), bytes(2 * 16 * 3), change))
    base, pack = write_base(tmp_path / "b.safetensors", plan), write_pack(tmp_path / "p.skp", plan)
    parts = take_apart(pack)
    *others, v = chunks_of(parts, 0)
    pack.write_bytes(put_together(with_chunks(parts, 0, [*others, bytes([v[0] ^ 1])])))
    with open_applied(base, pack) as applied:
        assert applied.get_slice("t")[0:1].size == 3  # of which no digest is known
        refused("integrity.content", applied.get_slice("t").__getitem__, slice(None))


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


@pytest.mark.parametrize("sort", ["magnitude", "rows"])
def test_sorted_steps_are_made_in_whole_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: str) -> None:
    what, rows, cols = kind("BF16", 600, 1000), 600, 1000  # three spans, the last one short
    raw, wanted = (random_bytes(2 * rows * cols, seed) for seed in (1, 2))
    classes = random_bytes(rows, 3) if sort == "rows" else None
    case = same_kind("t", what, raw, ulp_of("BF16", raw, wanted, sort, classes))
    with opened(tmp_path, plan_of(case), chunk_bytes=1 << 16) as applied:
        whole = np.frombuffer(wanted, "<u2").reshape(rows, cols)
        for index in some_slices((rows, cols)):
            assert np.array_equal(applied.get_slice("t")[index], whole[index]), index
        counts = bytes_read(monkeypatch)
        assert np.array_equal(applied.get_slice("t")[10:20], whole[10:20])
        # a span of the base, the four chunks a plane that hold it, and the one chunk of classes
        assert sum(counts) == 2 * (1 << 18) + 2 * (1 << 18) + (rows if sort == "rows" else 0)


def test_additions_below_sorted_steps_are_made_whole_and_proved(tmp_path: Path) -> None:
    what = kind("BF16", 4, 6)
    raw = bf16(*range(24))
    change = lowrank.packed([int_slice([1.0], [[[1, 1, 0, 1]]], [[[1, 0, 1, 0, -1, 0]]])], "stream")
    middle = made_directly(same_kind("t", what, raw, change))
    case = same_kind("t", what, raw, change, ulp_of("BF16", middle, random_bytes(48), "magnitude"))
    with opened(tmp_path, plan_of(case)) as applied:
        whole = np.frombuffer(random_bytes(48), "<u2").reshape(4, 6)
        for index in some_slices((4, 6)):
            assert np.array_equal(applied.get_slice("t")[index], whole[index]), index
