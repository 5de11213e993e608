"""How much it matters to a model that a tensor is a little wrong, measured on texts.

For noise of independent entries the expected harm is the variance of an entry times the squared norm of the derivative
of all outputs by the tensor. A random projection of the outputs has, on average, a gradient of that squared norm, so
one pass forward and backward a text measures every tensor at once (Hutchinson's estimator). Outputs are compared as
their models are: distributions of tokens or classes by KL, whose second order is the Fisher metric, hidden states by
their squared distance. Only a table of embeddings is told row by row: noise lies in the rows that changed, and few did.

The model is the folder's own as transformers knows it; none of its code runs, nothing is downloaded, and its tensors
are read as a conversion reads them. They stay on disk (``loaded.lending``): values and gradients, in float32 on one
device, exist for one tensor at a time, so what has to fit into memory is the run of one text, not the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from skillpack_format.calibration import Calibration, read_texts, weights_of
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.loaded.lending import Lender, lend, read_tensor, shapes_only
from skillpack_format.progress import Progress, silent
from skillpack_format.stores.safetensors_files import Checkpoint, open_checkpoint
from skillpack_format.torch_bridge import TorchBench, free_bytes

MAX_TOKENS: Final = 256  # of one text
SEED: Final = 20251125
HELD_BYTES: Final = 1 << 28  # of parameters that a CPU, which reads files fast, keeps from one text to the next
ROWS: Final = 4096  # of a table that are widened at a time
# How a model's class name ends, and who knows such classes. A closed table: the name itself is never looked up.
KINDS: Final = (
    ("ForCausalLM", transformers.AutoModelForCausalLM),
    ("LMHeadModel", transformers.AutoModelForCausalLM),
    ("ForMaskedLM", transformers.AutoModelForMaskedLM),
    ("ForSequenceClassification", transformers.AutoModelForSequenceClassification),
    ("ForTokenClassification", transformers.AutoModelForTokenClassification),
    ("Model", transformers.AutoModel),
)
NEEDED: Final = ("config.json", "tokenizer_config.json")
# What makes transformers look elsewhere than into this folder's config and safetensors
FOREIGN: Final = ("adapter_config.json",)
_MALFORMED: Final = (  # all that transformers is known to raise of a config or tokenizer it cannot use
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def calibrate(
    base: Path,
    tuned: Path,
    file: Path,
    progress: Progress = silent,
    limits: Limits = DEFAULT_LIMITS,
    *,
    device: str = "cpu",
) -> Calibration:
    """Measure the sensitivities of the model in the folder ``tuned`` on the first texts of ``file`` (JSON lines).

    ``base`` is not run: its tables of embeddings say which rows changed. The model runs on ``device``, one of torch's.

    The figures depend on torch, transformers, the device and the number of its threads, in their last digits.

    Raises:
        ConvertError: convert.texts, no line of ``file`` can be used; convert.model, ``tuned`` is no model that can be
            run here, or its parameters are not the checkpoint's tensors.
        UnsupportedError: ``device`` is none that torch has here.
        CheckpointError: a checkpoint is malformed.
        IntegrityError: integrity.source-changed, ``tuned`` was written to meanwhile.
    """
    found = read_texts(file)
    place = TorchBench(device).device
    held = free_bytes(place) // 2 if place.type == "cuda" else HELD_BYTES
    with open_checkpoint(base, limits) as before, open_checkpoint(tuned, limits) as after:
        tokenizer = _tokenizer(tuned)
        tokens = [each for text in found.texts if (each := _tokens(tokenizer, text, tuned)).numel()]
        if not tokens:
            raise error("convert.texts", str(file), "no usable line: the tokenizer makes nothing of any text")
        with _room(place, str(tuned)):
            model = _model(tuned, Lender(after, place, held), after)
            changes = _changes(model, before, after)
            harm = _harm(model, tokens, changes, place, str(tuned), progress)
        after.require_unchanged()  # every text has read it anew
    weights = weights_of(
        harm, {name for name, each in model.named_parameters(remove_duplicate=False) if each.dim() < 2}
    )
    if not weights:
        raise error("convert.model", str(tuned), "its outputs depend on none of its matrices")
    return Calibration(weights, len(tokens), sum(each.numel() for each in tokens), found.skipped)


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, once it is clear that transformers will look nowhere else."""
    lacking = [name for name in NEEDED if not (folder / name).is_file()]
    if lacking:
        message = f"no {' and no '.join(lacking)}: calibrating runs the model, and needs its config and tokenizer there"
        raise error("convert.model", str(folder), message)
    foreign = [name for name in FOREIGN if (folder / name).exists()]
    if foreign:
        raise error("convert.model", str(folder), f"{foreign[0]} sends to another folder; merge the adapter first")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder.resolve(), local_files_only=True, trust_remote_code=False
        )
    except _MALFORMED as found:
        raise error("convert.model", str(folder), f"the tokenizer cannot be loaded: {found}") from found


