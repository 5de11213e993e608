"""Components of every encoding for a tensor, with every parameter and every part that the pages allow."""

from __future__ import annotations

from random import Random

from conformance import assemble as oracle
from conformance.assemble import WIDTH, Component, pack
from conformance.sources import models

from . import numbers

PACKINGS = ("stream", "lanes")
ULP = tuple(d for d, (bits, kind) in WIDTH.items() if bits >= 8 and kind in ("float", "int", "uint"))


def listed(rng: Random, dtype: str, shape: list[int]) -> list[Component]:
    """Components of an entry whose result has elements: additive ones, then perhaps one that rewrites."""
    additive = rng.choice([0, 1, 1, 1, 2, 3]) if dtype in numbers.FLOATS else 0
    most = rng.randint(4, 7) if additive and rng.random() < 0.03 else additive
    found = [rng.choice(ADDITIVE)(rng, shape) for _ in range(max(additive, most))]
    if not found or rng.random() < 0.3:
        found.append(rewriting(rng, dtype, shape))
    return found


def rewriting(rng: Random, dtype: str, shape: list[int]) -> Component:
    ways = [dense_replace]
    if WIDTH[dtype][0] >= 8:
        ways.append(sparse_replace)
    if dtype in ULP:
        ways += [ulp, ulp]
    return rng.choice(ways)(rng, dtype, shape)


def dense_replace(rng: Random, dtype: str, shape: list[int]) -> Component:
    return models.dense(dtype, numbers.patterns(rng, dtype, oracle.numel(shape)))


def sparse_replace(rng: Random, dtype: str, shape: list[int]) -> Component:
    return placed(rng, dtype, oracle.numel(shape), "replace")


def ulp(rng: Random, dtype: str, shape: list[int]) -> Component:
    width, count = WIDTH[dtype][0] // 8, oracle.numel(shape)
    steps = [rng.choice([0, 0, 1, 2, 3, rng.randrange(40), rng.randrange(1 << (8 * width))]) for _ in range(count)]
    sort = rng.choice(["none", "magnitude", "rows", "rows"]) if dtype in numbers.FLOATS else "none"
    stack, rows, _ = oracle.grid(shape)
    classes = bytes(rng.choice([0, 0, 1, 2, 255]) for _ in range(stack * rows))
    return models.ulp_steps(dtype, steps, sort, classes)


def placed(rng: Random, dtype: str, count: int, mode: str) -> Component:
    share = rng.choice([0.0, 0.1, 0.5, 1.0])
    places = [k for k in range(count) if rng.random() < share]
    make = numbers.finites if mode == "add" else numbers.patterns
    values = make(rng, dtype, len(places))
    index = rng.choice(["gap8", "gap16", "bitmap"])
    if index == "bitmap":
        bits = sum(1 << k for k in places)
        return models.sparse(index, bits.to_bytes((count + 7) // 8, "little"), dtype, values, mode)
    escape = 255 if index == "gap8" else 65535
    codes: list[int] = []
    at = 0
    for place in places:
        codes += [escape] * ((place - at) // escape) + [(place - at) % escape]
        at = place + 1
    return models.sparse(index, codes, dtype, values, mode)


# ------------------------------------------------------------------------------------------------ additive ones


def dense_add(rng: Random, shape: list[int]) -> Component:
    dtype = rng.choice(numbers.FLOATS)
    return models.dense(dtype, numbers.finites(rng, dtype, oracle.numel(shape)), "add")


def sparse_add(rng: Random, shape: list[int]) -> Component:
    return placed(rng, rng.choice(numbers.FLOATS), oracle.numel(shape), "add")


def blockq(rng: Random, shape: list[int]) -> Component:
    stack, rows, cols = oracle.grid(shape)
    bits, scale = rng.randint(1, 8), rng.choice(numbers.FLOATS)
    group = rng.choice([1, 2, 3, cols, cols + 1, 1 << 32])
    groups = stack * rows * -(-cols // group)
    top = (1 << (bits + 1)) - 2
    zero = (
        {"zero": rng.randint(0, top)} if rng.random() < 0.5 else {"zeros": [rng.randint(0, top) for _ in range(groups)]}
    )
    codes = quantised(rng, bits, oracle.numel(shape))
    return models.blockq(bits, codes, numbers.scales(rng, scale, groups), group, rng.choice(PACKINGS), scale, **zero)


def quantised(rng: Random, bits: int, count: int) -> list[int]:
    return [rng.choice([0, (1 << bits) - 1, rng.randrange(1 << bits)]) for _ in range(count)]


def lowrank(rng: Random, shape: list[int]) -> Component:
    stack, rows, cols = oracle.grid(shape)
    slices = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        rank = rng.randint(1, min(rows, cols, 3))
        bits_u, bits_v = rng.randint(1, 8), rng.randint(1, 8)
        u = quantised(rng, bits_u, stack * rank * rows)
        v = quantised(rng, bits_v, stack * rank * cols)
        slices.append((rank, bits_u, bits_v, numbers.scales(rng, "F32", stack), u, v))
    return models.lowrank(slices, rng.choice(PACKINGS))


def factors(rng: Random, shape: list[int]) -> Component:
    stack, rows, cols = oracle.grid(shape)
    group, packing, scale = rng.choice([1, 2, 3, 1 << 32]), rng.choice(PACKINGS), rng.choice(numbers.FLOATS)
    bands = []
    for _ in range(rng.choice([1, 1, 2])):
        rank, code = rng.randint(1, min(rows, cols, 3)), rng.choice([*numbers.FLOATS, *(f"Q{b}" for b in range(1, 9))])
        sides: list[models.Factor] = []
        for dim in (rows, cols):
            count = stack * rank * dim
            if code[0] == "Q":
                packed = pack(quantised(rng, int(code[1:]), count), int(code[1:]), packing)
                sides.append((packed, numbers.scales(rng, scale, stack * rank * -(-dim // group))))
            else:
                sides.append(numbers.finites(rng, code, count))
        bands.append((code, rank, numbers.finites(rng, "F32", stack * rank), sides[0], sides[1]))
    return models.factors(bands, group, packing, scale)


ADDITIVE = (dense_add, sparse_add, blockq, lowrank, factors)
