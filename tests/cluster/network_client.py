"""The client of test_network.py: attaches to the cluster file given, and does what the lines of its input ask for."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

import nbflow as nf
import nbflow_workers as nw
from nbflow.errors import NbflowError
from nbflow.session import Session


def moves(request: dict[str, Any]) -> tuple[nf.Graph, nf.Tensor]:
    graph = nf.Graph()
    with graph.as_default():
        with nf.device(f"/job:worker/task:{request['source']}"):
            x = nf.Variable(nf.full((request["nbytes"] // 4,), 7.0), name="x").read()
        with nf.device(f"/job:worker/task:{request['destination']}"):
            return graph, nf.stack([x[0], x[-1]])


def move(cluster: Any, request: dict[str, Any]) -> dict[str, Any]:
    graph, fetch = moves(request)
    with Session(cluster, graph, deadline_s=60) as session:
        value, trace = session.run(fetch, trace=True)
    [moved] = trace.transfers
    return {"value": value.tolist(), "via": moved.via, "nbytes": moved.nbytes}


def move_often(cluster: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Until it fails."""
    graph, fetch = moves(request)
    session = Session(cluster, graph, deadline_s=20)
    session.run(fetch)
    say({"began": True})
    last = time.monotonic()
    try:
        while True:
            session.run(fetch)
            last = time.monotonic()
    except NbflowError as error:
        return {"error": type(error).__name__, "text": str(error), "took_s": time.monotonic() - last}


def move_alone(cluster: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Once more, after a worker was lost: the first attempts may still see it."""
    graph, fetch = moves(request)
    for _ in range(30):
        try:
            with Session(cluster, graph, deadline_s=20) as session:
                return {"value": session.run(fetch).tolist()}
        except NbflowError as error:
            problem = error
            time.sleep(0.5)
    return {"value": str(problem)}


class Training:
    """A problem of ten features, on the graph that is current: the same numbers on any cluster."""

    def __init__(self, cluster: Any) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(240, 10)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64)
        self.graph = nf.Graph()
        with self.graph.as_default():
            nf.set_cluster(cluster)
            self.session = nf.current_session()
            data = nf.data.from_arrays({"x": x, "y": y}).shuffle(240, seed=3).repeat().batch(24).next()
            logits = nf.layers.dense(data["x"], 2, name="logits")
            self.loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
            self.step = nf.optim.SGD(0.5).minimize(self.loss, strategy=nf.train.DataParallel())
            self.weights = nf.trainable_variables()[0]
        self.all = {data["x"]: x, data["y"]: y}

    def run(self, steps: int) -> dict[str, Any]:
        with self.graph.as_default():
            run = nf.train.run(self.step, steps=steps, metrics={"loss": self.loss}, every=1, show=False)
        _, trace = self.session.run(self.step, trace=True)
        return {
            "status": run.status,
            "losses": [float(v) for v in run.history["loss"]],
            "weights": self.session.run(self.weights).tolist(),
            "loss of all": float(self.session.run(self.loss, self.all)),
            "via": sorted({m.via for m in trace.transfers}),
        }

    def look(self, cluster: Any, devices: int) -> dict[str, Any]:
        """Once, when so many devices are there: who runs again while a ps is away is told that its values are lost, and
        starts them anew."""
        end = time.monotonic() + 60
        while len(cluster.devices()) < devices and time.monotonic() < end:
            time.sleep(0.05)
        try:
            return {"weights": self.session.run(self.weights, deadline_s=10).tolist()}
        except NbflowError as error:
            return {"error": type(error).__name__, "text": str(error)}


def endpoints(cluster: Any) -> dict[str, Any]:
    data = [w.data for w in cluster._workers.values()]
    return {"curve": sum(d.address.startswith("curve://") for d in data), "hosts": len({d.host_id for d in data})}


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    training: Training | None = None
    with nw.attach(spec=sys.argv[1]) as cluster:
        for line in sys.stdin:
            request = json.loads(line)
            do = request["do"]
            if do == "endpoints":
                say(endpoints(cluster))
            elif do == "train":
                training = training or Training(cluster)
                say(training.run(request["steps"]))
            elif do == "train alone":
                say(Training(None).run(request["steps"]))
            elif do == "weights":
                assert training is not None
                say(training.look(cluster, request["devices"]))
            else:
                say({"move": move, "move often": move_often, "move alone": move_alone}[do](cluster, request))
        nf.set_cluster(None)


if __name__ == "__main__":
    main()
