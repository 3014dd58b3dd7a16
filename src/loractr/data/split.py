"""Which rows train, validate and test: a code per row, never a copy of rows.

The draw depends on (seed, order of the rows) alone. Exact sizes without holding the rows: a batch
of k rows gets as many of each split as a hand of k cards would from the deck that is left
(hypergeometric), dealt to its rows at random. That is the law of drawing from all rows at once.
NumPy draws such hands from decks of up to 10⁹ rows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical, hashing, outcome, temporal
from loractr.data.canonical import Positions, Reading, at, column_of
from loractr.data.config import (
    ColumnSplit,
    Fractions,
    PerUserSplit,
    RandomSplit,
    Split,
    StratifiedSplit,
    TemporalSplit,
)
from loractr.data.domains import rule
from loractr.data.id_type import IdTypes
from loractr.data.partition import partitions
from loractr.data.staging import BATCH_ROWS, Staged
from loractr.data.vocabulary import ValueCounts, Vocabulary
from loractr.errors import ConfigError, DataError, repeated, some
from loractr.schema import Schema

Codes = NDArray[np.uint8]
Keep = NDArray[np.bool_]
Counts = NDArray[np.int64]

NAMES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST, DROPPED = range(4)


def columns(split: Split, schema: Schema) -> dict[str, str]:
    """Columns that the split reads, and who wants each."""
    if isinstance(split, RandomSplit):
        return {}
    if isinstance(split, StratifiedSplit):
        natural = {d.column: f"division {d.name!r}" for d in schema.divisions[:1]}
        return natural | {schema.label.column: "the label"}
    wanted = {split.column: "`split`"}
    if isinstance(split, PerUserSplit) and split.order is not None:
        wanted[split.order] = "`split`"
    return wanted


def codes(split: Split, staged: Staged, schema: Schema, keep: Keep, scratch: Path) -> Codes:
    """Split of each staged row: TRAIN, VALIDATION, TEST, or DROPPED where `keep` is false.

    Args:
        split: How to split.
        staged: The rows.
        schema: Its natural division and label are the strata of a stratified split.
        keep: (rows,) rows that take part.
        scratch: Directory for temporary files.

    Raises:
        ConfigError: A split that does not fit the columns' types.
        DataError: Rows that the split has no place for, or a split that stays empty.
    """
    match split:
        case RandomSplit():
            found = _random(split, staged, keep)
        case StratifiedSplit():
            found = _stratified(split, staged, schema, keep)
        case TemporalSplit():
            found = _temporal(split, staged, schema, keep)
        case PerUserSplit(order=None):
            found = _per_user(split, staged, schema, keep)
        case PerUserSplit():
            found = _per_user_in_order(split, staged, schema, keep, scratch)
        case ColumnSplit():
            found = _by_column(split, staged, schema, keep)
    _refuse_empty(split, found)
    return found


def sizes(rows: Counts, fractions: Fractions, offset: NDArray[np.float64] | float = 0.5) -> Counts:
    """Rows (S, 3) of each split in strata of `rows` (S,) rows, each within one of its exact share.

    The cumulative shares are rounded down after adding `offset` in [0, 1): 0.5 rounds to the
    nearest; a random offset per stratum makes the shares right on average over small strata.
    """
    train = np.floor(np.round(rows * fractions[0], 9) + offset)
    seen = np.floor(np.round(rows * (fractions[0] + fractions[1]), 9) + offset)
    return np.stack([train, seen - train, rows - seen], axis=-1).astype(np.int64)


def _random(split: RandomSplit, staged: Staged, keep: Keep) -> Codes:
    def strata() -> Iterator[tuple[Positions, Counts]]:
        for start in range(0, staged.rows, BATCH_ROWS):
            where = np.flatnonzero(keep[start : start + BATCH_ROWS]) + start
            yield where, np.zeros(len(where), dtype=np.int64)

    left = sizes(np.array([keep.sum()]), split.fractions)
    return _draw(strata(), left, split.seed, staged.rows)


def _stratified(split: StratifiedSplit, staged: Staged, schema: Schema, keep: Keep) -> Codes:
    natural = schema.divisions[0] if schema.divisions else None
    if natural is not None and natural.activeness is not None:
        raise ConfigError(
            [
                f"split: a stratified split needs to know the domains of division {natural.name!r}"
                " before the split, but activeness counts training rows"
            ],
            fix="use `split: {kind: random}`, or list another division first.",
        )
    missing, reading, by = schema.missing_values, canonical.AS_BEFORE, None
    if natural is not None and natural.thresholds is None:
        given = canonical.reading_of(natural, missing)
        reading = _reading(staged, natural.column, keep, f"division {natural.name!r}", given)
    if natural is not None and (natural.groups or natural.thresholds):
        typed = natural.model_copy(update={"id_type": reading.id_type})
        by = rule(typed, missing_values=missing)

    def stratum(frame: pl.DataFrame, rows: Positions) -> tuple[pl.Series, Counts]:
        label = outcome.labels(column_of(frame, schema.label.column), schema.label, rows, missing)
        if natural is None:
            domain = pl.Series(np.zeros(len(rows), dtype=np.int64))
        elif by is None:
            domain = canonical.ids(
                column_of(frame, natural.column), f"division {natural.name!r}", reading
            )
        else:
            domain = pl.Series(by.find(column_of(frame, natural.column), rows)).cast(pl.Int64)
        return domain, label.astype(np.int64)

    strata = _Strata(staged, list(columns(split, schema)), keep, stratum, parts=2)
    return _draw(strata, sizes(strata.rows, split.fractions), split.seed, staged.rows)


def _per_user(split: PerUserSplit, staged: Staged, schema: Schema, keep: Keep) -> Codes:
    reading = _reading(staged, split.column, keep, "`split`", Reading(None, schema.missing_values))

    def stratum(frame: pl.DataFrame, rows: Positions) -> tuple[pl.Series, Counts]:
        user = canonical.ids(column_of(frame, split.column), "`split`", reading)
        return user, np.zeros(len(rows), dtype=np.int64)

    strata = _Strata(staged, [split.column], keep, stratum, parts=1)
    offset = np.append(0.0, _offsets(strata.vocabulary.values, split.seed))  # 0: no user
    left = sizes(strata.rows, split.fractions, offset)
    return _draw(strata, left, split.seed, staged.rows)


def _per_user_in_order(
    split: PerUserSplit, staged: Staged, schema: Schema, keep: Keep, scratch: Path
) -> Codes:
    """Each user's rows in the order of time; equal times in the order of the source."""
    order = split.order or ""
    found = np.full(staged.rows, DROPPED, dtype=np.uint8)
    reading = _reading(staged, split.column, keep, "`split`", Reading(None, schema.missing_values))
    clock = _clock(staged, order, keep, schema)

    def parts() -> Iterator[pl.DataFrame]:
        for rows, frame in staged.batches([split.column, order], keep):
            user = canonical.ids(column_of(frame, split.column), "`split`", reading).alias("user")
            time = pl.Series("time", temporal.keys(clock.read(column_of(frame, order)), rows))
            yield pl.DataFrame([user, time, pl.Series("row", rows)])

    for part in partitions(parts(), ["user"], scratch, staged.rows):
        sorted_ = part.sort("user", "time", "row")
        starts = sorted_["user"].rle_id().to_numpy().astype(np.int64)
        _, first, counts = np.unique(starts, return_index=True, return_counts=True)
        offset = _offsets(sorted_["user"].gather(first), split.seed)
        quota = np.cumsum(sizes(counts, split.fractions, offset), axis=1)
        rank = np.arange(len(part)) - np.repeat(first, counts)
        later = rank[:, None] >= np.repeat(quota[:, :2], counts, axis=0)
        found[sorted_["row"].to_numpy()] = later.sum(axis=1)
    return found


