"""Heads: what stands in safetensors files before their data. Kept in a pack, they make the files come back to the byte.

The rule: heads and index of a pack say what the result is, nothing more and nothing else, or they are refused
(payload.layout).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from skillpack_format.errors import SkillPackError, error
from skillpack_format.limits import Limits
from skillpack_format.stores.header import (
    LENGTH_BYTES,
    TensorSpec,
    canonical_order,
    encode_header,
    parse_header,
    parse_json_object,
)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one shard, and the tensors it places, in the order of their bytes."""

    file_name: str
    raw: bytes
    tensors: tuple[TensorSpec, ...]

    @property
    def file_nbytes(self) -> int:
        """The size of the whole file."""
        return len(self.raw) + sum(spec.nbytes for spec in self.tensors)


def canonical_head(file_name: str, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Head:
    """The head that the reference library writes, which lays ``tensors`` out in an order of its own."""
    ordered = canonical_order(tensors)
    raw = encode_header(ordered, {"format": "pt", **metadata})  # transformers refuses a file without
    return Head(file_name, raw, ordered)


def parse_heads(
    heads: Mapping[str, bytes], index: bytes | None, specs: Mapping[str, TensorSpec], limits: Limits
) -> tuple[Head, ...]:
    """The heads by file name, which must place every tensor of ``specs``, each once and as the kind it is.

    payload.layout where they do not, or where ``index`` maps the tensors to other files.
    """
    found = tuple(_parse_head(name, raw, limits) for name, raw in heads.items())
    home: dict[str, str] = {}
    for head in found:
        for spec in head.tensors:
            if specs.get(spec.name) != spec or spec.name in home:
                fault = "is there twice" if spec.name in home else "is no tensor of the result, or has another kind"
                raise error("payload.layout", f"layout {head.file_name}", f"tensor {spec.name!r} {fault}")
            home[spec.name] = head.file_name
    if len(home) != len(specs):
        lost = min(specs.keys() - home.keys())
        raise error("payload.layout", "layout", f"tensor {lost!r} of the result is in no file; {len(specs)} must be")
    if index is not None:
        _require_index(index, home, limits)
    return found


def _parse_head(name: str, raw: bytes, limits: Limits) -> Head:
    where = f"layout {name}"
    if int.from_bytes(raw[:LENGTH_BYTES], "little") != len(raw) - LENGTH_BYTES:
        raise error("payload.layout", where, f"a head of {len(raw)} bytes does not begin with the length of its header")
    with _layout_errors(where):
        return Head(name, raw, parse_header(raw[LENGTH_BYTES:], None, limits).tensors)


def _require_index(raw: bytes, home: Mapping[str, str], limits: Limits) -> None:
    """An index names files to the programs that load the result: these files, and no other."""
    with _layout_errors("layout index"):
        found = parse_json_object(raw, "checkpoint.index", limits)
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as failure:
        raise error("payload.layout", "layout index", "holds half a surrogate pair, no character") from failure
    except RecursionError as failure:
        raise error("limit.exceeded", "layout index", "is JSON nested too deeply for this reader") from failure
    if found.get("weight_map") != home:
        raise error("payload.layout", "layout index", "its weight_map is not what the heads say")


@contextmanager
def _layout_errors(where: str) -> Iterator[None]:
    """payload.layout for whatever is wrong with a header or index, but for a limit, which keeps its code."""
    try:
        yield
    except SkillPackError as found:
        code = "limit.exceeded" if found.code == "limit.exceeded" else "payload.layout"
        raise error(code, where, f"{found.where}: {found.message}" if found.where else found.message) from found
