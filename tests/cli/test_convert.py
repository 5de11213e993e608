import json
from pathlib import Path

import numpy as np
import pytest


def test_writes_a_pack_and_says_what_it_costs(models, convert):
    outcome = convert(models.base, models.tuned, "--lossless")
    assert outcome.code == 0
    assert Path("out.skp").is_file()
    assert "% of tuned" in outcome.stdout
    assert [line.split()[0] for line in outcome.stdout.splitlines() if line.endswith("exact")] != []
    assert outcome.stderr == f"hint: skillpack apply {models.base} out.skp\n"


def test_the_default_recipe_is_standard_and_its_largest_errors_are_shown(models, convert):
    outcome = convert(models.base, models.tuned)
    assert "recipe      standard" in outcome.stdout
    assert "largest errors" in outcome.stdout


@pytest.mark.parametrize("recipe", ["standard", "small", "graftllm", "lossless"])
def test_every_recipe_makes_a_valid_pack(models, convert, run, recipe):
    report = convert(models.base, models.tuned, "--recipe", recipe, "--json").json("convert")
    assert report["recipe"] == recipe
    assert run("validate", "out.skp", "--base", models.base, "--deep").code == 0


def test_lossless_is_short_for_its_recipe(models, convert):
    short = convert(models.base, models.tuned, "--lossless", "--json").json("convert")
    assert short["recipe"] == "lossless"
    assert {tensor["error"] for tensor in short["tensors"]} == {0}


def test_a_coarser_step_makes_a_smaller_pack(models, convert):
    fine, coarse = (
        convert(models.base, models.tuned, "--step", step, "--cosine", 0, "--json", "--force").json("convert")
        for step in (0.5, 4)
    )
    assert fine["recipe"] == coarse["recipe"] == "custom"
    assert coarse["bytes"]["pack"] < fine["bytes"]["pack"]


def test_parameters_of_graftllm_reach_it(models, convert):
    low, high = (
        convert(models.base, models.tuned, "--recipe", "graftllm", *options, "--json", "--force").json("convert")
        for options in (
            ("--keep", 0.01, "--rank", 0.1, "--energy", 0.1, "--bits", "2:1", "--group", 64),
            ("--keep", 1, "--rank", 1, "--energy", 1, "--bits", "8:1", "--group", 16),
        )
    )
    errors = [sum(tensor["error"] for tensor in each["tensors"]) for each in (low, high)]
    assert errors[1] < errors[0]


def test_a_tensor_named_exact_is_exact(models, convert):
    report = convert(models.base, models.tuned, "--exact", "*.q_proj.*", "--json").json("convert")
    errors = {tensor["name"]: tensor["error"] for tensor in report["tensors"]}
    assert errors["model.layers.0.self_attn.q_proj.weight"] == 0
    assert errors["model.layers.0.mlp.up_proj.weight"] > 0


def test_a_rule_of_the_user_decides_the_class(models, convert):
    report = convert(models.base, models.tuned, "--class", r".*q_proj.*=router", "--json").json("convert")
    classes = {tensor["name"]: tensor["class"] for tensor in report["tensors"]}
    assert classes["model.layers.0.self_attn.q_proj.weight"] == "router"


def test_metadata_is_kept(models, convert, run):
    assert convert(models.base, models.tuned, "--meta", "title=a = b", "--meta", "licence=").code == 0
    assert run("inspect", "out.skp", "--json").json("inspect")["metadata"] == {"licence": "", "title": "a = b"}


def test_side_files_come_along_unless_unwanted(models, convert):
    with_files = convert(models.base, models.tuned, "--json").json("convert")
    without = convert(models.base, models.tuned, "--no-side-files", "--json", "--force").json("convert")
    assert (with_files["side_files"], without["side_files"]) == (["chat_template.jinja"], [])


def test_a_configuration_that_names_code_is_left_out_with_a_warning(models, make_checkpoint, convert):
    tensors = {"x.weight": np.ones(3, np.float32)}
    config = json.dumps({"auto_map": {"AutoModel": "evil.Model"}})
    tuned = make_checkpoint("code", {"x.weight": np.zeros(3, np.float32)}, config__json=config)
    outcome = convert(make_checkpoint("plain", tensors), tuned)
    assert outcome.code == 0
    assert outcome.stderr.startswith("warning: config.json names code to run")


def test_a_change_that_is_lost_entirely_is_a_warning(models, convert):
    outcome = convert(models.base, models.tuned, "--step", 1e6)
    assert "4 tensors differ and keep nothing of their change" in outcome.stderr


def test_equal_checkpoints_make_an_empty_pack(models, convert):
    outcome = convert(models.base, models.base)
    assert outcome.code == 0
    assert "no tensor differs" in outcome.stdout


def test_quiet_prints_the_path_alone(models, convert):
    outcome = convert(models.base, models.tuned, "-q")
    assert (outcome.stdout, outcome.stderr) == ("out.skp\n", "")


def test_the_number_of_threads_changes_nothing(models, convert):
    one, three = (
        convert(models.base, models.tuned, "--threads", threads, "--force", "--json").json("convert")
        for threads in (1, 3)
    )
    assert one == three


