"""What a survey says of a tensor is what coding it gives."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from builders import kind, refused

from skillpack_format import sensitivity
from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.coding import CHUNK_BYTES, Job, code, exact_candidates, lossy_candidates, made_of, pair_of
from skillpack_format.digest import TensorIdentity, TensorKind, sha256
from skillpack_format.dtypes import DTYPES, float32_to_bits
from skillpack_format.encodings._base import Encoded
from skillpack_format.planning import Survey
from skillpack_format.recipes import Coding, Lossless, Planned, Priced, Prune, Slices, Unchanged
from skillpack_format.surveying import VECTORS, between, choose, figures, measured, survey


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
    job = job_of(2100, 512, dtype="BF16", strength=1e-4)  # too little for low rank below the difference
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


def vector_of(
    items: int = 700,
    *,
    strength: float = 1e-3,
    dtype: str = "F32",
    name: str = "layers.0.norm.weight",
    tensor_class: str = "norm",
    grown: int = 0,
) -> Job:
    """A norm; its last ``grown`` entries are not in the base."""
    rng = np.random.default_rng(3)
    base = (0.55 + 0.4 * rng.random(items)).astype(np.float32)  # of one exponent, so that steps are of one size
    tuned = (base + strength * rng.standard_normal(items)).astype(np.float32)
    if dtype != "F32":
        base, tuned = (float32_to_bits(each, DTYPES[dtype]) for each in (base, tuned))
    return job_between(kind(dtype, items), base[: items - grown].tobytes(), tuned.tobytes(), name, tensor_class)


def job_between(what: TensorKind, base: bytes, tuned: bytes, name: str, tensor_class: str) -> Job:
    old = TensorKind(what.dtype, (len(base) * what.shape[0] // len(tuned), *what.shape[1:]))
    return replace(
        job_of(),
        name=name,
        tensor_class=tensor_class,
        old=TensorIdentity(old, sha256(base)),
        base=base,
        new=TensorIdentity(what, sha256(tuned)),
        tuned=tuned,
    )


def test_a_vector_is_exact_or_as_in_the_base_or_in_codes_of_a_few_bits() -> None:
    found = survey(vector_of(), 0.0)  # whatever a matrix of its size may take
    exact, unchanged, *codes = found.options
    assert (exact.coding, unchanged.coding) == (Lossless(), Unchanged())
    assert [each.coding for each in codes] == list(VECTORS)
    assert [each.nbytes for each in codes] == sorted(each.nbytes for each in codes)
    assert [each.noise for each in codes] == sorted((each.noise for each in codes), reverse=True)
    assert codes[-1].nbytes < exact.nbytes


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("strength", [1e-4, 1e-2])
def test_the_error_of_a_vector_is_told_as_it_turns_out(dtype: str, strength: float) -> None:
    job = vector_of(dtype=dtype, strength=strength)
    for option in survey(job, 0.0).options:
        done = code(replace(job, treatment=option.coding))
        assert done.nbytes <= sum(option.segments), option.label
        if [each.encoding for each in done.entry.components] == ["blockq"]:
            assert option.noise == pytest.approx(done.error, rel=1e-6), option.label


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("byte", [1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1.0])
def test_a_vector_gets_the_cheapest_of_its_options(dtype: str, byte: float) -> None:
    job, rates = vector_of(dtype=dtype), Priced(1e-3, 0.03, byte)
    found = choose(replace(job, treatment=rates)).option
    costs = {each.coding: each.cost(rates) for each in survey(job, 0.0).options}
    assert costs[found.coding] == pytest.approx(min(costs.values()), rel=0.05)
    again = code(replace(job, treatment=found.coding))
    assert measured(found.coding, again, found.lost) == found


def test_a_code_that_rounding_makes_exact_is_one() -> None:
    """Steps of BF16 are so wide that a code of the change falls on the right one: fewer bytes than the difference."""
    job = vector_of(dtype="BF16", strength=1e-3)
    exact, _, *codes = survey(job, 0.0).options
    best = min((each for each in codes if not each.noise), key=lambda each: each.nbytes)
    assert best.nbytes < exact.nbytes
    found = choose(replace(job, treatment=Priced(1.0, 1.0, 1e-12)))
    assert found.coded.error == 0
    assert found.coded.entry.result == job.new
    assert [each.encoding for each in found.coded.entry.components] == ["blockq"]


def test_a_change_below_half_a_step_of_the_dtype_is_worth_no_code() -> None:
    job = vector_of(dtype="BF16", strength=1e-7)
    base = np.frombuffer(job.base or b"", np.uint16).copy()
    base[0] ^= 1  # one entry moves by a step
    job = job_between(job.new.kind, base.tobytes(), job.tuned, job.name, "norm")
    for byte, coding in ((1e-9, Lossless()), (1.0, Unchanged())):
        assert choose(replace(job, treatment=Priced(1e-3, 0.03, byte))).option.coding == coding


@pytest.mark.parametrize("tensor_class", ["mlp", "router", "other"])
def test_a_vector_that_is_no_norm_and_no_bias_is_exact(tensor_class: str) -> None:
    found = survey(vector_of(tensor_class=tensor_class), 0.0)
    assert (found.energy, [each.coding for each in found.options]) == (0.0, [Lossless()])


@pytest.mark.parametrize("tensor_class", ["norm", "bias"])
def test_a_matrix_of_norms_or_biases_is_exact(tensor_class: str) -> None:
    found = survey(replace(job_of(), tensor_class=tensor_class), float("inf"))
    assert (found.energy, [each.coding for each in found.options]) == (0.0, [Lossless()])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_a_norm_that_is_not_finite(value: float) -> None:
    base = np.ones(8, np.float32)
    tuned = base.copy()
    tuned[3] = value
    job = job_between(kind("F32", 8), base.tobytes(), tuned.tobytes(), "a.norm.weight", "norm")
    found = refused("convert.nonfinite", figures, job)
    assert found.where == "tensor 'a.norm.weight'"
    assert code(replace(job, treatment=Lossless())).error is None  # exact, and no number to tell it by


def test_entries_that_a_vector_did_not_have_are_exact() -> None:
    job = vector_of(grown=50)
    for option in survey(job, 0.0).options:
        assert option.coding != Unchanged()
        done = code(replace(job, treatment=option.coding))
        pair = pair_of(job)
        made = made_of(pair, candidate_of(job, option.coding), NUMPY_BENCH)
        assert np.array_equal(made[-50:], pair.wanted[-50:]), option.label
        assert done.entry.result.kind == job.new.kind


def candidate_of(job: Job, coding: Coding) -> tuple[Encoded, ...]:
    pair = pair_of(job)
    found = [*lossy_candidates(pair, coding, NUMPY_BENCH), *exact_candidates(pair)]
    return found[0].encoded


def test_a_code_that_leaves_the_numbers_of_the_dtype_is_no_option() -> None:
    base = np.full(64, 65504.0, np.float16)  # the largest; codes of what does not change overshoot
    tuned = base.copy()
    tuned[:32] = np.linspace(0, 60000, 32)
    base[:32] = 0
    job = job_between(kind("F16", 64), base.tobytes(), tuned.tobytes(), "norm.weight", "norm")
    found = survey(job, 0.0).options
    assert found[0].coding == Lossless()
    assert VECTORS[2] not in [each.coding for each in found]


def test_norms_matter_more_than_biases_before_an_activation_and_those_more_than_queries() -> None:
    names = {"layers.0.input_layernorm.weight": "norm", "mlp.up_proj.bias": "bias", "self_attn.q_proj.bias": "bias"}
    found = [figures(vector_of(name=name, tensor_class=each)).weight for name, each in names.items()]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3
    assert figures(vector_of(), 7.0).weight == 7.0
