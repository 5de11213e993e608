"""Changes of documents and of bytes, as plain data that can be shown in a case file.

A document edit is a dict such as ``{"put": "tensors/0/class", "value": "other"}``; a byte patch one such as
``{"at": 16, "xor": "01"}``. Values may hold ``Wire`` (bytes that stand in the file as they are) and ``Pairs`` (a map
whose keys come in any order, any number of times and of any type): a malformed document is a small edit of a valid one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance import assemble as oracle

SHOWN = 96  # bytes or characters of a value that a case file shows; longer ones are named by length and digest
Edit = dict[str, Any]
Patch = dict[str, Any]


@dataclass(frozen=True)
class Wire:
    """Bytes that stand where a value should."""

    data: bytes


@dataclass(frozen=True)
class Pairs:
    """A map as it lies in the file."""

    pairs: Sequence[tuple[Any, Any]]


def encoded(value: Any) -> bytes:
    """The wire form of a document that may hold ``Wire`` and ``Pairs``."""
    if isinstance(value, Wire):
        return value.data
    if isinstance(value, Pairs):
        return oracle.head("map", len(value.pairs)) + b"".join(encoded(k) + encoded(v) for k, v in value.pairs)
    if isinstance(value, dict):
        ordered = sorted(value, key=lambda key: key.encode("utf-8"))
        return oracle.head("map", len(value)) + b"".join(encoded(key) + encoded(value[key]) for key in ordered)
    if isinstance(value, list):
        return oracle.head("array", len(value)) + b"".join(map(encoded, value))
    return oracle.scalar(value)[0]


# ------------------------------------------------------------------------------------------------ document edits


def put(path: str, value: Any) -> Edit:
    """The value at ``path`` (keys and indices with ``/`` between, ``""`` for the whole) becomes ``value``."""
    return {"put": path, "value": value}


def drop(path: str) -> Edit:
    return {"drop": path}


def insert(path: str, value: Any) -> Edit:
    """``value`` comes into an array before the item at ``path``."""
    return {"insert": path, "value": value}


def rename(path: str, to: str) -> Edit:
    """The key at the end of ``path`` becomes ``to``."""
    return {"rename": path, "to": to}


def keys(path: str, order: Sequence[Any]) -> Edit:
    """The map at ``path`` is written with its keys in this order, which may repeat one."""
    return {"keys": path, "order": list(order)}


def swap(path: str, first: int, second: int) -> Edit:
    """Two items of the array at ``path`` change places."""
    return {"swap": path, "items": [first, second]}


def edited(document: Any, edits: Sequence[Edit]) -> Any:
    """A changed copy of ``document``."""
    found = copy.deepcopy(document)
    for edit in edits:
        verb = next(iter(edit))
        if edit[verb] == "" and verb == "put":
            found = edit["value"]
            continue
        if edit[verb] == "":
            found = _in_place(found, verb, edit)
            continue
        *steps, last = edit[verb].split("/")
        holder = found
        for step in steps:
            holder = holder[_step(holder, step)]
        _edit(holder, _step(holder, last), verb, edit)
    return found


def _step(holder: Any, step: str) -> Any:
    return int(step) if isinstance(holder, list) else step


def _edit(holder: Any, last: Any, verb: str, edit: Edit) -> None:
    if verb == "put":
        holder[last] = edit["value"]
    elif verb == "drop":
        del holder[last]
    elif verb == "insert":
        holder.insert(last, edit["value"])
    elif verb == "rename":
        holder[edit["to"]] = holder.pop(last)
    else:
        holder[last] = _in_place(holder[last], verb, edit)


def _in_place(value: Any, verb: str, edit: Edit) -> Any:
    if verb == "keys":
        return Pairs([(key, value[key]) for key in edit["order"]])
    assert verb == "swap", verb
    first, second = edit["items"]
    value[first], value[second] = value[second], value[first]
    return value


# ------------------------------------------------------------------------------------------------ byte patches


def xor(at: int | str, mask: str) -> Patch:
    return {"at": at, "xor": mask}


def write(at: int | str, data: bytes) -> Patch:
    return {"at": at, "write": data}


def add(at: int | str, data: bytes) -> Patch:
    """``data`` comes in before the byte at ``at``."""
    return {"at": at, "insert": data}


def delete(at: int | str, count: int) -> Patch:
    return {"at": at, "delete": count}


def truncate(at: int | str) -> Patch:
    return {"at": at, "truncate": True}


def replaced(text: str, by: str | bytes) -> Edit:
    """Of a head or an index: ``text``, which is there once, becomes ``by``."""
    return {"replace": text, "by": by}


def rewritten(data: bytes, edits: Sequence[Edit | Patch], is_head: bool) -> bytes:
    """A head or index after ``edits``: replacements, which repair the length of a head, or byte patches."""
    found = data
    for edit in edits:
        if "replace" not in edit:
            found = patched(found, [edit])
            continue
        text, by = edit["replace"].encode(), edit["by"]
        assert found.count(text) == 1, f"{edit['replace']!r} is there {found.count(text)} times"
        found = found.replace(text, by.encode() if isinstance(by, str) else by)
        if is_head:
            found = (len(found) - 8).to_bytes(8, "little") + found[8:]
    return found


def patched(data: bytes, patches: Sequence[Patch], marks: Mapping[str, int] | None = None) -> bytes:
    """``data`` after ``patches``. ``at`` is a number (from the end where negative) or ``mark+number``."""
    found = bytearray(data)
    for patch in patches:
        at = _position(patch["at"], {"end": len(found), **(marks or {})}, len(found))
        if "xor" in patch:
            for k, mask in enumerate(bytes.fromhex(patch["xor"])):
                found[at + k] ^= mask
        elif "write" in patch:
            assert at + len(patch["write"]) <= len(found)
            found[at : at + len(patch["write"])] = patch["write"]
        elif "insert" in patch:
            found[at:at] = patch["insert"]
        elif "delete" in patch:
            del found[at : at + patch["delete"]]
        else:
            del found[at:]
    return bytes(found)


def _position(at: int | str, marks: Mapping[str, int], length: int) -> int:
    if isinstance(at, str):
        mark, _, distance = at.partition("+")
        return marks[mark] + int(distance or 0)
    return at if at >= 0 else length + at


# ------------------------------------------------------------------------------------------------ showing


def shown(value: Any) -> Any:
    """A change as JSON for a case file."""
    if isinstance(value, Wire):
        return {"wire": shown(value.data)}
    if isinstance(value, Pairs):
        return {"pairs": [[shown(k), shown(v)] for k, v in value.pairs]}
    if isinstance(value, oracle.Tensor):
        return {"dtype": value.dtype, "shape": value.shape, "bytes": shown(value.data)}
    if isinstance(value, Mapping):
        return {str(key): shown(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value]
    if isinstance(value, bytes):
        return value.hex() if len(value) <= SHOWN else _named(value)
    if isinstance(value, str) and len(value) > 2 * SHOWN:
        return _named(value.encode())
    return value if not isinstance(value, int) or value < 1 << 53 else str(value)


def _named(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "begins": data[:8].hex(), "sha256": hashlib.sha256(data).hexdigest()}
