"""Ready embeddings from a file → a matrix whose rows follow a field's vocabulary."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data.canonical import Reading
from loractr.data.vocabulary import Vocabulary
from loractr.errors import DataError
from loractr.schema import Field

log = logging.getLogger(__name__)


def load_pretrained(field: Field, vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The vectors of `field.pretrained`, (field.size, width), row i for index i of the vocabulary.

    The file is Parquet or CSV: the id in its first column, then either one list column, or one text
    column of numbers between spaces, or one column per dimension. Row 0 (unknown), and ids that the
    file does not have, get the mean of all vectors in the file.

    Raises:
        DataError: the file cannot be read, has an id twice, vectors of unequal length, or values
            that are not finite numbers; or none of the field's ids is in it.
    """
    assert field.pretrained is not None
    path = Path(field.pretrained)
    table = _read(path)
    vectors = _vectors(path, table)
    index = vocabulary.encode(table.to_series(0).alias("id"), reading=Reading(field.id_type))
    known = index > 0
    if not known.any():
        raise DataError(
            f"{path}: none of its {len(table)} ids is a value of field {field.name!r}.",
            fix="its first column must hold the same ids as the field's column.",
        )
    found, counts = np.unique(index[known], return_counts=True)
    if (counts > 1).any():
        twice = table.get_columns()[0].filter(pl.Series(index == found[counts > 1][0]))[0]
        raise DataError(f"{path}: id {twice!r} has more than one vector.")
    matrix = np.tile(vectors.mean(0, dtype=np.float64).astype(np.float32), (field.size, 1))
    matrix[index[known]] = vectors[known]
    without = field.size - 1 - len(found)
    if without:
        log.warning(
            "%d of %d ids of field %s have no vector in %s: they get the mean vector",
            without,
            field.size - 1,
            field.name,
            path,
        )
    return matrix


def _read(path: Path) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"pretrained vectors {path} cannot be read: {error}.",
            fix="give a Parquet or CSV file with the id first and the vector after it.",
        ) from error
    if len(table.columns) < 2 or table.is_empty():
        raise DataError(f"{path} holds no vectors: it has columns {table.columns}.")
    return table


def _read_csv(path: Path) -> pl.DataFrame:
    """The ids as text, so that 007 stays 007; the rest as it looks."""
    first = pl.scan_csv(path, infer_schema=False).collect_schema().names()[:1]
    return pl.read_csv(path, schema_overrides=dict.fromkeys(first, pl.String))


def _vectors(path: Path, table: pl.DataFrame) -> NDArray[np.float32]:
    columns = table.get_columns()[1:]
    if len(columns) > 1 or columns[0].dtype.is_numeric():
        vectors = pl.DataFrame(columns).cast(pl.Float32, strict=False).to_numpy()
    else:
        lists = columns[0]
        if lists.dtype == pl.String:
            lists = lists.str.strip_chars().str.split(" ").cast(pl.List(pl.Float32), strict=False)
        lengths = lists.list.len() if isinstance(lists.dtype, pl.List) else None
        if lengths is not None and lengths.n_unique() != 1:
            raise DataError(
                f"{path}: vectors have lengths from {lengths.min()!r} to {lengths.max()!r}."
            )
        vectors = np.stack(lists.to_list()).astype(np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise DataError(f"{path}: the vector of row {row} has values that are no finite numbers.")
    return np.ascontiguousarray(vectors, dtype=np.float32)
