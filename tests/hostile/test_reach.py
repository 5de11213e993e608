"""What a pack makes a process do: open what was named, start nothing, talk to nobody (safe.no-code, safe.no-reach).

An audit hook sees every file, module, process and socket that a run touches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from builders import full_plan, write_base, write_pack

ROOT = Path(__file__).parents[2]

# The run comes twice: what the first loads is Python's business, the second shows what a pack can reach.
RUN = """
import json, os, sys
from pathlib import Path
import skillpack_format as skp

folder, seen, watching = Path(sys.argv[1]), [], False

def hook(event, arguments):
    if watching:
        seen.append((event, [repr(each) if not isinstance(each, str) else each for each in arguments]))

def work(name):
    skp.inspect(folder / "p.skp", side_files=True)
    skp.validate(folder / "p.skp", base=folder / "base", deep=True)
    skp.apply(folder / "base", [folder / "p.skp"], folder / name)

sys.addaudithook(hook)
work("warm")
watching = True
work("out")
watching = False
print(json.dumps(seen))
"""
FORBIDDEN = (
    "compile", "ctypes.cdata", "exec", "import", "marshal.", "mmap.", "os.exec", "os.fork", "os.posix_spawn",
    "os.putenv", "os.spawn", "os.symlink", "os.system", "pickle.", "socket.", "subprocess.", "urllib.", "webbrowser.",
)  # fmt: skip


def test_a_run_opens_what_it_was_told_to_and_starts_nothing(tmp_path: Path) -> None:
    code = b'{"auto_map": {"AutoModel": "os.system"}, "__class__": "subprocess.Popen"}'
    names = {"os.system": "m.new", "__import__": "m.new", "../../etc/passwd": "m.new", "http://127.0.0.1:9/x": "m.new"}
    metadata = {"!!python/object": "os.system", "path": "/etc/passwd", "url": "http://127.0.0.1:9/"}
    plan = replace(full_plan(), aliases=names, files={"config.json": code, "README.md": code}, metadata=metadata)
    (tmp_path / "base").mkdir()
    write_base(tmp_path / "base" / "model.safetensors", plan)
    write_pack(tmp_path / "p.skp", plan)
    done = subprocess.run([sys.executable, "-c", RUN, tmp_path], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert [each for each in seen if each[0].startswith(FORBIDDEN)] == []
    opened = [Path(arguments[0]) for event, arguments in seen if event == "open"]
    loaded = Path("/proc/self/maps")  # where threadpoolctl looks for the libraries that have threads
    assert {path for path in opened if not path.is_relative_to(tmp_path)} <= {schema_file(), loaded}
    assert tmp_path / "p.skp" in opened
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"README.md", "config.json", "model.safetensors"}


def schema_file() -> Path:
    """What validate compares a header with: a file of the library itself."""
    import skillpack_format

    return Path(skillpack_format.__file__).parent / "schema" / "manifest.schema.json"


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
