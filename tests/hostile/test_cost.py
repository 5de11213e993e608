"""Cost: a claim in a file costs nothing, and twice as much of anything costs about twice as much."""

from __future__ import annotations

import hashlib
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    Parts,
    added,
    full_plan,
    hexed,
    kind,
    packed,
    plan_of,
    put_together,
    read_everything,
    refused,
    take_apart,
    tiny_plan,
    with_chunks,
    write_pack,
)

from skillpack_format import manifest as manifest_room
from skillpack_format import wire
from skillpack_format.contents import plan
from skillpack_format.dtypes import DTYPES
from skillpack_format.encodings import dense
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import DEFAULT_LIMITS
from skillpack_format.reader import Pack
from skillpack_format.storage import lay_out
from skillpack_format.storage import parse as parse_storage

MIB = 1 << 20


@contextmanager
def peak_below(nbytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < nbytes


def entry(name: str, **changes: Any) -> dict[str, Any]:
    identity = {"dtype": "F32", "sha256": bytes(32), "shape": [2]}
    component = {"dtype": "F32", "encoding": "dense", "mode": "replace", "sha256": bytes(32)}
    return {"class": "mlp", "components": [component], "module": "", "name": name, "result": identity, **changes}


def document(count: int) -> dict[str, Any]:
    """A manifest of ``count`` added tensors."""
    return {
        "base": {"count": 0, "digest": bytes(32), "prints": b""},
        "files": [],
        "format": "skillpack/1",
        "metadata": {},
        "result": {"count": count, "digest": bytes([1]) * 32},
        "tensors": [entry(f"t{k:07}") for k in range(count)],
    }


CLAIMS = {
    "array32": "ddffffffff",
    "map32": "dfffffffff",
    "bin32": "c6ffffffff",
    "str32": "dbffffffff",
    "array16": "dcffff",
    "nested": "dd7fffffff" * 100,
}


@pytest.mark.parametrize("document", ["manifest", "storage"])
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claimed_length_allocates_nothing(tmp_path: Path, name: str, document: str) -> None:
    parts = Parts(packed({}), packed({}), b"")
    setattr(parts, document, hexed(CLAIMS[name]))
    path = tmp_path / "p.skp"
    path.write_bytes(put_together(parts))
    with peak_below(MIB):
        refused("wire.truncated", Pack, path)


def test_three_million_empty_maps_stop_at_the_limit_of_nodes() -> None:
    data = b"\xdd" + struct.pack(">I", 3_000_000) + b"\x80" * 3_000_000
    limits = type(DEFAULT_LIMITS)(header_nodes=1000)
    with peak_below(4 * MIB):
        refused("limit.exceeded", wire.read, data, limits, "")


def test_nine_million_empty_values_are_refused_by_their_length() -> None:
    count = 9_000_000
    data = b"\xdd" + struct.pack(">I", count) + b"\x80" * count
    with peak_below(MIB):
        assert calls_of(lambda: refused("limit.exceeded", wire.read, data, DEFAULT_LIMITS, "")) < 200


def test_values_count_when_their_length_is_read() -> None:
    nested = [[[]] * 3, {"a": 1, "b": []}]  # 1 document, 2 items, 3 items, 2 keys and 2 values
    limits = type(DEFAULT_LIMITS)(header_nodes=10)
    assert wire.read(packed(nested), limits, "") == nested
    refused("limit.exceeded", wire.read, packed(nested), type(DEFAULT_LIMITS)(header_nodes=9), "")
    refused("limit.exceeded", wire.read, packed([nested, [1]])[:-1] + b"\xc1", limits, "")


@pytest.mark.parametrize(("encoding", "label"), [("lowrank", "slices"), ("factors", "bands")])
def test_products_of_a_tensor_are_bounded(tmp_path: Path, encoding: str, label: str) -> None:
    parts = take_apart(write_pack(tmp_path / "p.skp", tiny_plan(encoding)))
    entry = parts.manifest["tensors"][0]
    ranks = sum(each["rank"] for component in entry["components"] for each in component[label])
    products = ranks * int(np.prod(entry["result"]["shape"]))
    with Pack(tmp_path / "p.skp", type(DEFAULT_LIMITS)(tensor_products=products)):
        pass
    refused("limit.exceeded", Pack, tmp_path / "p.skp", type(DEFAULT_LIMITS)(tensor_products=products - 1))


def test_days_of_arithmetic_are_refused_before_a_byte_is_decoded(tmp_path: Path) -> None:
    parts = take_apart(write_pack(tmp_path / "p.skp", tiny_plan("lowrank")))
    entry = parts.manifest["tensors"][0]
    entry["result"]["shape"] = [1 << 15, 1 << 15]
    if "base" in entry:
        entry["base"]["shape"] = [1 << 15, 1 << 15]
    slices = [{"bits_u": 1, "bits_v": 1, "rank": 1 << 15}] * 64
    entry["components"] = [{**entry["components"][0], "packing": "stream", "slices": slices}]
    (tmp_path / "p.skp").write_bytes(put_together(parts))
    with peak_below(MIB):
        found = refused("limit.exceeded", Pack, tmp_path / "p.skp")
    assert "tensor_products" in found.message


@pytest.mark.parametrize("nbytes", [1 << 40, 1 << 63, (1 << 64) - 1])
def test_claimed_lengths_in_the_preamble_allocate_nothing(tmp_path: Path, nbytes: int) -> None:
    path = write_pack(tmp_path / "p.skp", full_plan())
    parts = take_apart(path)
    for field in ("manifest_length", "storage_length", "header_length", "data_length"):
        path.write_bytes(put_together(parts, **{field: nbytes}))
        with peak_below(MIB), pytest.raises(SkillPackError):
            Pack(path)


def test_a_document_within_a_sparse_file_is_refused_by_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    path.write_bytes(put_together(Parts(packed({}), packed({}), b""), manifest_length=1 << 30))
    with path.open("r+b") as file:
        file.truncate(128 + (1 << 30) + 1)
    with peak_below(MIB):
        refused("limit.exceeded", Pack, path)


def test_a_tensor_of_64_gib_without_chunks_allocates_nothing(tmp_path: Path) -> None:
    parts = Parts(document(1), {"chunk_bytes": 1 << 24, "segments": [{"chunks": b"", "codec": "zstd"}]}, b"")
    parts.manifest["tensors"][0]["result"]["shape"] = [1 << 34]
    path = tmp_path / "p.skp"
    path.write_bytes(put_together(parts))
    with peak_below(4 * MIB):
        refused("storage.chunk-table", Pack, path)


def test_an_added_tensor_without_elements_costs_nothing(tmp_path: Path) -> None:
    parts = Parts(document(1), {"chunk_bytes": 4096, "segments": []}, b"")
    parts.manifest["tensors"][0].update(
        components=[], result={"dtype": "F32", "sha256": bytes(32), "shape": [0, 1 << 62]}
    )
    path = tmp_path / "p.skp"
    path.write_bytes(put_together(parts))
    with peak_below(MIB):
        read_everything(path)
    parts.manifest["tensors"][0]["result"]["shape"] = [0, 1 << 62, 1 << 62]
    path.write_bytes(put_together(parts))
    with Pack(path) as pack:  # the format has such a tensor, numpy has no array of its shape
        refused("unsupported.operation", pack.get_delta, "t0000000")


def test_nothing_is_allocated_for_chunks_whose_checksum_is_wrong(tmp_path: Path) -> None:
    """64 MiB that a file of a few hundred bytes claims to hold, in chunks of a byte each."""
    chunk = struct.pack("<II", 1, 0xFFFF_FFFF)
    parts = Parts(document(1), {"chunk_bytes": 1 << 24, "segments": [{"chunks": chunk * 4, "codec": "zstd"}]}, b"abcd")
    parts.manifest["tensors"][0]["result"].update(dtype="U8", shape=[1 << 26])
    parts.manifest["tensors"][0]["components"][0]["dtype"] = "U8"
    path = tmp_path / "p.skp"
    path.write_bytes(put_together(parts))
    with peak_below(MIB):
        refused("integrity.chunk", read_everything, path)


def test_a_frame_that_lies_about_its_size_allocates_nothing(tmp_path: Path) -> None:
    case = added("t", kind("U8", 200), dense.replacement(np.full(200, 7, np.uint8), DTYPES["U8"]))
    path = write_pack(tmp_path / "p.skp", plan_of(case), codec="zstd")
    lie = hexed("28b52ffd e0") + (1 << 34).to_bytes(8, "little") + hexed("430600 07")
    path.write_bytes(put_together(with_chunks(take_apart(path), 0, [lie])))
    with peak_below(MIB):
        refused("payload.frame", read_everything, path)


# ------------------------------------------------------------------------------------------------------------- growth


def calls_of(work: Callable[[], object]) -> int:
    """How many lines of Python ``work`` runs: a measure of time that no busy machine can disturb."""
    count = 0

    def local(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        count += 1
        return local

    before = sys.gettrace()
    sys.settrace(local)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def steps_of(build: Callable[[int], Callable[[], object]], size: int = 60) -> list[float]:
    """How many times more steps twice the size takes, for two doublings."""
    counts = [calls_of(build(size << k)) for k in range(3)]
    return [after / before for before, after in pairwise(counts)]


def reading(count: int) -> Callable[[], object]:
    data = packed(document(count))
    return lambda: wire.read(data, DEFAULT_LIMITS, "")


def parsing(count: int) -> Callable[[], object]:
    plain = document(count)
    return lambda: manifest_room.parse(plain)


def planning(count: int) -> Callable[[], object]:
    found = manifest_room.parse(document(count))
    return lambda: plan(found)


def aliasing(count: int) -> Callable[[], object]:
    plain = document(count)
    for each in plain["tensors"][1:]:
        del each["components"]
        each["alias"] = "t0000000"
    return lambda: manifest_room.parse(plain)


def laying_out(count: int) -> Callable[[], object]:
    table = struct.pack("<II", 8, 0)
    storage = parse_storage({"chunk_bytes": 4096, "segments": [{"chunks": table, "codec": "raw"}] * count})
    return lambda: lay_out(storage, [[8]] * count, 8 * count)


def naming(count: int) -> Callable[[], object]:
    prefix = "x" * 500
    plain = document(count)
    for k, each in enumerate(plain["tensors"]):
        each["name"] = f"{prefix}{k:07}"
    return lambda: manifest_room.parse(plain)


@pytest.mark.parametrize("build", [reading, parsing, planning, aliasing, laying_out, naming])
def test_twice_the_tensors_take_about_twice_the_steps(build: Callable[[int], Callable[[], object]]) -> None:
    assert max(steps_of(build)) < 2.3


def test_many_problems_of_one_file_take_linear_steps() -> None:
    def collecting(count: int) -> Callable[[], object]:
        plain = document(count)
        for each in plain["tensors"]:
            each["class"] = "none"
        found: list[SkillPackError] = []
        return lambda: manifest_room.parse(plain, report=found.append)

    assert max(steps_of(collecting)) < 2.3


def test_a_pack_of_2000_tensors_opens_and_is_read(tmp_path: Path) -> None:
    count = 2000
    parts = Parts(document(count), {"chunk_bytes": 4096, "segments": []}, b"")
    plane = struct.pack("<II", 2, zlib.crc32(bytes(2)))
    parts.storage["segments"] = [{"chunks": plane * 4, "codec": "raw"}] * count
    parts.data = bytes(8 * count)
    digest = hashlib.sha256(bytes(8)).digest()
    for each in parts.manifest["tensors"]:
        each["components"][0]["sha256"] = digest
    path = tmp_path / "p.skp"
    path.write_bytes(put_together(parts))
    assert len(read_everything(path).keys()) == count
