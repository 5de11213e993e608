"""Applying: blocks, copies, several packs in a row, and going on with what a stopped run left."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import (
    Plan,
    bf16,
    full_plan,
    int_slice,
    kind,
    plan_of,
    random_bytes,
    refused,
    same_kind,
    ulp_of,
    write_base,
    write_checkpoint,
    write_pack,
)
from safetensors import safe_open

from skillpack_format import arithmetic, native
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import dtype_named
from skillpack_format.encodings import lowrank
from skillpack_format.ops.application import Options, apply, prove
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.heads import canonical_head
from skillpack_format.stores.safetensors_files import open_checkpoint


def tensors_of(path: Path) -> dict[str, tuple[TensorKind, bytes]]:
    with open_checkpoint(path) as checkpoint:
        return {
            name: (kind(spec.dtype.name, *spec.shape), bytes(checkpoint.read(name)))
            for name, spec in checkpoint.specs.items()
        }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row, so that every tensor has several."""
    monkeypatch.setattr(arithmetic.NumpyBench, "block_items", 1)
    monkeypatch.setattr(native.NativeBench, "block_items", 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_of_change_comes_out_as_made_directly(tmp_path: Path, threads: int) -> None:
    plan = full_plan()
    base, pack = write_base(tmp_path / "b.safetensors", plan), write_pack(tmp_path / "p.skp", plan)
    seen: list[tuple[str, int, int]] = []
    apply(base, [pack], tmp_path / "out.safetensors", Options(threads=threads), lambda *step: seen.append(step))
    assert tensors_of(tmp_path / "out.safetensors") == dict(sorted(plan.result().items()))
    total = sum(len(raw) for _, raw in plan.result().values())
    applying = [done for what, done, _ in seen if what == "applying"]
    assert applying == sorted(applying)
    assert applying[-1] == total
    assert prove(base, [pack], Options(threads=threads)).result_digest is not None


def test_several_devices_make_the_same_files(tmp_path: Path) -> None:
    """Two CPUs that torch computes on, with little room: tensors of four threads take turns on them."""
    bridge = pytest.importorskip("skillpack_format.torch_bridge", reason="torch is an extra")
    plan = full_plan()
    base, pack = write_base(tmp_path / "b.safetensors", plan), write_pack(tmp_path / "p.skp", plan)
    options = Options(threads=4, bench=bridge.SpreadBench(["cpu", "cpu"], [3000, 2000]))
    apply(base, [pack], tmp_path / "out.safetensors", options)
    apply(base, [pack], tmp_path / "expected.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def two_shards(folder: Path, plan: Plan) -> Path:
    """The base of ``plan`` in two shards, the second of which holds the unchanged tensors, and an index."""
    folder.mkdir()
    changed = {name: tensor for name, tensor in plan.base().items() if name not in plan.unchanged}
    write_checkpoint(folder / "a.safetensors", changed)
    write_checkpoint(folder / "b.safetensors", plan.unchanged)
    homes = {**dict.fromkeys(changed, "a.safetensors"), **dict.fromkeys(plan.unchanged, "b.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return folder


def plan_with_unchanged() -> Plan:
    what = kind("BF16", 4, 8)
    change = lowrank.packed([int_slice([0.5], [[[1, -1, 0, 1]]], [[[1, 0, 1, 0, -1, 0, 0, 1]]])], "stream")
    cases = {
        "m.x": same_kind("m.x", what, bf16(*range(32)), change),
        "m.y": same_kind("m.y", kind("U8", 64), bytes(64), ulp_of("U8", bytes(64), random_bytes(64))),
    }
    return Plan(cases, {"m.s": (kind("U8", 5000), random_bytes(5000)), "m.t": (what, bf16(*range(32)))})


def test_a_shard_in_which_nothing_changes_is_the_same_file(tmp_path: Path) -> None:
    plan = plan_with_unchanged()
    base = two_shards(tmp_path / "base", plan)
    apply(base, [write_pack(tmp_path / "p.skp", plan)], tmp_path / "out", Options(threads=2))
    assert (tmp_path / "out/b.safetensors").read_bytes() == (base / "b.safetensors").read_bytes()
    assert tensors_of(tmp_path / "out") == dict(sorted(plan.result().items()))


def test_a_shard_of_another_layout_is_laid_out_anew(tmp_path: Path) -> None:
    plan = plan_with_unchanged()
    base = two_shards(tmp_path / "base", plan)
    blob = (base / "b.safetensors").read_bytes()
    length = int.from_bytes(blob[:8], "little")
    spaced = blob[8 : 8 + length] + b" " * 8
    (base / "b.safetensors").write_bytes(len(spaced).to_bytes(8, "little") + spaced + blob[8 + length :])
    apply(base, [write_pack(tmp_path / "p.skp", plan)], tmp_path / "out")
    assert (tmp_path / "out/b.safetensors").read_bytes() == blob
    assert tensors_of(tmp_path / "out") == dict(sorted(plan.result().items()))


def with_layout(plan: Plan) -> Plan:
    """The plan with a layout whose second shard is the base's under another name."""
    specs = [TensorSpec(name, dtype_named(what.dtype), what.shape) for name, (what, _) in plan.result().items()]
    homes = {spec.name: "y.safetensors" if spec.name in plan.unchanged else "x.safetensors" for spec in specs}
    first = canonical_head("x.safetensors", [spec for spec in specs if homes[spec.name][0] == "x"], {"by": "tuned"})
    second = canonical_head("y.safetensors", [spec for spec in specs if homes[spec.name][0] == "y"], {})
    index = json.dumps({"weight_map": homes}).encode()
    shards = {head.file_name: head.raw for head in (first, second)}
    return replace(plan, shards=shards, index=("m.safetensors.index.json", index))


def test_a_layout_is_kept_and_takes_the_bases_files_where_they_fit(tmp_path: Path) -> None:
    plan = with_layout(plan_with_unchanged())
    base = two_shards(tmp_path / "base", plan)
    assert apply(base, [write_pack(tmp_path / "p.skp", plan)], tmp_path / "out", Options(threads=2)).layout
    assert sorted(files_of(tmp_path / "out")) == ["m.safetensors.index.json", "x.safetensors", "y.safetensors"]
    assert (tmp_path / "out/y.safetensors").read_bytes() == (base / "b.safetensors").read_bytes()
    assert (tmp_path / "out/x.safetensors").read_bytes().startswith(plan.shards["x.safetensors"])
    assert tensors_of(tmp_path / "out") == dict(sorted(plan.result().items()))


def test_a_wrong_base_is_reported_before_a_layout_that_does_not_fit(tmp_path: Path) -> None:
    plan = with_layout(plan_with_unchanged())
    plan = replace(plan, shards={**plan.shards, "x.safetensors": plan.shards["y.safetensors"]})
    pack = write_pack(tmp_path / "p.skp", plan)
    base = two_shards(tmp_path / "base", plan)
    refused("payload.layout", apply, base, [pack], tmp_path / "out")
    refused("payload.layout", prove, base, [pack])
    blob = (base / "a.safetensors").read_bytes()
    (base / "a.safetensors").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    refused("base.content", apply, base, [pack], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "p.skp"]


def test_a_copy_is_proved_by_what_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(source: int, target: int, count: int, start: int, at: int) -> int:
        data = bytearray(os.pread(source, count, start))
        data[-1] ^= 1
        return os.pwrite(target, data, at)

    monkeypatch.setattr(os, "copy_file_range", spoil, raising=False)
    plan = plan_with_unchanged()
    base = two_shards(tmp_path / "base", plan)
    refused("base.content", apply, base, [write_pack(tmp_path / "p.skp", plan)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def after(plan: Plan) -> Plan:
    """A plan on the result of ``plan_with_unchanged``, which changes one tensor again and one for the first time."""
    before = plan.result()
    cases = {}
    for name in ("m.s", "m.y"):
        what, raw = before[name]
        cases[name] = same_kind(name, what, raw, ulp_of("U8", raw, random_bytes(len(raw), 9)))
    return Plan(cases, {name: tensor for name, tensor in before.items() if name not in cases}, aliases={"m.z": "m.x"})


@pytest.mark.parametrize("threads", [1, 2])
def test_packs_in_a_row(tmp_path: Path, threads: int) -> None:
    first = plan_with_unchanged()
    second = after(first)
    base = two_shards(tmp_path / "base", first)
    packs = [write_pack(tmp_path / "1.skp", first), write_pack(tmp_path / "2.skp", second)]
    apply(base, packs, tmp_path / "out", Options(threads=threads))
    assert tensors_of(tmp_path / "out") == dict(sorted(second.result().items()))


class Stopped(KeyboardInterrupt):
    pass


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("layout", [False, True])
@pytest.mark.parametrize("steps", range(1, 5))
def test_a_run_that_was_stopped_goes_on_and_makes_the_same_bytes(tmp_path: Path, steps: int, layout: bool) -> None:
    plan = with_layout(plan_with_unchanged()) if layout else plan_with_unchanged()
    base, pack = two_shards(tmp_path / "base", plan), write_pack(tmp_path / "p.skp", plan)
    apply(base, [pack], tmp_path / "whole")
    left = steps

    def stop(what: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(KeyboardInterrupt):
        apply(base, [pack], tmp_path / "out", progress=stop)
    partial = tmp_path / ".out.skillpack-partial"
    for path in partial.iterdir():  # what a kill leaves may be torn anywhere
        blob = path.read_bytes()
        path.write_bytes(blob[: len(blob) - 8 * steps])
    apply(base, [pack], tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not partial.exists()


def test_what_a_stopped_run_finished_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_with_unchanged()
    base, pack = write_base(tmp_path / "b.safetensors", plan), write_pack(tmp_path / "p.skp", plan)
    whole = apply(base, [pack], tmp_path / "whole.safetensors")
    (tmp_path / ".out.safetensors.skillpack-partial").write_bytes((tmp_path / "whole.safetensors").read_bytes())
    written: list[int] = []
    real = os.pwrite

    def counting(descriptor: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    again = apply(base, [pack], tmp_path / "out.safetensors")
    assert max(written) < 20  # the number of the process, in the lock
    assert again.result_digest == whole.result_digest
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_the_output_can_be_opened_by_the_reference_library(tmp_path: Path) -> None:
    plan = plan_of(same_kind("t", kind("U8", 64), bytes(64), ulp_of("U8", bytes(64), random_bytes(64))))
    base, pack = write_base(tmp_path / "b.safetensors", plan), write_pack(tmp_path / "p.skp", plan)
    apply(base, [pack], tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as found:
        assert np.array_equal(found.get_tensor("t"), np.frombuffer(random_bytes(64), np.uint8))
