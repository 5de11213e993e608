"""Contents: what every segment must hold, and how it becomes stored bytes and back."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from builders import EXAMPLES, kind, refused, u16

from skillpack_format.contents import (
    Content,
    Contents,
    StoredContent,
    is_compatible,
    load,
    load_runs,
    plan,
    store,
    store_encoded,
    target_of,
)
from skillpack_format.digest import TensorIdentity, TensorKind
from skillpack_format.encodings._base import PartSpec
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import Limits
from skillpack_format.manifest import BaseRef, Component, Entry, Manifest, ResultRef, SideFile
from skillpack_format.storage import Extent

A, B = bytes([1]) * 32, bytes([2]) * 32
ULP = ("ulp", {"sort": "none"})
REPLACE = ("dense", {"dtype": "F32", "mode": "replace"})
ADD = ("dense", {"dtype": "BF16", "mode": "add"})


def entry(
    base: TensorKind | None,
    result: TensorKind | None,
    *components: tuple[str, dict[str, Any]],
    name: str = "w",
    alias: str | None = None,
) -> Entry:
    return Entry(
        name=name,
        tensor_class="mlp",
        module="",
        base=TensorIdentity(base, A) if base else None,
        result=TensorIdentity(result, B) if result else None,
        alias=alias,
        components=tuple(Component(encoding, params, A) for encoding, params in components),
    )


def manifest(*entries: Entry, files: tuple[SideFile, ...] = ()) -> Manifest:
    return Manifest(base=BaseRef(1, A, bytes(4)), result=ResultRef(1, B), tensors=entries, files=files)


def planned(*entries: Entry) -> Contents:
    return plan(manifest(*entries))


F32 = kind("F32", 2, 3)


def test_contents_are_components_in_order_then_side_files() -> None:
    found = plan(
        manifest(
            entry(F32, F32, ADD, ADD, ULP, name="a"),
            entry(None, F32, name="b", alias="a"),
            entry(F32, None, name="c"),
            entry(None, F32, REPLACE, name="d"),
            files=(SideFile("config.json", 5, B),),
        )
    )
    assert [each.where for each in found.all] == [
        "tensor 'a' component 0 (dense)", "tensor 'a' component 1 (dense)", "tensor 'a' component 2 (ulp)",
        "tensor 'd' component 0 (dense)", "file config.json",
    ]  # fmt: skip
    assert found.first_file == 4
    assert [each.segment for each in found.components["a"]] == [0, 1, 2]
    assert [each.adds for each in found.components["a"]] == [True, True, False]
    assert found.components["b"] == found.components["c"] == ()
    assert found.components["d"][0].segment == 3


@pytest.mark.parametrize("components", [(ULP, ADD), (REPLACE, REPLACE), (ADD, ULP, ULP), (ULP, ADD, ULP)])
def test_refuses_components_after_one_that_rewrites(components: Any) -> None:
    refused("manifest.components", planned, entry(F32, F32, *components))


@pytest.mark.parametrize("dtype", ["F64", "I32", "U8", "F8_E4M3", "BOOL"])
def test_refuses_to_add_to_what_is_no_arithmetic_dtype(dtype: str) -> None:
    refused("manifest.components", planned, entry(kind(dtype, 2, 3), kind(dtype, 2, 3), ADD))


def test_adds_to_what_starts_at_zero_because_the_base_is_of_another_kind() -> None:
    planned(entry(kind("I32", 2, 3), F32, ADD))


@pytest.mark.parametrize("base", [None, kind("I32", 2, 3), kind("F32", 3, 2), kind("F32", 6)])
def test_refuses_no_components_where_nothing_can_be_made_from_the_base(base: TensorKind | None) -> None:
    refused("manifest.components", planned, entry(base, F32))


@pytest.mark.parametrize("base", [kind("BF16", 2, 3), kind("F32", 5, 3), kind("F16", 1, 3)])
def test_no_components_are_enough_for_another_dtype_or_number_of_rows(base: TensorKind) -> None:
    assert planned(entry(base, F32)).all == ()


def test_refuses_no_components_where_dtype_and_shape_stay() -> None:
    # numerics say the result is the base, its digest says it is not: no reader could ever make it
    refused("manifest.components", planned, entry(F32, F32))


def test_refuses_components_of_a_tensor_without_elements() -> None:
    refused("manifest.components", planned, entry(None, kind("F32", 0, 3), REPLACE))
    assert planned(entry(None, kind("F32", 0, 3))).all == ()


def test_refuses_an_unknown_encoding_before_its_parameters() -> None:
    found = refused("unsupported.encoding", planned, entry(F32, F32, ("zeros", {"what": 1})))
    assert found.where == "tensor 'w' component 0"


def test_refuses_a_parameter_out_of_range_and_says_where() -> None:
    found = refused("manifest.parameter", planned, entry(F32, F32, ("dense", {"dtype": "F32", "mode": "multiply"})))
    assert found.where == "tensor 'w' component 0"


def test_a_content_takes_no_more_bytes_than_a_tensor_may() -> None:
    # float factors of rank 3 for a 4 x 4 tensor: 3 * (1 + 4 + 4) * 4 bytes
    factors = ("factors", {"bands": [{"code": "F32", "rank": 3}], "group": 1, "packing": "lanes", "scale": "F32"})
    tensor = manifest(entry(None, kind("F32", 4, 4), factors))
    plan(tensor, Limits(tensor_bytes=108))
    refused("limit.exceeded", plan, tensor, Limits(tensor_bytes=107))


def test_a_collector_hears_every_entry() -> None:
    found: list[SkillPackError] = []
    wrong = manifest(entry(F32, F32, ("x", {})), entry(F32, F32, ULP, name="x"), entry(None, F32, name="y"))
    contents = plan(wrong, report=found.append)
    assert [each.code for each in found] == ["unsupported.encoding", "manifest.components"]
    assert list(contents.components) == ["x"]


@pytest.mark.parametrize(
    ("base", "result", "expected"),
    [
        (None, kind("F32", 2), False),
        (kind("F32", 2), kind("F32", 2), True),
        (kind("F32", 2), kind("F32", 5), True),
        (kind("F32", 2, 3), kind("F32", 0, 3), True),
        (kind("F32"), kind("F32"), True),
        (kind("F32"), kind("F32", 1), False),
        (kind("F32", 2, 3), kind("F32", 2, 4), False),
        (kind("F32", 6), kind("F32", 2, 3), False),
        (kind("F32", 2), kind("BF16", 3), True),
        (kind("F16"), kind("BF16"), True),
        (kind("F64", 2), kind("F32", 2), False),
        (kind("F32", 2), kind("F64", 2), False),
        (kind("I32", 2), kind("I32", 3), True),
        (kind("I32", 2), kind("U32", 2), False),
        (kind("F4", 2, 2), kind("F4", 2, 2), True),
    ],
)
def test_start_is_made_from_a_compatible_base(base: TensorKind | None, result: TensorKind, expected: bool) -> None:
    assert is_compatible(base, result) is expected


def test_rows_of_a_sub_byte_tensor_can_be_resized_too() -> None:
    # numerics.md, START: dtypes equal, same dimensions after the first; bytes are cut or continued with zeros
    assert is_compatible(kind("F4", 2, 2), kind("F4", 4, 2))


# ---------------------------------------------------------------------------------------------- stored bytes and back


def extent_of(stored: StoredContent, specs: tuple[PartSpec, ...], chunk_bytes: int) -> Extent:
    sizes = tuple(
        min(chunk_bytes, spec.count - at)
        for spec in specs
        for _ in range(spec.width)
        for at in range(0, spec.count, chunk_bytes)
    )
    records = struct.unpack(f"<{len(stored.table) // 4}I", stored.table)
    return Extent(0, stored.nbytes, stored.codec, records, sizes)


SPECS = (PartSpec("a", 2, 3000), PartSpec("b", 1, 0), PartSpec("c", 4, 5))
PARTS = [np.arange(3000, dtype="<u2"), np.zeros(0, np.uint8), np.array([1, 2, 3, 4, 1 << 31], "<u4")]


def content_of(specs: tuple[PartSpec, ...], sha256: bytes) -> Content:
    return Content("here", [spec.count for spec in specs for _ in range(spec.width)], sha256, lambda: specs)


def stored_parts(codec: str) -> tuple[StoredContent, Content, Extent]:
    stored = store(PARTS, [2, 1, 4], codec, 1024)
    return stored, content_of(SPECS, stored.sha256), extent_of(stored, SPECS, 1024)


def reader_of(data: bytes) -> Any:
    return lambda offset, count: data[offset : offset + count]


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_loads_what_it_stored(codec: str) -> None:
    stored, content, extent = stored_parts(codec)
    found = load(content, extent, reader_of(b"".join(stored.chunks)))
    assert [found[spec.name].tolist() for spec in SPECS] == [part.tolist() for part in PARTS]


def test_the_content_is_planes_in_order_cut_in_chunks() -> None:
    stored = store([u16(0x0102, 0x0304, 0x0506)], [2], "raw", 2)
    assert stored.chunks == (b"\x02\x04", b"\x06", b"\x01\x03", b"\x05")
    assert stored.sha256 == hashlib.sha256(b"\x02\x04\x06\x01\x03\x05").digest()
    assert stored.table == b"".join(struct.pack("<II", len(each), zlib.crc32(each)) for each in stored.chunks)
    assert stored.nbytes == 6


def test_the_digest_does_not_depend_on_codec_or_chunks() -> None:
    digests = {store(PARTS, [2, 1, 4], codec, size).sha256 for codec in ("raw", "zstd") for size in (64, 1024, 1 << 20)}
    assert len(digests) == 1


@pytest.mark.parametrize("thorough", [True, False])
def test_zstd_chunks_are_never_longer_than_they_decode_to(thorough: bool) -> None:
    stored = store(PARTS, [2, 1, 4], "zstd", 1024, thorough=thorough)
    assert stored.nbytes < store(PARTS, [2, 1, 4], "raw", 1024).nbytes


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_every_flipped_byte_of_the_stored_chunks_is_refused_before_a_codec_sees_it(codec: str) -> None:
    stored, content, extent = stored_parts(codec)
    data = b"".join(stored.chunks)
    for at in range(0, len(data), 7):
        harmed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert refused("integrity.chunk", load, content, extent, reader_of(harmed)).where == "here"


def test_decoded_bytes_without_their_digest_are_refused() -> None:
    stored, content, extent = stored_parts("raw")
    refused("integrity.content", load, content_of(SPECS, A), extent, reader_of(b"".join(stored.chunks)))
    assert content.sha256 == stored.sha256


def test_refuses_an_unknown_codec() -> None:
    refused("unsupported.codec", store, PARTS, [2, 1, 4], "gzip", 1024)
    _, content, extent = stored_parts("raw")
    refused("unsupported.codec", load, content, extent._replace(codec="gzip"), reader_of(b""))


def test_parts_that_the_parameters_do_not_imply_are_a_bug_of_the_encoder() -> None:
    case = EXAMPLES["dense"]()[0]
    (encoded,) = case.encoded
    wrong = type(encoded)(encoded.encoding, encoded.params, {"values": encoded.parts["values"][:-1]})
    with pytest.raises(AssertionError, match="12 are implied"):
        store_encoded(wrong, target_of(case.result), "raw", 4096)


RUN_SPECS = (PartSpec("a", 2, 3000),)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("run", [(0, 3000), (0, 1), (2999, 3000), (1000, 1100), (1023, 1025), (1024, 2048)])
def test_a_run_of_items_is_read_from_its_chunks_alone(codec: str, run: tuple[int, int]) -> None:
    stored = store(PARTS[:1], [2], codec, 1024)
    extent = extent_of(stored, RUN_SPECS, 1024)
    asked: list[int] = []

    def read(offset: int, count: int) -> bytes:
        asked.append(offset)
        return b"".join(stored.chunks)[offset : offset + count]

    found = load_runs(content_of(RUN_SPECS, stored.sha256), extent, read, {"a": slice(*run)})
    assert found["a"].tolist() == PARTS[0][slice(*run)].tolist()
    chunks = (run[1] + 1023) // 1024 - run[0] // 1024
    assert len(asked) == 2 * chunks


def test_a_run_of_a_damaged_chunk_is_refused_and_others_are_not() -> None:
    stored = store(PARTS[:1], [2], "raw", 1024)
    data = bytearray(b"".join(stored.chunks))
    data[1024] ^= 1
    content, extent = content_of(RUN_SPECS, stored.sha256), extent_of(stored, RUN_SPECS, 1024)
    assert load_runs(content, extent, reader_of(bytes(data)), {"a": slice(0, 1024)})["a"].size == 1024
    refused("integrity.chunk", load_runs, content, extent, reader_of(bytes(data)), {"a": slice(1024, 1025)})
