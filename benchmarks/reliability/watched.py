"""What a process may do while it reads packs of strangers, watched by an audit hook: open what was named, and no more.

    python -m benchmarks.reliability.watched FOLDER PART OF    # every OFth pack of the corpus, from PART on; JSON

Each pack is inspected, validated and, where its case has a base, applied. An event that starts a program, opens a
socket, unpickles or loads a library, and any file opened outside of the named paths, is reported. Imports are allowed
where they come from Python's library or a package this project depends on.
"""

from __future__ import annotations

import json
import os
import site
import sys
import sysconfig
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, Final

import skillpack_tools
from skillpack_tools.cli import skillpack

import skillpack_format
from conformance import build

FORBIDDEN: Final = (
    "os.exec os.fork os.forkpty os.posix_spawn os.spawn os.startfile os.system subprocess.Popen pty.spawn"
    " socket. pickle. winreg. webbrowser.open urllib.Request ftplib. smtplib. sqlite3. cpython.run_ os.chown"
).split()
INTERNAL: Final = 70
LOADED: Final = "/proc/self/maps"  # where threadpoolctl looks for the libraries that have threads
WRITING: Final = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
PACKAGES: Final = tuple(os.path.dirname(each.__file__ or "") for each in (skillpack_format, skillpack_tools))
SCHEMES: Final = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
LIBRARY: Final = tuple(
    {os.path.realpath(each) + os.sep for each in (*PACKAGES, *SCHEMES, *site.getsitepackages())}
    | {os.path.realpath(each) + os.sep for each in sys.path if each.endswith("site-packages")}
)


class Watch:
    """An audit hook that judges every event while it is on; such a hook can never be taken away."""

    def __init__(self) -> None:
        self.is_on = False
        self.named: tuple[str, ...] = ()
        self.folders: tuple[str, ...] = ()  # whose names are forced to disk
        self.events: Counter[str] = Counter()
        self.bad: list[str] = []
        sys.addaudithook(self._judge)

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        self.is_on = False  # what judging itself does is not judged
        self.events[event] += 1
        if event.startswith(tuple(FORBIDDEN)):
            self.bad.append(f"{event} {arguments!r}"[:300])
        elif event == "ctypes.dlopen" and arguments[0] is not None:  # None is the C library, which is loaded already
            self.bad.append(f"{event} {arguments!r}")
        elif event in ("open", *WRITING):
            self._judge_path(event, arguments[0])
        elif event == "import" and not self._is_library(arguments[0]):
            self.bad.append(f"import {arguments[0]!r}")
        self.is_on = True

    def _judge_path(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor that is open already
        if event == "open" and path == LOADED:
            return
        real = os.path.realpath(os.fsdecode(path))
        is_library = real.startswith(LIBRARY) and event == "open"
        if not (is_library or real.startswith(self.named) or real in self.folders):
            self.bad.append(f"{event} {real!r}")

    @staticmethod
    def _is_library(name: str) -> bool:
        return name.partition(".")[0] in ALLOWED_IMPORTS


ALLOWED_IMPORTS: Final = {
    *sys.stdlib_module_names,
    *"skillpack_format skillpack_tools numpy click msgpack zstandard safetensors threadpoolctl".split(),
    *"jsonschema jsonschema_specifications referencing rpds attr attrs rich pygments markdown_it".split(),
}


def commands(case: dict[str, Any], out: Path) -> list[list[str]]:
    """What is done with the pack of a case."""
    inputs = {kind: str(build.input_path(kind, each["sha256"])) for kind, each in case["inputs"].items()}
    pack = inputs["pack"]
    found = [["inspect", pack], ["inspect", pack, "--json"], ["validate", pack, "--deep"]]
    if "base" in inputs:
        found += [["validate", pack, "--deep", "--base", inputs["base"]]]
        found += [["apply", inputs["base"], pack, "-o", str(out), "--force", "-q"]]
    return found


def run(arguments: list[str]) -> int:
    said = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            skillpack.main(arguments, prog_name="skillpack")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
        if status == INTERNAL:
            said.seek(0)
            print(said.read(), file=sys.stderr)
        return status
    return 0


def main() -> None:
    folder, part, of = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    build.ensure_inputs()
    cases = [json.loads(path.read_bytes()) for path in sorted(build.CASES.rglob("*.json"))][part::of]
    tempfile.gettempdir()
    out = folder / "out.safetensors"
    for arguments in commands(cases[0], out):
        run(arguments)  # what is loaded late is loaded now
    watch = Watch()
    watch.folders = (os.path.realpath(folder),)
    ends: Counter[str] = Counter()
    for case in cases:
        inputs = [str(build.input_path(kind, each["sha256"])) for kind, each in case["inputs"].items()]
        beside = str(folder / ".out.safetensors.skillpack-")
        watch.named = (*inputs, str(out), beside)
        for arguments in commands(case, out):
            watch.is_on = True
            ends[str(run(arguments))] += 1
            watch.is_on = False
    print(json.dumps({"cases": len(cases), "ends": ends, "events": watch.events, "bad": watch.bad[:50]}))


if __name__ == "__main__":
    main()
