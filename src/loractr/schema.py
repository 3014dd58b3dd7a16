"""What the columns of a click log mean: fields, divisions, label. Pure data, no I/O.

A schema is written by the user (names, kinds, rules), then *fitted* by `prepare` on training rows
only (sizes of vocabularies, normalising constants, names of domains). The fitted schema travels
with the model; `fitted` says which of the two one holds.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt, model_validator

from loractr.errors import repeated, some

Kind = Literal["categorical", "numerical", "sequence"]
Scaling = Literal["none", "standard", "min_max", "log1p"]
IdType = Literal["integer", "boolean", "time", "text"]
"""What the values of a column of ids are, which says when two of them are the same id:

    integer   52, 52.0, "52" and "52.0" are one id
    boolean   true, "True", 1 and "1" are one id
    time      a moment is one id, whatever its unit and time zone
    text      every text is an id of its own: "007" and "7", "2.0" and "2"
"""


class Record(BaseModel):
    """Base of every piece of configuration: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Field(Record):
    """One input of the model."""

    name: str
    """Name of the field, unique in the schema."""
    column: str = ""
    """Column of the table that it reads; the field's name when empty."""
    kind: Kind = "categorical"
    """categorical: an id; numerical: a number; sequence: several ids, their embeddings averaged."""

    id_type: IdType | None = None
    """What its ids are; decided by the values of the training rows when absent, then fitted.
    A fitted field without one is of a model older than this rule, and reads as that model did."""
    min_count: PositiveInt = 1
    """Ids seen in fewer training rows than this are treated as unknown (index 0)."""
    hash_buckets: PositiveInt | None = None
    """Hash ids into this many buckets instead of keeping a vocabulary (unbounded ids)."""
    embedding_size: PositiveInt | None = None
    """Width of this field's embedding; the model's `embedding_size` when absent."""
    pretrained: str | None = None
    """Parquet or CSV file of ready embeddings: the id, then one list column or float columns."""
    trainable: bool = True
    """Whether the embedding is trained; only a pretrained one may be frozen."""

    separator: str | None = None
    """Sequences stored as text: what stands between two ids, blanks aside. Lists need none, be they
    a list column or text like `[103, 107]` or `["a", "b"]`."""
    max_length: PositiveInt | None = None
    """Sequences are cut to their first `max_length` ids."""

    scaling: Scaling = "standard"
    """Numbers: (x - mean) / std, (x - min) / (max - min), or sign(x) log(1 + |x|) standardised."""
    missing: Literal["error", "mean"] = "error"
    """Numbers: what a missing value or NaN is: an error, or the mean of the training rows."""

    size: int = 0
    """Fitted: number of embedding rows, the unknown's row 0 included (0 for numbers)."""
    unknown_rows: int = 0
    """Fitted: how many training rows have index 0. When none has, row 0 is never trained."""
    center: float = 0.0
    """Fitted: what is subtracted from a number (after log1p where asked for)."""
    scale: float = 1.0
    """Fitted: what the difference is divided by."""
    fill: float = 0.0
    """Fitted: what a missing number becomes, normalised: the mean of the training rows."""

    @property
    def source_column(self) -> str:
        """The table's column that this field reads."""
        return self.column or self.name

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> Self:
        numbers, ids = {"scaling", "missing"}, {"min_count", "hash_buckets", "embedding_size"}
        ids |= {"pretrained", "trainable", "id_type"}
        excluded = ids if self.kind == "numerical" else numbers
        if self.kind != "sequence":
            excluded = excluded | {"separator", "max_length"}
        defaults = type(self).model_fields  # a dumped field names every option, as its default
        wrong = {name for name in excluded if getattr(self, name) != defaults[name].default}
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))} means nothing for a {self.kind} field")
        if self.hash_buckets and (self.pretrained or self.min_count > 1):
            raise ValueError(
                "hash_buckets keeps no vocabulary: it excludes pretrained and min_count"
            )
        if not self.trainable and not self.pretrained:
            raise ValueError("trainable: false needs a pretrained embedding")
        return self


PREDICTION_COLUMNS = ("row", "label", "probability", "weight", "group", "true_probability")
"""Columns of a table of predictions beside those of the divisions, which have other names."""


def _is_free(name: str) -> str:
    if name in PREDICTION_COLUMNS:
        raise ValueError(f"a division cannot be called {name!r}: predictions have such a column")
    return name


