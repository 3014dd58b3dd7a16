"""The argument DATA of `evaluate` and `predict`: a prepared data set, or raw rows in a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractr.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from loractr.artifact import Scorer
    from loractr.data.rows import Rows
    from loractr.schema import Schema


def is_prepared(data: Path) -> bool:
    """Whether `data` is a prepared data set."""
    from loractr.data.store import read_manifest

    return read_manifest(data) is not None


def raw_rows(scorer: "Scorer", data: Path, *, outcomes: bool) -> "pl.DataFrame":
    """All rows and columns of a Parquet or CSV file, in its order; ids of a CSV file as text.

    A CSV file is read as the training data was: its form and its missing values are the same.

    Args:
        scorer: The model that the rows are for.
        data: A file, or a folder of them.
        outcomes: Whether label and weight are read, too; else whatever they hold stays as it is.

    Raises:
        DataError: the file cannot be read.
    """
    from dataclasses import replace

    from polars.exceptions import PolarsError

    from loractr.data.sources.content import unreadable
    from loractr.data.sources.table import label_columns, number_columns, scan
    from loractr.data.sources.text_form import TextForm

    schema = scorer.schema
    weight = schema.weight if outcomes else None
    rows = scan(
        data,
        numbers=number_columns(schema.fields, schema.divisions, weight),
        labels=label_columns(schema.label) if outcomes else (),
        form=replace(TextForm.of(scorer.config.data), missing=schema.missing_values),
        refuse_empty=outcomes,
    )
    try:
        return rows.collect()
    except PolarsError as error:
        raise unreadable(data, error) from error


def prepared_rows(scorer: "Scorer", data: Path, split: str) -> "Rows":
    """The rows of one split of a prepared data set, as the artifact's model knows them.

    Raises:
        UsageError: the data set was prepared with other training rows or another configuration, so
            that the same index means another id.
    """
    from loractr.data.store import open_prepared

    prepared = open_prepared(data)
    own, other = scorer.encoders, prepared.encoders
    same = _meaning(own.schema) == _meaning(other.schema) and all(
        vocabulary.values.equals(other.vocabularies[name].values)
        for name, vocabulary in own.vocabularies.items()
    )
    if not same:
        raise UsageError(
            f"{data} was not prepared as the training data of this artifact: its indices mean other"
            " ids.",
            fix="give the raw rows as a Parquet or CSV file, or the data set that `train` used.",
        )
    return prepared.rows(split)


def predictions(scorer: "Scorer", rows: "Rows") -> "pl.DataFrame":
    """The table that `evaluate` reads."""
    from loractr.predict import tabulate

    return tabulate(scorer.logits(rows), rows, scorer.schema)


def _meaning(schema: "Schema") -> dict[str, Any]:
    """All of a schema but the widths of embeddings, which say nothing about indices."""
    return schema.model_dump(exclude={"fields": {"__all__": {"embedding_size"}}})