def _tokens(tokenizer: Any, text: str, folder: Path) -> torch.Tensor:
    """(1, tokens), at most MAX_TOKENS and what the model was made for."""
    most = min(MAX_TOKENS, int(tokenizer.model_max_length))
    try:
        found: torch.Tensor = tokenizer(text, truncation=True, max_length=most, return_tensors="pt")["input_ids"].long()
    except _MALFORMED as problem:
        raise error("convert.model", str(folder), f"the tokenizer fails on a text: {problem}") from problem
    return found


def _model(folder: Path, lender: Lender, checkpoint: Checkpoint) -> torch.nn.Module:
    """The folder's model in float32, ready to compute; its parameters are the checkpoint's tensors, lent to it."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder.resolve(), local_files_only=True, trust_remote_code=False
        )
    except _MALFORMED as found:
        raise error("convert.model", str(folder), f"config.json cannot be used: {found}") from found
    kind = _kind_of(config, str(folder))
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(checkpoint.specs):
        message = f"config.json asks for {layers} layers, the checkpoint has {len(checkpoint.specs)} tensors"
        raise error("convert.model", str(folder), message)
    try:
        with torch.device("meta"):  # shapes first: they cost nothing, whatever the config says
            plan = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
        _require_names(plan, checkpoint, str(folder))
        with shapes_only():
            model: torch.nn.Module = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except _MALFORMED as found:
        raise error("convert.model", str(folder), f"transformers cannot make the model: {found}") from found
    config.use_cache = False  # nothing is generated
    _fill_buffers(model, checkpoint)
    stored = checkpoint.specs.keys()  # a tied tensor may be there twice: the last counts
    lend(model, {name: max(names & stored) for name, names in _homes(plan).items()}, lender)
    return model.eval()


def _kind_of(config: Any, where: str) -> Any:
    """Who makes the model that ``config`` describes."""
    named = getattr(config, "architectures", None) or ["Model"]
    if getattr(config, "quantization_config", None) is not None:
        raise error("convert.model", where, "a quantised model has no gradients; calibrate on one in floats")
    kind = next((kind for ending, kind in KINDS if str(named[0]).endswith(ending)), None)
    if kind is None or getattr(config, "is_encoder_decoder", False):
        known = ", ".join(f"...{ending}" for ending, _ in KINDS)
        raise error("convert.model", where, f"{named[0]} is not a model that takes text alone: one of {known}")
    return kind


def _homes(model: torch.nn.Module) -> dict[str, set[str]]:
    """Names that a checkpoint may give the model's parameters and kept buffers; tied ones under each of them."""
    state = {**dict(model.named_parameters(remove_duplicate=False)), **model.state_dict(keep_vars=True)}
    same: dict[int, set[str]] = {}
    for name, value in state.items():
        same.setdefault(id(value), set()).add(name)
    return {name: same[id(value)] for name, value in state.items()}


def _require_names(model: torch.nn.Module, checkpoint: Checkpoint, where: str) -> None:
    """Every parameter has its tensor, of its shape, and no matrix is left over."""
    state, specs = model.state_dict(keep_vars=True), checkpoint.specs
    lacking = [name for name, names in _homes(model).items() if not any(each in specs for each in names)]
    foreign = [name for name, spec in specs.items() if name not in state and len(spec.shape) > 1]
    wrong = [name for name in specs if name in state and specs[name].shape != tuple(state[name].shape)]
    problem = ""
    if lacking:
        problem = f"the model has {lacking[0]!r} and the checkpoint has not"
    elif foreign:
        problem = f"the checkpoint has {foreign[0]!r} and the model has not"
    elif wrong:
        asked, shape = tuple(state[wrong[0]].shape), specs[wrong[0]].shape
        problem = f"{wrong[0]!r} is {shape} in the checkpoint and {asked} in the model"
    if problem:
        count = len(lacking) + len(foreign) + len(wrong)
        message = f"its parameters are not the checkpoint's tensors ({count} differ): {problem}"
        raise error("convert.model", where, message)


