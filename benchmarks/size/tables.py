"""The measured pairs as tables: the headline, bytes at each function error, lossless files, entropy. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from benchmarks.results import report
from benchmarks.size.curves import TARGETS, Point, Reach, best_of, reach
from benchmarks.size.measured import CALIBRATED, NAME, OURS, Measured, is_low_rank

HALF: Final = 0.5  # of the best lossy peer's bytes
TENTH: Final = 0.1  # of a low-rank extraction's in bfloat16
LOSSLESS_GAIN: Final = 0.9  # of the best lossless peer's
ENTROPY_SLACK: Final = 0.05
ENTROPY_FROM: Final = 1_000_000  # bytes of a pack

Curves = Sequence[tuple[str, Sequence[Point]]]


def headline(pairs: Sequence[Measured], error: float = 0.003) -> str:
    """One line a pair: SkillPack at ``error``, the best lossy peer, the ratio; the same without loss."""
    headers = ["fine-tune", "checkpoint", f"pack at error {error:g}", "calibrated", "best peer at that error", "ratios"]
    headers += ["lossless pack", "best lossless peer", "ratio"]
    rows = []
    for pair in pairs:
        mine = [reach(pair.curves[name], error) for name in OURS if name in pair.curves]
        best = best_of(_peers(pair), error)
        exact, rival = pair.exact[NAME], _best_exact(pair)
        row = [pair.pair, _mb(pair.tuned_bytes), *map(_reached, mine), *[""] * (len(OURS) - len(mine))]
        row += [f"{_reached(best[1])}, {best[0]}" if best else "none reaches it"]
        row += [", ".join(_ratio(each, best[1] if best else None) for each in mine)]
        row += [_mb(exact), f"{_mb(rival[1])}, {rival[0]}", f"{exact / rival[1]:.2f}"]
        rows.append(row)
    return report.markdown(headers, rows)


def at_errors(pair: Measured) -> str:
    """Every method's bytes at each of TARGETS, most frugal first at the middle one; points it was measured at."""
    headers = ["method", *[f"error {target:g}" for target in TARGETS], "points", "errors measured"]
    lines = []
    for name, points in pair.curves.items():
        found = [reach(points, target) for target in TARGETS]
        errors = [point.error for point in points if point.error > 0]
        span = f"{min(errors):.2g} to {max(errors):.2g}" if errors else ""
        key = (name not in OURS, next((r.nbytes for r in (found[1], found[0], found[2]) if r), float("inf")))
        lines.append((key, [name, *[_reached(each) for each in found], str(len(points)), span]))
    return report.markdown(headers, [line for _, line in sorted(lines, key=lambda item: item[0])])


def ratios(pairs: Sequence[Measured]) -> str:
    """SkillPack, without data and calibrated, over the best lossy peer and the best low-rank extraction."""
    headers = ["pair", "error", NAME, CALIBRATED, "best lossy peer", "ratios (one at most 0.5)"]
    headers += ["best bf16 low rank", "ratios (one at most 0.1)"]
    rows = []
    for pair in pairs:
        for target in TARGETS:
            mine = [reach(pair.curves[name], target) for name in OURS if name in pair.curves]
            best, low = best_of(_peers(pair), target), best_of(_low_rank(pair), target)
            row = [pair.pair, f"{target:g}", *map(_reached, mine), *[""] * (len(OURS) - len(mine))]
            for found in (best, low):
                row += [f"{_reached(found[1])}, {found[0]}" if found else "not reached"]
                row += [", ".join(_ratio(each, found[1] if found else None) for each in mine)]
            rows.append(row)
    return report.markdown(headers, rows)


def lossless(pairs: Sequence[Measured]) -> str:
    """Every lossless file of every pair: one column a pair."""
    methods = [NAME, *sorted({name for pair in pairs for name in pair.exact} - {NAME})]
    headers = ["method", *[pair.pair for pair in pairs]]
    rows = [[name, *[_count(pair.exact.get(name)) for pair in pairs]] for name in methods]
    floors = [_count(pair.by_exponent) if pair.by_exponent else "" for pair in pairs]
    rows.append(["(no file: differences at their entropy, given the exponent)", *floors])
    rows.append(["checkpoint", *[_count(pair.tuned_bytes) for pair in pairs]])
    rows.append(
        ["SkillPack / best peer (at most 0.90)", *[f"{pair.exact[NAME] / _best_exact(pair)[1]:.2f}" for pair in pairs]]
    )
    return report.markdown(headers, rows)