def _temporal(split: TemporalSplit, staged: Staged, schema: Schema, keep: Keep) -> Codes:
    clock = _clock(staged, split.column, keep, schema)

    def times() -> Iterator[tuple[Positions, NDArray[np.uint64]]]:
        for rows, frame in staged.batches([split.column], keep):
            yield rows, temporal.keys(clock.read(column_of(frame, split.column)), rows)

    if split.fractions is None:
        given = (clock.dtype, split.column, clock.zone)
        validation = temporal.moment(split.validation_from, *given)
        test = temporal.moment(split.test_from, *given)
        if validation > test:
            moments = (
                f"validation_from {split.validation_from} is after test_from {split.test_from}"
            )
            raise ConfigError([f"split: {moments}"])
    else:
        total = int(keep.sum())
        wanted = np.cumsum(sizes(np.array([total]), split.fractions)[0])[:2]
        validation, test = temporal.cuts(
            lambda: (key for _, key in times()), wanted.tolist(), total
        )
    found = np.full(staged.rows, DROPPED, dtype=np.uint8)
    for rows, key in times():
        found[rows] = (key >= validation).astype(np.uint8) + (key >= test)
    return found


def _by_column(split: ColumnSplit, staged: Staged, schema: Schema, keep: Keep) -> Codes:
    lists = (split.train, split.validation, split.test)
    given = Reading(None, schema.missing_values)
    reading = _reading(staged, split.column, keep, "`split`", given)
    listed = [
        (text, place)
        for place, values in enumerate(lists)
        for value in values
        for text in canonical.declared(value, reading.id_type)
    ]
    texts = pl.Series([text for text, _ in listed], dtype=pl.String)
    names = canonical.ids(texts, "`split`", Reading(reading.id_type))
    if twice := repeated(str(name) for name in names.to_list()):
        problem = f"split: a value belongs to one split only; listed twice: {some(twice)}"
        raise ConfigError([problem])
    vocabulary = Vocabulary(names)
    code = np.array([place for _, place in listed], dtype=np.uint8)
    found = np.full(staged.rows, DROPPED, dtype=np.uint8)
    for rows, frame in staged.batches([split.column], keep):
        index = vocabulary.encode(column_of(frame, split.column), what="`split`", reading=reading)
        unknown = index == 0
        if unknown.any():
            raise _placeless(column_of(frame, split.column).filter(unknown), rows[unknown])
        found[rows] = code[index - 1]
    return found


