"""A scaling curve, or what backup workers do, as a drawing; and that drawing as SVG.

The drawing goes onto any canvas: a PNG's in notebooks (`nbflow_widgets.sheet`), or the SVG's here, whose colours follow
the page or system, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from nbflow.simulate.report import Backups, Curve

WIDTH, HEIGHT = 880.0, 330.0
_TEXT, _MUTED, _GRID = "#1f2328", "#5f6670", "#e3e6ea"
# Okabe and Ito's, of those the ones that reach 3:1 on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
# The same roles on a dark page.
_DARK = {_TEXT: "#e6e8eb", _MUTED: "#a2a9b3", _GRID: "#3a3f47", "#0072B2": "#56B4E9", "#D55E00": "#E69F00"}


class Canvas(Protocol):
    """What is drawn on: points from the upper left corner. `anchor`: l, m or r across, then m."""

    def line(
        self, points: Sequence[tuple[float, float]], color: str, width: float = 1, dash: Sequence[float] = ()
    ) -> None: ...
    def text(self, x: float, y: float, text: str, size: float = 12, color: str = "", anchor: str = "lm") -> None: ...
    def bold(self, x: float, y: float, text: str, size: float = 12, color: str = "", anchor: str = "lm") -> None: ...
    def box(
        self, x: float, y: float, w: float, h: float, fill: str | None, edge: str | None = None, radius: float = 0
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    plain: bool = False  # a line to compare with, without points


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    below: str
    lines: Sequence[_Line]
    log_x: bool = False
    log_y: bool = False
    low: float | None = None
    high: float | None = None
    label: Callable[[float], str] = "{:g}".format


def draw(found: Curve | Backups, canvas: Canvas) -> None:
    """Two panels of WIDTH by HEIGHT: how fast and why, or step time and what it is worth."""
    curve = found.curve if isinstance(found, Backups) else found
    machine = curve.cluster.machine.name or "free machines"
    strategy = curve.predictions[-1].strategy.partition(";")[0]
    what = f"{curve.predictions[0].workers} workers" if isinstance(found, Backups) else strategy
    canvas.bold(18, 22, f"{curve.title} · {what} · {machine} · simulated", 13, _TEXT)
    panels = _of_backups(found) if isinstance(found, Backups) else _of_curve(found)
    for number, panel in enumerate(panels):
        _draw(canvas, 18 + number * WIDTH / 2, 40, panel)


def _of_curve(curve: Curve) -> tuple[_Panel, _Panel]:
    xs = [float(p.workers) for p in curve.predictions]
    log = xs[-1] > 16
    speed = (_Line("ideal", xs, xs, plain=True), _Line("simulated", xs, [curve.speed_up(p) for p in curve.predictions]))
    compute = _Line("compute", xs, [p.compute for p in curve.predictions])
    shares: tuple[_Line, ...] = (
        compute,
        _Line("link", xs, [max(p.worker_out, p.worker_in) for p in curve.predictions]),
        _Line("messages", xs, [p.messages for p in curve.predictions]),
    )
    if any(p.ps for p in curve.predictions):
        shares = (
            compute,
            _Line("ps link", xs, [max(p.ps_out, p.ps_in) for p in curve.predictions]),
            _Line("ps compute", xs, [p.ps_compute for p in curve.predictions]),
            _Line("ps messages", xs, [p.ps_messages for p in curve.predictions]),
        )
    return (
        _Panel("speed-up", "workers", speed, log, log),
        _Panel("share of the time in use", "workers", shares, log, low=0.0, high=1.0, label=lambda v: f"{v:.0%}"),
    )


def _of_backups(found: Backups) -> tuple[_Panel, _Panel]:
    predictions = found.curve.predictions
    xs = [float(p.backups) for p in predictions]
    times = (_Line("median step, s", xs, [p.step_s for p in predictions]),)
    worth = (
        _Line("no backups", xs, [1.0] * len(xs), plain=True),
        _Line("normalised speed-up", xs, [found.normalised(p) for p in predictions]),
    )
    return _Panel("step", "backup workers", times), _Panel("speed-up for what is paid", "backup workers", worth)


def _draw(canvas: Canvas, x: float, y: float, panel: _Panel) -> None:
    left, top, width, height = x + 46, y + 26, WIDTH / 2 - 82, HEIGHT - 128
    canvas.bold(left, y + 10, panel.title, 12, _TEXT)
    place_x = _scale([v for one in panel.lines for v in one.xs], panel.log_x, None, None)
    place_y = _scale([v for one in panel.lines for v in one.ys], panel.log_y, panel.low, panel.high)

    def at(px: float, py: float) -> tuple[float, float]:
        return left + place_x.share(px) * width, top + height - place_y.share(py) * height

    for tick in place_y.ticks:
        _, py = at(place_x.low, tick)
        canvas.line([(left, py), (left + width, py)], _GRID)
        canvas.text(left - 7, py, panel.label(tick), 10.5, _MUTED, "rm")
    for tick in place_x.ticks:
        px, _ = at(tick, place_y.low)
        canvas.line([(px, top), (px, top + height)], _GRID)
        canvas.text(px, top + height + 12, f"{tick:g}", 10.5, _MUTED, "mm")
    canvas.text(left + width / 2, top + height + 29, panel.below, 11, _MUTED, "mm")
    colors = iter(_COLORS)
    key = left
    for one in panel.lines:
        color = _MUTED if one.plain else next(colors)
        points = [at(px, py) for px, py in zip(one.xs, one.ys, strict=True)]
        dash = (4, 4) if one.plain else ()
        canvas.line(points, color, 1.2 if one.plain else 2.0, dash)
        for px, py in () if one.plain else points:
            canvas.box(px - 2.6, py - 2.6, 5.2, 5.2, color, None, 2.6)
        canvas.line([(key, top + height + 50), (key + 18, top + height + 50)], color, 2.0, dash)
        canvas.text(key + 23, top + height + 50, one.name, 11, _TEXT)
        key += 36 + 6.2 * len(one.name)


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    log: bool
    ticks: Sequence[float]

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _scale(values: Sequence[float], log: bool, low: float | None, high: float | None) -> _Scale:
    bottom, top = min(values), max(values)
    if log:
        top = top if top > bottom else bottom * 2
        first, last = math.ceil(math.log10(bottom) - 1e-9), math.floor(math.log10(top) + 1e-9)
        return _Scale(bottom, top, True, [10.0**k for k in range(first, last + 1)])
    rim = (top - bottom) * 0.08 or abs(top) * 0.1 or 1.0
    whole = all(v == int(v) for v in values)
    bottom = low if low is not None else bottom if whole else bottom - rim
    top = high if high is not None else top if whole and top > bottom else top + rim
    return _Scale(bottom, top, False, _ticks(bottom, top, whole))


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


class _Svg:
    """Implements `Canvas`. Colours are classes, which the style sheet turns for dark pages."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def line(
        self, points: Sequence[tuple[float, float]], color: str, width: float = 1, dash: Sequence[float] = ()
    ) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ""
        self.parts.append(
            f'<polyline class="s{color[1:]}" points="{path}" fill="none" stroke-width="{width}"{dashes}/>'
        )

    def text(self, x: float, y: float, text: str, size: float = 12, color: str = _TEXT, anchor: str = "lm") -> None:
        self._text(x, y, text, size, color, anchor, "")

    def bold(self, x: float, y: float, text: str, size: float = 12, color: str = _TEXT, anchor: str = "lm") -> None:
        self._text(x, y, text, size, color, anchor, ' font-weight="600"')

    def _text(self, x: float, y: float, text: str, size: float, color: str, anchor: str, more: str) -> None:
        where = {"l": "start", "m": "middle", "r": "end"}[anchor[0]]
        self.parts.append(
            f'<text class="f{color[1:]}" x="{x:.1f}" y="{y:.1f}" dy=".35em" font-size="{size}" text-anchor="{where}"'
            f"{more}>{escape(text)}</text>"
        )

    def box(
        self, x: float, y: float, w: float, h: float, fill: str | None, edge: str | None = None, radius: float = 0
    ) -> None:
        self.parts.append(
            f'<rect class="f{(fill or _GRID)[1:]}" x="{x:.1f}" y="{y:.1f}" width="{w}" height="{h}" rx="{radius}"/>'
        )


def svg(found: Curve | Backups) -> str:
    """The drawing as a file of its own, without a background."""
    canvas = _Svg()
    draw(found, canvas)
    colors = (_TEXT, _MUTED, _GRID, *_COLORS)
    light = "".join(f".f{c[1:]}{{fill:{c}}}.s{c[1:]}{{stroke:{c}}}" for c in colors)
    dark = "".join(f".f{c[1:]}{{fill:{_DARK.get(c, c)}}}.s{c[1:]}{{stroke:{_DARK.get(c, c)}}}" for c in colors)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" '
        f'font-family="system-ui, sans-serif"><style>{light}@media (prefers-color-scheme: dark){{{dark}}}</style>\n'
        + "\n".join(canvas.parts)
        + "\n</svg>\n"
    )
