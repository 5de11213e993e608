"""Faults, loss of power and races: a sample of what ``python -m benchmarks.reliability`` tries at length."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import refused

import skillpack_format as skp
from benchmarks.reliability import allocations, bases, damage, races, shim
from benchmarks.reliability.allocations import nth_fails
from benchmarks.reliability.scenes import leftovers, make_inputs
from skillpack_format.recipes import RECIPES
from skillpack_format.torch_bridge import SpreadBench, TorchBench

ROOT = Path(__file__).parents[2]
needs_shim = pytest.mark.skipif(shim.why_not() is not None, reason=f"no faults can be injected: {shim.why_not()}")


def sample(what: str, count: int, folder: Path) -> dict[str, Any]:
    """What benchmarks/reliability/sample.py found."""
    command = [sys.executable, "-m", "benchmarks.reliability.sample", what, str(count), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs_shim
def test_after_any_fault_the_output_is_old_or_new_and_the_command_can_be_run_again(tmp_path: Path) -> None:
    found = sample("faults", 200, tmp_path)
    assert found["bad"] == []
    assert found["tried"] == 200
    assert found["total"] >= 10_000
    assert found["resumed"] > 100


@needs_shim
def test_after_a_loss_of_power_the_output_is_old_or_new(tmp_path: Path) -> None:
    found = sample("powerloss", 4, tmp_path)
    assert found["bad"] == []
    assert found["tried"] > 3_000
    assert found["resumed"] > 10


@needs_shim
def test_the_simulation_of_power_loss_notices_missing_fsyncs(tmp_path: Path) -> None:
    found = sample("without-fsync", 4, tmp_path)
    assert any("neither old nor new" in each for each in found["bad"])
    assert any("old after success" in each for each in found["bad"])


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="this Python came without its test support")
def test_memory_that_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    found = sample("allocations", 40, tmp_path)
    assert found["bad"] == []
    assert found["tried"] == 44


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="this Python came without its test support")
def test_a_memory_error_that_the_interpreter_loses_is_told_from_a_bug(tmp_path: Path) -> None:
    """CPython itself, one allocation failing: it may say that a Path is no path, which no other cause makes it say."""
    found = [
        fault
        for nth in range(1, 60)
        for call in (lambda: os.rename(tmp_path, tmp_path), lambda: os.stat(tmp_path), lambda: os.fspath(tmp_path))
        if (fault := fault_without_memory(call, nth)) is not None
    ]
    assert {type(fault) for fault in found} <= {MemoryError, TypeError, SystemError}
    for fault in found:
        is_lost = allocations.LOST.search(f"{type(fault).__name__}: {fault}") is not None
        assert is_lost == (not isinstance(fault, MemoryError))
    assert not allocations.LOST.search("TypeError: rename: dst should be string, bytes or os.PathLike, not NoneType")


def fault_without_memory(call: Callable[[], object], nth: int) -> Exception | None:
    """What ``call`` raises when its ``nth`` allocation fails."""
    import _testcapi

    tracing = sys.gettrace()
    sys.settrace(None)  # Python drops a trace function that fails, and with it what coverage counts from then on
    nth_fails(nth)()
    try:
        call()
    except (MemoryError, TypeError, SystemError) as fault:
        return fault
    finally:
        _testcapi.remove_mem_hooks()
        sys.settrace(tracing)
    return None


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_that_the_gpu_has_not_is_said_in_words(tmp_path: Path, threads: int) -> None:
    """torch's own error, raised where a GPU would raise it."""

    class SmallGpu(TorchBench):
        def accumulator(self, *start: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    make_inputs(tmp_path)
    base, out = tmp_path / "base", tmp_path / "out"
    skp.convert(base, tmp_path / "tuned", tmp_path / "p.skp", skp.ConvertOptions(recipe=RECIPES["standard"]))
    bench = SpreadBench(["cpu", "cpu"])
    bench._benches = SmallGpu("cpu"), SmallGpu("cpu")
    options = skp.ApplyOptions(bench=bench, threads=threads)
    found = refused("resource.memory", skp.apply, base, [tmp_path / "p.skp"], out, options)
    assert found.where.startswith("tensor '")
    assert "cpu has too little free memory" in found.message
    assert found.exit_status == 5
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_races_show_old_or_new_alone(tmp_path: Path) -> None:
    tally = races.run(16, tmp_path)
    assert tally.bad == []
    assert tally.races == 16
    assert tally.ends["done"] > 0
    assert len(tally.kinds) == 8


def test_a_race_without_a_lock_would_be_noticed(tmp_path: Path) -> None:
    """The judge, shown a mixture: the files of one result and one file of another."""
    ground = races.Ground(tmp_path)
    tally = races.Tally()
    race = ground.races()[0]
    out = ground.box / race.output
    race.prepare(out)
    shards = sorted(out.glob("*.safetensors"))
    shards[0].write_bytes((ground.inputs / "tuned made" / shards[0].name).read_bytes())
    ground._judge(race, out, [0, 1], [0, 4], tally)
    assert sorted(tally.bad) == [
        f"{race.name}: a reader saw something else: [0, 4]",
        f"{race.name}: the end is neither old nor one result",
    ]


def test_a_base_with_one_changed_bit_is_refused_before_anything_appears(tmp_path: Path) -> None:
    tally = bases.run(120, tmp_path)
    assert tally.bad == []
    assert tally.codes == {"base.content": 120}


def test_packs_of_the_corpus_are_refused_once_damaged(tmp_path: Path) -> None:
    packs = {name: path for name, path in damage.accepted_packs().items() if path.stat().st_size < damage.LARGE}
    assert len(packs) > 500
    tally = damage.Tally()
    for name in random.Random(1).sample(sorted(packs), 100):
        damage.damage(name, packs[name], tmp_path / "harmed.skp", tally, share=0.01)
    assert tally.bad == []
    assert set(tally.tried) == set(damage.KINDS)
    assert sum(tally.tried.values()) > 2_000
