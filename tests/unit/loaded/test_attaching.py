"""Packs on a loaded model: the bits of ``apply``, the base's own bits again, and the model untouched by any error."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import refused, write_checkpoint

torch = pytest.importorskip("torch", reason="torch is an extra")

from toy_models import (  # noqa: E402 - it needs torch
    Llama,
    bytes_of,
    every_encoding,
    load,
    low_rank,
    nudged,
    pack_of,
    replaced,
    snapshot,
    stored,
)

import skillpack_format as skp  # noqa: E402
from skillpack_format.errors import SkillPackError  # noqa: E402
from skillpack_format.loaded import attaching  # noqa: E402
from skillpack_format.loaded.slots import Slot  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@dataclass(frozen=True)
class Made:
    """Three packs of one base, the bytes of their results by name, and the base's own file."""

    packs: list[tuple[Path, dict[str, bytes]]]
    base: Path

    def options(self, how: int) -> skp.AttachOptions:
        return [
            skp.AttachOptions(),
            skp.AttachOptions(undo="host", threads=3),
            skp.AttachOptions(undo="pack"),
            skp.AttachOptions(base=self.base),
            skp.AttachOptions(verify=False),
        ][how]


def make(folder: Path, dtype: Any) -> Made:
    checkpoint = stored(Llama(dtype=dtype))
    packs = [pack_of(folder / f"{k}.skp", checkpoint, every_encoding(checkpoint, 10 * k)) for k in (1, 2, 3)]
    return Made(packs, write_checkpoint(folder / "base.safetensors", checkpoint))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Made]:
    return {dtype: make(tmp_path_factory.mktemp("packs"), dtype) for dtype in DTYPES}


@pytest.fixture(scope="module")
def usual(made: dict[Any, Made]) -> Made:
    return made[torch.bfloat16]


def holds(model: Any, result: dict[str, bytes]) -> bool:
    found = snapshot(model)
    return all(found[name] == raw for name, raw in result.items())


@pytest.mark.parametrize("how", range(5))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attach_makes_what_apply_makes_and_detach_gives_every_bit_back(
    dtype: Any, how: int, made: dict[Any, Made]
) -> None:
    model = Llama(dtype=dtype)
    before = snapshot(model)
    path, result = made[dtype].packs[0]
    attachment = skp.attach(model, path, made[dtype].options(how))
    assert holds(model, result)
    assert snapshot(model) != before
    assert attachment.pack_id == skp.open_pack(path).pack_id
    attachment.detach()
    assert snapshot(model) == before
    assert attachment.pack_id is None


@pytest.mark.parametrize("how", range(5))
def test_many_switches_in_random_order_end_on_the_exact_base(how: int, usual: Made) -> None:
    model = Llama()
    before = snapshot(model)
    options, packs = usual.options(how), usual.packs
    chosen = random.Random(how)
    skp.attach(model, packs[0][0], options)
    for _ in range(20):
        path, result = chosen.choice(packs)
        skp.switch(model, path)
        assert holds(model, result)
        if chosen.random() < 0.3:
            skp.detach(model)
            assert snapshot(model) == before
            skp.attach(model, path, options)
    skp.detach(model)
    assert snapshot(model) == before


def test_an_open_pack_may_be_given_and_stays_open(usual: Made) -> None:
    model = Llama()
    (path, result), *_ = usual.packs
    with skp.open_pack(path) as pack:
        skp.attach(model, pack)
        assert holds(model, result)
        skp.detach(model)
        assert pack.read_content(0)


def test_the_way_back_is_smaller_than_the_base(tmp_path: Path) -> None:
    for dtype, undo, share in ((torch.bfloat16, "device", 0.8), (torch.float32, "pack", 0.2)):
        model = Llama(dtype=dtype)
        checkpoint = stored(model)
        path, _ = pack_of(tmp_path / f"{undo}.skp", checkpoint, {UP: [low_rank(checkpoint[UP][0], 1)]})
        attachment = skp.attach(model, path, skp.AttachOptions(undo=undo))
        assert 0 < attachment.undo_nbytes < share * len(checkpoint[UP][1])


def test_forward_passes_see_the_pack(usual: Made) -> None:
    model = Llama()
    ids = torch.arange(6).view(2, 3)
    before = model(ids)
    (path, _), *_ = usual.packs
    skp.attach(model, path)
    assert not torch.equal(model(ids), before)
    skp.detach(model)
    assert torch.equal(model(ids), before)


