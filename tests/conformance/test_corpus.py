"""The conformance corpus holds together, and the library passes it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conformance import assemble as oracle
from conformance import build, coverage, runner
from skillpack_format.problems import CODES

ROOT = Path(__file__).parents[2]
PATHS = sorted(build.CASES.rglob("*.json"))
CASES: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in PATHS]
BY_ID = {case["id"]: case for case in CASES}


def verdicts(verdict: str) -> list[dict[str, Any]]:
    return [case for case in CASES if case["expect"]["verdict"] == verdict]


def test_cases_are_valid_by_their_schema():
    schema = json.loads((build.ROOT / "schema" / "case.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    faults = [f"{case['id']}: {fault.message[:100]}" for case in CASES for fault in validator.iter_errors(case)]
    assert faults == []


def test_a_case_lies_where_its_id_says():
    assert [path.stem for path in PATHS] == [case["id"] for case in CASES]
    assert {path.parent.name for path in PATHS} == {area for area, _ in build.AREAS}


@pytest.mark.parametrize("key", ["id", "title"])
def test_no_two_cases_have_the_same(key):
    counts = Counter(case[key] for case in CASES)
    assert [each for each, count in counts.items() if count > 1] == []


def test_more_than_half_of_at_least_500_cases_reject():
    assert len(CASES) >= 500
    assert len(verdicts("reject")) > len(CASES) / 2


def test_the_corpus_is_below_10_mib():
    assert sum(path.stat().st_size for path in PATHS) < 10 << 20


def test_every_mutant_is_of_an_accepted_case():
    parents = {case["id"]: case.get("mutant_of") for case in CASES if case.get("mutant_of")}
    wrong = [mutant for mutant, of in parents.items() if BY_ID[of]["expect"]["verdict"] != "accept" or of in parents]
    assert wrong == []


def test_no_mutant_has_the_inputs_of_its_parent():
    """But where the change is one of the request."""
    same = [
        case["id"]
        for case in CASES
        if "mutant_of" in case
        and case["inputs"]["pack"] == BY_ID[case["mutant_of"]]["inputs"]["pack"]
        and not set(case["change"]) <= {"limits", "base", "layout"}
    ]
    assert same == []


def test_codes_are_those_of_the_specification():
    assert {code for case in CASES for code in case["expect"].get("codes", [])} <= CODES


def test_every_requirement_is_shown_on_both_sides_or_says_why_not():
    found = coverage.covered()
    assert sorted(set(found) - set(coverage.requirements())) == []
    assert coverage.missing(found) == []
    assert coverage.idle(found) == []


def test_the_coverage_page_is_current():
    assert coverage.PAGE.read_text() == coverage.page(coverage.covered())


def test_the_sources_make_the_case_files():
    assert build.main(["--check"]) == 0


def test_the_assembler_shares_no_code_with_the_library():
    """Nor does the runner: only the adapter of the library may import it."""
    files = [path for path in build.ROOT.rglob("*.py") if path.name != "library.py"]
    assert [path.name for path in files if "import skillpack_format" in path.read_text()] == []
    assert [path.name for path in files if "from skillpack_format" in path.read_text()] == []
    assert Path(oracle.__file__).parent == build.ROOT


def test_the_library_passes_every_case():
    report = runner.run([sys.executable, str(build.ROOT / "adapters" / "library.py")], time_factor=6)
    failed = {each.case: f"{each.outcome}: {each.detail}" for each in report.failures}
    assert failed == {}
    assert len(report.results) == len(CASES)
