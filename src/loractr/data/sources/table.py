"""Your own Parquet or CSV files, with the schema in the configuration.

`path` is a file, a folder, or a pattern such as `logs/day-*.parquet`; parts are read in the order
of their names. A Parquet column is what its type says. A CSV column that is used as an id is read
as text, so that no digit of it gets lost; one that is used as a number or a time is parsed.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources import delimited
from loractr.data.sources.base import Table, refuse_empty
from loractr.errors import ConfigError, DataError, some
from loractr.schema import Division, Field, Label

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


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
    fields = [field for field in config.fields if isinstance(field, Field)]
    numbers = number_columns(fields, config.divisions.values(), label, config.weight)
    frame = scan(config.path, numbers=numbers, times=_times(config))
    return Table(
        frame=frame,
        fields={name: _offer(name, dtype) for name, dtype in frame.collect_schema().items()},
        default_fields=(),
        divisions=(),
        label=label,
        post_outcome={},
    )


def number_columns(
    fields: Iterable[Field], divisions: Iterable[Division], label: Label, weight: str | None
) -> set[str]:
    """Columns that are used as numbers and not as ids: those that `scan` should parse.

    A column used as both stays text; as text it still says the same numbers.
    """
    ids: set[str] = set()
    numbers = {label.column, weight} if weight else {label.column}
    for field in fields:
        (numbers if field.kind == "numerical" else ids).add(field.source_column)
    numbers |= {division.column for division in divisions if division.thresholds is not None}
    return numbers - ids


def scan(path: Path, *, numbers: Iterable[str] = (), times: Iterable[str] = ()) -> pl.LazyFrame:
    """The table at `path` (file, folder or pattern), lazily.

    Args:
        path: Parquet files, or CSV files with a header.
        numbers: CSV columns to parse as numbers: whole ones where every value is, else float64.
        times: CSV columns to parse as numbers, dates or moments, whichever the first value is.

    Raises:
        DataError: nothing there, empty, unreadable, or the parts differ in their columns.
        MalformedLineError: a CSV line that cannot be read, with its number.
    """
    parts = files(path)
    if kind_of(parts[0]) == ".parquet":
        return _scan_parquet(parts)
    return _scan_csv(parts, numbers, times)


def files(path: Path) -> list[Path]:
    """The Parquet or CSV files that `path` means, sorted by name; all of one kind."""
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [part for part in path.iterdir() if part.is_file()]
    else:
        root = Path(path.anchor)
        found = [part for part in root.glob(str(path.relative_to(root))) if part.is_file()]
    found = sorted(part for part in found if kind_of(part))
    kinds = sorted({kind_of(part) for part in found})
    if not found:
        raise DataError(
            f"{path} does not exist or holds no Parquet or CSV file.",
            fix="name a .parquet, .csv, .tsv, .csv.gz or .tsv.gz file, a folder of them,"
            " or a pattern that matches some.",
        )
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds files of several kinds: {some(kinds)}.",
            fix=f"name those of one kind with a pattern, such as {path}/*{kinds[-1]}",
        )
    return found


def kind_of(path: Path) -> str:
    """`.parquet`, `.csv` or `.tsv` (gzip or not); empty for any other or hidden file."""
    name = path.name.lower()
    if name.startswith((".", "_")):
        return ""
    if name.endswith(".parquet"):
        return ".parquet"
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in _SEPARATORS else ""


def _scan_parquet(parts: list[Path]) -> pl.LazyFrame:
    schemas = [_parquet_schema(part) for part in parts]
    for part, schema in zip(parts, schemas, strict=True):
        _refuse_different(part, schema, parts[0], schemas[0])
    frame = pl.scan_parquet(parts, glob=False)
    if not frame.select(pl.len()).collect().item():
        raise DataError(f"{some(parts, 2)} has no rows.", fix="write the file again.")
    return frame


def _parquet_schema(part: Path) -> pl.Schema:
    refuse_empty(part)
    try:
        return pl.scan_parquet(part, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{part} cannot be read as Parquet: {reason}.", fix="write the file again."
        ) from error


def _scan_csv(parts: list[Path], numbers: Iterable[str], times: Iterable[str]) -> pl.LazyFrame:
    separator = _SEPARATORS[kind_of(parts[0])]
    first = dict.fromkeys(delimited.header(parts[0], separator=separator))
    for part in parts[1:]:
        header = dict.fromkeys(delimited.header(part, separator=separator))
        _refuse_different(part, header, parts[0], first)
    text = pl.concat([delimited.text(part, separator=separator) for part in parts])
    readings = _readings(text, set(numbers) & first.keys(), set(times) & first.keys())
    return pl.concat([delimited.scan(part, readings, separator=separator) for part in parts])


def _readings(
    text: pl.LazyFrame, numbers: Collection[str], times: Collection[str]
) -> delimited.Readings:
    readings = {name: _time_reading(text, name) for name in times}
    numbers = {*numbers, *(n for n, r in readings.items() if r is delimited.NUMBER)}
    if not numbers:
        return readings
    try:
        whole = text.select(
            delimited.WHOLE.parse(pl.col(name), False).null_count() == pl.col(name).null_count()
            for name in numbers
        )
        is_whole: Mapping[str, bool] = whole.collect(engine="streaming").row(0, named=True)
    except (
        pl.exceptions.PolarsError,
        OSError,
    ):  # lines that cannot be read: the check will name the first
        is_whole = dict.fromkeys(numbers, False)
    return readings | {
        name: delimited.WHOLE if is_whole[name] else delimited.NUMBER for name in numbers
    }


def _time_reading(text: pl.LazyFrame, name: str) -> delimited.Reading:
    """How to read a time column, by its first value; the others must then be like it."""
    try:
        first = text.select(pl.col(name).drop_nulls().first()).collect(engine="streaming").item()
    except (
        pl.exceptions.PolarsError,
        OSError,
    ):  # lines that cannot be read: the check will name the first
        first = None
    if first is not None and re.fullmatch(r"\d{4}-\d{2}-\d{2}", first):
        return delimited.DATE
    if first is not None and re.match(r"\d{4}-\d{2}-\d{2}[ T]", first):
        return delimited.MOMENT
    return delimited.NUMBER


def _refuse_different(
    part: Path, columns: Mapping[str, object], first: Path, wanted: Mapping[str, object]
) -> None:
    if list(columns.items()) == list(wanted.items()):
        return
    odd = [name for name in {**columns, **wanted} if columns.get(name, "") != wanted.get(name, "")]
    raise DataError(
        f"{part} differs from {first} in the columns {some(odd) if odd else 'and their order'}.",
        fix="write all parts with the same columns and types, or name those that belong together.",
    )


def _offer(name: str, dtype: pl.DataType) -> Field:
    """The field that a bare name means: what the column's type says."""
    if isinstance(dtype, pl.List | pl.Array):
        return Field(name=name, kind="sequence")
    return Field(name=name, kind="numerical" if dtype.is_float() else "categorical")


def _times(config: DataConfig) -> set[str]:
    """Columns that order the rows of a split."""
    split = config.split
    if split.kind == "temporal":
        return {split.column}
    return {split.order} if split.kind == "per_user" and split.order else set()
