"""What a user of the library may count on, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skillpack_format

REPOSITORY = Path(__file__).parents[2]

PUBLIC = {
    "ApplicationReport", "Applied", "AppliedSlice", "ApplyOptions", "AttachOptions", "Attachment", "Calibration",
    "ConversionReport", "ConvertOptions", "ImportOptions", "ImportReport", "InspectionReport", "Limits", "Pack",
    "PlanReport", "SignatureReport", "SkillPackError", "TensorInfo", "Unmerged", "UnmergedOptions", "ValidationReport",
    "apply", "attach", "calibrate", "convert", "detach", "import_delta", "inspect", "open_applied", "open_pack",
    "preview", "prove", "safe_open", "sign", "switch", "unmerged", "validate", "verify",
}  # fmt: skip


def in_a_new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_importing_loads_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "rich", "jsonschema", "click", "pickle5", "requests", "urllib3")
    code = f"import sys, skillpack_format; print([m for m in {heavy!r} if m in sys.modules])"
    assert in_a_new_process(code) == "[]\n"


def test_importing_says_nothing_and_starts_no_thread() -> None:
    assert in_a_new_process("import threading, skillpack_format; print(threading.active_count())") == "1\n"


def test_the_public_names_are_the_documented_ones() -> None:
    assert set(skillpack_format.__all__) == PUBLIC
    assert skillpack_format.__all__ == sorted(skillpack_format.__all__, key=lambda name: (name[0].islower(), name))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_described(name: str) -> None:
    found = getattr(skillpack_format, name)
    assert (inspect.getdoc(found) or "").strip()


def test_a_name_that_is_not_public_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = skillpack_format.no_such_name


def test_every_public_name_is_listed() -> None:
    assert set(dir(skillpack_format)) >= PUBLIC


def test_the_example_of_the_front_page_uses_public_names_only() -> None:
    used = set(re.findall(r"skp\.(\w+)\(", skillpack_format.__doc__ or ""))
    assert used
    assert used <= PUBLIC


@pytest.mark.parametrize("path", sorted((REPOSITORY / "skillpack_format").rglob("*.py")), ids=lambda path: path.name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
