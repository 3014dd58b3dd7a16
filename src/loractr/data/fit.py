"""Fits everything that is learnt from data before training, on training rows only, in one pass."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.canonical import Reading, column_of
from loractr.data.domains import DomainFit
from loractr.data.encode import Encoders, is_domain_field, keeps_vocabulary
from loractr.data.id_type import IdTypes
from loractr.data.scaling import Moments
from loractr.data.vocabulary import IdCounts, Vocabulary
from loractr.errors import DataError
from loractr.schema import Field, Schema


class Fit:
    """Takes in raw rows, batch by batch; memory grows with distinct ids, not with rows.

    Args:
        schema: What to fit.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        missing = schema.missing_values
        self._values = {
            f.name: IdCounts(_what(f), canonical.reading_of(f, missing))
            for f in schema.fields
            if keeps_vocabulary(f, schema)
        }
        self._hashed = {f.name: IdTypes(_what(f)) for f in schema.fields if f.hash_buckets}
        self._moments = {f.name: Moments(f) for f in schema.numerical}
        self._divisions = [DomainFit(d, missing) for d in schema.divisions]

    def observe(
        self, frame: pl.DataFrame, train: NDArray[np.bool_], rows: canonical.Positions
    ) -> None:
        """Take in raw rows (N,): `train` says which are training rows, `rows` where each stands in
        the source. Of the others nothing is learnt; they are looked through for missing numbers."""
        for name, moments in self._moments.items():
            column = column_of(frame, moments.field.source_column)
            numbers = canonical.numbers(column, f"field {name!r}", rows, self.schema.missing_values)
            moments.observe(numbers, train, rows)
        mine, rows = frame.filter(train), rows[train]
        for field in self.schema.fields:
            if field.name in self._values:
                self._values[field.name].add(self._raw(mine, field))
            elif field.name in self._hashed:
                raw = self._raw(mine, field)
                spelled = canonical.spelled(raw, _what(field), self.schema.missing_values)
                self._hashed[field.name].observe(spelled)
        for division in self._divisions:
            division.observe(column_of(mine, division.division.column), rows)

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
            hashed = self._hashed[field.name]
            _refuse_vectors(field, hashed)
            if field.id_type is None:
                hashed.tell()
            fitted = {"size": field.hash_buckets + 2, "id_type": field.id_type or hashed.decided()}
            return field.model_copy(update=fitted)
        seen = self._values[field.name]
        _refuse_vectors(field, seen.types)
        seen.tell()
        counts = seen.table()
        vocabulary = Vocabulary.fit(counts, min_count=field.min_count)
        vocabularies[field.name] = vocabulary
        unknown = int(counts["count"].sum()) - int(vocabulary.counts.sum())
        return field.model_copy(
            update={
                "size": len(vocabulary),
                "unknown_rows": unknown,
                "id_type": seen.reading().id_type,
            }
        )

    def _raw(self, frame: pl.DataFrame, field: Field) -> pl.Series:
        """The field's values, those of sequences one after the other."""
        values = column_of(frame, field.source_column)
        if field.kind != "sequence":
            return values
        reading = Reading(field.id_type or "text", self.schema.missing_values)
        return canonical.bags_of(values, field, reading)[0]


def _refuse_vectors(field: Field, types: IdTypes) -> None:
    """Lists of numbers with fractions are vectors; each of their numbers would become an id."""
    if field.kind == "sequence" and field.id_type is None and types.are_decimals:
        raise DataError(
            f"field {field.name!r}: column {field.source_column!r} holds lists of numbers with"
            " fractions, which look like vectors and not like ids.",
            fix="leave the field out; or give the vectors of an id's values in a file of their own"
            " as its `pretrained`; or, if these numbers are ids, add `id_type: text` to the field.",
        )


def _what(field: Field) -> str:
    return f"field {field.name!r}"
