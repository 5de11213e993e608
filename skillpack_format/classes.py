"""Module classes: what part of a model a tensor belongs to, told from its name and shape (spec/manifest.md, "class").

A table of patterns, tried in order, first match wins; no architecture is built in. A caller puts patterns of its own
in front. The class steers a recipe and every report; applying a pack does not depend on it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from skillpack_format.errors import error
from skillpack_format.manifest import CLASSES


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose whole name matches ``pattern`` (case ignored) are of class ``tensor_class``."""

    pattern: re.Pattern[str]
    tensor_class: str


def _rule(pattern: str, tensor_class: str) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE | re.ASCII), tensor_class)


DEFAULT_RULES: Final = (
    _rule(r"(.*[._])?(\w*norm\w*|ln_?\d?|ln_f)\.(weight|bias|gamma|beta)", "norm"),
    _rule(r".*\.bias", "bias"),
    _rule(r".*(router|gate\.(weight|wg)|gate_logits|switch)[^/]*", "router"),
    _rule(r".*(experts|expert)[._].*", "expert"),
    _rule(r".*(lm_head|output_embeddings|embed_out|cls\.predictions\.decoder|^output)\.weight", "head"),
    _rule(r".*(embed|wte|wpe|tok_embeddings|shared\.weight).*", "embedding"),
    _rule(
        r".*(attn|attention|self_attn|crossattention|[._]([qkvo]|qkv|query|key|value|out)(_proj)?\.weight).*",
        "attention",
    ),
    _rule(
        r".*(mlp|ffn|feed_forward|fc\d|intermediate|dense|up_proj|down_proj|gate_proj|wi|wo|w[123]|c_fc|c_proj|pooler).*",
        "mlp",
    ),
)


def user_rule(text: str) -> Rule:
    """A rule written as ``PATTERN=CLASS``; usage.argument says what is wrong with it."""
    pattern, separator, tensor_class = text.rpartition("=")
    if not separator or tensor_class not in CLASSES:
        raise error("usage.argument", "", f"{text!r} is not PATTERN=CLASS with a class of {', '.join(CLASSES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of patterns that will mean something else in a later Python
            return _rule(pattern, tensor_class)
    except (re.error, OverflowError, RecursionError, Warning) as found:
        raise error("usage.argument", "", f"the pattern {pattern!r} is malformed: {found}") from None


def class_of(name: str, rules: Sequence[Rule] = ()) -> str:
    """The class of a tensor: the first matching rule of ``rules``, then of the table; otherwise ``other``."""
    for rule in (*rules, *DEFAULT_RULES):
        if rule.pattern.fullmatch(name):
            return rule.tensor_class
    return "other"


def module_of(name: str) -> str:
    """The module a tensor belongs to: its name up to the last dot."""
    return name.rpartition(".")[0]
