"""The tables of the size benchmark say what was measured, and by how much a target is missed."""

import pytest

from benchmarks.size import tables
from benchmarks.size.curves import Point
from benchmarks.size.measured import NAME, Measured


@pytest.fixture
def pair():
    curves = {
        NAME: [Point("q1", 300_000, 0.01), Point("q2", 600_000, 0.001)],
        "bf16 SVD, embeddings whole (clean-room)": [Point("r=8", 2_000_000, 0.01), Point("r=32", 8_000_000, 0.001)],
        "other": [Point("o", 1_000_000, 0.005)],
    }
    entropy = [
        {"label": "q3", "nbytes": 1_200_000, "entropy": 1e6, "header": 9, "convert_seconds": 1.0, "apply_seconds": 0.5}
    ]
    exact = {NAME: 95, "zstd": 120, "ZipNN": 100}
    return Measured("pair", "bf16", "reached", 10_000_000, curves=curves, exact=exact, entropy=entropy)


def test_every_missed_target_is_said_with_its_number(pair):
    missed = tables.missed([pair])
    assert (
        "pair, error 0.01: 0.150 of the best bf16 low rank (bf16 SVD, embeddings whole (clean-room)), not 0.1."
        in missed
    )
    assert "pair, lossless: 0.950 of ZipNN, not 0.9." in missed
    assert "pair, q3: 20.0 % above the entropy of its codes, not 5 %." in missed
    assert not [line for line in missed if "best lossy peer" in line]


def test_a_met_target_is_not_named(pair):
    pair.exact[NAME] = 90
    pair.entropy[0]["entropy"] = 1_190_000.0
    pair.curves[NAME] = [Point("q1", 1_000, 0.01), Point("q2", 2_000, 0.001)]
    assert tables.missed([pair]) == []


def test_a_pack_that_never_gets_there_misses(pair):
    pair.curves[NAME] = [Point("q1", 1_000, 0.05)]
    assert "pair: no lossy pack has an error of 0.001." in tables.missed([pair])


def test_the_headline_names_the_best_peer_and_the_ratio(pair):
    line = tables.headline([pair], 0.01).splitlines()[-1]
    assert "| 0.3 MB | ≤ 1 MB, other | 0.30 |" in line
    assert "| 0.95 |" in line


def test_methods_are_listed_with_ours_first(pair):
    rows = tables.at_errors(pair).splitlines()[2:]
    assert rows[0].startswith(f"| {NAME} | 0.3 MB |")
    assert "not reached" in next(row for row in rows if row.startswith("| other"))
