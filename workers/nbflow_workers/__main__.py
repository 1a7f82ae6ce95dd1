"""`python -m nbflow_workers`: the `nbflow` command."""

from nbflow_workers.cli import main

main()
