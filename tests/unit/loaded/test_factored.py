"""Deltas in factors: what the terms of an encoding add up to, and their products with activations."""

from __future__ import annotations

import numpy as np
import pytest
from builders import EXAMPLES, Case, change_of, kind, same_kind

torch = pytest.importorskip("torch", reason="torch is an extra")

from toy_models import bands, low_rank  # noqa: E402

from skillpack_format.arithmetic import NUMPY_BENCH, Grid  # noqa: E402
from skillpack_format.encodings._base import Factored, Term  # noqa: E402
from skillpack_format.loaded.factored import FactoredDelta, factored  # noqa: E402
from skillpack_format.making import delta_of  # noqa: E402

WHAT = kind("F32", 12, 20)
CASES = [case for name in ("lowrank", "factors") for case in EXAMPLES[name]()]
DTYPES = [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]


def terms_of(case: Case) -> tuple[Term, ...]:
    (component,) = change_of(case).additive
    assert isinstance(component, Factored)
    return component.terms(NUMPY_BENCH)


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_the_terms_of_a_component_are_its_delta(case: Case) -> None:
    grid = Grid.of(case.result.shape)
    total = sum(np.einsum("ek,eki,ekj->eij", each.scale, each.u, each.v) for each in terms_of(case))
    delta = delta_of(grid, change_of(case).additive, NUMPY_BENCH).reshape(grid.stack, grid.rows, grid.cols)
    assert np.allclose(total, delta, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"lowrank", "factors"}))
def test_no_other_encoding_has_terms(name: str) -> None:
    assert not any(isinstance(each, Factored) for case in EXAMPLES[name]() for each in change_of(case).additive)


def both() -> tuple[FactoredDelta, torch.Tensor]:
    """Slices and bands together, and the delta multiplied out."""
    cases = [same_kind("t", WHAT, bytes(4 * 240), encoded) for encoded in (low_rank(WHAT, 1, 3), bands(WHAT, 2))]
    deltas = [delta_of(Grid.of(WHAT.shape), change_of(case).additive, NUMPY_BENCH) for case in cases]
    components = [each for case in cases for each in change_of(case).additive if isinstance(each, Factored)]
    held = factored(components, torch.device("cpu"))
    return held, torch.from_numpy(sum(deltas).reshape(WHAT.shape))


@pytest.mark.parametrize(("dtype", "share"), DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 5, 20)])
def test_what_a_linear_layer_adds(dtype: torch.dtype, share: float, shape: tuple[int, ...]) -> None:
    held, delta = both()
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = held.of_input(values), values.double() @ delta.double().T
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], 12)
    assert (found.double() - expected).norm() <= share * expected.norm()


@pytest.mark.parametrize(("dtype", "share"), DTYPES, ids=str)
def test_what_an_embedding_adds(dtype: torch.dtype, share: float) -> None:
    held, delta = both()
    ids = torch.tensor([[0, 11], [5, 5]])
    found = held.of_rows(ids, dtype)
    assert found.dtype == dtype
    assert (found.double() - delta[ids].double()).norm() <= share * delta[ids].norm()


def test_large_activations_in_half_precision_do_not_overflow_on_the_way() -> None:
    held, _ = both()
    assert torch.isfinite(held.of_input(torch.full((1, 20), 3000.0, dtype=torch.float16))).all()


def test_codes_stay_a_byte_each() -> None:
    (component,) = change_of(same_kind("t", WHAT, bytes(4 * 240), low_rank(WHAT, 1))).additive
    assert isinstance(component, Factored)
    held = factored([component], torch.device("cpu"))
    assert held.nbytes == 4 * (12 + 20) + 4 * 4
