"""BitDelta's ``diff.pt``: one sign for every weight of a linear layer and one scale a matrix; other tensors whole.

``<module>.mask`` is int32 (in / 32, out), bit k of item (i, j) being the sign of weight (j, 32 i + k), 1 for plus;
``<module>.coeff`` is the scale. BitDelta's own loader rounds the scale to the dtype of the weight and adds in that
dtype; a sum that is rounded once to float32 and then to the dtype has the same bits, so the result here is its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skillpack_format.arithmetic import SMALLEST_SCALE
from skillpack_format.bits import pack
from skillpack_format.dtypes import bits_to_float32, float32_to_bits
from skillpack_format.encodings._base import Encoded, Target
from skillpack_format.errors import error
from skillpack_format.importers._base import PACKING, Change, Delta, Importer, Source, split_key, wrong
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import Limits
from skillpack_format.stores.torch_archives import TorchArchive, open_archive

_WORD: Final = 32  # signs in an item of a mask


@dataclass(frozen=True, slots=True)
class Signs:
    """Plus or minus ``coeff`` for every element of a matrix (out, in)."""

    mask: Source
    coeff: Source

    def components(self, target: Target, where: str) -> list[Encoded]:
        if len(target.shape) != 2 or (target.shape[1] // _WORD, target.shape[0]) != self.mask.spec.shape:
            found = f"a mask of {list(self.mask.spec.shape)} is for a matrix of other sides than {list(target.shape)}"
            raise error("convert.delta", where, found)
        rows, cols = target.shape
        if cols % _WORD:
            raise error("convert.delta", where, f"{cols} columns are no multiple of {_WORD}")
        scale = float32_to_bits(self.coeff.numbers().reshape(1), target.dtype)
        value = float(bits_to_float32(scale, target.dtype)[0])
        if value == 0:
            return []
        if not np.isfinite(value) or abs(value) < SMALLEST_SCALE:
            raise wrong(self.coeff.key, f"it is {value:g} in {target.dtype.name}, which cannot be a scale")
        words = np.ascontiguousarray(self.mask.bits().reshape(-1, rows).T)  # (rows, cols / 32)
        codes = pack(np.unpackbits(words.view(np.uint8), axis=1, bitorder="little"), 1, PACKING)
        params = {"bits": 1, "group": cols, "packing": PACKING, "scale": target.dtype.name, "zero": 1}
        return [Encoded("blockq", params, {"codes": codes, "scales": np.repeat(scale, rows)})]


class BitDelta:
    name = "bitdelta"

    def is_kind(self, path: Path, names: Sequence[str]) -> bool:
        return any(name.endswith(".mask") and f"{name[:-5]}.coeff" in names for name in names)

    @contextmanager
    def open(self, path: Path, limits: Limits) -> Iterator[Delta]:
        with open_archive(path, limits) as archive:
            yield Delta(changes=_changes(archive), require_unchanged=archive.require_unchanged)


def _changes(archive: TorchArchive) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for key in archive.specs:
        module, suffix = split_key(key, ("mask", "coeff", "A", "B"))
        if suffix == "mask":
            changes[f"{module}.weight"] = Change(terms=(_signs(archive, module),))
        elif suffix == "coeff":
            if f"{module}.mask" not in archive.specs:
                raise wrong(key, f"there is no {module}.mask to go with it")
        elif suffix:
            raise wrong(key, "low-rank factors of BitDelta's experiments are not read; masks and whole tensors are")
        else:
            if split_key(key, ("weight",))[0] and f"{key[:-7]}.mask" in archive.specs:
                raise wrong(key, "the tensor is there as signs and as a whole")
            changes[key] = Change(whole=Source(key, archive))
    return changes


def _signs(archive: TorchArchive, module: str) -> Signs:
    mask, coeff = f"{module}.mask", f"{module}.coeff"
    if coeff not in archive.specs:
        raise wrong(mask, f"there is no {coeff} to go with it")
    if archive.specs[mask].dtype.name != "I32" or len(archive.specs[mask].shape) != 2:
        raise wrong(mask, "a mask of BitDelta is a matrix of 32-bit integers")
    if archive.specs[coeff].shape not in ((), (1,)):
        raise wrong(coeff, "a scale of BitDelta is one number")
    return Signs(Source(mask, archive), Source(coeff, archive))


IMPORTER: Final[Importer] = BitDelta()
