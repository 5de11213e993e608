"""Coding one tensor: the smallest code that the treatment allows, and an entry whose digest is a fact."""

from __future__ import annotations

import numpy as np
import pytest
from builders import f32, kind, nbytes, random_bytes

from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.coding import CHUNK_BYTES, Coded, Job, code
from skillpack_format.digest import TensorIdentity, TensorKind, sha256
from skillpack_format.recipes import Bands, Lossless, Prune, Slices, Treatment

LOSSLESS = Lossless()


def coded(
    new: TensorKind,
    tuned: bytes,
    old: TensorKind | None = None,
    base: bytes | None = None,
    treatment: Treatment = LOSSLESS,
) -> Coded:
    identity = TensorIdentity(old, sha256(base)) if old and base is not None else None
    job = Job(
        name="m.w",
        tensor_class="mlp",
        old=identity,
        base=base,
        new=TensorIdentity(new, sha256(tuned)),
        tuned=tuned,
        treatment=treatment,
        codec="zstd",
        chunk_bytes=CHUNK_BYTES,
        bench=NUMPY_BENCH,
    )
    return code(job)


def matrices(scale: float = 1e-2) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(1)
    base = rng.standard_normal((32, 32)).astype("<f4")
    return base.tobytes(), (base + scale * rng.standard_normal((32, 2)) @ rng.standard_normal((2, 32))).astype(
        "<f4"
    ).tobytes()


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "I64", "BOOL", "F4", "F8_E5M2", "C64"])
def test_an_exact_code_makes_what_was_tuned(dtype: str) -> None:
    what = kind(dtype, 8, 4)
    base, tuned = (random_bytes(nbytes(what), seed) for seed in (1, 2))
    if dtype == "BOOL":
        base, tuned = (bytes(x & 1 for x in each) for each in (base, tuned))
    found = coded(what, tuned, what, base)
    assert found.entry.result == TensorIdentity(what, sha256(tuned))
    assert found.nbytes == sum(len(chunk) for content in found.contents for chunk in content.chunks)
    assert [each.sha256 for each in found.entry.components] == [each.sha256 for each in found.contents]


@pytest.mark.parametrize(
    ("base", "tuned", "encoding"),
    [
        (random_bytes(4096), b"\x01" + random_bytes(4096)[1:], "sparse"),
        (random_bytes(4096), bytes((x + 1) & 0xFF for x in random_bytes(4096)), "ulp"),
        (random_bytes(4096), bytes(4096), "dense"),
    ],
)
def test_takes_the_smallest_exact_code(base: bytes, tuned: bytes, encoding: str) -> None:
    found = coded(kind("U8", 4096), tuned, kind("U8", 4096), base)
    assert [each.encoding for each in found.entry.components] == [encoding]


def test_a_tensor_without_elements_has_no_component() -> None:
    found = coded(kind("F32", 0, 4), b"")
    assert (found.entry.components, found.contents, found.nbytes) == ((), (), 0)


@pytest.mark.parametrize("treatment", [Slices(2.0, 0.5), Prune(0.05), Bands(((8, 1.0),), 32, rank=0.1)])
def test_a_lossy_code_says_how_much_it_loses(treatment: Treatment) -> None:
    base, tuned = matrices()
    found = coded(kind("F32", 32, 32), tuned, kind("F32", 32, 32), base, treatment)
    exact = coded(kind("F32", 32, 32), tuned, kind("F32", 32, 32), base)
    assert found.nbytes < exact.nbytes
    assert found.error is not None
    assert 0 < found.error < 1
    assert found.entry.stats["error"] == np.float32(found.error).tobytes()
    assert found.entry.result != exact.entry.result


def test_an_exact_code_loses_nothing() -> None:
    base, tuned = matrices()
    found = coded(kind("F32", 32, 32), tuned, kind("F32", 32, 32), base)
    assert found.error == 0
    assert found.entry.stats["error"] == f32(0.0)
    assert found.entry.stats["projection"] == f32(1.0)
    assert found.entry.stats["changed"] == np.count_nonzero(np.frombuffer(base, "<u4") != np.frombuffer(tuned, "<u4"))