def _placeless(values: pl.Series, rows: Positions) -> DataError:
    column = values.name.strip()
    if values.null_count() == len(values):
        return DataError(
            f"split column {column!r} is missing in {len(values)} rows ({at(rows)}).",
            fix="drop those rows, or write into the column what they are for.",
        )
    listed = values.drop_nulls().unique(maintain_order=True).head(9).to_list()
    return DataError(
        f"split column {column!r} holds {some(listed)} ({at(rows)}), which `split` gives no place.",
        fix="list each value of the column in `train`, `validation` or `test` of `split`; those of"
        " `missing_values` are none.",
    )


def _reading(staged: Staged, column: str, keep: Keep, what: str, given: Reading) -> Reading:
    """How `column` is read before it is known which rows train: by the values of all rows."""
    if given.id_type is not None:
        return given
    types = IdTypes(what)
    for _, frame in staged.batches([column], keep):
        types.observe(canonical.spelled(column_of(frame, column), what, given.missing))
    return replace(given, id_type=types.decided())


def _clock(staged: Staged, column: str, keep: Keep, schema: Schema) -> temporal.Clock:
    """How the times of `column` are read."""
    clock = temporal.Clock(column, staged.types[column], schema.missing_values)
    if staged.types[column] == pl.String:
        for _, frame in staged.batches([column], keep):
            clock.observe(column_of(frame, column))
    return clock


class _Strata:
    """Stratum of each row, batch by batch: (id, part) → a dense number. Two passes: the first, in
    the constructor, counts the rows of each stratum."""

    def __init__(
        self,
        staged: Staged,
        wanted: list[str],
        keep: Keep,
        stratum: Callable[[pl.DataFrame, Positions], tuple[pl.Series, Counts]],
        *,
        parts: int,
    ) -> None:
        self._staged, self._wanted, self._keep = staged, wanted, keep
        self._stratum, self._parts = stratum, parts
        counts = ValueCounts()
        for rows, frame in staged.batches(wanted, keep):
            counts.add(stratum(frame, rows)[0])
        self.vocabulary = Vocabulary.fit(counts.table())
        self.rows = np.zeros(len(self.vocabulary) * parts, dtype=np.int64)
        for _, number in self:
            self.rows += np.bincount(number, minlength=len(self.rows))

    def __iter__(self) -> Iterator[tuple[Positions, Counts]]:
        """Positions and strata (N,) of each batch."""
        for rows, frame in self._staged.batches(self._wanted, self._keep):
            ids, part = self._stratum(frame, rows)
            yield rows, self.vocabulary.encode(ids).astype(np.int64) * self._parts + part


def _draw(strata: Iterable[tuple[Positions, Counts]], left: Counts, seed: int, total: int) -> Codes:
    """Deal the rows of all strata at random.

    Args:
        strata: Positions (N,) and strata (N,) of each batch.
        left: (S, 3) rows of each stratum that each split gets in all.
        seed: Of the draw.
        total: Number of staged rows.
    """
    rng = np.random.default_rng(seed)
    left = left.copy()
    narrow = np.min_scalar_type(len(left))  # 16 bits or fewer are sorted by radix
    found = np.full(total, DROPPED, dtype=np.uint8)
    for where, stratum in strata:
        counts = np.bincount(stratum, minlength=len(left))
        present = np.flatnonzero(counts)
        count = counts[present]
        train = rng.hypergeometric(left[present, 0], left[present, 1:].sum(axis=1), count)
        validation = rng.hypergeometric(left[present, 1], left[present, 2], count - train)
        left[present] -= np.stack([train, validation, count - train - validation], axis=1)
        order = rng.permutation(len(stratum))
        order = order[np.argsort(stratum[order].astype(narrow), kind="stable")]
        rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        found[where[order]] = (rank >= np.repeat(train, count)).astype(np.uint8) + (
            rank >= np.repeat(train + validation, count)
        )
    return found


def _offsets(ids: pl.Series, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each id (S,), by hash: the same wherever the id stands."""
    key = hashing.hashes(ids) ^ hashing.splitmix64(np.array([seed], dtype=np.uint64))
    return (hashing.splitmix64(key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _refuse_empty(split: Split, found: Codes) -> None:
    counts = [np.count_nonzero(found == code) for code in range(len(NAMES))]
    for code, name in enumerate(NAMES):
        if not counts[code] and _wanted(split, code):
            raise DataError(
                f"the {split.kind} split puts none of the {sum(counts)} rows into {name}.",
                fix="change `split`: its fractions, moments or column.",
            )


def _wanted(split: Split, code: int) -> bool:
    if code == TRAIN:
        return True
    if isinstance(split, ColumnSplit):
        return bool(split.validation if code == VALIDATION else split.test)
    if split.fractions is not None:
        return split.fractions[code] > 0
    assert isinstance(split, TemporalSplit)  # only that one may do without fractions
    return code == TEST or split.validation_from != split.test_from
