"""Records of coded tensors: what is read back is what was coded, and a key is of one work alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import skillpack_format as skp
from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.coding import Coded
from skillpack_format.contents import StoredContent
from skillpack_format.digest import TensorIdentity, TensorKind
from skillpack_format.durable import RunInterruptedError
from skillpack_format.limits import DEFAULT_LIMITS
from skillpack_format.locks import beside
from skillpack_format.manifest import Component, Entry
from skillpack_format.ops import conversion
from skillpack_format.planning import Budget
from skillpack_format.recipes import RECIPES, Lossless, Slices
from skillpack_format.records import from_record, record_key, to_record

OLD = TensorIdentity(TensorKind("F32", (2, 3)), bytes(32))
NEW = TensorIdentity(TensorKind("F32", (2, 3)), bytes([1]) * 32)
CONTENT = StoredContent(bytes([2]) * 32, "zstd", b"12345678", (), 77)
ENTRY = Entry(
    name="a.weight",
    tensor_class="mlp",
    module="a",
    base=OLD,
    result=NEW,
    components=(Component("dense", {"dtype": "F32", "mode": "replace"}, CONTENT.sha256),),
    stats={"changed": 3, "error": b"abcd"},
)


@pytest.mark.parametrize("error", [None, 0.1, 0.0, 1e300])
def test_a_record_gives_back_what_was_coded(error: float | None) -> None:
    coded = Coded(ENTRY, (CONTENT,), error)
    assert from_record(to_record(coded), DEFAULT_LIMITS) == coded


def test_a_tensor_of_which_nothing_was_kept_is_recorded_too() -> None:
    coded = Coded(ENTRY._replace(result=OLD, components=()), (), 1.0)
    assert from_record(to_record(coded), DEFAULT_LIMITS) == coded


def test_an_added_tensor_is_recorded() -> None:
    coded = Coded(ENTRY._replace(base=None), (CONTENT,), None)
    assert from_record(to_record(coded), DEFAULT_LIMITS) == coded


WORK: dict[str, Any] = {
    "name": "a",
    "tensor_class": "mlp",
    "old": OLD,
    "new": NEW,
    "treatment": Lossless(),
    "codec": "zstd",
    "chunk_bytes": 1 << 16,
    "bench": NUMPY_BENCH,
}
OTHER: dict[str, Any] = {
    "name": "b",
    "tensor_class": "norm",
    "old": None,
    "new": OLD,
    "treatment": Slices(1.0, 0.5),
    "codec": "raw",
    "chunk_bytes": 1 << 14,
}


@pytest.mark.parametrize("what", OTHER)
def test_another_work_has_another_key(what: str) -> None:
    assert record_key(**{**WORK, what: OTHER[what]}) != record_key(**WORK)


def test_the_same_work_has_the_same_key() -> None:
    assert record_key(**{**WORK, "treatment": Slices(0.1, 0.5)}) == record_key(
        **{**WORK, "treatment": Slices(0.1, 0.5)}
    )


# ---- a conversion that was stopped


class StopAfter:
    """A progress callback that interrupts once ``count`` tensors are coded."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, what: str, done: int, total: int) -> None:
        self.count -= what == "coding"
        if self.count < 0:
            raise KeyboardInterrupt


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(2)
    base = {f"layers.{k}.mlp.up_proj.weight": random.standard_normal((8, 8)).astype(np.float32) for k in range(6)}
    tuned = {name: value * np.float32(1.01) for name, value in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


@pytest.mark.parametrize("recipe", ["lossless", "standard"])
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_conversion_that_was_stopped_goes_on_to_the_same_pack(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, count: int
) -> None:
    options = skp.ConvertOptions(recipe=RECIPES[recipe])
    whole = skp.convert(*pair, tmp_path / "whole.skp", options)
    with pytest.raises(RunInterruptedError) as caught:
        skp.convert(*pair, tmp_path / "p.skp", options, StopAfter(count))
    assert caught.value.kept == beside(tmp_path / "p.skp", "journal")
    coded = []
    choose = conversion.choose

    def counted(job: Any) -> Any:
        coded.append(job.name)
        return choose(job)

    monkeypatch.setattr(conversion, "choose", counted)
    resumed = skp.convert(*pair, tmp_path / "p.skp", options)
    assert (tmp_path / "p.skp").read_bytes() == (tmp_path / "whole.skp").read_bytes()
    assert len(coded) == 6 - (count + 1)
    assert replace(resumed, pack=whole.pack) == whole
    assert not beside(tmp_path / "p.skp", "journal").exists()


def test_what_a_budget_had_tried_is_not_coded_again(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = skp.ConvertOptions(recipe=RECIPES["standard"], goal=Budget(4000))
    skp.convert(*pair, tmp_path / "whole.skp", options)
    with pytest.raises(RunInterruptedError):
        skp.convert(*pair, tmp_path / "p.skp", options, StopAfter(0))

    def refuse(job: Any) -> Any:
        raise AssertionError(f"{job.name} is coded again")

    monkeypatch.setattr(conversion, "choose", refuse)
    skp.convert(*pair, tmp_path / "p.skp", options)
    assert (tmp_path / "p.skp").read_bytes() == (tmp_path / "whole.skp").read_bytes()


def test_records_of_another_recipe_are_not_taken(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError):
        skp.convert(*pair, tmp_path / "p.skp", skp.ConvertOptions(recipe=RECIPES["small"]), StopAfter(4))
    options = skp.ConvertOptions(recipe=RECIPES["lossless"])
    skp.convert(*pair, tmp_path / "p.skp", options)
    skp.convert(*pair, tmp_path / "whole.skp", options)
    assert (tmp_path / "p.skp").read_bytes() == (tmp_path / "whole.skp").read_bytes()
