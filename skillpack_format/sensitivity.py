"""How much it matters to a model that a tensor is a little wrong, told without any data.

Equal noise does unequal harm: in attention, values and the output projection pass it on, queries and keys hardly do,
for a softmax stands behind them; an error in a row of an embedding is met only by the tokens that use the row. The
figures of matrices are about the square roots of the noise that one fine-tuned MiniLM's function showed per unit of
squared weight error, MLP = 1: the roots were the safer choice. Every token meets every entry of a norm or a bias, so
theirs are many times as large (decision 0029). All steer where bytes go and nothing else; weights that a caller has
measured take their place.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PLAIN: Final = 1.0
# What a row of the head gets wrong, every token's distribution gets wrong; on one small Llama with a tied head 3 to 6
# took a quarter to a third of the bytes away at equal divergence (decision 0024)
HEAD: Final = 4.0
_TABLE_OF_TOKENS: Final = re.compile(r"(.*[._])?(embed_tokens|wte)\.weight", re.IGNORECASE)
_BY_NAME: Final = (
    (re.compile(r"(.*[._])?(q|k|query|key|q_proj|k_proj)\.weight", re.IGNORECASE), 0.45),
    (re.compile(r"(.*[._])?(v|value|v_proj)\.weight", re.IGNORECASE), 1.9),
    (re.compile(r"(.*[._])?(o|o_proj|out_proj|attention\.output\.dense|attn\.c_proj)\.weight", re.IGNORECASE), 1.4),
)
VECTOR: Final = 150.0  # of a norm or a bias: three times what was measured (decision 0029)
_BY_NAME_OF_VECTOR: Final = (
    (re.compile(r"(.*[._])?(q|k|query|key|q_proj|k_proj)\.bias", re.IGNORECASE), 3.0),
    (re.compile(r"(.*[._])?(intermediate\.dense|up_proj|gate_proj|fc1|c_fc|wi)\.bias", re.IGNORECASE), 15.0),
)


def of_vector(name: str) -> float:
    """The harm of a unit of squared error in a norm or a bias, a matrix of an MLP having 1."""
    for pattern, weight in _BY_NAME_OF_VECTOR:
        if pattern.fullmatch(name):
            return weight
    return VECTOR


def of_name(name: str) -> float:
    """The harm of a unit of squared error in a matrix, an MLP's being 1."""
    for pattern, weight in _BY_NAME:
        if pattern.fullmatch(name):
            return weight
    return PLAIN


def of_rows(delta: NDArray[Any], mean_square: float) -> float:
    """The same of a table of which every input uses one row: by the rows that take part, and by their size.

    A norm follows a table and brings its rows to unit size, and their errors with them. ``delta``: (rows, cols);
    ``mean_square``: of the table's entries in the base.
    """
    energy = np.einsum("mn,mn->m", delta, delta, dtype=np.float64)
    total = float(energy.sum())
    if not total or not mean_square:
        return PLAIN
    return float(energy @ energy) / total**2 / mean_square


def is_table_of_tokens(name: str) -> bool:
    """Whether a causal model names its table of tokens so: it is the head as well where there is no other head."""
    return _TABLE_OF_TOKENS.fullmatch(name) is not None