def _fill_buffers(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Kept buffers are small and stay in memory; those that no checkpoint has, the model has made itself."""
    kept = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in kept and name in checkpoint.specs and buffer.numel():
            buffer.copy_(read_tensor(checkpoint, name))


Changes = Mapping[int, torch.Tensor]  # by id of an embedding's parameter: (rows,) float64, squared norm of each change


def _changes(model: torch.nn.Module, before: Checkpoint, after: Checkpoint) -> Changes:
    """How much every row of a table of embeddings changed; no table that base does not have, or that did not change."""
    tables = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        is_known = name in before.specs and name in after.specs and id(parameter) in tables
        if not is_known or not parameter.numel() or before.specs[name].shape[1:] != after.specs[name].shape[1:]:
            continue
        old, new = read_tensor(before, name), read_tensor(after, name)
        change = torch.zeros(len(new), dtype=torch.float64)
        for first in range(0, min(len(old), len(new)), ROWS):  # rows that a resize added are carried exactly
            rows = slice(first, min(first + ROWS, len(old), len(new)))
            change[rows] = (new[rows].double() - old[rows].double()).square().sum(1)
        if float(change.sum()) > 0:
            found[id(parameter)] = change
    return found


@contextmanager
def _room(device: torch.device, where: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as found:
        message = f"the run of one text does not fit on {device}, in float32; calibrate on the CPU"
        raise error("convert.model", where, message) from found


def _harm(
    model: torch.nn.Module,
    texts: Sequence[torch.Tensor],
    changes: Changes,
    device: torch.device,
    where: str,
    progress: Progress,
) -> Mapping[str, float]:
    """By name: the expected harm of noise of squared norm 1 in a matrix or a vector, its entries independent.

    In a table of ``changes`` the noise of a row goes with its change, as that of a code does.
    """
    squares: dict[int, float] = {}

    def take(parameter: torch.Tensor) -> None:
        change = changes.get(id(parameter))
        rows = _squares_of_rows(parameter.grad)
        if change is None:
            found = float(rows.sum()) / parameter.numel()
        else:
            found = float(rows @ change) / float(change.sum()) / parameter.shape[1]
        squares[id(parameter)] = squares.get(id(parameter), 0.0) + found
        parameter.grad = None

    named = dict(model.named_parameters(remove_duplicate=False))
    for parameter in set(named.values()):
        parameter.requires_grad_(parameter.dim() > 0 and parameter.numel() > 0)
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]  # torch leaves it so
    generator = torch.Generator().manual_seed(SEED)
    done, whole = 0, sum(each.nbytes for each in texts)
    for number, tokens in enumerate(texts, 1):
        try:
            _projected(model(input_ids=tokens.to(device)), generator).backward()  # type: ignore[no-untyped-call]  # as above
        except torch.OutOfMemoryError:  # a RuntimeError, too
            raise
        except _MALFORMED as problem:
            raise error("convert.model", where, f"the model fails on text {number}: {problem}") from problem
        if not all(map(math.isfinite, squares.values())):
            raise error("convert.model", where, f"its outputs have no finite gradient on text {number}")
        done += tokens.nbytes
        progress("calibrating", done, whole)
    return {name: squares.get(id(each), 0.0) for name, each in named.items() if each.dim() > 0}


def _squares_of_rows(gradient: Any) -> torch.Tensor:
    """(rows,) float64; of a vector, whose rows are its entries, as of a matrix."""
    parts = [part.flatten(1) if part.dim() > 1 else part[:, None] for part in gradient.split(ROWS)]
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]).square().cpu()


def _projected(outputs: Any, generator: torch.Generator) -> torch.Tensor:
    """A random projection of what a model says of one text; squares of its gradients average to the harm of noise."""
    is_scored = "logits" in outputs and outputs["logits"].shape[-1] > 1
    values = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
    signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.float32).to(values.device) * 2 - 1
    if is_scored:  # diag(p) - p p^T, the Fisher metric, is the covariance of root * (signs - <root, signs> root)
        root = values.detach().softmax(-1).sqrt()
        signs = root * (signs - (root * signs).sum(-1, keepdim=True) * root)
    projected: torch.Tensor = (values * signs).sum()
    return projected
