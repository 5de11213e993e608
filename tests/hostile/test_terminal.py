"""What reaches a terminal: printable ASCII and line ends, whatever a file has in its text fields (error.text)."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import Parts, copy_of, full_plan, put_together, take_apart, write_base, write_pack
from click.testing import CliRunner
from skillpack_tools.cli import skillpack

HOSTILE = {
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;aGk=\x07",
    "link": "\x1b]8;;http://x\x1b\\\\x\x1b]8;;\x1b\\\\",
    "c1": "\x9b31m\x85",
    "return": "a\rVERIFIED OK",
    "row": "a\n::error::b",
    "bidi": "\u202e\u2066",
    "markup": "[link=http://x][/bold]",
    "format": "{0.__class__} %n",
    "long": "x" * 5000 + "\x1b",
}
ASCII = re.compile(r"[\n -~]*")


def texts(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every str of a document is, keys of maps included (marked by None at the end)."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield (*path, key, None)
            yield from texts(value, (*path, key))
    elif isinstance(plain, list):
        for index, value in enumerate(plain):
            yield from texts(value, (*path, index))
    elif isinstance(plain, str):
        yield path


def put(plain: Any, path: tuple[Any, ...], text: str) -> None:
    is_key = path[-1] is None
    *above, last = path[:-1] if is_key else path
    for step in above:
        plain = plain[step]
    if is_key:
        plain[text] = plain.pop(last)
    else:
        plain[last] = text


def hostile_packs(parts: Parts, text: str) -> Iterator[tuple[str, bytes]]:
    """The pack with ``text`` in each of its text fields, in turn."""
    for document in ("manifest", "storage"):
        for path in texts(getattr(parts, document)):
            changed = copy_of(parts)
            put(getattr(changed, document), path, text)
            yield f"{document} {path}", put_together(changed)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command; all that it prints must be harmless."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> int:
        done = CliRunner().invoke(skillpack, [str(each) for each in arguments])
        for stream in (done.stdout, done.stderr):
            safe = stream.translate(RULES)
            assert ASCII.fullmatch(safe), (arguments, ascii(stream))
            assert "Traceback" not in stream
        assert done.exit_code in (0, 1, 2, 3, 4, 5, 6), (arguments, done.exit_code)
        return done.exit_code

    return invoke


RULES = dict.fromkeys(map(ord, "\u2500\u2026\u00b7\u00d7\u2192"), "-")  # what the tables of the program itself draw


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_of_a_pack_reaches_a_terminal_as_it_is(name: str, run: Callable[..., int], tmp_path: Path) -> None:
    plan = full_plan()
    parts = take_apart(write_pack(tmp_path / "p.skp", plan))
    write_base(tmp_path / "base.safetensors", plan)
    accepted = 0
    for what, blob in hostile_packs(parts, HOSTILE[name]):
        (tmp_path / "h.skp").write_bytes(blob)
        codes = [run("inspect", "h.skp"), run("validate", "h.skp", "--deep"), run("inspect", "h.skp", "--json")]
        assert len(set(codes)) <= 2, what
        accepted += codes[0] == 0
    assert accepted >= 1  # metadata may say anything


@pytest.mark.parametrize("name", HOSTILE)
def test_no_path_reaches_a_terminal_as_it_is(name: str, run: Callable[..., int], tmp_path: Path) -> None:
    text = HOSTILE[name].replace("/", "_")[:60]
    for suffix in (".skp", ".safetensors"):
        path = tmp_path / f"{text}{suffix}"
        for arguments in (
            ("inspect", path),
            ("validate", path),
            ("apply", path, path, "-o", path),
            ("apply", ".", path),
        ):
            assert run(*arguments) != 0
        path.write_bytes(b"no pack")
        assert run("inspect", path) != 0
        assert run("convert", "--base", path, "--tuned", path, "-o", tmp_path / text) != 0


def safetensors_with(header: dict[str, Any], nbytes: int) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(nbytes)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_of_a_checkpoint_reaches_a_terminal_as_it_is(
    name: str, run: Callable[..., int], tmp_path: Path
) -> None:
    text = HOSTILE[name]
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    headers = [
        {text: entry},
        {"a": {**entry, "dtype": text}},
        {"a": {**entry, text: 1}},
        {"a": entry, "__metadata__": {text: text}},
        {"a": entry, "__metadata__": {"format": text}},
    ]
    good = tmp_path / "good.safetensors"
    good.write_bytes(safetensors_with({"a": entry}, 4))
    for index, header in enumerate(headers):
        bad = tmp_path / f"{index}.safetensors"
        bad.write_bytes(safetensors_with(header, 4))
        run("convert", "--base", good, "--tuned", bad, "-o", tmp_path / f"{index}.skp", "--force")
        run("convert", "--base", bad, "--tuned", good, "-o", tmp_path / f"{index}.skp", "--force")
    folder = tmp_path / "folder"
    folder.mkdir()
    for index_text in (f'{{"weight_map": {{{json.dumps(text)}: "a.safetensors"}}}}',
                       f'{{"weight_map": {{"a": {json.dumps(text + ".safetensors")}}}}}'):  # fmt: skip
        (folder / "model.safetensors.index.json").write_text(index_text)
        assert run("convert", "--base", folder, "--tuned", good, "-o", tmp_path / "f.skp") != 0


@pytest.mark.parametrize("name", HOSTILE)
def test_no_side_file_reaches_a_terminal_as_it_is(name: str, run: Callable[..., int], tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for folder, note, data in (("base", "plain", bytes(4)), ("tuned", HOSTILE[name], b"\0\0\x80?")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(safetensors_with({"a": entry}, 0) + data)
        (tmp_path / folder / "chat_template.jinja").write_text(note)
    assert run("convert", "--base", "base", "--tuned", "tuned", "-o", "p.skp", "--lossless") == 0
    assert run("apply", "base", "p.skp", "-o", "out") == 0
    assert run("inspect", "p.skp") == 0
