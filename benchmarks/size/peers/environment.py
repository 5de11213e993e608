"""The peers' own virtual environment, made when it is first wanted: their packages never enter that of the project.

It sees the packages of the present environment, so that only the peers themselves are installed, without dependencies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.results import report

FOLDER: Final = report.ROOT / "benchmarks" / "out" / "peers"
PACKAGES: Final[Mapping[str, Sequence[str]]] = {  # by the name that is asked for: what pip is told
    "mergekit": ("mergekit==0.1.5", "peft==0.21.2", "accelerate==1.15.0", "immutables==0.21", "psutil==7.2.2"),
    "deltatensors": ("deltatensors==0.2.0",),
    "zipnn": ("zipnn==0.5.4",),  # a source distribution: needs a C compiler
}


class Absent(Exception):  # noqa: N818 - not an error: a peer that is not here is left out and named
    """A peer cannot be run here; the text says why."""


class Environment:
    """A virtual environment with whichever peers installed; ``reasons`` tells why one did not."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.reasons: dict[str, str] = {}

    def ensure(self) -> None:
        """Make the environment, and install each peer that is not there yet."""
        if not self.python.exists():
            venv.create(self.folder, symlinks=True, with_pip=False)
            site = next(self.folder.glob("lib/python*/site-packages"))
            seen = [path for path in sys.path if path.endswith("site-packages")]
            (site / "present.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
        for peer, requirements in PACKAGES.items():
            done = self.folder / f"{peer}.installed"
            if done.exists() and done.read_text(encoding="utf-8").split() == list(requirements):
                continue
            pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-deps"]
            isolated = ["--no-build-isolation"]  # setuptools is here; a build must fetch nothing more
            found = subprocess.run([*pip, *isolated, *requirements], check=False, capture_output=True, text=True)
            if found.returncode == 0:
                done.write_text("\n".join(requirements), encoding="utf-8")
            else:
                said = [line for line in found.stderr.splitlines() if line.strip()]
                self.reasons[peer] = f"pip could not install it: {said[-1] if said else 'no word why'}"
                print(f"{peer}: {self.reasons[peer]}", flush=True)

    def require(self, peer: str) -> str:
        """The version of an installed peer; Absent where it is not."""
        if not (self.folder / f"{peer}.installed").exists():
            raise Absent(self.reasons.get(peer, "not installed"))
        return PACKAGES[peer][0].partition("==")[2]

    def program(self, name: str) -> str:
        """The path of a console script of a peer."""
        path = self.folder / "bin" / name
        if not path.exists():
            raise Absent(f"{name} is not installed")
        return str(path)

    def module(self, name: str, *arguments: str) -> None:
        """Run a module of this benchmark inside the environment."""
        self.run([str(self.python), "-m", name, *arguments])

    def run(self, command: Sequence[str]) -> None:
        """Run and stay silent; Absent, with the last line of its complaint, where it fails."""
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        found = subprocess.run(
            list(command), check=False, cwd=report.ROOT, env=settings, capture_output=True, text=True
        )
        if found.returncode != 0:
            said = [line for line in (found.stderr or found.stdout).splitlines() if line.strip()]
            raise Absent(
                f"{Path(command[0]).name} ended with {found.returncode}: {said[-1] if said else 'no word why'}"
            )
