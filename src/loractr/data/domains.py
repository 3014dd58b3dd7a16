"""A division at work: values of its column → index of the domain, -1 where it is unseen.

Three kinds of rule: a value decides (each value its own domain, or groups of values), a number is
cut at thresholds, or the number of training rows that share the value is (activeness). A missing
value is a domain of its own, `(missing)`, when training rows have it and no `rest` takes it in.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.canonical import Positions, Reading
from loractr.data.vocabulary import IdCounts, ValueCounts, Vocabulary
from loractr.errors import ConfigError, DataError, UnknownDomainError, repeated, some
from loractr.schema import Division

Domains = NDArray[np.int32]

MISSING = "(missing)"


class Rule(Protocol):
    """What a division does with the values of its column."""

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each value (N,), -1 where it is unseen."""
        ...


@dataclass(frozen=True)
class ByValue:
    """The value decides. `domain` (1 + values,) has the domain of each index of the vocabulary."""

    vocabulary: Vocabulary
    domain: Domains
    reading: Reading
    what: str

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each value (N,), -1 where it is unseen."""
        return self.domain[self.vocabulary.encode(_ids(values, self.what, self.reading))]


@dataclass(frozen=True)
class ByNumber:
    """The number is cut: domain 0 below the first threshold, k from the k-th on."""

    thresholds: tuple[float, ...]
    missing: int
    missing_values: tuple[str, ...]
    what: str

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each number (N,), -1 where it is missing and no training row was."""
        numbers = canonical.numbers(
            values, self.what, rows, self.missing_values, fix="clean the column."
        )
        cell = np.searchsorted(np.array(self.thresholds), numbers, side="right")
        return np.where(np.isnan(numbers), self.missing, cell).astype(np.int32)


@dataclass(frozen=True)
class ByActiveness:
    """The number of training rows that share the value is cut; a value never seen counts 0."""

    counts: Vocabulary
    thresholds: tuple[int, ...]
    missing: int
    reading: Reading
    what: str

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each value (N,), -1 where it is missing and no training row was."""
        seen = np.concatenate([[0], self.counts.counts.to_numpy()])
        values = _ids(values, self.what, self.reading)
        count = seen[self.counts.encode(values)]
        cell = np.searchsorted(np.array(self.thresholds), count, side="right")
        return np.where(values.is_null().to_numpy(), self.missing, cell).astype(np.int32)


def rule(
    division: Division, counts: Vocabulary | None = None, missing_values: tuple[str, ...] = ()
) -> Rule:
    """The rule of a division: a fitted one, or one that declares its domains (groups, thresholds).

    Args:
        division: Its `domains`, where fitted, are what the rule points into.
        counts: Training rows of each value; needed for `activeness`.
        missing_values: Texts that stand for a missing value.
    """
    what, reading = f"division {division.name!r}", canonical.reading_of(division, missing_values)
    missing = division.domains.index(MISSING) if MISSING in division.domains else -1
    if division.thresholds is not None:
        return ByNumber(division.thresholds, missing, missing_values, what)
    if division.activeness is not None:
        if counts is None:
            raise ValueError("a division by activeness needs the counts of training rows")
        return ByActiveness(counts, division.activeness, missing, reading, what)
    if division.groups is None:
        members: list[str | None] = [None if n == MISSING else n for n in division.domains]
        domain, other = list(range(len(members))), -1
    else:
        pairs = [
            (text, place)
            for place, group in enumerate(division.groups.values())
            for value in group
            for text in canonical.declared(value, reading.id_type)
        ]
        members, domain, other = [text for text, _ in pairs], [d for _, d in pairs], -1
        if division.rest is not None:
            other = len(division.groups)
        elif missing >= 0:
            members, domain = [*members, None], [*domain, missing]
    ids = canonical.ids(pl.Series(members, dtype=pl.String), what, Reading(reading.id_type))
    if twice := repeated(str(member) for member in ids.to_list()):
        named = some(twice)
        raise ConfigError([f"{what}: a value belongs to one group only; listed twice: {named}"])
    vocabulary = Vocabulary(canonical.narrowed(ids))
    return ByValue(vocabulary, np.array([other, *domain], dtype=np.int32), reading, what)


def _ids(values: pl.Series, what: str, reading: Reading) -> pl.Series:
    """Ids, where the text `(missing)`, as predictions show it, is missing too."""
    return canonical.ids(_without_mark(values), what, reading)


def _without_mark(values: pl.Series) -> pl.Series:
    return canonical.without(values, (MISSING,))


def encode_domains(
    division: Division, by: Rule, values: pl.Series, rows: Positions
) -> NDArray[np.int32]:
    """Domain of each row (N,), -1 where it is unseen.

    Raises:
        UnknownDomainError: A row is of no known domain where `unseen: error` holds.
    """
    domains = by.find(values, rows)
    unseen = domains < 0
    if division.unseen == "error" and unseen.any():
        unknown = values.filter(unseen).unique(maintain_order=True).to_list()
        names = [MISSING if value is None else str(value) for value in unknown]
        raise UnknownDomainError(division.name, names, division.domains)
    return domains


def declared(division: Division) -> tuple[str, ...]:
    """Domains that the division's rule names by itself; none where the rows do."""
    if division.groups is not None:
        rest = () if division.rest is None else (division.rest,)
        return (*division.groups, *rest)
    cuts = division.thresholds or division.activeness
    if cuts is None:
        return ()
    marks = [canonical.text(cut) for cut in cuts]
    between = (f"[{low},{high})" for low, high in pairwise(marks))
    return (f"<{marks[0]}", *between, f">={marks[-1]}")


