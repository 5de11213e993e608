"""What a user sees of interruptions, of other runs at the same output, and of a disk that is too small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from skillpack_format.locks import beside, locked
from skillpack_format.ops import application


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def interrupt(tmp_path):
    """Run a command that gets SIGINT, as from Ctrl-C, the first time it forces a file to disk."""

    def run(*arguments):
        program = """
            import os, signal, sys
            from skillpack_tools.cli import main
            fsync = os.fsync
            os.fsync = lambda descriptor: (os.kill(os.getpid(), signal.SIGINT), fsync(descriptor))
            main()
        """
        command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return run


def test_an_interrupted_apply_keeps_its_work_says_where_and_goes_on(models, interrupt, run, tmp_path):
    arguments = ("apply", models.base, models.lossless, "-o", "out")
    stopped = interrupt(*arguments)
    assert stopped.returncode == 130
    assert "error: interrupted [run.interrupted]" in stopped.stderr
    kept = beside(tmp_path / "out", "partial")
    assert kept.name in stopped.stderr
    assert kept.is_dir()
    assert not (tmp_path / "out").exists()
    assert run(*arguments).code == 0
    whole = run("apply", models.base, models.lossless, "-o", "whole")
    assert whole.code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_an_interrupted_convert_keeps_its_work_says_where_and_goes_on(models, interrupt, run, tmp_path):
    arguments = ("convert", "--base", models.base, "--tuned", models.tuned, "-o", "p.skp", "--lossless")
    stopped = interrupt(*arguments)
    assert stopped.returncode == 130
    assert beside(tmp_path / "p.skp", "journal").name in stopped.stderr
    assert run(*arguments).code == 0
    assert (tmp_path / "p.skp").read_bytes() == models.lossless.read_bytes()
    assert os.listdir(tmp_path) == ["p.skp"]


@pytest.mark.parametrize("command", ["apply", "convert"])
def test_another_run_at_the_output_is_named(models, run, tmp_path, command):
    arguments = {
        "apply": ("apply", models.base, models.lossless, "-o", "out"),
        "convert": ("convert", "--base", models.base, "--tuned", models.tuned, "-o", "out"),
    }
    with locked(tmp_path / "out"):
        outcome = run(*arguments[command])
    assert outcome.code == 5
    assert f"out: another run (process {os.getpid()}) is writing it [output.locked]" in outcome.stderr
    assert os.listdir(tmp_path) == []


def test_apply_knows_to_the_byte_what_it_will_write(models, run, tmp_path, monkeypatch):
    asked = []
    require_space = application.require_space

    def recorded(path, sizes):
        asked.extend(sizes)
        require_space(path, asked)

    monkeypatch.setattr(application, "require_space", recorded)
    for base, out in ((models.base, "out"), (models.base / "model.safetensors", "out.safetensors")):
        asked.clear()
        assert run("apply", base, models.lossless, "-o", out, "--no-side-files").code == 0
        path = tmp_path / out
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        assert sorted(asked) == sorted(each.stat().st_size for each in files)


def test_a_disk_that_is_too_small_is_told_before_any_work(models, run, tmp_path, monkeypatch):
    status = os.statvfs(tmp_path)
    fields = [getattr(status, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")]
    small = os.statvfs_result([4096, 4096, *fields[2:4], 1, *status[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    outcome = run("apply", models.base, models.lossless, "-o", "out")
    assert outcome.code == 5
    assert "bytes are needed, 4096 are free [output.space]" in outcome.stderr
    assert os.listdir(tmp_path) == []
