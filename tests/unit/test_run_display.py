"""What a notebook shows of a run: the progress line, the live view, the still one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbflow.events import Emitter, Event, Metric, RunState
from nbflow_kernel import progress
from nbflow_kernel.run_display import WIDGET, RunDisplay


class FakeRun:
    """What the display uses of a run."""

    def __init__(self) -> None:
        self.id = "r1"
        self.metric_names = ("loss", "accuracy")
        self.status, self.step, self.steps, self.detail = "starting", 0, 200, ""
        self.emitter = Emitter()
        self.stopped = threading.Event()
        self.paused = threading.Event()
        self.resumed = threading.Event()

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        return self.emitter.add(listener)

    def request_stop(self) -> None:
        self.stopped.set()

    def pause(self) -> None:
        self.paused.set()

    def resume(self) -> None:
        self.resumed.set()

    def go(self, step: int, loss: float, status: str = "running") -> None:
        self.step, self.status = step, status
        self.emitter.emit(Metric(self.id, "loss", step, loss, time.time()))
        self.emitter.emit(RunState(self.id, status, step, self.steps, time.time()))


class Page:
    """Keeps the outputs of a cell as a notebook does."""

    def __init__(self) -> None:
        self.outputs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.lines: list[str] = []
        self.widgets: list[str] = []

    def publish(self, data: dict[str, Any], metadata: Any, transient: dict[str, Any], update: bool) -> None:
        key = transient["display_id"]
        assert update == (key in self.outputs)
        self.outputs[key] = (data, metadata)
        if progress.PROGRESS_KEY in transient:
            self.lines.append(data["text/plain"])


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def page() -> Iterator[Page]:
    before = {t.name for t in threading.enumerate()}
    yield Page()
    left = {t.name for t in threading.enumerate()} - before
    assert not {n for n in left if n.startswith("nbflow")}


def still(page: Page) -> tuple[dict[str, Any], dict[str, Any]]:
    (found,) = [o for o in page.outputs.values() if "image/png" in o[0]]
    return found


def test_a_run_from_start_to_end(run: FakeRun, page: Page) -> None:
    display = RunDisplay(run, page.publish)  # type: ignore[arg-type]
    assert len(page.outputs) == 1
    assert any(WIDGET in data for data, _ in page.outputs.values())
    run.go(100, 0.5)
    run.go(200, 0.25, "done")
    display.finish()
    data, metadata = still(page)
    assert set(data) == {WIDGET, "image/png", "text/plain"}
    assert metadata["image/png"]["width"] > 100
    assert "done" in data["text/plain"]
    assert "loss 0.25" in data["text/plain"]
    assert "200/200  loss 0.2500" in page.lines[-1]
    assert "done after" in page.lines[-1]
    run.go(201, 9.0)  # too late to be heard
    assert "loss 0.2500" in page.lines[-1]


def test_where_the_curves_are_drawn_no_line_repeats_them(run: FakeRun, page: Page) -> None:
    display = RunDisplay(run, page.publish)  # type: ignore[arg-type]
    display._view._message(display._view, {"type": "backfill"}, [])
    run.go(200, 0.25, "done")
    display._say()
    display.finish()
    assert len(page.outputs) == 1
    assert "loss 0.25" in still(page)[0]["text/plain"]


def test_without_a_front_end_no_widget_is_left(run: FakeRun, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBFLOW_NONINTERACTIVE", "1")
    display = RunDisplay(run, page.publish)  # type: ignore[arg-type]
    assert page.lines[0].startswith("░")
    run.go(200, 0.25, "done")
    display.finish()
    assert set(still(page)[0]) == {"image/png", "text/plain"}
    assert not any(WIDGET in data for data, _ in page.outputs.values())


def test_a_failure_shows_its_reason(run: FakeRun, page: Page) -> None:
    display = RunDisplay(run, page.publish)  # type: ignore[arg-type]
    run.go(10, 0.5)
    run.status, run.detail = "failed", "WorkerLost: /job:worker/task:1 is gone"
    display.finish()
    assert "failed after" in page.lines[-1]
    assert "/job:worker/task:1 is gone" in page.lines[-1]


def test_the_buttons(run: FakeRun, page: Page) -> None:
    display = RunDisplay(run, page.publish)  # type: ignore[arg-type]
    view = display._view
    view._message(view, {"type": "stop"}, [])
    assert run.stopped.is_set()
    view._message(view, {"type": "pause"}, [])
    assert run.paused.wait(10)
    run.status = "paused"
    view._message(view, {"type": "pause"}, [])
    assert run.resumed.wait(10)
    display.finish()


# --- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "status", "elapsed_s", "line"),
    [
        (0, "starting", 0.0, "░░░░░░░░░░░░░░░░░░░░   0 %  0/200  starting"),
        (100, "running", 10.0, "██████████░░░░░░░░░░  50 %  100/200  loss 0.5000  10 steps/s  0:10 left"),
        (199, "running", 400.0, "███████████████████▉  99 %  199/200  loss 0.5000  0.5 steps/s  0:02 left"),
        (200, "done", 20.0, "████████████████████ 100 %  200/200  loss 0.5000  10 steps/s  done after 0:20"),
        (50, "paused", 10.0, "█████░░░░░░░░░░░░░░░  25 %  50/200  loss 0.5000  5 steps/s  paused"),
    ],
)
def test_line(step: int, status: str, elapsed_s: float, line: str) -> None:
    metrics = {"loss": 0.5} if step else {}
    assert progress.line(step, 200, metrics, status=status, elapsed_s=elapsed_s) == line


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.33, 0.999, 1.0, 7.0])
def test_a_bar_is_always_as_wide(fraction: float) -> None:
    assert len(progress.bar(fraction)) == progress.WIDTH


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1e-5, "1.000e-05"),
        (12345.0, "1.234e+04"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert progress.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3661, "1:01:01"), (-3, "0:00")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
