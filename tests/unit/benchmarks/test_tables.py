"""The tables of the size benchmark say what was measured, and by how much a target is missed."""

import pytest

from benchmarks.size import tables
from benchmarks.size.curves import Point
from benchmarks.size.measured import CALIBRATED, NAME, Measured


@pytest.fixture
def pair():
    curves = {
        NAME: [Point("q1", 300_000, 0.01), Point("q2", 600_000, 0.001)],
        "bf16 SVD, embeddings whole (clean-room)": [Point("r=8", 2_000_000, 0.01), Point("r=32", 8_000_000, 0.001)],
        "other": [Point("o", 1_000_000, 0.005)],
    }
    entropy = [
        {
            "label": "q3",
            "nbytes": 1_200_000,
            "entropy": 1e6,
            "header": 40_000,
            "convert_seconds": 1.0,
            "apply_seconds": 0.5,
        }
    ]
    exact = {NAME: 95, "zstd": 120, "ZipNN": 100}
    found = Measured("pair", "bf16", "reached", 10_000_000, curves=curves, exact=exact, entropy=entropy)
    found.noise_harm, found.by_exponent = 0.02, 92
    return found


def test_every_missed_target_is_said_with_its_number(pair):
    missed = tables.missed([pair])
    [low_rank] = [line for line in missed if line.startswith("pair, error 0.01: ")]
    assert "0.150 of the best bf16 low rank (bf16 SVD, embeddings whole (clean-room)), not 0.1." in low_rank
    assert low_rank.endswith("codes alone would be about 0.125.")  # rounding alone would do a fifth of the error
    [finer] = [line for line in missed if line.startswith("pair, error 0.003: ")]
    assert "11 % of noise at best, which does 0.0022 by itself here (as much noise as change: 0.02)." in finer
    [exact] = [line for line in missed if line.startswith("pair, lossless: 0.950 of ZipNN, not 0.9.")]
    assert exact.endswith("given the exponent the differences alone would be 0.920.")
    assert (
        "pair, q3: 20.0 % above the entropy of its codes, not 5 %; the header of this small model is 4.0 %." in missed
    )
    assert not [line for line in missed if "best lossy peer" in line]


def test_a_miss_says_what_the_codes_would_be_at_their_entropy(pair):
    pair.curves["other"] = [Point("o", 450_000, 0.01)]
    [line] = [line for line in tables.missed([pair]) if "0.667 of the best lossy peer" in line]
    assert line.endswith("At their zeroth-order entropy its codes alone would be about 0.556.")
    pair.entropy = []
    [line] = [line for line in tables.missed([pair]) if "0.667 of the best lossy peer" in line]
    assert line.endswith("(other), not 0.5.")


def test_a_met_target_is_not_named(pair):
    pair.exact[NAME] = 90
    pair.entropy[0]["entropy"] = 1_190_000.0
    pair.curves[NAME] = [Point("q1", 1_000, 0.01), Point("q2", 2_000, 0.001)]
    assert tables.missed([pair]) == []


def test_the_better_of_both_curves_counts_and_both_are_shown(pair):
    pair.curves[CALIBRATED] = [Point("q1", 200_000, 0.01), Point("q2", 700_000, 0.001)]
    assert not [line for line in tables.missed([pair]) if line.startswith("pair, error 0.01: ")]
    row = tables.ratios([pair]).splitlines()[2]
    assert "| 0.3 MB | 0.2 MB | ≤ 1 MB, other | 0.30, 0.20 | 2 MB, bf16 SVD" in row
    assert tables.headline([pair], 0.01).splitlines()[-1].startswith("| pair | 10 MB | 0.3 MB | 0.2 MB |")


def test_a_pack_that_never_gets_there_misses(pair):
    pair.curves[NAME] = [Point("q1", 1_000, 0.05)]
    assert "pair: no lossy pack has an error of 0.001." in tables.missed([pair])


def test_the_headline_names_the_best_peer_and_the_ratio(pair):
    line = tables.headline([pair], 0.01).splitlines()[-1]
    assert "| 0.3 MB |  | ≤ 1 MB, other | 0.30 |" in line
    assert "| 0.95 |" in line


def test_methods_are_listed_with_ours_first(pair):
    rows = tables.at_errors(pair).splitlines()[2:]
    assert rows[0].startswith(f"| {NAME} | 0.3 MB |")
    assert "not reached" in next(row for row in rows if row.startswith("| other"))