class Division(Record):
    """A way to cut rows into domains. Without a rule, each value of the column is a domain."""

    name: Annotated[str, AfterValidator(_is_free)]
    """Name of the division, unique in the schema; not one of PREDICTION_COLUMNS."""
    column: str
    """Column of the table that it reads."""
    groups: dict[str, tuple[int | str | float | bool, ...]] | None = None
    """Domain name → the values that belong to it."""
    rest: str | None = None
    """With groups: the domain of all values that no group lists (else such rows are unseen)."""
    thresholds: tuple[float, ...] | None = None
    """Cuts a number: one domain below the first threshold, one from each threshold on."""
    activeness: tuple[PositiveInt, ...] | None = None
    """Cuts by the number of *training* rows that share the column's value (a user's activeness)."""
    id_type: IdType | None = None
    """What the values of the column are, as for a field; means nothing with thresholds."""
    unseen: Literal["backbone", "error"] = "backbone"
    """Rows of a domain that had no training row: scored by the backbone alone, or an error."""

    domains: tuple[str, ...] = ()
    """Fitted: the domains, in order; a row's domain index points in here, -1 is unseen."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        rules = [r for r in ("groups", "thresholds", "activeness") if getattr(self, r) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} exclude each other")
        if self.rest is not None and self.groups is None:
            raise ValueError("rest needs groups")
        for cuts in (self.thresholds, self.activeness):
            if cuts is not None and (not cuts or list(cuts) != sorted(set(cuts))):
                raise ValueError(f"thresholds must be one or more rising numbers, not {list(cuts)}")
        if self.groups is not None:
            twice = repeated(str(value) for group in self.groups.values() for value in group)
            if twice:
                raise ValueError(f"a value belongs to one group only; listed twice: {some(twice)}")
        return self


_RULE = re.compile(r"(==|!=|>=|<=|>|<)\s*(\S.*)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _is_rule(rule: str | None) -> str | None:
    match = None if rule is None else _RULE.fullmatch(rule.strip())
    if rule is not None and match is None:
        raise ValueError(
            f"expected a comparison with a number or a text, like '== 5' or '== yes', not {rule!r}"
        )
    if match is not None and match[1] not in ("==", "!=") and not _NUMBER.fullmatch(match[2]):
        raise ValueError(f"only == and != compare with text, not {rule!r}")
    return rule


class Label(Record):
    """Which rows are clicks."""

    column: str = "label"
    """Column of the table that holds the label."""
    positive: Annotated[str | None, AfterValidator(_is_rule)] = None
    """Rule that makes a row positive, like '== 5', '> 3' or '== yes' (text whatever its case);
    without it the column holds 0 and 1, or true and false."""

    @property
    def rule(self) -> tuple[str, float | str] | None:
        """The rule as (operator, number or text)."""
        match = _RULE.fullmatch(self.positive.strip()) if self.positive else None
        if match is None:
            return None
        return match[1], float(match[2]) if _NUMBER.fullmatch(match[2]) else match[2]


class Schema(Record):
    """Fields, divisions, label and weight of one table."""

    fields: tuple[Field, ...]
    """Inputs of the model, in order."""
    divisions: tuple[Division, ...] = ()
    """Divisions of the rows; the first is the natural one."""
    label: Label = Label()
    """Which rows are clicks."""
    weight: str | None = None
    """Column of row weights (≥ 0), used in the loss and in every metric; 1 when absent."""
    group: str | None = None
    """Column whose values the grouped AUC (GAUC) averages over, usually the user."""
    missing_values: tuple[str, ...] = ()
    """Texts that stand for a missing value, in whatever column they are."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what in ("fields", "divisions"):
            names = [item.name for item in getattr(self, what)]
            twice = repeated(names)
            if twice:
                raise ValueError(f"{what} with the same name: {some(twice)}")
        return self

    @property
    def categorical(self) -> tuple[Field, ...]:
        """Fields with one id a row: the columns of `Batch.ids`, in this order."""
        return tuple(f for f in self.fields if f.kind == "categorical")

    @property
    def numerical(self) -> tuple[Field, ...]:
        """Fields with a number: the columns of `Batch.numbers`, in this order."""
        return tuple(f for f in self.fields if f.kind == "numerical")

    @property
    def sequences(self) -> tuple[Field, ...]:
        """Fields with several ids a row: the keys of `Batch.sequences`."""
        return tuple(f for f in self.fields if f.kind == "sequence")

    @property
    def fitted(self) -> bool:
        """Whether vocabulary sizes and domain names are known."""
        return all(f.size for f in self.fields if f.kind != "numerical") and all(
            d.domains for d in self.divisions
        )

    def division(self, name: str) -> Division:
        """The division of that name (KeyError when there is none)."""
        for division in self.divisions:
            if division.name == name:
                return division
        raise KeyError(name)
