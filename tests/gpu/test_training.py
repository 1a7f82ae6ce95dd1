"""Training on a GPU gives a CPU's losses; a worker with a GPU; copies between devices; what happens without memory."""

from __future__ import annotations

import contextlib
import importlib

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.errors import OpError
from tests.gpu_models import MODELS, losses


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_a_cpu(name: str) -> None:
    on_cpu, on_gpu = (losses(MODELS[name], device, 20) for device in ("/cpu:0", "/gpu:0"))
    assert on_cpu[-1] < on_cpu[0]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=2e-4)


def test_training_twice_gives_the_same_bits() -> None:
    assert losses(MODELS["transformer"], "/gpu:0", 10) == losses(MODELS["transformer"], "/gpu:0", 10)


def test_values_go_from_device_to_device() -> None:
    with nf.Graph().as_default():
        x = nf.placeholder("float32", (300, 400))
        with nf.device("/cpu:0"):
            y = x + 1.0
        with nf.device("/gpu:0"):
            z = nf.matmul(y, nf.matrix_transpose(y))
        with nf.device("/cpu:0"):
            total = nf.sum(z)
        fed = np.random.default_rng(0).normal(size=(300, 400)).astype("float32")
        product, found = nf.run([z, total], {x: fed})
        right = (fed + 1) @ (fed + 1).T
        np.testing.assert_allclose(product, right, rtol=1e-3, atol=1e-2)
        assert float(found) == pytest.approx(right.sum(), rel=1e-3)


def test_what_only_a_cpu_can_do_goes_there_and_back() -> None:
    with nf.Graph().as_default():
        data = nf.data.from_arrays({"x": np.arange(12, dtype="float32").reshape(6, 2)}).batch(3).next()
        with nf.device("/gpu:0"):
            y = data["x"] * 2.0
        np.testing.assert_array_equal(nf.run(y), [[0, 2], [4, 6], [8, 10]])


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_worker_with_a_gpu_trains_with_variables_on_a_ps(name: str) -> None:
    with nw.local(workers=1, ps=1, gpus=1, devices="cpu") as cluster:
        assert {d.spec.type for d in cluster.devices()} == {"cpu", "gpu"}
        there = losses(MODELS[name], "/job:worker/task:0/gpu:0", 10, cluster)
    np.testing.assert_allclose(there, losses(MODELS[name], "/cpu:0", 10), rtol=2e-4)


def test_a_step_without_memory_says_who_holds_it_and_the_session_goes_on() -> None:
    pool = importlib.import_module("cupy").get_default_memory_pool()
    rows = 600  # of 1 MB each
    pool.free_all_blocks()
    pool.set_limit(pool.total_bytes() + 1500 * 2**20)
    with contextlib.ExitStack() as after, nf.Graph().as_default(), nf.device("/gpu:0"):
        after.callback(pool.set_limit, 0)
        big = nf.zeros((rows, 2**18), dtype="float32", name="big")
        x = nf.placeholder("float32", (1, 2**18), name="x")
        first = nf.add(big, x, name="first")
        second = nf.multiply(nf.exp(first), first, name="second")
        total = nf.sum(second + nf.sqrt(first))
        with nf.Session() as session:
            assert float(session.run(nf.sum(x), {x: np.ones((1, 2**18), "float32")})) == 2**18
            with pytest.raises(OpError, match=r"out of memory .* MB were held, the most .* by .*") as caught:
                session.run(total, {x: np.ones((1, 2**18), "float32")})
            assert "gpu:0" in str(caught.value)
            assert float(session.run(nf.sum(x), {x: np.ones((1, 2**18), "float32")})) == 2**18
