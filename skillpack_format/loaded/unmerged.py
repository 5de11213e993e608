"""Packs beside the weights instead of in them: many packs share one base, and a batch mixes packs row by row.

A linear layer gives Wx + sum over slices of scale * Qu(Qv x), its weight untouched. That is float arithmetic of the
activations: close to the merged model, not equal to it. Nothing is left out in silence: a change that is no low-rank
delta is refused, or carried whole and put in place for its rows where the caller says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from skillpack_format.closing import Closing
from skillpack_format.encodings._base import Factored
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.loaded.attaching import made_for, require_expected
from skillpack_format.loaded.changes import Job, entry_after, plan_changes
from skillpack_format.loaded.factored import FactoredDelta, factored
from skillpack_format.loaded.slots import FUSED, Memory, Place, Slot, is_plain, memory_of
from skillpack_format.progress import Progress, silent
from skillpack_format.reader import Pack, open_pack

Module = torch.nn.Module

# Linear layers whose weights another module uses without calling them: a change beside them would be lost.
_NEVER_CALLED = torch.nn.modules.linear.NonDynamicallyQuantizableLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to use packs unmerged. ``names``, ``fused`` and ``verify`` are those of ``attach``.

    ``others`` are changes that are no low-rank delta of a linear layer or an embedding, and no bias of a linear layer.
    "refuse" names the first. "carry" keeps those tensors whole for every pack and lets their module work with them on
    the rows of that pack: exact, and the thing for norms; for large matrices it costs their size again.
    """

    others: Literal["refuse", "carry"] = "refuse"
    names: Mapping[str, Place] = field(default_factory=dict)
    fused: Mapping[str, Sequence[str]] = field(default_factory=lambda: FUSED)
    verify: bool = True
    threads: int = 1
    limits: Limits = DEFAULT_LIMITS


@dataclass(slots=True)
class _Site:
    """What one pack does in one module. Rows are those of the module's own weight or bias, first and last."""

    deltas: list[tuple[int, int, FactoredDelta]] = field(default_factory=list)
    bias_steps: list[tuple[int, int, torch.Tensor]] = field(default_factory=list)  # float32: result minus base
    carried: dict[str, torch.Tensor] = field(default_factory=dict)  # attributes that the pack has whole
    stand_in: Module | None = None  # the module with those
    names: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        deltas = sum(each.nbytes for _, _, each in self.deltas)
        steps = sum(each.nbytes for _, _, each in self.bias_steps)
        return deltas + steps + sum(each.nbytes for each in self.carried.values())


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which rows go to which pack. ``rows`` is None where one pack has them all, however many there are."""

    count: int | None
    groups: tuple[tuple[str, torch.Tensor | None], ...]


class Unmerged(Closing):
    """Packs beside the weights of a model. A context manager: at its end the model is as before.

    One selection holds for all forward passes until the next; threads that select differently need models of
    their own. A module that uses the weights of another without calling it is not seen: ``idle`` tells.
    """

    def __init__(self, model: Module, names: Sequence[str], sites: dict[Module, dict[str, _Site]]) -> None:
        self.names = tuple(names)
        self._module_names = {module: name for name, module in model.named_modules()}
        self._sites = sites
        self._selection = _Selection(None, ())
        self._used: set[tuple[Module, str]] = set()
        self._hooks = ExitStack()
        for module in sites:
            self._hooks.callback(module.register_forward_hook(self._after, with_kwargs=True).remove)

    def close(self) -> None:
        """Take the packs away from the model; a second call does nothing."""
        self._hooks.close()
        self._sites = {}

    def select(self, which: str | Sequence[str | None] | None) -> None:
        """Choose the pack of all rows, or of each row of the batch; None is the base.

        With a sequence, row i of every module's input (dimension 0) gets pack ``which[i]``.
        """
        chosen = [which] if which is None or isinstance(which, str) else list(which)
        for name in chosen:
            if name is not None and name not in self.names:
                raise error("usage.argument", f"pack {name!r}", f"not one of {', '.join(map(repr, self.names))}")
        self._used = set()
        if which is None or isinstance(which, str):
            self._selection = _Selection(None, () if which is None else ((which, None),))
            return
        groups = []
        for name in dict.fromkeys(chosen):
            if name is not None:
                rows = [row for row, each in enumerate(chosen) if each == name]
                groups.append((name, torch.tensor(rows) if len(rows) < len(chosen) else None))
        self._selection = _Selection(len(chosen), tuple(groups))

    @property
    def idle(self) -> list[str]:
        """Tensors of the selected packs that no forward pass has used since ``select``: experts not chosen, or a
        module that never ran although its weights were used."""
        chosen = {name for name, _ in self._selection.groups}
        return sorted(
            tensor
            for module, sites in self._sites.items()
            for name, site in sites.items()
            if name in chosen and (module, name) not in self._used
            for tensor in site.names
        )

    def nbytes(self, name: str) -> int:
        """What a pack takes on the devices."""
        return sum(sites[name].nbytes for sites in self._sites.values() if name in sites)

    def _after(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The forward hook of every module concerned."""
        sites = self._sites.get(module, {})
        for name, selected in self._selection.groups:
            site = sites.get(name)
            if site is None:
                continue
            self._used.add((module, name))
            where = f"module {self._module_names[module]!r}"
            values = _input_of(args, kwargs, output, self._selection.count, where)
            rows = None if selected is None else selected.to(values.device)
            if site.stand_in is not None and rows is None:
                output = site.stand_in.forward(*args, **kwargs)
            elif site.stand_in is not None:
                output = output.index_copy(0, rows, site.stand_in.forward(values[rows]))
            _add_to(output, values, rows, site)
        return output


