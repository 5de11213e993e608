"""Where the tensors of a checkpoint lie in a loaded torch model: disk names to parameters and buffers.

A name is found as it is, with one prefix added or taken away that fits every name asked for, or as rows of a fused
projection. Whatever cannot be told for certain is refused; ``names`` settles it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from skillpack_format.digest import TensorKind
from skillpack_format.errors import SkillPackError, error

Place: TypeAlias = "str | tuple[str, int, int] | torch.Tensor"  # a name, rows (first, last) of a name, or a view
Memory: TypeAlias = tuple[object, ...]

# A projection that some models make of several on disk, their rows one below the other in this order.
FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
}
DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
PATTERNS: Final[Mapping[int, torch.dtype]] = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Slot:
    """One checkpoint tensor in a model. ``tensor`` is a view of the model's own memory, of the shape on disk."""

    name: str  # on disk
    home: str  # the parameter or buffer it lies in; empty where the caller gave a view
    first: int  # the row of ``whole`` it begins at
    whole: torch.Tensor  # what the model holds
    tensor: torch.Tensor

    def __str__(self) -> str:
        return f"tensor {self.name!r}"

    @property
    def memory(self) -> Memory:
        """Equal for two slots exactly when they are the same elements in the same order."""
        return memory_of(self.tensor)

    def read(self) -> torch.Tensor:
        """The bit patterns: (numel,) signed integers of the element's width, C order; a view where it can be."""
        return self.tensor.contiguous().view(PATTERNS[self.tensor.element_size()]).reshape(-1)

    def write(self, bits: torch.Tensor) -> None:
        """Set all bit patterns in one copy: whatever interrupts Python finds it done or not begun."""
        patterns = self.tensor.view(PATTERNS[self.tensor.element_size()])
        patterns.copy_(bits.view(patterns.shape))


def memory_of(tensor: torch.Tensor) -> Memory:
    start = (str(tensor.device), tensor.untyped_storage().data_ptr(), tensor.storage_offset() * tensor.element_size())
    strides = tuple(each for each, dim in zip(tensor.stride(), tensor.shape, strict=True) if dim > 1)
    return (*start, tensor.dtype, tuple(tensor.shape), strides)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is torch's own kind of tensor with memory of its own, not quantised, sharded or sparse."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name it has, so that ties appear as often as they are named."""
    found: dict[str, torch.Tensor] = dict(model.named_buffers(remove_duplicate=False))
    found.update(model.named_parameters(remove_duplicate=False))
    return found


def find_slots(
    model: torch.nn.Module,
    wanted: Mapping[str, TensorKind],
    names: Mapping[str, Place],
    fused: Mapping[str, Sequence[str]] = FUSED,
) -> dict[str, Slot]:
    """A slot for every tensor of ``wanted``, each of the kind it has on disk.

    Raises:
        BaseMismatchError: base.missing for a tensor the model does not have, base.kind for another dtype or shape.
        UnsupportedError: a tensor that is not plain loaded memory. UsageError: more than one reading of the names.
    """
    present = tensors_of(model)
    found = {name: _given(name, names[name], present) for name in wanted if name in names}
    _require_own([slot for slot in found.values() if not slot.home], present)
    rest = [name for name in wanted if name not in found]
    prefix = _prefix_for(rest, present, fused)
    for name in rest:
        home = prefix.of(name)
        if home in present:
            found[name] = _whole(name, home, present[home])
        else:
            found[name] = _fused_slot(name, prefix, present, wanted, fused)
    for name, slot in found.items():
        _require_plain(slot)
        _require_kind(slot, wanted[name])
    return {name: found[name] for name in wanted}


def require_apart(slots: Sequence[Slot]) -> None:
    """No element belongs to two of ``slots``: refuse one that shares part of its memory with another."""
    by_storage: dict[tuple[str, int], list[Slot]] = {}
    for slot in slots:
        if slot.tensor.numel():
            key = (str(slot.tensor.device), slot.tensor.untyped_storage().data_ptr())
            by_storage.setdefault(key, []).append(slot)
    for together in by_storage.values():
        together.sort(key=lambda slot: _extent(slot)[0])
        ends = [0]
        for slot in together:
            ends.append(max(ends[-1], _extent(slot)[1]))
        if any(_extent(slot)[0] < end for slot, end in zip(together, ends, strict=False)):
            _require_disjoint(together, ends[-1])


