"""The notebook side of nbflow: the Jupyter kernel, cells that own their ops, magics, and what a run shows.

Everything here works on the stock kernel too, after `%load_ext nbflow`; `kernel.NbflowKernel` adds that clicks in
widgets are answered while a cell is busy. In reading order:

| module | what lives there |
|---|---|
| `cell` | which cell this is, which Python names mean which tensors, what a run changed; pure |
| `extension` | hooks and magics into an IPython shell, and out again |
| `magics/` | one family a file: parse, call the Python function of the same name, show |
| `tracebacks` | an nbflow error shown at the cell's line |
| `progress` · `run_display` | one line of text · progress and curves of a training run, live and then still |
| `export` · `headless` | a notebook as one offline HTML file · running one without a browser |
| `ui_thread` · `kernel` | clicks while busy · the kernel |
| `install` · `commands` | its kernelspec · `nbflow install`, `export` and `run` |
"""
