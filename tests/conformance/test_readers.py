"""The two readers written from the text pass every case and their own checks, with the library out of reach."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import build

READERS = build.ROOT / "readers"
SPEC = build.ROOT.parent / "spec"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="the reader js runs in Node")
ALONE = (  # the runner, in a process in which the library cannot be imported
    "import sys; sys.modules['skillpack_format'] = None; from conformance import runner; "
    "sys.exit(runner.main(sys.argv[1:]))"
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, str(READERS / "mini")], id="mini"),
        pytest.param(["node", str(READERS / "js" / "adapter.mjs")], id="js", marks=needs_node),
    ],
)
def test_a_reader_passes_every_case_without_the_library(command: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    asked = [sys.executable, "-c", ALONE, "--time", "6", "--json", str(report), "--", *command]
    subprocess.run(asked, cwd=build.ROOT.parent, capture_output=True, check=False)
    found = json.loads(report.read_bytes())
    assert [each for each in found["results"] if each["outcome"] != "pass"] == []
    assert len(found["results"]) == len(list(build.CASES.rglob("*.json")))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, str(READERS / "mini" / "selftest.py")], id="mini"),
        pytest.param(["node", str(READERS / "js" / "selftest.mjs")], id="js", marks=needs_node),
    ],
)
def test_a_reader_passes_its_own_checks(command: list[str]) -> None:
    run = subprocess.run([*command, str(SPEC)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
