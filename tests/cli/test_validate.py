import shutil

import pytest


@pytest.fixture
def damaged(models, tmp_path):
    """A copy of the pack with some bytes near its end turned over."""
    path = tmp_path / "damaged.skp"
    data = bytearray(models.standard.read_bytes())
    for offset in (-1, -200):
        data[offset] ^= 0xFF
    path.write_bytes(data)
    return path


def test_a_good_pack_is_valid(models, run):
    outcome = run("validate", models.standard, "--base", models.base, "--deep", "--threads", 2)
    assert outcome.code == 0
    assert "header, contents, values, base" in outcome.stdout
    assert outcome.stdout.endswith("valid\n")
    assert "not valid" not in outcome.stdout


def test_json_says_what_was_checked(models, run):
    report = run("validate", models.standard, "--json").json("validate")
    assert (report["valid"], report["checked"], report["problems"]) == (True, ["header", "contents"], [])


def test_all_problems_are_listed_and_the_first_decides_the_exit_code(damaged, run):
    outcome = run("validate", damaged)
    assert outcome.code == 4
    assert outcome.stdout.count("[integrity.") == 2
    assert "not valid: 2 problem(s)" in outcome.stdout


def test_problems_come_as_json(damaged, run):
    outcome = run("validate", damaged, "--json")
    report = outcome.json("validate")
    assert outcome.code == 4
    assert (report["valid"], report["problem_count"], len(report["problems"])) == (False, 2, 2)
    assert outcome.stderr == ""


def test_a_wrong_base_ends_with_3_and_names_a_tensor(models, run):
    outcome = run("validate", models.standard, "--base", models.tuned)
    assert outcome.code == 3
    assert "tensor 'lm_head.weight': not the base of this pack: 6 of 7 tensors differ" in outcome.stdout


def test_a_missing_pack_ends_with_5(run):
    assert run("validate", "nothing.skp").code == 5


def test_a_truncated_pack_ends_with_4(models, run, tmp_path):
    path = tmp_path / "short.skp"
    shutil.copy(models.standard, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    report = run("validate", path, "--json").json("validate")
    assert [problem["code"] for problem in report["problems"]] == ["framing.truncated"]
