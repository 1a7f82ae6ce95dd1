"""Points of curves, their thinning, and the pace of a run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow_widgets.series import Points, Progress, min_max


@given(st.lists(st.floats(-1e6, 1e6), max_size=400), st.integers(4, 60))
def test_min_max_keeps_ends_and_extremes_in_order(values: list[float], limit: int) -> None:
    kept = min_max(values, limit)
    assert len(kept) <= max(limit, 0) or len(values) <= limit
    assert kept == sorted(set(kept))
    if values:
        assert kept[0] == 0
        assert kept[-1] == len(values) - 1
        assert min(values) == min(values[i] for i in kept)
        assert max(values) == max(values[i] for i in kept)


def test_not_a_number_survives_thinning() -> None:
    values = [1.0] * 1000
    values[123] = math.nan
    assert 123 in min_max(values, 20)


def test_points_thin_steps_and_values_together() -> None:
    points = Points()
    points.extend(range(0, 5000, 5), [i / 2 for i in range(0, 5000, 5)])
    thin = points.thinned(100)
    assert len(thin) <= 100
    assert all(value == step / 2 for step, value in zip(thin.steps, thin.values, strict=True))
    assert points.thinned(1000) is points


def test_points_must_come_in_pairs() -> None:
    points = Points()
    with pytest.raises(ValueError, match="2 steps came with 1 values"):
        points.extend([1, 2], [0.5])
    assert len(points) == 0


def test_since_gives_the_rest() -> None:
    points = Points()
    points.extend([1, 2, 3], [4, 5, 6])
    assert list(points.since(2).values) == [6.0]
    assert len(points.since(3)) == 0


def test_a_steady_pace_is_measured_and_gives_the_time_left() -> None:
    progress = Progress(steps=1000)
    assert progress.eta_s == -1
    for k in range(20):
        progress.update(k * 10, 100 + k * 0.25)
    assert progress.rate == pytest.approx(40)
    assert progress.eta_s == pytest.approx((1000 - 190) / 40)


def test_the_pace_follows_a_change_within_seconds() -> None:
    progress = Progress(steps=1000)
    for k in range(10):
        progress.update(k * 100, float(k))
    for k in range(1, 31):
        progress.update(900 + k * 10, 9.0 + k)
    assert progress.rate == pytest.approx(10, rel=0.05)


def test_a_resumed_run_goes_back_without_a_negative_pace() -> None:
    progress = Progress(steps=1000)
    for step, at in ((0, 0.0), (100, 1.0), (50, 2.0), (60, 2.1), (150, 3.0)):
        progress.update(step, at)
        assert progress.rate >= 0
    assert progress.step == 150
    assert progress.rate > 0
