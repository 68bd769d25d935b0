# SPDX-License-Identifier: Apache-2.0
"""Line charts as SVG text: logarithmic across, linear upwards from nought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 320, 50, 14, 64, 44
_COLOURS = ("#1b6ca8", "#8fbbdb", "#b5452c", "#e8ac99", "#3d7a3d", "#a9cfa9")


@dataclass(frozen=True)
class Chart:
    """``lines`` are points (across, upwards) by name; ``across`` says what the first are."""

    across: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def render(title: str, charts: Sequence[Chart]) -> str:
    """Charts side by side under one title, with one scale upwards so that they can be compared."""
    top = max(y for chart in charts for points in chart.lines.values() for _, y in points)
    step = _step(top)
    names = list(dict.fromkeys(name for chart in charts for name in chart.lines))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    width = _WIDTH * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, name in enumerate(names):
        x = _LEFT + 120 * number
        parts.append(f'<rect x="{x}" y="32" width="14" height="4" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 20}" y="38">{escape(name)}</text>')
    for number, chart in enumerate(charts):
        parts.append(f'<g transform="translate({number * _WIDTH},0)">')
        parts += _render_chart(chart, step * math.ceil(top / step), step, colours)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _render_chart(chart: Chart, top: float, step: float, colours: Mapping[str, str]) -> list[str]:
    marks = sorted({x for points in chart.lines.values() for x, _ in points})
    low, high = math.log(marks[0]), math.log(max(marks[-1], marks[0] * 2))

    def across(x: float) -> float:
        return round(_LEFT + (math.log(x) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def upwards(y: float) -> float:
        return round(_HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = []
    for number in range(round(top / step) + 1):
        y = upwards(number * step)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{number * step:g}</text>')
    for x in marks:
        parts.append(f'<text x="{across(x)}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(chart.across)}</text>'
    )
    for name, points in chart.lines.items():
        path = " ".join(f"{across(x)},{upwards(y)}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{across(x)}" cy="{upwards(y)}" r="3" fill="{colours[name]}"/>' for x, y in points]
    return parts


def _step(top: float) -> float:
    """A round number of which some five make ``top``."""
    power: float = 10.0 ** math.floor(math.log10(max(top, 1e-9) / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= top / 5)