def test_an_existing_output_is_refused_and_stays_as_it_is(models, convert):
    Path("out.skp").write_text("precious")
    outcome = convert(models.base, models.tuned)
    assert outcome.code == 5
    assert "[output.exists]\nhint: choose another -o, or replace it with --force\n" in outcome.stderr
    assert Path("out.skp").read_text() == "precious"
    assert convert(models.base, models.tuned, "--force").code == 0


def test_an_output_inside_of_an_input_is_refused(models, convert):
    assert convert(models.base, models.tuned, output=("-o", models.base / "x.skp")).code == 5


def test_nothing_is_left_behind_by_a_failure(models, make_checkpoint, convert, tmp_path):
    broken = make_checkpoint("broken", {"lm_head.weight": np.full((40, 16), np.nan, np.float32)})
    before = sorted(tmp_path.iterdir())
    assert convert(models.base, broken).code == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options",
    [
        ("--lossless", "--recipe", "small"),
        ("--lossless", "--step", "1"),
        ("--recipe", "graftllm", "--cosine", "0.5"),
        ("--recipe", "standard", "--rank", "0.5"),
        ("--bits", "8:1"),
        ("--recipe", "graftllm", "--bits", "8"),
        ("--recipe", "graftllm", "--bits", ""),
        ("--recipe", "graftllm", "--keep", "nan"),
        ("--recipe", "nonsense"),
        ("--step", "-1"),
        ("--step", "inf"),
        ("--class", "x=nonsense"),
        ("--class", "(=mlp"),
        ("--meta", "novalue"),
        ("--meta", "=value"),
        ("--meta", "a=1", "--meta", "a=2"),
        ("--threads", "0"),
        ("--frobnicate",),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(models, convert, options):
    outcome = convert(models.base, models.tuned, *options)
    assert outcome.code == 2
    assert outcome.stderr.partition("\n")[0].endswith("[usage.argument]")
    assert not Path("out.skp").exists()


@pytest.mark.parametrize("size", ["4000", "4KB", "4kb", "60%", "3.5KiB"])
def test_a_budget_in_any_form_is_kept(models, convert, size):
    outcome = convert(models.base, models.tuned, "--budget", size, "--json")
    tuned = outcome.json("convert")["bytes"]["tuned"]
    most = {"60%": int(0.6 * tuned), "3.5KiB": 3584}.get(size, 4000)
    assert outcome.json("convert")["bytes"]["pack"] <= most


@pytest.mark.parametrize("size", ["", "4 apples", "-5", "%", "5%%", "1e6", "4TB", "\x1b[1m"])
def test_a_budget_that_is_no_size_is_refused(models, convert, size):
    outcome = convert(models.base, models.tuned, "--budget", size)
    assert outcome.code == 2
    assert "no size such as" in outcome.stderr
    assert "\x1b" not in outcome.stderr


def test_a_budget_that_no_pack_meets_ends_with_7_and_says_what_one_does(models, convert, tmp_path):
    outcome = convert(models.base, models.tuned, "--budget", "100")
    assert outcome.code == 7
    assert "the smallest pack has" in outcome.stderr
    assert "plan.unreachable" in outcome.stderr


def test_a_bound_on_the_error_is_kept_by_what_is_made(models, convert, run):
    assert convert(models.base, models.tuned, "--max-error", "0.2", "--quiet").code == 0
    rows = [each for each in run("inspect", "out.skp", "--json").json("inspect")["tensors"] if each["norm"]]
    change = sum(each["norm"] ** 2 for each in rows)
    assert 0 < sum(each["error"] * each["norm"] ** 2 for each in rows) <= 0.2 * change * (1 + 1e-5)


def test_every_tensor_keeps_the_energy_that_was_asked_for(models, convert):
    plain = convert(models.base, models.tuned, "--energy", "0.7", "--json").json("convert")
    assert all((each["error"] or 0) <= 0.3 + 1e-6 for each in plain["tensors"])


@pytest.mark.parametrize(
    "extra",
    [("--lossless", "--budget", "5%"), ("--step", "2", "--budget", "5%"), ("--energy", "0.5", "--budget", "5%"),
     ("--energy", "2"), ("--max-error", "-1"), ("--cosine", "0.4"), ("--budget", "0")],
)  # fmt: skip
def test_goals_that_make_no_sense_together_are_usage_errors(models, convert, extra):
    assert convert(models.base, models.tuned, *extra).code == 2


def test_a_dry_run_says_what_every_tensor_gets_and_why_and_writes_nothing(models, run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plain = run("convert", "--base", models.base, "--tuned", models.tuned, "--dry-run", "--json").json("plan")
    assert all(each["reason"] and each["coding"] for each in plain["tensors"])
    text = run("convert", "--base", models.base, "--tuned", models.tuned, "--dry-run", "--budget", "4KB").stdout
    assert "nothing: a dry run" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_tells_the_most_bytes_that_the_pack_then_has(models, run, convert):
    plan = run("convert", "--base", models.base, "--tuned", models.tuned, "--dry-run", "--json", "--budget", "4KB")
    made = convert(models.base, models.tuned, "--budget", "4KB", "--json").json("convert")
    assert made["bytes"]["pack"] <= plan.json("plan")["bytes"]["pack"] <= 4000
