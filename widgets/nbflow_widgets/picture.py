"""The PNG of each view, drawn in the kernel: white background, light palette, two pixels a point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from nbflow_widgets.layout import Flow, Layout, Point, fold, layered
from nbflow_widgets.scopes import Edge, Item, Tree, shares, short_device
from nbflow_widgets.sheet import (
    ACCENT,
    BORDER,
    DASHES,
    EDGE,
    FILLS,
    LINES,
    MUTED,
    NEUTRAL,
    TEXT,
    Sheet,
    bezier,
    cut,
    mix,
    text_width,
)

# Boxes beyond this many at the top level say nothing on paper; the rest is counted.
_MOST_BOXES = 60
_LEGEND = 24
_LEGEND_ROW = 18.0
_MARGIN = 18.0
_RANK_GAP, _NODE_GAP = 44.0, 16.0
_HEADER, _PAD = 26.0, 14.0
_BOX_HEIGHT = 46.0


class _Colours:
    """A colour for each device, in the order of their names."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.counts = dict(sorted(shares(tree, tree.root).items()))
        placed = [name for name in self.counts if name != "not placed yet"]
        self.fill = {name: FILLS[i % len(FILLS)] for i, name in enumerate(placed)} | {"not placed yet": NEUTRAL}

    def of(self, item: Item) -> dict[str, int]:
        return dict(sorted(shares(self.tree, item).items()))

    def main(self, item: Item) -> str:
        counts = self.of(item)
        return self.fill[max(counts, key=counts.__getitem__)] if counts else NEUTRAL

    def note(self, item: Item) -> str:
        counts = self.of(item)
        where = next(iter(counts)) if len(counts) == 1 else f"{len(counts)} devices"
        stale = "" if not item.stale else "stale · " if item.kind == "op" else f"{item.stale} stale · "
        if item.kind == "op":
            return f"{stale}{self.tree.nodes[item.node]['op']} · {where}"
        return f"{stale}{item.ops} {'op' if item.ops == 1 else 'ops'} · {where}"


def graph_png(tree: Tree, expanded: AbstractSet[str] = frozenset()) -> bytes:
    """The graph with the scopes in `expanded` open, coloured by device."""
    colours = _Colours(tree)
    scene = _Scene(tree, colours, expanded)
    width, height, draw = scene.inside(tree.root, 0)
    left_out = scene.left_out
    whole = max(width + 2 * _MARGIN, 420)
    note = f"and {left_out} more boxes" if left_out else ""
    rows = _legend_rows(colours, whole, text_width(note, 11) + 24 if note else 0.0)
    sheet = Sheet(whole, height + 2 * _MARGIN + 12 + _LEGEND_ROW * len(rows))
    draw(sheet, (sheet.width - width) / 2, _MARGIN)
    _legend(sheet, colours, rows, note)
    return sheet.png()


