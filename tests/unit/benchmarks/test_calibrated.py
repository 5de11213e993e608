"""The classes of ``benchmarks.size.calibrated`` are those that the data-free constants are given by."""

import re

import pytest

from benchmarks.size.calibrated import CLASSES
from skillpack_format import sensitivity

NAMES = {
    "encoder.layer.0.attention.self.query.weight": "queries and keys",
    "model.layers.0.self_attn.k_proj.weight": "queries and keys",
    "encoder.layer.0.attention.self.value.weight": "values",
    "model.layers.0.self_attn.v_proj.weight": "values",
    "encoder.layer.0.attention.output.dense.weight": "output projections",
    "model.layers.0.self_attn.o_proj.weight": "output projections",
    "encoder.layer.0.output.dense.weight": "MLP",
    "encoder.layer.0.intermediate.dense.weight": "MLP",
    "model.layers.0.mlp.down_proj.weight": "MLP",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_matrix_is_in_one_class(name, expected):
    assert [each for each, pattern in CLASSES.items() if re.fullmatch(pattern, name)] == [expected]


def test_every_class_has_one_constant():
    for each in CLASSES:
        assert len({sensitivity.of_name(name) for name, found in NAMES.items() if found == each}) == 1
