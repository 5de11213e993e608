"""What is installed: every package of the library, its data, and the terminal under a name of its own."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from skillpack_format import native

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


# ------------------------------------------------------------------------------------------------------- the kernel

COMPILER = shutil.which(shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0])
BUILD = "import setuptools.build_meta as made, sys; getattr(made, sys.argv[1])(sys.argv[2])"
ASK = "from skillpack_format import native; print(native.__file__, native.kernel() is not None)"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler here: numpy does the work of the kernel")
def test_the_kernel_is_built_where_there_is_a_compiler():
    assert native.kernel() is not None, "_kernel is missing, or of another version: pip install -e . once more"


@pytest.fixture
def source(tmp_path):
    """The files of a package in the making."""
    pytest.importorskip("setuptools", "77", reason="building needs what pyproject.toml asks for")
    copy = tmp_path / "source"
    for name in ("skillpack_format", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def build(source, what, environment=None):
    """A wheel or a source distribution, by the build backend itself."""
    out = source.parent / what
    arguments = [sys.executable, "-c", BUILD, what, str(out)]
    subprocess.run(arguments, cwd=source, capture_output=True, check=True, env={**os.environ, **(environment or {})})
    return next(out.iterdir())


def installed(wheel, folder):
    """Where the library is, unpacked from a wheel, and whether it finds its kernel."""
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(folder)], check=True)
    paths = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    asked = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, capture_output=True, check=True, text=True, env={**os.environ, **paths}
    )
    place, found = asked.stdout.split()
    assert Path(place).is_relative_to(folder)
    return found == "True"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler here")
def test_a_wheel_brings_the_kernel(source, tmp_path):
    assert installed(build(source, "build_wheel"), tmp_path / "installed")


def test_without_a_compiler_a_wheel_is_made_all_the_same(source, tmp_path):
    nothing = {"CC": str(tmp_path / "no compiler")}
    assert not installed(build(source, "build_wheel", nothing), tmp_path / "installed")


def test_a_source_distribution_brings_what_the_kernel_is_made_from(source):
    with tarfile.open(build(source, "build_sdist")) as archive:
        assert "skillpack_format/kernel.c" in {name.partition("/")[2] for name in archive.getnames()}
