"""The kernelspec, and putting it where Jupyter looks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nbflow_kernel import commands
from nbflow_kernel.install import install, source


def test_the_kernelspec_is_complete(tmp_path: Path) -> None:
    spec = json.loads((source() / "kernel.json").read_text())
    assert spec["display_name"] == "nbflow (Python 3)"
    assert spec["argv"][0] == "python"  # jupyter_client puts its own interpreter there
    for size in (32, 64):
        assert (source() / f"logo-{size}x{size}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (source() / "logo-svg.svg").read_text()


def test_installing_under_a_prefix(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands.install, ["--prefix", str(tmp_path)])
    assert result.exit_code == 0, result.output
    where = tmp_path / "share" / "jupyter" / "kernels" / "nbflow"
    assert str(where) in result.output
    assert json.loads((where / "kernel.json").read_text())["argv"][0] == sys.executable
    assert {f.name for f in where.iterdir()} == {f.name for f in source().iterdir()}
    assert install(prefix=str(tmp_path)) == where  # again, over itself


def test_one_place_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of"):
        install(user=True, prefix=str(tmp_path))
    result = CliRunner().invoke(commands.install, ["--user", "--sys-prefix"])
    assert result.exit_code == 1
