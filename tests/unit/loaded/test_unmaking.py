"""From a result back to its base with the pack's help: every bit, and little kept."""

from __future__ import annotations

import numpy as np
import pytest
from builders import EXAMPLES, Case, bf16, change_of, f32, kind, made_directly, same_kind, ulp_of

torch = pytest.importorskip("torch", reason="torch is an extra")

from toy_models import low_rank  # noqa: E402

from skillpack_format.digest import TensorKind  # noqa: E402
from skillpack_format.encodings._base import Encoded  # noqa: E402
from skillpack_format.loaded.slots import DTYPE_NAMES, PATTERNS  # noqa: E402
from skillpack_format.loaded.unmaking import base_with, subtracted, undo_with  # noqa: E402

TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
CASES = [(name, case) for name, build in EXAMPLES.items() for case in build() if case.base == case.result]
ALL = pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{name}-{case.label}" for name, case in CASES])


def patterns(raw: bytes, what: TensorKind) -> torch.Tensor:
    dtype = TORCH_DTYPES[what.dtype]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(PATTERNS[dtype.itemsize])


def kept(case: Case) -> int:
    """The bytes kept to undo a case, undone to the last bit."""
    base, result = patterns(case.raw or b"", case.result), patterns(made_directly(case), case.result)
    change, dtype = change_of(case), TORCH_DTYPES[case.result.dtype]
    undo = undo_with(change, base, result, case.result, dtype)
    assert torch.equal(base_with(change, undo, result, case.result, dtype), base)
    return undo.nbytes


@ALL
def test_every_example_is_undone(case: Case) -> None:
    assert kept(case) <= len(case.raw or b"")


def floats(what: TensorKind, seed: int) -> bytes:
    values = np.random.default_rng(seed).standard_normal(what.shape).astype(np.float32) * 0.02
    return values.tobytes() if what.dtype == "F32" else bf16(*(values.view("<u4") & 0xFFFF0000).view("<f4").ravel())


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_low_rank_change_keeps_little(dtype: str) -> None:
    what = kind(dtype, 64, 96)
    case = same_kind("t", what, floats(what, 1), low_rank(what, 1, scale=0.00002))
    assert kept(case) < 0.2 * len(case.raw or b"")


@pytest.mark.parametrize(("sort", "share"), [("none", 0.0), ("magnitude", 0.2)])
@pytest.mark.parametrize(("dtype", "change"), [("F32", 1e-5), ("BF16", 0.01)])
def test_steps_keep_nothing_or_where_keys_changed(dtype: str, change: float, sort: str, share: float) -> None:
    what = kind(dtype, 600, 500)  # more than one span
    base, noise = floats(what, 1), floats(what, 2)
    values = patterns(base, what).view(TORCH_DTYPES[dtype]) + change * patterns(noise, what).view(TORCH_DTYPES[dtype])
    wanted = values.view(torch.uint8).numpy().tobytes()
    assert kept(same_kind("t", what, base, ulp_of(dtype, base, wanted, sort))) <= share * len(base)


def test_one_exact_sum_is_subtracted_exactly() -> None:
    added = Encoded("dense", {"dtype": "F32", "mode": "add"}, {"values": np.frombuffer(f32(0.5, 0.25), "<u4")})
    case = same_kind("t", kind("BF16", 1, 2), bf16(1.0, -2.0), added)
    result = patterns(made_directly(case), case.result).view(torch.bfloat16)
    assert subtracted(result, case.result, change_of(case).additive).tolist() == [1.0, -2.0]
