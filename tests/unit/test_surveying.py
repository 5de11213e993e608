"""What a survey says of a tensor is what coding it gives."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from builders import kind

from skillpack_format import sensitivity
from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.coding import CHUNK_BYTES, Job, code
from skillpack_format.digest import TensorIdentity, sha256
from skillpack_format.planning import Survey
from skillpack_format.recipes import Lossless, Planned, Priced, Prune, Slices, Unchanged
from skillpack_format.surveying import between, choose, figures, measured, survey


def job_of(
    rows: int = 96, cols: int = 64, *, strength: float = 1e-3, dtype: str = "F32", name: str = "mlp.weight"
) -> Job:
    rng = np.random.default_rng(3)
    base = rng.standard_normal((rows, cols)).astype(np.float32)
    change = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, cols)) + 0.3 * rng.standard_normal((rows, cols))
    tuned = (base + strength * change).astype(np.float32)
    if dtype == "BF16":
        base, tuned = (each.view(np.uint32) >> 16 for each in (base, tuned))
        base, tuned = base.astype(np.uint16), tuned.astype(np.uint16)
    what = kind(dtype, rows, cols)
    return Job(
        name=name,
        tensor_class="embedding" if "embed" in name else "mlp",
        old=TensorIdentity(what, sha256(base.tobytes())),
        base=base.tobytes(),
        new=TensorIdentity(what, sha256(tuned.tobytes())),
        tuned=tuned.tobytes(),
        treatment=Planned(),
        codec="zstd",
        chunk_bytes=CHUNK_BYTES,
        bench=NUMPY_BENCH,
    )


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_coding_as_an_option_says_takes_no_more_than_it_says(dtype: str) -> None:
    job = job_of(dtype=dtype)
    for option in survey(job, float("inf")).options:
        coded = code(dataclasses.replace(job, treatment=option.coding))
        assert coded.nbytes <= sum(option.segments), option.label
        if option.label.startswith("lowrank") and coded.entry.components[0].encoding == "lowrank":
            assert coded.nbytes >= 0.95 * sum(option.segments)


PRICES = [Priced(1e-3, 0.03, byte) for byte in (1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1.0)]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("size", [(96, 64), (300, 200)])
@pytest.mark.parametrize("rates", PRICES)
def test_the_choice_is_about_as_cheap_as_any_option(dtype: str, size: tuple[int, int], rates: Priced) -> None:
    job = job_of(*size, dtype=dtype)
    found = choose(dataclasses.replace(job, treatment=rates))
    assert found.option.is_measured
    assert found.option in found.options
    costs = {each.coding: each.cost(rates) for each in survey(job, float("inf")).options}
    assert costs[found.option.coding] <= 1.02 * min(costs.values())


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("rates", PRICES)
def test_coding_the_choice_again_gives_the_same_to_the_byte(dtype: str, rates: Priced) -> None:
    job = job_of(dtype=dtype)
    found = choose(dataclasses.replace(job, treatment=rates))
    again = code(dataclasses.replace(job, treatment=found.option.coding))
    assert again == found.coded
    assert measured(found.option.coding, again, found.option.lost) == found.option
    assert sum(found.option.segments) == again.nbytes


def test_a_dear_byte_leaves_the_base_and_a_free_one_buys_the_exact_code() -> None:
    dear, free = (choose(dataclasses.replace(job_of(), treatment=Priced(1e-3, 0.03, byte))) for byte in (1.0, 0.0))
    assert dear.option.coding == Unchanged()
    assert dear.coded.entry.result == dear.coded.entry.base
    assert free.option.coding == Lossless()
    assert free.coded.error == 0


def test_a_large_tensor_is_told_from_a_sample_and_coded_as_a_whole() -> None:
    job = job_of(2100, 512, dtype="BF16")
    exact = survey(job, 0.0).options[0]
    assert exact.coding == Lossless()
    assert 0.94 * exact.nbytes < code(dataclasses.replace(job, treatment=Lossless())).nbytes <= exact.nbytes
    found = choose(dataclasses.replace(job, treatment=Priced(1e-3, 0.03, 0.0)))
    assert found.coded.error == 0
    assert sum(found.option.segments) == found.coded.nbytes


def test_estimated_noise_is_near_the_error_of_the_delta() -> None:
    job = job_of(strength=1.0)  # far above the rounding of float32
    for option in survey(job, float("inf")).options:
        if isinstance(option.coding, Slices):
            made = code(dataclasses.replace(job, treatment=option.coding)).error
            assert option.noise == pytest.approx(made, rel=0.25, abs=1e-3), option.label


def test_the_exact_option_comes_first_and_the_base_second() -> None:
    found = survey(job_of(), float("inf"))
    assert figures(job_of()) == dataclasses.replace(found, options=())
    assert [type(each.coding) for each in found.options[:2]] == [Lossless, Unchanged]
    assert found.options[0].noise == 0 == found.options[0].lost
    assert (found.options[1].nbytes, found.options[1].noise, found.options[1].lost) == (0, 1.0, 1.0)


def test_finer_steps_cost_more_and_miss_less() -> None:
    rungs = [each for each in survey(job_of(strength=1.0), float("inf")).options if isinstance(each.coding, Slices)]
    assert len(rungs) >= 4
    assert [each.nbytes for each in rungs] == sorted(each.nbytes for each in rungs)
    assert rungs[0].noise > rungs[-1].noise


def test_between_two_rungs_lie_others() -> None:
    job = job_of(strength=1.0)
    rungs = [each for each in survey(job, float("inf")).options if isinstance(each.coding, Slices)]
    found = between(job, rungs[1], rungs[2])
    assert found
    assert all(rungs[1].nbytes <= each.nbytes <= rungs[2].nbytes for each in found)
    assert between(job, survey(job, float("inf")).options[0], rungs[0]) == []


def test_another_treatment_is_the_one_option() -> None:
    for treatment in (Lossless(), Prune(0.1)):
        found = survey(dataclasses.replace(job_of(), treatment=treatment), float("inf"))
        assert [each.coding for each in found.options] == [treatment]


def test_nothing_lossy_is_looked_for_above_what_is_useful() -> None:
    assert [type(each.coding) for each in survey(job_of(), 0.0).options] == [Lossless, Unchanged]


def weight(found: Survey) -> float:
    return found.weight


def test_values_matter_more_than_queries_and_a_measured_weight_takes_the_place_of_the_table() -> None:
    value, query = (survey(job_of(name=f"layers.0.self_attn.{x}_proj.weight"), 0.0) for x in "vq")
    assert weight(value) > weight(survey(job_of(), 0.0)) > weight(query)
    assert weight(survey(job_of(), 0.0, weight=7.0)) == 7.0


def test_a_row_of_an_embedding_matters_less_the_more_rows_there_are() -> None:
    few, many = (survey(job_of(rows, name="embed_tokens.weight"), 0.0) for rows in (8, 512))
    assert weight(few) > 10 * weight(many)


def test_a_head_matters_more_and_so_does_a_tied_embedding() -> None:
    table = job_of(512, name="embed_tokens.weight")
    assert weight(figures(replace(table, is_head=True))) == weight(figures(table)) + sensitivity.HEAD
    assert weight(figures(replace(table, tensor_class="head"))) == sensitivity.HEAD > weight(figures(job_of()))
