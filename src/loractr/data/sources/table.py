"""Your own Parquet or CSV files, with the schema in the configuration.

`path` is a file, a folder, or a pattern such as `logs/day-*.parquet`; parts are read in the order
of their names. A Parquet column is what its type says. A CSV column that is used as an id is read
as text, so that no digit of it gets lost; one that is used as a number or a time is parsed.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources import delimited
from loractr.data.sources.base import Table, refuse_empty
from loractr.errors import ConfigError, DataError, some
from loractr.schema import Field, Label

_CSV = {".csv": ",", ".tsv": "\t"}


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
    frame = scan(config.path, numbers=_numbers(config, label), times=_times(config))
    fields = {name: _offer(name, dtype) for name, dtype in frame.collect_schema().items()}
    return Table(
        frame=frame,
        fields=fields,
        default_fields=(),
        divisions=(),
        label=label,
        post_outcome={label.column: "it is the label itself"},
    )


def scan(path: Path, *, numbers: Iterable[str] = (), times: Iterable[str] = ()) -> pl.LazyFrame:
    """The table at `path` (file, folder or pattern), lazily.

    Args:
        path: Parquet files, or CSV files with a header.
        numbers: CSV columns to parse as numbers: whole ones where every value is, else float64.
        times: CSV columns to parse as numbers, dates or datetimes, whichever fits every value.

    Raises:
        DataError: nothing there, empty, unreadable, or the parts differ in their columns.
        MalformedLineError: a CSV line that cannot be read, with its number.
    """
    parts = files(path)
    if kind_of(parts[0]) == ".parquet":
        return _scan_parquet(parts)
    return _scan_csv(parts, set(numbers), set(times))


def files(path: Path) -> list[Path]:
    """The Parquet or CSV files that `path` means, sorted by name; all of one kind."""
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [part for part in path.iterdir() if part.is_file() and kind_of(part)]
    else:
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        found = list(anchor.glob(str(path.relative_to(anchor)))) if path.parts else []
    kinds = {kind_of(part) for part in found}
    if not found or kinds == {""}:
        raise DataError(
            f"{path} holds no Parquet or CSV file.",
            fix="name a .parquet, .csv, .tsv or .csv.gz file, a folder of them, or a pattern.",
        )
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds files of several kinds: {some(sorted(kinds))}.",
            fix=f"name one kind with a pattern, such as {path}/*{sorted(kinds)[-1]}",
        )
    return sorted(found)


def kind_of(path: Path) -> str:
    """`.parquet`, `.csv` or `.tsv` (gzip or not); empty for any other file."""
    name = path.name.lower().removesuffix(".gz")
    if name.startswith((".", "_")):
        return ""
    return next((kind for kind in (".parquet", ".csv", ".tsv") if name.endswith(kind)), "")


def _scan_parquet(parts: list[Path]) -> pl.LazyFrame:
    for part in parts:
        refuse_empty(part)
    try:
        schemas = [pl.read_parquet_schema(part) for part in parts]
        frame = pl.scan_parquet(parts, glob=False)
        rows = frame.select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{some(parts, 2)} cannot be read as Parquet: {str(error).splitlines()[0]}.",
            fix="write the file again.",
        ) from error
    _refuse_different(parts, [dict(schema) for schema in schemas])
    if not rows:
        raise DataError(f"{some(parts, 2)} has no rows.", fix="write the file again.")
    return frame


def _scan_csv(parts: list[Path], numbers: set[str], times: set[str]) -> pl.LazyFrame:
    separator = _CSV[kind_of(parts[0])]
    headers = [delimited.header(part, separator=separator) for part in parts]
    _refuse_different(parts, [dict.fromkeys(columns) for columns in headers])
    columns = headers[0]
    types: delimited.Types = {name: pl.Float64 for name in columns if name in numbers}
    return pl.concat([delimited.scan(part, types, separator=separator) for part in parts])


def _refuse_different(parts: list[Path], schemas: list[dict[str, object]]) -> None:
    for part, schema in zip(parts, schemas, strict=True):
        if schema != schemas[0]:
            raise DataError(
                f"{part} has other columns or types than {parts[0]}: {some(schema)} instead of"
                f" {some(schemas[0])}.",
                fix="write all parts with the same columns, or name those that belong together.",
            )


def _offer(name: str, dtype: pl.DataType) -> Field:
    """The field that a bare name means: what the column's type says."""
    if isinstance(dtype, pl.List | pl.Array):
        return Field(name=name, kind="sequence")
    return Field(name=name, kind="numerical" if dtype.is_float() else "categorical")


def _numbers(config: DataConfig, label: Label) -> set[str]:
    """Columns that the configuration uses as numbers, and as nothing else."""
    fields = [field for field in config.fields or () if isinstance(field, Field)]
    divisions = config.divisions.values()
    numbers = {field.source_column for field in fields if field.kind == "numerical"}
    numbers |= {d.column for d in divisions if d.thresholds is not None} | {label.column}
    numbers |= {config.weight} if config.weight else set()
    ids = {field.source_column for field in fields if field.kind != "numerical"}
    return numbers - ids


def _times(config: DataConfig) -> set[str]:
    """Columns that order the rows of a split."""
    split = config.split
    if split.kind == "temporal":
        return {split.column}
    return {split.order} if split.kind == "per_user" and split.order else set()
