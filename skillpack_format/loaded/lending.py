"""Parameters that stay on disk: whoever computes with one borrows its values and gives them back.

A lent parameter has a shape, strides and a device, and no memory. torch hands every operation on it to its class, below
autograd (``__torch_dispatch__``). A view of it needs no values and is lent again; any other operation is done with
values that are read for it. So what autograd keeps for the backward pass is a name and a geometry, and it makes no
difference which module owns a parameter, how many share it or where it is used: there is nothing else to compute with.

A backward pass goes back the way that the forward pass came, so what was used last is wanted next, and is held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._pytree import tree_map_only

from skillpack_format.errors import error
from skillpack_format.loaded.slots import DTYPE_NAMES
from skillpack_format.stores.safetensors_files import Checkpoint


class Lender:
    """A checkpoint's tensors in float32 on ``device``, where at most ``held`` bytes stay for the next use."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, held: int) -> None:
        self.device = device
        self._most = held
        self._checkpoint = checkpoint
        self._held: OrderedDict[str, torch.Tensor] = OrderedDict()  # the one used last is the last

    def read(self, name: str) -> torch.Tensor:
        """One tensor with elements, of its shape in the checkpoint."""
        found = self._held.pop(name, None)
        if found is None:
            # Into torch's own memory: how a buffer lies to the cache line would show in the last digits
            found = torch.empty(self._checkpoint.specs[name].shape, dtype=torch.float32, device=self.device)
            found.copy_(read_tensor(self._checkpoint, name))
        if found.nbytes <= self._most:
            self._held[name] = found
            while sum(each.nbytes for each in self._held.values()) > self._most:
                self._held.popitem(last=False)
        return found


class Lent(torch.Tensor):
    """A tensor of a checkpoint, or a view of one. ``plan`` is its geometry: itself on torch's meta device."""

    lender: Lender
    tensor: str  # its name in the checkpoint
    plan: torch.Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch has it done

    @staticmethod
    def __new__(cls: type[Lent], lender: Lender, tensor: str, plan: torch.Tensor) -> Lent:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            plan.shape,
            strides=plan.stride(),
            storage_offset=plan.storage_offset(),
            dtype=plan.dtype,
            device=lender.device,
        )
        made.lender, made.tensor, made.plan = lender, tensor, plan
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it as a classmethod and declares it otherwise
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if operation.is_view and isinstance(args[0], cls):  # a view is one of the first argument
            return tree_map_only(torch.Tensor, args[0].view_of, operation(args[0].plan, *args[1:], **named))
        for place, argument in enumerate(operation._schema.arguments):
            given = args[place] if place < len(args) else named.get(argument.name)
            if argument.is_write and isinstance(given, cls):
                raise NotImplementedError(f"{operation} writes to the parameter {given.tensor!r}")
        values, named = tree_map_only(cls, cls.read, (args, named))
        return operation(*values, **named)

    def view_of(self, plan: torch.Tensor) -> Lent:
        """The part of this tensor that ``plan`` is of its own plan."""
        if plan.dtype != self.plan.dtype or plan.untyped_storage()._cdata != self.plan.untyped_storage()._cdata:
            raise NotImplementedError(f"no view of the numbers of the parameter {self.tensor!r}")
        return Lent(self.lender, self.tensor, plan)

    def read(self) -> torch.Tensor:
        """The numbers, in memory for as long as they are used."""
        plan = self.plan
        return self.lender.read(self.tensor).as_strided(plan.shape, plan.stride(), plan.storage_offset())


def lend(model: torch.nn.Module, names: Mapping[str, str], lender: Lender) -> None:
    """Replace every parameter of ``model`` by one that is lent: ``names`` says under which name the checkpoint has it.

    Parameters that are one tensor there are one afterwards. Buffers move to the lender's device.
    """
    lent: dict[str, torch.nn.Parameter] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            name = names[f"{prefix}.{key}" if prefix else key]
            if name not in lent:
                plan = torch.empty(old.shape, dtype=torch.float32, device="meta")
                made = Lent(lender, name, plan) if old.numel() else torch.empty_like(plan, device=lender.device)
                lent[name] = torch.nn.Parameter(made)
            setattr(module, key, lent[name])
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, buffer.to(lender.device))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that this thread makes meanwhile have parameters on the meta device, and buffers as ever.

    Whole modules on that device would lack what they compute when they are made, as tables of angles.
    """
    maker = threading.get_ident()

    def move(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != maker:
            return None  # as it is
        return torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook: Callable[..., Any] = move  # torch declares that it gives nothing, and takes what it gives
    handle = register_module_parameter_registration_hook(hook)  # for all modules that the process makes
    try:
        yield
    finally:
        handle.remove()


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """The values of a tensor with elements, as they are stored.

    Raises:
        ConvertError: convert.model, they are of no dtype that torch has.
    """
    spec = checkpoint.specs[name]
    dtype = next((dtype for dtype, known in DTYPE_NAMES.items() if known == spec.dtype.name), None)
    if dtype is None:
        message = f"{spec.dtype.name} is no dtype that torch computes with; calibrate on a model in floats"
        raise error("convert.model", f"tensor {name!r}", message)
    return torch.frombuffer(checkpoint.read(name), dtype=dtype).reshape(spec.shape)
