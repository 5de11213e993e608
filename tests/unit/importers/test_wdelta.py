"""``.wdelta``: the sums that deltatensors makes, bit for bit, and no claim of a file believed unchecked."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import fault_of, refused
from deltas import bits_of, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import skillpack_format as skp
from skillpack_format.dtypes import bits_to_float32, dtype_named

Fields = dict[str, np.ndarray]


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def array_record(tensor: str, field: str, array: np.ndarray) -> bytes:
    words = b"".join(struct.pack("<I", len(text)) + text.encode() for text in (tensor, field, str(array.dtype)))
    shape = b"".join(struct.pack("<Q", dim) for dim in array.shape)
    return words + struct.pack("<I", array.ndim) + shape + struct.pack("<Q", array.nbytes) + array.tobytes()


def wdelta(parent: str, held: Mapping[str, tuple[str, list[int], Fields]], **changed: Any) -> bytes:
    """A file as deltatensors 0.2 lays it out; ``changed`` replaces keys of the header."""
    listed = {
        name: {"strategy": strategy, "shape": shape, "dtype": "float32", **{field: {"_ref": field} for field in fields}}
        for name, (strategy, shape, fields) in held.items()
    }
    plain = {"parent_hash": parent, "strategy": "mixed", "tensors": listed, **changed}
    header = json.dumps(plain, separators=(",", ":")).encode()
    arrays = b"".join(array_record(name, f, a) for name, (_, _, fields) in held.items() for f, a in fields.items())
    return sealed(b"wdelta\0" + struct.pack("<II", 1, len(header)) + header + arrays)


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def sparse(delta: np.ndarray, count: int) -> Fields:
    flat = delta.reshape(-1)
    indices = np.sort(np.argsort(-np.abs(flat), kind="stable")[:count]).astype(np.int64)
    return {"indices": indices, "values": flat[indices]}


def quantized(delta: np.ndarray) -> Fields:
    matrix = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta.reshape(1, -1)
    return {
        "scales": np.abs(matrix).mean(axis=1).astype(np.float16),
        "packed_signs": np.packbits((matrix >= 0).reshape(-1)),
    }


def int4(delta: np.ndarray, outliers: int) -> Fields:
    flat = delta.reshape(-1)
    index = np.sort(np.argsort(-np.abs(flat), kind="stable")[:outliers]).astype(np.int64)
    rest = np.delete(flat, index)
    scale, zero = np.float16((rest.max() - rest.min()) / 15), np.float16(rest.min())
    codes = np.clip(np.round((rest - rest.min()) / (rest.max() - rest.min()) * 15), 0, 15).astype(np.uint8)
    codes = np.append(codes, np.zeros(codes.size % 2, np.uint8))
    return {
        "outlier_idx": index,
        "outlier_vals": flat[index].astype(np.float16),
        "scale": np.array([scale]),
        "zero_point": np.array([zero]),
        "packed": codes[0::2] << 4 | codes[1::2],
    }


def decoded(strategy: str, shape: tuple[int, ...], fields: Fields) -> np.ndarray:
    """The delta by the definition of each strategy, every step in float32."""
    flat = np.zeros(int(np.prod(shape)), np.float32)
    if strategy == "sparse":
        flat[fields["indices"]] = fields["values"]
    elif strategy == "quantized":
        rows = fields["scales"].size
        signs = np.unpackbits(fields["packed_signs"])[: flat.size].reshape(rows, -1).astype(np.float32)
        signs[signs == 0] = -1
        flat = (signs * fields["scales"].astype(np.float32)[:, None]).reshape(-1)
    else:
        nibbles = np.stack([fields["packed"] >> 4, fields["packed"] & 15], axis=1).reshape(-1)
        is_coded = np.ones(flat.size, bool)
        is_coded[fields["outlier_idx"]] = False
        scale, zero = float(fields["scale"][0]), float(fields["zero_point"][0])
        codes = nibbles[: int(is_coded.sum())].astype(np.float32)
        flat[is_coded] = codes / np.float32(15) * np.float32(scale * 15) + np.float32(zero)
        flat[fields["outlier_idx"]] = fields["outlier_vals"].astype(np.float32)
    return flat.reshape(shape)


STRATEGIES: dict[str, Callable[[np.ndarray], Fields]] = {
    "sparse": lambda delta: sparse(delta, max(1, delta.size // 10)),
    "quantized": quantized,
    "int4": lambda delta: int4(delta, max(1, delta.size // 50)),
}
SHAPES: dict[str, tuple[int, ...]] = {"a.weight": (12, 20), "b.bias": (33,), "c.weight": (3, 4, 5)}


@pytest.fixture(params=["F32", "F16", "BF16"])
def base(request: pytest.FixtureRequest, tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Any, str]:
    tensors = {name: draw(rng, *shape) for name, shape in SHAPES.items()}
    path = write(
        tmp_path / "base.safetensors", {**tensors, "z.ids": ("I64", np.arange(4, dtype=np.uint64))}, request.param
    )
    return path, tensors, request.param


def parent_of(tensors: Mapping[str, np.ndarray], dtype: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + bits_of(tensors[name], dtype).tobytes())
    digest.update(b"z.ids" + np.arange(4, dtype=np.uint64).tobytes())
    return digest.hexdigest()


def save(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_the_result_is_the_sum_of_deltatensors(tmp_path, base, imported, rng, strategy) -> None:
    path, tensors, dtype = base
    encoded = {name: STRATEGIES[strategy](0.01 * draw(rng, *shape)) for name, shape in SHAPES.items()}
    listed = {name: (strategy, list(SHAPES[name]), fields) for name, fields in encoded.items()}
    found = imported(save(tmp_path / "x.wdelta", wdelta(parent_of(tensors, dtype), listed)), path)
    assert found.report.kind == "wdelta"
    for name, shape in SHAPES.items():
        stored = bits_to_float32(bits_of(tensors[name], dtype), dtype_named(dtype))
        expected = bits_of(stored + decoded(strategy, shape, encoded[name]), dtype)
        assert np.array_equal(found.result[name][1], expected), name


def test_codes_are_carried_as_codes(tmp_path, imported, rng) -> None:
    """A larger matrix: 4-bit codes, the constant, and the outliers, in not much more than the file."""
    weight = draw(rng, 200, 300)
    path = write(tmp_path / "base.safetensors", {"w": weight})
    fields = int4(0.01 * draw(rng, 200, 300), 600)
    parent = hashlib.sha256(b"w" + weight.tobytes()).hexdigest()
    delta = save(tmp_path / "x.wdelta", wdelta(parent, {"w": ("int4", [200, 300], fields)}))
    found = imported(delta, path)
    assert found.encodings("w") == ("blockq", "factors", "sparse")
    assert found.report.pack_bytes < 1.2 * delta.stat().st_size


@pytest.mark.parametrize("base", ["BF16"], indirect=True)
def test_a_base_given_as_float32_arrays_is_known_too(tmp_path, base, imported) -> None:
    path, tensors, dtype = base
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + bits_to_float32(bits_of(tensors[name], dtype), dtype_named(dtype)).tobytes())
    digest.update(b"z.ids" + np.arange(4, dtype=np.uint64).tobytes())
    listed = {"b.bias": ("sparse", [33], sparse(np.ones(33, np.float32), 2))}
    assert imported(save(tmp_path / "x.wdelta", wdelta(digest.hexdigest(), listed)), path).report.tensors


@pytest.mark.parametrize("base", ["F32"], indirect=True)
def test_another_base_is_refused(tmp_path, base) -> None:
    path, tensors, dtype = base
    tensors["a.weight"][0, 0] += 1
    listed = {"b.bias": ("sparse", [33], sparse(np.ones(33, np.float32), 2))}
    delta = save(tmp_path / "x.wdelta", wdelta(parent_of(tensors, dtype), listed))
    found = refused("base.content", skp.import_delta, delta, path, tmp_path / "never.skp")
    assert found.exit_status == 3


@pytest.mark.parametrize("base", ["F32"], indirect=True)
def test_integers_that_do_not_change_are_left_alone_and_others_refused(tmp_path, base, imported) -> None:
    path, tensors, dtype = base
    parent = parent_of(tensors, dtype)
    nothing = {"z.ids": ("sparse", [4], {"indices": np.array([1]), "values": np.zeros(1, np.float32)})}
    assert imported(save(tmp_path / "x.wdelta", wdelta(parent, nothing)), path).report.tensors[0].change == "unchanged"
    something = {"z.ids": ("sparse", [4], {"indices": np.array([1]), "values": np.ones(1, np.float32)})}
    delta = save(tmp_path / "y.wdelta", wdelta(parent, something))
    refused("unsupported.operation", skp.import_delta, delta, path, tmp_path / "never.skp")


F32 = np.ones(1, np.float32)
GOOD_SPARSE = {"indices": np.array([3], np.int64), "values": F32}
GOOD_INT4 = int4(np.linspace(-1, 1, 33, dtype=np.float32), 2)
GOOD_SIGNS = quantized(np.linspace(-1, 1, 33, dtype=np.float32))
INF = np.array([np.inf], np.float16)


@pytest.mark.parametrize("base", ["F32"], indirect=True)
@pytest.mark.parametrize(
    ("code", "strategy", "shape", "fields"),
    [
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "indices": np.array([33], np.int64)}),
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "indices": np.array([-1], np.int64)}),
        ("convert.delta", "sparse", [33], {"indices": np.array([3, 3], np.int64), "values": np.ones(2, np.float32)}),
        ("convert.delta", "sparse", [33], {"indices": np.array([3, 1], np.int64), "values": np.ones(2, np.float32)}),
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "values": np.ones(2, np.float32)}),
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "values": np.ones(1, np.float64)}),
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "values": np.ones((1, 1), np.float32)}),
        ("convert.delta", "sparse", [33], {"indices": np.array([3], np.int64)}),
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "scales": np.ones(1, np.float16)}),
        ("convert.delta", "sparse", [33], {**GOOD_SPARSE, "surprise": F32}),
        ("convert.nonfinite", "sparse", [33], {**GOOD_SPARSE, "values": F32 * np.nan}),
        ("convert.delta", "sparse", [34], GOOD_SPARSE),
        ("convert.delta", "sparse", [1 << 50], GOOD_SPARSE),
        ("convert.delta", "sparse", [1 << 40], GOOD_SPARSE),
        ("convert.delta", "sparse", [-33], GOOD_SPARSE),
        ("convert.delta", "sparse", [33.0], GOOD_SPARSE),
        ("limit.exceeded", "sparse", [1] * 9, GOOD_SPARSE),
        ("convert.delta", "quantized", [33], {**GOOD_SIGNS, "scales": np.ones(2, np.float16)}),
        ("convert.delta", "quantized", [33], {**GOOD_SIGNS, "packed_signs": np.ones(4, np.uint8)}),
        ("convert.nonfinite", "quantized", [33], {**GOOD_SIGNS, "scales": INF}),
        ("convert.delta", "int4", [33], {**GOOD_INT4, "packed": np.ones(15, np.uint8)}),
        ("convert.delta", "int4", [33], {**GOOD_INT4, "scale": np.ones(2, np.float16)}),
        ("convert.nonfinite", "int4", [33], {**GOOD_INT4, "zero_point": INF}),
        ("convert.delta", "int4", [33], {**GOOD_INT4, "outlier_idx": np.array([1, 99], np.int64)}),
        ("convert.delta", "int4", [33], {**GOOD_INT4, "outlier_vals": np.ones(3, np.float16)}),
        ("convert.delta", "int5", [33], GOOD_INT4),
        ("convert.delta", "int4", [33], {}),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, base, code, strategy, shape, fields) -> None:
    path, tensors, dtype = base
    delta = save(tmp_path / "x.wdelta", wdelta(parent_of(tensors, dtype), {"b.bias": (strategy, shape, fields)}))
    refused(code, skp.import_delta, delta, path, tmp_path / "never.skp")


GOOD = wdelta("0" * 64, {"b.bias": ("sparse", [33], GOOD_SPARSE)})


def with_header(**changed: Any) -> bytes:
    return wdelta("0" * 64, {"b.bias": ("sparse", [33], GOOD_SPARSE)}, **changed)


@pytest.mark.parametrize("base", ["F32"], indirect=True)
@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("convert.delta", b"wdelta\0"),
        ("unsupported.checkpoint", sealed(GOOD[:7] + b"\2\0\0\0" + GOOD[11:-32])),
        ("checkpoint.layout", GOOD[:-1]),
        ("checkpoint.layout", GOOD[:60] + b"!" + GOOD[61:]),
        ("convert.delta", sealed(GOOD[:-33])),
        ("convert.delta", sealed(GOOD[:-32] + b"\xff\xff\xff\xff")),
        ("convert.delta", sealed(GOOD[:11] + b"\xff\xff\0\0" + GOOD[15:-32])),
        ("limit.exceeded", sealed(GOOD[:11] + b"\xff\xff\xff\x7f" + GOOD[15:-32])),
        ("convert.delta", sealed(GOOD[:-32] + array_record("b.bias", "values", F32))),
        ("convert.delta", sealed(GOOD[:-32] + array_record("b.other", "values", F32))),
        ("convert.delta", with_header(tensors=[])),
        ("convert.delta", with_header(tensors={"b.bias": 1})),
        ("convert.delta", with_header(tensors={"b.bias": {"strategy": ["sparse"], "shape": [33]}})),
        ("convert.delta", with_header(tensors={"b.bias": {"strategy": "sparse", "shape": 33}})),
        ("checkpoint.name", with_header(tensors={"b\x1b[31m": {"strategy": "sparse", "shape": [33]}})),
        ("convert.delta", with_header(parent_hash=1)),
    ],
)
def test_a_file_that_is_malformed_is_refused(tmp_path, base, code, raw) -> None:
    delta = save(tmp_path / "x.wdelta", raw)
    options = skp.ImportOptions(kind="wdelta")
    refused(code, skp.import_delta, delta, base[0], tmp_path / "never.skp", options)


@pytest.mark.parametrize("base", ["F32"], indirect=True)
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_with_its_digest_repaired_is_answered_in_words(tmp_path, base, strategy, changes) -> None:
    path, tensors, dtype = base
    fields = STRATEGIES[strategy](np.linspace(-1, 1, 33, dtype=np.float32))
    raw = bytearray(wdelta(parent_of(tensors, dtype), {"b.bias": (strategy, [33], fields)})[:-32])
    for place, value in changes:
        raw[11 + int(place * (len(raw) - 11))] = value
    delta = save(tmp_path / "x.wdelta", sealed(bytes(raw)))
    options = skp.ImportOptions(kind="wdelta", overwrite=True)
    found = fault_of(skp.import_delta, delta, path, tmp_path / "x.skp", options)
    assert found is None or str(found).isascii()
