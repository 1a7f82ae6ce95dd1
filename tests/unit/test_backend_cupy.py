"""The GPU backend's logic, over a stand-in for cupy (tests/cupy_stand_in.py). On a GPU: `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import nbflow as nf
from nbflow.backends.cupy import CupyBackend
from nbflow.backends.cupy.ops import HOST_ONLY, IMPLEMENTED
from nbflow.backends.numpy import TABLE
from nbflow.errors import OpError, PlacementError
from nbflow.inprocess import InProcessCluster
from nbflow.testing.backend import check_backend, check_case
from nbflow.testing.cases import ROWS, Case, ids
from nbflow_workers.worker import find_devices
from tests import cupy_stand_in
from tests.gpu_models import MODELS, losses

pytestmark = pytest.mark.skipif(cupy_stand_in.COMPILER is None, reason="the stand-in needs a C++ compiler")
# Floats of 8 bits and long doubles live on CPUs only.
ON_CPU = {"bitcast-2", "astype-19"}
HERE = [(c, n) for c, n in zip(ROWS, ids(ROWS), strict=True) if c.op in IMPLEMENTED and n not in ON_CPU]


@pytest.fixture(scope="module")
def backend() -> Iterator[CupyBackend]:
    with cupy_stand_in.installed():
        yield CupyBackend()


def test_the_table_has_what_is_said_to_be_there(backend: CupyBackend) -> None:
    assert set(backend.table) == IMPLEMENTED


@pytest.mark.parametrize("case", [c for c, _ in HERE], ids=[n for _, n in HERE])
def test_every_row_keeps_its_promises(backend: CupyBackend, case: Case) -> None:
    check_case(backend, case)


def test_the_methods_keep_theirs(backend: CupyBackend) -> None:
    check_backend(lambda: backend, ops=["add"], without=HOST_ONLY)


def test_implemented_is_all_but_what_only_a_cpu_can_do() -> None:
    assert set(TABLE) == IMPLEMENTED | HOST_ONLY
    assert {"queue_enqueue", "iterator_next", "non_max_suppression"} <= HOST_ONLY


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_the_losses_of_a_cpu(backend: CupyBackend, name: str) -> None:
    on_cpu, on_gpu = (losses(MODELS[name], device, 4) for device in ("/cpu:0", "/gpu:0"))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5)


def test_values_go_from_device_to_device_and_what_only_a_cpu_can_do_goes_there(backend: CupyBackend) -> None:
    with nf.Graph().as_default():
        data = nf.data.from_arrays({"x": np.arange(12, dtype="float32").reshape(6, 2)}).batch(3).next()
        with nf.device("/gpu:0"):
            y = data["x"] * 2.0
        with nf.device("/gpu:1"):
            z = nf.sum(y + 1.0, axis=1)
        with nf.device("/cpu:0"):
            total = z * 10.0
        np.testing.assert_array_equal(nf.run(total), [40.0, 120.0, 200.0])


def test_a_step_without_memory_says_who_holds_it_and_the_session_goes_on(
    backend: CupyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = np.ones((600, 400), "float32")
    with nf.Graph().as_default(), nf.device("/gpu:0"):
        x = nf.placeholder("float32", fed.shape, name="x")
        w = nf.Variable(fed, name="w")
        first = nf.exp(x + w, name="first")
        total = nf.sum(nf.multiply(nf.sqrt(first), first, name="second") + first)
        with nf.Session() as session:
            with monkeypatch.context() as without:
                real, left = CupyBackend.empty, iter(range(2))

                def empty(self: CupyBackend, shape: tuple[int, ...], dtype: np.dtype) -> object:
                    if next(left, None) is None:
                        raise MemoryError("all of it is taken")
                    return real(self, shape, dtype)

                without.setattr(CupyBackend, "empty", empty)
                with pytest.raises(OpError, match="on /job:local/task:0/gpu:0 failed: out of memory") as caught:
                    session.run(total, {x: fed})
            assert "all of it is taken" in str(caught.value)
            assert "0.9 MB by variable w" in str(caught.value)
            assert "0.9 MB by a buffer of first (" in str(caught.value)
            assert np.isfinite(session.run(total, {x: fed}))


def test_a_worker_has_the_gpus_it_was_asked_for(backend: CupyBackend) -> None:
    backends, devices = find_devices("auto", "worker", 2)
    assert [str(d.spec) for d in devices] == [f"/job:worker/task:2/{d}" for d in ("cpu:0", "gpu:0", "gpu:1")]
    assert set(backends) == {"cpu", "gpu:0", "gpu:1"}
    assert devices[1].description == "stand-in"
    assert devices[1].memory_bytes == cupy_stand_in.MEMORY_BYTES
    assert [str(d.spec) for d in find_devices("gpu:1", "worker", 0)[1]] == ["/job:worker/task:0/gpu:1"]
    with pytest.raises(PlacementError, match="no gpu:2 here: this machine has 2"):
        find_devices("cpu,gpu:2", "worker", 0)


def test_this_process_has_them_too(backend: CupyBackend) -> None:
    assert [d.spec.type for d in InProcessCluster().devices()] == ["cpu", "gpu", "gpu"]
    assert [d.spec.type for d in InProcessCluster(workers=2).devices()] == ["cpu", "cpu"]


def test_floats_that_live_on_cpus_only_are_named(backend: CupyBackend) -> None:
    for value in (np.zeros(3, nf.spec.as_dtype("float8_e5m2")), np.zeros(3, np.longdouble)):
        with pytest.raises(PlacementError, match="live on CPUs only"):
            backend.asarray(value)
