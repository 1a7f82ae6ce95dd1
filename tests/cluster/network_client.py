"""The client of test_network.py: attaches to the cluster file given, and does what the lines of its input ask for."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

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


def endpoints(cluster: Any) -> dict[str, Any]:
    data = [w.data for w in cluster._workers.values()]
    return {"curve": sum(d.address.startswith("curve://") for d in data), "hosts": len({d.host_id for d in data})}


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    with nw.attach(spec=sys.argv[1]) as cluster:
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "endpoints":
                say(endpoints(cluster))
            else:
                say({"move": move, "move often": move_often, "move alone": move_alone}[request["do"]](cluster, request))


if __name__ == "__main__":
    main()
