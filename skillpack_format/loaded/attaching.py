"""A pack on a loaded torch model, in place: ``attach``, ``switch`` to another pack, ``detach``.

Everything that can be checked is checked before the first weight is written; what fails later is taken back. A model
is therefore, at every return and after every error, exactly what it was or exactly what was asked for. Only the
tensors a pack lists are read (spec/apply.md, "Applying to loaded tensors"): the base as a whole is not verified.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch

from skillpack_format.devices import hand_over, lane, settle
from skillpack_format.errors import SkillPackError, error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.loaded.changes import Job, identity_of, plan_changes
from skillpack_format.loaded.making import make_on
from skillpack_format.loaded.slots import FUSED, Place, Slot
from skillpack_format.loaded.undo import Undo, undo_of
from skillpack_format.loaded.unmaking import base_with, undo_with
from skillpack_format.manifest import Entry
from skillpack_format.progress import Progress, in_order, silent
from skillpack_format.reader import Pack, open_pack
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.torch_bridge import sha256_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to attach.

    ``names`` maps names on disk to where the tensor is: a name in the model, rows ``(name, first, last)`` of one, or a
    view of its memory. ``fused`` lists projections made of several on disk, one below the other. ``verify=False``
    compares no digest of a tensor before it is written over, and none of a result made on a GPU: faster, and a wrong
    base goes unnoticed there.

    ``undo`` says how the base comes back. "device": what differs is kept beside the weights, about half of the
    changed bytes in 16-bit models and up to all of them in float32 ones. "host": the same in the host's memory.
    "pack": sums and ``ulp`` alone are computed back from the pack, which stays open, and little is kept; slower.
    With ``base``, the base's own checkpoint, nothing is kept and that is read.
    """

    names: Mapping[str, Place] = field(default_factory=dict)
    fused: Mapping[str, Sequence[str]] = field(default_factory=lambda: FUSED)
    verify: bool = True
    undo: Literal["device", "host", "pack"] = "device"
    base: Path | None = None
    threads: int = 1
    limits: Limits = DEFAULT_LIMITS


class Attachment:
    """A model and the pack it carries; ``detach`` and ``switch`` are also functions of the model."""

    def __init__(self, model: torch.nn.Module, options: Options) -> None:
        if options.undo not in ("device", "host", "pack"):
            raise error("usage.argument", "", f"undo is {options.undo!r}; device, host or pack is needed")
        self._model = weakref.ref(model)
        self._options = options
        self._pack: Pack | None = None
        self._files = ExitStack()  # the pack, where this opened it
        self._undos: dict[str, Undo] = {}

    @property
    def pack_id(self) -> str | None:
        """The pack the model carries, None after ``detach``."""
        return self._pack.pack_id if self._pack is not None else None

    @property
    def undo_nbytes(self) -> int:
        """What the way back takes in memory."""
        return sum(each.nbytes for each in self._undos.values())

    def detach(self, progress: Progress = silent) -> None:
        """Give the model its base back, every bit; a second call does nothing."""
        self._change_to(None, progress)

    def switch(self, pack: str | Path | Pack, progress: Progress = silent) -> None:
        """From the present pack to another of the same base, each tensor written once."""
        self._change_to(pack, progress)

    def _change_to(self, pack: str | Path | Pack | None, progress: Progress) -> None:
        model = self._model()
        if model is None:
            raise error("usage.argument", "model", "it is no longer there")
        if _ATTACHED.get(model, self) is not self:
            raise error("usage.argument", "model", "it carries a pack that was attached anew; use that attachment")
        with ExitStack() as files:
            opened: Pack | None = pack if pack is None or isinstance(pack, Pack) else None
            if isinstance(pack, (str, Path)):
                opened = files.enter_context(open_pack(pack, self._options.limits))
            plan = plan_changes(model, self._pack, opened, self._options.names, self._options.fused)
            if self._options.verify:
                require_expected(plan, self._options.threads, progress)
            self._undos = _Change(self._pack, opened, self._undos, self._options).carry_out(plan, progress)
            self._pack = opened
            self._files.close()
            self._files = files.pop_all()
        if opened is None:
            _ATTACHED.pop(model, None)
        else:
            _ATTACHED[model] = self


