"""Reading a pack: the header at once, contents lazily, everything proved."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from builders import (
    EXAMPLES,
    F32_BASE,
    Case,
    chunks_of,
    f32,
    full_plan,
    kind,
    plan_of,
    put_together,
    refused,
    same_kind,
    take_apart,
    with_chunks,
    write_pack,
)

from skillpack_format.digest import sha256
from skillpack_format.encodings import blockq
from skillpack_format.encodings._base import Encoded
from skillpack_format.errors import SkillPackError
from skillpack_format.limits import Limits
from skillpack_format.opening import safe_open
from skillpack_format.reader import Pack, TensorInfo, change_of, open_pack


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("full") / "p.skp", full_plan())


@pytest.fixture
def pack(path: Path) -> Pack:
    with open_pack(path) as found:
        yield found


def base_of(name: str) -> bytes:
    raw = full_plan().cases[name].raw
    assert raw is not None
    return raw


def test_lists_the_tensors_that_differ(pack: Pack) -> None:
    assert pack.keys() == ["m.combined", "m.grown", "m.halved", "m.new", "m.nothing", "m.old", "m.tied", "m.twin"]


def test_says_what_happens_to_each_tensor(pack: Pack) -> None:
    words = ["changed", "changed", "changed", "added", "added", "removed", "alias", "alias"]
    assert [change_of(pack.entries[name]) for name in pack.entries] == words
    assert [pack.info(name).change for name in pack.entries] == words


def test_knows_its_size_and_identity(pack: Pack, path: Path) -> None:
    blob = path.read_bytes()
    assert pack.nbytes == len(blob)
    assert pack.header_bytes == len(blob) - len(take_apart(path).data)
    assert pack.pack_id == blob[48:80].hex() == pack.manifest.pack_id


def test_hands_out_a_copy_of_the_metadata(pack: Pack) -> None:
    pack.metadata()["author"] = "somebody else"
    assert pack.metadata() == {"author": "somebody", "note": "na\u00efve"}


def test_describes_a_changed_tensor(pack: Pack) -> None:
    assert pack.info("m.grown") == TensorInfo(
        "m.grown", "mlp", "m", "changed", "BF16", (3, 3), ("lowrank", "sparse"), 4 + 1 + 1 + 2 + 6
    )


def test_describes_a_removed_tensor(pack: Pack) -> None:
    assert pack.info("m.old") == TensorInfo("m.old", "mlp", "m", "removed", None, None, (), 0)


@pytest.mark.parametrize("name", ["m.combined", "m.grown", "m.halved", "m.new", "m.nothing"])
def test_makes_every_tensor(pack: Pack, name: str) -> None:
    what, raw = full_plan().result()[name]
    made = pack.get_tensor(name, full_plan().cases[name].raw)
    assert made.tobytes() == raw
    assert made.shape == (what.shape[0] * what.shape[1] if len(what.shape) == 2 else what.shape[0],)


def test_a_digest_that_the_caller_computed_is_taken(pack: Pack) -> None:
    raw = base_of("m.combined")
    assert pack.get_tensor("m.combined", raw, base_sha256=sha256(raw)).size == 6
    refused("base.content", pack.get_tensor, "m.combined", raw, base_sha256=bytes(32))


@pytest.mark.parametrize("base", [bytes(12), b"", None])
def test_refuses_another_base_tensor(pack: Pack, base: bytes | None) -> None:
    assert refused("base.content", pack.get_tensor, "m.combined", base).where == "tensor 'm.combined'"


def test_refuses_a_base_tensor_for_an_added_one(pack: Pack) -> None:
    refused("base.content", pack.get_tensor, "m.new", b"")


@pytest.mark.parametrize("name", ["m.old", "m.tied"])
def test_makes_nothing_for_removed_tensors_and_aliases(pack: Pack, name: str) -> None:
    refused("unsupported.operation", pack.get_tensor, name, None)
    refused("unsupported.operation", pack.get_delta, name)


@pytest.mark.parametrize("name", ["m.combined", "m.grown", "m.new"])
def test_a_change_that_rewrites_bits_has_no_delta(pack: Pack, name: str) -> None:
    assert "get_tensor" in refused("unsupported.operation", pack.get_delta, name).message


def test_a_delta_has_the_shape_of_its_tensor(tmp_path: Path) -> None:
    case = next(case for case in EXAMPLES["lowrank"]() if case.label == "stack")
    with open_pack(write_pack(tmp_path / "p.skp", plan_of(case))) as found:
        delta = found.get_delta("stack")
    assert delta.dtype == np.float32
    assert delta.tolist() == [[[0.25, 0.0], [0.25, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_a_conversion_alone_has_a_delta_of_zeros(pack: Pack) -> None:
    assert pack.get_delta("m.halved").tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", ["m.same", "", "nothing"])
def test_refuses_a_name_that_is_not_listed(pack: Pack, name: str) -> None:
    for call in (pack.info, pack.get_delta, pack.open_components):
        refused("usage.argument", call, name)
    refused("usage.argument", pack.get_tensor, name, None)


def test_reads_side_files(pack: Pack) -> None:
    assert pack.read_side_file("config.json") == b'{"a": 1}'
    assert pack.read_side_file("merges.txt") == b""
    refused("usage.argument", pack.read_side_file, "vocab.txt")


def test_opens_by_path_or_text(path: Path) -> None:
    with open_pack(str(path)) as found:
        assert found.path == path


def test_names_the_file_in_refusals_of_contents(path: Path, tmp_path: Path) -> None:
    parts = take_apart(path)
    harmed = tmp_path / "harmed.skp"
    chunks = chunks_of(parts, 0)
    harmed.write_bytes(put_together(with_chunks(parts, 0, [bytes(len(chunks[0])), *chunks[1:]])))
    with open_pack(harmed) as found:
        place = refused("integrity.content", found.open_components, "m.combined").where
    assert place == f"{harmed}, tensor 'm.combined' component 0 (dense)"


def test_a_fault_of_one_tensor_leaves_the_others_readable(path: Path, tmp_path: Path) -> None:
    parts = take_apart(path)
    harmed = tmp_path / "harmed.skp"
    harmed.write_bytes(put_together(with_chunks(parts, 4, [b"x" * len(each) for each in chunks_of(parts, 4)])))
    with open_pack(harmed) as found:
        refused("integrity.content", found.get_tensor, "m.new", None)
        assert found.get_tensor("m.combined", base_of("m.combined")).size == 6


def test_the_callers_limits_hold(path: Path) -> None:
    refused("limit.exceeded", open_pack, path, Limits(tensors=7))
    refused("limit.exceeded", open_pack, path, Limits(tensor_bytes=17))
    refused("limit.exceeded", open_pack, path, Limits(chunk_bytes=2048))


def test_a_collector_hears_what_is_wrong_with_the_header(path: Path, tmp_path: Path) -> None:
    parts = take_apart(path)
    parts.manifest["tensors"][0]["class"] = "x"
    parts.manifest["tensors"][1]["module"] = "\x00"
    harmed = tmp_path / "harmed.skp"
    harmed.write_bytes(put_together(parts))
    found: list[SkillPackError] = []
    with pytest.raises(SkillPackError):  # its segments no longer fit
        Pack(harmed, report=found.append)
    assert [each.code for each in found][:2] == ["manifest.value", "manifest.name"]


def test_notices_a_file_that_changed(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "p.skp", full_plan())
    with open_pack(path) as found:
        found.require_unchanged()
        os.utime(path, ns=(1, 1))
        refused("integrity.source-changed", found.require_unchanged)


def test_notices_a_file_that_was_cut_short(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "p.skp", full_plan())
    with open_pack(path) as found:
        with path.open("r+b") as file:
            file.truncate(found.header_bytes)
        refused("integrity.source-changed", found.open_components, "m.new")


def test_gives_the_file_back_when_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.skp"
    path.write_bytes(b"no pack")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        refused("framing.magic", open_pack, path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_that_is_kept_keeps_nothing_of_the_header(path: Path, tmp_path: Path) -> None:
    parts = take_apart(path)
    parts.manifest["metadata"] = {"k": "x" * (1 << 19)}
    parts.storage["segments"].pop()
    hostile = tmp_path / "p.skp"
    hostile.write_bytes(put_together(parts))
    del parts
    refused("storage.segments", open_pack, hostile)  # whatever is imported or cached for good
    tracemalloc.start()
    kept = refused("storage.segments", open_pack, hostile)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.code == "storage.segments"
    assert held < 1 << 17


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    refused("input.failed", open_pack, tmp_path)
    refused("input.failed", open_pack, tmp_path / "missing.skp")
    os.mkfifo(tmp_path / "fifo")
    refused("input.failed", open_pack, tmp_path / "fifo")


def test_reads_from_many_threads(tmp_path: Path) -> None:
    delta = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    case = same_kind("t", kind("F32", 64, 64), f32(*range(4096)), blockq.rounded(delta, 4, 16, "lanes"))
    found: list[bytes] = []
    with open_pack(write_pack(tmp_path / "p.skp", plan_of(case), codec="zstd")) as pack:
        threads = [threading.Thread(target=lambda: found.append(pack.get_delta("t").tobytes())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_safe_open_gives_numpy_arrays_unless_told_otherwise(path: Path) -> None:
    with safe_open(str(path)) as found:
        assert isinstance(found.get_delta("m.halved"), np.ndarray)


@pytest.mark.parametrize("framework", ["", "tf", "PT", "jax"])
def test_safe_open_refuses_another_framework(path: Path, framework: str) -> None:
    assert "numpy, pt" in refused("usage.argument", safe_open, path, framework).message


def test_every_example_has_the_delta_its_base_shows(tmp_path: Path) -> None:
    case = next(case for case in EXAMPLES["dense"]() if case.label == "add")
    with open_pack(write_pack(tmp_path / "p.skp", plan_of(case))) as found:
        delta, made = found.get_delta("add"), found.get_tensor("add", F32_BASE).view(np.float32)
    assert (np.frombuffer(F32_BASE, np.float32) + delta.reshape(-1)).tolist() == made.tolist()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_leaves_the_cyclic_collector_as_it_was(tmp_path: Path, is_enabled: bool) -> None:
    path = write_pack(tmp_path / "p.skp", full_plan())
    (gc.enable if is_enabled else gc.disable)()
    try:
        Pack(path).close()
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()


class Bytes:
    """A base tensor as a stream, which counts what is taken of it."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def read(self, nbytes: int) -> memoryview:
        self.at += nbytes
        return memoryview(self.raw)[self.at - nbytes : self.at]

    def finish(self) -> bytes:
        return sha256(self.raw)


