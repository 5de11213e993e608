"""MANIFEST: what a pack means (spec/manifest.md), as frozen values.

``parse`` is strict: an unknown key anywhere is invalid. A fault is handed to ``report``; a reader raises it, the
validator collects it and goes on with the next entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

from skillpack_format import wire
from skillpack_format.digest import PRINT_BYTES, TensorIdentity, TensorKind, sha256
from skillpack_format.dtypes import dtype_named, tensor_nbytes
from skillpack_format.errors import SkillPackError, error, placed
from skillpack_format.fields import array, binary, integer, made, one_of, require_keys, text
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.names import (
    INDEX_SUFFIX,
    SHARD_SUFFIX,
    check_layout_name,
    check_module_name,
    check_side_file_name,
    check_tensor_name,
)

FORMAT: Final = "skillpack/1"
CLASSES: Final = ("attention", "bias", "embedding", "expert", "head", "mlp", "norm", "other", "router")
_ENTRY_KEYS: Final = ("class", "module", "name")
_ENTRY_MAY_HAVE: Final = ("alias", "base", "components", "result", "stats")
_IDENTITY_KEYS: Final = frozenset(("dtype", "sha256", "shape"))
_STATS: Final = {"energy": 4, "error": 4, "norm": 4, "projection": 4, "spectrum": 16}  # bytes; and ``changed``
_MOST: Final = (1 << 64) - 1  # what the wire can hold; limits come after

Report = Callable[[SkillPackError], None]


def raise_first(found: SkillPackError) -> None:
    """The reader's ``report``: the first fault ends it."""
    raise found


class Component(NamedTuple):  # this and the next: see fields.made
    """One component: its encoding's name, its parameters as they stand in the file, its content's digest."""

    encoding: str
    params: dict[str, Any]
    sha256: bytes


class Entry(NamedTuple):
    """One tensor that is not the same in base and result."""

    name: str
    tensor_class: str
    module: str
    base: TensorIdentity | None
    result: TensorIdentity | None
    alias: str | None = None
    components: tuple[Component, ...] = ()
    stats: dict[str, int | bytes] | None = None  # None: the key is not there, which an empty map is not


@dataclass(frozen=True, slots=True)
class BaseRef:
    """The one checkpoint a pack applies to; ``prints`` holds the first bytes of every tensor's digest, by name."""

    count: int
    digest: bytes
    prints: bytes

    def print_of(self, index: int) -> bytes:
        return self.prints[PRINT_BYTES * index : PRINT_BYTES * (index + 1)]


@dataclass(frozen=True, slots=True)
class ResultRef:
    """The one checkpoint a pack makes."""

    count: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file that goes with the result, such as a grown tokenizer; in a layout, the index or the head of a shard."""

    name: str
    nbytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """How tuned's folder held the tensors: of each shard the head, all before its data, and the index where one is."""

    shards: tuple[SideFile, ...]
    index: SideFile | None

    @property
    def contents(self) -> tuple[SideFile, ...]:
        """In the order in which they are stored."""
        return (self.index, *self.shards) if self.index else self.shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    base: BaseRef
    result: ResultRef
    tensors: tuple[Entry, ...]
    files: tuple[SideFile, ...] = ()
    layout: Layout | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "base": {"count": self.base.count, "digest": self.base.digest, "prints": self.base.prints},
            "files": [_file_to_plain(each) for each in self.files],
            "format": FORMAT,
            "metadata": self.metadata,
            "result": {"count": self.result.count, "digest": self.result.digest},
            "tensors": [entry_to_plain(entry) for entry in self.tensors],
        }
        if self.layout is not None:
            plain["layout"] = {"shards": [_file_to_plain(each) for each in self.layout.shards]}
            if self.layout.index is not None:
                plain["layout"]["index"] = _file_to_plain(self.layout.index)
        return plain

    def to_bytes(self) -> bytes:
        return wire.write(self.to_plain())

    @property
    def pack_id(self) -> str:
        """SHA-256 of MANIFEST, in hex: the identity of the pack."""
        return sha256(self.to_bytes()).hex()


def parse(plain: Any, limits: Limits = DEFAULT_LIMITS, report: Report = raise_first) -> Manifest:
    """The manifest in the document ``plain``; see the module docstring for ``report``."""
    where = "MANIFEST"
    require_keys(plain, ("base", "files", "format", "metadata", "result", "tensors"), ("layout",), where)
    one_of(plain, "format", (FORMAT,), where)
    manifest = Manifest(
        base=_parse_base(plain["base"], limits),
        result=_parse_result(plain["result"], limits),
        files=_parse_files(array(plain, "files", where), limits, report),
        layout=_parse_layout(plain["layout"], limits) if "layout" in plain else None,
        metadata=parse_metadata(plain["metadata"], limits),
        tensors=_parse_entries(array(plain, "tensors", where), limits, report),
    )
    _check_whole(manifest, report)
    return manifest


