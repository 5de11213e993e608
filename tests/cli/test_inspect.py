import json
from pathlib import Path

import numpy as np
from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parents[2] / "spec" / "schema" / "manifest.schema.json"


def test_shows_identity_classes_encodings_and_tensors(models, run):
    outcome = run("inspect", models.standard)
    assert outcome.code == 0
    for part in ("pack id", "base", "result", "module classes", "encodings", "6 of 6 tensors, by size", "lowrank"):
        assert part in outcome.stdout
    assert outcome.stderr == ""


def test_json_has_every_tensor_whatever_top_says(models, run):
    report = run("inspect", models.standard, "--json", "--top", 1).json("inspect")
    assert len(report["tensors"]) == 6
    assert sum(row["bytes"] for row in report["classes"]) == sum(row["bytes"] for row in report["tensors"])


def test_top_and_by_choose_the_tensors_shown(models, run):
    tensors = run("inspect", models.standard, "--json").json("inspect")["tensors"]
    for by, key in (("size", "bytes"), ("error", "error")):
        worst = max(tensors, key=lambda row: row[key] or 0)["name"]
        shown = run("inspect", models.standard, "--top", 1, "--by", by).stdout
        assert f"1 of 6 tensors, by {by}" in shown
        assert worst in shown
    assert "model.layers" not in run("inspect", models.standard, "--top", 0).stdout


def test_manifest_is_the_normative_rendering(models, run):
    outcome = run("inspect", models.standard, "--manifest")
    Draft202012Validator(json.loads(SCHEMA.read_bytes())).validate(json.loads(outcome.stdout))
    assert outcome.stdout.isascii()


def test_a_file_that_can_hold_a_chat_template_is_flagged_unread(make_checkpoint, convert, run):
    tensors = {"x.weight": np.ones(3, np.float32)}
    base = make_checkpoint("base", tensors)
    files = {"tokenizer_config__json": json.dumps({"chat_template": "{{ x }}"}), "config__json": '{"a": 1}'}
    convert(base, make_checkpoint("tuned", tensors, **files))
    flags = {
        each["name"]: each["can_hold_chat_template"]
        for each in run("inspect", "out.skp", "--json").json("inspect")["side_files"]
    }
    assert flags == {"config.json": False, "tokenizer_config.json": True}
    assert run("inspect", "out.skp").stdout.count("can hold a chat template") == 1


def test_side_files_are_read_when_asked_and_what_they_bring_is_told(make_checkpoint, convert, run):
    tensors = {"x.weight": np.ones(3, np.float32)}
    base = make_checkpoint("base", tensors)
    files = {"tokenizer_config__json": json.dumps({"chat_template": "{{ x }}"}), "config__json": '{"a": 1}'}
    convert(base, make_checkpoint("tuned", tensors, **files))
    unread = run("inspect", "out.skp", "--json").json("inspect")["side_files"]
    assert [(each["can_name_code"], each["notes"]) for each in unread] == [(True, None), (True, None)]
    read = run("inspect", "out.skp", "--json", "--side-files").json("inspect")["side_files"]
    assert {each["name"]: each["notes"] for each in read} == {
        "config.json": [],
        "tokenizer_config.json": ["chat-template"],
    }
    shown = run("inspect", "out.skp", "--side-files").stdout
    assert shown.count("holds a chat template, which other programs run") == 1
    assert "can name code" not in shown


def test_an_empty_pack_says_so(models, convert, run):
    convert(models.base, models.base)
    assert "no tensor changes: the result is the base" in run("inspect", "out.skp").stdout


def test_added_removed_and_tied_tensors_are_told_apart(make_checkpoint, convert, run):
    weight, other = np.ones((4, 4), np.float32), np.full((4, 4), 2, np.float32)
    base = make_checkpoint("base", {"gone.weight": other, "kept.weight": weight, "embed.weight": weight * 3})
    tuned = make_checkpoint("tuned", {"kept.weight": weight, "embed.weight": other * 4, "lm_head.weight": other * 4})
    assert convert(base, tuned, "--lossless").code == 0
    changes = {row["name"]: row["change"] for row in run("inspect", "out.skp", "--json").json("inspect")["tensors"]}
    assert changes["gone.weight"] == "removed"
    assert changes["lm_head.weight"] in ("alias", "added")
    assert run("inspect", "out.skp").code == 0


def test_what_is_no_pack_is_refused_in_words(models, run, tmp_path):
    sketch = tmp_path / "house.skp"
    sketch.write_bytes(b"\xff\xfe\xff\x0eS\x00k\x00e\x00t\x00c\x00h\x00U\x00p\x00" * 20)
    outcome = run("inspect", sketch)
    assert outcome.code == 4
    assert "[framing.magic]\nhint: " in outcome.stderr
