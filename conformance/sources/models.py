"""Words for the sources: tensors, components and the packs that several areas change."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from conformance import assemble as oracle
from conformance.assemble import Component, Entry, Tensor, bits_of, component, from_items, pack
from conformance.assembler.draft import Model

Number = Fraction | int | str
q = Fraction


def power(k: int) -> Fraction:
    return Fraction(2) ** k


def tensor(dtype: str, shape: Sequence[int], *values: Number) -> Tensor:
    """Values that the dtype holds exactly, or bit patterns as '0x...'; integers of integer dtypes as they are."""
    if dtype in oracle.BINARY:
        return Tensor(dtype, list(shape), bits_of(dtype, *values))
    bits = oracle.WIDTH[dtype][0]
    patterns = [int(v, 16) if isinstance(v, str) else int(v) % (1 << bits) for v in values]
    return Tensor(dtype, list(shape), from_items(patterns, bits // 8))


def raw(dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
    return Tensor(dtype, list(shape), data)


def noise(count: int, seed: int = 1, below: int = 256) -> list[int]:
    """Numbers of a linear congruential generator (Knuth's MMIX), the upper bits of each state."""
    state, found = seed, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        found.append((state >> 33) % below)
    return found


def dense(dtype: str, data: bytes, mode: str = "replace") -> Component:
    width = max(oracle.WIDTH[dtype][0] // 8, 1)
    return component("dense", {"dtype": dtype, "mode": mode}, ("values", width, data))


def dense_add(dtype: str, *values: Number) -> Component:
    return dense(dtype, bits_of(dtype, *values), "add")


def sparse(
    index: str, codes: Sequence[int] | bytes, dtype: str, values: bytes, mode: str = "replace", count: int | None = None
) -> Component:
    """``codes`` are the items of the part ``index`` (bytes for a bitmap)."""
    width = 2 if index == "gap16" else 1
    data = codes if isinstance(codes, bytes) else from_items(codes, width)
    listed = len(values) // (oracle.WIDTH[dtype][0] // 8) if count is None else count
    params = {
        "count": listed,
        "dtype": dtype,
        "gaps": 0 if index == "bitmap" else len(data) // width,
        "index": index,
        "mode": mode,
    }
    return component("sparse", params, ("index", width, data), ("values", oracle.WIDTH[dtype][0] // 8, values))


def blockq(
    bits: int,
    codes: Sequence[int],
    scales: bytes,
    group: int,
    packing: str = "stream",
    scale: str = "F32",
    zero: int | None = None,
    zeros: Sequence[int] | None = None,
) -> Component:
    params: dict[str, Any] = {"bits": bits, "group": group, "packing": packing, "scale": scale}
    parts = [("codes", 1, pack(codes, bits, packing)), ("scales", oracle.WIDTH[scale][0] // 8, scales)]
    if zero is not None:
        params["zero"] = zero
    else:
        assert zeros is not None
        parts.append(("zeros", 2, from_items(zeros, 2)))
    return component("blockq", params, *parts)


def lowrank(
    slices: Sequence[tuple[int, int, int, bytes, Sequence[int], Sequence[int]]], packing: str = "lanes"
) -> Component:
    """Slices as (rank, bits of U, bits of V, scales of all matrices, codes of U, codes of V)."""
    params = {"packing": packing, "slices": [{"bits_u": bu, "bits_v": bv, "rank": r} for r, bu, bv, *_ in slices]}
    stack = len(slices[0][3]) // 4
    parts = [("scales", 4, b"".join(each[3][4 * e : 4 * e + 4] for e in range(stack) for each in slices))]
    for k, (_, bu, bv, _, u, v) in enumerate(slices):
        parts += [(f"u{k}", 1, pack(u, bu, packing)), (f"v{k}", 1, pack(v, bv, packing))]
    return component("lowrank", params, *parts)


def ulp_steps(dtype: str, steps: Sequence[int], sort: str = "none", classes: bytes = b"") -> Component:
    width = oracle.WIDTH[dtype][0] // 8
    parts = [("classes", 1, classes)] if sort == "rows" else []
    return component("ulp", {"sort": sort}, *parts, ("diff", width, from_items(steps, width)))


Factor = tuple[bytes, bytes] | bytes  # float items; or packed codes and their scales


def factors(
    bands: Sequence[tuple[str, int, bytes, Factor, Factor]], group: int = 1, packing: str = "lanes", scale: str = "F32"
) -> Component:
    """Bands as (code, rank, S, U, V); U and V of a Q code are (packed codes, scales)."""
    params = {
        "bands": [{"code": code, "rank": rank} for code, rank, *_ in bands],
        "group": group,
        "packing": packing,
        "scale": scale,
    }
    parts: list[tuple[str, int, bytes]] = []
    width = oracle.WIDTH[scale][0] // 8
    for k, (code, _, s, u, v) in enumerate(bands):
        parts.append((f"s{k}", 4, s))
        for name, side in (("u", u), ("v", v)):
            if isinstance(side, tuple):
                parts += [(f"{name}{k}", 1, side[0]), (f"{name}_scales{k}", width, side[1])]
            else:
                parts.append((f"{name}{k}", oracle.WIDTH[code][0] // 8, side))
    return component("factors", params, *parts)


def single(
    of: Component | Sequence[Component], dtype: str, shape: Sequence[int], base: Tensor | None, **more: Any
) -> Model:
    """One tensor ``w`` with these components; the base holds a tensor beside it."""
    components = [of] if isinstance(of, Component) else list(of)
    entry = Entry("w", "other", "", components, (dtype, list(shape)))
    given = {"beside": tensor("I16", [2], 1, -2)} | ({"w": base} if base is not None else {})
    return Model(given, [entry], **more)


def all_kinds() -> Model:
    """A pack with every kind of entry, every encoding, a zstd segment, two side files and metadata."""
    base = {
        "a.bias": tensor("F32", [4], q(1, 2), "0x80000000", -2, 8),
        "b.weight": tensor("BF16", [2, 3], 1, q(-1, 2), q(1, 4), 3, 0, -2),
        "c.weight": tensor("F16", [2, 2], 1, 2, 3, 4),
        "d.norm": tensor("BF16", [3], 1, 1, 1),
        "e.ids": tensor("I16", [3], -1, 0, 300),
        "f.old": tensor("F16", [1], 5),
        "g.up": tensor("F32", [2, 2], 1, -1, q(1, 4), 0),
    }
    slices = [(2, 4, 4, bits_of("F32", q(1, 64)), [11, 6, 9, 15], [13, 4, 8, 0, 14, 10])]
    low = lowrank(slices)
    lossy = oracle.make(base["b.weight"], "BF16", [2, 3], [low])
    tuned = from_items([p + e for p, e in zip(oracle.items(lossy.data, 2), (0, 1, -2, 0, 3, -1), strict=True)], 2)
    group_codes = blockq(3, [0, 7, 3, 4], bits_of("BF16", q(1, 8), q(-1, 4)), 2, scale="BF16", zeros=[7, 6])
    band = factors(
        [
            ("F16", 1, bits_of("F32", q(3, 2)), bits_of("F16", q(1, 2), q(-1, 4)), bits_of("F16", 1, q(1, 8))),
            (
                "Q2",
                1,
                bits_of("F32", q(1, 32)),
                (pack([3, 1], 2, "lanes"), bits_of("F32", q(1, 4))),
                (pack([0, 2], 2, "lanes"), bits_of("F32", q(1, 2))),
            ),
        ],
        group=2,
    )
    entries = [
        Entry(
            "a.bias", "bias", "a", [sparse("gap8", [0, 1], "BF16", bits_of("BF16", q(1, 8), -3), "add")], ("F32", [4])
        ),
        Entry("b.weight", "mlp", "b", [low, oracle.ulp(lossy.data, tuned, "BF16")], ("BF16", [2, 3])),
        Entry("c.weight", "attention", "c", [group_codes], ("F16", [2, 2]), stats={"changed": 4, "norm": bytes(4)}),
        Entry("e.ids", "other", "", [dense("I16", struct.pack("<3h", 0, -2, 32767))], ("I16", [3])),
        Entry("f.old", "other", "f"),
        Entry("g.up", "mlp", "g", [band], ("F32", [2, 2])),
        Entry("h.new", "other", "h", [dense("U8", b"\x2a" * 16)], ("U8", [16])),
        Entry("i.tied", "other", "h", None, ("U8", [16]), alias="h.new"),
    ]
    files = {"config.json": b'{"a": 1}\n', "vocab.txt": b" " * 300 + b"end\n"}
    codecs = dict.fromkeys(range(9), "raw") | {6: "zstd", 8: "zstd"}
    return Model(base, entries, metadata={"license": "CC0-1.0", "made": "by hand"}, files=files, codecs=codecs)


ALL_KINDS = all_kinds()
IDENTICAL = Model({"bias": tensor("F32", [2], 1, q(-1, 2)), "step": tensor("I64", [], 7)})
ENTRIES = {
    name: k for k, name in enumerate(["a.bias", "b.weight", "c.weight", "e.ids", "f.old", "g.up", "h.new", "i.tied"])
}
# where things are in ALL_KINDS: segments 0 sparse, 1 lowrank, 2 ulp, 3 blockq, 4 dense, 5 factors, 6 dense, 7-8 files