def _parse_base(plain: Any, limits: Limits) -> BaseRef:
    where = "MANIFEST base"
    require_keys(plain, ("count", "digest", "prints"), (), where)
    count = integer(plain, "count", 0, _MOST, where)
    limits.require("tensors", count, where)
    return BaseRef(count, binary(plain, "digest", 32, where), binary(plain, "prints", PRINT_BYTES * count, where))


def _parse_result(plain: Any, limits: Limits) -> ResultRef:
    where = "MANIFEST result"
    require_keys(plain, ("count", "digest"), (), where)
    count = integer(plain, "count", 0, _MOST, where)
    limits.require("tensors", count, where)
    return ResultRef(count, binary(plain, "digest", 32, where))


def _parse_files(listed: list[Any], limits: Limits, report: Report) -> tuple[SideFile, ...]:
    limits.require("side_files", len(listed), "MANIFEST files")
    found: list[SideFile] = []
    for index, plain in enumerate(listed):
        where = f"MANIFEST file {index}"
        try:
            each = _parse_file(plain, where)
            limits.require("side_file_bytes", each.nbytes, where)
            check_side_file_name(each.name, where)
            if found and each.name <= found[-1].name:
                raise error("manifest.order", where, f"{each.name!r} after {found[-1].name!r}; names strictly ascend")
            found.append(each)
        except SkillPackError as fault:
            report(fault)
    return tuple(found)


def _parse_file(plain: Any, where: str) -> SideFile:
    require_keys(plain, ("length", "name", "sha256"), (), where)
    nbytes = integer(plain, "length", 0, _MOST, where)
    return SideFile(text(plain, "name", where), nbytes, binary(plain, "sha256", 32, where))


def _parse_layout(plain: Any, limits: Limits) -> Layout:
    where = "MANIFEST layout"
    require_keys(plain, ("shards",), ("index",), where)
    listed = array(plain, "shards", where)
    limits.require("shards", len(listed), where)
    shards = tuple(_parse_file(each, f"{where} shard {place}") for place, each in enumerate(listed))
    index = _parse_file(plain["index"], f"{where} index") if "index" in plain else None
    if not shards or (len(shards) > 1 and index is None):
        message = f"{len(shards)} shards and no index; one shard at least is due, and of several an index"
        raise error("manifest.value", where, message)
    for each in shards:
        check_layout_name(each.name, SHARD_SUFFIX, where)
    for before, after in pairwise(shards):
        if before.name >= after.name:
            raise error("manifest.order", where, f"{after.name!r} after {before.name!r}; names strictly ascend")
    if index is not None:
        check_layout_name(index.name, INDEX_SUFFIX, where)
    layout = Layout(shards, index)
    limits.require("layout_bytes", sum(each.nbytes for each in layout.contents), where)
    return layout


def parse_metadata(plain: Any, limits: Limits) -> dict[str, str]:
    """``plain`` as a map of strings within the limits."""
    where = "MANIFEST metadata"
    if not isinstance(plain, dict):
        raise error("manifest.type", where, "a map of strings is needed")
    limits.require("metadata_entries", len(plain), where)
    for key in plain:
        text(plain, key, where)
    limits.require("metadata_bytes", sum(len(key) + len(value.encode()) for key, value in plain.items()), where)
    return plain


def _parse_entries(listed: list[Any], limits: Limits, report: Report) -> tuple[Entry, ...]:
    limits.require("tensors", len(listed), "MANIFEST tensors")
    found: list[Entry] = []
    before = ""  # no name is empty
    for index, plain in enumerate(listed):
        try:
            entry = parse_entry(plain, limits)
            if entry.name <= before:
                raise error("manifest.order", "", f"{entry.name!r} after {before!r}; names strictly ascend")
            before = entry.name
            found.append(entry)
        except SkillPackError as fault:
            report(fault if fault.where else placed(f"MANIFEST tensor {index}", fault))
    return tuple(found)


def parse_entry(plain: Any, limits: Limits) -> Entry:
    """One entry of MANIFEST, every rule checked that concerns it alone.

    The place of a fault is the tensor, and empty as long as its name is not known.
    """
    require_keys(plain, _ENTRY_KEYS, _ENTRY_MAY_HAVE, "")
    name = text(plain, "name", "")
    check_tensor_name(name, limits, "")
    try:
        module = text(plain, "module", "")
        check_module_name(module, limits, "")
        alias = text(plain, "alias", "") if "alias" in plain else None
        if alias is not None:
            check_tensor_name(alias, limits, "")
        tensor_class = one_of(plain, "class", CLASSES, "")
        base = _parse_identity(plain["base"], "base", limits) if "base" in plain else None
        result = _parse_identity(plain["result"], "result", limits) if "result" in plain else None
        components = _parse_components(plain, limits) if "components" in plain else None
        stats = _parse_stats(plain["stats"], "stats") if "stats" in plain else None
        _check_keys(base, result, alias, components)
    except SkillPackError as fault:
        raise placed(f"tensor {name!r}", fault) from None
    return made(Entry, (name, tensor_class, module, base, result, alias, components or (), stats))


