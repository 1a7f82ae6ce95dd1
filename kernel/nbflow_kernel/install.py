"""Puts the kernelspec where Jupyter finds it. A wheel does so by itself; this is for other places."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from jupyter_client.kernelspec import KernelSpecManager

NAME = "nbflow"


def source() -> Path:
    """The folder with `kernel.json` and the logos: in a checkout, or where the wheel put it.

    Raises FileNotFoundError when this installation has none.
    """
    beside = Path(__file__).resolve().parent.parent / "kernelspec"
    candidates = [beside, Path(sys.prefix) / "share" / "jupyter" / "kernels" / NAME]
    try:
        files = metadata.files("nbflow") or []
    except metadata.PackageNotFoundError:
        files = []
    candidates += [Path(str(f.locate())).parent for f in files if f.name == "kernel.json"]
    for folder in candidates:
        if (folder / "kernel.json").is_file():
            return folder
    raise FileNotFoundError(f"no kernel.json in {', '.join(map(str, candidates))}; install nbflow again")


def install(user: bool = False, prefix: str | None = None, sys_prefix: bool = False) -> Path:
    """Installs the kernelspec `nbflow` for this Python; returns its folder.

    `user`: for this user; `prefix`: under that folder; `sys_prefix`: in this environment. By default: in this
    environment when it is a virtual one, else for the whole machine. Raises ValueError when more than one is asked
    for, OSError when the place cannot be written.
    """
    if user + bool(prefix) + sys_prefix > 1:
        raise ValueError("choose one of user, prefix and sys_prefix")
    if sys_prefix or (not user and prefix is None and sys.prefix != sys.base_prefix):
        prefix = sys.prefix
    spec = json.loads((source() / "kernel.json").read_text())
    # Outside this environment `python` may be another one.
    spec["argv"][0] = sys.executable
    with TemporaryDirectory() as folder:
        for file in source().iterdir():
            (Path(folder) / file.name).write_bytes(file.read_bytes())
        (Path(folder) / "kernel.json").write_text(json.dumps(spec, indent=2))
        return Path(KernelSpecManager().install_kernel_spec(folder, NAME, user=user, prefix=prefix))
