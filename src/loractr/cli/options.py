"""Options and arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

Plain = Annotated[
    bool,
    typer.Option("--plain", help="Print tables for other programs, with tabs; --json comes first."),
]

ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        exists=True,
        dir_okay=False,
        help="YAML file; `loractr init` writes one that works.",
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting; may be given several times."),
]

ArtifactFolder = Annotated[
    Path,
    typer.Argument(
        metavar="ARTIFACT",
        exists=True,
        file_okay=False,
        help="A saved model: `artifact/` of a run.",
    ),
]

DataPath = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        exists=True,
        help="A prepared data set, or a Parquet or CSV file with raw values.",
    ),
]
