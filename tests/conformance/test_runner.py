"""The runner tells bad readers apart: one that accepts all, one that refuses all, crashers, sleepers, liars."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from conformance import build, runner

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
    assert "conforms" in capsys.readouterr().out


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
