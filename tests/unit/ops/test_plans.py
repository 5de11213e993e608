"""Plans of whole checkpoints: what is asked for is met by the file that is written, and the dry run said so before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import skillpack_format as skp
from skillpack_format.planning import Budget, Energy, Goal, MaxError, Quality
from skillpack_format.recipes import STANDARD


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three matrices of different size and change, an embedding of which few rows change, a norm."""
    folder = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(4)
    base: dict[str, np.ndarray] = {}
    tuned: dict[str, np.ndarray] = {}
    for layer, (rows, cols) in enumerate([(256, 128), (100, 120), (192, 192)]):
        name = f"layers.{layer}.mlp.up_proj.weight"
        base[name] = random.standard_normal((rows, cols)).astype(np.float32)
        low = random.standard_normal((rows, 6)) @ random.standard_normal((6, cols))
        change = 1e-3 * (layer + 1) * (low + random.standard_normal((rows, cols)))
        tuned[name] = (base[name] + change).astype(np.float32)
    base["embed_tokens.weight"] = random.standard_normal((500, 64)).astype(np.float32)
    tuned["embed_tokens.weight"] = base["embed_tokens.weight"].copy()
    tuned["embed_tokens.weight"][:40] += 0.01 * random.standard_normal((40, 64)).astype(np.float32)
    base["norm.weight"] = np.ones(64, np.float32)
    tuned["norm.weight"] = (1 + 1e-2 * random.standard_normal(64)).astype(np.float32)
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


def options(goal: Goal, threads: int = 1) -> skp.ConvertOptions:
    return skp.ConvertOptions(recipe=STANDARD, goal=goal, threads=threads, overwrite=True)


@pytest.mark.parametrize("nbytes", [30_000, 80_000])
def test_a_budget_is_filled_and_never_exceeded(pair: tuple[Path, Path], tmp_path: Path, nbytes: int) -> None:
    pack = tmp_path / "p.skp"
    skp.convert(*pair, pack, options(Budget(nbytes)))
    assert 0.99 * nbytes <= pack.stat().st_size <= nbytes


@pytest.mark.parametrize(
    "goal", [Quality(0.05), Budget(20_000), MaxError(0.3), Energy(0.6)], ids=lambda goal: type(goal).__name__
)
def test_the_dry_run_plans_what_is_then_done(pair: tuple[Path, Path], tmp_path: Path, goal: Goal) -> None:
    planned = skp.preview(*pair, options(goal)).plan
    made = skp.convert(*pair, tmp_path / "p.skp", options(goal))
    assert planned.nbytes - 400 <= made.pack_bytes <= planned.nbytes
    errors = {each.name: each.error for each in made.tensors if each.error is not None}
    assert {each.name: each.option.noise for each in planned.choices if each.name in errors} == errors
    assert len(errors) >= 3


@pytest.mark.parametrize("goal", [Quality(0.05), Budget(20_000)], ids=lambda goal: type(goal).__name__)
def test_the_number_of_threads_changes_no_byte(pair: tuple[Path, Path], tmp_path: Path, goal: Goal) -> None:
    for threads in (1, 3):
        skp.convert(*pair, tmp_path / f"{threads}.skp", options(goal, threads))
    assert (tmp_path / "1.skp").read_bytes() == (tmp_path / "3.skp").read_bytes()


@pytest.mark.parametrize("bound", [0.0, 0.02, 0.2, 0.6])
def test_a_bound_on_all_is_kept_and_not_by_far(pair: tuple[Path, Path], bound: float) -> None:
    error = skp.preview(*pair, options(MaxError(bound))).plan.error
    assert 0.7 * bound <= error <= bound


@pytest.mark.parametrize("share", [1.0, 0.99, 0.5])
def test_every_tensor_keeps_its_share(pair: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    made = skp.convert(*pair, tmp_path / "p.skp", options(Energy(share)))
    assert all((each.error or 0.0) <= 1 - share for each in made.tensors)
