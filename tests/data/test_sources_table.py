"""Your own tables: nothing of a value is lost, and a bad file is named down to its line."""

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loractr.data.config import DataConfig
from loractr.data.sources import Table, delimited, open_source, table
from loractr.errors import ConfigError, DataError, MalformedLineError

FIELDS = ["user", {"name": "price", "kind": "numerical"}]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def opened(path: Path, **options: object) -> Table:
    return open_source(
        DataConfig.model_validate({"source": "table", "path": path, "fields": FIELDS, **options})
    )


def test_ids_of_a_csv_keep_every_digit(tmp_path):
    ids = ["007", "7", "9007199254740993", "9007199254740992", "1.0", "123456789012345678901234"]
    rows = "".join(f"{i},1.5,1\n" for i in ids)
    path = write(tmp_path / "log.csv", "user,price,label\n" + rows)
    assert opened(path).frame.collect()["user"].to_list() == ids


def test_numbers_labels_and_weights_of_a_csv_are_numbers(tmp_path):
    path = write(tmp_path / "log.csv", "user,price,label,w\n1,2,0,1\n2,,1,0.5\n3,1e3,1,\n")
    frame = opened(path, weight="w").frame.collect()
    assert frame.select("price", "label", "w").rows() == [
        (2.0, 0, 1.0),
        (None, 1, 0.5),
        (1000.0, 1, None),
    ]
    assert frame.schema["label"] == pl.Int64


def test_a_column_used_as_an_id_and_as_a_number_stays_text(tmp_path):
    path = write(tmp_path / "log.csv", "user,price,label\n1,2,0\n")
    fields = ["user", {"name": "cost", "column": "user", "kind": "numerical"}, {"name": "price"}]
    with_rule = {"cost": {"column": "price", "thresholds": [3]}}
    fields[0] = {"name": "user"}
    frame = opened(path, fields=fields, divisions=with_rule).frame.collect()
    assert frame.row(0) == ("1", "2", 0)


def test_columns_that_no_one_uses_stay_as_they_are_written(tmp_path):
    path = write(tmp_path / "log.csv", "user,price,label,note\n1,2,0,01.50\n")
    assert opened(path).frame.collect()["note"].to_list() == ["01.50"]


@pytest.mark.parametrize("at", ["03", "1.50", "2026-02-01T10:00:00Z"])
def test_times_stay_as_they_are_written(tmp_path, at):
    path = write(tmp_path / "log.csv", f"user,price,label,at\n1,2,0,{at}\n")
    split = {"kind": "temporal", "column": "at", "fractions": [0.6, 0.2, 0.2]}
    assert opened(path, split=split).frame.collect()["at"].to_list() == [at]


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        ("1,2,0\n2,3\n", 3, "expected 3 values ('user', 'price', 'label'), found 2"),
        ("1,2,0,9\n", 2, "found 4"),
        ("1,2,0\n\n2,x,1\n", 4, "price must be a number"),
        ("1,2,0\n2,cheap,1\n", 3, "price must be a number, not 'cheap'"),
        ("1,2,0\n2,3,yes\n", 3, "label must be a number, not 'yes'"),
        ('1,2,0\n"a\nb",2,0\n2,x,1\n', 5, "price must be a number, not 'x'"),
        ('1,2,0\n"open,2,0\n', 3, "quotes do not match"),
        ('1,2,0\nsay "hi,2,0\n', 3, "a value with quotes in it must be quoted"),
        ("1,x,0\n2,3\n", 2, "price must be a number"),
        ("1,2\n2,x,1\n", 2, "found 2"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_malformed_line_is_named(tmp_path, lines, line, problem, packed):
    text = "user,price,label\n" + lines
    path = tmp_path / ("log.csv.gz" if packed else "log.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(MalformedLineError) as error:
        opened(path)
    assert error.value.line == line
    assert problem in str(error.value)


def test_a_malformed_line_far_into_a_file_is_named(tmp_path):
    good = "1,2,0\n" * 25_000
    path = write(tmp_path / "log.csv", "user,price,label\n" + good + "1,x,0\n" + good)
    with pytest.raises(MalformedLineError, match="line 25002"):
        opened(path)


def test_a_line_may_be_longer_than_a_block(tmp_path):
    long = "x" * 20_000_000
    path = write(tmp_path / "log.csv", f"user,price,label\na,1,0\n{long},2,1\nb,3,0\n")
    assert opened(path).frame.collect()["user"].to_list() == ["a", long, "b"]
    write(path, f"user,price,label\na,1,0\n{long},2,1\nb,3\n")
    with pytest.raises(MalformedLineError, match="line 4"):
        opened(path)


def test_text_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,price,label\na,1,0\n\xe9,2,1\n")
    with pytest.raises(MalformedLineError, match="line 3: the text is not UTF-8"):
        opened(path)


def test_quotes_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes('\ufeffuser,price,label\r\n"a,""b""\n",1,0\r\nü,2,1\r\n'.encode())
    assert opened(path).frame.collect()["user"].to_list() == ['a,"b"\n', "ü"]


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=1))
def test_every_text_that_a_csv_can_hold_comes_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    frame = pl.DataFrame({"user": texts, "label": [1] * len(texts)})
    frame.write_csv(path, quote_style="always")
    assert delimited.scan(path, {}).collect()["user"].to_list() == texts


