"""Which files make a table, what their paths say, and how their columns go together."""

from datetime import date, datetime
from decimal import Decimal
from itertools import permutations
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loractr.data.config import DataConfig
from loractr.data.fingerprint import fingerprint
from loractr.data.sources import table
from loractr.data.sources.files import find
from loractr.data.sources.kinds import decide_kinds
from loractr.data.sources.text_form import STANDARD, TextForm
from loractr.data.sources.union import Part, wider
from loractr.errors import DataError


def write(path: Path, text: str = "user,label\n1,0\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(path: Path) -> list[str]:
    return [found.name for found in find(path)]


def test_a_folder_is_read_through_its_key_value_folders_only(tmp_path):
    for name in ("b.csv", "a.tsv.gz", "dt=1/c.csv", "dt=1/shop=x/d.csv", "dt=2/sub/e.csv"):
        write(tmp_path / name)
    for hidden in ("_SUCCESS", ".a.csv.crc", "_temporary/x.csv", ".old/y.csv", "dt=1/_z.csv"):
        write(tmp_path / hidden)
    write(tmp_path / "README.txt")
    write(tmp_path / "sub" / "f.csv")
    assert names(tmp_path) == ["a.tsv.gz", "b.csv", "dt=1/c.csv", "dt=1/shop=x/d.csv"]
    assert names(tmp_path / "**" / "*.csv") == [
        *("b.csv", "dt=1/c.csv", "dt=1/shop=x/d.csv", "dt=2/sub/e.csv", "sub/f.csv"),
    ]


def test_text_files_are_read_where_there_is_nothing_else(tmp_path):
    write(tmp_path / "part-0.txt")
    assert names(tmp_path) == ["part-0.txt"]


def test_a_file_named_in_full_is_read_whatever_its_name(tmp_path):
    assert names(write(tmp_path / "_log")) == ["_log"]


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "log.csv")
    assert table.scan(Path("~/log.csv")).collect().height == 1
    assert names(Path("~/*.csv")) == ["log.csv"]


@pytest.mark.parametrize(
    ("there", "asked", "problem", "fix"),
    [
        ([], "logs/log.csv", "logs/log.csv does not exist", "name a Parquet or CSV file"),
        ([], "logs/*.csv", "matches no file", "a pattern that matches some"),
        ([], "", "holds no Parquet or CSV file", ".parquet, .pq, .csv"),
        (["a.xlsx", "b.json"], "", "only 'a.xlsx', 'b.json'", "named in full"),
        (["x/y/a.parquet"], "", "sub-folders, such as x/y/a.parquet", "/*/*/*.parquet"),
        (["dt=1/x/a.csv"], "", "such as dt=1/x/a.csv", "/*/*/*.csv"),
    ],
)
def test_where_there_is_nothing_to_read_the_message_says_what_is(
    tmp_path, there, asked, problem, fix
):
    for name in there:
        write(tmp_path / name)
    with pytest.raises(DataError) as error:
        find(tmp_path / asked)
    assert problem in error.value.problem
    assert fix in str(error.value.fix)


def test_folders_of_a_path_are_text_unless_asked_for_otherwise(tmp_path):
    for hour, shop in (("07", "a%2Fb"), ("__HIVE_DEFAULT_PARTITION__", "c")):
        write(tmp_path / f"hour={hour}" / f"shop={shop}" / "part.csv")
    text = table.scan(tmp_path).collect()
    assert text.rows() == [("1", "0", "07", "a/b"), ("1", "0", None, "c")]
    numbers = table.scan(tmp_path, numbers=["hour"]).collect()
    assert numbers["hour"].to_list() == [7, None]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_date_in_a_path_is_text(tmp_path, kind):
    for day in (1, 2):
        folder = tmp_path / f"dt=2026-03-0{day}"
        folder.mkdir()
        getattr(pl.DataFrame({"user": [day]}), f"write_{kind}")(folder / f"a.{kind}")
    assert table.scan(tmp_path).collect()["dt"].to_list() == ["2026-03-01", "2026-03-02"]


def test_a_column_of_the_file_wins_over_its_path(tmp_path):
    pl.DataFrame({"dt": ["from the file"]}).write_parquet(tmp_path / "a.parquet")
    folder = tmp_path / "dt=path"
    folder.mkdir()
    pl.DataFrame({"dt": ["file, too"]}).write_parquet(folder / "b.parquet")
    assert table.scan(tmp_path).collect()["dt"].to_list() == ["from the file", "file, too"]


def test_a_folder_above_the_first_wildcard_says_nothing(tmp_path):
    write(tmp_path / "dt=1" / "hour=2" / "a.csv")
    assert table.scan(tmp_path / "dt=1" / "*" / "*.csv").collect().columns[2:] == ["hour"]