class _Scene:
    """Sizes and places of boxes, scope by scope. What it returns draws itself at a given place."""

    def __init__(self, tree: Tree, colours: _Colours, expanded: AbstractSet[str]) -> None:
        self.tree, self.colours, self.expanded = tree, colours, expanded
        self.left_out = 0

    def inside(self, scope: Item, nesting: int) -> tuple[float, float, Any]:
        """(width, height, draw(sheet, x, y)) of what stands directly below `scope`."""
        level = self.tree.level(scope)
        main, aux = self._most(level.main), self._most(level.aux)
        shown = set(main)
        edges = [edge for edge in level.edges if edge.source in shown and edge.target in shown]
        linked = [item for item in main if any(item in (edge.source, edge.target) for edge in edges)]
        alone = [item for item in main if item not in set(linked)]
        boxes = {item: self._box(item, nesting) for item in (*main, *aux)}
        at = {item: i for i, item in enumerate(linked)}
        pairs = [(at[edge.source], at[edge.target]) for edge in edges]
        sizes = [boxes[item][:2] for item in linked]
        layout = layered(sizes, pairs, _RANK_GAP, _NODE_GAP)
        lines = [_route(layout, sizes, a, b, bends) for (a, b), bends in zip(pairs, layout.bends, strict=True)]
        flow = fold(Flow(layout.nodes, lines, layout.width, layout.height), sizes, pairs)
        places = {item: flow.nodes[i] for item, i in at.items()}
        width, height = _rows(alone, boxes, flow.width, flow.height, places)
        width, height = _strip(aux, boxes, width, height, places)

        def draw(sheet: Sheet, x: float, y: float) -> None:
            for edge, line in zip(edges, flow.lines, strict=True):
                _draw_edge(sheet, edge, line, x, y)
            for item, (cx, cy) in places.items():
                w, h, body = boxes[item]
                body(sheet, x + cx - w / 2, y + cy - h / 2)

        return width, height, draw

    def _most(self, items: Sequence[Item]) -> list[Item]:
        kept = set(sorted(items, key=lambda item: -item.ops)[:_MOST_BOXES])
        self.left_out += len(items) - len(kept)
        return [item for item in items if item in kept]

    def _box(self, item: Item, nesting: int) -> tuple[float, float, Any]:
        if item.id in self.expanded and item.children:
            width, height, inner = self.inside(item, nesting + 1)
            outer = max(width + 2 * _PAD, text_width(item.label) + 30)

            def draw_open(sheet: Sheet, x: float, y: float) -> None:
                fill = self.colours.main(item)
                sheet.box(x, y, outer, height + _HEADER + _PAD, mix(fill, "#ffffff", 0.07), mix(fill, BORDER, 0.5), 9)
                sheet.bold(x + 12, y + 14, item.label)
                inner(sheet, x + (outer - width) / 2, y + _HEADER)

            return outer, height + _HEADER + _PAD, draw_open
        note = self.colours.note(item)
        width = min(220.0, max(64.0, text_width(item.label, 12.5), text_width(note, 11)) + 26)
        return width, _BOX_HEIGHT, lambda sheet, x, y: self._draw_box(sheet, item, note, x, y, width)

    def _draw_box(self, sheet: Sheet, item: Item, note: str, x: float, y: float, width: float) -> None:
        main = self.colours.main(item)
        fill, edge = mix(main, "#ffffff", 0.16), mix(main, "#303030", 0.75)
        for shift in (8, 4) if item.kind == "series" else ():
            sheet.box(x + shift, y - shift, width, _BOX_HEIGHT, fill, edge, 8)
        sheet.box(x, y, width, _BOX_HEIGHT, fill, edge, 5 if item.kind == "op" else 8)
        if item.stale:
            for at in range(6, int(width + _BOX_HEIGHT) - 6, 9):
                low, high = max(0.0, at - _BOX_HEIGHT), min(width, float(at))
                ends = ((x + low, y + at - low), (x + high, y + at - high))
                sheet.line(ends, mix(MUTED, fill, 0.3), 1)
        sheet.bold(x + 12, y + 15, cut(item.label, width - 22, 12.5), 12.5)
        sheet.text(x + 12, y + 30, cut(note, width - 18, 11), 11, mix(TEXT, "#ffffff", 0.75))
        left = x + 8
        for device, ops in self.colours.of(item).items():
            span = (width - 16) * ops / item.ops
            sheet.box(left, y + _BOX_HEIGHT - 6, span, 3, self.colours.fill[device])
            left += span


def _route(layout: Layout, sizes: Sequence[Point], a: int, b: int, bends: Sequence[Point]) -> list[Point]:
    (ax, ay), (bx, by) = layout.nodes[a], layout.nodes[b]
    side = 1 if bx >= ax else -1
    start, end = (ax + side * sizes[a][0] / 2, ay), (bx - side * sizes[b][0] / 2, by)
    return [start, *(p for p in bends if side * (p[0] - start[0]) > 4 and side * (end[0] - p[0]) > 4), end]