def test_tabs_separate_a_tsv(tmp_path):
    path = write(tmp_path / "log.tsv", "user\tprice\tlabel\na,b\t1\t0\n")
    assert opened(path).frame.collect().row(0) == ("a,b", 1, 0)


def test_the_types_of_a_parquet_file_are_kept(tmp_path):
    frame = pl.DataFrame(
        {"user": [2**60, 1], "price": [0.5, None], "label": [1, 0], "tags": [["a"], []]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    found = opened(tmp_path / "log.parquet")
    assert found.frame.collect().equals(frame)
    kinds = {name: field.kind for name, field in found.fields.items()}
    assert kinds == {
        "user": "categorical",
        "price": "numerical",
        "label": "categorical",
        "tags": "sequence",
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("where", ["", "part-*", "*"])
def test_parts_are_read_in_the_order_of_their_names(tmp_path, kind, where):
    folder = tmp_path / "log [1]" if not where else tmp_path / "log"
    folder.mkdir()
    for name, user in (("part-2", 3), ("part-10", 2), ("part-0", 1)):
        frame = pl.DataFrame({"user": [user], "price": [1.5], "label": [0]})
        getattr(frame, f"write_{kind}")(folder / f"{name}.{kind}")
    (folder / "_SUCCESS").touch()
    (folder / "notes.txt").write_text("not a part")
    users = opened(folder / where if where else folder).frame.collect()["user"]
    assert users.cast(pl.Int64).to_list() == [1, 2, 3]


def test_a_relative_pattern_is_read_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "log.csv", "user,price,label\n1,2,0\n")
    assert opened(Path("*.csv")).frame.collect().height == 1


def test_a_bad_line_of_the_second_part_names_that_part(tmp_path):
    write(tmp_path / "a.csv", "user,price,label\n1,2,0\n")
    write(tmp_path / "b.csv", "user,price,label\n1,2\n")
    with pytest.raises(MalformedLineError, match=r"b.csv, line 2"):
        opened(tmp_path)


def test_the_columns_of_parts_are_matched_by_name(tmp_path, caplog):
    write(tmp_path / "a.csv", "user,price,label\n1,2,0\n")
    write(tmp_path / "b.csv", "label,user,note\n1,3,new\n")
    with caplog.at_level("INFO", logger="loractr"):
        frame = opened(tmp_path).frame.collect()
    assert frame.columns == ["user", "price", "label", "note"]
    assert frame.rows() == [("1", 2, 0, None), ("3", None, 1, "new")]
    assert (
        "columns that some files lack, and that are missing there: 'price', 'note'" in caplog.text
    )


def test_parts_with_numbers_and_with_text_become_text(tmp_path):
    pl.DataFrame({"user": [1], "label": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user": ["x1"], "label": [1]}).write_parquet(tmp_path / "b.parquet")
    assert opened(tmp_path, fields=["user"]).frame.collect()["user"].to_list() == ["1", "x1"]


def test_parts_whose_types_have_nothing_in_common_are_refused(tmp_path):
    pl.DataFrame({"user": [1], "label": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user": [[1]], "label": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError) as error:
        opened(tmp_path, fields=["user"])
    for part in ("'user'", "Int64", "a.parquet", "List(Int64)", "b.parquet"):
        assert part in str(error.value)


def test_files_of_two_kinds_are_refused(tmp_path):
    write(tmp_path / "a.csv", "user,price,label\n1,2,0\n")
    pl.DataFrame({"user": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"several kinds: '.csv', '.parquet'"):
        opened(tmp_path)


CUT_SHORT = gzip.compress(b"user,price,label\n" + b"1,2,3\n" * 999, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("log.csv", b"", "is empty"),
        ("log.csv", b"user,price,label\n", "has a header but no rows"),
        ("log.csv", b"user,price,user\n1,2,3\n", "the header names 'user' twice"),
        ("log.csv", b",,\n1,2,3\n", "the header names no column"),
        ("log.csv.gz", b"\x1f\x8b no gzip at all", "cannot be read"),
        ("log.csv.gz", CUT_SHORT, "cannot be"),
        ("log.parquet", b"", "is empty"),
        ("log.parquet", b"PAR1 no more than that PAR1", "cannot be read as Parquet"),
        ("log.json", b'{"user": 1}', "holds no Parquet or CSV file: it is JSON"),
        ("log.xlsx", b"PK\x03\x04", "it is a zip archive, as Excel's"),
        ("log.dat", b"one word a line\n", "is there, but holds no Parquet or CSV file"),
        ("log.csv", b"u\0s\0e\0r\0", "full of NUL bytes"),
    ],
)
def test_an_unreadable_file_is_refused_by_name(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as error:
        opened(tmp_path / name)
    assert name in str(error.value)


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pl.DataFrame({"user": [], "label": []}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="has no rows"):
        opened(tmp_path / "log.parquet")


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        opened(tmp_path / "nowhere.csv")


def test_path_and_fields_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path is missing"):
        open_source(DataConfig(source="table", fields=("user",)))
    with pytest.raises(ConfigError, match=r"data\.fields is missing.*\n.*loractr init"):
        open_source(DataConfig(source="table", path=tmp_path))


def test_scan_reads_what_a_scorer_needs_without_a_label(tmp_path):
    path = write(tmp_path / "log.csv", "user,price\n01,2.5\n")
    assert table.scan(path, numbers={"price", "label"}).collect().rows() == [("01", 2.5)]
