"""A sample of the fuzzing: every target for a moment, and oracles that see what they are for."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from fuzz import oracles
from fuzz.mutators import mutate_pack
from fuzz.targets import Target, packs, targets
from skillpack_format.catalog import CODECS, ENCODINGS
from skillpack_format.errors import SkillPackError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", targets())
def test_only_refusals_come_out_of(name: str) -> None:
    target = targets()[name]
    tally = oracles.loop(target, target.sample, seed=1, sampled=16)
    assert tally.executions == target.sample
    assert tally.accepted > 0
    assert [(each.oracle, each.detail, each.data) for each in tally.findings] == []


def test_everything_in_the_catalogue_has_a_target() -> None:
    names = set(targets())
    assert {f"encoding {name}" for name in ENCODINGS} | {f"codec {name}" for name in CODECS} <= names
    assert len(names) >= 10


def test_a_seed_repeats_a_run() -> None:
    first, second = (oracles.loop(targets()["manifest"], 300, seed=7) for _ in range(2))
    assert (first.accepted, first.codes) == (second.accepted, second.codes)


def test_mutants_of_packs_reach_every_stage() -> None:
    tally = oracles.loop(targets()["pack"], 3000, seed=3)
    areas = {code.partition(".")[0] for code in tally.codes}
    assert {"framing", "wire", "manifest", "storage", "integrity", "payload", "limit", "unsupported"} <= areas


def test_a_mutator_takes_whatever_bytes_there_are() -> None:
    random = Random(5)
    for each in targets().values():
        for data in (b"", b"\0", random.randbytes(200), packs()[0][:150]):
            assert isinstance(each.mutate(data, random), bytes)
    assert len({mutate_pack(packs()[0], random) for _ in range(50)}) > 40


def judged(run: Callable[[bytes], bool | None]) -> list[str]:
    """The oracles that one execution of ``run`` breaks."""
    watch = oracles.Watch(Target("t", lambda: [b""], run, lambda data, random: data), sampled=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.execute(b"x")
    return [finding.oracle for finding in watch.tally.findings]


def refuse(code: str, message: str) -> Callable[[bytes], None]:
    def run(_: bytes) -> None:
        raise SkillPackError(code, "here", message)

    return run


def test_a_refusal_breaks_no_oracle() -> None:
    assert judged(refuse("wire.type", "no")) == []


@pytest.mark.parametrize("code", ["no.such-code", "resource.memory"])
def test_a_code_that_is_not_listed_and_memory_that_ran_out_are_escapes(code: str) -> None:
    assert judged(refuse(code, "no")) == ["escape"]


def test_another_exception_is_an_escape() -> None:
    assert judged(lambda data: {}[data]) == ["escape"]


def test_a_warning_is_an_escape() -> None:
    assert judged(lambda data: warnings.warn("odd", RuntimeWarning, stacklevel=1)) == ["escape"]


def test_memory_beyond_the_allowance_is_seen() -> None:
    assert judged(lambda data: bool(bytearray(1 << 21))) == ["allocation"]
    assert judged(lambda data: bool(bytearray(1 << 19))) == []


def test_an_input_that_takes_long_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "HANG_S", 0.01)
    assert judged(lambda data: bool(sum(range(2_000_000)))) == ["hang"]


@pytest.mark.parametrize(
    "deed",
    ["os.system('true')", "__import__('subprocess').run(['true'])", "__import__('pickle').loads(b'cos\\nsystem\\n.')"],
)
def test_what_no_input_may_reach_is_refused(deed: str) -> None:
    script = f"from fuzz.oracles import forbid_events\nimport os, subprocess, pickle\nforbid_events()\n{deed}"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "was reached from an input" in found.stderr


def test_memory_out_of_all_proportion_fails() -> None:
    script = "from fuzz.oracles import cap_memory\ncap_memory(1 << 28)\nbytearray(1 << 29)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )
    assert "MemoryError" in found.stderr


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="needs atheris: pip install '.[fuzz]'")
@pytest.mark.parametrize("name", ["wire", "encoding sparse"])
def test_atheris_drives_a_target(name: str, tmp_path: Path) -> None:
    """libFuzzer ends the process it runs in, so it gets one."""
    script = (
        "import sys\nfrom fuzz.guided import explore\nfrom fuzz.targets import targets\n"
        "explore(targets()[sys.argv[1]], 1, 0.3, lambda tally: print(tally.executions, tally.findings, flush=True))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, name],
        cwd=ROOT / "tests",
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    executions, _, findings = found.stdout.splitlines()[-1].partition(" ")
    assert int(executions) > 100, found.stderr
    assert findings == "[]"
