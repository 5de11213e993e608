"""What a terminal sees: never the escape sequences or the markup of a file, colours only where they are wanted."""

import os
import struct
import subprocess
import threading

import numpy as np
import pytest
from skillpack_tools import render

ESC = b"\x1b"


@pytest.fixture
def on_terminal(tmp_path, command):
    """Run a command with both streams on a pseudo-terminal; returns the exit code and all it printed."""

    def run(*arguments, **environment):
        ours, theirs = os.openpty()
        printed = bytearray()

        def collect():
            while True:
                try:
                    data = os.read(ours, 1 << 16)
                except OSError:  # how Linux reports that the other side was closed
                    return
                if not data:
                    return
                printed.extend(data)

        plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
        env = {**plain, "TERM": "xterm-256color", **environment}
        reader = threading.Thread(target=collect)
        reader.start()
        process = subprocess.run(command(*arguments), cwd=tmp_path, env=env, stdout=theirs, stderr=theirs, check=False)
        os.close(theirs)
        reader.join()
        os.close(ours)
        return process.returncode, bytes(printed)

    return run


def convert_arguments(models):
    return ("convert", "--base", models.base, "--tuned", models.tuned, "-o", "out.skp")


def test_a_terminal_sees_progress_and_colours(models, on_terminal):
    code, printed = on_terminal(*convert_arguments(models))
    assert code == 0
    assert b"reading base" in printed
    assert ESC in printed


def test_a_quiet_run_shows_a_terminal_the_path_alone(models, on_terminal):
    assert on_terminal(*convert_arguments(models), "-q") == (0, b"out.skp\r\n")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_a_dumb_terminal_sees_plain_lines(models, on_terminal, environment):
    code, printed = on_terminal(*convert_arguments(models), **environment)
    assert code == 0
    assert ESC not in printed
    assert b"reading base" not in printed


def test_no_color_is_honoured(models, on_terminal):
    _, printed = on_terminal("inspect", models.standard, NO_COLOR="1")
    assert ESC not in printed
    _, printed = on_terminal("inspect", models.standard)
    assert ESC in printed


@pytest.mark.parametrize("arguments", [("inspect",), ("validate",), ("apply", "BASE")])
def test_a_pipe_sees_no_escape_sequence_and_no_progress(models, spawn, arguments):
    outcome = spawn(*(models.base if each == "BASE" else each for each in arguments), models.standard)
    assert outcome.returncode == 0
    assert ESC not in outcome.stdout + outcome.stderr
    assert outcome.stderr == b""


def test_a_pipe_gets_long_names_on_one_line(make_checkpoint, convert, run):
    name = "model." + "x" * 400 + ".weight"
    base, tuned = ({name: np.full(3, value, np.float32)} for value in (1, 2))
    convert(make_checkpoint("base", base), make_checkpoint("tuned", tuned))
    assert name in run("inspect", "out.skp").stdout


def test_an_output_that_knows_ascii_only_gets_ascii(models, spawn):
    outcome = spawn("inspect", models.standard, env={"PYTHONIOENCODING": "ascii"})
    assert outcome.returncode == 0
    assert outcome.stdout.isascii()


def test_markup_and_escape_sequences_of_a_file_are_shown_and_never_act(make_checkpoint, convert, run):
    name = "[/bold][red]x[/red].weight"
    base, tuned = ({name: np.full(3, value, np.float32)} for value in (1, 2))
    template = "\x1b]0;owned\x07[bold]\x9b31m\u202e\nsecond\rline"
    ours = make_checkpoint("base", base, chat_template__jinja="plain\n")
    assert (
        convert(
            ours, make_checkpoint("tuned", tuned, chat_template__jinja=template), "--meta", "note=\x1b[31m[red]"
        ).code
        == 0
    )
    shown = run("inspect", "out.skp").stdout
    assert name in shown
    assert "\\x1b[31m[red]" in shown
    applied = run("apply", ours, "out.skp").stdout
    assert "+\\x1b]0;owned\\x07[bold]\\x9b31m\\u202e" in applied
    assert not set("\x1b\x07\x9b\r\u202e") & set(shown + applied)


def test_json_holds_no_character_that_a_terminal_acts_on(make_checkpoint, convert, run):
    base, tuned = ({"x": np.full(3, value, np.float32)} for value in (1, 2))
    note = "note=a\x7f\x1b[31m\x9b\u202e"
    assert convert(make_checkpoint("base", base), make_checkpoint("tuned", tuned), "--meta", note).code == 0
    outcome = run("inspect", "out.skp", "--json")
    assert outcome.json("inspect")["metadata"] == {"note": note.removeprefix("note=")}
    assert set(outcome.stdout) <= {"\n", *map(chr, range(0x20, 0x7F))}


def test_a_hostile_tensor_name_is_refused_in_printable_text(run, tmp_path):
    header = b'{"a\\u001b[31m[red]":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    outcome = run("convert", "--base", path, "--tuned", path, "-o", "out.skp")
    assert outcome.code == 4
    assert "a\\x1b[31m[red]" in outcome.stderr
    assert outcome.stderr.isascii()


def test_a_path_comes_back_to_the_byte_for_programs_and_escaped_for_people(models, tmp_path, spawn, on_terminal):
    pack = os.fsencode(tmp_path) + b"/a\xff\x1b[31m.skp"
    with open(pack, "wb") as file:
        file.write(models.standard.read_bytes())
    arguments = ("apply", models.base, os.fsdecode(pack), "-q", "--force")
    assert spawn(*arguments).stdout == b"a\xff\x1b[31m\n"
    assert on_terminal(*arguments) == (0, b"a\\udcff\\x1b[31m\r\n")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (9184, "9.18 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (10**16, "10 PB"),
        (10**19, "1e+04 PB"),
    ],
)
def test_sizes_are_decimal(nbytes, text):
    assert render.size(nbytes) == text


@pytest.mark.parametrize(("part", "text"), [(1, "0.1 %"), (73, "7.3 %"), (1000, "100 %"), (97_000, "9700 %")])
def test_shares_are_percentages(part, text):
    assert render.share(part, 1000) == text
    assert render.share(part, 0) == "-"
