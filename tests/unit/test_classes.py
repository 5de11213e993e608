"""Module classes told from names."""

from __future__ import annotations

import time

import pytest
from builders import refused

from skillpack_format.classes import DEFAULT_RULES, class_of, module_of, user_rule
from skillpack_format.manifest import CLASSES

NAMES = {
    "model.embed_tokens.weight": "embedding",
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "embedding",
    "shared.weight": "embedding",
    "bert.embeddings.word_embeddings.weight": "embedding",
    "lm_head.weight": "head",
    "output.weight": "head",
    "cls.predictions.decoder.weight": "head",
    "model.norm.weight": "norm",
    "model.layers.0.input_layernorm.weight": "norm",
    "model.layers.0.self_attn.q_norm.weight": "norm",
    "transformer.h.0.ln_1.weight": "norm",
    "transformer.h.0.ln_1.bias": "norm",
    "transformer.ln_f.weight": "norm",
    "bert.embeddings.LayerNorm.weight": "norm",
    "encoder.block.0.layer.0.layer_norm.weight": "norm",
    "model.layers.0.self_attn.q_proj.bias": "bias",
    "lm_head.bias": "bias",
    "model.layers.0.self_attn.q_proj.weight": "attention",
    "transformer.h.0.attn.c_attn.weight": "attention",
    "transformer.h.0.attn.c_proj.weight": "attention",
    "encoder.layer.0.attention.output.dense.weight": "attention",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "attention",
    "model.layers.0.mlp.down_proj.weight": "mlp",
    "model.layers.0.mlp.gate_proj.weight": "mlp",
    "transformer.h.0.mlp.c_fc.weight": "mlp",
    "encoder.layer.0.intermediate.dense.weight": "mlp",
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": "mlp",
    "model.layers.0.block_sparse_moe.gate.weight": "router",
    "model.layers.0.mlp.gate.weight": "router",
    "model.layers.0.router.weight": "router",
    "model.layers.0.block_sparse_moe.experts.0.w1.weight": "expert",
    "model.layers.0.mlp.experts.gate_up_proj": "expert",
    "score.weight": "other",
    "logit_scale": "other",
    "x": "other",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_tells_the_class_from_the_name(name: str, expected: str) -> None:
    assert class_of(name) == expected


def test_every_class_of_the_table_is_known() -> None:
    assert {rule.tensor_class for rule in DEFAULT_RULES} == set(CLASSES) - {"other"}
    assert set(NAMES.values()) == set(CLASSES)


def test_a_rule_of_the_caller_comes_first_and_matches_the_whole_name() -> None:
    rules = [user_rule(r".*\.special=router"), user_rule("MODEL.*=head")]
    assert class_of("model.special", rules) == "router"
    assert class_of("model.norm.weight", rules) == "head"
    assert class_of("special", rules) == "other"


def test_a_pattern_may_hold_an_equals_sign() -> None:
    assert class_of("a=b", [user_rule("a=b=mlp")]) == "mlp"


@pytest.mark.parametrize("text", ["", "x", "x=", "x=layer", "x=MLP", "(=mlp", "[a-=mlp", "*=mlp"])
def test_refuses_a_rule_that_makes_no_sense(text: str) -> None:
    refused("usage.argument", user_rule, text)


def test_refuses_a_pattern_that_no_engine_takes() -> None:
    refused("usage.argument", user_rule, "a{99999999999999999999}=mlp")
    refused("usage.argument", user_rule, "(" * 5000 + ")" * 5000 + "=mlp")


def test_refuses_a_pattern_that_will_mean_something_else_one_day() -> None:
    refused("usage.argument", user_rule, "[[a]=mlp")  # a FutureWarning, which no user of a command should see


@pytest.mark.parametrize("name", ["a" * 512, ("norm." * 103)[:512], "_" * 512, "k" + ".q_proj" * 73, "dense" * 102])
def test_a_long_name_takes_no_time(name: str) -> None:
    start = time.perf_counter()
    class_of(name)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(("name", "module"), [("a.b.weight", "a.b"), ("weight", ""), (".x", ""), ("a.", "a")])
def test_a_module_is_the_name_up_to_the_last_dot(name: str, module: str) -> None:
    assert module_of(name) == module
