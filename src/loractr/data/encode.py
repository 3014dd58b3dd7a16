"""Raw values → `Rows`, with everything that was fitted on training rows.

The same `Encoders` serve `prepare`, batch by batch, and a saved model, request by request.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical, hashing, outcome, scaling
from loractr.data.canonical import Positions, column_of
from loractr.data.domains import Rule, encode_domains, rule
from loractr.data.rows import Rows
from loractr.data.vocabulary import Vocabulary
from loractr.errors import MissingColumnError, UnknownDomainError
from loractr.schema import Division, Field, Schema


@dataclass(frozen=True)
class Encoders:
    """What turns raw values into indices and normalised numbers.

    Args:
        schema: The fitted schema.
        vocabularies: By name of the field; hashed fields, numbers and the domain field have none.
        activeness: Training rows of each value, by name of the division that cuts by activeness.
    """

    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    activeness: Mapping[str, Vocabulary]

    def encode(
        self,
        frame: pl.DataFrame,
        *,
        rows: Positions | None = None,
        outcomes: bool = False,
        domains: Mapping[str, str] | None = None,
    ) -> Rows:
        """Encode raw rows (N,). The frame may have other columns and other types than the training
        rows; it needs the columns of all fields and divisions.

        Args:
            frame: Raw values.
            rows: (N,) position of each row in the source; 0, 1, … when absent.
            outcomes: Also read label, weight and group, which the frame must have then.
            domains: Name of the domain that all rows belong to, by division; those divisions'
                columns are not read.

        Raises:
            MissingColumnError: The frame lacks a column.
            UnknownDomainError: A domain that was not trained, where `unseen: error` holds or it is
                named in `domains`.
            DataError: Values that do not fit the schema.
            KeyError: `domains` names a division that the schema does not have.
        """
        if rows is None:
            rows = np.arange(len(frame), dtype=np.int64)
        schema, given = self.schema, domains or {}
        for division in given:
            schema.division(division)  # KeyError where there is none
        found = [self._domains(frame, d, rows, given) for d in schema.divisions]
        ids = [self._ids(frame, f, found) for f in schema.categorical]
        scaled = [
            scaling.scaled(
                canonical.numbers(_column(frame, f), _what(f), rows, schema.missing_values), f, rows
            )
            for f in schema.numerical
        ]
        encoded = Rows(
            ids=np.stack(ids, axis=1) if ids else np.zeros((len(frame), 0), np.int32),
            numbers=np.stack(scaled, axis=1) if scaled else np.zeros((len(frame), 0), np.float32),
            domains=np.stack(found, axis=1) if found else np.zeros((len(frame), 0), np.int32),
            row=rows,
            sequences={f.name: self._bags(frame, f) for f in schema.sequences},
        )
        return outcome.add(encoded, frame, schema) if outcomes else encoded

    def save(self, directory: Path) -> None:
        """Write `vocabulary/<field>.parquet` and `activeness/<division>.parquet` in `directory`."""
        for folder, tables in (
            ("vocabulary", self.vocabularies),
            ("activeness", self.activeness),
        ):
            (directory / folder).mkdir(parents=True, exist_ok=True)
            for name, table in tables.items():
                table.save(directory / folder / f"{file_name(name)}.parquet")

    @staticmethod
    def load(directory: Path, schema: Schema) -> "Encoders":
        """Read what `save` wrote, for the fitted schema that it belongs to."""

        def read(folder: str, name: str) -> Vocabulary:
            return Vocabulary.load(directory / folder / f"{file_name(name)}.parquet")

        fields = [f.name for f in schema.fields if keeps_vocabulary(f, schema)]
        active = [d.name for d in schema.divisions if d.activeness is not None]
        return Encoders(
            schema=schema,
            vocabularies={name: read("vocabulary", name) for name in fields},
            activeness={name: read("activeness", name) for name in active},
        )

    @cached_property
    def _rules(self) -> dict[str, Rule]:
        missing = self.schema.missing_values
        return {
            d.name: rule(d, self.activeness.get(d.name), missing) for d in self.schema.divisions
        }

    def _domains(
        self, frame: pl.DataFrame, division: Division, rows: Positions, given: Mapping[str, str]
    ) -> NDArray[np.int32]:
        if division.name in given:
            name = given[division.name]
            if name not in division.domains:
                raise UnknownDomainError(division.name, [name], division.domains)
            return np.full(len(frame), division.domains.index(name), dtype=np.int32)
        values = _column(frame, division)
        return encode_domains(division, self._rules[division.name], values, rows)

    def _ids(
        self, frame: pl.DataFrame, field: Field, found: list[NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        if is_domain_field(field, self.schema):
            unseen_first: NDArray[np.int32] = found[0] + np.int32(1)  # the unseen, -1, is 0
            return unseen_first
        return self._index(_column(frame, field), field)

    def _bags(
        self, frame: pl.DataFrame, field: Field
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        reading = self._reading(field)
        values, offsets = canonical.bags_of(_column(frame, field), field, reading)
        return self._index(values, field), offsets

    def _index(self, values: pl.Series, field: Field) -> NDArray[np.int32]:
        reading = self._reading(field)
        if field.hash_buckets is not None:
            return hashing.buckets(canonical.ids(values, _what(field), reading), field.hash_buckets)
        return self.vocabularies[field.name].encode(values, what=_what(field), reading=reading)

    def _reading(self, field: Field) -> canonical.Reading:
        return canonical.reading_of(field, self.schema.missing_values)


def is_domain_field(field: Field, schema: Schema) -> bool:
    """Whether this is the natural domain as a field, `domain_<division>`, which reads no column."""
    return bool(schema.divisions) and field.name == f"domain_{schema.divisions[0].name}"


def keeps_vocabulary(field: Field, schema: Schema) -> bool:
    """Whether the field has a vocabulary of its own."""
    return not (field.kind == "numerical" or field.hash_buckets or is_domain_field(field, schema))


def file_name(name: str, longest: int = 240) -> str:
    """A field's, division's or domain's name as part of a file name, whatever characters it has;
    different names have different files.

    Percent-encoded. A name that would be longer than `longest` bytes (file systems allow 255) keeps
    its beginning and gets a digest: an encoded name has no "+" of its own.
    """
    safe = quote(name, safe=" ")
    if len(safe) > longest:
        return f"{safe[:80]}+{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return safe


def _what(field: Field) -> str:
    return f"field {field.name!r}"


def _column(frame: pl.DataFrame, reader: Field | Division) -> pl.Series:
    column, kind = reader.column, "division"
    if isinstance(reader, Field):
        column, kind = reader.source_column, "field"
    if column not in frame.columns:
        raise MissingColumnError(column, frame.columns, wanted_by=f"{kind} {reader.name!r}")
    return column_of(frame, column)
