"""`Profile`: what a model was trained on, in numbers; profile.json of prepared data and artifacts.

It is made while rows are encoded, when raw values are at hand. What later rows are compared with
are validation rows as well as training rows: the latter have hardly an unknown id, by construction.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic import Field as Bound

from loractr.data import gaps, scaling, sketch
from loractr.data.canonical import Positions
from loractr.data.domains import MISSING
from loractr.data.encode import Encoders
from loractr.data.rows import Rows
from loractr.data.tally import Cells, Tally
from loractr.schema import Record

PROFILE = "profile.json"
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOP = 20
"""How many of the most frequent values of a field are named."""
MARKS = 4096
"""Most training rows that are known again."""
SAMPLE = 1 << 16
"""Training rows that quantiles come from."""
_LONGEST = 80  # letters of a value that is named

Share = Annotated[float, Bound(ge=0, le=1)]


class Part(Record):
    """Some rows of one split: all of them, or those of one domain."""

    rows: int
    """How many."""
    click_rate: Share | None
    """Share of positive ones; None without rows."""
    missing: dict[str, Share] = {}
    """Field → share of these rows without a value (a sequence: without any id). Fields without a
    gap are left out, here and in `unknown`; the domain as a field (`domain_<division>`) too."""
    unknown: dict[str, Share] = {}
    """Field → share of its ids that have index 0: never seen in training, or too rarely."""


class SplitProfile(Record):
    """The rows of one split."""

    whole: Part
    """All of them."""
    domains: dict[str, dict[str, Part]]
    """Division → domain → its rows."""
    unseen: dict[str, Share]
    """Division → share of rows of a domain that training never saw."""


class Profile(Record):
    """What a model was trained on."""

    model_config = ConfigDict(ser_json_inf_nan="constants")
    format: Literal[1] = 1
    """Version of this layout."""
    train: SplitProfile
    """Training rows."""
    validation: SplitProfile
    """Validation rows: how often ids are unknown and values missing in rows of no training."""
    levels: tuple[Share, ...] = LEVELS
    """What `quantiles` are of."""
    quantiles: dict[str, tuple[float, ...]]
    """Numerical field → its quantiles over training rows that have a number, on the raw scale; of
    more than 65,536 rows, over as many drawn at random."""
    top: dict[str, dict[str, Share]]
    """Field → its most frequent ids by name, at most 20 (null is `(missing)`), with their shares of
    all ids of the training rows. Hashed fields, which know no names, have none."""
    marks: tuple[int, ...]
    """The smallest marks (`data/sketch.py`) of training rows, rising."""
    limit: int
    """Every training row with a mark below it has it in `marks`."""
    repeats: Share | None
    """Share of validation rows that are training rows too, value for value; None where none was
    looked up."""
    files: tuple[dict[str, Any], ...] = ()
    """The source's files, as in the manifest: name, bytes, SHA-256 (large ones: time of change)."""


def read(folder: Path) -> Profile | None:
    """The profile in the folder of a prepared data set or of an artifact; None without one."""
    path = folder / PROFILE
    return Profile.model_validate_json(path.read_bytes()) if path.is_file() else None


def write(profile: Profile, folder: Path) -> None:
    """Write profile.json."""
    (folder / PROFILE).write_text(profile.model_dump_json(indent=1), encoding="utf-8")


