"""How the tables of the command line look."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def lean_table(title: str) -> Table:
    """Its columns set apart by spaces, their names by a line: to be read in a log as on a screen."""
    from rich import box
    from rich.table import Table

    how = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD}
    return Table(title=title, show_edge=False, pad_edge=False, **how)
