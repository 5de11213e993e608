"""The way back of one tensor: every bit, in little room."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from skillpack_format.loaded import undo  # noqa: E402

WIDTHS = [torch.int8, torch.int16, torch.int32, torch.int64]
CPU = torch.device("cpu")


def patterns(dtype: torch.dtype, items: int, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (items * dtype.itemsize,), dtype=torch.uint8, generator=made)
    return raw.view(dtype)


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 24])
def test_any_two_tensors(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "_CHUNK_ITEMS", chunk)
    base, result = patterns(dtype, 100, 1), patterns(dtype, 100, 2)
    back = undo.undo_of(base, result, CPU)
    assert torch.equal(back.revert(result), base)
    assert back.nbytes <= base.nbytes


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_the_ends_of_the_range(dtype: torch.dtype) -> None:
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    base = torch.tensor([least, most, 0, -1, most, least], dtype=dtype)
    result = torch.tensor([most, least, most, least, 0, -1], dtype=dtype)
    assert torch.equal(undo.undo_of(base, result, CPU).revert(result), base)


def test_what_is_reverted_is_left_as_it_is() -> None:
    base, result = patterns(torch.int16, 50, 1), patterns(torch.int16, 50, 2)
    before = result.clone()
    undo.undo_of(base, result, CPU).revert(result)
    assert torch.equal(result, before)


def test_few_changed_elements_are_listed() -> None:
    base = patterns(torch.int16, 1000, 1)
    result = base.clone()
    result[[3, 500, 999]] = 7
    back = undo.undo_of(base, result, CPU)
    assert back.nbytes <= 3 * 6
    assert torch.equal(back.revert(result), base)


def test_near_ones_take_a_byte_each_and_far_ones_are_listed() -> None:
    base = patterns(torch.int16, 1000, 1)
    result = base + torch.arange(1000, dtype=torch.int16).remainder(200) - 100
    result[5] = base[5] + 30000
    back = undo.undo_of(base, result, CPU)
    assert 1000 <= back.nbytes <= 1000 + 6
    assert torch.equal(back.revert(result), base)


def test_no_elements() -> None:
    nothing = torch.empty(0, dtype=torch.int16)
    assert undo.undo_of(nothing, nothing, CPU).revert(nothing).numel() == 0
