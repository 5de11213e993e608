"""Listings: every tensor of a checkpoint with its digest, and whether a checkpoint is the one a pack was made for."""

from __future__ import annotations

from collections.abc import Mapping

from skillpack_format.digest import PRINT_BYTES, TensorIdentity, TensorKind, checkpoint_digest, sha256
from skillpack_format.errors import SkillPackError, error
from skillpack_format.manifest import BaseRef, Manifest
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
        lambda name: known[name] if name in known else sha256(checkpoint.read(name)), checkpoint.specs, threads
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


def kind_fault(manifest: Manifest, checkpoint: Checkpoint) -> SkillPackError | None:
    """What is wrong with the base as far as names, dtypes and shapes tell; costs no reading."""
    for entry in manifest.tensors:
        if entry.base is None:
            if entry.name in checkpoint.specs:
                return error("base.extra", f"tensor {entry.name!r}", "the base has it, and the pack would add it")
            continue
        spec = checkpoint.specs.get(entry.name)
        if spec is None:
            return error(
                "base.missing", f"tensor {entry.name!r}", f"the base lacks it; it has {len(checkpoint.specs)} others"
            )
        if kind_of(spec) != entry.base.kind:
            message = f"the base has it as {kind_of(spec)}, the pack was made for {entry.base.kind}"
            return error("base.kind", f"tensor {entry.name!r}", message)
    found, due = len(checkpoint.specs), manifest.base.count
    if found != due:
        code = "base.extra" if found > due else "base.missing"
        return error(code, "base", f"it has {found} tensors, the pack was made for one of {due}")
    return None


def is_expected(manifest: Manifest, name: str, index: int, digest: bytes) -> bool:
    """Whether one base tensor is the one the pack was made for, as far as it tells by itself.

    ``index`` is the tensor's place among the base's names, ascending. The digest of the whole decides.
    """
    return manifest.base.print_of(index) == digest[:PRINT_BYTES]


def content_fault(manifest: Manifest, listing: Listing) -> SkillPackError | None:
    """Whether ``listing`` is the base of ``manifest``; if not, the first wrong tensor and how many are."""
    if checkpoint_digest(listing.items()) == manifest.base.digest:
        return None
    bound = {entry.name: entry.base.sha256 for entry in manifest.tensors if entry.base is not None}
    wrong = [
        name
        for index, name in enumerate(sorted(listing))
        if not is_expected(manifest, name, index, listing[name].sha256)
        or bound.get(name, listing[name].sha256) != listing[name].sha256
    ]
    if not wrong:
        message = "its digest is not the one the pack was made for, although every tensor's print agrees: a name, dtype or shape differs"
        return error("base.content", "base", message)
    message = f"not the base of this pack: {len(wrong)} of {len(listing)} tensors differ, this is the first"
    return error("base.content", f"tensor {wrong[0]!r}", message)
