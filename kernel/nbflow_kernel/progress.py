"""A training run's progress as a line of text: `███████░░░  70 %  1400/2000  loss 0.031  850 steps/s  0:01 left`."""

from __future__ import annotations

import math
from collections.abc import Mapping

# In the `transient` part of a display message: what marks a progress line for headless runners.
PROGRESS_KEY = "nbflow_progress"
WIDTH = 20
ENDED = ("done", "stopped", "failed")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(fraction: float, width: int = WIDTH) -> str:
    """A bar of `width` characters, filled to eighths of one."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width, "░")


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:04:05`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def number(value: float) -> str:
    """A metric's value in about four digits."""
    if math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:.3e}"


def line(step: int, steps: int, metrics: Mapping[str, float], *, status: str, elapsed_s: float) -> str:
    """The line for a run that did `step` of its `steps` steps in `elapsed_s` seconds."""
    fraction = step / steps if steps else 1.0
    # Rounded down: a run that is not over is not at 100 %.
    parts = [f"{bar(fraction)} {math.floor(fraction * 100):3d} %", f"{step}/{steps}"]
    parts += [f"{name} {number(value)}" for name, value in metrics.items()]
    speed = step / elapsed_s if elapsed_s > 0 else 0.0
    if speed > 0:
        parts.append(f"{speed:.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s")
    if status in ENDED:
        parts.append(f"{status} after {duration(elapsed_s)}")
    elif status == "running" and speed > 0:
        parts.append(f"{duration((steps - step) / speed)} left")
    else:
        parts.append(status)
    return "  ".join(parts)