def entropy(pairs: Sequence[Measured]) -> str:
    """Whole packs against the zeroth-order entropy of their codes."""
    headers = ["pair", "pack", "bytes", "entropy of the codes", "over", "header", "make s", "apply s"]
    rows = []
    for pair in pairs:
        for each in pair.entropy:
            over = f"{100 * (each['nbytes'] / each['entropy'] - 1):+.1f} %" if each["entropy"] else ""
            seconds = [f"{each['convert_seconds']:.1f}", f"{each['apply_seconds']:.1f}"]
            sizes = [f"{each['nbytes']:,}", f"{each['entropy']:,.0f}", over, f"{each['header']:,}"]
            rows.append([pair.pair, each["label"], *sizes, *seconds])
    return report.markdown(headers, rows)


def missed(pairs: Sequence[Measured]) -> list[str]:
    """A sentence for every target that is not met, with its number and, where one was measured, the reason."""
    found = []
    for pair in pairs:
        for target in TARGETS:
            found += _missed_at(pair, target)
        share = pair.exact[NAME] / _best_exact(pair)[1]
        if share > LOSSLESS_GAIN:
            why = ""
            if pair.by_exponent:
                floor = pair.by_exponent / _best_exact(pair)[1]
                why = f" At their entropy given the exponent the differences alone would be {floor:.3f}."
            found.append(f"{pair.pair}, lossless: {share:.3f} of {_best_exact(pair)[0]}, not {LOSSLESS_GAIN:g}.{why}")
        for each in pair.entropy:
            over = each["nbytes"] / each["entropy"] - 1 if each["entropy"] else 0.0
            if each["nbytes"] > ENTROPY_FROM and over > ENTROPY_SLACK:
                header = 100 * each["header"] / each["entropy"]
                found.append(
                    f"{pair.pair}, {each['label']}: {100 * over:.1f} % above the entropy of its codes, not 5 %; "
                    f"the header of this small model is {header:.1f} %."
                )
    return found


def _missed_at(pair: Measured, target: float) -> list[str]:
    """What is missed at one function error, by the better of SkillPack's two curves."""
    mine = best_of([(name, pair.curves[name]) for name in OURS if name in pair.curves], target)
    best, low = best_of(_peers(pair), target), best_of(_low_rank(pair), target)
    found = []
    for rival, most, what in ((best, HALF, "the best lossy peer"), (low, TENTH, "the best bf16 low rank")):
        if rival is None:
            continue
        if mine is None:
            found.append(f"{pair.pair}: no lossy pack has an error of {target:g}.")
        elif mine[1].nbytes > most * rival[1].nbytes:
            share = mine[1].nbytes / rival[1].nbytes
            noise = _floor_of_a_tenth(pair, target) if most == TENTH else ""
            why = noise or _at_entropy(pair, mine[1], rival[1])
            found.append(f"{pair.pair}, error {target:g}: {share:.3f} of {what} ({rival[0]}), not {most:g}.{why}")
    return found


def _at_entropy(pair: Measured, mine: Reach, rival: Reach) -> str:
    """What a pack's codes would be at their entropy, if all else were nothing; empty where none was measured.

    Told by the share of the pack of like size whose entropy was.
    """
    packs = [each for each in pair.entropy if each["entropy"]]
    if not packs:
        return ""
    alike = min(packs, key=lambda each: abs(math.log(each["nbytes"] / mine.nbytes)))
    floor = mine.nbytes / rival.nbytes * alike["entropy"] / alike["nbytes"]
    return f" At their zeroth-order entropy its codes alone would be about {floor:.3f}."


def _floor_of_a_tenth(pair: Measured, target: float) -> str:
    """What rounding does in a tenth of bfloat16, if an extraction's numbers are kept; empty where it is little."""
    bits = 16 * TENTH
    least = 2 ** (-2 * bits)  # of the energy: the rate-distortion function of a Gaussian
    if least * pair.noise_harm < target / 3:
        return ""
    return (
        f" Its numbers in {bits:.1f} bits each would have {100 * least:.0f} % of noise at best, which does"
        f" {least * pair.noise_harm:.2g} by itself here (as much noise as change: {pair.noise_harm:.2g})."
    )


def _peers(pair: Measured) -> Curves:
    return [(name, points) for name, points in pair.curves.items() if name not in OURS]


def _low_rank(pair: Measured) -> Curves:
    return [(name, points) for name, points in _peers(pair) if is_low_rank(name)]


def _best_exact(pair: Measured) -> tuple[str, int]:
    return min(((name, nbytes) for name, nbytes in pair.exact.items() if name != NAME), key=lambda item: item[1])


def _reached(found: Reach | None) -> str:
    if found is None:
        return "not reached"
    return f"{'≤ ' if found.is_bound else ''}{_mb(found.nbytes)}"


def _ratio(mine: Reach | None, rival: Reach | None) -> str:
    return f"{mine.nbytes / rival.nbytes:.2f}" if mine and rival else ""


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.3g} MB" if nbytes < 1e8 else f"{nbytes / 1e6:.0f} MB"


def _count(nbytes: int | None) -> str:
    return f"{nbytes:,}" if nbytes is not None else "left out"
