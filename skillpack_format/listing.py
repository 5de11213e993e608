"""Listings: every tensor of a checkpoint with its digest, and whether a checkpoint is the one a pack was made for."""

from __future__ import annotations

from collections.abc import Mapping

from skillpack_format.digest import PRINT_BYTES, TensorIdentity, TensorKind, checkpoint_digest
from skillpack_format.errors import SkillPackError, error
from skillpack_format.manifest import BaseRef, Entry, Manifest
from skillpack_format.progress import Progress, in_order
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import Checkpoint

Listing = dict[str, TensorIdentity]


def kind_of(spec: TensorSpec) -> TensorKind:
    return TensorKind(spec.dtype.name, spec.shape)


def listing_of(
    checkpoint: Checkpoint, known: Mapping[str, bytes], threads: int, progress: Progress, what: str
) -> Listing:
    """The identity of every tensor, ascending by name; digests already ``known`` are not computed again."""
    total = sum(spec.nbytes for spec in checkpoint.specs.values())
    done = 0
    listing: Listing = {}
    for name, digest in in_order(
        lambda name: known[name] if name in known else checkpoint.sha256(name), checkpoint.specs, threads
    ):
        spec = checkpoint.specs[name]
        listing[name] = TensorIdentity(kind_of(spec), digest)
        done += spec.nbytes
        progress(what, done, total)
    return listing


def base_ref(listing: Listing) -> BaseRef:
    """What MANIFEST keeps of the base as a whole."""
    prints = b"".join(listing[name].sha256[:PRINT_BYTES] for name in sorted(listing))
    return BaseRef(len(listing), checkpoint_digest(listing.items()), prints)


def kind_fault(manifest: Manifest, specs: Mapping[str, TensorSpec]) -> SkillPackError | None:
    """What is wrong with a base of these tensors as far as names, dtypes and shapes tell (apply.md, steps 1 and 2)."""
    faults = [fault for entry in manifest.tensors if (fault := _entry_fault(entry, specs)) is not None]
    if faults:
        code, name, message = faults[0]
        more = (
            f"; {len(faults)} of {len(manifest.tensors)} tensors do not fit, this is the first"
            if len(faults) > 1
            else ""
        )
        return error(code, f"tensor {name!r}", message + more)
    found, due = len(specs), manifest.base.count
    if found != due:
        code = "base.extra" if found > due else "base.missing"
        return error(code, "base", f"it has {found} tensors, the pack was made for one of {due}")
    return None


def _entry_fault(entry: Entry, specs: Mapping[str, TensorSpec]) -> tuple[str, str, str] | None:
    """Code, name and message where one entry does not fit."""
    spec = specs.get(entry.name)
    if entry.base is None:
        return ("base.extra", entry.name, "the base has it, and the pack would add it") if spec is not None else None
    if spec is None:
        return "base.missing", entry.name, "the base lacks it"
    if kind_of(spec) != entry.base.kind:
        return "base.kind", entry.name, f"the base has it as {kind_of(spec)}, the pack was made for {entry.base.kind}"
    return None


def is_expected(manifest: Manifest, index: int, digest: bytes) -> bool:
    """Whether one base tensor is the one the pack was made for, as far as it tells by itself.

    ``index`` is the tensor's place among the base's names, ascending. The digest of the whole decides.
    """
    return manifest.base.print_of(index) == digest[:PRINT_BYTES]


def content_fault(manifest: Manifest, listing: Listing) -> SkillPackError | None:
    """Whether ``listing`` is the base of ``manifest``; if not, the first wrong tensor and how many are.

    Prints and entries are compared even where the digest of the whole is right: a pack may contradict itself.
    """
    bound = {entry.name: entry.base.sha256 for entry in manifest.tensors if entry.base is not None}
    wrong = [
        name
        for index, name in enumerate(sorted(listing))
        if not is_expected(manifest, index, listing[name].sha256)
        or bound.get(name, listing[name].sha256) != listing[name].sha256
    ]
    if not wrong:
        if checkpoint_digest(listing.items()) == manifest.base.digest:
            return None
        message = "every tensor's print agrees and the digest does not: a name, dtype or shape differs"
        return error("base.content", "base", message)
    message = f"not the base of this pack: {len(wrong)} of {len(listing)} tensors differ, this is the first"
    return error("base.content", f"tensor {wrong[0]!r}", message)


def result_of(manifest: Manifest, listing: Listing) -> Listing:
    """The listing after ``manifest``'s changes.

    manifest.alias where a tensor is to be an unlisted one with other bytes, integrity.result where the whole is not the
    checkpoint that MANIFEST promises (apply.md, steps 5 and 6).
    """
    listed = {entry.name for entry in manifest.tensors}
    for entry in manifest.tensors:
        if entry.alias is not None and entry.alias not in listed and listing.get(entry.alias) != entry.result:
            message = f"it is to be {entry.alias!r}, which the base does not have with these bytes"
            raise error("manifest.alias", f"tensor {entry.name!r}", message)
    result = dict(listing)
    for entry in manifest.tensors:
        if entry.result is None:
            del result[entry.name]
        else:
            result[entry.name] = entry.result
    if checkpoint_digest(result.items()) != manifest.result.digest:
        raise error(
            "integrity.result", "result", "the tensors MANIFEST lists do not make the checkpoint that it promises"
        )
    return result
