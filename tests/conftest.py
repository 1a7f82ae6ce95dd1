"""What all tests share: none of them reads or writes the user's profile."""

from __future__ import annotations

import os

os.environ["NBFLOW_PROFILE"] = "off"
