"""The views without a browser: their bundles, pictures, texts, saved state and messages; the bridge's thread."""

import base64
import gzip
import io
import json
import math
import threading
from array import array
from collections.abc import Iterator
from typing import Any

import ipywidgets
import pytest
from PIL import Image

import nbflow_widgets
from nbflow.events import Log, Metric, RunState, WorkerState
from nbflow_widgets import Bridge, ClusterView, CurvesView, GraphView, curves_view, picture, sheet
from nbflow_widgets.scopes import Tree

PS, W0, W1 = "/job:ps/task:0/cpu:0", "/job:worker/task:0/cpu:0", "/job:worker/task:1/cpu:0"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    ipywidgets.Widget.close_all()
    assert set(threading.enumerate()) <= threads


def node(name: str, *inputs: str, op: str = "add", device: str | None = None, stale: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "op": op,
        "inputs": list(inputs),
        "outputs": [{"shape": [None, 10], "dtype": "float32"}],
        "attrs": {"axis": "-1"},
        "asked": "",
        "device": device,
        "why": "follows Variable w",
        "cell": {"id": "a", "label": "In[3]"},
        "line": 2,
        "stale": stale,
        "flops": 1.0,
        "nbytes": 1.0,
    }


def graph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"schema": "nbflow.graph.v1", "nodes": list(nodes)}


TRAINING = graph(
    node("w", op="variable", device=PS),
    *(
        each
        for r, device in enumerate((W0, W1))
        for each in (
            node(f"replica_{r}/x", op="next", device=device),
            node(f"replica_{r}/y", f"replica_{r}/x", "w", op="matmul", device=device),
        )
    ),
    node("sum", "replica_0/y", "replica_1/y", device=PS, stale="w was replaced by In[3]"),
)


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def has_colour(image: Image.Image, color: str, *, tolerance: int = 12) -> bool:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return any(
        all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))
        for _, found in image.getcolors(1 << 24) or ()
        if isinstance(found, tuple)
    )


VIEWS = [
    lambda: GraphView(TRAINING),
    lambda: GraphView(graph()),
    lambda: CurvesView("run"),
    lambda: ClusterView([{"worker": "/job:worker/task:0", "state": "ready"}]),
    ClusterView,
]


@pytest.mark.parametrize("make", VIEWS)
def test_every_view_gives_a_widget_a_png_and_a_text_and_nothing_else(make: Any) -> None:
    view = make()
    data, metadata = view._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    image = opened(base64.b64decode(data["image/png"]))
    assert metadata["image/png"] == {"width": image.width // 2, "height": image.height // 2}
    assert image.getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=2)
    assert data["text/plain"] == str(view) != ""
    still, _ = view.static_bundle()
    assert set(still) == {"image/png", "text/plain"}


# --- graph ----------------------------------------------------------------------------------------


def test_graph_view_packs_the_graph_and_says_what_it_is() -> None:
    view = GraphView(TRAINING)
    assert json.loads(gzip.decompress(view.graph)) == TRAINING
    assert view.graph == GraphView(TRAINING).graph
    assert str(view).splitlines() == [
        "6 ops · 3 devices · 1 stale",
        "  w: 1 op on ps:0/cpu:0",
        "  replica_* ×2: 4 ops on worker:0/cpu:0, worker:1/cpu:0",
        "  sum: 1 op on ps:0/cpu:0",
    ]


def test_graph_view_refuses_another_schema() -> None:
    with pytest.raises(ValueError, match=r"not a graph of schema 'nbflow.graph.v1' but of 'v2'"):
        GraphView({"schema": "v2", "nodes": []})


def test_a_new_graph_keeps_the_open_scopes_that_still_exist() -> None:
    view = GraphView(TRAINING)
    view.expanded = ["replica_*/", "replica_1/"]
    view.selected = "replica_1/y"
    view.set_graph(graph(*TRAINING["nodes"][:3]))
    assert view.expanded == []
    assert view.selected == ""
    view.set_graph(TRAINING)
    view.expanded = ["replica_*/"]
    view.selected = "w"
    view.set_graph(TRAINING)
    assert (view.expanded, view.selected) == (["replica_*/"], "w")


def test_a_lone_scope_is_open_from_the_start() -> None:
    view = GraphView(graph(node("net/a"), node("net/b", "net/a"), node("net/c", "net/b")))
    assert view.expanded == ["net/"]


