"""Hooks and magics into an IPython shell, and out again: what `%load_ext nbflow` does.

Each run of a cell is a transaction on the default graph (`nbflow.owner`): opened before the cell, committed when it
succeeds, rolled back when it raises. An interrupt commits: it stops the work, and says nothing against what was built.
"""

from __future__ import annotations

import logging
import threading
from typing import Any
from weakref import WeakKeyDictionary

import nbflow
from nbflow import owner as owners
from nbflow.current import describe
from nbflow.graph import Graph, Node
from nbflow.owner import Change, Owner, Transaction
from nbflow_kernel import cell, doors, tracebacks
from nbflow_kernel.doors import drop_state
from nbflow_kernel.magics import MAGICS

log = logging.getLogger("nbflow.kernel")


class CellHooks:
    """The transaction around each cell of one shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.last_change: Change | None = None
        self._identities = cell.Identities()
        self._open: Transaction | None = None
        self._thread = 0
        self._depth = 0
        self._before_names: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    # --- IPython's events ------------------------------------------------------------------------------------------

    def pre_run_cell(self, info: Any) -> None:
        """Opens the transaction. A cell run by a cell (`%run`, magics) belongs to the outer one, and so does one that a
        front end runs on another thread (a subshell) meanwhile."""
        if self._depth > 0 and self._thread != threading.get_ident():
            return
        self._thread = threading.get_ident()
        self._depth += 1
        if self._depth > 1:
            return
        if self._open is not None:  # its end was never announced
            self._open.rollback()
            self._open = None
        graph = nbflow.get_graph()
        owner, header, deleted = self._who(info)
        self._forget(graph, deleted - {owner.id})
        self._open = owners.begin(graph, owner, reinit=header.reinit, replace=header.replace)
        if self._open.old:
            self._before = cell.bindings(self.shell.user_ns)
            self._before_names = cell.snapshot(self.shell.user_ns)

    def post_run_cell(self, result: Any) -> None:
        """Commits or rolls back. `result` is None when an interrupt ended a cell that awaited."""
        if self._depth == 0 or self._thread != threading.get_ident():
            return  # an empty cell is announced at its end only
        self._depth -= 1
        if self._depth > 0 or self._open is None:
            return
        transaction, self._open = self._open, None
        before, names = self._before, self._before_names
        self._before, self._before_names = {}, {}
        if transaction.graph.pending is None:
            return
        error = None if result is None else result.error_before_exec or result.error_in_exec
        if error is None or isinstance(error, KeyboardInterrupt):
            self._commit(transaction, before)
        else:
            self._roll_back(transaction, names)

    # --- how it ends -------------------------------------------------------------------------------------------------

    def _commit(self, transaction: Transaction, before: dict[str, Any]) -> None:
        after = cell.bindings(self.shell.user_ns) if transaction.old and transaction.made else {}
        change = transaction.commit(before, after)
        if change.is_empty and not change.unchanged:
            return
        self.last_change = change
        drop_state(change.dropped_state)
        print(cell.summary(change))

    def _roll_back(self, transaction: Transaction, names: dict[str, Any]) -> None:
        made = dict(transaction.made)
        gone = {id(node) for node in made.values()}
        drop_state(transaction.rollback())
        if not made:
            return

        def is_gone(node: Node) -> bool:
            return id(node) in gone

        restored = cell.restore(self.shell.user_ns, names, is_gone)
        print(cell.failure(transaction.owner, len(made), had=bool(transaction.old), restored=restored))

    def _forget(self, graph: Graph, deleted: set[str]) -> None:
        for owner_id in sorted(deleted):
            change = owners.delete(graph, owner_id)
            if not change.is_empty:
                drop_state(change.dropped_state)
                print(f"{change.owner.label} was deleted; {cell.summary(change)}")

    # --- who runs ----------------------------------------------------------------------------------------------------

    def _who(self, info: Any) -> tuple[Owner, cell.Header, set[str]]:
        parent = self.shell.get_parent() if hasattr(self.shell, "get_parent") else {}
        metadata = parent.get("metadata") or {}
        cell_id = info.cell_id or metadata.get("cellId")
        # Only programs that run notebooks promise never to answer a question.
        headless = (parent.get("content") or {}).get("allow_stdin") is False
        number = self.shell.execution_count - 1 if info.store_history and not info.silent else None
        source = info.raw_cell or ""
        try:
            header = cell.parse_header(source) or cell.Header()
        except cell.UsageError:
            source, header = "", cell.Header()  # the magic itself will say so
        owner = self._identities.identify(source, cell_id=cell_id, number=number, headless=headless)
        deleted = metadata.get("deletedCells") or ()
        return owner, header, {f"cell:{d}" for d in deleted if isinstance(d, str)}


class Extension:
    """All that is loaded into one shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.cells = CellHooks(shell)
        self._magics: list[Any] = []

    def load(self) -> None:
        shell = self.shell
        shell.events.register("pre_run_cell", self.cells.pre_run_cell)
        shell.events.register("post_run_cell", self.cells.post_run_cell)
        shell.input_transformers_cleanup.append(cell.without_header)
        self._magics = [make(shell) for make in MAGICS]
        for magics in self._magics:
            shell.register_magics(magics)
            magics.load()
        if shell.display_formatter is not None:
            shell.display_formatter.mimebundle_formatter.for_type(Graph, _graph_bundle)
        tracebacks.load(shell, doors.acknowledged)

    def unload(self) -> None:
        shell = self.shell
        shell.events.unregister("pre_run_cell", self.cells.pre_run_cell)
        shell.events.unregister("post_run_cell", self.cells.post_run_cell)
        shell.input_transformers_cleanup.remove(cell.without_header)
        for magics in self._magics:
            magics.unload()
        if shell.display_formatter is not None:
            shell.display_formatter.mimebundle_formatter.pop(Graph, None)
        tracebacks.unload(shell)


def _graph_bundle(graph: Graph, include: Any = None, exclude: Any = None) -> Any:
    """What a cell that ends with a graph shows: the graph view."""
    # The widgets take a while to import, and a kernel that only computes needs none.
    from nbflow_widgets import GraphView

    view = GraphView(describe(graph))
    return view.static_bundle() if doors.is_static() else view._repr_mimebundle_()


_loaded: WeakKeyDictionary[Any, Extension] = WeakKeyDictionary()


def load(shell: Any) -> None:
    """Loads nbflow into a shell. Loading it twice does nothing."""
    if shell in _loaded:
        return
    extension = Extension(shell)
    extension.load()
    _loaded[shell] = extension


def unload(shell: Any) -> None:
    """Takes nbflow out of a shell again; the graph stays."""
    extension = _loaded.pop(shell, None)
    if extension is not None:
        extension.unload()


def loaded(shell: Any) -> Extension | None:
    """What is loaded into a shell, if anything."""
    return _loaded.get(shell)
