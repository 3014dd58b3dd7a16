"""MovieLens-1M: a million ratings of 3,706 movies by 6,040 users.

The official files, as unpacked from ml-1m.zip, latin-1, fields separated by "::":

    ratings.dat  user::movie::rating::timestamp
    users.dat    user::gender::age::occupation::zip       (age is a code: 1, 18, 25, 35, 45, 50, 56)
    movies.dat   movie::title::genres                     (genres separated by "|")

Source: Harper & Konstan, The MovieLens Datasets, TiiS 2015, doi:10.1145/2827872.
"""

import re
from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources.base import Table, needs_files, needs_path, refuse_repeats
from loractr.errors import DataError, MalformedLineError, some
from loractr.schema import Division, Field, Label

_RATINGS: dict[str, type] = {"user": int, "movie": int, "rating": int, "timestamp": int}
_USERS: dict[str, type] = {"user": int, "gender": str, "age": int, "occupation": int, "zip": str}
_MOVIES: dict[str, type] = {"movie": int, "title": str, "genres": str}

_FIELDS = (
    Field(name="user"),
    Field(name="movie"),
    Field(name="gender"),
    Field(name="age"),
    Field(name="occupation"),
    Field(name="zip"),
    Field(name="title"),
    Field(name="genres", kind="sequence"),
    Field(name="first_genre"),
    Field(name="timestamp", kind="numerical"),
)


def open_source(config: DataConfig) -> Table:
    """Ratings in the order of ratings.dat, each with its user's and its movie's columns."""
    folder = needs_path(config, "the folder of ratings.dat, users.dat and movies.dat")
    names = ["ratings.dat", "users.dat", "movies.dat"]
    ratings_path, users_path, movies_path = needs_files(folder, names, source=config.source)
    ratings = _read_ratings(ratings_path)
    users = _read_small(users_path, _USERS)
    movies = _read_small(movies_path, _MOVIES).with_columns(pl.col("genres").str.split("|"))
    for key, others, path in (("user", users, users_path), ("movie", movies, movies_path)):
        refuse_repeats(others, key, path)
        _refuse_unknown(ratings, others, key, path)
    frame = (
        ratings.lazy()
        .join(users.lazy(), on="user", how="left", maintain_order="left")
        .join(movies.lazy(), on="movie", how="left", maintain_order="left")
        .with_columns(first_genre=pl.col("genres").list.first())
    )
    return Table(
        frame=frame,
        fields={field.name: field for field in _FIELDS},
        default_fields=("user", "movie"),
        divisions=(Division(name="gender", column="gender"),),
        label=Label(column="rating", positive="> 3"),
        post_outcome={"rating": "the label is made of it"},
    )


def _read_ratings(path: Path) -> pl.DataFrame:
    """ratings.dat at the speed of Polars; what goes wrong is then looked for line by line.

    Polars has no separator of two characters, so ":" is used: every second column is empty.
    """
    between = [f"_{i}" for i in range(len(_RATINGS) - 1)]
    names = [name for pair in zip(_RATINGS, [*between, ""], strict=True) for name in pair][:-1]
    schema = {name: pl.String if name in between else pl.Int64 for name in names}
    try:
        frame = pl.read_csv(path, has_header=False, separator=":", quote_char=None, schema=schema)
        wrong = pl.any_horizontal(
            *(pl.col(name).is_null() for name in _RATINGS),
            *(pl.col(name).is_not_null() for name in between),
        )
        sound = not frame.select(wrong.any()).item()
    except pl.exceptions.PolarsError:
        sound = False
    if not sound:
        _read_small(path, _RATINGS)
        raise DataError(f"{path} cannot be read as {'::'.join(_RATINGS)}.")
    return frame.select(*_RATINGS)


def _read_small(path: Path, columns: dict[str, type]) -> pl.DataFrame:
    """A "::"-separated latin-1 file, line by line. Raises MalformedLineError."""
    rows = []
    with path.open(encoding="latin-1") as lines:
        for number, line in enumerate(lines, start=1):
            values = line.rstrip("\n").split("::")
            problem = _problem(values, columns)
            if problem:
                raise MalformedLineError(path, number, problem)
            rows.append(values)
    return pl.DataFrame(rows, schema=list(columns), orient="row").with_columns(
        pl.col(name).cast(pl.Int64) for name, kind in columns.items() if kind is int
    )


def _problem(values: list[str], columns: dict[str, type]) -> str | None:
    """What is wrong with a line, if anything."""
    if len(values) != len(columns):
        return f"expected {'::'.join(columns)}, found {len(values)} fields"
    for value, (name, kind) in zip(values, columns.items(), strict=True):
        if kind is int and not re.fullmatch(r"-?[0-9]{1,18}", value):
            return f"{name} must be a whole number, not {value[:40]!r}"
    return None


def _refuse_unknown(ratings: pl.DataFrame, known: pl.DataFrame, key: str, path: Path) -> None:
    unknown = ratings.join(known, on=key, how="anti", maintain_order="left")
    if len(unknown):
        names = unknown[key].unique(maintain_order=True).to_list()
        raise DataError(
            f"{len(unknown):,} ratings are of a {key} that {path} does not list: {some(names)}.",
            fix="use the ratings, users and movies files of one download.",
        )