def unmerged(
    model: Module,
    packs: Mapping[str, str | Path | Pack],
    options: Options = Options(),
    progress: Progress = silent,
) -> Unmerged:
    """Hold ``packs``, each under a name, beside the weights of ``model``; ``select`` then says which one works.

    Raises:
        BaseMismatchError: a tensor that a pack lists is not in the model, or is another one.
        UnsupportedError: a change that cannot be used unmerged, and ``others`` is "refuse"; the model is as it was.
    """
    if options.others not in ("refuse", "carry"):
        raise error("usage.argument", "", f"others is {options.others!r}, refuse or carry is needed")
    sites: dict[Module, dict[str, _Site]] = {}
    owners = _owners(model)
    with ExitStack() as files:
        for name, source in packs.items():
            pack = source if isinstance(source, Pack) else files.enter_context(open_pack(source, options.limits))
            jobs = plan_changes(model, None, pack, options.names, options.fused)
            if options.verify:
                require_expected(jobs, options.threads, progress)
            for job in jobs:
                for owner in _owners_of(job.slot, owners):
                    site = sites.setdefault(owner.module, {}).setdefault(name, _Site())
                    _settle_in(site, owner, job, pack, options)
    return Unmerged(model, list(packs), sites)


@dataclass(frozen=True, slots=True)
class _Owner:
    """A module, and the attribute under which it holds a tensor."""

    module: Module
    attribute: str
    tensor: torch.Tensor


def _owners(model: Module) -> dict[Memory, list[_Owner]]:
    """Who holds each stretch of memory; a tied tensor has several owners."""
    owners: dict[Memory, list[_Owner]] = {}
    for module in model.modules():
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_plain(tensor):
                owners.setdefault(memory_of(tensor), []).append(_Owner(module, attribute, tensor.detach()))
    return owners


def _owners_of(slot: Slot, owners: Mapping[Memory, Sequence[_Owner]]) -> Sequence[_Owner]:
    found = owners.get(memory_of(slot.whole))
    if not found:
        raise error("unsupported.operation", str(slot), "no module of the model holds the memory given in names")
    return found