def test_parameters_keep_their_identity_and_their_gradients(usual: Made) -> None:
    model = Llama()
    weight = model.lm_head.weight.requires_grad_()
    (path, _), *_ = usual.packs
    skp.attach(model, path)
    assert model.lm_head.weight is weight
    assert weight.requires_grad
    assert weight.grad_fn is None


def test_a_tensor_that_is_not_contiguous_is_written_in_its_own_layout(tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    turned = model.model.layers[0].mlp.up_proj
    turned.weight = torch.nn.Parameter(turned.weight.detach().t().contiguous().t(), requires_grad=False)
    path, result = pack_of(tmp_path / "p.skp", checkpoint, {UP: [low_rank(checkpoint[UP][0], 1)]})
    skp.attach(model, path)
    assert holds(model, result)
    assert not turned.weight.is_contiguous()
    skp.detach(model)
    assert bytes_of(turned.weight) == checkpoint[UP][1]


# ------------------------------------------------------------------------------------------- moved and copied models


def test_a_model_whose_memory_moved_is_found_again(usual: Made) -> None:
    model = Llama()
    before = snapshot(model)
    (path, _), *_ = usual.packs
    skp.attach(model, path)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    skp.detach(model)
    assert snapshot(model) == before


def test_nothing_keeps_a_model_alive(usual: Made) -> None:
    model = Llama()
    (path, _), *_ = usual.packs
    attachment = skp.attach(model, path)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    refused("usage.argument", attachment.detach)


# ---------------------------------------------------------------------------------------------------- usage


def test_refuses_a_second_pack_and_none_to_detach(usual: Made) -> None:
    model = Llama()
    (path, _), (other, _), _ = usual.packs
    refused("usage.argument", skp.detach, model)
    refused("usage.argument", skp.switch, model, path)
    attachment = skp.attach(model, path)
    refused("usage.argument", skp.attach, model, other)
    attachment.detach()
    attachment.detach()
    refused("usage.argument", skp.detach, model)


def test_refuses_an_attachment_that_another_has_followed(usual: Made) -> None:
    model = Llama()
    old = skp.attach(model, usual.packs[0][0])
    old.detach()
    new = skp.attach(model, usual.packs[1][0], skp.AttachOptions(verify=False))
    for call in (old.detach, lambda: old.switch(usual.packs[2][0])):
        left_alone(model, "usage.argument", call)
    new.detach()


def test_refuses_an_unknown_way_back(usual: Made) -> None:
    model = Llama()
    (path, _), *_ = usual.packs
    refused("usage.argument", skp.attach, model, path, skp.AttachOptions(undo="cloud"))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- the model left as it was


def left_alone(model: Any, code: str, call: Callable[..., Any], *args: Any) -> SkillPackError:
    before = snapshot(model)
    found = refused(code, call, *args)
    assert snapshot(model) == before
    return found


def test_refuses_a_base_with_one_other_bit(usual: Made) -> None:
    model = Llama()
    (path, _), *_ = usual.packs
    model.model.norm.weight.data.view(torch.int16)[5] ^= 1
    found = left_alone(model, "base.content", skp.attach, model, path)
    assert NORM in found.where
    assert "1 of 8 tensors" in found.message


def test_a_wrong_base_that_was_not_verified_still_makes_no_wrong_result_on_a_cpu(
    tmp_path: Path,
) -> None:
    model = Llama()
    checkpoint = stored(model)
    path, _ = pack_of(
        tmp_path / "p.skp", checkpoint, {NORM: [replaced(checkpoint[NORM][0], 1)], UP: [nudged(*checkpoint[UP], 1)]}
    )
    model.model.layers[0].mlp.up_proj.weight.data.view(torch.int16)[0, 0] ^= 1
    left_alone(model, "integrity.result", skp.attach, model, path, skp.AttachOptions(verify=False))


def test_refuses_to_detach_from_weights_that_were_trained_meanwhile(usual: Made) -> None:
    model = Llama()
    (path, _), *_ = usual.packs
    skp.attach(model, path)
    model.model.norm.weight.data[0] += 1
    found = left_alone(model, "base.content", skp.detach, model)
    assert "changed since" in found.message


def test_refuses_a_pack_of_another_base_before_the_present_one_is_taken_off(usual: Made, tmp_path: Path) -> None:
    model = Llama()
    (path, result), *_ = usual.packs
    other = stored(model)
    other[NORM] = (other[NORM][0], bytes(len(other[NORM][1])))
    stranger, _ = pack_of(tmp_path / "other.skp", other, {UP: [low_rank(other[UP][0], 5)]})
    skp.attach(model, path)
    left_alone(model, "base.content", skp.switch, model, stranger)
    assert holds(model, result)
    skp.detach(model)


def damaged(path: Path, place: float) -> Path:
    """A pack with one wrong byte in its data, which is found only when it is read."""
    blob = bytearray(path.read_bytes())
    with skp.open_pack(path) as pack:
        segment = pack.extents[int(place * (len(pack.extents) - 1))]
        blob[pack.header_bytes + segment.offset] ^= 1
    worse = path.with_suffix(f".{place}.skp")
    worse.write_bytes(blob)
    return worse


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("how", range(5))
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_pack_found_damaged_half_way_is_taken_back(place: float, how: int, threads: int, usual: Made) -> None:
    model = Llama()
    options, packs = usual.options(how), usual.packs
    worse = damaged(packs[0][0], place)
    left_alone(model, "integrity.chunk", skp.attach, model, worse, options)
    skp.attach(model, packs[1][0], options)
    left_alone(model, "integrity.chunk", skp.switch, model, worse)
    assert holds(model, packs[1][1])
    skp.detach(model)


@pytest.mark.parametrize("failing", range(8))
@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True])
def test_whatever_stops_the_writing_is_taken_back(
    failing: int, kind: type[BaseException], after: bool, usual: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is injected where memory is written: before the copy of one tensor, or right after it."""
    model = Llama()
    packs = usual.packs
    skp.attach(model, packs[0][0])
    before, write, calls = snapshot(model), Slot.write, iter(range(1000))

    def faulty(slot: Slot, bits: Any) -> None:
        call = next(calls)
        if call != failing or after:
            write(slot, bits)
        if call == failing:
            raise kind("injected")

    monkeypatch.setattr(Slot, "write", faulty)
    for attempt in (lambda: skp.switch(model, packs[1][0]), lambda: skp.detach(model)):
        calls = iter(range(1000))
        with pytest.raises((SkillPackError, KeyboardInterrupt)) as found:
            attempt()
        if kind is not KeyboardInterrupt:
            assert found.value.code == "resource.memory"
        assert snapshot(model) == before
    monkeypatch.undo()
    skp.detach(model)


def test_says_so_where_the_model_could_not_be_put_back(usual: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Llama()
    (path, _), *_ = usual.packs
    write, calls = Slot.write, iter(range(1000))

    def broken(slot: Slot, bits: Any) -> None:
        if next(calls) > 2:
            raise MemoryError
        write(slot, bits)

    monkeypatch.setattr(Slot, "write", broken)
    assert "load the model again" in refused("integrity.result", skp.attach, model, path).message


def test_a_base_file_that_is_not_the_base_is_refused_when_detaching(usual: Made, tmp_path: Path) -> None:
    model = Llama()
    wrong = stored(model)
    (path, _), *_ = usual.packs
    wrong[NORM] = (wrong[NORM][0], bytes(len(wrong[NORM][1])))
    base = write_checkpoint(tmp_path / "wrong.safetensors", wrong)
    skp.attach(model, path, skp.AttachOptions(base=base))
    assert NORM in left_alone(model, "base.content", skp.detach, model).where


# --------------------------------------------------------------------------------------------------------- other


def test_progress_is_told_in_bytes(usual: Made) -> None:
    model = Llama()
    (path, _), *_ = usual.packs
    told: list[tuple[str, int, int]] = []
    skp.attach(model, path, progress=lambda *each: told.append(each))
    assert [what for what, _, _ in told] == ["checking the model"] * 8 + ["attaching"] * 8
    assert told[-1][1] == told[-1][2] > 0
    del told[:]
    attaching.detach(model, lambda *each: told.append(each))
    assert told[-1][0] == "detaching"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("undo", ["device", "host", "pack"])
def test_a_gpu_makes_the_same_bits(undo: str, usual: Made) -> None:
    model = Llama()
    before = snapshot(model)
    packs = usual.packs
    on_gpu = load(Llama(), stored(model)).to("cuda")
    skp.attach(on_gpu, packs[0][0], skp.AttachOptions(undo=undo, threads=2))  # type: ignore[arg-type]
    assert holds(on_gpu.cpu(), packs[0][1])
    on_gpu.to("cuda")
    skp.switch(on_gpu, packs[1][0])
    skp.detach(on_gpu)
    assert snapshot(on_gpu.cpu()) == before