def test_a_path_that_is_no_number_is_named(tmp_path):
    write(tmp_path / "hour=noon" / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: hour must be a number, not 'noon'"):
        table.scan(tmp_path, numbers=["hour"])


def test_the_fingerprint_tells_files_of_one_name_apart(tmp_path):
    for day in (1, 2):
        write(tmp_path / f"dt={day}" / "part-0.csv", f"user\n{day}\n")
    config = DataConfig(source="table", path=tmp_path)
    before = fingerprint(config)
    assert [file["file"] for file in before] == ["dt=1/part-0.csv", "dt=2/part-0.csv"]
    (tmp_path / "dt=2").rename(tmp_path / "dt=3")
    assert fingerprint(config) != before


def test_the_index_of_pandas_is_left_out_of_a_parquet_file(tmp_path):
    pl.DataFrame({"user": [1], "__index_level_0__": [5]}).write_parquet(tmp_path / "a.parquet")
    assert table.scan(tmp_path / "a.parquet").collect().columns == ["user"]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ([1], [2.5], [1.0, 2.5]),
        ([1], ["x"], ["1", "x"]),
        ([True], [0], [1, 0]),
        ([None], [[1]], [None, [1]]),
        ([[1]], [["x"]], [["1"], ["x"]]),
        ([Decimal("1.50")], [2], [Decimal("1.50"), Decimal("2.00")]),
        (
            [date(2026, 3, 1)],
            [datetime(2026, 3, 1, 9)],
            [datetime(2026, 3, 1), datetime(2026, 3, 1, 9)],
        ),
        ([datetime(2026, 3, 1, 9)], ["soon"], ["2026-03-01 09:00:00", "soon"]),
        ([2**63], [-1], [2**63, -1]),
    ],
)
def test_types_are_widened_until_they_hold_all_values(tmp_path, one, other, both):
    for order in ([one, other], [other, one]):
        for name, values in zip("ab", order, strict=True):
            pl.DataFrame({"x": values}).write_parquet(tmp_path / f"{name}.parquet")
        found = table.scan(tmp_path).collect()["x"].to_list()
        assert found == (both if order[0] is one else both[::-1])


@pytest.mark.parametrize(
    ("types", "common"),
    [
        ([pl.Date(), pl.String(), pl.Int64()], pl.String()),
        ([pl.List(pl.Date()), pl.List(pl.String()), pl.List(pl.Int8())], pl.List(pl.String())),
        ([pl.Array(pl.Int8(), 2), pl.Array(pl.Int64(), 3), pl.Null()], pl.List(pl.Int64())),
        ([pl.Boolean(), pl.Decimal(9, 2), pl.Int64()], pl.Decimal(38, 2)),
        ([pl.Int64(), pl.UInt64(), pl.Int128()], pl.Int128()),
        ([pl.Int64(), pl.UInt64(), pl.Float32()], pl.Float64()),
        ([pl.Enum(["a"]), pl.Enum(["b"]), pl.Null()], pl.String()),
        ([pl.Date(), pl.Datetime("ms"), pl.Datetime("ns")], pl.Datetime("us")),
        ([pl.Date(), pl.Int64(), pl.Null()], None),
        ([pl.Binary(), pl.String(), pl.Int64()], None),
        ([pl.Duration(), pl.String(), pl.Int64()], None),
        ([pl.List(pl.Int64()), pl.Int64(), pl.String()], None),
        ([pl.Null()], pl.Null()),
    ],
)
def test_the_order_of_parts_does_not_decide_the_type(types, common):
    for order in permutations(types):
        assert wider(*order) == common


@pytest.mark.parametrize("order", [*permutations(["date", "text", "whole"])])
def test_parts_of_any_order_are_one_table(tmp_path, order):
    values = {"date": date(2026, 3, 1), "text": "soon", "whole": 7}
    for place, sort in enumerate(order):
        pl.DataFrame({"x": [values[sort]]}).write_parquet(tmp_path / f"{place}.parquet")
    texts = {"date": "2026-03-01", "text": "soon", "whole": "7"}
    found = table.scan(tmp_path).collect()["x"].to_list()
    assert found == [texts[sort] for sort in order]


def test_two_parts_that_do_not_go_together_are_named(tmp_path):
    for name, value in {"a": None, "b": 1, "c": True, "d": date(2026, 3, 1)}.items():
        pl.DataFrame({"x": [value]}).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"Int64 in \S*b\.parquet and Date in \S*d\.parquet"):
        table.scan(tmp_path)


NUMBERS = [
    *(pl.Boolean(), pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64(), pl.UInt8(), pl.UInt32()),
    *(pl.UInt64(), pl.Int128(), pl.Float32(), pl.Float64()),
]


