"""The `data` section of a configuration: source, fields, divisions, label, split."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field as Bound
from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from loractr.errors import some
from loractr.schema import Division, Field, Label, Record

Fractions = tuple[
    Annotated[float, Bound(gt=0, lt=1)],
    Annotated[float, Bound(ge=0, lt=1)],
    Annotated[float, Bound(ge=0, lt=1)],
]
"""Shares of train, validation, test."""


def _sum_to_one(fractions: Fractions) -> Fractions:
    if abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"train, validation and test must sum to 1, not {sum(fractions):g}")
    return fractions


class RandomSplit(Record):
    """Each row by itself, at random; sizes exact to one row."""

    kind: Literal["random"]
    fractions: Fractions = (0.8, 0.1, 0.1)
    seed: NonNegativeInt = 123
    _sum = field_validator("fractions")(_sum_to_one)


class StratifiedSplit(Record):
    """At random within each (domain of the natural division, label); sizes exact to one row."""

    kind: Literal["stratified"]
    fractions: Fractions = (0.6, 0.2, 0.2)
    seed: NonNegativeInt = 123
    _sum = field_validator("fractions")(_sum_to_one)


class TemporalSplit(Record):
    """By time: the past trains, the future tests. Either two dates or fractions of the rows."""

    kind: Literal["temporal"]
    column: str
    """Time column: a number, a date or a datetime."""
    validation_from: int | float | str | None = None
    """First moment of validation; ISO text for date columns."""
    test_from: int | float | str | None = None
    """First moment of test."""
    fractions: Fractions | None = None
    """Instead of moments: shares of the rows in time order (rows of equal time stay together)."""

    @model_validator(mode="after")
    def _moments_or_fractions(self) -> Self:
        moments = (self.validation_from is not None) + (self.test_from is not None)
        if (self.fractions is None) == (moments == 0) or moments == 1:
            raise ValueError("give either validation_from and test_from, or fractions")
        if self.fractions is not None:
            _sum_to_one(self.fractions)
        return self


class PerUserSplit(Record):
    """Within each user's rows: at random, or in the order of a time column (the last ones test)."""

    kind: Literal["per_user"]
    column: str
    """Column of the user."""
    order: str | None = None
    """Time column; at random when absent."""
    fractions: Fractions = (0.8, 0.1, 0.1)
    seed: NonNegativeInt = 123
    _sum = field_validator("fractions")(_sum_to_one)


class ColumnSplit(Record):
    """A column says it."""

    kind: Literal["column"]
    column: str
    train: tuple[int | str, ...] = ("train",)
    validation: tuple[int | str, ...] = ("validation",)
    test: tuple[int | str, ...] = ("test",)


Split = Annotated[
    RandomSplit | StratifiedSplit | TemporalSplit | PerUserSplit | ColumnSplit,
    Bound(discriminator="kind"),
]


class Negatives(Record):
    """Drawn negatives for logs that hold positives only (Taobao, Amazon 2018).

    Each user gets items of the domain that this user never clicked. The rows get a column `split`
    with the published protocol's shares, which `split: {kind: column, column: split}` uses.
    """

    per: tuple[Literal["domain"]] | tuple[Literal["domain"], Literal["user"]] = ("domain", "user")
    """Rates and items are per domain. Negatives are dealt to the splits user by user (as published)
    or, without `user`, over the domain as a whole."""
    rate_range: tuple[
        Annotated[float, Bound(gt=0, le=1)],
        Annotated[float, Bound(gt=0, le=1)],
    ] = (0.2, 0.5)
    """Per domain a rate ~ U(low, high), rounded to 2 digits; a user gets int(positives / rate)."""
    fractions: Fractions = (0.6, 0.2, 0.2)
    """Shares of train, validation, test in the column `split`."""
    user: str | None = None
    """Column of the user; the source's own when absent."""
    item: str | None = None
    """Column of the item; the source's own when absent."""
    item_columns: tuple[str, ...] | None = None
    """Columns of the item, like its category. A negative has them from its item, and all others
    from one of its user's clicks. Those with one value in all clicks of each item when absent."""
    seed: NonNegativeInt = 0
    _sum = field_validator("fractions")(_sum_to_one)


