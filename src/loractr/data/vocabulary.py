"""Value ↔ index. Index 0 is the unknown; the values seen in training rows have 1, 2, …

Order: the most frequent value first, equal counts by value (missing last), so that the same
training rows always give the same indices and the hottest embedding rows lie side by side.
"""

import logging
from collections import Counter
from dataclasses import replace
from functools import cached_property
from itertools import count as count_from
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.id_type import IdTypes
from loractr.errors import DataError, some

log = logging.getLogger(__name__)

Indices = NDArray[np.int32]

_SPARE = 8  # a table over all integers from the least to the greatest may be this much too large


class ValueCounts:
    """How often each id occurs, added up batch by batch; memory grows with distinct ids only."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._pending = 0

    def add(self, values: pl.Series) -> None:
        """Count canonical ids (N,): Int64 or text, null for missing."""
        part = values.alias("value").value_counts(name="count")
        self._parts.append(part.with_columns(pl.col("count").cast(pl.Int64)))
        self._pending += len(part)
        if self._pending > max(1_000_000, len(self._parts[0])):
            self._merge()

    def table(self) -> pl.DataFrame:
        """Columns `value` and `count`, one row for each distinct id, in no particular order."""
        self._merge()
        return self._parts[0]

    def _merge(self) -> None:
        empty = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})
        merged = pl.concat(self._parts) if self._parts else empty
        self._parts = [merged.group_by("value").agg(pl.col("count").sum())]
        self._pending = 0


class IdCounts:
    """Counts a column's ids, batch by batch, and finds out what they are.

    The values are counted as they are spelt, and brought together once the type is known.

    Args:
        what: Who reads the column, for error messages.
        reading: Its missing values, and its type where that is declared.
    """

    def __init__(self, what: str, reading: canonical.Reading) -> None:
        self.what, self._given = what, reading
        self.types = IdTypes(what)
        self._counts = ValueCounts()
        self._gaps: Counter[str] = Counter()

    def add(self, values: pl.Series) -> None:
        """Take in a column of raw values (N,)."""
        self._gaps.update(canonical.gaps(values, self._given.missing))
        spelled = canonical.spelled(values, self.what, self._given.missing)
        self.types.observe(spelled)
        self._counts.add(spelled)

    def reading(self) -> canonical.Reading:
        """How the column is read: by the declared type, else by that of all values."""
        if self._given.id_type is not None:
            return self._given
        return replace(self._given, id_type=self.types.decided())

    def tell(self) -> None:
        """Say what the values were taken for, where that may surprise."""
        if self._given.id_type is None:
            self.types.tell()
        if self._gaps:
            named = (f"{text} ({count:,})" for text, count in self._gaps.most_common())
            log.info("%s: read as missing, by data.missing_values: %s", self.what, some(named))

    def table(self) -> pl.DataFrame:
        """As `ValueCounts.table`, of canonical ids."""
        id_type = self.reading().id_type
        assert id_type is not None
        counts = self._counts.table()
        ids = canonical.read(counts["value"], self.what, id_type).alias("value")
        if id_type == "integer":
            ids = canonical.narrowed(ids)
        return pl.DataFrame([ids, counts["count"]]).group_by("value").agg(pl.col("count").sum())


class Vocabulary:
    """Ids and their indices.

    Args:
        values: Distinct ids in the order of their indices 1, 2, …: Int64 or text, null for missing.
        counts: Training rows (sequences: occurrences) of each.
    """

    def __init__(self, values: pl.Series, counts: pl.Series | None = None) -> None:
        if values.n_unique() < len(values):
            raise DataError(
                f"a vocabulary lists {values.filter(values.is_duplicated())[0]!r} twice."
            )
        self.values = values.alias("value")
        zeros = pl.Series("count", np.zeros(len(values), dtype=np.int64))
        self.counts = zeros if counts is None else counts.alias("count")

    def __len__(self) -> int:
        """Number of indices, the unknown's 0 included: rows of the embedding table."""
        return len(self.values) + 1

    @staticmethod
    def fit(counts: pl.DataFrame, *, min_count: int = 1) -> "Vocabulary":
        """Vocabulary of the ids with at least `min_count` occurrences; missing always has its own.

        Args:
            counts: Columns `value` and `count`, as of `ValueCounts.table`.
            min_count: Rarer ids become unknown.
        """
        kept = counts.filter((pl.col("count") >= min_count) | pl.col("value").is_null())
        by = kept.sort("count", "value", descending=[True, False], nulls_last=True)
        return Vocabulary(by["value"], by["count"])

    def encode(
        self,
        values: pl.Series,
        *,
        what: str = "a vocabulary",
        reading: canonical.Reading = canonical.AS_BEFORE,
    ) -> Indices:
        """Index of each value (N,), 0 for one that is not known.

        Args:
            values: A column as `reading` reads it; it may have another type than the one that the
                vocabulary was fitted on. By default ids that are canonical already.
            what: Who reads the column, for error messages.
            reading: How it becomes ids.
        """
        values = canonical.ids(values, what, reading)
        if values.dtype != self.values.dtype:
            values = values.cast(pl.String)
            index = self._by_text.find(values)
        else:
            index = self._by_value.find(values)
        return np.where(values.is_null().to_numpy(), self._missing, index).astype(np.int32)

    def save(self, path: Path) -> None:
        """Write columns `value` and `count` as Parquet, in the order of the indices 1, 2, …"""
        pl.DataFrame([self.values, self.counts]).write_parquet(path)

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Read what `save` wrote."""
        table = pl.read_parquet(path)
        return Vocabulary(table["value"], table["count"])

    @cached_property
    def _missing(self) -> int:
        where = self.values.is_null().arg_true()
        return int(where[0]) + 1 if len(where) else 0

    @cached_property
    def _by_value(self) -> "_DenseIntegers | _Hashed":
        known = self.values.drop_nulls()
        if known.dtype == pl.Int64 and len(known):
            low, high = int(known.min()), int(known.max())  # type: ignore[arg-type]
            if high - low < _SPARE * len(known) + 1024:
                return _DenseIntegers(self.values, low, high)
        return _Hashed(self.values)

    @cached_property
    def _by_text(self) -> "_Hashed":
        return _Hashed(self.values.cast(pl.String))


class _DenseIntegers:
    """Looks integers of a narrow range up in one table."""

    def __init__(self, values: pl.Series, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.table = np.zeros(high - low + 1, dtype=np.int32)
        known = values.is_not_null().to_numpy()
        index = np.arange(1, len(values) + 1, dtype=np.int32)
        self.table[values.drop_nulls().to_numpy() - low] = index[known]

    def find(self, values: pl.Series) -> Indices:
        """Index of each value, 0 where it has none; that of null means nothing."""
        asked = values.fill_null(self.low).to_numpy()
        inside = (asked >= self.low) & (asked <= self.high)
        return np.where(inside, self.table[np.where(inside, asked, self.low) - self.low], 0)


class _Hashed:
    """Looks ids up by their 64-bit hash in a sorted array, then compares the ids themselves, so
    that two are never taken for one another. The hash is Polars' own; it never leaves the process.
    """

    def __init__(self, values: pl.Series) -> None:
        known = values.is_not_null().to_numpy()
        index = np.flatnonzero(known).astype(np.int32) + 1
        values = values.filter(known)
        for seed in count_from():
            hashes = values.hash(seed).to_numpy()
            order = np.argsort(hashes, kind="stable")
            self.hashes = hashes[order]
            if not (self.hashes[1:] == self.hashes[:-1]).any():
                break  # no two known ids share a hash
        self.seed, self.values, self.index = seed, values.gather(order), index[order]

    def find(self, values: pl.Series) -> Indices:
        """Index of each value, 0 where it has none; that of null means nothing."""
        if not len(self.index):
            return np.zeros(len(values), dtype=np.int32)
        place = np.searchsorted(self.hashes, values.hash(self.seed).to_numpy())
        place = np.minimum(place, len(self.hashes) - 1)
        same = (self.values.gather(place) == values).fill_null(False).to_numpy()
        return np.where(same, self.index[place], 0)
