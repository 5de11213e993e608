"""A LoRA adapter as PEFT saves it: ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.

For a linear layer, A is (r, in), B is (out, r), and scaling * B A is added to the weight (out, in); where the layer
keeps its weight as (in, out), and for an embedding (vocabulary, width), the transpose of it. ``scaling`` is alpha / r,
or alpha / sqrt(r) with ``use_rslora``. A and B are carried as they are, scaling as the S between them, in float32 as
PEFT multiplies with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skillpack_format.encodings._base import Encoded, Target
from skillpack_format.errors import error, located
from skillpack_format.importers._adapter_config import AdapterConfig, read_config
from skillpack_format.importers._base import (
    Change,
    Delta,
    Factors,
    Importer,
    Rows,
    Source,
    Term,
    code_of,
    split_key,
    wrong,
)
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import Limits
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint
from skillpack_format.stores.torch_archives import TorchArchive, open_archive

CONFIG: Final = "adapter_config.json"
SAFETENSORS: Final = "adapter_model.safetensors"
PICKLE: Final = "adapter_model.bin"
_PREFIX: Final = "base_model.model."
_LINEAR: Final = ("lora_A.weight", "lora_B.weight", "lora_B.bias")
_EMBEDDING: Final = ("lora_embedding_A", "lora_embedding_B")
_TOKENS: Final = "token_adapter.trainable_tokens_delta"
_WRAPPERS: Final = ("token_adapter", "base_layer", "modules_to_save")  # modules that PEFT puts around the model's own


@dataclass(frozen=True, slots=True)
class LowRank:
    """scaling * B A for a linear layer; ``prefers_transpose`` decides where the weight's sides are equal."""

    a: Source
    b: Source
    scaling: float
    prefers_transpose: bool

    def components(self, target: Target, where: str) -> list[Encoded]:
        if len(target.shape) != 2:
            message = f"LoRA of a tensor {list(target.shape)} is not read; of matrices it is"
            raise error("unsupported.operation", where, message)
        a, b = self.a.numbers(), self.b.numbers()
        rank, inputs = a.shape
        outputs = b.shape[0]
        fits = {False: target.shape == (outputs, inputs), True: target.shape == (inputs, outputs)}
        transposed = self.prefers_transpose if fits[self.prefers_transpose] else not self.prefers_transpose
        if not fits[transposed]:
            message = f"its factors are for {outputs} x {inputs}, and the base's tensor is {list(target.shape)}"
            raise error("convert.delta", where, message)
        left, right = np.ascontiguousarray(b.T), a  # (r, out), (r, in)
        u, v = (right, left) if transposed else (left, right)
        s = np.full(rank, self.scaling, np.float32)
        return Factors(u, s, v, code_of(self.a, self.b)).components(target, where)


@dataclass(frozen=True, slots=True)
class BiasTerm:
    """scaling * ``bias``, as factors of rank 1: the same product, without a rounding of its own."""

    bias: Source
    scaling: float

    def components(self, target: Target, where: str) -> list[Encoded]:
        if target.shape != self.bias.spec.shape or len(target.shape) != 1:
            message = f"a bias of {list(self.bias.spec.shape)} for the base's tensor {list(target.shape)}"
            raise error("convert.delta", where, message)
        one, scaling = np.ones((1, 1), np.float32), np.full(1, self.scaling, np.float32)
        return Factors(one, scaling, self.bias.numbers()[None], code_of(self.bias)).components(target, where)


class Peft:
    name = "peft"

    def is_kind(self, path: Path, names: Sequence[str]) -> bool:
        return path.is_dir() and os.path.lexists(path / CONFIG)

    @contextmanager
    def open(self, path: Path, limits: Limits) -> Iterator[Delta]:
        if not path.is_dir():
            raise error("checkpoint.missing", str(path), f"an adapter of PEFT is a folder with {CONFIG}")
        config = read_config(path / CONFIG, limits)
        with _open_weights(path, limits) as weights:
            with located(str(path)):
                changes = _changes(weights, config)
            yield Delta(
                changes=changes,
                require_unchanged=weights.require_unchanged,
                folder=path,
                warnings=_warnings(path),
            )


