"""What a pack costs and what it keeps: bytes against function error, for every recipe and a few steps between.

A real fine-tune (``minilm``) is stored in float32, float16 and bfloat16. Each of the three pairs is converted with
every recipe, applied with full verification, and the sentence embeddings of what comes out are compared with those of
the tuned checkpoint. Ends with 1 unless one recipe meets the acceptance line on float32 and on bfloat16.

    python -m benchmarks.kept [--out DIR] [--seconds 75]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

import skillpack_format as skp
from benchmarks import minilm
from benchmarks.results import report
from skillpack_format import recipes

OUT: Final = report.ROOT / "benchmarks" / "out"
DTYPES: Final = {"f32": "", "f16": "-f16", "bf16": "-bf16"}  # what is stored, and the suffix of its folders
MUST_PASS: Final = ("f32", "bf16")
SHARE: Final = 1 / 16  # of the bytes of the bfloat16 checkpoint
MOST_ERROR: Final = 0.01
STEPS: Final = ((1.0, 0.9), (1.5, 0.8), (3.2, 0.6), (6.0, 0.4))  # (step, cosine) around those of standard and small
COLOURS: Final = {"f32": "#1f6fb4", "f16": "#2a9d57", "bf16": "#c8501e"}


@dataclass(frozen=True, slots=True)
class Point:
    """One pack: its bytes as a file, and the share of the fine-tune's effect that is lost."""

    dtype: str
    recipe: str
    nbytes: int
    error: float
    exact: bool


def ensure_pair(out: Path, seconds: float) -> None:
    """Base and tuned in three dtypes below ``out``; made anew unless an earlier run finished making them."""
    done = out / "READY"
    if not done.exists():
        out.mkdir(parents=True, exist_ok=True)
        if minilm.main([str(out), "--seconds", str(seconds), "--variants"]) != 0:
            raise RuntimeError("the fine-tune failed")
        done.touch()


def pair_of(out: Path, dtype: str) -> tuple[Path, Path]:
    """The folders of base and tuned, stored in ``dtype``."""
    return out / f"base{DTYPES[dtype]}", out / f"tuned{DTYPES[dtype]}"


def all_recipes() -> list[recipes.Recipe]:
    """Those with a name, and integer slices at other steps."""
    between = [recipes.sliced(f"step {step}, cosine {cosine}", step, cosine) for step, cosine in STEPS]
    return [*recipes.RECIPES.values(), *between]


