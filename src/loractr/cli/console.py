"""What a command says: results on standard output, everything else on standard error."""

import json
import logging
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from loractr.evaluation import Table

NUMERIC = ("", "–", "-", *"0123456789")
"""How the cells of a column of numbers begin."""


def show(tables: "Sequence[Table]", *, plain: bool = False) -> None:
    """Print tables, numbers to the right: as grids at a terminal, else as aligned columns; `plain`
    ones for other programs, with tabs between the values."""
    if plain:
        typer.echo("\n".join(map(_tabbed, tables)))
    elif sys.stdout.isatty():
        _show_grids(tables)
    else:
        typer.echo("\n\n".join(map(_aligned, tables)))


def _show_grids(tables: "Sequence[Table]") -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console()
    for table in tables:
        grid = Grid(title=Text(_printable(table.title)), title_justify="left")
        for column, numbers in zip(table.columns, _numbers(table), strict=True):
            grid.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(_printable(cell)) for cell in row))
        console.print(grid, markup=False)


def _aligned(table: "Table") -> str:
    """Two blanks between columns, none at the end of a line."""
    lines = [[_printable(cell) for cell in line] for line in (table.columns, *table.rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    numbers = _numbers(table)
    told = [_printable(table.title)]
    for line in lines:
        cells = []
        for cell, width, number in zip(line, widths, numbers, strict=True):
            blanks = " " * (width - _width(cell))
            cells.append(blanks + cell if number else cell + blanks)
        told.append("  ".join(cells).rstrip())
    return "\n".join(told)


def _tabbed(table: "Table") -> str:
    """A title, a header and rows for other programs; the first column is text."""
    lines = [table.columns, *((name, *map(_bare, cells)) for name, *cells in table.rows)]
    told = ["\t".join(map(_printable, line)) for line in lines]
    return "\n".join([f"# {_printable(table.title)}", *told])


def _bare(cell: str) -> str:
    """A number as programs write it; a dash for none is nothing."""
    if cell in {"–", "-"}:
        return ""
    return cell.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", cell) else cell


def _numbers(table: "Table") -> list[bool]:
    """Which columns are columns of numbers."""
    places = range(len(table.columns))
    return [all(row[place][:1] in NUMERIC for row in table.rows) for place in places]


def _printable(text: str) -> str:
    """Names come from data: a line break would break the table, an escape the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _width(text: str) -> int:
    """Places that a text takes: Chinese characters take two, accents of their own none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


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
