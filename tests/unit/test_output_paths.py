from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import refusing

from skillpack_format.errors import SkillPackError
from skillpack_format.locks import beside
from skillpack_format.output_paths import require_absent, require_not_input, require_space


@pytest.fixture(autouse=True)
def nothing_partial_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path for path in tmp_path.rglob("*") if ".skillpack-" in path.name] == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_anything_at_a_path_exists(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with refusing("output.exists"):
        require_absent(path)
    require_absent(path, overwrite=True)


def test_an_absent_path_is_absent(tmp_path: Path) -> None:
    require_absent(tmp_path / "out")


def test_space_that_is_there_is_enough(tmp_path: Path) -> None:
    require_space(tmp_path / "out", [1, 1])


def free_bytes(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    status = os.statvfs("/")
    fields = {name: getattr(status, name) for name in dir(status) if name.startswith("f_")}
    fields |= {"f_frsize": 4096, "f_bavail": nbytes // 4096}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**fields))


def test_space_is_counted_in_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 5 * 4096)
    require_space(tmp_path / "out", [1, 4096, 4097, 1, 0])
    with pytest.raises(SkillPackError, match="24576 bytes are needed, 20480 are free"):
        require_space(tmp_path / "out", [1, 4096, 4097, 1, 1])


def test_what_a_stopped_run_left_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(tmp_path / "out", "partial").mkdir()
    left = beside(tmp_path / "out", "partial") / "a"
    left.write_bytes(bytes(100_000))
    free_bytes(monkeypatch, 4096)
    require_space(tmp_path / "out", [100_000])
    os.link(left, tmp_path / "b")  # now removing it would give nothing back
    with refusing("output.space"):
        require_space(tmp_path / "out", [100_000])
    shutil.rmtree(left.parent)


def test_missing_space_is_told_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(SkillPackError, match=r"1152921504606846976 bytes are needed, \d+ are free") as caught:
        require_space(tmp_path / "out", [1 << 60])
    assert caught.value.code == "output.space"


def test_refuses_to_measure_a_missing_folder(tmp_path: Path) -> None:
    with refusing("output.failed"):
        require_space(tmp_path / "none" / "out", [1])


@pytest.mark.parametrize("output", ["base/a", "link", "hard", "base/new", "sub/../base/a", "linked/new"])
def test_refuses_an_output_that_is_an_input_or_in_one(tmp_path: Path, output: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "base" / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("base/a")
    (tmp_path / "linked").symlink_to("base")
    os.link(tmp_path / "base" / "a", tmp_path / "hard")
    with refusing("output.alias"):
        require_not_input(tmp_path / output, [tmp_path / "base", tmp_path / "base" / "a"])


def test_refuses_an_output_that_holds_an_input(tmp_path: Path) -> None:
    (tmp_path / "out" / "base").mkdir(parents=True)
    with refusing("output.alias"):
        require_not_input(tmp_path / "out", [tmp_path / "out" / "base"])


def test_refuses_an_input_that_is_the_output_to_come(tmp_path: Path) -> None:
    with refusing("output.alias"):
        require_not_input(tmp_path / "out", [tmp_path / "." / "out"])


def test_refuses_an_output_that_a_link_in_an_input_leads_to(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "b").write_bytes(b"x")
    (tmp_path / "base" / "a").symlink_to("../blob")
    (tmp_path / "base" / "b").symlink_to("../store/b")
    for output in ("blob", "store"):
        with refusing("output.alias"):
            require_not_input(tmp_path / output, [tmp_path / "base"])


@pytest.mark.parametrize("what", ["partial", "journal", "lock"])
def test_refuses_an_output_whose_working_names_are_an_input(tmp_path: Path, what: str) -> None:
    beside(tmp_path / "out", what).write_bytes(b"x")
    with refusing("output.alias"):
        require_not_input(tmp_path / "out", [beside(tmp_path / "out", what)])
    beside(tmp_path / "out", what).unlink()


def test_an_output_beside_the_inputs_is_fine(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "pack.skp").write_bytes(b"")
    require_not_input(tmp_path / "out", [tmp_path / "base", tmp_path / "pack.skp"])
