"""`loractr evaluate`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from loractr.cli.console import say, show, show_json
from loractr.cli.options import ArtifactFolder, AsJson, DataPath, Plain
from loractr.errors import UsageError, some

if TYPE_CHECKING:
    from loractr.data.rows import Rows


class Split(StrEnum):
    """Rows of a prepared data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_SEEN = {
    Split.TRAIN: "these rows trained the model: what is measured on them says little about others",
    Split.VALIDATION: "these rows chose the best epoch: on others the model may well be worse",
}


def evaluate(
    artifact: ArtifactFolder,
    data: DataPath,
    *,
    by: Annotated[
        str | None, typer.Option(metavar="DIVISION", help="Show this division only.")
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Rows of a prepared data set; test when absent.")
    ] = None,
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Score labelled rows with ARTIFACT and print AUC and log loss per domain."""
    from loractr.artifact import load
    from loractr.cli.scoring import is_prepared, predictions, prepared_rows, raw_rows
    from loractr.evaluation import division_table, runs_table
    from loractr.evaluation import evaluate as measure

    scorer = load(artifact)
    divisions = {division.name: division.domains for division in scorer.schema.divisions}
    if by is not None:
        if by not in divisions:
            raise UsageError(f"the artifact has no division {by!r}; it has {some(divisions)}.")
        divisions = {by: divisions[by]}
    raw, remarks = None, []
    if is_prepared(data):
        rows = prepared_rows(scorer, data, split or Split.TEST)
        remarks = [sentence for seen, sentence in _SEEN.items() if seen is split]
    elif split is not None:
        raise UsageError(f"{data} has no splits.", fix="leave --split out, or name prepared data.")
    else:
        raw = raw_rows(scorer, data, outcomes=True)
        rows = scorer.encode(raw, outcomes=True)
        remarks = scorer.training_remarks(rows, data)
    metrics = measure(predictions(scorer, rows), divisions)
    remarks += [*_about_labels(rows), *scorer.remarks(raw, rows)]
    if as_json:
        show_json({**metrics.as_dict(), "warnings": remarks})
        return
    tables = [division_table(metrics, name) for name in divisions]
    show(tables or [runs_table({artifact.name: metrics})], plain=plain)
    for remark in remarks:
        say(remark)


def _about_labels(rows: "Rows") -> list[str]:
    from loractr.evaluation import label_remarks

    assert rows.label is not None
    counts = {"rows": len(rows), "positives": int(rows.label.sum())}
    return label_remarks({"these rows": counts})