def measure(out: Path, dtype: str) -> Iterator[Point]:
    """Convert, apply and compare; a line of progress for each recipe."""
    base, tuned = pair_of(out, dtype)
    texts = minilm.held_out_texts()
    before, wanted = (minilm.embed_all(*minilm.load(folder), texts) for folder in (base, tuned))
    threads = os.cpu_count() or 1
    for recipe in all_recipes():
        pack, result = out / "kept.skp", out / "kept"
        converting = skp.ConvertOptions(recipe=recipe, threads=threads, overwrite=True)
        nbytes = skp.convert(base, tuned, pack, converting).pack_bytes
        skp.apply(base, [pack], result, skp.ApplyOptions(threads=threads, overwrite=True))
        found = minilm.embed_all(*minilm.load(result), texts)
        same = (result / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
        point = Point(dtype, recipe.name, nbytes, minilm.error_ratio(before, wanted, found), same)
        assert point.nbytes == pack.stat().st_size
        assert torch.equal(found, wanted) or not same
        print(f"{dtype} {point.recipe}: {point.nbytes} bytes, function error {point.error:.3g}", flush=True)
        yield point


def is_passing(point: Point, bf16_bytes: int) -> bool:
    return point.nbytes <= SHARE * bf16_bytes and point.error <= MOST_ERROR


def passing_recipes(points: Sequence[Point], bf16_bytes: int) -> list[str]:
    """The recipes that meet the acceptance line on every pair of MUST_PASS."""
    passed = {(point.dtype, point.recipe) for point in points if is_passing(point, bf16_bytes)}
    return [recipe.name for recipe in all_recipes() if all((dtype, recipe.name) in passed for dtype in MUST_PASS)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.kept", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where checkpoints and packs go (benchmarks/out)")
    parser.add_argument("--seconds", type=float, default=75, help="about how long to train (default: %(default)s)")
    options = parser.parse_args(arguments)
    ensure_pair(options.out, options.seconds)
    bf16_bytes = (pair_of(options.out, "bf16")[1] / "model.safetensors").stat().st_size
    points = [point for dtype in DTYPES for point in measure(options.out, dtype)]
    headers = ["pair", "recipe", "bytes", "of bf16", "1 / n of bf16", "function error", "bit-exact", "accepted"]
    rows = [_row(point, bf16_bytes) for point in points]
    report.show("MiniLM fine-tune: bytes and what is kept", headers, rows)
    passing = passing_recipes(points, bf16_bytes)
    verdict = f"Accepted on {' and '.join(MUST_PASS)}: {'; '.join(passing) or 'no recipe'}."
    print(verdict)
    body = _body(report.markdown(headers, rows), verdict, bf16_bytes)
    report.write("kept.md", "benchmarks.kept", "What a pack keeps", body)
    (report.FOLDER / "kept.svg").write_text(Chart(points, SHARE * bf16_bytes).svg(), encoding="utf-8")
    return 0 if passing else 1


def _row(point: Point, bf16_bytes: int) -> list[str]:
    return [
        point.dtype,
        point.recipe,
        f"{point.nbytes:,}",
        f"{100 * point.nbytes / bf16_bytes:.2f} %",
        f"{bf16_bytes / point.nbytes:.1f}",
        f"{point.error:.2g}",
        "yes" if point.exact else "no",
        "yes" if is_passing(point, bf16_bytes) else "no",
    ]


def _body(table: str, verdict: str, bf16_bytes: int) -> str:
    return f"""
all-MiniLM-L6-v2, fine-tuned in full for a minute or so (`benchmarks/minilm.py`), stored in three dtypes. Bytes are
those of the whole pack file; the bfloat16 checkpoint has {bf16_bytes:,}. Function error is
E|f(pack) - f(tuned)|^2 / E|f(base) - f(tuned)|^2 over {minilm.HELD_OUT} held-out texts, f the sentence embedding,
computed in float32: 0 keeps everything, 1 is as far away as the base.

Acceptance line: at most 1/{1 / SHARE:.0f} of the bfloat16 bytes ({SHARE * bf16_bytes:,.0f}) at a function error of at
most {MOST_ERROR}, by one recipe on {" and ".join(MUST_PASS)}.

![Bytes against function error](kept.svg)

{table}

{verdict}
"""


class Chart:
    """Bytes against function error, both logarithmic, as a small SVG. Exact packs sit below the axis, at error 0."""

    WIDTH, HEIGHT = 860, 520
    LEFT, RIGHT, TOP, BOTTOM, EXACT = 70, 20, 60, 90, 36  # margins, and the height of the band for error 0

    def __init__(self, points: Sequence[Point], limit: float) -> None:
        self.points, self.limit = points, limit
        sizes = [point.nbytes for point in points] + [limit]
        errors = [point.error for point in points if point.error > 0] + [MOST_ERROR]
        self.x_range = (math.log10(min(sizes)) - 0.15, math.log10(max(sizes)) + 0.3)
        self.y_range = (math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors))))

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH} {self.HEIGHT}" font-size="12"'
        parts = [
            f'{head} font-family="sans-serif">',
            f'<rect width="{self.WIDTH}" height="{self.HEIGHT}" fill="#fff"/>',
        ]
        parts += [_text(self.LEFT, 24, "Bytes of the pack against function error", size=16)]
        parts += [*self._acceptance(), *self._grid(), *self._legend()]
        parts += [part for dtype in DTYPES for part in self._series(dtype)]
        return "\n".join([*parts, "</svg>", ""])

    def _x(self, nbytes: float) -> float:
        low, high = self.x_range
        return self.LEFT + (math.log10(nbytes) - low) / (high - low) * (self.WIDTH - self.LEFT - self.RIGHT)

    def _y(self, error: float) -> float:
        if error <= 0:
            return self.HEIGHT - self.BOTTOM + self.EXACT / 2
        low, high = self.y_range
        return self.TOP + (high - math.log10(error)) / (high - low) * (self.HEIGHT - self.TOP - self.BOTTOM)

    def _acceptance(self) -> list[str]:
        """The region that is small enough and near enough."""
        x, y = self._x(self.limit), self._y(MOST_ERROR)
        width, height = x - self.LEFT, self.HEIGHT - self.BOTTOM + self.EXACT - y
        box = f'<rect x="{self.LEFT}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        label = f"accepted: 1/{1 / SHARE:.0f} of the bf16 bytes, error {MOST_ERROR}"
        return [f'{box} fill="#e9f3e6" stroke="#5a9a4a"/>', _text(x - 6, y + 16, label, "end", "#3c7a2d")]

    def _grid(self) -> list[str]:
        bottom, right = self.HEIGHT - self.BOTTOM + self.EXACT, self.WIDTH - self.RIGHT
        parts = []
        for exponent in range(self.y_range[0], self.y_range[1] + 1):
            y = self._y(10.0**exponent)
            parts += [_line(self.LEFT, y, right, y), _text(self.LEFT - 6, y + 4, f"{10.0**exponent:g}", "end")]
        for nbytes in (step * 10**power for power in range(4, 12) for step in (1, 2, 5)):
            if self.x_range[0] <= math.log10(nbytes) <= self.x_range[1]:
                x = self._x(nbytes)
                parts += [_line(x, self.TOP, x, bottom), _text(x, bottom + 16, f"{nbytes / 1e6:g} MB", "middle")]
        parts += [_text(self.LEFT - 6, self._y(0) + 4, "exact: 0", "end")]
        return [*parts, _text((self.LEFT + right) / 2, bottom + 38, "bytes of the pack file", "middle")]

    def _legend(self) -> list[str]:
        places = [(self.WIDTH - self.RIGHT - 90 * (len(DTYPES) - i), dtype) for i, dtype in enumerate(DTYPES)]
        return [part for x, dtype in places for part in (_dot(x, 20, dtype), _text(x + 10, 24, dtype))]

    def _series(self, dtype: str) -> list[str]:
        """Dots joined in order of size along the integer slices; the first pair has the names of recipes."""
        own = sorted((point for point in self.points if point.dtype == dtype), key=lambda point: point.nbytes)
        slices = [point for point in own if point.recipe not in ("graftllm", "lossless")]
        path = " ".join(f"{self._x(point.nbytes):.1f},{self._y(point.error):.1f}" for point in slices)
        parts = [f'<polyline points="{path}" fill="none" stroke="{COLOURS[dtype]}" stroke-width="1.5"/>']
        for point in own:
            x, y = self._x(point.nbytes), self._y(point.error)
            parts.append(_dot(x, y, dtype, f"{dtype} {point.recipe}: {point.nbytes:,} bytes, error {point.error:.2g}"))
            if point.recipe in recipes.RECIPES and (dtype == "f32" or point.error == 0):
                parts.append(_text(x + 7, y - 7, point.recipe, colour=COLOURS[dtype]))
        return parts


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#333", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ccc" stroke-width="0.7"/>'


def _dot(x: float, y: float, dtype: str, title: str = "") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{COLOURS[dtype]}"><title>{title}</title></circle>'


if __name__ == "__main__":
    sys.exit(main())
