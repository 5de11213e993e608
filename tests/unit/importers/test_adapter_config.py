"""adapter_config.json: what it decides, and patterns matched as PEFT matches them without running an expression."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import fault_of, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillpack_format.importers._adapter_config import AdapterConfig, is_match, read_config
from skillpack_format.limits import DEFAULT_LIMITS, Limits

Q = "model.layers.11.self_attn.q_proj"


def config(tmp_path: Path, **plain: Any) -> AdapterConfig:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", **plain}))
    return read_config(path, DEFAULT_LIMITS)


def test_the_defaults_are_those_of_peft(tmp_path: Path) -> None:
    assert config(tmp_path) == AdapterConfig(8, 8.0, {}, {}, False, False, {})


def test_the_first_pattern_that_matches_decides(tmp_path: Path) -> None:
    found = config(tmp_path, r=4, lora_alpha=1.5, rank_pattern={"q_proj": 2, Q: 3}, alpha_pattern={"v_proj": 9, Q: 7})
    assert (found.rank(Q), found.rank("model.v_proj"), found.alpha(Q), found.alpha("model.k")) == (2, 4, 7, 1.5)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True),
        ("_proj", False),
        ("self_attn.q_proj", True),
        (r"self_attn\.q_proj", True),
        (r"layers\.11\.self_attn\.q_proj", True),
        ("1.self_attn.q_proj", False),
        (r"layers.\d+.self_attn.q_proj", True),
        (r"layers.\d.self_attn.q_proj", False),
        ("layers.*q_proj", True),
        ("^model.layers.*.q_proj", True),
        ("^layers.11.self_attn.q_proj", False),
        ("q_projx?", True),
        ("q_proj.+", False),
        (".*", True),
    ],
)
def test_patterns_match_as_in_peft(pattern: str, matches: bool) -> None:
    assert is_match(pattern, Q) is matches
    assert bool(re.match(rf"(.*\.)?({pattern})$", Q)) is matches


STEPS = st.tuples(st.sampled_from(["a", "b", ".", r"\.", r"\d", "1"]), st.sampled_from(["", "", "*", "+", "?"]))
PATTERNS = st.tuples(st.sampled_from(["", "^"]), st.lists(STEPS, min_size=1, max_size=5)).map(
    lambda parts: parts[0] + "".join(map("".join, parts[1]))
)


@given(PATTERNS, st.text("ab.1", max_size=8))
def test_every_pattern_that_is_read_matches_as_a_regular_expression(pattern: str, module: str) -> None:
    assert is_match(pattern, module) is bool(re.match(rf"(.*\.)?({pattern})$", module))


@pytest.mark.parametrize("pattern", ["(a|b)", "(a+)+", "[ab]", "a{2}", "a$", "", "a^", "\\w", "a**", "é", "a\n"])
@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_more_of_an_expression_is_refused(tmp_path: Path, name: str, pattern: str) -> None:
    refused("unsupported.operation", config, tmp_path, **{name: {pattern: 1}})


def test_a_pattern_that_would_take_an_expression_for_ever_does_not(tmp_path: Path) -> None:
    found = config(tmp_path, rank_pattern={"a*" * 200 + "b": 2})
    assert found.rank("a" * 500) == 8


@pytest.mark.parametrize(
    "plain",
    [
        {"peft_type": "LOHA"},
        {"peft_type": None},
        {"use_dora": True},
        {"use_qalora": True},
        {"layer_replication": [[0, 4]]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"alora_invocation_tokens": [1]},
        {"megatron_config": {"a": 1}},
        {"a_setting_of_tomorrow": "on"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": ["eva"]},
    ],
)
def test_other_kinds_of_adapter_are_refused_by_the_setting(tmp_path: Path, plain: dict[str, Any]) -> None:
    found = refused("unsupported.operation", config, tmp_path, **plain)
    assert next(iter(plain)) in str(found)


@pytest.mark.parametrize(
    "plain",
    [
        {"use_dora": False, "loftq_config": {}, "megatron_core": "megatron.core", "a_setting_of_tomorrow": None},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.1},
    ],
)
def test_settings_that_do_not_matter_are_passed_over(tmp_path: Path, plain: dict[str, Any]) -> None:
    assert config(tmp_path, **plain).r == 8


@pytest.mark.parametrize(
    "plain",
    [
        {"r": 0},
        {"r": -1},
        {"r": 1.5},
        {"r": True},
        {"r": "8"},
        {"r": 1 << 40},
        {"lora_alpha": "8"},
        {"lora_alpha": None},
        {"lora_alpha": 10**400},
        {"rank_pattern": [1]},
        {"rank_pattern": {"q": 0}},
        {"alpha_pattern": {"q": []}},
        {"use_rslora": 1},
        {"fan_in_fan_out": "yes"},
        {"trainable_token_indices": 3},
        {"trainable_token_indices": [1, 1]},
        {"trainable_token_indices": [-1]},
        {"trainable_token_indices": {"wte": [1.5]}},
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, plain: dict[str, Any]) -> None:
    refused("convert.delta", config, tmp_path, **plain)


SETTINGS = st.sampled_from(
    "r lora_alpha rank_pattern alpha_pattern use_rslora fan_in_fan_out trainable_token_indices init_lora_weights "
    "use_dora target_modules something_new".split()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["q", "", "a.*b+"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q", "(", "1"]), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(SETTINGS, VALUES, max_size=4))
def test_any_settings_are_answered_in_words(tmp_path: Path, plain: dict[str, Any]) -> None:
    found = fault_of(config, tmp_path, **plain)
    assert found is None or found.code in ("convert.delta", "unsupported.operation")


def test_token_indices_are_found_by_the_end_of_the_module(tmp_path: Path) -> None:
    found = config(tmp_path, trainable_token_indices=[3, 1])
    assert found.token_indices("model.embed_tokens") == (3, 1)
    refused("convert.delta", found.token_indices, "model.wte")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"r": NaN}', b"\xff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "c.json").write_bytes(raw)
    refused("convert.delta", read_config, tmp_path / "c.json", DEFAULT_LIMITS)


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b'{"r": 1, "r": 2}')
    refused("checkpoint.duplicate", read_config, tmp_path / "c.json", DEFAULT_LIMITS)


def test_a_huge_configuration_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b" " * 100)
    refused("limit.exceeded", read_config, tmp_path / "c.json", Limits(side_file_bytes=99))
