"""What the families share: lines parsed by argparse, help by `?`, completion by a function of the words so far."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics
from IPython.display import display

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