def _settle_in(site: _Site, owner: _Owner, job: Job, pack: Pack, options: Options) -> None:
    """Put the change of one tensor where the module can use it, in the cheapest form there is."""
    entry = entry_after(job)
    site.names.append(entry.name)
    rows = job.slot.first, job.slot.first + (job.slot.tensor.shape[0] if job.slot.tensor.ndim else 0)
    change = pack.open_components(entry.alias or entry.name)
    components = [each for each in change.additive if isinstance(each, Factored)]
    whole_delta = change.rewriting is None and len(components) == len(change.additive)
    module, device = owner.module, job.slot.tensor.device
    if (
        whole_delta
        and owner.attribute == "weight"
        and (type(module) is torch.nn.Linear or _looks_rows_up(module, job.slot))
    ):
        site.deltas.append((*rows, factored(components, device)))
        return
    is_bias = type(module) is torch.nn.Linear and owner.attribute == "bias"
    if not is_bias:
        _require_carried(module, job.slot, " and ".join(pack.info(entry.alias or entry.name).encodings), options)
    made = made_for(pack, entry, job.slot.read(), job.slot, verify=options.verify)
    values = made.view(job.slot.tensor.dtype).view(job.slot.tensor.shape)
    if is_bias:
        site.bias_steps.append((*rows, values.to(torch.float32) - job.slot.tensor.to(torch.float32)))
        return
    held = site.carried.setdefault(owner.attribute, owner.tensor.clone())
    Slot(job.slot.name, "", 0, held, held[rows[0] : rows[1]] if held.ndim else held).write(made)
    site.stand_in = site.stand_in or _stand_in(module)
    own = site.stand_in._parameters if owner.attribute in site.stand_in._parameters else site.stand_in._buffers
    own[owner.attribute] = held  # type: ignore[assignment]  # a tensor that needs no gradient does for a parameter


def _require_carried(module: Module, slot: Slot, encodings: str, options: Options) -> None:
    """Refuse a change that cannot be added to an output, unless it may be carried and its module can stand alone."""
    fault = None
    if options.others == "refuse":
        fault = f"its change ({encodings}) in a {type(module).__name__} is no low-rank delta of a linear layer or an"
        fault += " embedding; attach the pack, or let others be carried"
    elif isinstance(module, _NEVER_CALLED) or any(True for _ in module.children()):
        fault = f"a {type(module).__name__} cannot be run again with another tensor in it; attach the pack"
    if fault is not None:
        raise error("unsupported.operation", str(slot), fault)


def _looks_rows_up(module: Module, slot: Slot) -> bool:
    """Whether it is an embedding that looks rows up and nothing else, and the tensor all of its weight."""
    is_embedding = type(module) is torch.nn.Embedding and module.max_norm is None
    return is_embedding and slot.tensor.shape == slot.whole.shape


def _stand_in(module: Module) -> Module:
    """A second module that shares everything with the first but may hold other tensors of its own."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    return twin


def _input_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, count: int | None, where: str
) -> torch.Tensor:
    """The one tensor a module is given; its rows are as many as were selected."""
    values = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(values, torch.Tensor) or not isinstance(output, torch.Tensor):
        raise error("unsupported.operation", where, "it does not make one tensor of one tensor")
    if count is None:
        return values
    if len(args) + len(kwargs) != 1 or output.shape[:1] != values.shape[:1]:
        raise error("unsupported.operation", where, "it takes more than one input, whose rows cannot be told apart")
    if values.ndim == 0 or values.shape[0] != count:
        message = f"its input has shape {list(values.shape)}, and {count} rows were selected"
        raise error("usage.argument", where, message)
    return values


def _add_to(output: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None, site: _Site) -> None:
    """Add what a site's deltas and bias steps make of ``values`` to ``output``, its rows alone."""
    chosen = values if rows is None else values[rows]
    for first, last, delta in site.deltas:
        if chosen.is_floating_point():
            _add_part(output[..., first:last], delta.of_input(chosen), rows)
        else:
            _add_part(output, delta.of_rows(chosen, output.dtype), rows)
    for first, last, step in site.bias_steps:
        target = output[..., first:last]
        shape = target.shape if rows is None else (len(rows), *target.shape[1:])
        _add_part(target, step.to(output.device).expand(shape), rows)


def _add_part(target: torch.Tensor, part: torch.Tensor, rows: torch.Tensor | None) -> None:
    if rows is None:
        target += part
    else:
        target.index_add_(0, rows, part.to(target.dtype))
