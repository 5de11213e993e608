"""``adapter_config.json`` of PEFT, read for what decides the merged weights; any setting not known here must be off.

PEFT takes the keys of ``rank_pattern`` and ``alpha_pattern`` for regular expressions. A regular expression from a file
can take for ever, so only steps of one character each are read, and matched in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skillpack_format.errors import error, located
from skillpack_format.limits import Limits
from skillpack_format.sources import SourceFile
from skillpack_format.stores.header import parse_json_object

_READ: Final = {
    "alpha_pattern", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern",
    "trainable_token_indices", "use_rslora",
}  # fmt: skip
_NO_MATTER: Final = {  # for training, for loading, or told by the tensors themselves
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "target_modules", "task_type",
}  # fmt: skip
_PLAIN_STARTS: Final = (True, False, "eva", "gaussian", "orthogonal")  # of A and B; the base stays what it was
_DEFAULT_EMBEDDING: Final = "embed_tokens"  # what PEFT takes a bare list of token indices for
_MOST_NUMBER: Final = 1 << 53
_STEP: Final = re.compile(r"(\\d|\\\.|\.|[A-Za-z0-9_-])([*+?]?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The settings that the merged weights depend on."""

    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    fan_in_fan_out: bool
    trainable_token_indices: Mapping[str, tuple[int, ...]]

    def rank(self, module: str) -> int:
        return next((rank for key, rank in self.rank_pattern.items() if is_match(key, module)), self.r)

    def alpha(self, module: str) -> float:
        return next((alpha for key, alpha in self.alpha_pattern.items() if is_match(key, module)), self.lora_alpha)

    def token_indices(self, module: str) -> tuple[int, ...]:
        """The rows that the adapter holds of an embedding."""
        for key, indices in self.trainable_token_indices.items():
            if module == key or module.endswith(f".{key}"):
                return indices
        raise error("convert.delta", f"module {module!r}", "trainable_token_indices does not say which rows it holds")


def read_config(path: Path, limits: Limits) -> AdapterConfig:
    """The configuration at ``path``; unsupported.operation for another kind of adapter than plain LoRA."""
    with SourceFile(path) as source, located(str(path)):
        limits.require("side_file_bytes", source.size, "")
        plain = parse_json_object(source.read_at(0, source.size), "convert.delta", limits)
        _require_plain_lora(plain)
        return AdapterConfig(
            r=_integer(plain, "r", plain.get("r", 8), 1),
            lora_alpha=_number("lora_alpha", plain.get("lora_alpha", 8)),
            rank_pattern={key: _integer(plain, key, rank, 1) for key, rank in _patterns(plain, "rank_pattern").items()},
            alpha_pattern={key: _number(key, alpha) for key, alpha in _patterns(plain, "alpha_pattern").items()},
            use_rslora=_flag(plain, "use_rslora"),
            fan_in_fan_out=_flag(plain, "fan_in_fan_out"),
            trainable_token_indices=_token_indices(plain.get("trainable_token_indices")),
        )


def is_match(pattern: str, module: str) -> bool:
    """Whether PEFT's ``(.*\\.)?(pattern)$`` matches ``module``; the caller has checked the pattern."""
    steps = _STEP.findall(pattern.removeprefix("^"))
    places = {0} if pattern.startswith("^") else {0} | {at + 1 for at, char in enumerate(module) if char == "."}
    for kind, count in steps:
        more = {at + 1 for at in places if at < len(module) and _is_char(kind, module[at])}
        if count in ("*", "+"):
            places = _repeated(kind, module, more) | (places if count == "*" else set())
        else:
            places = more | places if count == "?" else more
    return len(module) in places


def _repeated(kind: str, module: str, places: set[int]) -> set[int]:
    """``places``, and wherever one may go on from them by characters of ``kind``."""
    found: set[int] = set()
    going = False
    for at in range(len(module) + 1):
        going = at in places or (going and _is_char(kind, module[at - 1]))
        if going:
            found.add(at)
    return found


def _is_char(kind: str, char: str) -> bool:
    if kind == ".":
        return True
    return char.isdigit() if kind == "\\d" else char == kind[-1]


def _require_plain_lora(plain: dict[str, Any]) -> None:
    kind = plain.get("peft_type")
    if kind != "LORA":
        raise error("unsupported.operation", "peft_type", f"{kind!r} is not read; LORA is")
    for key, value in plain.items():
        if key not in _READ | _NO_MATTER and value not in (None, False, [], {}):
            raise error(
                "unsupported.operation", key, f"an adapter with this set ({value!r}) is not read; plain LoRA is"
            )
    start = plain.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        message = f"{start!r} changes the base's weights before training, so the adapter is for another base; save it "
        raise error(
            "unsupported.operation", "init_lora_weights", message + "with path_initial_model_for_weight_conversion"
        )


def _patterns(plain: dict[str, Any], name: str) -> dict[str, Any]:
    found = plain.get(name) or {}
    if not isinstance(found, dict):
        raise error("convert.delta", name, "it must be an object of module names")
    for key in found:
        if not re.fullmatch(rf"\^?(?:{_STEP.pattern})+", key, re.ASCII):
            message = f"{key!r} is more of a regular expression than is read from a file; write the modules' names out"
            raise error("unsupported.operation", name, message)
    return found


def _token_indices(found: Any) -> dict[str, tuple[int, ...]]:
    listed = found if isinstance(found, dict) else {} if found is None else {_DEFAULT_EMBEDDING: found}
    for module, indices in listed.items():
        is_list = isinstance(indices, list) and all(type(index) is int and index >= 0 for index in indices)
        if not is_list or len(set(indices)) < len(indices):
            raise error("convert.delta", "trainable_token_indices", f"{module!r} must have a list of different rows")
    return {module: tuple(indices) for module, indices in listed.items()}


def _integer(plain: dict[str, Any], name: str, found: Any, least: int) -> int:
    if type(found) is not int or not least <= found < 1 << 31:
        raise error("convert.delta", name, f"{found!r} is not a whole number from {least} on")
    return found


def _number(name: str, found: Any) -> float:
    if type(found) not in (int, float) or not -_MOST_NUMBER <= found <= _MOST_NUMBER:
        raise error("convert.delta", name, f"{found!r} is not a number")
    return float(found)


def _flag(plain: dict[str, Any], name: str) -> bool:
    found = plain.get(name, False)
    if type(found) is not bool:
        raise error("convert.delta", name, f"{found!r} is neither true nor false")
    return found
