"""apply.md: a pack and a base make the result; container.order as a whole, stages 13 to 15 in particular."""

import hashlib
from typing import BinaryIO

from . import wire
from .container import open_container
from .encodings import Component
from .errors import Limits, Refusal, can_hold
from .manifest import Entry, Manifest, SideFile, read_manifest
from .numerics import Tensor, check_finite, make_start, round_all, widen
from .safetensors import Checkpoint, Stored
from .storage import read_content, read_storage


class Pack:
    """A pack whose preamble and documents have passed stages 1 to 12."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self.container = open_container(file, limits)  # stages 1 to 9
        self.manifest_document = wire.decode(self.container.manifest, "MANIFEST", limits)  # stage 10
        self.storage_document = wire.decode(self.container.storage, "STORAGE", limits)
        self.manifest = read_manifest(self.manifest_document, limits)  # stage 11
        contents = self.manifest.contents
        segments = read_storage(self.storage_document, contents, self.container, limits)  # stage 12
        self.segments = {id(content): segment for content, segment in zip(contents, segments, strict=True)}

    def read_components(self, components: list[Component]) -> None:
        """Stage 14 for some contents: chunks, then content digest, then values."""
        for component in components:
            component.read(read_content(self.container, self.segments[id(component)], component))

    def read_file(self, file: SideFile) -> bytes:
        """Stage 14 for a side file: its digest and, by its chunks, its length."""
        return read_content(self.container, self.segments[id(file)], file)[0]

    def read_everything(self) -> dict[str, bytes]:
        """Stage 14 for all contents but those of the layout, which tensors need not; gives the side files."""
        for entry in self.manifest.entries:
            self.read_components(entry.components)
        return {file.name: self.read_file(file) for file in self.manifest.files}


# The base: stage 13


def checkpoint_digest(tensors: dict[str, Tensor]) -> bytes:
    """digest.checkpoint"""
    rows = [[name, t.dtype.name, list(t.shape), t.sha256] for name, t in sorted(tensors.items())]
    return hashlib.sha256(wire.encode(rows)).digest()


def kind_problem(entry: Entry, base: Checkpoint) -> str | None:
    """Step 1 for one entry: the code of what is wrong."""
    given = base.get(entry.name)
    if entry.base is None:
        return None if given is None else "base.extra"
    if given is None:
        return "base.missing"
    same = (given.tensor.dtype, given.tensor.shape) == (entry.base.dtype, entry.base.shape)
    return None if same else "base.kind"


def refuse_first(problems: list[tuple[str, str]]) -> None:
    """apply.report: the first tensor that fails in a step, and how many fail in it."""
    if problems:
        code, name = problems[0]
        raise Refusal(code, f"tensor {name} of the base; {len(problems)} fail in this step")


def check_base(manifest: Manifest, base: Checkpoint) -> None:
    """apply.verify"""
    # Step 1: base.missing, base.kind, base.extra
    found = [(kind_problem(entry, base), entry.name) for entry in manifest.entries]
    refuse_first([(code, name) for code, name in found if code is not None])
    check_base_count(manifest, base)
    # Step 3. base.content
    entries = {entry.name: entry for entry in manifest.entries}
    wrong = []
    for i, (name, stored) in enumerate(base.items()):
        entry = entries.get(name)
        listed = entry.base.sha256 if entry is not None and entry.base is not None else stored.tensor.sha256
        if stored.tensor.sha256[:4] != manifest.prints[4 * i : 4 * i + 4] or stored.tensor.sha256 != listed:
            wrong.append(("base.content", name))
    refuse_first(wrong)
    # Step 4. base.content/digest
    listing = {name: stored.tensor for name, stored in base.items()}
    if checkpoint_digest(listing) != manifest.base_digest:
        raise Refusal("base.content", "the name or the kind of a tensor without entry differs")
    for entry in manifest.entries:
        check_alias(entry, entries, base)
    # integrity.result/checkpoint
    for entry in manifest.entries:
        listing.pop(entry.name, None)
        if entry.result is not None:
            listing[entry.name] = entry.result
    if checkpoint_digest(listing) != manifest.result_digest or len(listing) != manifest.result_count:
        raise Refusal("integrity.result", "the checkpoint digest of the result is not result.digest")


def check_base_count(manifest: Manifest, base: Checkpoint) -> None:
    """Step 2"""
    if len(base) > manifest.base_count:  # base.extra/count
        raise Refusal("base.extra", f"the base has {len(base)} tensors instead of {manifest.base_count}")
    if len(base) < manifest.base_count:  # base.missing/count
        raise Refusal("base.missing", f"the base has {len(base)} tensors instead of {manifest.base_count}")


def check_alias(entry: Entry, entries: dict[str, Entry], base: Checkpoint) -> None:
    if entry.alias is None or entry.alias in entries:
        return
    if entry.alias not in base or base[entry.alias].tensor != entry.result:  # manifest.alias/unlisted
        raise Refusal("manifest.alias", f"{entry.where}: the base has no {entry.alias} with the same bytes")


# The result: stage 15


def make_tensor(entry: Entry, base: Checkpoint) -> bytes:
    """The bytes of the result of an entry whose components have been read."""
    assert entry.result is not None
    can_hold(entry.result.size, entry.where)
    given = base[entry.name].data if entry.base is not None else b""
    bits, source_dtype, source = make_start(entry.base, given, entry.result)
    additive = [component for component in entry.components if component.additive]
    if additive:
        bits = add_components(bits, widen(source_dtype, source), additive, entry.result, entry.where)
    for component in entry.components[len(additive) :]:  # a rewriting one comes last
        bits = component.rewrite(bits)
    if hashlib.sha256(bits).digest() != entry.result.sha256:  # integrity.result
        raise Refusal("integrity.result", f"{entry.where}: the SHA-256 of the result is another")
    return bits


def add_components(start: bytes, source: list[float], additive: list[Component], result: Tensor, where: str) -> bytes:
    """numerics.md, Additive components"""
    addressed = bytearray(result.elements)
    for component in additive:
        for x in component.addressed():
            addressed[x] = 1
    positions = [x for x, used in enumerate(addressed) if used]
    check_finite([source[x] for x in positions], f"{where}: source")  # payload.nonfinite
    acc = [value + 0.0 for value in source]  # num.zero: -0 + 0 is +0, every other value stays
    for component in additive:  # num.order
        component.add(acc)
    rounded = round_all([acc[x] for x in positions], result.dtype.name, where)  # num.round, payload.overflow
    width = result.dtype.width
    bits = bytearray(start)  # num.addressed: every other element keeps the bits of START
    for x, item in zip(positions, rounded, strict=True):
        bits[x * width : (x + 1) * width] = item.to_bytes(width, "little")
    return bytes(bits)


def apply(pack: Pack, base: Checkpoint) -> tuple[Checkpoint, dict[str, bytes]]:
    """The result and the side files, all of it verified (safe.no-result)."""
    check_base(pack.manifest, base)  # stage 13
    files = pack.read_everything()  # stage 14
    result = dict(base)  # apply.unchanged
    for entry in pack.manifest.entries:  # stage 15
        result.pop(entry.name, None)  # apply.removed
    made = [entry for entry in pack.manifest.entries if entry.result is not None]
    for entry in made:
        if entry.alias is None and entry.result is not None:
            result[entry.name] = Stored(entry.result, make_tensor(entry, base))
    for entry in made:
        if entry.alias is not None:  # apply.alias
            result[entry.name] = result[entry.alias]
    return dict(sorted(result.items())), files


def apply_one(pack: Pack, base: Checkpoint, name: str) -> Stored:
    """One tensor of the result: "after checking each against its entry's base and result"; the base as a whole is
    not verified."""
    entries = {entry.name: entry for entry in pack.manifest.entries}
    entry = entries.get(name)
    if entry is not None and entry.alias is not None:
        check_one(entry, base)
        check_alias(entry, entries, base)
        if entry.alias not in entries:
            return base[entry.alias]
        entry = entries[entry.alias]
    if entry is None:
        return unchanged(pack.manifest, base, name)
    if entry.result is None:
        raise Refusal("usage.argument", f"the pack removes the tensor {name}")
    check_one(entry, base)
    pack.read_components(entry.components)
    return Stored(entry.result, make_tensor(entry, base))


def check_one(entry: Entry, base: Checkpoint) -> None:
    code = kind_problem(entry, base)
    if code is not None:
        raise Refusal(code, f"{entry.where} of the base")
    if entry.base is not None and base[entry.name].tensor.sha256 != entry.base.sha256:  # base.content
        raise Refusal("base.content", f"{entry.where} of the base has other bytes")


def unchanged(manifest: Manifest, base: Checkpoint, name: str) -> Stored:
    """A tensor without entry: its print can be found only in a base of the right number of tensors."""
    if name not in base:
        raise Refusal("usage.argument", f"neither the base nor the pack has a tensor {name}")
    check_base_count(manifest, base)
    i = list(base).index(name)
    if base[name].tensor.sha256[:4] != manifest.prints[4 * i : 4 * i + 4]:  # base.content
        raise Refusal("base.content", f"tensor {name} of the base has other bytes")
    return base[name]
