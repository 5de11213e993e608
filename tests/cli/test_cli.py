"""What every command has in common: exit codes, errors, streams, and how fast help comes."""

import contextlib
import importlib
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from skillpack_tools import cli

from skillpack_format.errors import CLASS_OF, error
from skillpack_format.problems import CODES

HEAVY = ("jsonschema", "msgpack", "numpy", "rich", "safetensors", "skillpack_format", "torch", "zstandard")


@pytest.fixture
def inspect_raises(monkeypatch):
    """Make ``inspect`` end in a given exception."""

    def set_up(found):
        def fail(*_, **__):
            raise found

        monkeypatch.setattr(importlib.import_module("skillpack_tools.cmd_inspect"), "inspect", fail)

    return set_up


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_every_command_and_loads_nothing_heavy(arguments):
    code = (
        "import sys\nfrom skillpack_tools.cli import skillpack\n"
        f"try: skillpack.main({arguments!r})\n"
        f"except SystemExit: print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "[]"
    for name in cli.COMMANDS:
        assert f"  {name} " in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_the_table_of_commands_says_what_their_own_help_says(name, run):
    command = importlib.import_module(f"skillpack_tools.cmd_{name}").command
    assert command.help.partition("\n")[0] == cli.COMMANDS[name]
    outcome = run(name, "--help")
    assert outcome.code == 0
    assert cli.COMMANDS[name] in outcome.stdout


def test_help_names_every_exit_code_of_the_specification(run):
    text = (Path(__file__).parents[2] / "spec" / "errors.md").read_text()
    listed = re.findall(r"^\| (\d+) \|", text[text.index("| exit |") :], re.MULTILINE)
    told = " ".join(run("--help").stdout.split()).partition("Exit codes: ")[2].partition(". ")[0]
    assert [each.split()[0] for each in told.split(", ") if each[0].isdigit()] == listed


def test_version(run):
    assert run("--version").stdout == "skillpack 0.1.0\n"


def test_no_command_is_a_usage_error_with_help(run):
    outcome = run()
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("Usage: skillpack ")


def test_an_unknown_command_is_a_usage_error_with_a_guess(run):
    outcome = run("conver")
    assert outcome.code == 2
    assert "convert" in outcome.stderr
    assert outcome.stderr.endswith("[usage.argument]\nhint: skillpack --help\n")


def test_usage_errors_come_as_json_too(run):
    assert run("inspect", "--json", "--nonsense").json("error")["error"]["code"] == "usage.argument"


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_ends_in_the_exit_code_of_its_class(code, run, inspect_raises):
    inspect_raises(error(code, "there", "this is wrong"))
    outcome = run("inspect", "x.skp")
    assert outcome.code == CLASS_OF[code.partition(".")[0]].exit_status
    assert outcome.stderr.splitlines()[0] == f"error: there: this is wrong [{code}]"
    assert run("inspect", "x.skp", "--json").json("error")["error"] == {
        "code": code,
        "where": "there",
        "message": "this is wrong",
    }


@pytest.mark.parametrize(
    ("found", "exit_code", "code"),
    [
        (RuntimeError("odd\x1b[31m\nthing"), 70, "internal.error"),
        (RecursionError(), 70, "internal.error"),
        (MemoryError(), 5, "resource.memory"),
        (OSError(28, "No space left on device"), 5, "output.space"),
        (OSError(5, "Input/output error"), 5, "output.failed"),
        (KeyboardInterrupt(), 130, "run.interrupted"),
        (click.FileError("x", "bad"), 2, "usage.argument"),
    ],
)
def test_whatever_else_is_raised_ends_in_one_line(found, exit_code, code, run, inspect_raises):
    inspect_raises(found)
    outcome = run("inspect", "x.skp")
    assert outcome.code == exit_code
    assert outcome.stderr.splitlines()[0].endswith(f"[{code}]")
    assert "\x1b" not in outcome.stderr
    assert run("inspect", "x.skp", "--json").json("error")["error"]["code"] == code


def test_a_traceback_comes_when_it_is_asked_for(spawn):
    assert b"Traceback" not in spawn("inspect", "nothing.skp").stderr
    assert b"Traceback" in spawn("inspect", "nothing.skp", env={"SKILLPACK_DEBUG": "1"}).stderr


def test_a_closed_pipe_ends_the_run_in_silence(models, spawn):
    reading, writing = os.pipe()
    os.close(reading)
    outcome = spawn("inspect", models.standard, stdout=writing)
    os.close(writing)
    assert (outcome.returncode, outcome.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["inspect", "PACK"], ["inspect", "PACK", "--json"], ["--help"]])
def test_a_full_disk_behind_standard_output_is_an_output_error(models, spawn, arguments):
    with open("/dev/full", "wb") as full:
        outcome = spawn(*(models.standard if each == "PACK" else each for each in arguments), stdout=full)
    assert outcome.returncode == 5
    assert b"output.space" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_exit_code_survives_a_broken_standard_error(spawn):
    with open("/dev/full", "wb") as full:
        assert spawn("inspect", "nothing.skp", stderr=full).returncode == 5


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells by /proc when the run has begun to read")
def test_an_interrupt_ends_with_130_in_one_line_and_leaves_nothing(tmp_path, command):
    big = write_sparse_checkpoint(tmp_path / "big.safetensors")
    arguments = command("convert", "--base", big, "--tuned", big, "-o", tmp_path / "out.skp", "--threads", 1)
    process = subprocess.Popen(  # background jobs of a shell start without SIGINT; no thread is running here
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    with process:
        wait_until_open(process, big)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"error: interrupted [run.interrupted]\n")
    assert [path.name for path in tmp_path.iterdir()] == [big.name]


@pytest.mark.parametrize("name", ["convert", "inspect", "validate", "apply"])
@pytest.mark.parametrize("nbytes", [0, 1, 127, 128, 5000])
def test_garbage_is_an_error_and_never_a_traceback(name, nbytes, models, run, tmp_path):
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(np.random.default_rng(nbytes).bytes(nbytes))
    arguments = {
        "convert": ["--base", garbage, "--tuned", garbage, "-o", "out.skp"],
        "inspect": [garbage],
        "validate": [garbage, "--base", garbage],
        "apply": [models.base, garbage],
    }
    outcome = run(name, *arguments[name])
    assert outcome.code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [garbage.name]


def test_weights_that_are_a_pickle_are_unsupported(models, run, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/pytorch_model.bin").write_bytes(b"\x80\x02.")
    outcome = run("convert", "--base", models.base, "--tuned", "old", "-o", "out.skp")
    assert outcome.code == 6
    assert "pickle" in outcome.stderr


def test_a_device_that_is_none_is_unsupported(models, run):
    outcome = run("apply", models.base, models.standard, "--device", "[red]abacus")
    assert outcome.code == 6
    assert "[red]abacus" in outcome.stderr


def write_sparse_checkpoint(path, tensors=64, elements=1 << 24):
    """4 GiB of zeros that take no room on disk and some seconds to hash."""
    nbytes = 4 * elements
    entries = (
        f'"t{index:02}":{{"dtype":"F32","shape":[{elements}],"data_offsets":[{index * nbytes},{(index + 1) * nbytes}]}}'
        for index in range(tensors)
    )
    header = ("{" + ",".join(entries) + "}").encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + tensors * nbytes)
    return path


def wait_until_open(process, path):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if any(os.readlink(each) == str(path) for each in Path(f"/proc/{process.pid}/fd").iterdir()):
                return
        time.sleep(0.01)
    pytest.fail("the run did not begin to read")
