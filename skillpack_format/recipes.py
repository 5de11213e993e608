"""Recipes: which treatment each module class gets. Pure values; ``encoders`` carries them out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from skillpack_format.errors import error


@dataclass(frozen=True, slots=True)
class Lossless:
    """The cheapest exact code."""


@dataclass(frozen=True, slots=True)
class Slices:
    """``lowrank``: the quantiser's step as a multiple of the delta's rms; components below ``cosine`` are dropped."""

    step: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Prune:
    """``sparse``: the share ``keep`` of the elements that changed most, added in BF16; the others stay."""

    keep: float


@dataclass(frozen=True, slots=True)
class Bands:
    """``factors``: a truncated SVD in bands of falling precision.

    The rank is ``rank`` as a share of the smaller dimension, or the smallest that keeps the share ``energy`` of the
    squared singular values. ``schedule`` lists (bits, share of the rank) from the strongest component down.
    """

    schedule: tuple[tuple[int, float], ...]
    group: int
    rank: float | None = None
    energy: float | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """``blockq``: codes of ``bits`` bits for the delta's entries, an unbiased scale for every ``group`` columns.

    In a vector the levels go as far out as makes the least error; in a matrix to its largest entry.
    """

    bits: int
    group: int


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing: the tensor stays as in the base."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Whatever the plan for the whole checkpoint gives this tensor: see ``planning``."""


@dataclass(frozen=True, slots=True)
class Priced:
    """The code of least ``noise`` * its noise + ``lost`` * what it leaves out + ``byte`` * its bytes: see ``planning``.

    What ``Planned`` becomes where the price is known before any code has been tried.
    """

    noise: float
    lost: float
    byte: float


Coding = Lossless | Slices | Prune | Bands | Blocks | Unchanged
Treatment = Coding | Planned | Priced


@dataclass(frozen=True, slots=True)
class Recipe:
    """A name and the treatment of every class; a class that is not listed stays exact."""

    name: str
    treatments: Mapping[str, Treatment] = field(default_factory=dict)
    price: float | None = None  # of the planned tensors, where the caller sets no goal: see planning.Quality

    def treatment(self, tensor_class: str) -> Treatment:
        return self.treatments.get(tensor_class, Lossless())


MATRIX_CLASSES: Final = ("attention", "embedding", "expert", "head", "mlp")
VECTOR_CLASSES: Final = ("bias", "norm")
LOSSLESS: Final = Recipe("lossless")


def sliced(name: str, step: float, cosine: float) -> Recipe:
    """Integer slices for every matrix; router, norms, biases and whatever else there is stay exact."""
    if not (0 < step < math.inf and 0 <= cosine < 1):
        raise error("usage.argument", "", f"step {step} must be above 0, cosine {cosine} at least 0 and below 1")
    return Recipe(name, {each: Slices(step, cosine) for each in MATRIX_CLASSES})


def graftllm(
    *,
    keep: float = 0.05,
    rank: float = 0.25,
    energy: float = 0.9,
    schedule: tuple[tuple[int, float], ...] = ((8, 0.02), (4, 0.18), (2, 0.80)),
    group: int = 128,
) -> Recipe:
    """What the GraftLLM paper describes: embeddings and head pruned, attention at a fixed rank, MLP at the smallest
    rank that keeps ``energy``, both in bands of bits. Norms and biases, of which the paper says nothing, stay exact.

    The paper's own ``keep`` and ``energy`` are not known; the schedule is that of its code (20, 180 and 800 of 1000).
    """
    for label, share in (("keep", keep), ("rank", rank), ("energy", energy)):
        if not 0 < share <= 1:
            raise error("usage.argument", "", f"{label} is {share}, it must be above 0 and at most 1")
    shares = [share for _, share in schedule]
    if not all(1 <= bits <= 8 for bits, _ in schedule) or not all(0 < share <= 1 for share in shares):
        raise error("usage.argument", "", "a band needs 1 to 8 bits and a share of the rank above 0 and at most 1")
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise error("usage.argument", "", f"the bands' shares of the rank add up to {sum(shares)}, they must make 1")
    if not 1 <= group <= 1 << 32:
        raise error("usage.argument", "", f"group is {group}, it must be 1 to 2^32")
    attention = Bands(schedule, group, rank=rank)
    mlp = Bands(schedule, group, energy=energy)
    pruned = Prune(keep)
    return Recipe("graftllm", {"attention": attention, "embedding": pruned, "expert": mlp, "head": pruned, "mlp": mlp})


def planned(name: str, price: float | None = None) -> Recipe:
    """Every matrix, norm and bias coded as the plan for the whole checkpoint says; the rest exact."""
    return Recipe(name, {each: Planned() for each in (*MATRIX_CLASSES, *VECTOR_CLASSES)}, price)


STANDARD: Final = planned("standard", 0.01)
SMALL: Final = planned("small", 0.1)
RECIPES: Final[Mapping[str, Recipe]] = {
    "standard": STANDARD,
    "small": SMALL,
    "graftllm": graftllm(),
    "lossless": LOSSLESS,
}