def _rows(
    alone: Sequence[Item],
    boxes: Mapping[Item, tuple[float, float, Any]],
    width: float,
    height: float,
    places: dict[Item, Point],
) -> tuple[float, float]:
    """Unconnected items in rows below the rest."""
    if not alone:
        return width, height
    area = sum((boxes[item][0] + _NODE_GAP) * (boxes[item][1] + _NODE_GAP) for item in alone)
    limit = max(width, 2 * math.sqrt(area), *(boxes[item][0] for item in alone))
    x, y, tall, right = 0.0, height + 2 * _NODE_GAP if height else 0.0, 0.0, width
    for item in alone:
        w, h, _ = boxes[item]
        if x and x + w > limit:
            x, y, tall = 0.0, y + tall + _NODE_GAP, 0.0
        places[item] = (x + w / 2, y + h / 2)
        right, x, tall = max(right, x + w), x + w + _NODE_GAP, max(tall, h)
    return right, y + tall


def _strip(
    aux: Sequence[Item],
    boxes: Mapping[Item, tuple[float, float, Any]],
    width: float,
    height: float,
    places: dict[Item, Point],
) -> tuple[float, float]:
    """The side strip, to the right."""
    if not aux:
        return width, height
    limit = max(height, 160.0, *(boxes[item][1] for item in aux))
    x, y, wide, bottom = width + 40.0, 0.0, 0.0, height
    for item in aux:
        w, h, _ = boxes[item]
        if y and y + h > limit:
            x, y, wide = x + wide + _NODE_GAP, 0.0, 0.0
        places[item] = (x + w / 2, y + h / 2)
        y, wide = y + h + _NODE_GAP, max(wide, w)
        bottom = max(bottom, y - _NODE_GAP)
    return x + wide, bottom


def _draw_edge(sheet: Sheet, edge: Edge, points: Sequence[Point], x: float, y: float) -> None:
    color = mix(ACCENT, EDGE, 0.5) if edge.crosses else EDGE
    width = min(5.0, 1.1 + 0.6 * math.log2(max(1, edge.tensors)))
    dash = (2, 4) if edge.tensors == 0 else (8, 4) if edge.crosses else ()
    path = [(x + px, y + py) for a, b in itertools.pairwise(points) for px, py in bezier(a, b)]
    sheet.line(path, color, width, dash)
    (bx, by), size = path[-1], 4 + width
    back = -size if points[-2][0] <= points[-1][0] else size
    sheet.polygon([(bx, by), (bx + back, by - size / 2), (bx + back, by + size / 2)], color)


def _legend_rows(colours: _Colours, width: float, note: float) -> list[list[tuple[str, str]]]:
    """(device, text) of all that the legend says, in as many rows as it takes beside a note of this width."""
    named = [(name, f"{name}  {count}") for name, count in colours.counts.items()]
    if len(named) > _LEGEND:
        named = [*named[:_LEGEND], ("", f"and {len(named) - _LEGEND} more devices")]
    rows: list[list[tuple[str, str]]] = [[]]
    x = _MARGIN
    for name, text in named:
        if rows[-1] and x + text_width(text, 11) + 24 > width - _MARGIN - note:
            rows.append([])
            x = _MARGIN
        rows[-1].append((name, text))
        x += text_width(text, 11) + 38
    return rows


def _legend(sheet: Sheet, colours: _Colours, rows: Sequence[Sequence[tuple[str, str]]], note: str) -> None:
    for number, row in enumerate(rows):
        x, y = _MARGIN, sheet.height - 18.0 - _LEGEND_ROW * (len(rows) - 1 - number)
        for name, text in row:
            if name:
                sheet.box(x, y - 5, 13, 10, colours.fill[name], mix(colours.fill[name], "#303030", 0.6), 2)
            sheet.text(x + 19, y, text, 11, TEXT if name else MUTED)
            x += text_width(text, 11) + 38
    if note:
        sheet.text(sheet.width - _MARGIN, sheet.height - 18.0, note, 11, MUTED, "rm")


