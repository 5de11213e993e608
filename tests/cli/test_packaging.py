"""What is installed: every package of the library, its data, and the terminal under a name of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in the library from Python 3.11 on")
def test_every_package_on_disk_is_installed():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "skillpack_format").rglob("__init__.py")
    }
    assert listed == {*on_disk, "skillpack_tools"}


def test_no_module_of_the_tools_hides_one_of_python():
    """``python tools/cli.py`` puts tools/ first on the path, where tools/inspect.py would be found for inspect."""
    names = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert not names & sys.stdlib_module_names


def test_the_tools_run_from_a_checkout():
    outcome = subprocess.run([sys.executable, "-m", "tools", "--help"], cwd=ROOT, capture_output=True, check=True)
    assert b"convert" in outcome.stdout
