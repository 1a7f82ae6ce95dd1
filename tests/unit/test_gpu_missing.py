"""Without a GPU: nothing imports cupy, and who asks for one is told what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nbflow as nf
from nbflow.backends import cupy
from nbflow.backends.available import supports
from nbflow.errors import PlacementError
from nbflow_workers.worker import find_devices

pytestmark = pytest.mark.skipif(not cupy.missing(), reason="a GPU is here")


def test_one_is_told_what_to_install() -> None:
    with nf.Graph().as_default():
        with nf.device("/gpu:0"):
            y = nf.constant(1.0) + 1.0
        with pytest.raises(PlacementError, match=r"asks for /gpu:0, .*nbflow\[gpu-cuda12\] or nbflow\[gpu-cuda13\]"):
            nf.run(y)
    with pytest.raises(PlacementError, match=r"there is no gpu:0 here: "):
        cupy.CupyBackend()
    with pytest.raises(PlacementError, match=r"there is no gpu:0 here: "):
        find_devices("gpu:0", "worker", 0)


def test_a_notebook_without_one_knows_what_a_gpu_can_do() -> None:
    assert supports("matmul", "gpu")
    assert not supports("queue_enqueue", "gpu")


def test_importing_and_running_imports_no_cupy() -> None:
    code = (
        "import sys, nbflow as nf; nf.run(nf.constant(1.0) + 1.0); print(sorted(n for n in sys.modules if n == 'cupy'))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"
