"""A division at work: values of its column → index of the domain, -1 where it is unseen.

Three kinds of rule: a value decides (each value its own domain, or groups of values), a number is
cut at thresholds, or the number of training rows that share the value is (activeness). A missing
value is a domain of its own, `(missing)`, when training rows have it and no `rest` takes it in.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.canonical import Positions
from loractr.data.vocabulary import ValueCounts, Vocabulary
from loractr.errors import ConfigError, DataError, UnknownDomainError, some
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
    what: str

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each value (N,), -1 where it is unseen."""
        return self.domain[self.vocabulary.encode(_ids(values, self.what), what=self.what)]


@dataclass(frozen=True)
class ByNumber:
    """The number is cut: domain 0 below the first threshold, k from the k-th on."""

    thresholds: tuple[float, ...]
    missing: int
    what: str

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each number (N,), -1 where it is missing and no training row was."""
        numbers = canonical.numbers(values, self.what, rows)
        cell = np.searchsorted(np.array(self.thresholds), numbers, side="right")
        return np.where(np.isnan(numbers), self.missing, cell).astype(np.int32)


@dataclass(frozen=True)
class ByActiveness:
    """The number of training rows that share the value is cut; a value never seen counts 0."""

    counts: Vocabulary
    thresholds: tuple[int, ...]
    missing: int
    what: str

    def find(self, values: pl.Series, rows: Positions) -> Domains:
        """Domain of each value (N,), -1 where it is missing and no training row was."""
        seen = np.concatenate([[0], self.counts.counts.to_numpy()])
        values = _ids(values, self.what)
        count = seen[self.counts.encode(values, what=self.what)]
        cell = np.searchsorted(np.array(self.thresholds), count, side="right")
        return np.where(values.is_null().to_numpy(), self.missing, cell).astype(np.int32)


def rule(division: Division, counts: Vocabulary | None = None) -> Rule:
    """The rule of a division: a fitted one, or one that declares its domains (groups, thresholds).

    Args:
        division: Its `domains`, where fitted, are what the rule points into.
        counts: Training rows of each value; needed for `activeness`.
    """
    what = f"division {division.name!r}"
    missing = division.domains.index(MISSING) if MISSING in division.domains else -1
    if division.thresholds is not None:
        return ByNumber(division.thresholds, missing, what)
    if division.activeness is not None:
        if counts is None:
            raise ValueError("a division by activeness needs the counts of training rows")
        return ByActiveness(counts, division.activeness, missing, what)
    if division.groups is None:
        members: list[str | None] = [None if n == MISSING else n for n in division.domains]
        domain, other = list(range(len(members))), -1
    else:
        pairs = [(v, d) for d, group in enumerate(division.groups.values()) for v in group]
        members = [canonical.text(value) for value, _ in pairs]
        domain, other = [d for _, d in pairs], -1
        if division.rest is not None:
            other = len(division.groups)
        elif missing >= 0:
            members, domain = [*members, None], [*domain, missing]
    if len(set(members)) < len(members):
        twice = sorted({str(m) for m in members if members.count(m) > 1})
        raise ConfigError([f"{what}: a value belongs to one group only; listed twice: {twice}"])
    vocabulary = Vocabulary(canonical.narrowed(pl.Series(members, dtype=pl.String)))
    return ByValue(vocabulary, np.array([other, *domain], dtype=np.int32), what)


def _ids(values: pl.Series, what: str) -> pl.Series:
    """Ids, where the text `(missing)`, as predictions show it, is missing too."""
    ids = canonical.ids(values, what)
    return ids.set(ids == MISSING, None) if ids.dtype == pl.String else ids


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
    unseen: int = 0
    """Training rows of no domain: values that no group lists."""
    _counts: ValueCounts = field(default_factory=ValueCounts)

    def observe(self, values: pl.Series, rows: Positions) -> None:
        """Take in the values of a batch of training rows (N,)."""
        what = f"division {self.division.name!r}"
        if self.division.thresholds is None and self.division.groups is None:
            self._counts.add(_ids(values, what))
        else:  # only the declared domains are counted
            domains = rule(self.division).find(values, rows)
            missing = unseen = domains < 0
            if self.division.groups is not None:
                missing = unseen & _ids(values, what).is_null().to_numpy()
            self.unseen += int((unseen & ~missing).sum())
            self._counts.add(pl.Series(domains, dtype=pl.Int64).set(pl.Series(missing), None))

    def fitted(self) -> tuple[Division, Vocabulary | None]:
        """The division with its domains, and the counts of an activeness rule.

        Raises:
            DataError: A domain that the rule declares has no training row.
        """
        counts = self._counts.table()
        has_missing = bool(counts["value"].null_count())
        named = declared(self.division)
        if not named:
            values = canonical.narrowed(counts["value"].drop_nulls()).sort()
            names = tuple(str(value) for value in values.to_list())
            names = (*names, MISSING) if has_missing else names
            return self.division.model_copy(update={"domains": names}), None
        domains = (*named, MISSING) if has_missing and MISSING not in named else named
        fitted = self.division.model_copy(update={"domains": domains})
        if self.division.activeness is None:
            self._refuse_empty(named, set(counts["value"].drop_nulls().to_list()))
            return fitted, None
        vocabulary = Vocabulary.fit(counts.drop_nulls())
        cell = np.searchsorted(
            np.array(self.division.activeness), vocabulary.counts.to_numpy(), side="right"
        )
        self._refuse_empty(named, set(cell.tolist()))
        return fitted, vocabulary

    def _refuse_empty(self, named: tuple[str, ...], present: set[int]) -> None:
        empty = [name for index, name in enumerate(named) if index not in present]
        if empty:
            raise DataError(
                f"division {self.division.name!r}: an empty domain: no training row is of"
                f" {some(empty)}.",
                fix="correct the values or thresholds of that domain, or leave it out.",
            )
