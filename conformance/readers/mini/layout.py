"""manifest.md, Layout: the files of a folder, from heads, index and result (payload.layout, apply.layout)."""

from collections.abc import Iterator
from contextlib import contextmanager

from .apply import Pack
from .errors import Limits, Refusal
from .safetensors import Checkpoint, read_header, strict_json


def make_files(pack: Pack, result: Checkpoint, limits: Limits) -> dict[str, bytes]:
    """The shards and the index by name; none where the pack has no layout."""
    files = {file.name: pack.read_file(file) for file in pack.manifest.layout}
    home: dict[str, str] = {}  # tensor -> the shard that holds it
    for name, head in files.items():
        if name.endswith(".safetensors"):
            files[name] = head + make_data(name, head, result, home, limits)
    if files and len(home) != len(result):  # payload.layout/tensors
        raise refusal(f"{len(home)} tensors in the heads instead of {len(result)}")
    for name, content in files.items():
        if name.endswith(".index.json"):
            check_index(content, home)
    return files


def make_data(name: str, head: bytes, result: Checkpoint, home: dict[str, str], limits: Limits) -> bytes:
    """What follows a head: its tensors in the order of their offsets."""
    if int.from_bytes(head[:8], "little") != len(head) - 8:
        raise refusal(f"{name}: the head does not begin with the length of its header")
    with layout_refusals():
        places = read_header(head[8:], limits)
    for place in places:  # payload.layout/tensors
        stored = result.get(place.name)
        kind = (place.tensor.dtype, place.tensor.shape)
        if stored is None or kind != (stored.tensor.dtype, stored.tensor.shape) or place.name in home:
            raise refusal(f"{name}: tensor {place.name} is not of the result, of another kind, or there twice")
        home[place.name] = name
    return b"".join(result[place.name].data for place in places)


def check_index(content: bytes, home: dict[str, str]) -> None:
    """payload.layout/index"""
    with layout_refusals():
        index = strict_json(content)
    if not isinstance(index, dict) or index.get("weight_map") != home:
        raise refusal("the weight_map of the index is not what the heads say")


@contextmanager
def layout_refusals() -> Iterator[None]:
    """What makes a file no checkpoint makes a head no head; a limit stays one."""
    try:
        yield
    except Refusal as found:
        raise found if found.code == "limit.exceeded" else refusal(found.text) from None


def refusal(text: str) -> Refusal:
    return Refusal("payload.layout", text)
