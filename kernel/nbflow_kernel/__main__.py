"""`python -m nbflow_kernel -f CONNECTION_FILE`: what the kernelspec starts."""

from __future__ import annotations

from ipykernel.kernelapp import IPKernelApp

from nbflow_kernel.kernel import NbflowKernel

if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=NbflowKernel)
