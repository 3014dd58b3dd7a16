"""Taobao themes in the raw format: what is dropped, what the first N themes are, embeddings."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from loractr.data.config import DataConfig
from loractr.data.prepare import prepare
from loractr.data.pretrained import load_pretrained
from loractr.data.sources import SOURCES, open_source
from loractr.errors import ConfigError, DataError, MalformedLineError

LOG = """\
user_id,item_id,theme_id,reach_time
1,10,500,2018-11-20 23:27:15
1,10,500,2018-11-21 00:00:00
9,10,500,2018-11-21 00:00:01
1,99,700,2018-11-21 00:00:02
2,11,300,2018-11-21 00:00:03
1,10,300,2018-11-21 00:00:04
2,12,500,2018-11-21 00:00:05
1,11,100,2018-11-21 00:00:06
"""
"""User 9 and item 99 have no embedding; (1, 10) comes twice in theme 500; theme 700 falls away."""


def embeddings(ids: list[int], name: str) -> str:
    rng = np.random.default_rng(0)
    lines = [f"{i},{' '.join(f'{x:.6f}' for x in rng.normal(size=128))}\n" for i in ids]
    return f"{name},emb\n" + "".join(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "theme_click_log.csv").write_text(LOG)
    (tmp_path / "user_embedding.csv").write_text(embeddings([2, 1, 3], "user_id"))
    (tmp_path / "item_embedding.csv").write_text(embeddings([10, 11, 12, 13], "item_id"))
    return tmp_path


def config(path: Path, **options: object) -> DataConfig:
    base = {"source": "taobao-theme", "path": path, "negatives": {}}
    return DataConfig.model_validate(base | options)


def clicks(path: Path, **options: object) -> list[tuple[int, int, int]]:
    chosen = config(path, **options)
    frame = SOURCES["taobao-theme"](chosen).frame.collect()
    assert set(frame["label"]) == {1}
    return frame.select("user_id", "item_id", "theme_id").rows()


def test_rows_without_both_embeddings_and_repeats_within_a_theme_are_dropped(folder):
    assert clicks(folder) == [
        (1, 10, 500),
        (2, 11, 300),
        (1, 10, 300),
        (2, 12, 500),
        (1, 11, 100),
    ]


@pytest.mark.parametrize(
    ("domains", "themes"),
    [
        (["1"], {500}),
        (["2"], {500, 300}),
        (["3"], {500, 300, 100}),
        (["30"], {500, 300, 100}),
        (["100", "300"], {100, 300}),
        (None, {500, 300, 100}),
    ],
)
def test_the_first_themes_are_counted_as_the_log_first_shows_them(folder, domains, themes):
    assert {theme for *_, theme in clicks(folder, domains=domains)} == themes


def test_a_theme_that_is_not_there_is_named(folder):
    with pytest.raises(DataError, match="no click of the themes '700' has both embeddings"):
        clicks(folder, domains=["500", "700"])


def test_fields_bring_their_embeddings_frozen(folder):
    fields = open_source(config(folder)).fields
    assert fields["user_id"].pretrained == str(folder / "user_embedding.csv")
    assert not fields["item_id"].trainable


def test_the_embedding_files_are_read_as_they_are(folder, tmp_path):
    chosen = config(folder, split={"kind": "column", "column": "split"})
    log = folder / "theme_click_log.csv"
    rng = np.random.default_rng(1)
    rows = [f"{rng.integers(1, 4)},{rng.integers(10, 14)},5,2018-11-20 00:00:00" for _ in range(60)]
    log.write_text("\n".join([LOG.splitlines()[0], *rows]) + "\n")
    prepared = prepare(chosen, tmp_path / "prepared")
    field = prepared.schema.fields[0]
    vocabulary = prepared.encoders.vocabularies["user_id"]
    matrix = load_pretrained(field, vocabulary)
    assert matrix.shape == (field.size, 128)
    written = pl.read_csv(folder / "user_embedding.csv")
    for user, text in written.iter_rows():
        (index,) = vocabulary.encode(pl.Series([user]))
        np.testing.assert_allclose(matrix[index], [float(x) for x in text.split()], rtol=1e-6)


def test_without_negatives_it_is_refused(folder):
    with pytest.raises(ConfigError, match=r"data\.negatives is missing"):
        open_source(config(folder, negatives=None))


def test_a_malformed_line_is_named(folder):
    (folder / "theme_click_log.csv").write_text(LOG.replace("2,11,300", "2,,x"))
    with pytest.raises(MalformedLineError, match="line 6: theme_id must be a whole number"):
        open_source(config(folder))


def test_files_of_two_downloads_are_refused(folder):
    (folder / "user_embedding.csv").write_text(embeddings([77], "user_id"))
    with pytest.raises(DataError, match="no click has both embeddings"):
        open_source(config(folder))


def test_a_missing_file_is_named(folder):
    (folder / "item_embedding.csv").unlink()
    with pytest.raises(DataError, match=r"lacks 'item_embedding\.csv'"):
        open_source(config(folder))
