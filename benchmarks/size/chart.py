"""Bytes against function error, one panel a pair and one line a method, as an SVG that needs no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.size.curves import TARGETS, Point, front

WIDTH, PANEL, COLUMNS = 1320, 400, 2
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 40  # margins inside a panel
FONT: Final = 'font-size="12" font-family="sans-serif"'
INK: Final = "#d62f1f"  # SkillPack
COLOURS: Final = (  # one a peer: a colour that comes back would join two methods
    "#1f6fb4", "#2a9d57", "#8a5fbf", "#b8860b", "#3aa6a6", "#c26aa5", "#6b7280", "#7a9a01", "#a0522d", "#4455cc",
    "#e08214", "#5aaae0", "#111111", "#b9d060", "#d9a5ff", "#7a3040",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair: its title, its curves by method, the bytes of its checkpoint."""

    title: str
    curves: Sequence[tuple[str, Sequence[Point]]]
    checkpoint: int


def draw(panels: Sequence[Panel], first: str) -> str:
    """The whole picture; the method ``first`` is drawn last, in the colour of the ink."""
    names = [name for panel in panels for name, _ in panel.curves]
    methods = [first, *[name for name in dict.fromkeys(names) if name != first]]
    colours = {name: INK if name == first else COLOURS[i % len(COLOURS)] for i, name in enumerate(methods, start=-1)}
    rows = -(-len(panels) // COLUMNS)
    legend = 26 + 18 * -(-len(methods) // 2)
    height = rows * PANEL + legend + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for index, method in enumerate(methods):
        x, y = 20 + (index % 2) * WIDTH / 2, 22 + 18 * (index // 2)
        parts += [f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colours[method]}"/>', _text(x + 12, y, method)]
    for index, panel in enumerate(panels):
        x, y = (index % COLUMNS) * WIDTH / COLUMNS, legend + (index // COLUMNS) * PANEL
        parts += [f'<g transform="translate({x:.0f} {y:.0f})">', *_Axes(panel).lines(colours, first), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


class _Axes:
    """Both logarithmic: bytes to the right, function error upwards."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        points = [point for _, curve in panel.curves for point in curve if point.error > 0]
        self.right, self.bottom = WIDTH / COLUMNS - RIGHT, PANEL - BOTTOM
        sizes = [point.nbytes for point in points] + [panel.checkpoint]
        self.xs = (math.log10(min(sizes)) - 0.1, math.log10(max(sizes)) + 0.1)
        errors = [min(max(point.error, 1e-5), 2.0) for point in points] + list(TARGETS)
        self.ys = (math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors))))

    def lines(self, colours: dict[str, str], first: str) -> list[str]:
        parts = [_text(LEFT, 20, self.panel.title, size=15), *self._grid()]
        for method, points in sorted(self.panel.curves, key=lambda item: item[0] == first):
            parts += self._curve(method, points, colours[method], 2.6 if method == first else 1.2)
        return parts

    def _x(self, nbytes: float) -> float:
        return LEFT + (math.log10(nbytes) - self.xs[0]) / (self.xs[1] - self.xs[0]) * (self.right - LEFT)

    def _y(self, error: float) -> float:
        value = math.log10(min(max(error, 10.0 ** self.ys[0]), 10.0 ** self.ys[1]))
        return TOP + (self.ys[1] - value) / (self.ys[1] - self.ys[0]) * (self.bottom - TOP)

    def _grid(self) -> list[str]:
        parts = []
        for exponent in range(self.ys[0], self.ys[1] + 1):
            y = self._y(10.0**exponent)
            parts += [_line(LEFT, y, self.right, y), _text(LEFT - 6, y + 4, f"{10.0**exponent:g}", "end")]
        for target in TARGETS:
            y = self._y(target)
            parts.append(_line(LEFT, y, self.right, y, "#e0a39c"))
        for nbytes in (step * 10**power for power in range(3, 12) for step in (1, 2, 5)):
            if self.xs[0] <= math.log10(nbytes) <= self.xs[1]:
                x = self._x(nbytes)
                label = f"{nbytes / 1e6:g} MB"
                parts += [_line(x, TOP, x, self.bottom), _text(x, self.bottom + 15, label, "middle", size=10)]
        x = self._x(self.panel.checkpoint)
        parts.append(_line(x, TOP, x, self.bottom, "#555"))
        middle = (LEFT + self.right) / 2
        return [*parts, _text(middle, self.bottom + 32, "bytes of the whole file; dark line: the checkpoint", "middle")]

    def _curve(self, method: str, points: Sequence[Point], colour: str, width: float) -> list[str]:
        drawn = [point for point in front(points) if point.error > 0]
        path = " ".join(f"{self._x(point.nbytes):.1f},{self._y(point.error):.1f}" for point in drawn)
        parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>']
        for point in (point for point in points if point.error > 0):
            said = f"{method}, {point.label}: {point.nbytes:,} bytes, error {point.error:.2g}"
            at = f'cx="{self._x(point.nbytes):.1f}" cy="{self._y(point.error):.1f}"'
            parts.append(f'<circle {at} r="{width + 1.4:.1f}" fill="{colour}"><title>{escape(said)}</title></circle>')
        return parts


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333" font-size="{size}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="0.7"/>'
