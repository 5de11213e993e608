"""What a change of packs means for a loaded model: which memory becomes what, and whether it may (spec/apply.md).

Pure decisions on names, kinds and ties; nothing is read or written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from skillpack_format.digest import PRINT_BYTES, TensorIdentity, TensorKind
from skillpack_format.errors import error
from skillpack_format.loaded.slots import (
    Memory,
    Place,
    Slot,
    find_slots,
    is_plain,
    memory_of,
    require_apart,
    tensors_of,
)
from skillpack_format.manifest import Entry, Manifest
from skillpack_format.reader import Pack, change_of


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One stretch of the model's memory: what it is and what it is to be. An entry of None means the base."""

    slot: Slot
    before: Entry | None
    after: Entry | None

    def __str__(self) -> str:
        return str(self.slot)

    @property
    def nbytes(self) -> int:
        return self.slot.tensor.nbytes

    @property
    def expected(self) -> TensorIdentity:
        """What the memory must hold before anything is done."""
        if self.before is not None:
            return identity_of(self.before.result)
        return identity_of(self.after.base if self.after is not None else None)


def identity_of(found: TensorIdentity | None) -> TensorIdentity:
    """``found``, which the plan has made sure is there."""
    if found is None:
        raise AssertionError("an entry without the tensor that the plan requires of it")
    return found


def entry_after(job: Job) -> Entry:
    """What a job is to make, where the plan was made for a pack."""
    if job.after is None:
        raise AssertionError("a job of a plan without a pack")
    return job.after


def plan_changes(
    model: torch.nn.Module,
    before: Pack | None,
    after: Pack | None,
    names: Mapping[str, Place],
    fused: Mapping[str, Sequence[str]],
) -> list[Job]:
    """One job for every stretch of memory that ``before`` or ``after`` changes.

    Raises:
        BaseMismatchError: base.missing, base.kind; base.content for packs of two bases.
        UnsupportedError: what no loaded model can take: tensors added, removed, of another kind; ties pulled apart.
    """
    packs = [each for each in (before, after) if each is not None]
    if len({each.manifest.base.digest for each in packs}) > 1:
        message = "it was made for another base than the pack that the model carries"
        raise error("base.content", f"pack {packs[1].path.name}", message)
    wanted: dict[str, TensorKind] = {}
    for pack in packs:
        for entry in pack.manifest.tensors:
            wanted[entry.name] = _kind_in_memory(pack, entry)
    slots = find_slots(model, dict(sorted(wanted.items())), names, fused)
    shared: dict[Memory, list[str]] = {}
    for name, tensor in tensors_of(model).items():
        if is_plain(tensor):
            shared.setdefault(memory_of(tensor), []).append(name)
    old, new = (_leads(each, slots, shared) if each else {} for each in (before, after))
    jobs: list[Job] = []
    for memory in {**old, **new}:
        lead = new.get(memory) or old[memory]
        jobs.append(Job(slots[lead.name], old.get(memory), new.get(memory)))
    require_apart([job.slot for job in jobs])
    return sorted(jobs, key=str)


def _kind_in_memory(pack: Pack, entry: Entry) -> TensorKind:
    """The kind a tensor has in the model before and after; refuses what memory cannot follow."""
    where = f"tensor {entry.name!r}"
    target = pack.entries.get(entry.alias) if entry.alias is not None else None
    if entry.result is None:
        raise error("unsupported.operation", where, "the pack removes it, a loaded model cannot lose it; use apply")
    if entry.alias is not None and (target is None or (entry.base is not None and entry.base != target.base)):
        raise error("unsupported.operation", where, f"it becomes a copy of {entry.alias!r}; use apply")
    if entry.base is None and entry.alias is None:
        raise error("unsupported.operation", where, "the pack adds it, a loaded model has no place for it; use apply")
    if entry.base is not None and entry.base.kind != entry.result.kind:
        message = (
            f"the pack makes it {entry.result.kind} of {entry.base.kind}, a loaded tensor keeps its kind; use apply"
        )
        raise error("unsupported.operation", where, message)
    return entry.result.kind


def _leads(pack: Pack, slots: Mapping[str, Slot], shared: Mapping[Memory, Sequence[str]]) -> dict[Memory, Entry]:
    """The one entry that speaks for each stretch of memory, however many names it has."""
    leads: dict[Memory, Entry] = {}
    bound = sorted(pack.manifest.tensors, key=lambda entry: (entry.base is None, entry.name))
    for entry in bound:
        slot = slots[entry.name]
        lead = leads.setdefault(slot.memory, entry)
        if lead.base is None:
            message = f"the pack {change_of(entry)}s it, and in the model it is not tied to {entry.alias!r}"
            raise error("unsupported.operation", str(slot), message)
        if lead.result != entry.result or (entry.base is not None and lead.base != entry.base):
            message = f"in the model it is tied to {lead.name!r}, and the pack makes two different tensors of them"
            raise error("unsupported.operation", str(slot), message)
    for memory, lead in leads.items():
        _require_tie(pack, lead, slots, shared.get(memory, ()))
    return leads


def _require_tie(pack: Pack, lead: Entry, slots: Mapping[str, Slot], homes: Sequence[str]) -> None:
    """A tied tensor that the pack does not list was not stored: no unlisted tensor of the base has its bytes.

    Where one has, the pack changes one of two equal tensors and leaves the other, which tied memory cannot follow.
    """
    listed = {slot.home for slot in slots.values() if slot.name in pack.entries}
    others = [home for home in homes if home not in listed]
    if not others or lead.base is None:
        return
    start = lead.base.sha256[:PRINT_BYTES]
    mine = sum(entry.base is not None and entry.base.sha256[:PRINT_BYTES] == start for entry in pack.manifest.tensors)
    if _prints(pack.manifest)[start] > mine:
        message = f"in the model it is tied to {others[0]!r}, and the pack changes one of the two and not the other"
        raise error("unsupported.operation", f"tensor {lead.name!r}", message)


def _prints(manifest: Manifest) -> Counter[bytes]:
    return Counter(manifest.base.print_of(index) for index in range(manifest.base.count))