# --- curves ---------------------------------------------------------------------------------------

_PLOT_WIDTH, _PLOT_HEIGHT = 440.0, 240.0


def curves_png(
    title: str,
    status: Mapping[str, Any],
    curves: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]],
    marks: Sequence[tuple[int, str]] = (),
    *,
    log_scale: bool = False,
) -> bytes:
    """One plot a metric. `curves`: (metric, replica) → (steps, values)."""
    metrics: dict[str, list[tuple[str, Sequence[float], Sequence[float]]]] = {}
    for (metric, replica), (steps, values) in curves.items():
        metrics.setdefault(metric, []).append((replica, steps, values))
    across = min(2, max(1, len(metrics)))
    down = max(1, math.ceil(len(metrics) / across))
    sheet = Sheet(across * _PLOT_WIDTH + 2 * _MARGIN, down * (_PLOT_HEIGHT + 24) + 44)
    heading = " · ".join(part for part in (title, _status_text(status)) if part)
    sheet.bold(_MARGIN, 22, cut(heading, sheet.width - 2 * _MARGIN, 13), 13)
    if not metrics:
        sheet.text(sheet.width / 2, sheet.height / 2, "no values were reported", 12, MUTED, "mm")
    for i, (metric, lines) in enumerate(metrics.items()):
        x = _MARGIN + (i % across) * _PLOT_WIDTH
        y = 40 + (i // across) * (_PLOT_HEIGHT + 24)
        lines.sort(key=lambda line: (line[0] != "", line[0]))
        _plot(sheet, x, y, metric, lines, marks, log_scale)
    return sheet.png()


def _status_text(status: Mapping[str, Any]) -> str:
    step, steps = status.get("step", 0), status.get("steps", 0)
    parts = [str(status.get("status", "")), f"step {step:,} of {steps:,}" if steps else f"step {step:,}"]
    if status.get("rate", 0) > 0:
        parts.append(f"{status['rate']:.3g} steps/s")
    return " · ".join(part for part in parts if part)


def _plot(
    sheet: Sheet,
    x: float,
    y: float,
    metric: str,
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    marks: Sequence[tuple[int, str]],
    log_scale: bool,
) -> None:
    left, top, width, height = x + 48, y + 26, _PLOT_WIDTH - 66, _PLOT_HEIGHT - 50
    usable = [
        [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v) and (v > 0 or not log_scale)]
        for _, steps, values in lines
    ]
    every = [point for points in usable for point in points]
    sheet.bold(left, y + 10, metric, 12.5)
    if not every:
        sheet.text(left + width / 2, top + height / 2, "no finite values", 11, MUTED, "mm")
        return

    def scale(v: float) -> float:
        return math.log10(v) if log_scale else v

    x0, x1 = min(s for s, _ in every), max(s for s, _ in every)
    y0, y1 = min(scale(v) for _, v in every), max(scale(v) for _, v in every)
    if x0 == x1:
        x0, x1 = x0 - 1, x1 + 1
    rim = (y1 - y0) * 0.05 or max(abs(y0) * 0.05, 1e-6)
    y0, y1 = y0 - rim, y1 + rim

    def place(s: float, v: float) -> Point:
        return left + (s - x0) / (x1 - x0) * width, top + height - (scale(v) - y0) / (y1 - y0) * height

    for tick in ticks(x0, x1, 6):
        px = left + (tick - x0) / (x1 - x0) * width
        sheet.line([(px, top), (px, top + height)], "#e9ebee")
        sheet.text(px, top + height + 12, f"{tick:,g}", 10.5, MUTED, "mm")
    for tick in ticks(y0, y1, 5):
        py = top + height - (tick - y0) / (y1 - y0) * height
        sheet.line([(left, py), (left + width, py)], "#e9ebee")
        sheet.text(left - 7, py, f"{10**tick if log_scale else tick:.4g}", 10.5, MUTED, "rm")
    for step, text in marks:
        if x0 <= step <= x1:
            px = left + (step - x0) / (x1 - x0) * width
            sheet.line([(px, top), (px, top + height)], MUTED, 1, (3, 3))
            anchor = "rm" if px > left + width * 0.6 else "lm"
            sheet.text(px + (-4 if anchor == "rm" else 4), top + 7, cut(text, width / 2, 10), 10, TEXT, anchor)
    # The mean comes first and is drawn last, on top.
    for i, points in reversed(list(enumerate(usable))):
        dash = DASHES[i // len(LINES) % len(DASHES)]
        sheet.line([place(s, v) for s, v in points], LINES[i % len(LINES)], 1.1 if i else 1.9, dash)
        if len(points) == 1:
            px, py = place(*points[0])
            sheet.box(px - 2.5, py - 2.5, 5, 5, LINES[i % len(LINES)], None, 2.5)
    _keys(sheet, left, top + height + 32, width, metric, lines)


def _keys(
    sheet: Sheet,
    x: float,
    y: float,
    width: float,
    metric: str,
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
) -> None:
    right = x + width
    for i, (replica, _, values) in enumerate(lines):
        name = replica or ("mean" if len(lines) > 1 else metric)
        text = f"{name}  {values[-1]:.4g}"
        if x + 30 + text_width(text, 11) > right:
            sheet.text(x, y, f"and {len(lines) - i} more", 11, MUTED)
            return
        dash = DASHES[i // len(LINES) % len(DASHES)]
        sheet.line([(x, y), (x + 20, y)], LINES[i % len(LINES)], 2.4, dash)
        sheet.text(x + 26, y, text, 11)
        x += 44 + text_width(text, 11)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, near `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


# --- cluster --------------------------------------------------------------------------------------

CLUSTER_COLUMNS = ("worker", "state", "devices", "address", "RTT", "memory", "detail")


def cluster_rows(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row of texts a worker, as in CLUSTER_COLUMNS; unknown values are a dash."""
    rows: list[tuple[str, ...]] = []
    for record in sorted(records, key=lambda record: str(record["worker"])):
        devices = ", ".join(short_device(str(device)).rpartition("/")[2] for device in record.get("devices") or ())
        rtt, memory = record.get("rtt_ms"), record.get("memory_bytes")
        rows.append(
            (
                short_device(str(record["worker"])),
                str(record["state"]),
                devices or "-",
                str(record.get("address") or "-"),
                "-" if rtt is None else f"{rtt:.1f} ms",
                "-" if memory is None else f"{memory / 1e6:,.0f} MB",
                str(record.get("detail") or ""),
            )
        )
    return rows


def cluster_png(title: str, records: Sequence[Mapping[str, Any]]) -> bytes:
    """The workers as a table."""
    rows = [tuple(cut(cell, 260) for cell in row) for row in cluster_rows(records)]
    used = [i for i in range(len(CLUSTER_COLUMNS)) if i == 0 or any(row[i] not in ("", "-") for row in rows)]
    widths = {i: max(text_width(row[i]) for row in (CLUSTER_COLUMNS, *rows)) + 26 for i in used}
    heading = title or (f"{len(rows)} workers" if len(rows) != 1 else "1 worker")
    sheet = Sheet(max(sum(widths.values()), text_width(heading, 13)) + 2 * _MARGIN, 66 + 24 * len(rows))
    sheet.bold(_MARGIN, 20, heading, 13)
    x = _MARGIN
    for i in used:
        sheet.text(x, 42, CLUSTER_COLUMNS[i], 11, MUTED)
        for k, row in enumerate(rows):
            color = "#c62828" if row[1] == "lost" else TEXT
            sheet.text(x, 68 + 24 * k, row[i], 12, color)
        x += widths[i]
    sheet.line([(_MARGIN, 53), (sheet.width - _MARGIN, 53)], BORDER)
    return sheet.png()