def strong_change(dtype: str) -> tuple[bytes, bytes]:
    """A matrix and itself after a change of low rank and some noise, both many steps of what they change."""
    rng = np.random.default_rng(4)
    base = rng.standard_normal((128, 96))
    tuned = base + rng.standard_normal((128, 2)) @ rng.standard_normal((2, 96)) / 2
    tuned += rng.standard_normal((128, 96)) / 64
    if dtype == "F32":
        return base.astype("<f4").tobytes(), tuned.astype("<f4").tobytes()
    base16, tuned16 = ((each.astype("<f4").view("<u4") >> 16).astype("<u2") for each in (base, tuned))
    return base16.tobytes(), tuned16.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_strong_change_of_low_rank_is_taken_off_before_the_exact_difference(dtype: str) -> None:
    base, tuned = strong_change(dtype)
    what = kind(dtype, 128, 96)
    found = coded(what, tuned, what, base)
    assert [each.encoding for each in found.entry.components] == ["lowrank", "ulp"]
    assert found.entry.result == TensorIdentity(what, sha256(tuned))
    alone = coded(kind(dtype, 128 * 96), tuned, kind(dtype, 128 * 96), base)  # a vector has no rank
    assert found.nbytes < 0.9 * alone.nbytes


def test_nothing_of_low_rank_is_taken_off_where_the_change_has_none() -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal((64, 64)).astype("<f4")
    tuned = (base + rng.standard_normal((64, 64))).astype("<f4")
    what = kind("F32", 64, 64)
    assert len(coded(what, tuned.tobytes(), what, base.tobytes()).entry.components) == 1


def test_a_value_that_is_no_number_is_coded_exactly_all_the_same() -> None:
    base, tuned = strong_change("F32")
    values = np.frombuffer(tuned, "<f4").copy()
    values[7] = np.nan
    what = kind("F32", 128, 96)
    found = coded(what, values.tobytes(), what, base)
    assert [each.encoding for each in found.entry.components] == ["ulp"]
    assert found.entry.result == TensorIdentity(what, sha256(values.tobytes()))


def test_rows_that_a_resize_adds_keep_the_exact_code_in_one_component() -> None:
    base, tuned = strong_change("F32")
    found = coded(kind("F32", 128, 96), tuned, kind("F32", 120, 96), base[: 120 * 96 * 4])
    assert len(found.entry.components) == 1
    assert found.entry.result == TensorIdentity(kind("F32", 128, 96), sha256(tuned))


def test_a_lossy_code_that_keeps_nothing_gives_the_base() -> None:
    base = random_bytes(32 * 32 * 2).replace(b"\x7f", b"\x00").replace(b"\xff", b"\x00")
    old = np.frombuffer(base, "<u2")
    new = old.copy()
    new[::2] ^= 1  # noise of one unit in the last place, over every magnitude
    what = kind("BF16", 32, 32)
    found = coded(what, new.tobytes(), what, base, Slices(1e9, 0.999))
    assert found.entry.result == found.entry.base
    assert (found.entry.components, found.contents) == ((), ())


def test_figures_are_left_out_where_they_are_no_numbers() -> None:
    what = kind("F32", 1, 2)
    found = coded(what, f32(1.0, float("nan")), what, f32(1.0, 2.0))
    assert found.entry.stats == {"changed": 1}
    assert found.error is None


def test_figures_are_left_out_for_integers() -> None:
    found = coded(kind("I8", 2), b"\x01\x02", kind("I8", 2), b"\x01\x03")
    assert found.entry.stats == {"changed": 1}


def test_a_change_of_dtype_alone_needs_no_component_bytes() -> None:
    base = f32(1.0, 2.0, 3.0, 4.0)
    tuned = np.frombuffer(base, "<u4") >> 16
    found = coded(kind("BF16", 2, 2), tuned.astype("<u2").tobytes(), kind("F32", 2, 2), base)
    assert found.nbytes == 0
    assert found.entry.stats["changed"] == 0


def test_the_entry_says_where_the_tensor_belongs() -> None:
    entry = coded(kind("U8", 1), b"x").entry
    assert (entry.name, entry.module, entry.tensor_class, entry.base) == ("m.w", "m", "mlp", None)


def test_chunks_are_of_the_size_the_writer_announces() -> None:
    tuned = random_bytes(CHUNK_BYTES + 1)
    found = coded(kind("U8", len(tuned)), tuned)
    assert [len(each) for each in found.contents[0].chunks] == [CHUNK_BYTES, 1]