def _extent(slot: Slot) -> tuple[int, int]:
    """First byte and the byte after the last, within the storage."""
    tensor = slot.tensor
    first = tensor.storage_offset()
    last = first + sum((dim - 1) * stride for dim, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(first * tensor.element_size()), int((last + 1) * tensor.element_size())


def _require_disjoint(slots: Sequence[Slot], nbytes: int) -> None:
    """The exact check where the extents overlap, as those of two column ranges do."""
    taken = torch.zeros(nbytes, dtype=torch.bool)
    for slot in slots:
        tensor = slot.tensor
        width = tensor.element_size()
        strides = [width * stride for stride in tensor.stride()]
        mine = taken.as_strided((*tensor.shape, width), (*strides, 1), width * tensor.storage_offset())
        if bool(mine.any()):
            raise error("unsupported.operation", str(slot), "it shares part of its memory with another tensor")
        mine.fill_(True)


def _require_own(views: Sequence[Slot], present: Mapping[str, torch.Tensor]) -> None:
    """A view the caller gave long ago may be of memory that the model has left since, when it was moved or loaded."""
    own = {tensor.untyped_storage().data_ptr() for tensor in present.values() if is_plain(tensor)} if views else set()
    for slot in views:
        if slot.tensor.untyped_storage().data_ptr() not in own:
            raise error("base.missing", str(slot), "the view given in names is not, or no longer, memory of the model")


@dataclass(frozen=True, slots=True, order=True)
class _Prefix:
    """What the model's names have in front beyond those on disk, and what they lack."""

    lacks: str = ""
    adds: str = ""

    def of(self, name: str) -> str:
        return self.adds + name.removeprefix(self.lacks)


def _whole(name: str, home: str, tensor: torch.Tensor) -> Slot:
    if not is_plain(tensor):
        what = f"{type(tensor).__name__} of layout {tensor.layout}"
        message = f"the model has it as {what}: quantised, sharded, sparse or not loaded; load the base plainly"
        raise error("unsupported.operation", f"tensor {name!r}", message)
    return Slot(name, home, 0, tensor.detach(), tensor.detach())


def _given(name: str, place: Place, present: Mapping[str, torch.Tensor]) -> Slot:
    if isinstance(place, torch.Tensor):
        return _whole(name, "", place)
    home, *rows = (place,) if isinstance(place, str) else place
    if home not in present:
        raise error("base.missing", f"tensor {name!r}", f"names says {home!r}, which the model does not have")
    slot = _whole(name, home, present[home])
    if not rows:
        return slot
    tensor, (first, last) = slot.tensor, rows
    height = tensor.shape[0] if tensor.ndim else 0
    if not 0 <= first <= last <= height:
        raise error("base.kind", f"tensor {name!r}", f"names says rows {first} to {last} of {home!r}, it has {height}")
    return Slot(name, home, first, tensor, tensor[first:last])


def _prefix_for(
    wanted: Sequence[str], present: Mapping[str, torch.Tensor], fused: Mapping[str, Sequence[str]]
) -> _Prefix:
    """The one prefix by which every name of ``wanted`` is found."""
    endings: dict[str, set[str]] = {}
    for home in present:
        for at in _starts(home):
            endings.setdefault(home[at:], set()).add(home[:at])
    votes: dict[_Prefix, list[str]] = {_Prefix(): []}
    for name in wanted:
        for prefix in {each for form in _forms(name, fused) for each in _prefixes(form, present, endings)}:
            votes.setdefault(prefix, []).append(name)
    whole = [prefix for prefix, matched in votes.items() if len(matched) == len(wanted)]
    if _Prefix() in whole:
        return _Prefix()
    if len(whole) == 1:
        return whole[0]
    if whole:
        choices = ", ".join(repr(each.of(wanted[0])) for each in sorted(whole)[:4])
        raise error("usage.argument", f"tensor {wanted[0]!r}", f"it may be {choices}; say which with names")
    best = max(votes, key=lambda prefix: (len(votes[prefix]), prefix == _Prefix()))
    missed = [name for name in wanted if name not in set(votes[best])]
    message = f"the model has no tensor {best.of(missed[0])!r}; {len(missed)} of {len(wanted)} have no place in it"
    raise error("base.missing", f"tensor {missed[0]!r}", f"{message}; if it is there by another name, give it in names")


def _starts(name: str) -> list[int]:
    """Where a name and its dotted endings begin."""
    return [0, *(at + 1 for at, char in enumerate(name) if char == ".")]


def _forms(name: str, fused: Mapping[str, Sequence[str]]) -> list[str]:
    """The name, and those of projections it may be a part of."""
    words = name.split(".")
    forms = [name]
    for whole, parts in fused.items():
        forms += [".".join([*words[:k], whole, *words[k + 1 :]]) for k, word in enumerate(words) if word in parts]
    return forms


def _prefixes(name: str, present: Mapping[str, torch.Tensor], endings: Mapping[str, set[str]]) -> set[_Prefix]:
    longer = {_Prefix("", adds) for adds in endings.get(name, ())}
    return longer | {_Prefix(name[:at], "") for at in _starts(name)[1:] if name[at:] in present}


def _fused_slot(
    name: str,
    prefix: _Prefix,
    present: Mapping[str, torch.Tensor],
    wanted: Mapping[str, TensorKind],
    fused: Mapping[str, Sequence[str]],
) -> Slot:
    """The rows of a fused projection that hold ``name``: counted from above or from below, by the parts known."""
    words = name.split(".")
    for whole, parts in fused.items():
        for k, word in enumerate(words):
            home = prefix.of(".".join([*words[:k], whole, *words[k + 1 :]]))
            if word not in parts or home not in present:
                continue
            heights = [_height(wanted.get(".".join([*words[:k], part, *words[k + 1 :]]))) for part in parts]
            return _rows_of(_whole(name, home, present[home]), heights, list(parts).index(word))
    raise error("base.missing", f"tensor {name!r}", f"the model has no tensor {prefix.of(name)!r}")


def _height(kind: TensorKind | None) -> int | None:
    return kind.shape[0] if kind is not None and kind.shape else None


def _rows_of(slot: Slot, heights: Sequence[int | None], at: int) -> Slot:
    tensor, home, where = slot.tensor, slot.home, str(slot)
    total = tensor.shape[0] if tensor.ndim else 0
    known = [each for each in heights if each is not None]
    above, below, own = heights[:at], heights[at + 1 :], heights[at]
    if own is None or sum(known) > total or (len(known) == len(heights) and sum(known) != total):
        raise error("base.kind", where, f"its parts do not fill {home!r} of {total} rows; say where with names")
    if None not in above:
        first = sum(each or 0 for each in above)
    elif None not in below:
        first = total - own - sum(each or 0 for each in below)
    else:
        raise error("usage.argument", where, f"which rows of {home!r} it is cannot be told; say so with names")
    return Slot(slot.name, home, first, tensor, tensor[first : first + own])


def _require_plain(slot: Slot) -> None:
    """Only memory that holds the tensor's own elements, once each, can be read and written bit by bit."""
    tensor, fault = slot.tensor, None
    if tensor.is_meta:
        fault = "it is on the meta device: its weights are not loaded"
    elif tensor.is_quantized:
        fault = "it is quantised; load the base plainly"
    elif tensor.is_inference():
        fault = "it was made in inference mode and cannot be changed in place"
    elif any(stride == 0 and dim > 1 for stride, dim in zip(tensor.stride(), tensor.shape, strict=True)):
        fault = "several of its elements are the same memory"
    if fault is not None:
        raise error("unsupported.operation", str(slot), fault)


def _require_kind(slot: Slot, due: TensorKind) -> None:
    kind = TensorKind(DTYPE_NAMES.get(slot.tensor.dtype, str(slot.tensor.dtype)), tuple(slot.tensor.shape))
    if kind != due:
        raise _kind_fault(slot, kind, due)


def _kind_fault(slot: Slot, found: TensorKind, due: TensorKind) -> SkillPackError:
    message = f"the model has it as {found}, the pack was made for {due}"
    if found.dtype != due.dtype:
        message += "; load the base in its own dtype, not converted or quantised"
    return error("base.kind", str(slot), message)
