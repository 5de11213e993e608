import shutil
from pathlib import Path

import numpy as np
from builders import EXAMPLES, Plan, write_base, write_pack
from safetensors.numpy import load_file


def weights(path):
    return load_file(path / "model.safetensors")


def test_a_lossless_pack_gives_the_tuned_checkpoint_back(models, run):
    outcome = run("apply", models.base, models.lossless)
    assert outcome.code == 0
    assert "7: 6 changed, 0 added, 0 removed" in outcome.stdout
    for name, tensor in weights(models.tuned).items():
        assert np.array_equal(tensor, weights(Path("lossless"))[name])


def test_the_default_output_is_named_as_the_pack_and_is_all_that_quiet_prints(models, run):
    outcome = run("apply", models.base, models.standard, "-q")
    assert (outcome.stdout, outcome.stderr) == ("standard\n", "")
    assert Path("standard/model.safetensors").is_file()


def test_a_file_gives_a_file(models, run):
    outcome = run("apply", models.base / "model.safetensors", models.standard, "-q", "--no-side-files")
    assert outcome.stdout == "standard.safetensors\n"
    assert Path("standard.safetensors").is_file()


def test_a_chosen_output_is_used(models, run):
    report = run("apply", models.base, models.standard, "-o", "here", "--json").json("apply")
    assert (report["out"], report["tensors"]["changed"]) == ("here", 6)
    assert Path("here").is_dir()


def test_a_dry_run_proves_and_writes_nothing(models, run, tmp_path):
    outcome = run("apply", models.base, models.standard, "--dry-run")
    assert outcome.code == 0
    assert "none, this was a dry run" in outcome.stdout
    assert run("apply", models.base, models.standard, "--dry-run", "-q").stdout == ""
    assert run("apply", models.base, models.standard, "--dry-run", "--json").json("apply")["out"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_meets_a_wrong_base_too(models, run):
    assert run("apply", models.tuned, models.standard, "--dry-run").code == 3


def test_a_wrong_base_is_refused_by_name_before_anything_appears(models, run, tmp_path):
    outcome = run("apply", models.tuned, models.standard)
    assert outcome.code == 3
    assert "tensor 'lm_head.weight': not the base of this pack: 6 of 7 tensors differ" in outcome.stderr
    assert "hint: " in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_json_when_json_was_asked_for(models, run):
    outcome = run("apply", models.tuned, models.standard, "--json")
    assert outcome.json("error")["error"]["code"] == "base.content"
    assert outcome.stdout == ""


def test_an_existing_output_is_refused_without_force(models, run):
    Path("standard").mkdir()
    Path("standard/precious").write_text("kept")
    refused = run("apply", models.base, models.standard)
    assert (refused.code, Path("standard/precious").read_text()) == (5, "kept")
    assert "--force" in refused.stderr
    assert run("apply", models.base, models.standard, "--force").code == 0
    assert not Path("standard/precious").exists()


def test_force_does_not_replace_a_file_by_a_folder_and_is_not_suggested_again(models, run):
    Path("standard").write_text("precious")
    outcome = run("apply", models.base, models.standard, "--force")
    assert (outcome.code, Path("standard").read_text()) == (5, "precious")
    assert "--force" not in outcome.stderr


def test_packs_build_on_each_other(models, make_checkpoint, convert, run):
    third = make_checkpoint("third", {**weights(models.tuned), "new.weight": np.ones(3, np.float32)})
    assert convert(models.tuned, third, "--lossless").code == 0
    assert run("apply", models.base, models.lossless, "out.skp", "-q").stdout == "out\n"
    assert "new.weight" in weights(Path("out"))
    assert run("apply", models.base, "out.skp", models.lossless, "-o", "x").code == 3


def test_scale_takes_a_share_of_the_change(models, run):
    assert run("apply", models.base, models.lossless, "-o", "half", "--scale", 0.5, "--no-side-files").code == 0
    base, tuned, half = (weights(path) for path in (models.base, models.tuned, Path("half")))
    np.testing.assert_allclose(
        half["lm_head.weight"], (base["lm_head.weight"] + tuned["lm_head.weight"]) / 2, rtol=1e-6
    )
    assert run("apply", models.base, models.lossless, "-o", "none", "--scale", "nan").code == 2


def test_a_pack_that_changes_nothing_says_so(models, convert, run):
    convert(models.base, models.base)
    assert "nothing changed: the result is the base" in run("apply", models.base, "out.skp").stdout


def test_a_pack_of_side_files_alone_does_change_something(models, convert, run, tmp_path):
    shutil.copytree(models.base, tmp_path / "told")
    (tmp_path / "told/chat_template.jinja").write_text("be rude\n")
    convert(models.base, "told")
    outcome = run("apply", models.base, "out.skp")
    assert "no tensor changed" in outcome.stdout
    assert "nothing changed" not in outcome.stdout


def test_the_difference_of_side_files_is_shown(models, run):
    outcome = run("apply", models.base, models.standard)
    assert "  -be helpful\n  +be brief\n" in outcome.stdout


def test_side_files_are_left_alone_when_unwanted(models, run):
    assert "be brief" not in run("apply", models.base, models.standard, "--no-side-files").stdout
    assert Path("standard/chat_template.jinja").read_text() == "be helpful\n"


def test_at_least_one_pack_is_needed(models, run):
    assert run("apply", models.base).code == 2


def test_a_pack_that_brings_a_configuration_which_names_code_is_applied_with_a_warning(run, tmp_path):
    plan = Plan(
        cases={"x": EXAMPLES["dense"]()[0]},
        files={"chat_template.jinja": b"x", "config.json": b'{"auto_map": {"AutoModel": "evil.Model"}}'},
    )
    (tmp_path / "base").mkdir()
    write_base(tmp_path / "base" / "model.safetensors", plan)
    write_pack(tmp_path / "p.skp", plan)
    outcome = run("apply", "base", "p.skp", "--dry-run")
    assert outcome.code == 0
    assert "warning: config.json of the pack names code to run (auto_map)" in outcome.stderr
    assert "holds a chat template" in outcome.stdout
    files = run("apply", "base", "p.skp", "--dry-run", "--json").json("apply")["side_files"]
    assert [each["notes"] for each in files] == [["chat-template"], ["names-code"]]