class Profiler:
    """Takes in encoded rows, batch by batch, in memory that does not grow with their number.

    Args:
        encoders: What encodes the rows.
    """

    def __init__(self, encoders: Encoders) -> None:
        self.encoders = encoders
        names = ("train", "validation", "test")
        self.tallies = {name: Tally(encoders.schema) for name in names}
        self._marks = {name: sketch.Sketch(MARKS) for name in ("train", "validation")}
        self._numbers = sketch.Sample(SAMPLE, len(encoders.schema.numerical))

    def add(self, rows: Rows, frame: pl.DataFrame, splits: dict[str, Positions]) -> None:
        """Take in a batch.

        Args:
            rows: Encoded rows (N,), with labels.
            frame: The same rows, raw.
            splits: Positions of the rows of each split.
        """
        found, marks = gaps.find(rows, self.encoders, frame), sketch.marks(rows)
        for name, where in splits.items():
            self.tallies[name].add(rows, found, where)
            if name in self._marks:
                self._marks[name].add(marks[where])
        self._sample(rows, found, splits["train"])

    def _sample(self, rows: Rows, found: gaps.Gaps, where: Positions) -> None:
        where = where[self._numbers.wants(rows.row[where])]
        numbers = rows.numbers[where]
        for place, field in enumerate(self.encoders.schema.numerical):
            missing = np.zeros(len(rows), dtype=np.bool_)
            missing[found.missing[field.name]] = True
            numbers[missing[where], place] = np.nan
        self._numbers.add(rows.row[where], numbers)

    def profile(self, files: Iterable[dict[str, Any]]) -> Profile:
        """The profile of all rows taken in.

        Args:
            files: What the rows were read from, as of `fingerprint`.
        """
        train, validation = self._marks["train"], self._marks["validation"]
        limit = min(train.limit, validation.limit)
        common = validation.marks < limit
        known = np.isin(validation.marks[common], train.marks)
        counts = validation.counts[common]
        return Profile(
            train=split_profile(self.tallies["train"]),
            validation=split_profile(self.tallies["validation"]),
            quantiles=self._quantiles(),
            top=self._top(),
            marks=tuple(train.marks.tolist()),
            limit=train.limit,
            repeats=float(counts[known].sum() / counts.sum()) if len(counts) else None,
            files=tuple(files),
        )

    def _quantiles(self) -> dict[str, tuple[float, ...]]:
        result = {}
        for place, field in enumerate(self.encoders.schema.numerical):
            column = self._numbers.values[:, place]
            numbers = scaling.raw(column[~np.isnan(column)], field)
            if len(numbers):
                found = np.quantile(numbers, LEVELS)
                result[field.name] = tuple(float(f"{value:.6g}") for value in found)
        return result

    def _top(self) -> dict[str, dict[str, float]]:
        result = {}
        fields = {field.name: field for field in self.encoders.schema.fields}
        for name, vocabulary in self.encoders.vocabularies.items():
            total = int(vocabulary.counts.sum()) + fields[name].unknown_rows
            names = vocabulary.values.head(TOP).cast(pl.String).fill_null(MISSING)
            shares = vocabulary.counts.head(TOP) / max(total, 1)
            result[name] = dict(zip(map(short, names), shares.to_list(), strict=True))
        return result


def split_profile(tally: Tally) -> SplitProfile:
    """What a tally says, in shares."""
    return SplitProfile(
        whole=_part(tally, tally.whole, 0),
        domains={
            division.name: {
                name: _part(tally, cells, place + 1) for place, name in enumerate(division.domains)
            }
            for division, cells in zip(tally.divisions, tally.domains, strict=True)
        },
        unseen={
            division.name: int(cells.rows[0]) / max(int(cells.rows.sum()), 1)
            for division, cells in zip(tally.divisions, tally.domains, strict=True)
        },
    )


def _part(tally: Tally, cells: Cells, cell: int) -> Part:
    rows, positives = int(cells.rows[cell]), int(cells.positives[cell])
    return Part(
        rows=rows,
        click_rate=positives / rows if rows else None,
        missing=_shares(tally.fields, cells.missing[cell], np.full(len(tally.fields), rows)),
        unknown=_shares(tally.fields, cells.unknown[cell], cells.ids[cell]),
    )


def _shares(
    names: tuple[str, ...], counts: NDArray[np.int64], of: NDArray[np.int64]
) -> dict[str, float]:
    """Name → its share, of those that are not 0."""
    return {
        name: int(count) / int(total)
        for name, count, total in zip(names, counts, of, strict=True)
        if count
    }


def short(name: str) -> str:
    """A name, or its beginning where it is long."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
