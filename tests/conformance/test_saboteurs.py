"""The corpus notices broken readers. The whole matrix takes minutes: ``python -m conformance.saboteurs``."""

from __future__ import annotations

import pytest

from conformance import saboteurs

ALL = {each.id: each for each in saboteurs.saboteurs()}
SAMPLE = {"num-half-up": "round-*", "wire-keys-repeat": "wire-order-*", "base-prints-unchecked": "base-*"}


def test_every_saboteur_can_be_made(tmp_path):
    """Its text is there exactly once, and what comes of it is Python."""
    for each in ALL.values():
        path = saboteurs.broken(each, tmp_path) / each.file
        compile(path.read_text(), str(path), "exec")
    assert len(ALL) == len(saboteurs.saboteurs())


def test_the_page_has_them_all_and_none_survives():
    text = saboteurs.PAGE.read_text()
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(ALL)
    assert "**survives**" not in text


@pytest.mark.parametrize("name", SAMPLE)
def test_a_saboteur_is_noticed(name, tmp_path):
    cases = [SAMPLE[name]]
    whole = saboteurs.outcomes(saboteurs.MINI, cases)
    assert saboteurs.killers(ALL[name], tmp_path, whole, cases)
