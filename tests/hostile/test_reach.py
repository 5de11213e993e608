"""What a pack makes a process do: open what was named, start nothing, talk to nobody (safe.no-code, safe.no-reach)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_packs_of_strangers_open_what_was_named_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.watched", str(tmp_path), "0", "9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bad"] == []
    assert found["cases"] > 150
    assert found["events"]["open"] > 1000
    assert set(found["ends"]) <= set("012346")
    assert found["ends"]["0"] > 100
    assert found["ends"]["4"] > 100


def test_the_watch_notices_what_it_is_there_for(tmp_path: Path) -> None:
    program = """
import os, socket, subprocess, sys
from pathlib import Path
from benchmarks.reliability.watched import Watch
watch = Watch()
watch.named = (sys.argv[1],)
watch.is_on = True
open(Path(sys.argv[1]) / "named", "w").close()
assert watch.bad == []
open("/etc/hostname").close()
subprocess.run(["true"])
socket.socket().close()
import colorama_that_nobody_named
"""
    program = program.replace("import colorama_that_nobody_named", "import pytest")
    done = subprocess.run(
        [sys.executable, "-c", program + "watch.is_on = False\nprint(*watch.bad, sep='\\n')", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in ("open '/etc/hostname'", "subprocess.Popen", "socket.", "import 'pytest'"):
        assert expected in done.stdout
