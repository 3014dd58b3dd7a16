"""`loractr init`."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Parquet or CSV files, or the folder of a public data set."
        ),
    ],
) -> None:
    """Propose a configuration that trains as it is: loractr init DATA > config.yaml."""
    from loractr.data.infer import infer, to_yaml

    typer.echo(to_yaml(*infer(data)), nl=False)
