"""manifest.md: the base, the result, every tensor that differs; stage 11 of container.order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .encodings import Component, Content, Part, make_component
from .errors import Limits, Refusal, within
from .fields import check_map, check_type
from .numerics import ARITHMETIC, Tensor, check_tensor, find_dtype, is_compatible

TOP_OPTIONAL = {"layout": "map"}
LAYOUT_OPTIONAL = {"index": "map"}
KEYS = {"base": "map", "files": "array", "format": "str", "metadata": "map", "result": "map", "tensors": "array"}
BASE_KEYS = {"count": "integer", "digest": "bin 32", "prints": "bin"}
RESULT_KEYS = {"count": "integer", "digest": "bin 32"}
FILE_KEYS = {"length": "integer", "name": "str", "sha256": "bin 32"}
ENTRY_KEYS = {"class": "str", "module": "str", "name": "str"}
ENTRY_OPTIONAL = {"alias": "str", "base": "map", "components": "array", "result": "map", "stats": "map"}
TENSOR_KEYS = {"dtype": "str", "sha256": "bin 32", "shape": "array"}
STATS_OPTIONAL = dict.fromkeys(("energy", "error", "norm", "projection"), "bin 4")
STATS_OPTIONAL |= {"changed": "integer", "spectrum": "bin 16"}
TENSOR_CLASSES = ("embedding", "head", "attention", "mlp", "expert", "router", "norm", "bias", "other")
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
INDEX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors\.index\.json")
FILE_NAMES = (
    "README.md added_tokens.json chat_template.jinja config.json generation_config.json merges.txt"
    " preprocessor_config.json special_tokens_map.json tokenizer.json tokenizer.model tokenizer_config.json"
    " vocab.json vocab.txt"
).split()


@dataclass
class Entry:
    name: str
    base: Tensor | None
    result: Tensor | None
    alias: str | None
    components: list[Component]

    @property
    def where(self) -> str:
        return f"tensor {self.name}"


class SideFile(Content):
    def __init__(self, name: str, length: int, sha256: bytes) -> None:
        super().__init__(f"file {name}", sha256, [Part("bytes", 1, length)])
        self.name = name


@dataclass
class Manifest:
    base_count: int
    base_digest: bytes
    prints: bytes
    result_count: int
    result_digest: bytes
    entries: list[Entry]
    files: list[SideFile]
    layout: list[SideFile]  # the index, where there is one, then the heads

    @property
    def contents(self) -> list[Content]:
        """layout.contents"""
        return [c for entry in self.entries for c in entry.components] + list[Content](self.files + self.layout)


def read_manifest(document: Any, limits: Limits) -> Manifest:
    top = check_map(document, "MANIFEST", KEYS, TOP_OPTIONAL)
    base = check_map(top["base"], "base", BASE_KEYS)
    result = check_map(top["result"], "result", RESULT_KEYS)
    if top["format"] != "skillpack/1":  # manifest.value/format
        raise Refusal("manifest.value", f"format {top['format']}")
    # limit.exceeded/tensors
    within(limits, "tensors", base["count"], "base.count")
    within(limits, "tensors", result["count"], "result.count")
    within(limits, "tensors", len(top["tensors"]), "entries")
    check_type(base["prints"], f"bin {4 * base['count']}", "base: prints")
    check_metadata(top["metadata"], limits)
    entries = [read_entry(value, k, limits) for k, value in enumerate(top["tensors"])]
    check_order([entry.name for entry in entries], "tensors")
    check_counts(base["count"], result["count"], entries)
    check_aliases(entries)
    files = read_files(top["files"], limits)
    layout = read_layout(top["layout"], limits) if "layout" in top else []
    counts = (base["count"], base["digest"], base["prints"], result["count"], result["digest"])
    return Manifest(*counts, entries, files, layout)


def check_counts(base_count: int, result_count: int, entries: list[Entry]) -> None:
    with_base = sum(entry.base is not None for entry in entries)
    with_result = sum(entry.result is not None for entry in entries)
    if base_count < with_base:  # manifest.value/base-count
        raise Refusal("manifest.value", f"base.count {base_count}, but {with_base} entries have a base")
    expected = base_count + (len(entries) - with_base) - (len(entries) - with_result)
    if result_count != expected:  # manifest.value/result-count
        raise Refusal("manifest.value", f"result.count {result_count} instead of {expected}")


def check_metadata(metadata: dict[str, Any], limits: Limits) -> None:
    # limit.exceeded/metadata
    within(limits, "metadata_entries", len(metadata), "metadata")
    for key, value in metadata.items():
        check_type(value, "str", f"metadata {key}")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    within(limits, "metadata_bytes", size, "metadata")


def check_order(names: Sequence[str], what: str) -> None:
    for before, name in pairwise(names):
        if name <= before:  # manifest.order; the names are ASCII
            raise Refusal("manifest.order", f"{what}: {name} after {before}")


def is_visible(text: str) -> bool:
    return all("\x21" <= c <= "\x7e" for c in text)


def is_tensor_name(text: str) -> bool:
    return is_visible(text) and text not in ("", "__metadata__")


def read_files(values: list[Any], limits: Limits) -> list[SideFile]:
    within(limits, "side_files", len(values), "side files")  # limit.exceeded/side-files
    files = []
    for value in values:
        file = check_map(value, "side file", FILE_KEYS)
        if file["name"] not in FILE_NAMES:  # manifest.file-name
            raise Refusal("manifest.file-name", f"the side file {file['name']} is not in the table")
        within(limits, "side_file_bytes", file["length"], f"file {file['name']}")  # limit.exceeded/side-files
        files.append(SideFile(file["name"], file["length"], file["sha256"]))
    check_order([file.name for file in files], "files")
    return files


def read_layout(value: Any, limits: Limits) -> list[SideFile]:
    layout = check_map(value, "layout", {"shards": "array"}, LAYOUT_OPTIONAL)
    within(limits, "shards", len(layout["shards"]), "layout")  # limit.exceeded/layout
    shards = [read_layout_file(each, SHARD) for each in layout["shards"]]
    index = [read_layout_file(layout["index"], INDEX)] if "index" in layout else []
    if not shards or (len(shards) > 1 and not index):  # manifest.value/layout
        raise Refusal("manifest.value", f"a layout of {len(shards)} shards, without an index")
    check_order([shard.name for shard in shards], "layout")  # manifest.order/layout
    within(limits, "layout_bytes", sum(each.size for each in index + shards), "layout")  # limit.exceeded/layout
    return index + shards


def read_layout_file(value: Any, form: re.Pattern[str]) -> SideFile:
    file = check_map(value, "file of the layout", FILE_KEYS)
    if len(file["name"]) > 128 or not form.fullmatch(file["name"]):  # manifest.file-name/layout
        raise Refusal("manifest.file-name", f"a layout has no file of the name {file['name']}")
    return SideFile(file["name"], file["length"], file["sha256"])


def read_entry(value: Any, number: int, limits: Limits) -> Entry:
    fields = check_map(value, f"entry {number}", ENTRY_KEYS, ENTRY_OPTIONAL)
    name, module = fields["name"], fields["module"]
    where = f"tensor {name}"
    if not is_tensor_name(name):  # manifest.name
        raise Refusal("manifest.name", f"entry {number}: no tensor can be called {name}")
    if not is_visible(module):  # manifest.name/module
        raise Refusal("manifest.name", f"{where}: the module is not visible ASCII: {module}")
    alias = fields.get("alias")
    if alias is not None and not is_tensor_name(alias):  # manifest.name/alias
        raise Refusal("manifest.name", f"{where}: no tensor can be called like the alias")
    within(limits, "name_bytes", len(alias or ""), f"{where}: alias")  # limit.exceeded/name
    within(limits, "name_bytes", len(name), f"entry {number}: name")
    within(limits, "name_bytes", len(module), f"{where}: module")
    if fields["class"] not in TENSOR_CLASSES:  # manifest.value/class
        raise Refusal("manifest.value", f"{where}: class {fields['class']}")
    check_map(fields.get("stats", {}), f"{where}: stats", {}, STATS_OPTIONAL)
    base = read_tensor(fields["base"], f"{where}: base", limits) if "base" in fields else None
    result = read_tensor(fields["result"], f"{where}: result", limits) if "result" in fields else None
    if base is None and result is None:  # manifest.tensor
        raise Refusal("manifest.tensor", f"{where}: neither base nor result")
    if base == result:  # manifest.tensor/unchanged
        raise Refusal("manifest.tensor", f"{where}: base and result are equal")
    if "alias" in fields and result is None:  # manifest.alias
        raise Refusal("manifest.alias", f"{where}: an alias without result")
    if ("components" in fields) != (result is not None and "alias" not in fields):  # manifest.components
        raise Refusal("manifest.components", f"{where}: components are absent, or present where they must not be")
    entry = Entry(name, base, result, alias, [])
    if result is not None and "components" in fields:
        entry.components = read_components(fields["components"], base, result, where, limits)
    return entry


def read_tensor(value: Any, where: str, limits: Limits) -> Tensor:
    fields = check_map(value, where, TENSOR_KEYS)
    for dimension in fields["shape"]:
        check_type(dimension, "integer", f"{where}: shape")
    tensor = Tensor(find_dtype(fields["dtype"], where), tuple(fields["shape"]), fields["sha256"])
    check_tensor(tensor, limits, where)
    return tensor


def read_components(
    values: list[Any], base: Tensor | None, result: Tensor, where: str, limits: Limits
) -> list[Component]:
    within(limits, "components", len(values), f"{where}: components")  # limit.exceeded/components
    if values and result.elements == 0:  # manifest.components/empty-tensor
        raise Refusal("manifest.components", f"{where}: a component, but the result has no elements")
    if not values and result.elements > 0:  # manifest.components/none
        kinds_differ = base is not None and (base.dtype, base.shape) != (result.dtype, result.shape)
        if base is None or not is_compatible(base, result) or not kinds_differ:
            raise Refusal("manifest.components", f"{where}: no component, and the base alone cannot make the result")
    components = [make_component(value, result, f"{where}, component {k}") for k, value in enumerate(values)]
    for component in components:
        within(limits, "tensor_bytes", component.size, component.where)  # limit.exceeded/tensor-bytes
        if component.additive and result.dtype.name not in ARITHMETIC:  # manifest.components/arithmetic
            raise Refusal("manifest.components", f"{component.where} adds to {result.dtype.name}")
    products = result.elements * sum(component.terms() for component in components)
    within(limits, "tensor_products", products, where)  # limit.exceeded/products
    if not all(component.additive for component in components[:-1]):  # manifest.components/order
        raise Refusal("manifest.components", f"{where}: a rewriting component that is not the last")
    return components


def check_aliases(entries: list[Entry]) -> None:
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        target = by_name.get(entry.alias) if entry.alias is not None else None
        # manifest.alias/target; manifest.alias/unlisted waits for the base
        if target is not None and (target.alias is not None or target.result != entry.result):
            raise Refusal("manifest.alias", f"{entry.where}: {entry.alias} is no proper target")
