"""The adapter of the library ``skillpack_format`` (PROTOCOL.md): what it is asked, by the library's own operations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the library of this checkout

from skillpack_format import Limits, SkillPackError, open_pack, validate, wire
from skillpack_format.container import read_header
from skillpack_format.errors import CLASS_OF, error
from skillpack_format.listing import kind_of
from skillpack_format.ops.application import Options, apply
from skillpack_format.ops.inspection import inspect, render
from skillpack_format.reader import Pack
from skillpack_format.sources import SourceFile
from skillpack_format.stores.safetensors_files import open_checkpoint

OPS = ("validate", "inspect", "decode", "slice", "apply", "folder")


def hello(_: dict[str, Any], __: Limits) -> dict[str, Any]:
    about = {"name": "skillpack_format", "version": "0.1.0", "language": "Python", "protocol": 1}
    return {"ok": True, **about, "ops": list(OPS), "codecs": ["raw", "zstd"]}


def validated(asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    base = Path(asked["base"]) if "base" in asked else None
    report = validate(Path(asked["pack"]), base=base, deep=True, limits=limits)
    if report.is_valid:
        return {"ok": True}
    first = report.problems[0]
    return refusal(CLASS_OF[first.code.partition(".")[0]].__name__, first.code, str(first))


def inspected(asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    report = inspect(Path(asked["pack"]), limits)
    with open_pack(asked["pack"], limits) as pack:
        storage = storage_of(pack, limits)
    return {"ok": True, "pack_id": report.pack_id, "manifest": report.rendering(), "storage": storage}


def storage_of(pack: Pack, limits: Limits) -> Any:
    """STORAGE of an open pack; the library keeps only what follows from it."""
    with SourceFile(pack.path) as source:
        header = read_header(lambda offset, count: bytes(source.read_at(offset, count)), source.size, limits)
    return render(wire.read(header.storage, limits, "STORAGE"))


def decoded(asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    name = asked["tensor"]
    with open_pack(asked["pack"], limits) as pack, open_checkpoint(Path(asked["base"]), limits) as base:
        entry = pack.entries.get(name)
        if entry is not None and entry.alias is not None:
            name = entry.alias
            entry = pack.entries.get(name)
        if entry is not None and entry.result is not None:
            if entry.base is not None and kind_of(base.specs[name]) != entry.base.kind:
                raise error("base.kind", f"tensor {name!r}", f"the base has it as {kind_of(base.specs[name])}")
            given = base.read(name) if entry.base is not None else None
            kind, data = entry.result.kind, pack.get_tensor(name, given).tobytes()
            dtype, shape = kind.dtype, list(kind.shape)
        else:
            spec = base.specs[name]
            dtype, shape, data = spec.dtype.name, list(spec.shape), bytes(base.read(name))
    if "rows" in asked:
        first, end = asked["rows"]
        row = len(data) // shape[0]
        shape, data = [end - first, *shape[1:]], data[first * row : end * row]
    Path(asked["out"]).write_bytes(data)
    return {"ok": True, "dtype": dtype, "shape": shape}


def applied(asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    apply(Path(asked["base"]), [Path(asked["pack"])], Path(asked["out"]), Options(limits=limits))
    return {"ok": True}


def applied_to_folder(asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    packs = [Path(each) for each in asked["packs"]]
    apply(Path(asked["base"]), packs, Path(asked["out"]), Options(limits=limits))
    return {"ok": True}


def refusal(of_class: str, code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "class": of_class, "code": code, "message": message}


HANDLERS = {
    "hello": hello, "validate": validated, "inspect": inspected, "decode": decoded, "slice": decoded, "apply": applied,
    "folder": applied_to_folder,
    "stop": lambda asked, limits: {"ok": True},
}  # fmt: skip


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = HANDLERS[asked["op"]](asked, Limits(**asked.get("limits", {})))
        except SkillPackError as found:
            answer = refusal(type(found).__name__, found.code, str(found))
        sys.stdout.write(json.dumps({"id": asked["id"], **answer}) + "\n")
        sys.stdout.flush()
        if asked["op"] == "stop":
            return


if __name__ == "__main__":
    main()
