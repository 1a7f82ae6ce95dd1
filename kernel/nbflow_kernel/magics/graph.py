"""`%graph`: show it, compare it before and after the optimizer, find what nothing uses any more, start over.

`%%graph NAME`: name the cell that owns the ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import cell_magic, line_magic, magics_class

import nbflow
from nbflow import owner as owners
from nbflow.graph import Graph
from nbflow.optimize.report import COLUMNS, LISTED
from nbflow_kernel import cell
from nbflow_kernel.doors import drop_state, optimization_of
from nbflow_kernel.magics.base import Family, Parser
from nbflow_kernel.table import Table

VERBS = ("show", "diff", "gc", "reset")


def show(graph: Graph) -> None:
    """Shows the graph view of `graph`."""
    nbflow.show(graph)


def orphans(graph: Graph, namespace: dict[str, Any]) -> dict[str, list[str]]:
    """Cell id -> its ops, for cells that no Python name means and no other cell's op uses."""
    cells: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        cells.setdefault(node.owner.id, []).append(node.name)
    bound = [t.node for t in cell.bindings(namespace).values()]
    bound += [node for value in namespace.values() for node in cell.nodes_of(value)]
    used = {n.owner.id for n in bound if graph.nodes.get(n.name) is n}
    for node in graph.nodes.values():
        before = [t.node for t in node.inputs] + list(node.control_inputs)
        used.update(b.owner.id for b in before if b.owner.id != node.owner.id)
    return {owner_id: names for owner_id, names in cells.items() if owner_id not in used}


def gc(graph: Graph, namespace: dict[str, Any], *, delete: bool = False) -> Table:
    """Lists the cells whose ops nothing uses any more; `delete` deletes those ops too."""
    found = orphans(graph, namespace)
    labels = {n.owner.id: n.owner.label for n in graph.nodes.values()}
    rows = []
    for owner_id, names in found.items():
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        rows.append((labels[owner_id], str(len(names)), shown))
        if delete:
            drop_state(owners.delete(graph, owner_id).dropped_state)
    caption = "deleted:" if delete else "used by no Python name and no other cell (`%graph gc -f` deletes them):"
    return Table(("cell", "ops", "names"), tuple(rows), caption if rows else "", "every op is in use")


def reset(graph: Graph) -> str:
    """Deletes all ops of the graph, and with them the values of its variables."""
    count = len(graph.nodes) + len(graph.pending or ())
    drop_state(owners.reset(graph))
    return f"the graph is empty; {count} ops are gone"


def diff(fetches: Any = None) -> tuple[Table, Table]:
    """The graph of a run of `fetches` before and after the passes: a row a pass, and a row a change.

    None: of what ran last. Raises GraphError when nothing has run. `nf.optimization(fetches)` gives the same to a
    program.
    """
    report = optimization_of(fetches)
    caption = f"{report.before} ops before the passes, {report.after} after:"
    summary = Table(COLUMNS, tuple(report.rows()), caption, "no pass is on")
    rows = [(p.name, c.node, c.where, c.what) for p in report for c in p.changes[:LISTED]]
    left = sum(max(0, len(p.changes) - LISTED) for p in report)
    more = f"the first {LISTED} changes of each pass; {left} more are in nf.optimization(…)" if left else ""
    return summary, Table(("pass", "op", "where", "what became of it"), tuple(rows), more, "nothing changed")


def _parser() -> Parser:
    parser = Parser(prog="%graph", description="Shows the graph, or tidies it.\n\n"
        "  show   the graph view (also without a verb)\n"
        "  diff   what the optimizer's passes do to a run of the tensors named; without names: to what ran last\n"
        "  gc     lists cells whose ops nothing uses any more; -f deletes them\n"
        "  reset  deletes all ops and their variables")  # fmt: skip
    parser.add_argument("verb", nargs="?", default="show", choices=VERBS)
    parser.add_argument("names", nargs="*", help="diff: Python names of tensors, or names of ops")
    parser.add_argument("-f", "--force", action="store_true", help="gc: delete what it finds")
    return parser


_PARSER = _parser()


@magics_class
class GraphMagics(Family):
    name = "graph"

    @line_magic
    def graph(self, line: str) -> Any:
        arguments = _PARSER.parse_line(line)
        graph = nbflow.get_graph()
        if arguments.verb == "show":
            show(graph)
        elif arguments.verb == "reset":
            print(reset(graph))
        elif arguments.verb == "diff":
            for table in diff([self.find(name) for name in arguments.names] or None):
                self.show(table)
        else:
            return gc(graph, self.shell.user_ns, delete=arguments.force)
        return None

    @cell_magic("graph")  # type: ignore[arg-type]  # IPython types its decorators for use without arguments
    def graph_cell(self, line: str, body: str) -> None:
        # The header is taken off before the cell runs (`cell.without_header`); only one that cannot be read gets here.
        try:
            cell.parse_header(f"{cell.HEADER} {line}")
        except cell.UsageError as error:
            raise UsageError(str(error)) from None
        self.shell.run_cell(body)

    graph.__doc__ = _PARSER.format_help()
    graph_cell.__doc__ = cell.header_parser().format_help()  # type: ignore[assignment]  # see above

    def complete(self, words: Sequence[str]) -> Sequence[str]:
        if words[:1] == ["diff"]:
            return self.names_of_tensors()
        return VERBS if not words else ("-f",) if words[-1] == "gc" else ()