# Which model carries what, for detach(model) and switch(model, pack). A copy of a model is another model.
_ATTACHED: Final[WeakKeyDictionary[torch.nn.Module, Attachment]] = WeakKeyDictionary()


def attach(
    model: torch.nn.Module, pack: str | Path | Pack, options: Options = Options(), progress: Progress = silent
) -> Attachment:
    """Add the change of ``pack`` to the weights of ``model``, in place and bit for bit as ``apply`` makes them.

    Raises:
        BaseMismatchError: a tensor the pack lists is not in the model, has another dtype or shape, or other bytes.
        UnsupportedError: a change no loaded model can take: tensors added, removed or resized, ties pulled apart.
        FormatError: the pack is malformed. ResourceError: too little memory. The model is then what it was.
    """
    if model in _ATTACHED:
        raise error("usage.argument", "model", "it carries a pack already; detach it or switch to the other")
    attachment = Attachment(model, options)
    attachment.switch(pack, progress)
    return attachment


def detach(model: torch.nn.Module, progress: Progress = silent) -> None:
    """Give ``model`` the exact bits of its base back. usage.argument when it carries no pack."""
    _attachment_of(model).detach(progress)


def switch(model: torch.nn.Module, pack: str | Path | Pack, progress: Progress = silent) -> Attachment:
    """Change the pack that ``model`` carries for ``pack``, with the options it was attached with."""
    attachment = _attachment_of(model)
    attachment.switch(pack, progress)
    return attachment


def _attachment_of(model: torch.nn.Module) -> Attachment:
    found = _ATTACHED.get(model)
    if found is None:
        raise error("usage.argument", "model", "it carries no pack; attach one first")
    return found


def require_expected(plan: Sequence[Job], threads: int, progress: Progress) -> None:
    """Every tensor holds what it must before the first is written (base.content)."""
    _settle(plan)
    total, done, wrong = sum(job.nbytes for job in plan), 0, []
    for job, digest in in_order(lambda job: sha256_on(job.slot.read()), plan, threads):
        done += job.nbytes
        progress("checking the model", done, total)
        if digest != job.expected.sha256:
            wrong.append(job)
    if wrong:
        what = "it was changed since the pack was attached" if wrong[0].before else "it is not the base of this pack"
        message = f"{what}; {len(wrong)} of {len(plan)} tensors differ, this is the first"
        raise error("base.content", str(wrong[0]), message)


def _settle(plan: Sequence[Job]) -> None:
    """Wait for what the caller's streams still do to the tensors; other threads with other streams come next."""
    for device in {job.slot.tensor.device for job in plan}:
        settle(device)


