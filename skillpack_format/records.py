"""A tensor that has been coded, as a record of the journal: a conversion that was stopped does not code it again.

The key is made of all that the code of a tensor depends on, so a record can only be taken for the same work; the chunks
themselves wait in the journal under keys of their own (``writer.py``).
"""

from __future__ import annotations

import struct
from importlib.metadata import version
from typing import Any, Final

from skillpack_format import wire
from skillpack_format.arithmetic import Bench
from skillpack_format.coding import Coded
from skillpack_format.contents import StoredContent
from skillpack_format.digest import TensorIdentity
from skillpack_format.errors import located
from skillpack_format.journal import key_of
from skillpack_format.limits import Limits
from skillpack_format.manifest import entry_to_plain, parse_entry
from skillpack_format.recipes import Treatment

LIBRARIES: Final = ("skillpack", "numpy", "zstandard")  # other versions may choose or compress otherwise


def record_key(
    *,
    name: str,
    tensor_class: str,
    old: TensorIdentity | None,
    new: TensorIdentity,
    treatment: Treatment,
    codec: str,
    chunk_bytes: int,
    bench: Bench,
) -> bytes:
    """The key of the work that makes a ``Coded`` of these."""
    return key_of(
        what="coded tensor",
        name=name,
        tensor_class=tensor_class,
        old=_identity(old),
        new=_identity(new),
        treatment=repr(treatment),
        codec=codec,
        chunk_bytes=chunk_bytes,
        bench=type(bench).__qualname__,
        libraries=[version(each) for each in LIBRARIES],
    )


def to_record(coded: Coded) -> bytes:
    """All of ``coded`` but its chunks."""
    entry = coded.entry
    is_unchanged = entry.result == entry.base  # which no entry of a pack may be; here it says: worked on, nothing kept
    plain = {
        "contents": [
            {"codec": each.codec, "nbytes": each.nbytes, "sha256": each.sha256, "table": each.table}
            for each in coded.contents
        ],
        "entry": entry_to_plain(entry._replace(result=None) if is_unchanged else entry),
        "error": [] if coded.error is None else [struct.pack("<d", coded.error)],
        "is_unchanged": int(is_unchanged),
    }
    return wire.write(plain)


def from_record(record: bytes, limits: Limits) -> Coded:
    """What ``to_record`` was given, its contents without chunks."""
    plain = wire.read(record, limits, "journal")
    with located("journal"):
        entry = parse_entry(plain["entry"], limits)
    error = struct.unpack("<d", plain["error"][0])[0] if plain["error"] else None
    contents = tuple(
        StoredContent(each["sha256"], each["codec"], each["table"], (), each["nbytes"]) for each in plain["contents"]
    )
    return Coded(entry._replace(result=entry.base) if plain["is_unchanged"] else entry, contents, error)


def _identity(identity: TensorIdentity | None) -> Any:
    return [] if identity is None else [identity.kind.dtype, list(identity.kind.shape), identity.sha256]
