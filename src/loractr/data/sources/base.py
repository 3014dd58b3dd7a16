"""`Table`: what every source returns, and the checks that they share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.errors import ConfigError, DataError, some
from loractr.schema import Division, Field, Label


@dataclass(frozen=True)
class Table:
    """Raw rows and what their columns mean, before a configuration chooses among them."""

    frame: pl.LazyFrame
    """The rows, in the order of the source."""
    fields: dict[str, Field]
    """Every column that may be an input, as a field with sensible options."""
    default_fields: tuple[str, ...]
    """Names of the fields that are inputs when the configuration lists none."""
    divisions: tuple[Division, ...]
    """Divisions when the configuration has none; the first is the natural one."""
    label: Label
    """The label when the configuration has none."""
    post_outcome: dict[str, str] = field(default_factory=dict)
    """Columns only known after the click → why none of them may be an input."""
    oracle: str | None = None
    """Column of the true click probability (synthetic rows only)."""
    user: str | None = None
    """Column of the user, where every row is a click and negatives are drawn."""
    item: str | None = None
    """Column of the item, likewise."""


def needs_path(config: DataConfig, what: str) -> Path:
    """`config.path`, which must be given and exist; `what` says what belongs there."""
    if config.path is None:
        raise ConfigError([f"data.path is missing: source {config.source} reads {what}"])
    if not config.path.exists():
        raise DataError(
            f"{config.path} does not exist; source {config.source} reads {what}.",
            fix=f"set data.path, or fetch it: loractr data get {config.source} --out DIR",
        )
    return config.path


def needs_negatives(config: DataConfig) -> None:
    """Raise ConfigError unless `config` has negatives drawn: the source holds clicks only."""
    if config.negatives is None:
        raise ConfigError(
            [f"data.negatives is missing: source {config.source} holds clicks only"],
            fix="add `negatives: {seed: 0}` and `split: {kind: column, column: split}` to data.",
        )


def needs_files(folder: Path, names: Sequence[str], *, source: str) -> list[Path]:
    """The files `names` of `folder`, each of which must exist and hold something."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file; source {source} reads the folder that holds {some(names)}.",
            fix=f"set data.path to {folder.parent}",
        )
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {some(missing)}, which source {source} reads.",
            fix=f"fetch the files: loractr data get {source} --out DIR",
        )
    for path in paths:
        refuse_empty(path)
    return paths


def refuse_empty(path: Path) -> None:
    """Raise DataError when the file at `path` has no bytes or cannot be opened."""
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.",
            fix="check that it is a file and that you may read it.",
        ) from error
    if empty:
        raise DataError(f"{path} is empty.", fix="fetch or write the file again.")


def refuse_repeats(frame: pl.DataFrame, key: str, path: Path) -> None:
    """Raise DataError when `key` is not unique: a join on it would multiply rows."""
    repeated = frame.filter(pl.col(key).is_duplicated())[key].unique(maintain_order=True)
    if len(repeated):
        raise DataError(
            f"{path} lists {key} {some(repeated.to_list())} more than once.",
            fix="remove the repeated lines, or fetch the file again.",
        )
