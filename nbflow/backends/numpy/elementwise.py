"""numpy: elementwise."""

from __future__ import annotations

from nbflow.backends.base import Table

TABLE = Table()
