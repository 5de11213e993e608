"""One run at a time on one output."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from builders import refused

from skillpack_format.errors import SkillPackError
from skillpack_format.locks import beside, locked

HOLD = """
    import sys, time
    from pathlib import Path
    from skillpack_format.locks import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
"""


def hold(path: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock of ``path`` until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLD), str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_run_is_refused_and_told_who_holds_the_output(tmp_path: Path) -> None:
    with hold(tmp_path / "out") as other:
        found = refused("output.locked", locked(tmp_path / "out").__enter__)
        other.kill()
    assert found.where == str(tmp_path / "out")
    assert found.message == f"another run (process {other.pid}) is writing it"
    assert found.exit_status == 5


def test_the_lock_of_a_killed_process_is_no_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "out") as other:
        other.send_signal(signal.SIGKILL)
    assert beside(tmp_path / "out", "lock").exists()
    with locked(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_excludes_other_threads_of_its_process_too(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        refused("output.locked", locked(tmp_path / "out").__enter__)
    with locked(tmp_path / "out"):
        pass


def test_the_folder_may_be_reached_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with locked(tmp_path / "real" / "out"):
        refused("output.locked", locked(tmp_path / "link" / "out").__enter__)


def test_outputs_side_by_side_do_not_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"), locked(tmp_path / ("x" * 255)), locked(tmp_path / ("x" * 254)):
        pass


def test_a_lock_file_that_was_removed_meanwhile_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat
    calls: list[object] = []

    def removed_once(path: Path, **named: bool) -> os.stat_result:
        if path == beside(tmp_path / "out", "lock") and not calls:
            calls.append(path)
            path.unlink()  # the holder of a moment ago
        return stat(path, **named)

    monkeypatch.setattr(os, "stat", removed_once)
    with locked(tmp_path / "out"):
        assert calls
        refused("output.locked", locked(tmp_path / "out").__enter__)


def test_a_file_system_without_locks_is_named_and_so_is_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    found = refused("output.failed", locked(tmp_path / "out").__enter__)
    assert ".out.skillpack-lock cannot be locked" in found.message
    assert beside(tmp_path / "out", "lock").exists()


def test_a_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), locked(tmp_path / "out"):
        raise ValueError("x")
    with locked(tmp_path / "out"):
        pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    beside(tmp_path / "out", "lock").symlink_to("precious")
    refused("output.failed", locked(tmp_path / "out").__enter__)
    assert not (tmp_path / "precious").exists()


@pytest.mark.parametrize("path", ["", "/", "a/..", "a\0", "missing/out"])
def test_refuses_a_path_that_names_nothing(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkillPackError) as caught, locked(Path(path)):
        pass
    assert caught.value.code == "output.failed"


def test_names_beside_an_output_are_hidden_short_enough_and_its_own() -> None:
    names = {beside(Path("d") / ("\u00e9" * count), "partial").name for count in range(1, 128)}
    assert len(names) == 127
    assert all(name.startswith(".") and len(os.fsencode(name)) <= 255 for name in names)
