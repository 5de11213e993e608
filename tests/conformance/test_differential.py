"""Generated packs mean what the oracle says, and the three readers agree about them and about damaged ones.

A sample; ``python -m conformance.differential`` asks about as many as are wanted.
"""

from __future__ import annotations

import shutil
from random import Random

import pytest
import zstandard

from conformance.differential import __main__ as differential
from conformance.differential.asked import Answer
from conformance.differential.judging import DIFFER, LAX, SAME, STAGE, agreement, stages_of
from conformance.generator import numbers, zstd
from conformance.generator.packs import generated

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="the reader js runs in Node")


@needs_node
def test_readers_agree(capsys):
    assert differential.main(["--packs", "2400", "--seed", "tests", "--workers", "2"]) == 0
    assert "0 on which" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(150))
def test_libzstd_reads_every_generated_frame(seed):
    rng = Random(seed)
    data = numbers.compressible(rng, rng.choice([1, 2, rng.randint(3, 300), rng.randint(300, 5000)]))
    frame = zstd.compressed(rng, data)
    assert zstandard.ZstdDecompressor().decompress(frame, len(data), allow_extra_data=False) == data


def test_the_same_seed_gives_the_same_packs():
    first, second = (generated(Random("a")) for _ in range(2))
    assert first.files == second.files
    assert generated(Random("b")).files != first.files


def test_generated_packs_have_every_encoding_dtype_and_kind_of_entry():
    encodings, dtypes, kinds = set(), set(), set()
    for seed in range(400):
        for entry in generated(Random(seed)).files.manifest["tensors"]:
            kinds |= {"alias"} if "alias" in entry else {("base" in entry, "result" in entry)}
            encodings |= {each["encoding"] for each in entry.get("components", [])}
            dtypes |= {entry[side]["dtype"] for side in ("base", "result") if side in entry}
    assert encodings == {"dense", "sparse", "blockq", "lowrank", "factors", "ulp"}
    assert dtypes == set(numbers.DTYPES)
    assert kinds == {(True, True), (True, False), (False, True), "alias"}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["", ""], SAME),
        (["wire.type", "wire.type"], SAME),
        (["wire.type", "wire.trailing"], STAGE),
        (["payload.frame", "integrity.result"], STAGE),
        (["wire.type", "manifest.type"], DIFFER),
        (["base.kind", "base.content"], DIFFER),
        (["base.kind", "limit.exceeded"], DIFFER),  # the base is read before it is compared
        (["", "wire.type"], DIFFER),
    ],
)
def test_how_answers_are_compared(answers, expected):
    assert agreement({str(k): Answer(code, "") for k, code in enumerate(answers)}, False) == expected


def test_other_results_and_lax_frames():
    assert agreement({"a": Answer("", "x"), "b": Answer("", "y")}, True) == DIFFER
    assert agreement({"a": Answer("", "x"), "b": Answer("payload.frame", "")}, True) == LAX
    assert agreement({"a": Answer("", "x"), "b": Answer("payload.frame", "")}, False) == DIFFER


def test_stages_are_read_from_the_specification():
    assert stages_of("framing.magic") == {1, 2}
    assert stages_of("wire.utf8") == {10}
    assert stages_of("manifest.alias") == {11, 13}
    assert stages_of("payload.code") == stages_of("integrity.chunk") == {14}
    assert stages_of("checkpoint.name") == {13}
    assert stages_of("output.exists") == set()
