"""Ali-CCP: impressions of a shop with clicks and purchases, in two tables for each of two periods.

    sample_skeleton_{train,test}.csv   sample, click, purchase, index, features' number, features
    common_features_{train,test}.csv   index, features' number, features

No header, no quotes. Features are joined by \\x01; each is field \\x02 id \\x03 value. Rows of the
same `index` share those common features, the user's. A row's `context_301` is its domain.

Rows with a purchase but no click are dropped, as usual. Fields with several ids (behaviour of the
user, combinations, intentions) are kept whole, as sequences; the feature's value, a count or 1, is
not used. `file` is train or test; `split` deals the rows of the test file to validation and test
in turn. The common features of one period are held in memory while rows are joined to them.

Source: Ma et al., Entire Space Multi-Task Model, SIGIR 2018, doi:10.1145/3209978.3210104.
"""

from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources.base import Table, needs_files, needs_path
from loractr.errors import DataError, MalformedLineError
from loractr.schema import Division, Field, Label

_SAMPLE = ("sample_id", "click", "purchase", "common", "count", "features")
_COMMON = ("common", "count", "features")
_WHOLE = {"click", "purchase", "count"}

_USER = tuple(f"user_{code}" for code in (101, 121, 122, 124, 125, 126, 127, 128, 129))
_BEHAVIOUR = tuple(f"behaviour_{code}" for code in ("109_14", "110_14", "127_14", "150_14"))
_ITEM = tuple(f"item_{code}" for code in (205, 206, 207, 216))
_INTENTION = ("item_210",)
_COMBINED = tuple(f"combined_{code}" for code in (508, 509, 702, 853))
_CONTEXT = ("context_301",)
_SEQUENCES = {*_BEHAVIOUR, *_INTENTION, *_COMBINED}
"""Columns named <group>_<field of the file>; those that hold several ids."""


def open_source(config: DataConfig) -> Table:
    """Impressions in the order of the files, the train file first."""
    folder = needs_path(config, "the folder of sample_skeleton_*.csv and common_features_*.csv")
    names = [
        f"{kind}_{file}.csv"
        for file in ("train", "test")
        for kind in ("sample_skeleton", "common_features")
    ]
    train, train_common, test, test_common = needs_files(folder, names, source=config.source)
    frame = pl.concat(
        [
            _impressions(train, train_common, "train", ["train", "train"]),
            _impressions(test, test_common, "test", ["validation", "test"]),
        ]
    )
    inputs = (*_USER, *_BEHAVIOUR, *_ITEM, *_INTENTION, *_COMBINED, *_CONTEXT)
    fields = {name: _field(name) for name in inputs}
    return Table(
        frame=frame,
        fields=fields,
        default_fields=tuple(name for name in inputs if name not in _CONTEXT),
        divisions=(Division(name="context", column="context_301"),),
        label=Label(column="click"),
        post_outcome={
            "click": "it is the label itself",
            "purchase": "a purchase follows a click",
            "file": "it says whether a row is for training",
            "split": "it says whether a row is for training",
        },
    )


def _field(name: str) -> Field:
    if name in _SEQUENCES:
        return Field(name=name, kind="sequence", min_count=10)
    return Field(name=name, min_count=10)  # as usual: rarer ids count as unknown


def _impressions(sample: Path, common: Path, file: str, splits: list[str]) -> pl.LazyFrame:
    shared = _scan(common, _COMMON).select("common", *_parsed((*_USER, *_BEHAVIOUR)))
    return (
        _scan(sample, _SAMPLE)
        .filter((pl.col("click") == 1) | (pl.col("purchase") == 0))
        .with_row_index("place")
        .select(
            "sample_id",
            "click",
            "purchase",
            "common",
            *_parsed((*_ITEM, *_INTENTION, *_COMBINED, *_CONTEXT)),
            file=pl.lit(file),
            split=pl.lit(pl.Series(splits)).gather(pl.col("place") % len(splits)),
        )
        .join(shared, on="common", how="left", maintain_order="left")
        .drop("common")
    )


def _parsed(names: tuple[str, ...]) -> list[pl.Expr]:
    """Each field's ids out of the column `features`: the one, or the list of all."""
    columns = []
    for name in names:
        code = name.partition("_")[2]
        one = rf"(?:^|\x01){code}\x02([^\x01\x03]*)"
        if name not in _SEQUENCES:
            columns.append(pl.col("features").str.extract(one).alias(name))
            continue
        found = pl.col("features").str.extract_all(one)
        ids = found.list.eval(pl.element().str.extract(r"\x02(.*)$"))
        columns.append(ids.alias(name))
    return columns


def _scan(path: Path, names: tuple[str, ...]) -> pl.LazyFrame:
    """The file's columns, after a pass that checks every line."""
    schema = {name: pl.Int64() if name in _WHOLE else pl.String() for name in names}
    frame = pl.scan_csv(path, has_header=False, schema=schema, quote_char=None, glob=False)
    found = pl.col("features").str.count_matches("\x03", literal=True)
    given = pl.all_horizontal(pl.col(name).is_not_null() for name in names[:-1])
    sound = given & (found.fill_null(0) == pl.col("count"))
    try:
        wrong = frame.select((~sound.fill_null(False)).sum()).collect(engine="streaming").item()
    except pl.exceptions.PolarsError:
        wrong = 1
    if wrong:
        _raise_first_bad_line(path, names)
        raise DataError(f"{path} cannot be read.", fix="unpack it again.")
    return frame


def _raise_first_bad_line(path: Path, names: tuple[str, ...]) -> None:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            values = line.rstrip("\n").split(",")
            problem = _problem(values, names)
            if problem:
                raise MalformedLineError(path, number, problem)


def _problem(values: list[str], names: tuple[str, ...]) -> str | None:
    """What is wrong with a line, if anything."""
    if len(values) != len(names):
        return f"expected {','.join(names)}, found {len(values)} values"
    row = dict(zip(names, values, strict=True))
    for name, value in row.items():
        if name in _WHOLE and not value.isdigit():
            return f"{name} must be a whole number, not {value[:40]!r}"
        if not value and name != "features":
            return f"{name} is empty"
    found = row["features"].count("\x03")
    if found != int(row["count"]):
        return f"expected {row['count']} features, found {found}"
    return None