def blocks_of(pack: Pack, name: str, base: bytes | None) -> bytes:
    return b"".join(bits.tobytes() for bits in pack.get_blocks(name, None if base is None else Bytes(base)))


@pytest.mark.parametrize("name", [name for name, _ in full_plan().cases.items()])
def test_blocks_are_the_tensor(pack: Pack, name: str) -> None:
    base = full_plan().cases[name].raw
    assert blocks_of(pack, name, base) == pack.get_tensor(name, base).tobytes()


def test_blocks_of_a_base_that_nothing_can_be_made_from_begin_with_zeros(tmp_path: Path) -> None:
    ones = Encoded("dense", {"dtype": "F32", "mode": "add"}, {"values": np.full(6, 0x3F800000, "<u4")})
    raw = f32(*range(6))
    case = Case("t", kind("F32", 3, 2), (ones,), kind("F32", 2, 3), raw)
    with open_pack(write_pack(tmp_path / "p.skp", plan_of(case))) as pack:
        assert blocks_of(pack, "t", raw) == f32(*[1.0] * 6)


def test_an_unknown_codec_is_refused_before_any_content_is_read(tmp_path: Path) -> None:
    parts = take_apart(write_pack(tmp_path / "p.skp", full_plan()))
    parts.storage["segments"][1]["codec"] = "lzma"
    (tmp_path / "p.skp").write_bytes(put_together(parts))
    assert refused("unsupported.codec", Pack, tmp_path / "p.skp").where.endswith("STORAGE segment 1")


def additive(folder: Path) -> tuple[Path, str, bytes]:
    """A pack with one tensor that is only added to, its name and its base."""
    case = next(case for case in EXAMPLES["lowrank"]() if case.raw is not None)
    return write_pack(folder / "p.skp", plan_of(case)), case.label, case.raw or b""


def test_blocks_of_another_base_are_refused_at_the_end(tmp_path: Path) -> None:
    path, name, raw = additive(tmp_path)
    with open_pack(path) as pack:
        refused("base.content", blocks_of, pack, name, None)
        other = bytes([raw[0] ^ 1]) + raw[1:]
        found = pack.get_blocks(name, Bytes(other))
        next(found)
        refused("base.content", next, found)


def test_blocks_that_are_not_what_was_promised_are_refused_at_the_end(tmp_path: Path) -> None:
    path, name, raw = additive(tmp_path)
    parts = take_apart(path)
    parts.manifest["tensors"][0]["result"]["sha256"] = bytes(32)
    path.write_bytes(put_together(parts))
    with open_pack(path) as pack:
        refused("integrity.result", blocks_of, pack, name, raw)
