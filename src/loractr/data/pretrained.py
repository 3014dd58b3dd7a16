"""Ready embeddings from a file → a matrix whose rows follow a field's vocabulary."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.selectors import by_name

from loractr.data.canonical import Reading
from loractr.data.lists import split
from loractr.data.sources.table import scan
from loractr.data.vocabulary import Vocabulary
from loractr.errors import DataError, some
from loractr.schema import Field

log = logging.getLogger(__name__)


def load_pretrained(field: Field, vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The vectors of `field.pretrained`, (field.size, width), row i for index i of the vocabulary.

    The file is Parquet or CSV, read as a table is: the id in the column of the field's name, else
    in the first one; then either one column of lists, also as text, or one column per dimension.
    Row 0 (unknown), and ids that the file does not have, get the mean of all vectors in the file.

    Raises:
        DataError: the file cannot be read, has an id twice, vectors of unequal length, or values
            that are not finite numbers; or none of the field's ids is in it.
    """
    assert field.pretrained is not None
    path = Path(field.pretrained)
    table = _read(path, field)
    vectors = _vectors(path, table)
    index = vocabulary.encode(table.to_series(0).alias("id"), reading=Reading(field.id_type))
    known = index > 0
    if not known.any():
        raise DataError(
            f"{path}: none of its {len(table)} ids is a value of field {field.name!r}.",
            fix="its first column, or one with the field's name, must hold the ids of the field.",
        )
    found, counts = np.unique(index[known], return_counts=True)
    if (counts > 1).any():
        twice = table.to_series(0).alias("id").filter(pl.Series(index == found[counts > 1][0]))[0]
        raise DataError(
            f"{path}: id {twice!r} has more than one vector.", fix="keep one vector for each id."
        )
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


def _read(path: Path, field: Field) -> pl.DataFrame:
    """The ids, in the first column, and what stands beside them."""
    try:
        table = scan(path, refuse_empty=False).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, str(error).splitlines()[0]) from error
    except DataError as error:
        raise _unreadable(path, error.problem) from error
    if len(table.columns) < 2 or table.is_empty():
        raise DataError(
            f"{path} holds no vectors: it has columns {some(table.columns)}.", fix=_EXPECTED
        )
    named = next((n for n in (field.source_column, field.name) if n in table.columns), None)
    first = table.columns[0] if named is None else named
    return table.select(by_name(first, *(name for name in table.columns if name != first)))


_EXPECTED = "give a Parquet or CSV file with the id first and the vector after it."


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"pretrained vectors {path} cannot be read: {reason[:300].rstrip('.')}.", fix=_EXPECTED
    )


def _vectors(path: Path, table: pl.DataFrame) -> NDArray[np.float32]:
    columns = [column.alias("vector") for column in table.get_columns()[1:]]
    if len(columns) > 1 or columns[0].dtype.is_numeric():
        names = [f"{place}" for place in range(len(columns))]
        numbers = [column.alias(name) for column, name in zip(columns, names, strict=True)]
        vectors = pl.DataFrame(numbers).cast(pl.Float32, strict=False).to_numpy()
    else:
        lists = _lists(columns[0])
        lengths = lists.list.len() if isinstance(lists.dtype, pl.List) else None
        if lengths is not None and lengths.n_unique() != 1:
            raise DataError(
                f"{path}: vectors have lengths from {lengths.min()!r} to {lengths.max()!r}.",
                fix="give all ids vectors of one length.",
            )
        vectors = np.stack(lists.to_list()).astype(np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise DataError(
            f"{path}: the vector of row {row} has values that are no finite numbers.",
            fix="correct that vector, or leave its id out.",
        )
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _lists(column: pl.Series) -> pl.Series:
    """Lists of numbers, also as text: `0.1 0.2`, `0.1,0.2`, `[0.1, 0.2]`."""
    if column.dtype != pl.String:
        return column
    between = "," if column.str.contains(",", literal=True).any() else " "
    return split(column, between).cast(pl.List(pl.Float32), strict=False)
