from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skillpack_format.errors import SkillPackError
from skillpack_format.sources import SourceFile, input_errors


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_reads_exactly_what_was_asked_for(tmp_path: Path) -> None:
    with SourceFile(write(tmp_path / "a", b"0123456789")) as source:
        assert source.read_at(3, 4) == b"3456"
        assert source.read_at(10, 0) == b""


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SourceFile(write(tmp_path / "a", b"0123456789")) as source:
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:3]], offset))
        assert source.read_at(1, 8) == b"12345678"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_is_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    with SourceFile(write(tmp_path / "a", data)) as source:
        assert source.sha256() == hashlib.sha256(data).digest()


def test_threads_read_at_once(tmp_path: Path) -> None:
    data = os.urandom(1 << 16)
    with SourceFile(write(tmp_path / "a", data)) as source, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda offset: source.read_at(offset, 256), range(0, len(data), 256)))
    assert b"".join(parts) == data


def test_refuses_a_file_truncated_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"0123456789")
    with SourceFile(path) as source:
        os.truncate(path, 5)
        with pytest.raises(SkillPackError) as caught:
            source.read_at(0, 10)
    assert caught.value.code == "integrity.source-changed"


def test_an_unchanged_file_passes(tmp_path: Path) -> None:
    with SourceFile(write(tmp_path / "a", b"x")) as source:
        source.require_unchanged()


@pytest.mark.parametrize("change", ["grown", "touched", "replaced", "removed"])
def test_notices_a_change(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "a", b"0123456789")
    with SourceFile(path) as source:
        if change == "grown":
            os.truncate(path, 11)
        elif change == "touched":
            os.utime(path, ns=(1, 1))
        elif change == "replaced":
            os.replace(write(tmp_path / "b", b"0123456789"), path)
        else:
            path.unlink()
        with pytest.raises(SkillPackError) as caught:
            source.require_unchanged()
    assert caught.value.code == "integrity.source-changed"


def test_refuses_a_fifo_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SkillPackError) as caught:
        SourceFile(tmp_path / "pipe")
    assert caught.value.code == "input.failed"


@pytest.mark.parametrize(
    ("failure", "says"), [(OSError(5, "Input/output error"), "Input/output error"), (OSError("odd"), "odd")]
)
def test_says_what_the_system_says(tmp_path: Path, failure: OSError, says: str) -> None:
    with pytest.raises(SkillPackError) as caught, input_errors(tmp_path):
        raise failure
    assert (caught.value.code, caught.value.message) == ("input.failed", f"cannot be read: {says}")


@pytest.mark.parametrize("name", ["none", "a\0b", "x" * 256])
def test_refuses_a_path_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(SkillPackError) as caught:
        SourceFile(tmp_path / name)
    assert caught.value.code == "input.failed"


def test_a_closed_file_cannot_be_read(tmp_path: Path) -> None:
    source = SourceFile(write(tmp_path / "a", b"x"))
    source.close()
    source.close()
    with pytest.raises(SkillPackError) as caught:
        source.read_at(0, 1)
    assert caught.value.code == "input.failed"


def test_a_child_process_inherits_no_descriptor(tmp_path: Path) -> None:
    with SourceFile(write(tmp_path / "a", b"x")) as source:
        assert not os.get_inheritable(source._descriptor)


@pytest.mark.parametrize("nbytes", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_hashes_a_stretch_without_holding_it(tmp_path: Path, nbytes: int) -> None:
    blob = os.urandom(7) * ((nbytes + 20) // 7 + 1)
    (tmp_path / "a").write_bytes(blob)
    with SourceFile(tmp_path / "a") as source:
        assert source.sha256_at(9, nbytes) == hashlib.sha256(blob[9 : 9 + nbytes]).digest()


def test_refuses_to_hash_past_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    with SourceFile(tmp_path / "a") as source, pytest.raises(SkillPackError) as caught:
        source.sha256_at(5, 6)
    assert caught.value.code == "integrity.source-changed"


def test_fills_the_memory_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    data = bytearray(6)
    with SourceFile(tmp_path / "a") as source:
        source.read_into(memoryview(data)[2:5], 4)
    assert data == b"\0\x00456\0"
