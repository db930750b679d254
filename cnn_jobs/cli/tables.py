"""Tables for people: no wider than the terminal, and wide enough for a log."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH_OF_A_LOG = 120  # rich would take 80 characters for anything that is not a terminal


def console() -> Console:
    """Standard output, without highlighting: numbers are not decoration."""
    width = None if sys.stdout.isatty() else WIDTH_OF_A_LOG
    return Console(width=width, highlight=False, soft_wrap=False)


def table(*left: str, right: tuple[str, ...] = (), title: str = "", unbroken: int = 0) -> Table:
    """An empty table: text columns ``left``, then number columns ``right``, aligned and never broken.

    The first ``unbroken`` text columns are not broken either, however narrow the terminal.
    """
    made = Table(*left, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in made.columns[:unbroken]:
        column.no_wrap = True
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made
