"""`loractr predict`."""

from pathlib import Path
from typing import Annotated

import typer

from loractr.cli.console import say
from loractr.cli.options import ArtifactFolder, DataPath
from loractr.errors import UsageError


def predict(
    artifact: ArtifactFolder,
    data: DataPath,
    *,
    out: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="A .parquet or .csv file.")
    ],
) -> None:
    """Add a `probability` to every row of DATA, in its order; no label is needed.

    For a prepared data set: the predictions of its test rows.
    """
    from loractr.artifact import load
    from loractr.cli.scoring import is_prepared, predictions, prepared_rows, raw_rows
    from loractr.cli.table_file import check_target, write

    check_target(out, data)
    scorer = load(artifact)
    raw = None
    if is_prepared(data):
        rows = prepared_rows(scorer, data, "test")
        table = predictions(scorer, rows)
    else:
        raw = raw_rows(scorer, data, outcomes=False)
        if "probability" in raw.columns:
            raise UsageError(f"{data} has a column 'probability' already.", fix="rename it.")
        rows = scorer.encode(raw)
        table = raw.with_columns(probability=scorer.predict_rows(rows))
    write(table, out)
    for remark in scorer.remarks(raw, rows):
        say(remark)
    say(f"{table.height:,} rows: {out}")
