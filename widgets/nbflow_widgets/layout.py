"""A layered layout in O((N + E + dummies) · sweeps), left to right. Pure; `src/core/layered.ts` is the same.

Sugiyama's steps: ranks by longest path, dummies on long edges (while they are affordable), order by barycentres, then
coordinates by isotonic regression: the least-squares positions that keep the order and the gaps.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Size = tuple[float, float]

_SWEEPS = 8
# Dummies are worth their time up to this many a node.
_DUMMIES_PER_NODE = 4
_DUMMY_HEIGHT = 6.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Centres, one a node; the bends of each edge between its ends; the size of it all."""

    nodes: Sequence[Point]
    bends: Sequence[Sequence[Point]]
    width: float
    height: float


def ranks(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest-path ranks; edges that close a cycle are ignored. Sources stand directly before their first consumer."""
    out: list[list[int]] = [[] for _ in range(n)]
    for e, (a, _) in enumerate(edges):
        out[a].append(e)
    order, backward = _depth_first(n, edges, out)
    rank = [0] * n
    source = [True] * n
    for u in order:
        for e in out[u]:
            if not backward[e]:
                rank[edges[e][1]] = max(rank[edges[e][1]], rank[u] + 1)
                source[edges[e][1]] = False
    for u in order:
        forward = [rank[edges[e][1]] for e in out[u] if not backward[e]]
        if source[u] and forward:
            rank[u] = min(forward) - 1
    return rank


def _depth_first(n: int, edges: Sequence[tuple[int, int]], out: list[list[int]]) -> tuple[list[int], list[bool]]:
    """A topological order, and which edges close a cycle. Without recursion: graphs may be deeper than the stack."""
    state = [0] * n
    backward = [a == b for a, b in edges]
    order: list[int] = []
    for start in range(n):
        if state[start]:
            continue
        state[start] = 1
        stack = [(start, iter(out[start]))]
        while stack:
            u, rest = stack[-1]
            e = next(rest, None)
            if e is None:
                state[u] = 2
                order.append(u)
                stack.pop()
            elif state[edges[e][1]] == 1:
                backward[e] = True
            elif state[edges[e][1]] == 0:
                state[edges[e][1]] = 1
                stack.append((edges[e][1], iter(out[edges[e][1]])))
    return order[::-1], backward


def layered(sizes: Sequence[Size], edges: Sequence[tuple[int, int]], rank_gap: float, node_gap: float) -> Layout:
    """Places boxes of `sizes` (width, height); `edges` are pairs of indices."""
    n = len(sizes)
    if n == 0:
        return Layout((), (), 0.0, 0.0)
    rank = ranks(n, edges)
    spans = sum(max(0, abs(rank[a] - rank[b]) - 1) for a, b in edges)
    affordable = spans <= _DUMMIES_PER_NODE * n + 200
    boxes = list(sizes)
    rank_of = list(rank)
    before: list[list[int]] = [[] for _ in range(n)]
    after: list[list[int]] = [[] for _ in range(n)]
    chains: list[list[int]] = []
    for a, b in edges:
        low, high = (a, b) if rank[a] <= rank[b] else (b, a)
        chain: list[int] = []
        last = low
        for r in range(rank[low] + 1, rank[high] if affordable else 0):
            boxes.append((0.0, _DUMMY_HEIGHT))
            rank_of.append(r)
            before.append([last])
            after.append([])
            after[last].append(len(boxes) - 1)
            last = len(boxes) - 1
            chain.append(last)
        if rank[low] != rank[high]:
            after[last].append(high)
            before[high].append(last)
        chains.append(chain if low == a else chain[::-1])
    layers = _order(rank_of, before, after)
    y = _settle(layers, boxes, before, after, n, node_gap)
    x, half, width = _columns(layers, boxes, rank_gap)
    low_y = min(y[i] - h / 2 for i, (_, h) in enumerate(boxes))
    high_y = max(y[i] + h / 2 for i, (_, h) in enumerate(boxes))

    def point(i: int) -> Point:
        return x[rank_of[i]], y[i] - low_y

    def level(chain: list[int], backward: bool) -> list[Point]:
        # A line passes a column level, or it would cut the corners of wide boxes.
        way = (1, -1) if backward else (-1, 1)
        return [(x[rank_of[i]] + side * half[rank_of[i]], y[i] - low_y) for i in chain for side in way]

    bends = [level(chain, rank[a] > rank[b]) for chain, (a, b) in zip(chains, edges, strict=True)]
    return Layout([point(i) for i in range(n)], bends, width, high_y - low_y)


# Narrower flows fit a notebook as they are.
_WIDE, _FLAT = 1500.0, 4.0
# Width to height of a notebook's output.
_ASPECT = 2.4
_ROW_GAP, _LANE = 46.0, 16.0


@dataclass(frozen=True, slots=True)
class Flow:
    """Placed boxes and the whole way of each line."""

    nodes: Sequence[Point]
    lines: Sequence[Sequence[Point]]
    width: float
    height: float


def fold(flow: Flow, sizes: Sequence[Size], edges: Sequence[tuple[int, int]]) -> Flow:
    """Folds a flow much wider than high into rows, as text is wrapped; `src/core/fold.ts` is the same.

    Lines within a row stay as they are. A line to another row leaves its column, runs through the free lanes between
    rows and beside them, and meets its box from the usual side.
    """
    if flow.width < _WIDE or flow.width < _FLAT * flow.height:
        return flow
    cuts = _cut_columns(flow, sizes)
    if len(cuts) < 2:
        return flow
    rows = [max(0, bisect.bisect_right(cuts, x) - 1) for x, _ in flow.nodes]
    tops, bottoms = [math.inf] * len(cuts), [-math.inf] * len(cuts)

    def extend(row: int, top: float, bottom: float) -> None:
        tops[row], bottoms[row] = min(tops[row], top), max(bottoms[row], bottom)

    for (_, y), (_, h), row in zip(flow.nodes, sizes, rows, strict=True):
        extend(row, y - h / 2, y + h / 2)
    for line, (a, b) in zip(flow.lines, edges, strict=True):
        for _, y in line if rows[a] == rows[b] else ():
            extend(rows[a], y, y)
    starts = [0.0]
    for row in range(len(cuts) - 1):
        starts.append(starts[-1] + bottoms[row] - tops[row] + _ROW_GAP)

    def move(point: Point, row: int) -> Point:
        return point[0] - cuts[row] + 2 * _LANE, point[1] - tops[row] + starts[row]

    lines = []
    for e, (line, (a, b)) in enumerate(zip(flow.lines, edges, strict=True)):
        if rows[a] == rows[b]:
            lines.append([move(point, rows[a]) for point in line])
            continue
        # The lane below a row; neighbouring lines keep a little apart.
        down, shift = rows[b] > rows[a], (e % 5 - 2) * 3.0
        leave, arrive = (
            starts[row] + bottoms[row] - tops[row] + _ROW_GAP / 2 + shift
            for row in ((rows[a], rows[b] - 1) if down else (rows[a] - 1, rows[b]))
        )
        lines.append(_around(move(line[0], rows[a]), move(line[-1], rows[b]), leave, arrive, shift, down))
    nodes = [move(point, row) for point, row in zip(flow.nodes, rows, strict=True)]
    width = max(x + w / 2 for (x, _), (w, _) in zip(nodes, sizes, strict=True)) + 2 * _LANE
    return Flow(nodes, lines, width, starts[-1] + bottoms[-1] - tops[-1])


def _cut_columns(flow: Flow, sizes: Sequence[Size]) -> list[float]:
    """Where each row begins: the left end of its first column. Empty when rows would not help."""
    columns = sorted((x - w / 2, x + w / 2) for (x, _), (w, _) in zip(flow.nodes, sizes, strict=True))
    count = max(2, round(math.sqrt(flow.width / (flow.height + _ROW_GAP) / _ASPECT)))
    # A box as wide as a good part of a row would stand alone on it.
    if max(right - left for left, right in columns) > flow.width / count / 2:
        return []
    cuts, reach = [columns[0][0]], columns[0][1]
    for left, right in columns:
        # Only a free lane before this box is a place to cut.
        if left >= reach + _LANE and right - cuts[-1] > flow.width / count * 1.05:
            cuts.append(left - _LANE / 2)
        reach = max(reach, right)
    return cuts


def _around(start: Point, end: Point, leave: float, arrive: float, shift: float, down: bool) -> list[Point]:
    side = _LANE if down else -_LANE
    a, b, beside = start[0] + side + shift, end[0] - side + shift, _LANE / 2 + shift
    margin = [] if leave == arrive else [(beside, leave), (beside, arrive)]
    return [start, (a, start[1]), (a, leave), *margin, (b, arrive), (b, end[1]), end]


def _order(rank: list[int], before: list[list[int]], after: list[list[int]]) -> list[list[int]]:
    """Layers of node indices, ordered to cross few edges."""
    layers: list[list[int]] = [[] for _ in range(max(rank) + 1)]
    for i, r in enumerate(rank):
        layers[r].append(i)
    at = [0.0] * len(rank)

    def number(layer: list[int]) -> None:
        for k, i in enumerate(layer):
            at[i] = (k + 0.5) / len(layer)

    for layer in layers:
        number(layer)
    for sweep in range(_SWEEPS):
        near, rows = (before, layers) if sweep % 2 == 0 else (after, layers[::-1])
        for layer in rows:
            key = {i: _mean([at[j] for j in near[i]]) if near[i] else at[i] for i in layer}
            layer.sort(key=key.__getitem__)
            number(layer)
    return layers


def _settle(
    layers: list[list[int]],
    sizes: list[Size],
    before: list[list[int]],
    after: list[list[int]],
    real: int,
    gap: float,
) -> list[float]:
    """y of each node: repeatedly the mean of its neighbours, corrected to keep order and gaps."""
    y = [0.0] * len(sizes)
    offsets: list[list[float]] = []
    for layer in layers:
        offset = [0.0]
        for a, b in itertools.pairwise(layer):
            offset.append(offset[-1] + sizes[a][1] / 2 + sizes[b][1] / 2 + gap)
        for i, place in zip(layer, offset, strict=False):
            y[i] = place - offset[-1] / 2
        offsets.append(offset)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for r in range(len(layers)) if down else reversed(range(len(layers))):
            wanted, weights = [], []
            for k, i in enumerate(layers[r]):
                # The last two sweeps look both ways, so that no side wins.
                near = before[i] + after[i] if sweep >= _SWEEPS - 2 else (before if down else after)[i]
                wanted.append((_mean([y[j] for j in near]) if near else y[i]) - offsets[r][k])
                # Dummies pull harder: a long edge should be straight.
                weights.append(0.2 if not near else 4.0 if i >= real else 1.0)
            for k, (i, place) in enumerate(zip(layers[r], isotonic(wanted, weights), strict=True)):
                y[i] = place + offsets[r][k]
    return y


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        total, mass, size = value * weight, weight, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / mass:
            total, mass, size = total + blocks[-1][0], mass + blocks[-1][1], size + blocks[-1][2]
            blocks.pop()
        blocks.append((total, mass, size))
    return [total / mass for total, mass, size in blocks for _ in range(size)]


def _columns(layers: list[list[int]], sizes: list[Size], gap: float) -> tuple[list[float], list[float], float]:
    """x of each layer's centre, half its width, and the width of all."""
    left, centres, halves = 0.0, [], []
    for layer in layers:
        width = max((sizes[i][0] for i in layer), default=0.0)
        centres.append(left + width / 2)
        halves.append(width / 2)
        left += width + gap
    return centres, halves, left - gap


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
