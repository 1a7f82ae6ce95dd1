"""Device strings: parse, print, merge, match."""

from __future__ import annotations

import pytest

from nbflow.device import LOCAL, DeviceSpec, parse_device
from nbflow.errors import PlacementError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("/job:worker/task:1/gpu:0", DeviceSpec("worker", 1, "gpu", 0)),
        ("/job:ps", DeviceSpec("ps")),
        ("cpu:0", DeviceSpec(None, None, "cpu", 0)),
        ("/device:GPU:3", DeviceSpec(None, None, "gpu", 3)),
        ("/task:2/job:worker", DeviceSpec("worker", 2)),
        ("gpu", DeviceSpec(None, None, "gpu")),
        ("/job:worker/task:0/cpu:*", DeviceSpec("worker", 0, "cpu")),
        ("", DeviceSpec()),
        (None, DeviceSpec()),
        ("/job:Arbeiter-ä/task:0", DeviceSpec("Arbeiter-ä", 0)),
    ],
)
def test_parse(text: str | None, spec: DeviceSpec) -> None:
    assert parse_device(text) == spec


@pytest.mark.parametrize("text", ["/job:a/job:b", "/jobs:a", "/task:x", "tpu:0", "/gpu:0/gpu:1", "worker 1"])
def test_a_bad_device_is_an_error_that_shows_the_grammar(text: str) -> None:
    with pytest.raises(PlacementError, match="not a device"):
        parse_device(text)


@pytest.mark.parametrize("text", ["/job:worker/task:1/gpu:0", "/job:ps", "/cpu:0", "/job:w/gpu", ""])
def test_printing_and_parsing_are_inverse(text: str) -> None:
    assert str(parse_device(text)) == text


def test_the_inner_spec_overrides_what_it_names() -> None:
    outer = parse_device("/job:worker/task:1/gpu:0")
    assert str(outer.merge(parse_device("/task:2"))) == "/job:worker/task:2/gpu:0"
    assert str(outer.merge(parse_device("cpu"))) == "/job:worker/task:1/cpu"  # gpu's index says nothing about the cpu
    assert outer.merge(DeviceSpec()) == outer


def test_matching_constrains_only_what_is_named() -> None:
    full = parse_device("/job:worker/task:1/cpu:0")
    assert DeviceSpec().matches(full)
    assert parse_device("/job:worker").matches(full)
    assert not parse_device("/job:ps").matches(full)
    assert not parse_device("gpu").matches(full)
    assert full.is_full
    assert LOCAL.is_full
    assert full.task_name == "/job:worker/task:1"
