"""A sheet of paper to draw on: Pillow with smooth lines, points as units and fonts that are always there."""

from __future__ import annotations

import io
import itertools
import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Drawn at four pixels a point and halved: Pillow has no smooth lines of its own.
_OVER = 4
_KEPT = 2
# Above this many points in either direction the picture would take hundreds of megabytes.
MAX_SIDE = 3000

TEXT = "#1f2328"
MUTED = "#5f6670"
BORDER = "#d0d4da"
EDGE = "#a3a9b3"
ACCENT = "#1976d2"
# Okabe and Ito's colours: fills in the graph, and the four that lines need 3:1 on white with.
FILLS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3))
NEUTRAL = "#8a8f98"

# Pillow's built-in font knows ASCII and these only; other texts need a font of the system.
_BUILT_IN = frozenset(map(chr, range(32, 127))) | frozenset("·…")
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")


@lru_cache(maxsize=64)
def _built_in(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _system(size: int) -> Font | None:
    for name in _SYSTEM_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            # Not on this system; the next one may be.
            continue
    return None


def _plain(text: str) -> str:
    """What the built-in font can show of `text`: accents dropped, the rest as question marks."""
    text = text.replace("×", "x").replace("–", "-").replace("→", "->")
    pieces = unicodedata.normalize("NFKD", text)
    return "".join(c if c in _BUILT_IN else "?" for c in pieces if not unicodedata.combining(c))


def _font_for(text: str, size: float) -> tuple[Font, str]:
    pixels = round(size * _OVER)
    if _BUILT_IN.issuperset(text):
        return _built_in(pixels), text
    system = _system(pixels)
    return (_built_in(pixels), _plain(text)) if system is None else (system, text)


def mix(top: str, bottom: str, share: float) -> str:
    """`share` of the colour `top` over `bottom`, both `#rrggbb`."""
    pairs = [(int(top[i : i + 2], 16), int(bottom[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in pairs)


class Sheet:
    """White paper of `width` by `height` points; x to the right, y down."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = min(math.ceil(width), MAX_SIDE), min(math.ceil(height), MAX_SIDE)
        self._image = Image.new("RGB", (self.width * _OVER, self.height * _OVER), "white")
        self._draw = ImageDraw.Draw(self._image)

    def box(
        self, x: float, y: float, w: float, h: float, fill: str | None, edge: str | None = None, radius: float = 0
    ) -> None:
        corners = (x * _OVER, y * _OVER, (x + w) * _OVER, (y + h) * _OVER)
        self._draw.rounded_rectangle(corners, radius * _OVER, fill=fill, outline=edge, width=_OVER if edge else 0)

    def line(self, points: Sequence[Point], color: str, width: float = 1, dash: Sequence[float] = ()) -> None:
        for piece in dashed(points, dash) if dash else [points]:
            if len(piece) > 1:
                pixels = [(x * _OVER, y * _OVER) for x, y in piece]
                self._draw.line(pixels, fill=color, width=max(1, round(width * _OVER)), joint="curve")

    def polygon(self, points: Sequence[Point], color: str) -> None:
        self._draw.polygon([(x * _OVER, y * _OVER) for x, y in points], fill=color)

    def text(self, x: float, y: float, text: str, size: float = 12, color: str = TEXT, anchor: str = "lm") -> None:
        """`anchor` as Pillow has it: l, m, r across; t, m, s down. Down, m is the middle of lower-case letters."""
        font, shown = _font_for(text, size)
        self._draw.text((x * _OVER, y * _OVER), shown, fill=color, font=font, anchor=anchor)

    def bold(self, x: float, y: float, text: str, size: float = 12, color: str = TEXT, anchor: str = "lm") -> None:
        """The built-in font has one weight: a thin stroke makes the second."""
        font, shown = _font_for(text, size)
        place = (x * _OVER, y * _OVER)
        self._draw.text(place, shown, fill=color, font=font, anchor=anchor, stroke_width=1, stroke_fill=color)

    def png(self) -> bytes:
        """The sheet at two pixels a point."""
        size = (self.width * _KEPT, self.height * _KEPT)
        small = self._image.resize(size, Image.Resampling.BOX)
        buffer = io.BytesIO()
        # 128 colours are enough for flat fills and smooth edges, and a third of the bytes.
        small.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            buffer, "PNG", optimize=True
        )
        return buffer.getvalue()


def text_width(text: str, size: float = 12) -> float:
    """Width in points."""
    font, shown = _font_for(text, size)
    return font.getlength(shown) / _OVER


def cut(text: str, width: float, size: float = 12) -> str:
    """`text` shortened to `width` points with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle] + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…"


def bezier(a: Point, b: Point, parts: int = 16) -> list[Point]:
    """From `a` to `b`, leaving and arriving level; level and upright lines are straight."""
    (x0, y0), (x1, y1) = a, b
    if x0 == x1 or y0 == y1:
        return [a, b]
    middle = (x0 + x1) / 2
    result = []
    for k in range(parts + 1):
        t = k / parts
        u = 1 - t
        c = (u**3, 3 * u * u * t, 3 * u * t * t, t**3)
        result.append(
            (c[0] * x0 + (c[1] + c[2]) * middle + c[3] * x1, (c[0] + c[1]) * y0 + (c[2] + c[3]) * y1),
        )
    return result


def dashed(points: Sequence[Point], dash: Sequence[float]) -> list[list[Point]]:
    """The drawn pieces of a dashed line; `dash` alternates drawn and blank lengths."""
    pieces: list[list[Point]] = []
    index, left = 0, dash[0]
    piece = [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        done = 0.0
        while length - done > left:
            done += left
            spot = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if index % 2 == 0:
                pieces.append([*piece, spot])
            piece = [spot]
            index += 1
            left = dash[index % len(dash)]
        left -= length - done
        piece.append((x1, y1))
    if index % 2 == 0:
        pieces.append(piece)
    return pieces