@settings(max_examples=60)
@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
def test_a_wider_type_loses_no_number(one, other, data):
    common = wider(one, other)
    assert common is not None
    for dtype in (one, other):
        top = 1 if dtype == pl.Boolean else 2**24 if dtype.is_float() else (2**7 - 1)
        value = data.draw(st.integers(0, top))
        if dtype.is_integer() and not common.is_float():
            value = pl.select(dtype.max() if dtype != pl.Int128 else pl.lit(2**100)).item()
        series = pl.Series([value]).cast(dtype)
        assert series.cast(common).to_list() == [value]


def test_a_column_that_no_one_needs_may_differ_as_it_likes(tmp_path, caplog):
    pl.DataFrame({"user": [1], "extra": [{"a": 1}]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user": [2], "extra": [1]}).write_parquet(tmp_path / "b.parquet")
    frame = table.scan(tmp_path, needed=["user"]).collect()
    assert frame.to_dict(as_series=False) == {"user": [1, 2]}
    assert "it is left out" in caplog.text
    with pytest.raises(DataError, match="no type holds both"):
        table.scan(tmp_path, needed=["user", "extra"])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "categorical"),
        ([1.0, 2.0, None], "categorical"),
        ([1.0, 2.5, float("nan")], "numerical"),
        ([Decimal("1.50")], "numerical"),
        ([Decimal("1.00")], "categorical"),
        (["1.5", "2", "NA", ""], "numerical"),
        (["1.0", "2"], "categorical"),
        (["1.5", "x"], "categorical"),
        (["1.5", "inf"], "categorical"),
        (["1.5", "1e999"], "categorical"),
        (["1.5", "nan"], "categorical"),
        (["007", "2.5"], "categorical"),
        (["-07.5", "2.5"], "categorical"),
        (["0.75", "0", "-0.5", " .5 ", "1e-3"], "numerical"),
        (["True", "0.5"], "categorical"),
        (["false", "0.5"], "categorical"),
        (["+4930123456", "2.5"], "categorical"),
        (["+2.5", "1"], "numerical"),
        (["[0.1, 0.2]", "[]"], "sequence"),
        (["", "NA"], "categorical"),
        (["[1, 2]", "[]"], "sequence"),
        (["[1, 2]", "1"], "categorical"),
        ([[1.5]], "sequence"),
        ([True], "categorical"),
        ([date(2026, 3, 1)], "categorical"),
        ([None], "categorical"),
    ],
)
def test_the_kind_of_a_field_is_what_its_values_are(values, kind):
    frame = pl.DataFrame({"^x$": values})
    part = Part(Path("log"), frame.lazy(), dict(frame.schema))
    assert decide_kinds(part, ["^x$"], TextForm(missing=("NA",))) == {"^x$": kind}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1,5", "2"], "numerical"),
        (["1,0", "2"], "categorical"),
        (["1.5", "2"], "categorical"),
        (["1.234,5", "2"], "categorical"),
        (["007,5", "2"], "categorical"),
        (["[1, 2]"], "sequence"),
        (["[1.5, 2.5]"], "sequence"),
    ],
)
def test_the_kind_of_a_field_follows_the_decimal_mark(values, kind):
    frame = pl.DataFrame({"x": values})
    part = Part(Path("log"), frame.lazy(), dict(frame.schema))
    assert decide_kinds(part, ["x"], TextForm(decimal=",")) == {"x": kind}


@pytest.mark.parametrize(
    ("beginning", "separator"),
    [
        ("a,b\n1,2\n", ","),
        ("a;b;c\n1,5;2;3\n", ";"),
        ("a\tb\n1,2\t3\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ("a,b\n1|2,3\n", ","),
        ("a,b;c\n1,2;3\n", ","),
        ('"x;y",b\n1,"a;b"\n', ","),
        ('a;"b\nc, d"\n1;2\n', ";"),
        ("only\n1\n", ","),
        ("", ","),
    ],
)
def test_the_separator_is_the_one_that_fits_the_first_lines(beginning, separator):
    assert STANDARD.find_separator(beginning) == separator


def test_names_that_look_like_patterns_are_names(tmp_path):
    odd = "^p.*$"
    pl.DataFrame({odd: ["1.5"], "price": ["x"], "*": ["7"]}).write_csv(tmp_path / "a.csv")
    pl.DataFrame({"price": ["y"], odd: ["2"]}).write_csv(tmp_path / "b.csv")
    frame = table.scan(tmp_path, numbers=[odd], labels=["*"]).collect()
    assert frame.rows() == [(1.5, "x", 7), (2.0, "y", None)]


def test_a_wide_table_is_read_by_name(tmp_path):
    columns = [f"column_{place}" for place in range(20_000)]
    text = "\n".join([",".join(columns), ",".join("1" for _ in columns)])
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, text)
    frame = table.scan(tmp_path, numbers=columns[-3:])
    last = frame.select(columns[-4:]).collect()
    assert last.rows() == [("1", 1, 1, 1)] * 2
