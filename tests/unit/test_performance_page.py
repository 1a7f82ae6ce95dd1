"""docs/performance.md says what the files in benchmarks/results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_agree_with_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "performance-tables"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
