"""What the sources of the encodings share: scales that are refused, parameters out of range, spare bits."""

from __future__ import annotations

from typing import Any

from conformance import assemble as oracle
from conformance.assembler.draft import Change
from conformance.assembler.edits import put
from conformance.assembler.suite import Suite

from .models import noise

FLOATS = ("F32", "F16", "BF16")
BAD_SCALES = {
    "nan": {"F32": "0x7fc00000", "F16": "0x7e00", "BF16": "0x7fc0"},
    "inf": {"F32": "0x7f800000", "F16": "0x7c00", "BF16": "0x7f80"},
    "minus-inf": {"F32": "0xff800000", "F16": "0xfc00", "BF16": "0xff80"},
    "minus-zero": {"F32": "0x80000000", "F16": "0x8000", "BF16": "0x8000"},
    "tiny": {"F32": "0x0d7fffff", "BF16": "0x0d7f"},
    "subnormal": {"F32": "0x00000001", "BF16": "0x0001"},
    "minus-tiny": {"F32": "0x8d7fffff", "BF16": "0x8d7f"},
}


def parameter(
    suite: Suite, of: str, name: str, title: str, path: str, value: Any, requirement: str, code: str = ""
) -> None:
    edit = put(f"tensors/0/components/0/{path}", value)
    suite.reject(
        name,
        title,
        of,
        Change(manifest=[edit]),
        code or "manifest.parameter",
        f"{requirement} manifest.parameter",
        op="validate",
    )


def padding(suite: Suite, encoding: str, part: str, cases_: dict[str, tuple[str, bytes, int, str, int]]) -> None:
    """Every spare bit that packed codes can have: the lowest and the highest, and in lanes those of the first byte."""
    for label, (of, clean, bits, packing, count) in cases_.items():
        spare = spare_bits(len(clean), bits, packing, count)
        for words, bit in {"lowest": spare[0], "highest": spare[-1]}.items() if spare else ():
            data = bytearray(clean)
            data[bit // 8] |= 1 << bit % 8
            suite.reject(
                f"{encoding}-spare-{label}-{words}",
                f"{encoding}: the {words} spare bit of {count} codes is set, {label.replace('-', ' bits, ')}",
                of,
                Change(parts={f"w/0/{part}": bytes(data)}),
                "payload.padding-bits",
                f"payload.padding-bits packing.{packing}",
                op="validate",
            )


def spare_bits(length: int, bits: int, packing: str, count: int) -> list[int]:
    if packing == "stream":
        return list(range(count * bits, 8 * length))
    lanes = 8 // bits
    used = {k // lanes * 8 + k % lanes * bits + b for k in range(count) for b in range(bits)}
    return [bit for bit in range(8 * length) if bit not in used]


def thin(
    rank: int, bu: int, bv: int, scales: bytes, shape: list[int], seed: int = 1
) -> tuple[int, int, int, bytes, list[int], list[int]]:
    stack, rows, cols = oracle.grid(shape)
    return (
        rank,
        bu,
        bv,
        scales,
        noise(stack * rank * rows, seed, 1 << bu),
        noise(stack * rank * cols, seed + 50, 1 << bv),
    )
