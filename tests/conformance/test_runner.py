"""The runner tells bad readers apart: one that accepts all, one that refuses all, crashers, sleepers, liars."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from conformance import build, runner
from conformance.assembler.draft import folder_of
from conformance.sources import folders

ONLY = ["magic-zip", "decode-new", "container-identical-validate", "container-identical-inspect", "slice-rows-0-1"]
LIBRARY = [sys.executable, str(build.ROOT / "adapters" / "library.py")]
FRAME = """
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    answer = {{"id": asked["id"], "ok": True}}
    if asked["op"] == "hello":
        answer |= {{"name": "n", "version": "1", "language": "l", "protocol": 1, "ops": {ops}, "codecs": []}}
    elif asked["op"] != "stop":
        {body}
    print(json.dumps(answer), flush=True)
    if asked["op"] == "stop":
        break
"""


@pytest.fixture
def outcomes(tmp_path):
    """Runs a reader whose work is ``body`` and counts how the cases end."""

    def count(
        body: str, ops: str = '["validate", "inspect", "decode", "slice", "apply"]', **settings: float
    ) -> Counter[str]:
        path = tmp_path / "reader.py"
        path.write_text(FRAME.format(body=body, ops=ops))
        report = runner.run([sys.executable, str(path)], ONLY, **settings)
        assert not report.is_passed
        return Counter(each.outcome for each in report.results)

    return count


def test_a_reader_that_accepts_everything(outcomes):
    assert outcomes("pass") == {"wrong": 4, "pass": 1}


def test_a_reader_that_refuses_everything(outcomes):
    body = 'answer |= {"ok": False, "class": "FramingError", "code": "framing.magic", "message": "no"}'
    assert outcomes(body) == {"wrong": 4, "pass": 1}


def test_a_reader_that_refuses_with_another_code(outcomes):
    body = 'answer |= {"ok": False, "class": "FramingError", "code": "framing.truncated", "message": "no"}'
    assert outcomes(body) == {"wrong": 4, "wrong-class": 1}


def test_a_reader_that_says_another_class_than_its_code_has(outcomes):
    body = 'answer |= {"ok": False, "class": "LimitError", "code": "framing.magic", "message": "no"}'
    assert outcomes(body)["wrong-class"] == 1


def test_a_reader_that_refuses_but_leaves_a_result(outcomes):
    body = (
        'asked.get("out") and open(asked["out"], "w").close(); answer["ok"] = False; answer["code"] = "framing.magic"'
    )
    assert outcomes(body) == {"wrong": 4, "wrong-class": 1}


@pytest.mark.parametrize(
    "body", ["os._exit(3)", 'print("[", flush=True); continue', 'answer["id"] += 1', 'answer["ok"] = 1']
)
def test_a_reader_that_crashes_or_answers_nonsense(outcomes, body):
    assert outcomes(body) == {"crash": 5}


def test_a_reader_that_sleeps(outcomes):
    assert outcomes("time.sleep(60)", time_factor=0.02) == {"hang": 5}


def test_a_reader_that_takes_much_memory(outcomes):
    assert (
        outcomes('len(bytearray(300 << 20).replace(b"1", b"")); asked["op"] != "validate" and os._exit(1)')["memory"]
        == 1
    )


def test_a_reader_that_supports_less_than_it_says(outcomes):
    assert outcomes('answer = {"id": asked["id"], "unsupported": "later"}') == {"unsupported": 5}


def test_what_a_reader_does_not_declare_is_no_failure(tmp_path):
    path = tmp_path / "reader.py"
    path.write_text(FRAME.format(body="pass", ops='["validate"]'))
    report = runner.run([sys.executable, str(path)], ["container-identical-*"])
    assert Counter(each.outcome for each in report.results) == {"pass": 1, "unsupported": 2}
    assert report.is_passed


def test_a_memory_limit_is_set(outcomes):
    assert outcomes("bytearray(2 << 30)", memory_mb=1024)["crash"] == 5


def test_an_adapter_that_cannot_be_started(capsys):
    assert runner.main(["--", "/nonexistent/adapter"]) == 2
    assert runner.main(["--", sys.executable, "-c", "pass"]) == 2
    assert "does not work" in capsys.readouterr().err


def test_reports_are_written(tmp_path: Path, capsys):
    as_json, junit = tmp_path / "report.json", tmp_path / "report.xml"
    arguments = ["--json", str(as_json), "--junit", str(junit), "--only", "magic-zip", "-v", "--", *LIBRARY]
    assert runner.main(arguments) == 0
    found = json.loads(as_json.read_text())
    assert found["passed"]
    assert found["outcomes"]["pass"] == 1
    assert Xml.parse(junit).getroot().get("failures") == "0"  # noqa: S314 - written by us
    assert "passes 1 of the 1 cases asked" in capsys.readouterr().out


READS_ALL = """
import sys
from pathlib import Path