def test_graph_picture_shows_every_device_and_grows_when_scopes_open() -> None:
    view = GraphView(TRAINING)
    closed = opened(view.png())
    for fill in sheet.FILLS[:3]:
        assert has_colour(closed, fill)
    view.expanded = ["replica_*/", "replica_0/"]
    assert opened(view.png()).height > closed.height


@pytest.mark.parametrize("devices", [1, 7, 24, 40])
def test_the_legend_of_a_narrow_picture_takes_as_many_rows_as_it_needs(
    monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    """Every device is named, within the picture, up to a number; the rest is counted."""
    names = [f"/job:worker/task:{n}/cpu:0" for n in range(devices)]
    tree = Tree(graph(*(node(f"op{n}", *([f"op{n - 1}"] if n else []), device=d) for n, d in enumerate(names[:2]))))
    monkeypatch.setattr(picture, "shares", lambda tree, item: {f"worker:{n}/cpu:0": 1 for n in range(devices)})
    said: list[tuple[float, float, str]] = []
    plain = sheet.Sheet.text

    def text(self: sheet.Sheet, x: float, y: float, what: str, *more: Any) -> None:
        said.append((x + sheet.text_width(what, 11), y, what))
        assert 0 < y < self.height
        plain(self, x, y, what, *more)

    monkeypatch.setattr(sheet.Sheet, "text", text)
    image = opened(picture.graph_png(tree))
    legend = [(right, what) for right, _, what in said if what.endswith("  1") or what.endswith("more devices")]
    assert len(legend) == min(devices, 25)
    assert all(right <= image.width / 2 for right, _ in legend)
    assert [what for _, what in legend if "more" in what] == (
        [f"and {devices - 24} more devices"] if devices > 24 else []
    )


def test_graph_picture_of_ten_thousand_loose_ops_counts_what_it_leaves_out() -> None:
    tree = Tree(graph(*(node(f"op{i}") for i in range(10_000))))
    image = opened(picture.graph_png(tree))
    assert image.width <= 2 * sheet.MAX_SIDE
    assert image.height <= 2 * sheet.MAX_SIDE


def test_unicode_names_are_drawn() -> None:
    plain = GraphView(graph(node("a"), node("b", "a")))
    odd = GraphView(graph(node("größe→重み"), node("b\N{GREEK SMALL LETTER BETA}", "größe→重み")))
    assert "größe→重み" in str(odd)
    assert opened(odd.png()).width >= opened(plain.png()).width


def test_show_displays_a_graph_view(monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[object] = []
    monkeypatch.setattr(nbflow_widgets, "display", displayed.append)
    view = nbflow_widgets.show(TRAINING)
    assert isinstance(view, GraphView)
    assert displayed == [view]


# --- cluster --------------------------------------------------------------------------------------


def test_cluster_view_is_a_table() -> None:
    view = ClusterView(title="local")
    assert str(view) == "local\nno workers"
    view.set_workers(
        [
            {"worker": "/job:worker/task:1", "state": "lost", "detail": "last heard 4.1 s ago"},
            {
                "worker": "/job:ps/task:0",
                "state": "ready",
                "address": "127.0.0.1:7077",
                "devices": [PS],
                "rtt_ms": 0.42,
                "memory_bytes": 143_000_000,
            },
        ]
    )
    lines = str(view).splitlines()
    assert lines[1].split() == ["worker", "state", "devices", "address", "RTT", "memory", "detail"]
    assert lines[2].split() == ["ps:0", "ready", "cpu:0", "127.0.0.1:7077", "0.4", "ms", "143", "MB"]
    assert lines[3].endswith("last heard 4.1 s ago")
    assert has_colour(opened(view.png()), "#c62828", tolerance=40)


def test_cluster_records_need_a_worker_and_a_state() -> None:
    with pytest.raises(ValueError, match=r"needs `worker` and `state`, got \['worker'\]"):
        ClusterView([{"worker": "w"}])


# --- curves ---------------------------------------------------------------------------------------


class Recorded(CurvesView):
    """Keeps what it sends to the browser."""

    def __init__(self, title: str = "") -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        super().__init__(title)

    def send(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        self.sent.append((json.loads(json.dumps(content)), buffers or []))

    def ask(self, kind: str) -> None:
        """What the browser's message does."""
        self._handle_custom_msg({"type": kind}, [])


def test_points_travel_once_in_float64_steps_and_float32_values() -> None:
    view = Recorded()
    view.deferred = True
    view.add_points("loss", "", [0, 10], [2.5, 2.25])
    view.add_points("accuracy", "worker:0", [10], [0.5])
    view.flush()
    view.add_points("loss", "", [20], [2.0])
    view.flush()
    view.flush()
    assert len(view.sent) == 2
    content, (steps, values) = view.sent[0]
    assert content["whole"] is False
    assert content["series"] == [
        {"metric": "loss", "replica": "", "n": 2, "from": 0},
        {"metric": "accuracy", "replica": "worker:0", "n": 1, "from": 0},
    ]
    assert list(array("d", steps)) == [0.0, 10.0, 10.0]
    assert list(array("f", values)) == [2.5, 2.25, 0.5]
    assert view.sent[1][0]["series"] == [{"metric": "loss", "replica": "", "n": 1, "from": 2}]


def test_a_view_that_missed_the_start_gets_everything() -> None:
    view = Recorded()
    view.deferred = True
    view.add_points("loss", "", [0, 10], [2.5, 2.25])
    view.flush()
    assert not view.pending
    view.ask("backfill")
    assert view.pending
    view.flush()
    content, buffers = view.sent[-1]
    assert content["whole"] is True
    assert content["series"][0]["n"] == 2
    assert len(buffers[1]) == 8


def test_stop_and_pause_reach_their_callbacks_even_when_one_raises(caplog: pytest.LogCaptureFixture) -> None:
    view = Recorded()
    calls: list[str] = []

    def broken() -> None:
        raise RuntimeError("boom")

    view.on_stop(broken)
    view.on_stop(lambda: calls.append("stop"))
    assert not view.can_pause
    view.on_pause(lambda: calls.append("pause"))
    assert view.can_pause
    view.ask("stop")
    view.ask("pause")
    view.ask("dance")
    assert calls == ["stop", "pause"]
    assert "a stop callback raised" in caplog.text
    assert "unknown type 'dance'" in caplog.text


def test_finish_saves_enough_to_restore_the_curves_without_a_kernel() -> None:
    view = Recorded("mnist")
    view.deferred = True
    view.add_points("loss", "", range(10_000), [math.sin(i) for i in range(10_000)])
    view.add_points("accuracy", "", [5], [0.75])
    view.mark(7, "worker:1 lost")
    view.set_status("done", 10_000, 10_000, rate=321.0, eta_s=0.0)
    view.finish()
    saved = view.get_state()["snapshot"]
    counts = [series["n"] for series in saved["series"]]
    assert counts[0] <= curves_view.SAVED_POINTS
    assert counts[1] == 1
    steps, values = array("d", saved["steps"]), array("f", saved["values"])
    assert len(steps) == len(values) == sum(counts)
    assert (steps[-1], values[-1]) == (5.0, 0.75)
    assert saved["marks"] == [{"step": 7, "text": "worker:1 lost"}]
    assert view.get_state()["run_status"]["status"] == "done"
    assert str(view) == "mnist · done · step 10000 of 10000 · 321 steps/s · loss 0.6361, accuracy 0.75"


def test_curves_picture_draws_means_over_replicas_and_survives_odd_values() -> None:
    view = Recorded()
    assert not has_colour(opened(view.png()), sheet.LINES[0], tolerance=30)
    view.add_points("loss", "", range(100), [math.exp(-i / 30) for i in range(100)])
    view.add_points("loss", "worker:0", range(100), [math.exp(-i / 30) + 0.2 for i in range(100)])
    view.add_points("empty", "", [1, 2], [math.nan, math.inf])
    view.add_points("one", "", [1], [3.0])
    view.add_points("flat", "", [1, 2], [0.0, 0.0])
    view.mark(50, "recovering")
    for log_scale in (False, True):
        view.log_scale = log_scale
        image = opened(view.png())
        assert has_colour(image, sheet.LINES[0], tolerance=30)
        assert has_colour(image, sheet.LINES[1], tolerance=30)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-2, 0, 2, 4, 6]), (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert picture.ticks(low, high, 5) == pytest.approx(expected)


# --- bridge ---------------------------------------------------------------------------------------


def metric(step: int, value: float, *, run: str = "r", replica: str = "") -> Metric:
    return Metric(run, "loss", step, value, wall_s=step / 100, replica=replica)


def test_a_flood_of_events_is_one_message() -> None:
    view = Recorded()
    # The pump wakes up only to end.
    bridge = Bridge(view, interval_s=60)
    for step in range(1000):
        bridge(metric(step, 1.0))
    assert bridge.close()
    assert len(view.sent) == 1
    assert view.sent[0][0]["series"][0]["n"] == 1000
    assert view.deferred is False


def test_events_of_many_threads_all_arrive_from_one_sender() -> None:
    senders: set[str] = set()

    class Watched(Recorded):
        def send(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
            senders.add(threading.current_thread().name)
            super().send(content, buffers)

    view = Watched()
    with Bridge(view, interval_s=0.001) as bridge:
        workers = [
            threading.Thread(target=lambda r=r: [bridge(metric(s, s, replica=f"w{r}")) for s in range(200)])
            for r in range(4)
        ]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join(10)
    assert senders == {"nbflow-widgets"}
    total = sum(series["n"] for series in view.sent[-1][0]["series"])
    assert total == 800


def test_the_status_line_follows_the_run() -> None:
    view = Recorded()
    with Bridge(view, run="r", interval_s=60) as bridge:
        bridge(RunState("r", "running", 0, 2000, wall_s=0.0))
        for step in range(0, 300, 10):
            bridge(metric(step, 1.0))
        bridge(metric(1999, 1.0, run="another"))
        bridge(WorkerState("/job:worker/task:1", "lost", "h:1", wall_s=3.0))
        bridge(RunState("r", "recovering", 200, 2000, wall_s=3.5, detail="from step 200"))
    content = view.sent[-1][0]
    status = content["status"]
    assert (status["status"], status["step"], status["steps"]) == ("recovering", 200, 2000)
    assert status["detail"] == "from step 200"
    assert status["rate"] == pytest.approx(100, rel=0.01)
    assert status["eta_s"] == pytest.approx(18, rel=0.01)
    assert content["marks"] == [{"step": 290, "text": "worker:1 lost"}, {"step": 200, "text": "recovering"}]
    assert view.run_status["status"] == "recovering"


def test_a_line_says_who_came_and_went() -> None:
    """What happened at one step is written once; what is said at length is in the status line."""
    view = Recorded()
    with Bridge(view, run="r", interval_s=60) as bridge:
        bridge(metric(50, 1.0))
        bridge(WorkerState("/job:worker/task:1", "lost", "h:1", wall_s=1.0))
        bridge(RunState("r", "recovering", 50, 99, wall_s=1.1, detail="/job:worker/task:1 lost"))
        bridge(RunState("r", "running", 50, 99, wall_s=1.2, detail="going on"))
        bridge(RunState("r", "recovering", 60, 99, wall_s=2.0, detail="/job:worker/task:3/cpu:0 joining"))
        bridge(RunState("r", "running", 60, 99, wall_s=2.1))
        bridge(
            RunState(
                "r", "recovering", 70, 99, wall_s=3.0, detail="/job:ps/task:0 (h:1) was lost (Stream removed), while …"
            )
        )
    assert view.sent[-1][0]["marks"] == [
        {"step": 50, "text": "worker:1 lost"},
        {"step": 60, "text": "worker:3 joining"},
        {"step": 70, "text": "recovering"},
    ]


def test_warnings_of_workers_are_shown() -> None:
    view = Recorded()
    with Bridge(view, interval_s=60) as bridge:
        bridge(Log("/job:worker/task:0", "info", "hello", wall_s=0.0))
        bridge(Log("/job:worker/task:0", "warning", "slow disk", wall_s=0.0))
    assert view.sent[-1][0]["status"]["detail"] == "worker:0: slow disk"


def test_events_after_the_end_are_dropped_and_closing_twice_is_safe() -> None:
    view = Recorded()
    bridge = Bridge(view, interval_s=60)
    bridge(metric(1, 1.0))
    assert bridge.close()
    bridge(metric(2, 1.0))
    assert bridge.close()
    assert sum(series["n"] for content, _ in view.sent for series in content["series"]) == 1


def test_only_the_newest_task_of_a_key_runs_and_a_broken_one_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []
    with Bridge(interval_s=60) as bridge:
        bridge.submit("a", lambda: ran.append(1))
        bridge.submit("a", lambda: ran.append(2))
        bridge.submit("b", lambda: ran.append(1 // 0))
    assert ran == [2]
    assert "drawing on a widget failed" in caplog.text
