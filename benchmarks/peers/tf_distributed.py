"""TensorFlow's distributed runtime (`tf.distribute.Server`, graph mode), as a peer of `distributed.py`.

Runs by a Python of its own that has TensorFlow and numpy and nothing of nbflow: `distributed.py --tf-python` starts it.
It answers lines `KIND STEPS` with JSON, as `served.py` does. Servers are processes on loopback, one thread for ops each
as nbflow's workers have, and end with this one.

Training is in-graph synchronous replication: both towers, the mean of their gradients and the update in one graph,
one `Session.run` a step, with batches kept on the workers so that nothing is fed. It computes what
SyncReplicasOptimizer does with all replicas, but in a fixed order, so losses can be compared.

Usage: python tf_distributed.py CASE DATA.npz, where CASE is "4 workers", "2 workers + ps" or "ready".
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import numpy as np  # after TensorFlow is told to be quiet
import tensorflow as tf

v1 = tf.compat.v1
JOBS = {"4 workers": (4, 0), "2 workers + ps": (2, 1)}
STOP_S = 10.0
DEADLINE_MS = 60_000
W0, W1, PS = "/job:worker/task:0", "/job:worker/task:1", "/job:ps/task:0"


def config() -> Any:
    made = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
    made.operation_timeout_in_ms = DEADLINE_MS
    return made


def addresses(count: int) -> list[str]:
    """Free ports, all held until all are known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]


@contextmanager
def cluster(workers: int, ps: int) -> Iterator[str]:
    """Server processes; gives the target for sessions. The master is in this process."""
    found = addresses(1 + workers + ps)
    spec = {"master": found[:1], "worker": found[1 : 1 + workers]}
    if ps:
        spec["ps"] = found[1 + workers :]
    started: list[subprocess.Popen[bytes]] = []
    quiet = subprocess.DEVNULL
    try:
        for job in ("worker", "ps"):
            for task in range(len(spec.get(job, []))):
                command = [sys.executable, __file__, "--server", job, str(task), json.dumps(spec)]
                started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet))
        master = v1.train.Server(spec, job_name="master", task_index=0, config=config())
        yield master.target
    finally:
        for process in started:
            process.kill()  # a server of TensorFlow cannot be asked to stop
        for process in started:
            process.wait(STOP_S)


def serve_task(job: str, task: int, spec: dict[str, list[str]]) -> None:
    """One server, until the process that started it is gone."""
    server = v1.train.Server(spec, job_name=job, task_index=task, config=config())
    sys.stdin.read()
    del server
    os._exit(0)


def repeated(session: Any, fetch: Any, expected: float | None = None) -> Callable[[int], None]:
    def steps(k: int) -> None:
        for _ in range(k):
            value = session.run(fetch)
            if expected is not None and value != expected:
                raise ValueError(f"{fetch.name} is {value}, not {expected}")

    return steps


def nothing(workers: int) -> Any:
    ops = []
    for task in range(workers):
        with tf.device(f"/job:worker/task:{task}"):
            # Something of the worker's own: a no_op is taken out before it gets there.
            ops.append((v1.Variable(7.0) + 1.0).op)
    return tf.group(*ops)


def moved(nbytes: int, source: str) -> Any:
    """The first element, taken on worker 1, of a variable on `source`."""
    with tf.device(source):
        tensor = v1.Variable(tf.fill([nbytes // 4], 7.0)).read_value()
    with tf.device(W1):
        return tensor[0]


def there_and_back() -> Any:
    with tf.device(W0):
        there = v1.Variable(7.0).read_value()
    with tf.device(W1):
        back = there * 2.0
    with tf.device(W0):
        return back / 2.0


def training(data: Any) -> tuple[Any, Any]:
    """(step, loss) of two replicas; variables on the ps."""
    count = sum(name.startswith("w") for name in data.files)
    with tf.device(PS):
        layers = [(v1.Variable(data[f"w{n}"]), v1.Variable(data[f"b{n}"])) for n in range(count)]
    variables = [v for layer in layers for v in layer]
    losses, gradients = [], []
    for task, device in enumerate((W0, W1)):
        with tf.device(device):
            x, y = (v1.Variable(np.split(data[name], 2, axis=1)[task], trainable=False) for name in ("x", "y"))
            counter = v1.Variable(0, trainable=False, dtype=tf.int32)
            number = v1.assign_add(counter, 1) - 1
            row = number % len(data["x"])
            h = tf.gather(x, row)
            for n, (w, b) in enumerate(layers):
                h = h @ w + b
                h = tf.nn.relu(h) if n < count - 1 else h
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.gather(y, row), logits=h)
            losses.append(tf.reduce_mean(each))
            gradients.append(v1.gradients(losses[-1], variables))
    with tf.device(PS):
        means = [(a + b) / 2.0 for a, b in zip(*gradients, strict=True)]
        # All gradients are there before anything is changed, so both replicas read the same variables.
        with tf.control_dependencies(means):
            updates = [v1.assign_sub(v, float(data["rate"]) * g) for v, g in zip(variables, means, strict=True)]
        loss = (losses[0] + losses[1]) / 2.0
    return tf.group(*updates), loss


def answers(case: str, data: Any, stack: ExitStack) -> dict[str, Callable[[int], Any]]:
    if case == "ready":
        return {"ready": ready}
    target = stack.enter_context(cluster(*JOBS[case]))
    graph = stack.enter_context(tf.Graph().as_default())
    if case == "4 workers":
        fetches = {f"null {n}": nothing(n) for n in (1, 2, 4)}
        session = stack.enter_context(v1.Session(target, graph, config()))
        session.run(v1.global_variables_initializer())
        return {kind: repeated(session, fetch) for kind, fetch in fetches.items()}
    tensors = {"there and back": there_and_back(), "100 MB": moved(10**8, W0), "pull": moved(10**6, PS)}
    step, loss = training(data)
    session = stack.enter_context(v1.Session(target, graph, config()))
    session.run(v1.global_variables_initializer())
    made: dict[str, Callable[[int], Any]] = {k: repeated(session, t, 7.0) for k, t in tensors.items()}
    made["train"] = repeated(session, step)
    made["losses"] = lambda k: [float(session.run([loss, step])[0]) for _ in range(k)]
    return made


def ready(k: int) -> None:
    """Starts four workers and runs one step on all, `k` times."""
    for _ in range(k):
        with cluster(4, 0) as target, tf.Graph().as_default():
            fetch = nothing(4)
            with v1.Session(target, config=config()) as session:
                session.run(v1.global_variables_initializer())
                session.run(fetch)


def main() -> int:
    v1.logging.set_verbosity(v1.logging.ERROR)
    v1.disable_v2_behavior()
    if sys.argv[1] == "--server":
        serve_task(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    with ExitStack() as stack, np.load(sys.argv[2]) as data:
        made = answers(sys.argv[1], data, stack)
        print(json.dumps(f"TensorFlow {tf.__version__}"), flush=True)
        for line in sys.stdin:
            kind, _, steps = line.strip().rpartition(" ")
            print(json.dumps(made[kind](int(steps))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
