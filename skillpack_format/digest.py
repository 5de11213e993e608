"""SHA-256 identities: of bytes and of whole checkpoints (spec/manifest.md, "Digests")."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from skillpack_format import wire
from skillpack_format.lazy_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bytes = bytes | bytearray | memoryview

PRINT_BYTES: Final = 4  # manifest.md: leading bytes of a tensor's digest kept to name a wrong tensor


def sha256(data: Bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sha256_of(values: NDArray[Any]) -> bytes:
    """The digest of a C-contiguous array's bytes."""
    return sha256(values.reshape(-1).view(np.uint8).data)


class TensorKind(NamedTuple):  # this and the next: see fields.made
    """What a tensor is without its bytes: the dtype's name and the shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class TensorIdentity(NamedTuple):
    """One tensor of one checkpoint: its kind and the SHA-256 of its bytes as safetensors stores them."""

    kind: TensorKind
    sha256: bytes


def checkpoint_digest(tensors: Iterable[tuple[str, TensorIdentity]]) -> bytes:
    """The identity of a checkpoint, however sharded: SHA-256 of its listing in strict msgpack, ascending by name."""
    listing = [[name, each.kind.dtype, list(each.kind.shape), each.sha256] for name, each in sorted(tensors)]
    return sha256(wire.write(listing))
