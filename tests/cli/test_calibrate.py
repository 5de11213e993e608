"""``convert --calibrate`` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import llama, save_pair, save_texts


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    torch.manual_seed(5)
    return save_pair(tmp_path_factory.mktemp("pair"), llama())


@pytest.fixture
def texts(tmp_path):
    return save_texts(tmp_path / "texts.jsonl")


def test_makes_a_valid_pack_the_same_each_time(pair, texts, convert, run):
    first = convert(*pair, "--calibrate", texts, "--json").json("convert")
    again = convert(*pair, "--calibrate", texts, "--json", "--force").json("convert")
    assert first["pack_id"] == again["pack_id"]
    assert run("validate", "out.skp", "--base", pair[0], "--deep").code == 0
    assert run("apply", pair[0], "out.skp").code == 0


def test_weights_reach_the_plan(pair, texts, run):
    """The budget is the same, and other tensors get it."""
    arguments = ("convert", "--base", pair[0], "--tuned", pair[1], "--budget", 12000, "--dry-run", "--json")
    free = run(*arguments).json("plan")
    measured = run(*arguments, "--calibrate", texts).json("plan")
    assert [each["bytes"] for each in free["tensors"]] != [each["bytes"] for each in measured["tensors"]]
    assert measured["bytes"]["pack"] <= 12000


def test_a_dry_run_writes_nothing(pair, texts, run):
    outcome = run("convert", "--base", pair[0], "--tuned", pair[1], "--calibrate", texts, "--dry-run")
    assert outcome.code == 0
    assert "nothing: a dry run" in outcome.stdout
    assert [path.name for path in Path().iterdir()] == ["texts.jsonl"]


def test_a_budget_with_a_bound_takes_texts(pair, texts, convert):
    assert convert(*pair, "--calibrate", texts, "--budget", "60%", "--max-error", 1).code == 0


def test_a_file_with_no_usable_line_is_an_error_and_there_is_no_output(pair, tmp_path, convert):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": 1}\n')
    outcome = convert(*pair, "--calibrate", path, "--json")
    assert outcome.code == 1
    problem = outcome.json("error")["error"]
    assert problem["code"] == "convert.texts"
    assert "line 1" in problem["message"]
    assert not Path("out.skp").exists()


def test_lines_left_out_are_said_in_every_report(pair, tmp_path, convert):
    path = save_texts(tmp_path / "texts.jsonl")
    path.write_text("not JSON\n" + path.read_text() + "7\n")
    said = "calibration: 2 lines, the first of them line 1, hold no text and were left out"
    assert said in convert(*pair, "--calibrate", path).stderr
    assert said in convert(*pair, "--calibrate", path, "--dry-run").stderr
    assert said in convert(*pair, "--calibrate", path, "--json", "--force").json("convert")["warnings"]


@pytest.mark.parametrize(
    "arguments",
    [("--lossless",), ("--recipe", "graftllm"), ("--step", 1), ("--energy", 0.9), ("--max-error", 0.5)],
    ids=str,
)
def test_refuses_what_texts_cannot_change(pair, texts, convert, arguments):
    outcome = convert(*pair, "--calibrate", texts, *arguments)
    assert outcome.code == 2
    assert "[usage.argument]" in outcome.stderr


def test_an_output_that_exists_is_refused_before_the_model_is_run(pair, tmp_path, convert):
    Path("out.skp").write_bytes(b"kept")
    outcome = convert(*pair, "--calibrate", tmp_path / "missing.jsonl")
    assert "[output.exists]" in outcome.stderr


def test_a_base_without_a_config_will_do_and_a_tuned_without_will_not(models, texts, convert):
    outcome = convert(models.base, models.tuned, "--calibrate", texts)
    assert outcome.code == 1
    assert "[convert.model]" in outcome.stderr


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_the_extra_it_says_what_to_install(pair, texts, package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; from skillpack_tools.cli import main; main()"
    arguments = ["convert", "--base", pair[0], "--tuned", pair[1], "-o", tmp_path / "out.skp", "--calibrate", texts]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6
    assert "[unsupported.operation]" in done.stderr
    assert "skillpack[transformers]" in done.stderr