sys.path.insert(0, {root!r})
from conformance.adapters import library

inspect = library.HANDLERS["inspect"]
library.HANDLERS["inspect"] = lambda asked, limits: (Path(asked["pack"]).read_bytes(), inspect(asked, limits))[1]
library.main()
"""


def test_a_reader_that_reads_what_it_should_not(tmp_path):
    path = tmp_path / "reader.py"
    path.write_text(READS_ALL.format(root=str(build.ROOT.parent)))
    report = runner.run([sys.executable, str(path)], ["found-inspect-reads-no-data", "container-identical-inspect"])
    assert Counter(each.outcome for each in report.results) == {"reads": 1, "pass": 1}


def case_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((build.CASES / "folders" / f"{name}.json").read_bytes())
    return found


def fill_one(out: Path) -> None:
    """What ``folder-one`` must make."""
    out.mkdir()
    for name, data in folder_of(folders.IN_ONE, ()):
        (out / name).write_bytes(data)


def fill_plain(out: Path) -> None:
    """What ``folder-plain`` may make: two shards, whatever they are called."""
    out.mkdir()
    (out / "config.json").write_bytes(folders.FILES["config.json"])
    names = sorted(folders.RESULT)
    for k, part in enumerate((names[:2], names[2:])):
        data = b"".join(folders.RESULT[name].data for name in part)
        (out / f"{k}.safetensors").write_bytes(folders.head(folders.header_of(part)) + data)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {  # what is done to a right folder; the cases that notice
    "nothing": (lambda out: None, ""),
    "a free file": (lambda out: (out / "notes.txt").write_text("free"), ""),
    "a shard of nothing": (lambda out: (out / "x.safetensors").write_bytes(b"\2" + bytes(7) + b"{}"), "one"),
    "a shard that is none": (lambda out: (out / "x.safetensors").write_bytes(bytes(8)), "one plain"),
    "tensors twice": (lambda out: shutil.copy(min(out.glob("*.safetensors")), out / "x.safetensors"), "one plain"),
    "an index": (lambda out: (out / "x.safetensors.index.json").write_text("{}"), "one"),
    "the base's side file": (lambda out: (out / "config.json").write_text("{}"), "one plain"),
    "a byte more": (lambda out: longer(min(out.glob("*.safetensors"))), "one"),
    "a file less": (lambda out: min(out.glob("*.safetensors")).unlink(), "one plain"),
    "another name": (lambda out: min(out.glob("*.safetensors")).rename(out / "x.safetensors"), "one"),
    "a folder": (lambda out: (out / "more").mkdir(), "one plain"),
    "a link": (lambda out: (out / "more").symlink_to("config.json"), "one plain"),
    "a link to the folder": (lambda out: out.symlink_to(out.rename(out.with_name("beside"))), "one plain"),
    "no folder": (shutil.rmtree, "one plain"),
}


@pytest.mark.parametrize("name", ["one", "plain"])
@pytest.mark.parametrize(("spoil", "noticed"), SPOILED.values(), ids=SPOILED)
def test_a_folder_is_looked_at(tmp_path, name, spoil, noticed):
    out = tmp_path / "out"
    {"one": fill_one, "plain": fill_plain}[name](out)
    spoil(out)
    outcome, _ = runner.judge(case_of(f"folder-{name}"), {"ok": True}, out)
    assert outcome == ("wrong" if name in noticed.split() else "pass")


def test_nothing_may_be_left_of_a_folder_that_is_refused(tmp_path):
    refusal = {"ok": False, "class": "PayloadError", "code": "payload.layout"}
    out = tmp_path / "out"
    for leave, expected in ((lambda: None, "pass"), (out.mkdir, "wrong")):
        leave()
        assert runner.judge(case_of("folder-head-gap"), refusal, out)[0] == expected