def _open_weights(folder: Path, limits: Limits) -> Checkpoint | TorchArchive:
    """PEFT's own rule: the safetensors file where there is one, the other file else."""
    if os.path.lexists(folder / SAFETENSORS):
        return open_checkpoint(folder / SAFETENSORS, limits)
    if os.path.lexists(folder / PICKLE):
        return open_archive(folder / PICKLE, limits)
    raise error("checkpoint.missing", str(folder), f"holds neither {SAFETENSORS} nor {PICKLE}")


def _warnings(folder: Path) -> list[str]:
    both = all(os.path.lexists(folder / name) for name in (SAFETENSORS, PICKLE))
    return [f"{PICKLE} is not read, because {SAFETENSORS} is there"] if both else []


def _changes(weights: Checkpoint | TorchArchive, config: AdapterConfig) -> dict[str, Change]:
    """What every key of the adapter does, by the name of the tensor it does it to."""
    found: dict[str, dict[str, Source]] = {}
    for key in weights.specs:
        target, role = _role_of(key)
        roles = found.setdefault(target, {})
        if role in roles:
            raise wrong(key, f"it and {roles[role].key!r} say the same of {target!r}")
        roles[role] = Source(key, weights)
    return {target: _change(target, roles, config) for target, roles in found.items()}


def _role_of(key: str) -> tuple[str, str]:
    """The tensor that a key is about, and what it is to it: one of the names of LoRA, or ``whole``."""
    if not key.startswith(_PREFIX):
        raise wrong(key, f"keys of PEFT begin with {_PREFIX!r}")
    name = key.removeprefix(_PREFIX)
    module, suffix = split_key(name, (*_LINEAR, *_EMBEDDING, _TOKENS))
    if suffix == "lora_B.bias":
        return f"{_bare(module)}.bias", suffix
    if suffix:
        return f"{_bare(module)}.weight", suffix
    if "lora_" in name or "trainable_tokens" in name:
        raise error(
            "unsupported.operation", f"tensor {key!r} of the delta", "this kind of LoRA is not read; plain LoRA is"
        )
    return _bare(name), "whole"


def _bare(name: str) -> str:
    """A name of the model without the modules that PEFT puts around its own."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _change(target: str, roles: dict[str, Source], config: AdapterConfig) -> Change:
    terms: list[Term] = []
    module = target.rpartition(".")[0]
    for names in (_LINEAR[:2], _EMBEDDING):
        if not roles.keys() & set(names):
            continue
        a, b = _pair(roles, names)
        scaling = _scaling(module, a.spec.shape[0], a, config)
        terms.append(LowRank(a, b, scaling, names is _EMBEDDING or config.fan_in_fan_out))
    bias = roles.get("lora_B.bias")
    if bias is not None:
        terms.append(BiasTerm(bias, _scaling(module, config.rank(module), bias, config)))
    rows = None
    if _TOKENS in roles:
        rows = Rows(roles[_TOKENS], config.token_indices(module))
    return Change(whole=roles.get("whole"), rows=rows, terms=tuple(terms))


def _pair(roles: dict[str, Source], names: Sequence[str]) -> tuple[Source, Source]:
    for name, other in (names, names[::-1]):
        if name not in roles:
            raise wrong(roles[other].key, f"there is no {name} to go with it")
    a, b = (roles[name] for name in names)
    if len(a.spec.shape) != 2 or len(b.spec.shape) != 2:
        message = f"factors of shapes {list(a.spec.shape)} and {list(b.spec.shape)} are not read; of matrices they are"
        raise error("unsupported.operation", f"tensor {a.key!r} of the delta", message)
    if a.spec.shape[0] != b.spec.shape[1] or not a.spec.shape[0]:
        raise wrong(a.key, f"it has rank {a.spec.shape[0]}, and {b.key!r} has rank {b.spec.shape[1]}")
    return a, b


def _scaling(module: str, rank: int, at: Source, config: AdapterConfig) -> float:
    expected = config.rank(module)
    if rank != expected:
        raise wrong(at.key, f"its rank is {rank}, and {CONFIG} says {expected}")
    alpha = config.alpha(module)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


IMPORTER: Final[Importer] = Peft()
