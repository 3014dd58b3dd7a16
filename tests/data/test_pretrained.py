import logging

import numpy as np
import pandas as pd
import polars as pl
import pytest

from loractr.data.pretrained import load_pretrained
from loractr.data.vocabulary import ValueCounts, Vocabulary
from loractr.errors import DataError
from loractr.schema import Field

VECTORS = {7: [1.0, 2.0, 3.0], 8: [4.0, 5.0, 6.0], 9: [7.0, 8.0, 10.0]}
MEAN = [4.0, 5.0, 19 / 3]


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Ids 7, 8 and 9, seen three times, twice and once: indices 1, 2, 3."""
    counts = ValueCounts()
    counts.add(pl.Series("item", [7, 7, 7, 8, 8, 9]))
    return Vocabulary.fit(counts.table())


def field(path: object, size: int = 4) -> Field:
    return Field(name="item", pretrained=str(path), size=size)


def as_list(path):
    pl.DataFrame({"id": list(VECTORS), "vector": list(VECTORS.values())}).write_parquet(path)


def as_text(path):
    texts = [" ".join(map(str, vector)) for vector in VECTORS.values()]
    pl.DataFrame({"id": list(VECTORS), "vector": texts}).write_csv(path)


def as_columns(path):
    rows = [{"id": key, **{f"d{i}": x for i, x in enumerate(v)}} for key, v in VECTORS.items()]
    pl.DataFrame(rows).write_csv(path)


@pytest.mark.parametrize(
    ("write", "name"), [(as_list, "v.parquet"), (as_text, "v.csv"), (as_columns, "v.csv")]
)
def test_rows_follow_the_vocabulary_and_the_unknown_gets_the_mean(
    vocabulary, tmp_path, write, name
):
    write(tmp_path / name)
    matrix = load_pretrained(field(tmp_path / name), vocabulary)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, [MEAN, *VECTORS.values()], rtol=1e-6)


def test_an_id_without_vector_gets_the_mean_and_is_counted_in_the_log(vocabulary, tmp_path, caplog):
    pl.DataFrame({"id": [7, 9], "x": [1.0, 3.0], "y": [2.0, 6.0]}).write_csv(tmp_path / "v.csv")
    with caplog.at_level(logging.WARNING):
        matrix = load_pretrained(field(tmp_path / "v.csv"), vocabulary)
    assert matrix.tolist() == [[2, 4], [1, 2], [2, 4], [3, 6]]
    assert "1 of 3 ids" in caplog.text


def test_vectors_of_ids_that_are_not_in_the_data_are_not_needed(vocabulary, tmp_path):
    frame = pl.DataFrame({"id": [7, 8, 9, 99], "x": [1.0, 2.0, 3.0, 4.0], "y": [0.0] * 4})
    frame.write_csv(tmp_path / "v.csv")
    matrix = load_pretrained(field(tmp_path / "v.csv"), vocabulary)
    assert matrix[:, 0].tolist() == [2.5, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"id": [7, 7], "x": [1.0, 2.0]}), "id 7 has more than one vector"),
        (pl.DataFrame({"id": [1, 2], "x": [1.0, 2.0]}), "none of its 2 ids is a value of field"),
        (pl.DataFrame({"id": [7, 8], "x": [1.0, float("nan")]}), "row 1 has values that are no"),
        (pl.DataFrame({"id": [7, 8], "v": [[1.0], [1.0, 2.0]]}), "lengths from 1 to 2"),
        (pl.DataFrame({"id": [7, 8]}), "holds no vectors"),
        (pl.DataFrame({"id": [7], "x": [1.0]}).clear(), "holds no vectors"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(vocabulary, tmp_path, frame, message):
    frame.write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match=message):
        load_pretrained(field(tmp_path / "v.parquet"), vocabulary)


@pytest.mark.parametrize("name", ["absent.parquet", "absent.csv"])
def test_a_file_that_is_not_there_is_named(vocabulary, tmp_path, name):
    with pytest.raises(DataError, match=name):
        load_pretrained(field(tmp_path / name), vocabulary)


@pytest.mark.parametrize(
    "form", ["csv with index", "parquet with index", "id last", "semicolon", "text", "pq"]
)
def test_vectors_are_read_as_pandas_and_others_write_them(tmp_path, form):
    """Every vector is that of its id: hand-made, in an order of its own."""
    ids = np.random.default_rng(0).permutation(np.arange(1, 51))
    table = pd.DataFrame({"id": ids, "v0": ids / 100, "v1": -ids / 100})
    path = tmp_path / ("v.parquet" if form in ("parquet with index", "id last") else "v.csv")
    if form == "csv with index":
        table.to_csv(path)
    elif form == "parquet with index":
        table.sample(frac=1, random_state=1).to_parquet(path)
    elif form == "id last":
        table.rename(columns={"id": "item"}).set_index("item").to_parquet(path)
    elif form == "semicolon":
        table.to_csv(path, sep=";", index=False)
    elif form == "text":
        text = [f"[{a}, {b}]" for a, b in zip(table["v0"], table["v1"], strict=True)]
        pd.DataFrame({"id": ids, "v": text}).to_csv(path, index=False)
    else:
        path = tmp_path / "v.pq"
        table.to_parquet(path, index=False)
    values = Vocabulary(pl.Series([7, 3, 50]))
    field = Field(name="item", pretrained=str(path), size=4, id_type="integer")
    found = load_pretrained(field, values)
    np.testing.assert_allclose(found[1:], [[0.07, -0.07], [0.03, -0.03], [0.5, -0.5]], rtol=1e-6)
