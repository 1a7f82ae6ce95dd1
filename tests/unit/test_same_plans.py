"""The same inputs give the same placement, reasons and plans, whatever process makes them and however it hashes."""

from __future__ import annotations

from tests.processes import lines_of

WORK = """
import hashlib
import numpy as np
import nbflow as nf
from nbflow.cost import CostModel, DeviceModel, LinkModel
from nbflow.device import parse_device
from nbflow.optimize import chosen
from nbflow.prepare import Setting, prepare
from nbflow.transport import DeviceInfo

names = [f"/job:worker/task:{n}/cpu:0" for n in range(3)] + ["/job:ps/task:0/cpu:0", "/job:ps/task:1/cpu:0"]
infos = [DeviceInfo(parse_device(n), memory_bytes=10**9) for n in names]
cost = CostModel.of(infos, {(a[:-6], b[:-6]): LinkModel(1e-4, 1e9) for a in names for b in names if a < b})

def step(strategy):
    data = nf.data.from_arrays({"x": np.zeros((64, 32), np.float32)}).repeat().batch(12).next()
    branches = []
    for branch in range(4):
        x = data["x"]
        for layer in range(6):
            x = nf.layers.dense(x, 32, activation=nf.nn.relu)
        branches.append(x)
    return nf.optim.Adam(0.1).minimize(nf.mean(nf.add_n(branches) ** 2), strategy=strategy)

stages = nf.train.Pipeline(("/job:worker/task:0", "/job:worker/task:1"), 3)
for strategy in (None, nf.train.DataParallel(), nf.train.DataParallel(ps=None), nf.train.LocalSGD(), stages):
    with nf.Graph().as_default() as graph:
        goal = step(strategy)
        found = prepare(graph, [goal], {}, Setting(infos, {}, chosen(), lambda: cost), session="s")
    digest = hashlib.sha256()
    for name, placed in found.placement.items():
        digest.update(f"{name} {placed}".encode())
    placed = digest.hexdigest()
    for bundle in found.bundles.values():
        for plan in bundle.plans:
            digest.update(repr((plan.device, plan.instructions, plan.buffers)).encode())
    print(len(found.placement), placed, digest.hexdigest())
"""


def test_placements_and_plans_do_not_depend_on_the_process() -> None:
    first = lines_of(WORK, "0")
    assert len(first) == 5
    assert int(first[0].split()[0]) > 200
    for seed in ("1", "2"):
        assert lines_of(WORK, seed) == first
