"""The kernel: IPython's, with nbflow loaded and clicks answered while a cell is busy. All logic is elsewhere."""

from __future__ import annotations

from typing import Any

from ipykernel.ipkernel import IPythonKernel

from nbflow_kernel import extension
from nbflow_kernel.ui_thread import UiThread


class NbflowKernel(IPythonKernel):
    """`python -m nbflow_kernel -f CONNECTION_FILE` serves it."""

    implementation = "nbflow"
    banner = "nbflow: a distributed dataflow runtime that lives in a notebook"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ui_thread = UiThread(self)
        extension.load(self.shell)

    async def shell_channel_thread_main(self, msg: Any) -> None:
        # Semi-private in ipykernel 7. Where it is never called, clicks wait for the cell's end.
        if not self.ui_thread.take(msg):
            await super().shell_channel_thread_main(msg)

    def do_shutdown(self, restart: bool) -> Any:
        self.ui_thread.close()
        return super().do_shutdown(restart)
