"""Line charts as inline SVG: axes with round numbers, lines that differ in colour and dash, no script."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 22, 10, 42


class Series(NamedTuple):
    """Points, which a line joins or not.

    Attributes:
        name: What the legend calls it.
        points: x and y of each, in the order in which they are joined.
        radii: Radius of a circle at each point, in units of the picture; None for no circles.
        is_reference: Whether the points are there to compare with and were not measured.
        is_joined: Whether a line joins them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    radii: Sequence[float] | None = None
    is_reference: bool = False
    is_joined: bool = True


class Axis(NamedTuple):
    """One axis.

    Attributes:
        title: What it shows.
        is_share: Whether its numbers are shares of 1, shown in per cent.
        low: Where it begins; None takes the smallest value.
        high: Where it ends; None takes the largest value.
    """

    title: str
    is_share: bool = False
    low: float | None = None
    high: float | None = None


class Chart(NamedTuple):
    """A drawn chart.

    Attributes:
        title: What it shows.
        svg: The picture.
        legend: Style and name of each line.
        note: What a reader should know of it; empty for nothing.
    """

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]
    note: str = ""


def draw_chart(title: str, lines: Sequence[Series], x_axis: Axis, y_axis: Axis, note: str = "") -> Chart:
    """Draws lines over one pair of axes.

    Args:
        title: What the chart shows.
        lines: One or more, each with a point or more; all numbers finite.
        x_axis: The horizontal axis.
        y_axis: The vertical axis.
        note: What a reader should know of it.
    """
    x_ticks = find_ticks([x for line in lines for x, _ in line.points], x_axis)
    y_ticks = find_ticks([y for line in lines for _, y in line.points], y_axis)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    styles = _name_styles(lines)
    parts = [*_draw_axes(x_ticks, y_ticks, x_axis, y_axis, place(x_ticks[0], y_ticks[0]))]
    for style, line in zip(styles, lines, strict=True):
        parts += _draw_line(style, [place(x, y) for x, y in line.points], line.radii, line.is_joined)
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, _describe(title, lines, x_axis, y_axis), Markup("").join(parts)
    )
    return Chart(title, svg, tuple(zip(styles, (line.name for line in lines), strict=True)), note)


def find_ticks(values: Sequence[float], axis: Axis, most: int = 5) -> list[float]:
    """Round numbers, evenly spaced, that enclose all values: an axis begins at the first and ends at the last.

    Args:
        values: What is drawn.
        axis: Where the ticks begin and end, if it says so.
        most: About how many steps.

    Example:
        >>> find_ticks([0.13, 0.98], Axis("share"))
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> find_ticks([7, 7], Axis("step"))
        [6.0, 6.5, 7.0, 7.5, 8.0]
    """
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if low == high:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / most
    scale = 10 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def format_tick(value: float, axis: Axis) -> str:
    """A number of an axis.

    Example:
        >>> format_tick(0.25, Axis("accuracy", is_share=True)), format_tick(12000.0, Axis("step"))
        ('25 %', '12,000')
    """
    if axis.is_share:
        return f"{100 * value:.4g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _name_styles(lines: Sequence[Series]) -> list[str]:
    """`line-1`, `line-2`, ... for what was measured, `reference` for the others."""
    styles, measured = [], 0
    for line in lines:
        measured += not line.is_reference
        styles.append("reference" if line.is_reference else f"line-{measured}")
    return styles


def _draw_axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x_axis: Axis, y_axis: Axis, origin: tuple[float, float]
) -> list[Markup]:
    left, bottom = origin
    right, top = WIDTH - _RIGHT, _TOP
    text = Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>')
    rule = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
    parts = []
    for index, tick in enumerate(y_ticks):
        y = bottom - (bottom - top) * index / (len(y_ticks) - 1)
        parts.append(rule.format(left, y, right, y, "grid"))
        parts.append(text.format(left - 6, y + 4, "end", format_tick(tick, y_axis)))
    for index, tick in enumerate(x_ticks):
        x = left + (right - left) * index / (len(x_ticks) - 1)
        parts.append(rule.format(x, bottom, x, bottom + 4, "axis"))
        parts.append(text.format(x, bottom + 17, "middle", format_tick(tick, x_axis)))
    parts.append(rule.format(left, bottom, right, bottom, "axis"))
    parts.append(text.format((left + right) / 2, HEIGHT - 6, "middle title", x_axis.title))
    turned = Markup('<text transform="translate(10 {:.1f}) rotate(-90)" class="middle title">{}</text>')
    parts.append(turned.format((top + bottom) / 2, y_axis.title))
    return parts


def _draw_line(
    style: str, points: Sequence[tuple[float, float]], radii: Sequence[float] | None, is_joined: bool
) -> list[Markup]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [Markup('<polyline points="{}" class="{}"/>').format(joined, style)] if is_joined else []
    if radii is None and len(points) == 1:
        radii = [3.5]
    for (x, y), radius in zip(points, radii or (), strict=False):
        circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}"/>')
        parts.append(circle.format(x, y, radius, style))
    return parts


def _describe(title: str, lines: Sequence[Series], x_axis: Axis, y_axis: Axis) -> str:
    """The chart in words, for those who cannot see it."""
    described = [
        f"{line.name}: {format_tick(line.points[0][1], y_axis)} at {format_tick(line.points[0][0], x_axis)}, "
        f"{format_tick(line.points[-1][1], y_axis)} at {format_tick(line.points[-1][0], x_axis)}"
        for line in lines
        if not line.is_reference
    ]
    return f"{title}. {y_axis.title} over {x_axis.title}. {'; '.join(described)}."
