"""The rule of benchmarks/soak.py finds what grows, and nothing else; the command looks at every process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def flat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flat", BENCHMARKS / "flat.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_leak_is_found_and_noise_is_not(flat: ModuleType) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 240)
    steady = 100 + noise
    assert flat.is_flat(list(steady), memory=True)
    # 16 MB in 30 minutes: 1.6 KB a step of 10,000, of which half lies between the two quarters.
    assert not flat.is_flat(list(steady + np.linspace(0, 16, 240)), memory=True)
    assert flat.growth(list(np.arange(240.0))) == pytest.approx(120)


def test_warm_up_and_single_peaks_do_not_count(flat: ModuleType) -> None:
    assert flat.is_flat([50.0] * 30 + [100.0] * 170, memory=True)
    assert flat.is_flat([20.0] * 100 + [400.0] + [20.0] * 100, memory=False)
    assert not flat.is_flat([20.0] * 100 + [23.0] * 100, memory=False)


def test_too_few_samples_say_nothing(flat: ModuleType) -> None:
    with pytest.raises(ValueError, match="3 samples are too few"):
        flat.growth([1.0, 2.0, 3.0])


@pytest.mark.cluster
def test_the_command_looks_at_every_process() -> None:
    command = [sys.executable, "soak.py", "--quick", "--minutes", "0.05"]
    ended = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode in (0, 1), ended.stderr  # in three seconds anything may still grow
    for process in ("worker:0", "worker:1", "ps:0", "the notebook"):
        for what in ("memory", "open files", "threads"):
            assert f"{what} of {process}" in ended.stdout, ended.stderr
    assert "segments mapped" in ended.stdout
    assert " steps in 0.05 minutes" in ended.stdout
