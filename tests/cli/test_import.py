"""``skillpack import``: exit codes, JSON, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from deltas import write_adapter, write_archive
from torch_files import Raw, archive, glob, program, push

Q = "model.layers.0.self_attn.q_proj"


def factors(rank: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    a, b = random.standard_normal((rank, 16)), random.standard_normal((16, rank))
    return {f"{Q}.lora_A.weight": a.astype(np.float32), f"{Q}.lora_B.weight": b.astype(np.float32)}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", factors())


def test_writes_a_pack_and_says_what_it_changes(models, adapter, run):
    outcome = run("import", adapter, "--base", models.base, "-o", "out.skp")
    assert outcome.code == 0
    assert "delta       peft" in outcome.stdout
    assert f"{Q}.weight" in outcome.stdout
    assert outcome.stderr == f"hint: skillpack apply {models.base} out.skp\n"
    assert run("validate", "out.skp", "--base", models.base, "--deep").code == 0
    assert run("apply", models.base, "out.skp").code == 0


def test_json_is_what_its_schema_says(models, adapter, run):
    report = run("import", adapter, "--base", models.base, "-o", "out.skp", "--json").json("import")
    assert (report["kind"], report["pack"]) == ("peft", "out.skp")
    assert report["bytes"]["pack"] == Path("out.skp").stat().st_size
    assert [(t["name"], t["class"], t["change"], t["encodings"]) for t in report["tensors"]] == [
        (f"{Q}.weight", "attention", "changed", ["factors"])
    ]


def test_a_dry_run_writes_nothing_and_tells_the_same_id(models, adapter, run, tmp_path):
    before = sorted(tmp_path.iterdir())
    dry = run("import", adapter, "--base", models.base, "-o", "out.skp", "--dry-run", "--json").json("import")
    assert sorted(tmp_path.iterdir()) == before
    assert dry["pack"] is None
    wet = run("import", adapter, "--base", models.base, "-o", "out.skp", "--json").json("import")
    assert {**wet, "pack": None, "bytes": dry["bytes"]} == dry
    text = run("import", adapter, "--base", models.base, "-o", "out.skp", "--dry-run")
    assert "none (dry run)" in text.stdout
    assert text.stderr == ""


def test_quiet_prints_the_path_alone(models, adapter, run):
    outcome = run("import", adapter, "--base", models.base, "-o", "out.skp", "-q")
    assert (outcome.stdout, outcome.stderr) == ("out.skp\n", "")


def test_the_number_of_threads_changes_nothing(models, adapter, run):
    one, three = (
        run("import", adapter, "--base", models.base, "-o", "out.skp", "--force", "--json", "--threads", n).json(
            "import"
        )
        for n in (1, 3)
    )
    assert one == three


def test_metadata_classes_and_side_files_reach_the_pack(models, adapter, run):
    (adapter / "chat_template.jinja").write_text("be a pirate\n")
    options = ("--meta", "title=pirate", "--class", ".*q_proj.*=router", "--json")
    report = run("import", adapter, "--base", models.base, "-o", "out.skp", *options).json("import")
    assert report["side_files"] == ["chat_template.jinja"]
    assert report["tensors"][0]["class"] == "router"
    assert run("inspect", "out.skp", "--json").json("inspect")["metadata"] == {"title": "pirate"}


def test_a_configuration_that_names_code_is_left_out_with_a_warning(models, adapter, run):
    (adapter / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    outcome = run("import", adapter, "--base", models.base, "-o", "out.skp")
    assert outcome.stderr.startswith("warning: config.json names code to run")


def test_a_new_head_is_added_when_asked(models, tmp_path, run):
    adapter = write_adapter(tmp_path / "head", {**factors(), "score.weight": np.ones((2, 16), np.float32)})
    outcome = run("import", adapter, "--base", models.base, "-o", "out.skp")
    assert outcome.code == 1
    assert "[convert.unmatched]\nhint: --base must be" in outcome.stderr
    report = run("import", adapter, "--base", models.base, "-o", "out.skp", "--add-new", "--json").json("import")
    assert {t["name"]: t["change"] for t in report["tensors"]}["score.weight"] == "added"


def test_a_hostile_pickle_is_refused_with_exit_code_4(models, tmp_path, run):
    attack = Raw(glob("posix", "system") + push(("touch run",)) + b"R")
    (tmp_path / "evil.pt").write_bytes(archive(program({"w": attack})))
    outcome = run("import", "evil.pt", "--base", models.base, "-o", "out.skp", "--json")
    assert outcome.code == 4
    assert outcome.json("error")["error"]["code"] == "checkpoint.pickle"
    assert not Path("run").exists()
    assert not Path("out.skp").exists()


def test_another_base_is_refused_with_exit_code_3(models, tmp_path, run):
    tensors = {
        f"{Q}.U": np.ones((16, 2)),
        f"{Q}.S": np.ones(2),
        f"{Q}.V": np.ones((16, 2)),
        f"{Q}.base": np.ones((16, 16)),
    }
    write_archive(tmp_path / "d.pt", tensors)
    assert run("import", "d.pt", "--base", models.base, "-o", "out.skp").code == 3


@pytest.mark.parametrize("raw", [b"", b"something else", b"\x80\x02}.", b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused(models, tmp_path, run, raw):
    (tmp_path / "x.pt").write_bytes(raw)
    outcome = run("import", "x.pt", "--base", models.base, "-o", "out.skp")
    assert outcome.code in (4, 6)
    assert not Path("out.skp").exists()


def test_a_delta_that_is_not_there_is_refused(models, run):
    outcome = run("import", "nowhere", "--base", models.base, "-o", "out.skp")
    assert outcome.code == 4
    assert "[checkpoint.missing]" in outcome.stderr


def test_a_folder_that_is_no_adapter_is_refused(models, run):
    outcome = run("import", models.tuned, "--base", models.base, "-o", "out.skp")
    assert outcome.code == 6
    assert "peft, graftllm, bitdelta, wdelta" in outcome.stderr


def test_an_existing_output_is_refused_and_stays_as_it_is(models, adapter, run):
    Path("out.skp").write_text("precious")
    assert run("import", adapter, "--base", models.base, "-o", "out.skp").code == 5
    assert Path("out.skp").read_text() == "precious"
    assert run("import", adapter, "--base", models.base, "-o", "out.skp", "--force").code == 0


def test_an_output_inside_of_the_adapter_is_refused(models, adapter, run):
    assert run("import", adapter, "--base", models.base, "-o", adapter / "out.skp").code == 5


def test_nothing_is_left_behind_by_a_failure(models, tmp_path, run):
    broken = {**factors(), f"{Q}.lora_B.weight": np.full((16, 2), np.nan, np.float32)}
    adapter = write_adapter(tmp_path / "broken", broken)
    before = sorted(tmp_path.iterdir())
    assert run("import", adapter, "--base", models.base, "-o", "out.skp").code == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options", [("--kind", "gguf"), ("--class", "x=nonsense"), ("--meta", "novalue"), ("--threads", 0)]
)
def test_options_that_make_no_sense_are_usage_errors(models, adapter, run, options):
    outcome = run("import", adapter, "--base", models.base, "-o", "out.skp", *options)
    assert outcome.code == 2
    assert not Path("out.skp").exists()
