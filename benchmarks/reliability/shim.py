"""The preloaded library of ``shim.c``: built with the system's compiler, and armed from Python."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

CALLS: Final = "open close read write fsync truncate rename link unlink mkdir rmdir chmod stat list lock space".split()
MODES: Final = "count fail fail-from-here kill-before kill-after kill-torn short nothing interrupt".split()
NEVER: Final = -1
NO_TRACE: Final = -1
SOURCE: Final = Path(__file__).with_name("shim.c")
LIBRARY_VARIABLE: Final = "SKILLPACK_SHIM"


def why_not() -> str | None:
    """Why faults cannot be injected here, None where they can."""
    if sys.platform != "linux":
        return "LD_PRELOAD is the way of Linux"
    return None if _compiler() else "there is no C compiler"


def build(folder: Path) -> Path:
    """Compile the shim into ``folder``."""
    library = folder / "shim.so"
    compiler = _compiler()
    assert compiler is not None
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE), "-ldl", "-lpthread"], check=True)
    return library


def restart_under(library: Path) -> NoReturn:
    """Start this very program again with the shim before the C library."""
    environment = {**os.environ, "LD_PRELOAD": str(library), LIBRARY_VARIABLE: str(library), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - it is this program


class Shim:
    """The shim that this process runs under."""

    def __init__(self) -> None:
        library = ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
        self._arm = library.shim_arm
        self._arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int)
        self.disarm = library.shim_disarm
        self._count = library.shim_count
        self._count.restype = ctypes.c_long
        self._call = library.shim_call
        self._call.argtypes = (ctypes.c_long,)

    @staticmethod
    def is_loaded() -> bool:
        return LIBRARY_VARIABLE in os.environ

    def arm(self, folder: Path, nth: int = NEVER, mode: str = "count", number: int = 0, trace: int = NO_TRACE) -> None:
        """From now on, let the ``nth`` call (from 0) that concerns a file below ``folder`` go wrong."""
        self._arm(os.fsencode(folder) + b"/", nth, MODES.index(mode), number, trace)

    def calls(self) -> list[str]:
        """The calls counted since ``arm``."""
        return [CALLS[self._call(nth)] for nth in range(self._count())]


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
