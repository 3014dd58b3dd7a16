"""`loractr inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from loractr.cli.console import show, show_json
from loractr.cli.options import AsJson, Plain


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT|PREPARED", exists=True, file_okay=False, help="What to look into."
        ),
    ],
    *,
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Say what an artifact or a prepared data set holds."""
    from loractr.cli import describe
    from loractr.cli.scoring import is_prepared

    if is_prepared(path):
        from loractr.data.store import open_prepared

        prepared = open_prepared(path)
        if as_json:
            show_json(describe.prepared_json(prepared))
        else:
            show(describe.prepared_tables(prepared), plain=plain)
    else:
        found = describe.artifact_json(path)
        if as_json:
            show_json(found)
        else:
            show(describe.artifact_tables(found), plain=plain)
