"""The function of a pair's models on held-out text, and how far a rebuilt checkpoint is from the tuned one.

For the encoder: E||f(packed) - f(tuned)||^2 / E||f(base) - f(tuned)||^2, f the sentence embedding. For the language
model: KL(tuned || packed) / KL(tuned || base), over all tokens. Both in float32, whatever the checkpoint stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import torch

from benchmarks import minilm
from benchmarks.size import causal, texts
from benchmarks.size.pairs import Pair

HELD_OUT_PAIRS: Final = 40  # a query and its answer each
CALIBRATION_PAIRS: Final = 32
CALIBRATION_WINDOWS: Final = 48


class Function(ABC):
    """The models of one pair as one module, into which any rebuilt checkpoint can be put."""

    model: Any

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def prepare(self, base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor]) -> None:
        """Compute what base and tuned say, once."""
        self._base, self._tuned = self.outputs(base), self.outputs(tuned)

    def error(self, tensors: Mapping[str, torch.Tensor]) -> float:
        """0: the tuned model; 1: as far away as the base."""
        return self.ratio(self._base, self._tuned, self.outputs(tensors))

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make the module that of ``tensors``, in float32."""
        lacks = self.model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
        missing = set(lacks.missing_keys) - {"lm_head.weight"}
        if missing or lacks.unexpected_keys:
            raise ValueError(f"a rebuilt checkpoint lacks {sorted(missing)} and has {lacks.unexpected_keys} too much")

    @abstractmethod
    def outputs(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the model of ``tensors`` says of the held-out text."""

    @abstractmethod
    def ratio(self, base: torch.Tensor, tuned: torch.Tensor, packed: torch.Tensor) -> float:
        """The function error of ``packed``."""

    @abstractmethod
    def calibrate(self) -> list[Any]:
        """Batches of training text for ``forward``: nothing that is held out."""

    @abstractmethod
    def forward(self, batch: Any) -> torch.Tensor:
        """What the present module says of a batch, with gradients."""


class Encoder(Function):
    """Mean-pooled sentence embeddings of MiniLM."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.model, self.tokenizer = minilm.load(pair.base)
        data = minilm.harvest() if pair.held_out == "functions" else texts.declarations()
        self.train = _texts(data[0][:CALIBRATION_PAIRS])
        self.held_out = _texts(data[1][:HELD_OUT_PAIRS])

    def outputs(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.put(tensors)
        return minilm.embed_all(self.model, self.tokenizer, self.held_out)

    def ratio(self, base: torch.Tensor, tuned: torch.Tensor, packed: torch.Tensor) -> float:
        return minilm.error_ratio(base, tuned, packed)

    def calibrate(self) -> list[Any]:
        return [self.train[start : start + 16] for start in range(0, len(self.train), 16)]

    def forward(self, batch: Any) -> torch.Tensor:
        return minilm.embed(self.model, self.tokenizer, batch)


class Causal(Function):
    """Next-token distributions of the language model; its head is the embedding unless a checkpoint has one."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.model, _ = causal.load(pair.base)
        windows = causal.windows(pair.base, pair.held_out)
        self.train, self.held_out = windows[0][:CALIBRATION_WINDOWS], windows[1]

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        tied = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
        super().put(tied)
        head = tensors.get("lm_head.weight")
        embedding = self.model.model.embed_tokens.weight
        self.model.lm_head.weight = embedding if head is None else torch.nn.Parameter(head.float())

    def outputs(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.put(tensors)
        with torch.inference_mode():
            return torch.cat([self.model(part).logits.log_softmax(-1) for part in self.held_out.split(causal.BATCH)])

    def ratio(self, base: torch.Tensor, tuned: torch.Tensor, packed: torch.Tensor) -> float:
        return causal.kl_ratio(base, tuned, packed)

    def calibrate(self) -> list[Any]:
        return list(self.train.split(causal.BATCH))

    def forward(self, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = self.model(batch).logits
        return logits


def function_of(pair: Pair) -> Function:
    return Encoder(pair) if pair.kind == "encoder" else Causal(pair)


def function_error(pair: Pair, tensors: Mapping[str, torch.Tensor]) -> float:
    """The function error of one rebuilt checkpoint: for a look from outside; the benchmark prepares once a pair."""
    from safetensors.torch import load_file  # noqa: PLC0415

    function = function_of(pair)
    function.prepare(load_file(pair.base_file()), load_file(pair.tuned_file()))
    return function.error(tensors)


def _texts(pairs: list[minilm.Pair]) -> list[str]:
    return [text for pair in pairs for text in (pair.query, pair.code)]
