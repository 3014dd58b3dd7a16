import errno
from pathlib import Path

import polars as pl
import pytest

from loractr.cli.table_file import check_target, write
from loractr.errors import UsageError


@pytest.fixture
def table():
    return pl.DataFrame({"id": ["0017", "2"], "tags": [[1, 2], []], "probability": [0.25, 0.5]})


def test_a_table_reads_back_and_nothing_else_stays(table, tmp_path):
    flat = table.drop("tags")
    write(table, tmp_path / "a.parquet")
    write(flat, tmp_path / "b.CSV")
    assert pl.read_parquet(tmp_path / "a.parquet").equals(table)
    assert pl.read_csv(tmp_path / "b.CSV", schema=flat.schema).equals(flat)
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "b.CSV"}


def test_an_older_file_is_replaced(table, tmp_path):
    write(table.head(1), tmp_path / "a.parquet")
    write(table, tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").height == 2


def test_csv_refuses_lists_and_leaves_the_older_file(table, tmp_path):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(UsageError, match="CSV cannot hold the lists of 'tags'"):
        write(table, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_a_full_disk_is_told_as_such_and_leaves_nothing(table, tmp_path, monkeypatch, name):
    full = Path.open

    def onto_a_full_disk(path, *arguments, **options):
        return full(Path("/dev/full") if ".partial-" in path.name else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", onto_a_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write(table.drop("tags"), tmp_path / name)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_target_is_judged_before_any_work(tmp_path):
    data = tmp_path / "data.parquet"
    data.touch()
    with pytest.raises(UsageError, match=r"ends in none of '\.parquet', '\.csv'"):
        check_target(tmp_path / "out.xlsx", data)
    with pytest.raises(UsageError, match="is the data itself"):
        check_target(tmp_path / "." / "data.parquet", data)
    with pytest.raises(UsageError, match="there is no folder"):
        check_target(tmp_path / "no" / "out.csv", data)
    check_target(tmp_path / "out.parquet", data)


def test_a_target_among_the_parts_of_the_data_is_refused(tmp_path):
    parts = tmp_path / "parts" / "dt=1"
    parts.mkdir(parents=True)
    for target in (parts / "new.csv", tmp_path / "parts" / "p1.csv"):
        with pytest.raises(UsageError, match="is the data itself"):
            check_target(target, tmp_path / "parts")
    check_target(tmp_path / "scores.csv", tmp_path / "parts")