@dataclass(slots=True)
class _Change:
    """From one pack to another, None being the base: tensor after tensor, or not at all."""

    before: Pack | None
    after: Pack | None
    undos: Mapping[str, Undo]  # of ``before``
    options: Options
    made_undos: dict[str, Undo] = field(default_factory=dict)  # of ``after``

    def carry_out(self, plan: Sequence[Job], progress: Progress) -> dict[str, Undo]:
        """Make and write every tensor; on any failure put back what was written. The undos of ``after``."""
        _settle(plan)
        written: list[Job] = []
        try:
            self._write_all(plan, written, progress)
        except BaseException as why:
            traceback.clear_frames(why.__traceback__)  # they hold tensors, and memory may be what is missing
            self._put_back(written, why)
            if isinstance(why, (MemoryError, torch.OutOfMemoryError)):
                raise error("resource.memory", "model", "too little memory; it is as it was") from why
            raise
        return self.made_undos

    def _write_all(self, plan: Sequence[Job], written: list[Job], progress: Progress) -> None:
        """Carry out ``plan``; ``written`` is every job whose tensor has its new bits, whatever happens here."""
        total, done = sum(job.nbytes for job in plan), 0
        with closing(in_order(self._make, plan, self.options.threads)) as results:
            for job, (made, undo) in results:
                if undo is not None and job.after is not None:
                    self.made_undos[job.after.name] = undo
                hand_over(made)
                try:
                    job.slot.write(made)
                    written.append(job)
                except BaseException:
                    if written[-1:] != [job] and torch.equal(job.slot.read(), made):
                        written.append(job)  # interrupted after the copy
                    raise
                done += job.nbytes
                progress("attaching" if self.after else "detaching", done, total)

    def _make(self, job: Job) -> tuple[torch.Tensor, Undo | None]:
        """The bits to write, and the way back to the base where they are a pack's."""
        with lane(job.slot.tensor.device):
            bits = job.slot.read()
            base = self._base_of(job.slot, self.before, job.before, self.undos) if self.before and job.before else bits
            if job.after is None or self.after is None:
                return base, None
            made = made_for(self.after, job.after, base, job.slot, verify=self.options.verify)
            if self.options.base is not None:
                return made, None
            if self.options.undo == "pack":
                change = self.after.open_components(job.after.alias or job.after.name)
                kind = identity_of(job.after.result).kind
                return made, undo_with(change, base, made, kind, job.slot.tensor.dtype)
            return made, undo_of(base, made, torch.device("cpu") if self.options.undo == "host" else made.device)

    def _base_of(self, slot: Slot, pack: Pack, entry: Entry, undos: Mapping[str, Undo]) -> torch.Tensor:
        """The base's bits of a tensor that has those of ``entry``'s result in ``pack``."""
        bits = slot.read()
        if self.options.base is None:
            undo = undos[entry.name]
            if self.options.undo == "pack":
                change = pack.open_components(entry.alias or entry.name)
                base = base_with(change, undo, bits, identity_of(entry.result).kind, slot.tensor.dtype)
            else:
                base = undo.revert(bits)
        else:
            base = _read_base(self.options.base, entry.name, self.options.limits).view(bits.dtype).to(bits.device)
        if self.options.verify or self.options.base is not None:
            digest = sha256_on(base)
            if entry.base is None or digest != entry.base.sha256:
                raise error("base.content", str(slot), "what is to give the base tensor back does not give it")
        return base

    def _put_back(self, written: Sequence[Job], why: BaseException) -> None:
        """Undo ``written``, the last first."""
        for job in reversed(written):
            try:
                if job.after is not None and self.after is not None:
                    base = self._base_of(job.slot, self.after, job.after, self.made_undos)
                else:
                    base = job.slot.read()
                if job.before is not None and self.before is not None:
                    base = made_for(self.before, job.before, base, job.slot, verify=self.options.verify)
                job.slot.write(base)
            except (SkillPackError, MemoryError, RuntimeError) as found:
                message = f"could not be put back after an error ({found}); load the model again"
                raise error("integrity.result", str(job), message) from why


def _read_base(path: Path, name: str, limits: Limits) -> torch.Tensor:
    with open_checkpoint(path, limits) as checkpoint:
        if name not in checkpoint.specs:
            raise error("base.missing", f"tensor {name!r}", f"{path} does not have it")
        return torch.frombuffer(checkpoint.read(name), dtype=torch.uint8)


def made_for(pack: Pack, entry: Entry, base: torch.Tensor, slot: Slot, *, verify: bool) -> torch.Tensor:
    """The result's bits from the base's, made where the tensor is and proved by its digest (integrity.result)."""
    source, kind = entry.alias or entry.name, identity_of(entry.result).kind
    if base.device.type == "cpu":
        data = base.view(torch.uint8).numpy().data
        proved = identity_of(entry.base).sha256
        result = pack.get_tensor(source, data, base_sha256=proved)
        return torch.from_numpy(np.require(result, requirements=["C", "W"])).view(base.dtype)
    change = pack.open_components(source)
    made = make_on(base.device, base.view(slot.tensor.dtype), kind, change, str(slot)).view(base.dtype)
    if verify and sha256_on(made) != identity_of(entry.result).sha256:
        raise error("integrity.result", str(slot), "the tensor made has not the SHA-256 that MANIFEST promises")
    return made