def _parse_identity(plain: Any, where: str, limits: Limits) -> TensorIdentity:
    require_keys(plain, _IDENTITY_KEYS, (), where)
    dtype = dtype_named(text(plain, "dtype", where), where)
    dims = array(plain, "shape", where)
    limits.require("tensor_rank", len(dims), where)
    for dim in dims:
        if not isinstance(dim, int) or not 0 <= dim <= _MOST:
            integer({"dim": dim}, "dim", 0, _MOST, f"{where} shape[{dims.index(dim)}]", "manifest.shape")
    shape = tuple(dims)
    limits.require("tensor_bytes", tensor_nbytes(dtype, shape, where), where)
    return made(TensorIdentity, (made(TensorKind, (dtype.name, shape)), binary(plain, "sha256", 32, where)))


def _parse_components(plain: dict[str, Any], limits: Limits) -> tuple[Component, ...]:
    listed = array(plain, "components", "")
    limits.require("components", len(listed), "")
    found = []
    for index, each in enumerate(listed):
        try:
            found.append(_parse_component(each))
        except SkillPackError as fault:
            raise placed(f"component {index}", fault) from None
    return tuple(found)


def _parse_component(plain: Any) -> Component:
    if not isinstance(plain, dict):
        raise error("manifest.type", "", "a map is needed")
    params = dict(plain)
    try:
        del params["encoding"], params["sha256"]
    except KeyError as missing:
        raise error("manifest.missing-key", "", f"key {missing.args[0]!r} is missing") from None
    return made(Component, (text(plain, "encoding", ""), params, binary(plain, "sha256", 32, "")))


def _parse_stats(plain: Any, where: str) -> dict[str, int | bytes]:
    require_keys(plain, (), ("changed", *_STATS), where)
    for key in plain:
        if key in _STATS:
            binary(plain, key, _STATS[key], where)
        else:
            integer(plain, key, 0, _MOST, where)
    return dict(plain)


def _check_keys(
    base: TensorIdentity | None,
    result: TensorIdentity | None,
    alias: str | None,
    components: tuple[Component, ...] | None,
) -> None:
    """What the keys of one entry must be to each other (manifest.tensor, manifest.alias, manifest.components)."""
    if base is None and result is None:
        raise error("manifest.tensor", "", "neither base nor result is there; a change has at least one")
    if base == result:
        raise error("manifest.tensor", "", "base and result are the same; unchanged tensors are not listed")
    if alias is not None and result is None:
        raise error("manifest.alias", "", "a removed tensor cannot be an alias")
    if (components is not None) != (result is not None and alias is None):
        raise error("manifest.components", "", "components are there exactly where a result is no alias")


def _check_whole(manifest: Manifest, report: Report) -> None:
    """What entries must be to each other and to the counts."""
    aliases = [(entry, entry.alias) for entry in manifest.tensors if entry.alias is not None]
    by_name = {entry.name: entry for entry in manifest.tensors} if aliases else {}
    for entry, alias in aliases:
        target = by_name.get(alias)
        if target is not None and (target.alias is not None or target.result != entry.result):
            message = f"{alias!r} is itself an alias, is removed, or is another tensor than this one must be"
            report(error("manifest.alias", f"tensor {entry.name!r}", message))
    added = [entry.base for entry in manifest.tensors].count(None)
    removed = [entry.result for entry in manifest.tensors].count(None)
    bound = len(manifest.tensors) - added
    if manifest.base.count < bound:
        message = f"count is {manifest.base.count}, and {bound} entries have a base"
        report(error("manifest.value", "MANIFEST base", message))
    if manifest.result.count != manifest.base.count + added - removed:
        message = (
            f"count is {manifest.result.count}, base {manifest.base.count} + {added} added - {removed} removed is due"
        )
        report(error("manifest.value", "MANIFEST result", message))


def _file_to_plain(each: SideFile) -> dict[str, Any]:
    return {"length": each.nbytes, "name": each.name, "sha256": each.sha256}


def entry_to_plain(entry: Entry) -> dict[str, Any]:
    """What ``parse_entry`` reads."""
    plain: dict[str, Any] = {"class": entry.tensor_class, "module": entry.module, "name": entry.name}
    for key, identity in (("base", entry.base), ("result", entry.result)):
        if identity is not None:
            shape = list(identity.kind.shape)
            plain[key] = {"dtype": identity.kind.dtype, "sha256": identity.sha256, "shape": shape}
    if entry.alias is not None:
        plain["alias"] = entry.alias
    elif entry.result is not None:
        plain["components"] = [{"encoding": c.encoding, "sha256": c.sha256, **c.params} for c in entry.components]
    if entry.stats is not None:
        plain["stats"] = entry.stats
    return plain
