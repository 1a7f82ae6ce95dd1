"""What the families share: lines parsed by argparse, help by `?`, completion by a function of the words so far."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics
from IPython.display import display

import nbflow
from nbflow_kernel import cell


class Parser(cell.HeaderParser):
    """An argparse parser for a magic's line: errors are raised, and list what exists."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("add_help", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def parse_line(self, line: str) -> argparse.Namespace:
        """Raises IPython's UsageError, which shows as one line without a traceback."""
        try:
            return self.parse_args(shlex.split(line))
        except ValueError as error:  # cell.UsageError too
            raise UsageError(str(error)) from None


class Family(Magics):
    """Magics of one family. Subclasses name their magic in `name`, and complete it in `complete`."""

    name = ""
    shell: Any

    def complete(self, words: Sequence[str]) -> Sequence[str]:
        """What may follow `words`, the finished words of the line after the magic's name."""
        return ()

    def find(self, name: str) -> Any:
        """What `name` means: a Python name of tensors or ops, or the name of an op. Raises UsageError."""
        value = self.shell.user_ns.get(name)
        if value is not None and (cell.nodes_of(value) or cell.tensor_of(value) is not None):
            return value
        node = nbflow.get_graph().find(name)
        if node is None:
            raise UsageError(f"{name!r} is neither a Python name of a tensor nor the name of an op")
        return node.outputs[0] if node.outputs else node

    def names_of_tensors(self) -> list[str]:
        """The Python names that `find` understands, for completion."""
        return sorted(n for n, v in self.shell.user_ns.items() if not n.startswith("_") and cell.nodes_of(v))

    def show(self, value: Any) -> None:
        if value is not None:
            display(value)

    # --- loading -----------------------------------------------------------------------------------------------------

    def load(self) -> None:
        for key in (f"%{self.name}", self.name):
            self.shell.set_hook("complete_command", self._completer, str_key=key)

    def unload(self) -> None:
        completers = self.shell.strdispatchers["complete_command"].strs
        for key in (f"%{self.name}", self.name):
            completers.pop(key, None)
        for kind in self.magics:
            for name in self.magics[kind]:
                self.shell.magics_manager.magics[kind].pop(name, None)

    def _completer(self, shell: Any, event: Any) -> list[str]:
        words = event.text_until_cursor.split()
        if event.text_until_cursor[-1:].strip():
            words = words[:-1]
        typed = event.symbol
        return [option for option in self.complete(words[1:]) if option.startswith(typed)]