class SyntheticOptions(Record):
    """Size and structure of the synthetic click log."""

    rows: PositiveInt = 200_000
    users: PositiveInt = 3_000
    items: PositiveInt = 1_000
    domains: PositiveInt = 12
    zipf: float = 1.0
    """Domain sizes fall as 1 / rank ** zipf."""
    rank: Annotated[PositiveInt, Bound(le=4)] = 2
    """Rank of each domain's deviation from the shared preference; 4 is full rank."""
    deviation: float = 1.0
    """Strength of the domains' deviation; 0 makes them differ in base rate only."""
    kinds: PositiveInt | None = None
    """Domains fall into this many kinds, in turns: those of one kind have the same deviation, and
    differ in base rate only. Each has its own when absent."""
    auxiliary: Annotated[int, Bound(ge=2)] | None = None
    """Domains of a second division, `auxiliary`, drawn evenly whatever the row's natural domain:
    each has a deviation of the same rank and strength. No such division when absent."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kinds is not None and self.kinds > self.domains:
            raise ValueError(
                f"kinds: {self.kinds} is more than there are domains, {self.domains}: use at most"
                f" {self.domains}, or leave it out, so that each domain has its own deviation"
            )
        return self


SourceName = Literal[
    "movielens-1m",
    "kuairand-pure",
    "synthetic",
    "table",
    "amazon-2014",
    "amazon-2018",
    "taobao-theme",
    "ali-ccp",
]


MISSING_VALUES = (
    *("", "NULL", "null", "None", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT"),
    *("\\N", "-", "–", "—"),
)
"""Texts that databases, pandas, R and spreadsheets write where there is no value."""


class DataConfig(Record):
    """Where the rows come from and what they mean."""

    source: SourceName
    """Which reader."""
    path: Path | None = None
    """File or folder; none for the synthetic source."""
    label: Label | None = None
    """Which rows are clicks; the source's own label when absent."""
    fields: tuple[str | Field, ...] | None = None
    """Inputs: names of the source's columns, or fields spelt out; the source's own when absent."""
    divisions: dict[str, Division] = Bound(default_factory=dict)
    """Divisions by name; the first is the natural one; the source's own when empty."""
    domain_as_field: bool = True
    """The natural domain as one more categorical field, named `domain_<division>`."""
    weight: str | None = None
    """Column of row weights."""
    group: str | None = None
    """Column that the grouped AUC averages over, usually the user."""
    missing_values: tuple[str, ...] = MISSING_VALUES
    """Texts that stand for a missing value, in training and in scoring, whatever the file; the
    empty text always does."""
    encoding: str | None = None
    """CSV files: their encoding, such as latin-1, gbk or utf-16; UTF-8, or what a byte-order mark
    says, when absent."""
    separator: Annotated[str | None, Bound(min_length=1, max_length=1)] = None
    """CSV files: what stands between two values; detected (`,` `;` tab `|`) when absent."""
    quote: Annotated[str | None, Bound(max_length=1)] = None
    """CSV files: the quotation mark, `""` for none at all; `"` when absent."""
    decimal: Literal[".", ","] = "."
    """CSV files: the decimal mark of numbers."""
    split: Split = StratifiedSplit(kind="stratified")
    """How rows are dealt to train, validation and test."""
    deduplicate: bool | tuple[str, ...] = False
    """Drop repeats: of whole rows (true) or of the named columns; the first row stays."""
    negatives: Negatives | None = None
    """Draw negatives, for logs of positives only."""
    synthetic: SyntheticOptions = SyntheticOptions()
    """Options of the synthetic source."""
    domains: tuple[str, ...] | None = None
    """Sources made of one file per domain (Amazon): which ones; all known when absent.
    Taobao: an integer-like text, the first N themes."""

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Self:
        if self.source != "synthetic" and self.synthetic != SyntheticOptions():
            raise ValueError(f"synthetic: means nothing for source {self.source!r}")
        per_file = ("amazon-2014", "amazon-2018", "taobao-theme")
        if self.domains is not None and self.source not in per_file:
            raise ValueError(f"domains: means nothing for source {self.source!r}")
        return self

    @model_validator(mode="after")
    def _groups_hold_values(self) -> Self:
        for name, division in self.divisions.items():
            listed = [str(value) for group in (division.groups or {}).values() for value in group]
            if gaps := sorted({*listed} & {*self.missing_values}):
                raise ValueError(
                    f"divisions.{name}: groups list {some(gaps)}, which missing_values says are no"
                    " values: take them off one of the two"
                )
        return self

    @field_validator("missing_values")
    @classmethod
    def _empty_is_missing(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value if "" in value else ("", *value)

    @field_validator("divisions", mode="before")
    @classmethod
    def _name_divisions(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: {"name": name, **rule} if isinstance(rule, dict) else rule
            for name, rule in value.items()
        }
