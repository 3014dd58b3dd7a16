"""Fits everything that is learnt from data before training, on training rows only, in one pass."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.domains import DomainFit
from loractr.data.encode import Encoders, is_domain_field, keeps_vocabulary
from loractr.data.scaling import Moments
from loractr.data.vocabulary import ValueCounts, Vocabulary
from loractr.schema import Field, Schema


class Fit:
    """Takes in raw rows, batch by batch; memory grows with distinct ids, not with rows.

    Args:
        schema: What to fit.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._values = {f.name: ValueCounts() for f in schema.fields if keeps_vocabulary(f, schema)}
        self._moments = {f.name: Moments(f) for f in schema.numerical}
        self._divisions = [DomainFit(d) for d in schema.divisions]

    def observe(
        self, frame: pl.DataFrame, train: NDArray[np.bool_], rows: canonical.Positions
    ) -> None:
        """Take in raw rows (N,): `train` says which are training rows, `rows` where each stands in
        the source. Of the others nothing is learnt; they are looked through for missing numbers."""
        for name, moments in self._moments.items():
            column = frame[moments.field.source_column]
            moments.observe(canonical.numbers(column, f"field {name!r}", rows), train, rows)
        mine, rows = frame.filter(train), rows[train]
        for field in self.schema.fields:
            if field.name in self._values:
                self._values[field.name].add(_ids(mine, field))
        for division in self._divisions:
            division.observe(mine[division.division.column], rows)

    def encoders(self) -> Encoders:
        """The encoders, with the fitted schema.

        Raises:
            DataError: Missing numbers where they are an error, or an empty domain.
        """
        divisions = [d.fitted() for d in self._divisions]
        schema = self.schema.model_copy(update={"divisions": tuple(d for d, _ in divisions)})
        vocabularies: dict[str, Vocabulary] = {}
        fields = tuple(self._fitted(field, schema, vocabularies) for field in schema.fields)
        return Encoders(
            schema=schema.model_copy(update={"fields": fields}),
            vocabularies=vocabularies,
            activeness={d.name: counts for d, counts in divisions if counts is not None},
        )

    def _fitted(self, field: Field, schema: Schema, vocabularies: dict[str, Vocabulary]) -> Field:
        if field.kind == "numerical":
            return self._moments[field.name].fitted()
        if is_domain_field(field, schema):
            size, unknown = len(schema.divisions[0].domains) + 1, self._divisions[0].unseen
            return field.model_copy(update={"size": size, "unknown_rows": unknown})
        if field.hash_buckets is not None:
            return field.model_copy(update={"size": field.hash_buckets + 2})
        counts = self._values[field.name].table()
        vocabulary = Vocabulary.fit(counts, min_count=field.min_count)
        vocabularies[field.name] = vocabulary
        unknown = int(counts["count"].sum()) - int(vocabulary.counts.sum())
        return field.model_copy(update={"size": len(vocabulary), "unknown_rows": unknown})


def _ids(frame: pl.DataFrame, field: Field) -> pl.Series:
    values = frame[field.source_column]
    if field.kind == "sequence":
        return canonical.bags(values, field)[0]
    return canonical.ids(values, f"field {field.name!r}")
