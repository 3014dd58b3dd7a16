"""What a command says: results on standard output, everything else on standard error."""

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from loractr.evaluation import Table

WIDE = 200
"""Columns of a table that goes to a file or a pipe: nothing is cut there."""
NUMERIC = ("", "–", "-", *"0123456789")
"""How the cells of a column of numbers begin."""


def show(tables: "list[Table]") -> None:
    """Print tables; numbers to the right."""
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in tables:
        grid = Grid(title=table.title, title_justify="left")
        for place, column in enumerate(table.columns):
            numbers = all(row[place][:1] in NUMERIC for row in table.rows)
            grid.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid, markup=False)


def show_json(value: dict[str, Any]) -> None:
    """Print exactly one JSON object."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A line for the human at the terminal."""
    typer.echo(text, err=True)


class Lines(logging.Handler):
    """Log records as lines on what standard error is by then: a progress bar may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(self.format(record) + "\n")


def log_to_terminal(*, verbose: bool) -> None:
    """Show what the library logs; its debug messages too with `verbose`."""
    handler = Lines()
    handler.setFormatter(
        logging.Formatter("%(levelname)s %(name)s: %(message)s" if verbose else "%(message)s")
    )
    logger = logging.getLogger("loractr")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