@dataclass
class DomainFit:
    """Collects what fitting a division needs from its training rows, batch by batch."""

    division: Division
    missing_values: tuple[str, ...] = ()
    unseen: int = 0
    """Training rows of no domain: values that no group lists."""

    def __post_init__(self) -> None:
        what = f"division {self.division.name!r}"
        reading = canonical.reading_of(self.division, self.missing_values)
        self._ids = IdCounts(what, reading)
        self._cells = ValueCounts()  # of thresholds

    def observe(self, values: pl.Series, rows: Positions) -> None:
        """Take in the values of a batch of training rows (N,)."""
        if self.division.thresholds is None:
            self._ids.add(_without_mark(values))
        else:
            by = rule(self.division, missing_values=self.missing_values)
            cells = pl.Series(by.find(values, rows), dtype=pl.Int64)
            self._cells.add(cells.set(cells < 0, None))

    def fitted(self) -> tuple[Division, Vocabulary | None]:
        """The division with its domains, and the counts of an activeness rule.

        Raises:
            DataError: A domain that the rule declares has no training row.
        """
        division, counts = self.division, self._cells.table()
        if division.thresholds is None:
            self._ids.tell()
            counts = self._ids.table()
            division = division.model_copy(update={"id_type": self._ids.reading().id_type})
        has_missing = bool(counts["value"].null_count())
        named = declared(division)
        if not named:
            values = canonical.narrowed(counts["value"].drop_nulls()).sort()
            names = tuple(str(value) for value in values.to_list())
            names = (*names, MISSING) if has_missing else names
            return division.model_copy(update={"domains": names}), None
        if division.groups is not None:
            counts = self._by_group(division, counts)
            has_missing = bool(counts["value"].null_count())
        domains = (*named, MISSING) if has_missing and MISSING not in named else named
        fitted = division.model_copy(update={"domains": domains})
        if division.activeness is None:
            self._refuse_empty(named, set(counts["value"].drop_nulls().to_list()))
            return fitted, None
        vocabulary = Vocabulary.fit(counts.drop_nulls())
        cell = np.searchsorted(
            np.array(self.division.activeness), vocabulary.counts.to_numpy(), side="right"
        )
        self._refuse_empty(named, set(cell.tolist()))
        return fitted, vocabulary

    def _by_group(self, division: Division, counts: pl.DataFrame) -> pl.DataFrame:
        """Rows of each domain that a group or `rest` makes, and of the missing, as null."""
        places = np.arange(len(counts), dtype=np.int64)
        domains = rule(division, missing_values=self.missing_values).find(counts["value"], places)
        missing = counts["value"].is_null().to_numpy()
        unseen = (domains < 0) & ~missing
        self.unseen += int(counts["count"].filter(pl.Series(unseen)).sum())
        found = pl.Series("value", domains, dtype=pl.Int64)
        found = found.set(pl.Series((domains < 0) & missing), None)
        kept = pl.DataFrame([found, counts["count"]]).filter(pl.Series(~unseen))
        return kept.group_by("value").agg(pl.col("count").sum())

    def _refuse_empty(self, named: tuple[str, ...], present: set[int]) -> None:
        empty = [name for index, name in enumerate(named) if index not in present]
        if empty:
            raise DataError(
                f"division {self.division.name!r}: an empty domain: no training row is of"
                f" {some(empty)}.",
                fix="correct the values or thresholds of that domain, or leave it out.",
            )
