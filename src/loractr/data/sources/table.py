"""Your own Parquet or CSV files, with the schema in the configuration.

`path` is a file, a folder, or a pattern such as `logs/day-*.parquet`; parts are read in the order
of their names. What a file is, its first bytes say. A Parquet column is what its type says. A CSV
column that is used as a number is parsed; any other is text, so that no digit of an id gets lost,
and a column means the same in training and in scoring, whatever the split does with it.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import polars as pl

from loractr.data.config import ColumnSplit, DataConfig, PerUserSplit, TemporalSplit
from loractr.data.sources.base import Table
from loractr.data.sources.content import look
from loractr.data.sources.files import find
from loractr.data.sources.kinds import decide_kinds
from loractr.data.sources.parts import Parts, open_parts
from loractr.data.sources.text_form import STANDARD, TextForm
from loractr.errors import ConfigError, some
from loractr.schema import Division, Field, Kind, Label

log = logging.getLogger(__name__)

_SAYS_KIND = {
    *("kind", "min_count", "hash_buckets", "embedding_size", "pretrained", "trainable", "id_type"),
}
"""Options that say what a field is: those but the first are of ids only."""


def open_source(config: DataConfig) -> Table:
    """Rows in the order of the files. `fields` must be given."""
    if config.path is None:
        raise ConfigError(["data.path is missing: source table reads Parquet or CSV files"])
    if not config.fields:
        raise ConfigError(
            ["data.fields is missing: source table cannot know which columns are inputs"],
            fix=f"list them, or let `loractr init {config.path}` propose a configuration.",
        )
    label = config.label or Label()
    parts = open_parts(config.path, TextForm.of(config))
    kinds = _kinds(config.fields, parts)
    fields = [_spelt_out(item, kinds, parts.text.types) for item in config.fields]
    whole = parts.checked(
        numbers=number_columns(fields, config.divisions.values(), config.weight),
        labels=label_columns(label),
        needed=_needed(config, fields, label),
    )
    return Table(
        frame=whole.frame,
        fields={
            name: Field(name=name, kind=kinds.get(name) or _kind(dtype))
            for name, dtype in whole.types.items()
        }
        | {field.name: field for field in fields if field.column},
        default_fields=(),
        divisions=(),
        label=label,
        post_outcome={},
    )


def number_columns(
    fields: Iterable[Field], divisions: Iterable[Division], weight: str | None
) -> set[str]:
    """Columns that are used as numbers and not as ids: those that `scan` should parse.

    A column used as both stays text; as text it still says the same numbers.
    """
    ids: set[str] = set()
    numbers = {weight} if weight else set()
    for field in fields:
        (numbers if field.kind == "numerical" else ids).add(field.source_column)
    numbers |= {division.column for division in divisions if division.thresholds is not None}
    return numbers - ids


def label_columns(label: Label) -> set[str]:
    """The column of the label, unless its rule compares text: what `scan` takes as `labels`."""
    return set() if label.rule and isinstance(label.rule[1], str) else {label.column}


def scan(
    path: Path,
    *,
    numbers: Iterable[str] = (),
    labels: Iterable[str] = (),
    form: TextForm = STANDARD,
    needed: Collection[str] | None = None,
    refuse_empty: bool = True,
) -> pl.LazyFrame:
    """The table at `path` (file, folder or pattern), lazily.

    Args:
        path: Parquet files, or CSV files with a header; folders `key=value` are columns, too.
        numbers: Text columns to parse as numbers: whole ones where every value is, else float64.
        labels: Text columns to parse as numbers if the first value is one.
        form: How CSV files are written.
        needed: Columns whose types must go together in all parts; all when absent.
        refuse_empty: Whether a table without rows is an error; else it has its columns.

    Raises:
        DataError: nothing there, without rows, unreadable, or the parts do not go together.
        MalformedLineError: a CSV line that cannot be read, with its number.
    """
    whole = open_parts(path, form).checked(
        numbers=numbers, labels=labels, needed=needed, refuse_empty=refuse_empty
    )
    return whole.frame


def files(path: Path) -> list[Path]:
    """The Parquet or CSV files that `path` means, sorted by name."""
    return [found.path for found in find(path)]


def kind_of(path: Path) -> str:
    """`.parquet` or `.csv`, by the file's first bytes."""
    return ".parquet" if look(path).is_parquet else ".csv"


def _kinds(items: Iterable[str | Field], parts: Parts) -> dict[str, Kind]:
    """The kinds, by their values, of the columns of those fields that do not say theirs."""
    fields = [Field(name=item) if isinstance(item, str) else item for item in items]
    silent = [field for field in fields if not field.model_fields_set & _SAYS_KIND]
    there = {f.source_column: None for f in silent if f.source_column in parts.text.types}
    kinds = decide_kinds(parts.text, there, parts.form)
    numbers = [name for name, kind in kinds.items() if kind == "numerical"]
    if numbers:
        log.info(
            "fields read as numbers, since they have fractions and say no `kind`: %s",
            some(name[:40] for name in numbers),
        )
    return kinds


def _spelt_out(
    item: str | Field, kinds: Mapping[str, Kind], types: Mapping[str, pl.DataType]
) -> Field:
    """The field with its kind: the one that it says, of ids if it has options of these, or the one
    of its column."""
    field = Field(name=item) if isinstance(item, str) else item
    if "kind" in field.model_fields_set:
        return field
    column = field.source_column
    kind = kinds.get(column, "categorical")
    if field.model_fields_set & _SAYS_KIND:
        lists = column in types and _kind(types[column]) == "sequence"
        kind = "sequence" if lists else "categorical"
    return field.model_copy(update={"kind": kind})


def _kind(dtype: pl.DataType) -> Kind:
    """What the type of a column says of its kind."""
    if isinstance(dtype, pl.List | pl.Array):
        return "sequence"
    return "numerical" if dtype.is_float() else "categorical"


def _times(config: DataConfig) -> set[str]:
    """Columns that order the rows of a split."""
    split = config.split
    if isinstance(split, TemporalSplit):
        return {split.column}
    return {split.order} if isinstance(split, PerUserSplit) and split.order else set()


def _needed(config: DataConfig, fields: Iterable[Field], label: Label) -> set[str]:
    """All columns that the configuration names."""
    named = {field.source_column for field in fields} | {label.column, config.weight, config.group}
    named |= {division.column for division in config.divisions.values()} | _times(config)
    if isinstance(config.split, PerUserSplit | ColumnSplit):
        named.add(config.split.column)
    if isinstance(config.deduplicate, tuple):
        named |= set(config.deduplicate)
    if config.negatives is not None:
        named |= {config.negatives.user, config.negatives.item}
    return {name for name in named if name}
