"""Tables and requirement ids of the specification against the code: neither can change alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skillpack_format import container, errors, storage
from skillpack_format.dtypes import DTYPES
from skillpack_format.limits import DEFAULT_LIMITS
from skillpack_format.manifest import CLASSES
from skillpack_format.names import SIDE_FILES
from skillpack_format.problems import CODES

SPEC = Path(__file__).parents[2] / "spec"
PAGES = sorted(page for page in SPEC.rglob("*.md") if "decisions" not in page.parts)
REQUIREMENT = re.compile(r"\[`([a-z0-9.\-/]+)`\]")
FILE_CLASSES = ("framing", "wire", "manifest", "storage", "integrity", "payload", "base", "limit")


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table whose header row is ``heading``, code marks taken off."""
    lines = (SPEC / page).read_text().splitlines()
    start = lines.index(heading) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return found


def requirement_ids() -> list[str]:
    return [found for page in PAGES for found in REQUIREMENT.findall(page.read_text())]


def test_limits_are_those_of_the_text() -> None:
    assert {
        name: int(value) for name, value, _ in rows("limits.md", "| name | default | of |")
    } == DEFAULT_LIMITS.to_plain()


def test_dtypes_are_those_of_the_text() -> None:
    table = rows("numerics.md", "| name | bits | kind | add | ulp |")
    expected = [[d.name, str(d.bits), d.kind, _yes(d.is_arithmetic), _yes(d.is_ordered)] for d in DTYPES.values()]
    assert expected == table


def test_side_files_are_those_of_the_text() -> None:
    assert [name for (name,) in rows("manifest.md", "| side file |")] == list(SIDE_FILES)


def test_codes_and_their_classes_are_those_of_the_text() -> None:
    text = (SPEC / "errors.md").read_text()
    table = dict(re.findall(r"^\| `([a-z0-9.\-]+)` \| (\w+Error) \|", text, re.MULTILINE))
    assert set(table) == CODES
    assert {code: errors.CLASS_OF[code.partition(".")[0]].__name__ for code in CODES} == table


def test_exit_codes_are_those_of_the_text() -> None:
    found = {}
    for status, _, classes in rows("errors.md", "| exit | meaning | classes |"):
        for name in filter(None, (each.strip() for each in classes.split(","))):
            found[name] = int(status)
    for name, status in found.items():
        assert getattr(errors, name).exit_status == status


def test_constants_are_those_of_the_text() -> None:
    preamble = {row[3]: row for row in rows("container.md", "| offset | size | type | field | value |")}
    assert bytes.fromhex(preamble["magic"][4].replace(" ", "")) == container.MAGIC
    assert int(preamble["major"][4]) == container.MAJOR
    assert int(preamble["checksum"][0]) + int(preamble["checksum"][1]) == container.PREAMBLE_BYTES
    text = (SPEC / "storage.md").read_text()
    least, most = re.search(r"2\^k, (\d+) <= k <= (\d+)", text).groups()  # type: ignore[union-attr]
    assert (1 << int(least), 1 << int(most)) == (storage.MIN_CHUNK_BYTES, storage.MAX_CHUNK_BYTES)


def test_module_classes_are_those_of_the_text() -> None:
    row = next(row for row in rows("manifest.md", "| key | type | present | meaning |") if row[0] == "class")
    assert set(re.findall(r"[a-z]+", row[3])) - {"or", "informative"} == set(CLASSES)


def test_requirement_ids_are_unique() -> None:
    found = requirement_ids()
    assert len(found) == len(set(found)) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_must_has_an_id(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if re.search(r"\bMUST\b", line) and "RFC 2119" not in line]
    assert [line for line in lines if not REQUIREMENT.search(line)] == []


def test_every_code_about_files_is_a_requirement() -> None:
    stated = {found.partition("/")[0] for found in requirement_ids()}
    about_files = {code for code in CODES if code.partition(".")[0] in FILE_CLASSES}
    about_files |= {f"unsupported.{what}" for what in ("version", "encoding", "codec", "dtype")}
    assert about_files - stated == set()


def test_a_requirement_that_looks_like_a_code_is_one() -> None:
    words = {code.partition(".")[0] for code in CODES}
    looking = {found.partition("/")[0] for found in requirement_ids() if found.partition(".")[0] in words}
    assert looking - CODES == set()


def _yes(value: bool) -> str:
    return "yes" if value else "no"
