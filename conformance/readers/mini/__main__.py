"""The adapter: one JSON object a line on standard input, one answer a line on standard output."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

if not __package__:  # the directory itself is executed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from mini.apply import Pack, apply, apply_one
from mini.codec import CODECS
from mini.errors import DEFAULTS, Limits, Refusal
from mini.fields import render
from mini.layout import make_files
from mini.safetensors import Checkpoint, Stored, read_checkpoint, write_checkpoint

Answer = dict[str, Any]


class Unsupported(Exception):  # noqa: N818 -- an answer of the protocol, no error
    """This reader does not support what is asked."""


def read_limits(request: Answer) -> Limits:
    """Lowers limits; a value above the default has no effect in this reader."""
    limits = dict(DEFAULTS)
    for name, value in request.get("limits", {}).items():
        if name not in limits:
            raise Unsupported(f"the limit {name}")
        limits[name] = min(value, limits[name])
    return limits


@contextmanager
def open_input(path: str, missing: str) -> Iterator[BinaryIO]:
    try:
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise Refusal(missing, f"there is no file {path}") from None
    except OSError as error:
        raise Refusal("input.failed", f"{path}: {error.strerror}") from None


@contextmanager
def open_pack(request: Answer) -> Iterator[Pack]:
    with open_input(request["pack"], "input.failed") as file:
        yield Pack(file, read_limits(request))


def open_base(request: Answer) -> Checkpoint:
    with open_input(request["base"], "checkpoint.missing") as file:
        return read_checkpoint(file, read_limits(request))


def hello(request: Answer) -> Answer:
    ops = [name for name in OPS if name != "hello"]
    return {"name": "mini", "version": "1", "language": "Python", "protocol": 1, "ops": ops, "codecs": list(CODECS)}


def validate(request: Answer) -> Answer:
    with open_pack(request) as pack:
        if "base" in request:
            apply(pack, open_base(request))
        else:
            pack.read_everything()
        for file in pack.manifest.layout:
            pack.read_file(file)
    return {}


def inspect(request: Answer) -> Answer:
    with open_pack(request) as pack:
        manifest, storage = render(pack.manifest_document), render(pack.storage_document)
        return {"pack_id": pack.container.pack_id.hex(), "manifest": manifest, "storage": storage}


def decode(request: Answer) -> Answer:
    with open_pack(request) as pack:
        stored = apply_one(pack, open_base(request), request["tensor"])
    write_whole({request["out"]: stored.data}, request)
    return {"dtype": stored.tensor.dtype.name, "shape": list(stored.tensor.shape)}


def slice_rows(request: Answer) -> Answer:
    with open_pack(request) as pack:
        stored = apply_one(pack, open_base(request), request["tensor"])
    data, shape = cut_rows(stored, *request["rows"])
    write_whole({request["out"]: data}, request)
    return {"dtype": stored.tensor.dtype.name, "shape": shape}


def cut_rows(stored: Stored, first: int, end: int) -> tuple[bytes, list[int]]:
    shape, dtype = list(stored.tensor.shape), stored.tensor.dtype
    if not shape or not 0 <= first <= end <= shape[0]:
        raise Refusal("usage.argument", f"rows {first} to {end} of the shape {shape}")
    row_bits = stored.tensor.elements // shape[0] * dtype.bits if shape[0] else 0
    if row_bits % 8:
        raise Refusal("unsupported.operation", f"a row of {row_bits} bits")
    return stored.data[first * row_bits // 8 : end * row_bits // 8], [end - first, *shape[1:]]


def apply_all(request: Answer) -> Answer:
    with open_pack(request) as pack:
        result, _ = apply(pack, open_base(request))  # apply.side-files: one file is written; they have been verified
    write_whole({request["out"]: result}, request)
    return {}


def apply_folder(request: Answer) -> Answer:
    """Packs one after the other, the result as the files of a folder."""
    limits, given = read_limits(request), Path(request["base"])
    result = open_base({**request, "base": str(given / "model.safetensors")})
    files: dict[str, Any] = {path.name: path.read_bytes() for path in given.iterdir() if path.suffix == ".json"}
    layout: dict[str, bytes] = {}
    for pack_path in request["packs"]:
        with open_pack({**request, "pack": pack_path}) as pack:
            result, brought = apply(pack, result)
            files |= brought  # apply.side-files
            layout = make_files(pack, result, limits) if pack_path == request["packs"][-1] else {}  # apply.layout
    write_folder(Path(request["out"]), files | (layout or {"model.safetensors": result}))
    return {}


def write_folder(out: Path, files: dict[str, Any]) -> None:
    """apply.complete: the folder gets its name when it holds everything; safe.no-paths: it is new, so without links."""
    beside = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        beside.mkdir()
        for name, data in files.items():
            with (beside / name).open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    write_checkpoint(file, data)
        beside.rename(out)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise Refusal("output.failed", f"{out}: {error.strerror}") from None


def write_whole(outputs: dict[str, Any], request: Answer) -> None:
    """apply.complete: everything is written under other names first; a rename never goes through a link."""
    inputs = [os.path.realpath(request[key]) for key in ("pack", "base")]
    if any(os.path.realpath(path) in inputs for path in outputs):
        raise Refusal("output.alias", "the output is one of the inputs")
    written: list[tuple[str, str]] = []
    try:
        for path, data in outputs.items():
            name = f"{path}.{os.getpid()}.part"
            with Path(name).open("xb") as file:
                written.append((name, path))
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    write_checkpoint(file, data)
        while written:
            Path(written[0][0]).replace(written[0][1])
            written.pop(0)
    except OSError as error:
        raise Refusal("output.failed", f"{request['out']}: {error.strerror}") from None
    finally:
        for name, _ in written:
            Path(name).unlink(missing_ok=True)


OPS: dict[str, Callable[[Answer], Answer]] = {
    "hello": hello,
    "validate": validate,
    "inspect": inspect,
    "decode": decode,
    "slice": slice_rows,
    "apply": apply_all,
    "folder": apply_folder,
}


def answer(request: Answer) -> Answer:
    if request.get("op") not in OPS:
        return {"id": request.get("id"), "unsupported": f"the operation {request.get('op')}"}
    try:
        return {"id": request["id"], "ok": True, **OPS[request["op"]](request)}
    except Unsupported as what:
        return {"id": request["id"], "unsupported": str(what)}
    except Refusal as refusal:
        code, kind, text = refusal.code, refusal.kind, refusal.text
    except MemoryError:  # reader.limits
        code, kind, text = "limit.exceeded", "LimitError", "there is too little memory"
    return {"id": request["id"], "ok": False, "class": kind, "code": code, "message": text}


def main() -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        stop = request.get("op") == "stop"
        print(json.dumps({"id": request["id"], "ok": True} if stop else answer(request)), flush=True)
        if stop:
            return


if __name__ == "__main__":
    main()
