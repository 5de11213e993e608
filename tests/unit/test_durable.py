from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import failing, refusing

from skillpack_format.durable import RunInterruptedError, atomic_file, atomic_folder, atomic_path
from skillpack_format.errors import SkillPackError
from skillpack_format.locks import beside
from skillpack_format.output_files import OutputFile


@pytest.fixture(autouse=True)
def nothing_partial_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path for path in tmp_path.rglob("*") if ".skillpack-" in path.name] == []


@pytest.fixture(params=["renameat2", "no renameat2", "file system without flags"])
def every_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test as on Linux, on a C library without renameat2, and on a file system that takes no flags."""
    if request.param == "renameat2":
        return

    class Function:
        argtypes: object = None

        def __call__(self, *_: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    if request.param == "file system without flags":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: type("Library", (), {"renameat2": Function()}))
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_text(text)
    (folder / "b").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# ---- atomic_file


@pytest.mark.usefixtures("every_system")
def test_a_new_file_appears_complete(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out", overwrite=False) as file:
        file.write(b"hello ")
        assert not (tmp_path / "out").exists()
        file.write(memoryview(b"world"))
    assert (tmp_path / "out").read_bytes() == b"hello world"


def test_a_file_is_replaced_when_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
        assert (tmp_path / "out").read_bytes() == b"old"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_overwrite_is_content_with_an_absent_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_refuses_to_replace_a_file_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with refusing("output.exists"), atomic_file(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out").read_bytes() == b"old"


@pytest.mark.usefixtures("every_system")
def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with refusing("output.exists"), atomic_file(tmp_path / "out", overwrite=False) as file:
        file.write(b"new")
        (tmp_path / "out").write_bytes(b"of another process")
    assert (tmp_path / "out").read_bytes() == b"of another process"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(failure), atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"half")
        raise failure
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_the_mode_of_a_replaced_file_is_kept_and_never_wider(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o640)
    with atomic_file(tmp_path / "out", overwrite=True) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "out", overwrite=False):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_other_names_of_a_replaced_file_keep_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    os.link(tmp_path / "out", tmp_path / "other")
    with atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "other").read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / "out").symlink_to("elsewhere")
    elif kind == "fifo":
        os.mkfifo(tmp_path / "out")
    else:
        (tmp_path / "out").mkdir()
    before = (tmp_path / "out").lstat()
    with refusing("output.exists"), atomic_file(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out").lstat() == before


def test_refuses_a_missing_parent_folder(tmp_path: Path) -> None:
    with refusing("output.failed"), atomic_file(tmp_path / "none" / "out", overwrite=False):
        pass


@pytest.mark.parametrize("path", ["", "/", "a/..", "a\0"])
def test_refuses_a_path_that_names_nothing(path: str) -> None:
    with refusing("output.failed"), atomic_file(Path(path), overwrite=True):
        pass


def test_refuses_a_name_that_is_too_long(tmp_path: Path) -> None:
    with refusing("output.failed"), atomic_file(tmp_path / ("x" * 256), overwrite=False):
        pass


def test_the_longest_name_has_room_for_its_partial(tmp_path: Path) -> None:
    with atomic_file(tmp_path / ("x" * 255), overwrite=False) as file:
        file.write(b"x")
    assert (tmp_path / ("x" * 255)).exists()


def test_the_parent_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link" / "out", overwrite=False) as file:
        file.write(b"x")
    assert (tmp_path / "real" / "out").read_bytes() == b"x"


def test_a_relative_path_is_taken_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_file(Path("out"), overwrite=False) as file:
        file.write(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


def test_a_failed_fsync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"old")
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", fsync)
    with refusing("output.failed"), atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
    assert len(calls) == 1
    assert (tmp_path / "out").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_the_path_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "write", failing(number))
    with pytest.raises(SkillPackError) as caught, atomic_file(tmp_path / "out", overwrite=False) as file:
        file.write(b"x")
    assert (caught.value.code, caught.value.where) == ("output.space", str(tmp_path / "out"))
    assert os.strerror(number) in caught.value.message


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", failing(errno.EACCES))
    with refusing("output.failed"), atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"old"


def test_an_unsure_folder_is_reported_after_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: failing(errno.EIO)() if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)
    )
    with pytest.raises(SkillPackError, match="may not survive"), atomic_file(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out").exists()
    kept = beside(tmp_path / "folder", "exchanged")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("skillpack_format.durable._fsync_tree", lambda folder: None)  # only the last one fails
    with pytest.raises(SkillPackError, match=kept.name), atomic_folder(tmp_path / "folder", overwrite=True):
        pass
    kept.rmdir()


def test_a_folder_that_cannot_be_synced_is_tolerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: failing(errno.EINVAL)() if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)
    )
    with atomic_file(tmp_path / "out", overwrite=False) as file:
        file.write(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


def test_the_file_is_synced_before_it_is_named_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"x")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_killed_process_leaves_the_old_content(tmp_path: Path, call: str) -> None:
    (tmp_path / "out").write_bytes(b"old")
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from skillpack_format.durable import atomic_file
        os.{call} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with atomic_file(Path(sys.argv[1]), overwrite=True) as file:
            file.write(b"new")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out").read_bytes() == b"old"
    with atomic_file(tmp_path / "out", overwrite=True) as file:  # what the killed process left is not in the way
        file.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_atomic_path_publishes_what_a_writer_made(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out", overwrite=False) as partial:
        partial.write_bytes(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


def test_atomic_path_refuses_a_writer_that_removed_its_file(tmp_path: Path) -> None:
    with refusing("output.failed"), atomic_path(tmp_path / "out", overwrite=False) as partial:
        partial.unlink()


# ---- going on after an interruption


def interrupt(path: Path, *, resume: bool = True) -> Path:
    """Have an interrupted run leave b"half" beside ``path``."""
    with pytest.raises(RunInterruptedError) as caught, atomic_path(path, overwrite=True, resume=resume) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    return caught.value.kept


def test_an_interruption_keeps_the_work_and_says_where(tmp_path: Path) -> None:
    kept = interrupt(tmp_path / "out")
    assert kept.read_bytes() == b"half"
    assert not (tmp_path / "out").exists()
    with atomic_path(tmp_path / "out", overwrite=False, resume=True) as partial:
        assert partial == kept
        assert partial.read_bytes() == b"half"


def test_a_writer_that_cannot_go_on_starts_with_nothing(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    with atomic_path(tmp_path / "out", overwrite=False) as partial:
        assert partial.read_bytes() == b""


def test_an_error_keeps_nothing(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    with pytest.raises(ValueError, match="wrong"), atomic_path(tmp_path / "out", overwrite=False, resume=True):
        raise ValueError("wrong")


def test_work_that_was_public_is_made_private_for_a_private_target(tmp_path: Path) -> None:
    interrupt(tmp_path / "out").chmod(0o644)
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o600)
    with atomic_path(tmp_path / "out", overwrite=True, resume=True) as partial:
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["link", "second name", "folder"])
def test_what_this_program_cannot_have_left_is_not_taken_for_its_work(tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    partial = beside(tmp_path / "out", "partial")
    if kind == "link":
        partial.symlink_to("precious")
    elif kind == "second name":
        os.link(precious, partial)
    else:
        partial.mkdir()
    with atomic_path(tmp_path / "out", overwrite=False, resume=True) as found:
        assert found.read_bytes() == b""
        found.write_bytes(b"new")
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_folder_is_gone_on_with_file_by_file(tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError), atomic_folder(tmp_path / "out", overwrite=False, resume=["b"]) as partial:
        fill(partial, "half")
        (partial / "link").symlink_to("b")
        raise KeyboardInterrupt
    with atomic_folder(tmp_path / "out", overwrite=False, resume=["b", "link", "sub"]) as partial:
        assert content(partial) == {"b": "half"}  # no folder and no link is taken over, whatever its name
        (partial / "link").write_text("new")
    assert content(tmp_path / "out") == {"b": "half", "link": "new"}


def test_a_file_that_is_written_on_must_be_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    os.link(tmp_path / "a", tmp_path / "b")
    with refusing("output.failed"):
        OutputFile(tmp_path / "b", resume=True)
    (tmp_path / "c").symlink_to("a")
    with refusing("output.failed"):
        OutputFile(tmp_path / "c", resume=True)
    assert (tmp_path / "a").read_bytes() == b"precious"


def test_a_file_can_be_cut_and_written_on(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = OutputFile(tmp_path / "a", resume=True)
    file.cut(3)
    file.write(b"x")
    file.finish()
    assert (tmp_path / "a").read_bytes() == b"012x"


def test_an_exchange_by_renames_that_was_stopped_is_undone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    (tmp_path / "out").rename(beside(tmp_path / "out", "old"))
    with refusing("output.exists"), atomic_folder(tmp_path / "out", overwrite=False):
        pass
    assert content(tmp_path / "out") == {"sub/a": "old", "b": "old"}


def test_a_folder_replaced_by_renames_and_not_yet_removed_goes(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    beside(tmp_path / "out", "old").mkdir()
    with atomic_folder(tmp_path / "out", overwrite=True) as partial:
        fill(partial, "new")
    assert content(tmp_path / "out") == {"sub/a": "new", "b": "new"}


# ---- atomic_folder


@pytest.mark.usefixtures("every_system")
def test_a_new_folder_appears_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", overwrite=False) as partial:
        fill(partial, "new")
        assert not (tmp_path / "out").exists()
    assert content(tmp_path / "out") == {"sub/a": "new", "b": "new"}


@pytest.mark.usefixtures("every_system")
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o750)
    (tmp_path / "out" / "old").write_text("old")
    with atomic_folder(tmp_path / "out", overwrite=True) as partial:
        fill(partial, "new")
        assert content(tmp_path / "out") == {"old": "old"}
    assert content(tmp_path / "out") == {"sub/a": "new", "b": "new"}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_refuses_to_replace_a_folder_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with refusing("output.exists"), atomic_folder(tmp_path / "out", overwrite=False):
        pass


@pytest.mark.usefixtures("every_system")
def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with refusing("output.exists"), atomic_folder(tmp_path / "out", overwrite=True) as partial:
        fill(partial, "new")
        (tmp_path / "out").mkdir()
    assert content(tmp_path / "out") == {}


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path, failure: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    with pytest.raises(failure), atomic_folder(tmp_path / "out", overwrite=True) as partial:
        fill(partial, "half")
        raise failure
    assert os.listdir(tmp_path) == ["out"]
    assert content(tmp_path / "out") == {"sub/a": "old", "b": "old"}


def test_a_link_to_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with refusing("output.exists"), atomic_folder(tmp_path / "out", overwrite=True):
        pass


def test_everything_in_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "out", overwrite=False) as partial:
        fill(partial, "new")
        name = partial.name
    assert synced == ["a", "sub", "b", name, tmp_path.name]


def test_a_failed_sync_in_a_folder_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with refusing("output.failed"), atomic_folder(tmp_path / "out", overwrite=False) as partial:
        fill(partial, "new")
    assert os.listdir(tmp_path) == []


def test_a_partial_folder_that_vanished_is_an_error(tmp_path: Path) -> None:
    with refusing("output.failed"), atomic_folder(tmp_path / "out", overwrite=False) as partial:
        partial.rmdir()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.EROFS))
    with refusing("output.failed"), atomic_folder(tmp_path / "out", overwrite=False):
        pass


def test_without_exchange_a_failed_rename_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    rename = os.rename

    def second_fails(source: Path, target: Path) -> None:
        if source.name.endswith("-exchanged"):
            raise OSError(errno.EIO, "I/O error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with refusing("output.failed"), atomic_folder(tmp_path / "out", overwrite=True) as partial:
        fill(partial, "new")
    assert content(tmp_path / "out") == {"sub/a": "old", "b": "old"}
