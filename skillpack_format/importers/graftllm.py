"""The U, S and V that GraftLLM and Delta-CoMe save with torch, and the merged weights they make of them.

``<module>.U`` (out, r), ``.S`` (r,) and ``.V`` (in, r) stand for U diag(S) V^T added to ``<module>.weight``; after
quantisation there is one such triple for each bit width, ``.U_8``, ``.S_8``, ``.V_8`` and so on. ``<module>.base`` is
the base's own weight, which must be the one of the base that is given. The numbers are carried as they are, so the sum
is exact where the tools' own merge rounds every step to 16 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skillpack_format.encodings._base import Encoded, Target
from skillpack_format.importers._base import Change, Delta, Factors, Importer, Source, code_of, wrong
from skillpack_format.lazy_numpy import np
from skillpack_format.limits import Limits
from skillpack_format.stores.torch_archives import TorchArchive, open_archive

_KEY: Final = re.compile(r"(?P<module>.+)\.(?P<part>base|weight|[USV])(?P<bits>_[0-9]{1,2})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Triple:
    """u (rows, r), s (r,) and v (cols, r)."""

    u: Source
    s: Source
    v: Source

    def components(self, target: Target, where: str) -> list[Encoded]:
        u, s, v = self.u.numbers(), self.s.numbers(), self.v.numbers()
        found = Factors(np.ascontiguousarray(u.T), s, np.ascontiguousarray(v.T), code_of(self.u, self.v))
        return found.components(target, where)


class GraftLLM:
    name = "graftllm"

    def is_kind(self, path: Path, names: Sequence[str]) -> bool:
        parts = {match["part"] for name in names if (match := _KEY.fullmatch(name))}
        return parts >= {"U", "S", "V"}

    @contextmanager
    def open(self, path: Path, limits: Limits) -> Iterator[Delta]:
        with open_archive(path, limits) as archive:
            yield Delta(changes=_changes(archive), require_unchanged=archive.require_unchanged)


def _changes(archive: TorchArchive) -> dict[str, Change]:
    modules: dict[str, dict[str, Source]] = {}
    for key in archive.specs:
        match = _KEY.fullmatch(key)
        if match is None or (match["bits"] and match["part"] in ("base", "weight")):
            raise wrong(key, "it is none of base, weight, U, S and V of a module")
        modules.setdefault(match["module"], {})[key[len(match["module"]) + 1 :]] = Source(key, archive)
    return {f"{module}.weight": _change(module, found) for module, found in modules.items()}


def _change(module: str, found: dict[str, Source]) -> Change:
    bands = sorted({part[1:] for part in found if part[0] in "USV"}, key=lambda bits: -int(bits[1:] or 0))
    if "weight" in found:
        if bands:
            raise wrong(found["weight"].key, "the tensor is there as factors and as a whole")
        return Change(whole=found["weight"], original=found.get("base"))
    if "" in bands and len(bands) > 1:
        raise wrong(f"{module}.U", f"the tensor is there as one triple and as bands ({', '.join(filter(None, bands))})")
    if not bands:
        raise wrong(f"{module}.base", "there are no factors to go with it")
    return Change(terms=tuple(_triple(module, bits, found) for bits in bands), original=found.get("base"))


def _triple(module: str, bits: str, found: dict[str, Source]) -> Triple:
    missing = [f"{part}{bits}" for part in "USV" if f"{part}{bits}" not in found]
    if missing:
        there = next(part for part in found if part[1:] == bits and part[0] in "USV")
        raise wrong(found[there].key, f"there is no {module}.{missing[0]} to go with it")
    u, s, v = (found[f"{part}{bits}"] for part in "USV")
    shapes = u.spec.shape, s.spec.shape, v.spec.shape
    if (len(shapes[0]), len(shapes[1]), len(shapes[2])) != (2, 1, 2):
        raise wrong(u.key, f"U, S and V of shapes {', '.join(str(list(shape)) for shape in shapes)} are not factors")
    if not shapes[0][1] == shapes[1][0] == shapes[2][1]:
        raise wrong(u.key, f"U, S and V are of ranks {shapes[0][1]}, {shapes[1][0]} and {shapes[2][1]}")
    return Triple(u, s, v)


IMPORTER: Final[Importer] = GraftLLM()
