"""`Scorer`: a saved model at work. Raw rows in, probabilities out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.artifact import remarks
from loractr.config import RunConfig
from loractr.data.encode import Encoders
from loractr.data.profile import Profile
from loractr.data.rows import Rows
from loractr.errors import DataError, UsageError
from loractr.model import CTRModel
from loractr.predict import assembled_logits, sigmoid
from loractr.schema import Schema

RawRows = pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
"""Raw values: a frame, columns by name, or one mapping per row (a key left out is missing)."""


@dataclass(frozen=True)
class Scorer:
    """A finished model with everything that turns raw rows into its input.

    Nothing in it changes when it scores, so that many threads may share one. A row's domain decides
    what scores it: the domain's own model or adapter; the backbone alone where the domain was not
    trained, unless its division says `unseen: error`.

    Args:
        config: The run that made the model.
        encoders: Fitted on the training rows; they hold the schema.
        model: The shared model, in evaluation mode.
        domain_models: Domain → whole model of its own (`single`, `finetune`, `plate`).
        profile: What it was trained on; None in artifacts that do not say.
    """

    config: RunConfig
    encoders: Encoders
    model: CTRModel
    domain_models: Mapping[str, CTRModel]
    profile: Profile | None = None

    @property
    def schema(self) -> Schema:
        """The fitted schema."""
        return self.encoders.schema

    @property
    def division(self) -> str | None:
        """Division whose domains have adapters or models of their own, or would have."""
        return self.config.method.natural(self.schema) if self.schema.divisions else None

    def predict(self, frame: RawRows, *, domain: str | None = None) -> NDArray[np.floating]:
        """Click probability of each row (N,), in the order given, float32 as the model.

        Args:
            frame: Raw rows with the columns of all fields and divisions; others are ignored.
            domain: Score every row as one of this domain; the division's column is not read then.

        Raises:
            MissingColumnError: a column is not there.
            UnknownDomainError: `domain` was not trained, or a row's domain was not where its
                division says `unseen: error`.
            DataError: values that do not fit the schema.
            UsageError: `domain` is given for a model without divisions.
        """
        table = as_frame(frame)
        if not table.width:  # no rows: an empty list says nothing of its columns
            return np.zeros(0, dtype=np.float32)
        return self.predict_rows(self.encode(table, domain=domain))

    def encode(self, frame: RawRows, *, domain: str | None = None, outcomes: bool = False) -> Rows:
        """Raw rows as the model reads them, for several uses of them.

        Args:
            frame: As in `predict`.
            domain: As in `predict`.
            outcomes: Also read label, weight and group, which the rows must have then.

        Raises:
            MissingColumnError, UnknownDomainError, DataError, UsageError: as `predict`.
        """
        forced = {} if domain is None else {self._forced_division(domain): domain}
        return self.encoders.encode(as_frame(frame), outcomes=outcomes, domains=forced)

    def remarks(self, frame: RawRows | None, rows: Rows | None = None) -> list[str]:
        """What the model cannot know about rows, in sentences: domains that training never saw,
        fields with many unknown ids or missing values, compared with the validation rows.

        Args:
            frame: Raw rows, as in `predict`; None where there are encoded ones only, which tell
                less: no missing number, no name of a domain.
            rows: The same rows as `encode` made them, where they are at hand.

        Raises:
            MissingColumnError, UnknownDomainError, DataError: as `predict`.
            UsageError: neither is given.
        """
        table = None if frame is None else as_frame(frame)
        if rows is None:
            if table is None:
                raise UsageError("remarks needs rows.", fix="give raw rows, or encoded ones.")
            if not table.width:
                return []
            rows = self.encode(table)
        return remarks.about_inputs(rows, self.encoders, self.profile, table)

    def training_remarks(self, rows: Rows, path: Path | None = None) -> list[str]:
        """Whether the model was trained on these very rows, in sentences.

        Args:
            rows: Encoded rows with their labels.
            path: The file that they were read from, if they were.
        """
        files = [] if path is None else remarks.about_files(path, self.profile)
        return [*remarks.about_training_rows(rows, self.profile), *files]

    def predict_rows(self, rows: Rows) -> NDArray[np.floating]:
        """Click probability of each encoded row (N,), in the order of `rows`."""
        return sigmoid(self.logits(rows))

    def logits(self, rows: Rows) -> NDArray[np.floating]:
        """Logit of each encoded row (N,), in the order of `rows`."""
        return assembled_logits(self.model, self.domain_models, rows, self.schema, self.division)

    def _forced_division(self, domain: str) -> str:
        if self.division is None:
            raise UsageError(
                f"domain={domain!r} was given, but this model was made without divisions.",
                fix="leave `domain` out.",
            )
        return self.division


def as_frame(rows: RawRows) -> pl.DataFrame:
    """Raw rows as a frame. Values of one column may be of several types: each is read by itself.

    Raises:
        DataError: they make no table.
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    try:
        if not isinstance(rows, Mapping):
            names = dict.fromkeys(name for row in rows for name in row)
            rows = {name: [row.get(name) for row in rows] for name in names}
        return pl.DataFrame([_column(name, values) for name, values in rows.items()])
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"these rows make no table: {str(error)[:300]}",
            fix="give a polars frame, a list of values per column, or a list of one dict per row.",
        ) from error


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    if isinstance(values, np.ndarray | pl.Series):
        return pl.Series(name, values)
    plain = [_plain(value) for value in values]
    kinds = {type(value) for value in plain} - {type(None)}
    if kinds == {int, float} and all(abs(value) < 2**53 for value in plain if type(value) is int):
        return pl.Series(name, plain, dtype=pl.Float64, strict=False)
    if len(kinds) < 2:
        try:
            return pl.Series(name, plain)
        except (TypeError, pl.exceptions.PolarsError):  # lists, of values of several types
            pass
    return pl.Series(name, [_written(value) for value in plain])


def _plain(value: Any) -> Any:
    """A value of NumPy or Polars as one of Python."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.to_list() if isinstance(value, pl.Series) else value


def _written(value: Any) -> Any:
    """A value as text, so that it can stand in a column with values of other types."""
    if isinstance(value, list | tuple):
        return [_written(one) for one in value]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    return str(value).lower() if isinstance(value, bool) else str(value)
