from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import failing, refusing

from skillpack_format.durable import atomic_file
from skillpack_format.output_files import OutputFile, copy_file, new_file, write_exact


@pytest.fixture(autouse=True)
def nothing_partial_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path for path in tmp_path.rglob("*") if ".skillpack-" in path.name] == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    with atomic_file(tmp_path / "out", overwrite=False) as file:
        assert file.write(b"0123456789") == 10
    assert (tmp_path / "out").read_bytes() == b"0123456789"


def test_a_write_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with refusing("output.failed"), new_file(tmp_path / "out") as file:
        file.write(b"x")


def test_a_full_device_is_out_of_space() -> None:
    with open("/dev/full", "wb", buffering=0) as full, refusing("output.space"):
        write_exact(full.fileno(), b"x")


def test_bytes_of_any_buffer_are_written(tmp_path: Path) -> None:
    with new_file(tmp_path / "out") as file:
        assert file.write(memoryview(bytes(range(8))).cast("B", (2, 4))) == 8
        assert file.write(memoryview(bytearray(8)).cast("d")) == 8
        assert file.write(b"") == 0
    assert (tmp_path / "out").read_bytes() == bytes(range(8)) + bytes(8)


def test_bytes_whose_writing_has_begun_are_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OutputFile(tmp_path / "out") as file:
        file.write(b"0123456789" * 2000)
        file.begin_writing(0, 10000)
        file.begin_writing(10000, 10000)
        monkeypatch.setattr(os, "posix_fadvise", failing(errno.EINVAL))
        file.begin_writing(0, 20000)
        monkeypatch.delattr(os, "posix_fadvise")
        file.begin_writing(0, 20000)
    assert (tmp_path / "out").read_bytes() == b"0123456789" * 2000


def test_a_new_file_never_takes_an_existing_path(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("elsewhere")
    with refusing("output.exists"):
        OutputFile(tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


def test_a_copy_has_the_content_and_the_permissions(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 5)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "a").chmod(0o444)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o644


def test_a_copy_of_a_link_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    copy_file(tmp_path / "link", tmp_path / "b")
    assert not (tmp_path / "b").is_symlink()


def test_refuses_to_copy_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with refusing("output.exists"):
        copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"b"


def test_a_failed_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.delattr(os, "copy_file_range", raising=False)  # where the kernel copies, nothing is read
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with refusing("input.failed"):
        copy_file(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
