"""The files that people really have: read as they are, or refused in two short lines."""

import bz2
import gzip
import io
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from cases.shop_log import config, kinds, loractr, proposal, shop_log, write_config
from loractr.config import parse_config
from loractr.data.prepare import prepare
from loractr.data.store import open_prepared

LOG = shop_log()
CSV = LOG.write_csv()


def prepared(path: Path, tmp_path: Path, **data: object) -> tuple[int, int, str]:
    """Rows of all splits, ids of the user's vocabulary, and what was said meanwhile."""
    file = write_config(config(path, **data), tmp_path / "config.yaml")
    result = loractr("prepare", file, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = open_prepared(tmp_path / "out")
    return (
        sum(len(rows) for rows in (found.train, found.validation, found.test)),
        found.encoders.vocabularies["user_id"].values.len(),
        result.stderr,
    )


def refused(path: Path, tmp_path: Path, **data: object) -> str:
    """The message; it is short, and no traceback."""
    file = write_config(config(path, **data), tmp_path / "config.yaml")
    result = loractr("prepare", file, "--out", tmp_path / "out")
    assert result.exit_code in (1, 2), result.output
    message = result.stderr.strip()
    assert len(message) < 500 + 2 * len(str(path))
    assert "Fix: " in message or result.exit_code == 2
    return message


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> tuple[int, int]:
    """Rows, and users of the training rows, of the log as a plain CSV file."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "log.csv").write_text(CSV)
    rows, users, _ = prepared(folder / "log.csv", folder)
    assert rows == 600
    return rows, users


def parquet() -> bytes:
    """The log as a Parquet file."""
    file = io.BytesIO()
    LOG.write_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", CSV.replace(",", ";").encode()),  # csv-semicolon
        ("log.txt", CSV.replace(",", "|").encode()),
        ("log.csv", CSV.replace(",", "\t").encode()),
        ("log.tsv", CSV.encode()),
        ("log.csv", CSV.replace("\n", "\r").encode()),  # error-316-kB
        ("log.csv", CSV.replace("\n", "\r\n\r\n").encode()),
        ("log.csv", gzip.compress(CSV.encode())),  # traceback-gz-named-csv
        ("log.csv", bz2.compress(CSV.encode())),
        ("log.csv.bz2", bz2.compress(CSV.replace("\n", "\r\n").encode())),
        ("log.csv.gz", CSV.encode()),
        ("log.csv", parquet()),  # traceback-parquet-named-csv
        ("log.parquet.gz", gzip.compress(parquet())),
        ("log.pq", parquet()),
        ("log", parquet()),
        ("log.dump", CSV.encode()),
        ("log.csv", CSV.encode("utf-16")),  # traceback-utf16
        ("log.csv", CSV.encode("utf-32")),
        ("log.csv", gzip.compress(CSV.encode("utf-16"))),
        ("log.csv", CSV.encode("utf-8-sig")),
        ("log.csv", ("sep=;\n" + CSV.replace(",", ";")).encode()),
        ("log.csv", ('"sep=^"\n\n' + CSV.replace(",", "^")).encode()),
        ("log.csv", ("SEP=\t\n" + CSV.replace(",", "\t")).replace("\n", "\r\n").encode("utf-16")),
        ("log.csv", gzip.compress(("sep=,\n" + CSV).replace("\n", "\r").encode())),
        ("log.csv", ("  \n\n" + CSV.replace(",", ";")).encode()),
        ("log.csv", ("," + CSV.replace("\n", "\n0,")).encode()[:-2]),  # csv-index-column
    ],
)
def test_a_file_is_what_it_holds(tmp_path, usual, name, content):
    (tmp_path / name).write_bytes(content)
    assert prepared(tmp_path / name, tmp_path)[:2] == usual


@pytest.mark.parametrize("missing", ["NA", "NULL", '""', "\\N", "NaN", "—", ""])
def test_a_price_may_be_missing_in_many_ways(tmp_path, usual, missing):  # null-token-*, quote-all
    lines = CSV.splitlines()
    cells = lines[7].split(",")
    lines[7] = ",".join([*cells[:3], missing, *cells[4:]])
    (tmp_path / "log.csv").write_text("\n".join(lines))
    fields = ["user_id", {"name": "price", "kind": "numerical", "missing": "mean"}]
    assert prepared(tmp_path / "log.csv", tmp_path, fields=fields)[:2] == usual


def test_a_german_table_is_read(tmp_path, usual):
    german = LOG.with_columns(price=pl.format('"{}"', pl.col("price").cast(pl.String)))
    german = german.with_columns(pl.col("price").str.replace(".", ",", literal=True))
    text = german.write_csv(separator=";", quote_style="never").replace("shop", "Größe", 1)
    (tmp_path / "log.csv").write_bytes(text.encode("latin-1"))
    divisions = {"shop": {"column": "Größe"}}
    said = {"encoding": "latin-1", "decimal": ",", "divisions": divisions}
    assert prepared(tmp_path / "log.csv", tmp_path, **said)[:2] == usual
    message = refused(tmp_path / "log.csv", tmp_path, **said | {"decimal": "."})
    assert "line 2: price must be a number" in message
    assert 'decimal: ","' in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CSV.replace("price", "größe").encode("latin-1"), ["line 1", "UTF-8", "encoding:"]),
        (CSV.replace("price", "价格").encode("gbk"), ["line 1", "UTF-8", "encoding:"]),
        (CSV.encode() + b"\xff\xfe", ["line 602"]),
        (CSV.replace(",a,", ",ä,").encode("latin-1"), ["UTF-8", "encoding:"]),
        (gzip.compress(CSV.encode())[:-30], ["cannot be read"]),
        (parquet()[:-30], ["cannot be read as Parquet"]),
        (CSV.replace("price", "shop", 1).encode(), ["line 1", "'shop' twice", "rename"]),
        (CSV.encode("utf-16-le"), ["NUL", "utf-16-le"]),
        (b"PK\x03\x04" + CSV.encode(), ["zip"]),
        (CSV.splitlines()[0].encode(), ["no rows"]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(tmp_path, content, words):
    (tmp_path / "log.csv").write_bytes(content)
    message = refused(tmp_path / "log.csv", tmp_path)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"encoding": "latin1000"}, "data.encoding: no encoding 'latin1000'"),
        ({"encoding": "hex"}, "data.encoding: no encoding 'hex'"),
        ({"encoding": "utf-16"}, "the text is not utf-16"),
        ({"separator": "§"}, "data.separator: expected one ASCII character, not '§'"),
        ({"separator": "'", "quote": "'"}, "are both"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, said, problem):
    (tmp_path / "log.csv").write_text(CSV + "x")
    assert problem in refused(tmp_path / "log.csv", tmp_path, **said)


HALVES = LOG.head(300), LOG.tail(300)
THIRDS = [LOG.slice(start, 200) for start in (0, 200, 400)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (HALVES[0], HALVES[1].select(reversed(LOG.columns))),  # parts-column-order
        (HALVES[0], HALVES[1].with_columns(coupon=pl.lit("x"))),  # parts-extra-unused-column
        (HALVES[0].cast({"user_id": pl.Int32}), HALVES[1]),  # parts-int32-int64
        (HALVES[0].with_columns(note=None), HALVES[1].with_columns(note=pl.lit("x"))),
        (HALVES[0].cast({"click": pl.Boolean}), HALVES[1].cast({"click": pl.Float32})),
        (HALVES[0].cast({"price": pl.Float32}), HALVES[1].cast({"price": pl.Decimal(9, 2)})),
        (HALVES[0].cast({"ts": pl.Datetime("ns")}), HALVES[1].cast({"ts": pl.Datetime("ms")})),
        (HALVES[0].cast({"shop": pl.Categorical}), HALVES[1]),
        (HALVES[0].cast({"user_id": pl.UInt64}), HALVES[1].cast({"user_id": pl.Int8})),
        (HALVES[0].with_columns(x=pl.struct("shop")), HALVES[1].with_columns(x=1)),
    ],
)
def test_parts_whose_types_differ_are_one_table(tmp_path, usual, one, other):
    (tmp_path / "logs").mkdir()
    one.write_parquet(tmp_path / "logs" / "a.parquet")
    other.write_parquet(tmp_path / "logs" / "b.parquet")
    split = {"kind": "temporal", "column": "ts", "fractions": [0.8, 0.1, 0.1]}
    assert prepared(tmp_path / "logs", tmp_path, split=split)[0] == usual[0]


def test_parts_of_null_type_only_do_not_matter(tmp_path, usual):  # parts-null-type
    (tmp_path / "logs").mkdir()
    none = HALVES[0].with_columns(price=pl.lit(None))
    none.write_parquet(tmp_path / "logs" / "a.parquet")
    HALVES[1].write_parquet(tmp_path / "logs" / "b.parquet")
    fields = ["user_id", {"name": "price", "kind": "numerical", "missing": "mean"}]
    assert prepared(tmp_path / "logs", tmp_path, fields=fields)[0] == usual[0]


@pytest.mark.parametrize("empty", [b"", CSV.splitlines()[0].encode() + b"\n"])
def test_a_part_that_is_empty_is_left_out(tmp_path, usual, empty):  # parts-csv-empty-one
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_bytes(empty)
    (tmp_path / "logs" / "b.csv").write_text(CSV)
    *found, said = prepared(tmp_path / "logs", tmp_path)
    assert tuple(found) == usual
    assert "a.csv" in said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.csv", "a.csv.gz"),
        ("a.csv.ZST", "a.csv.gz"),
        ("dt=1/a.b.csv", "dt=1/a.b.tsv"),
        ("a.parquet", "a.pq"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "**/*"])
def test_a_file_beside_its_packed_copy_is_refused(tmp_path, one, other, pattern):
    for name in (one, other):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).write_text(CSV)
    message = refused(tmp_path / "logs" / pattern, tmp_path)
    assert f"holds the same rows twice, by their names: {one!r}, {other!r}" in message


def test_files_whose_names_differ_are_not_the_same(tmp_path, usual):
    for name, rows in zip(("dt=1/a.0.csv", "dt=1/a.1.csv.gz", "dt=2/a.1.csv"), THIRDS, strict=True):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).write_text(rows.write_csv())
    (tmp_path / "logs" / "dt=1" / "a.0.csv.txt").write_text("Written by hand.")
    assert prepared(tmp_path / "logs", tmp_path)[:1] == usual[:1]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_may_be_long(tmp_path, usual, place):
    """In the header, the first row, or the second."""
    lines = [line + ",x" for line in CSV.splitlines()]
    lines[place] = lines[place][:-1] + "x" * 200_000
    (tmp_path / "log.csv").write_text("\n".join(lines))
    assert prepared(tmp_path / "log.csv", tmp_path)[:2] == usual
    lines[300] += ",more"
    (tmp_path / "log.csv").write_text("\n".join(lines))
    assert "line 301: expected 7 values" in refused(tmp_path / "log.csv", tmp_path)


def test_parts_of_csv_may_be_written_in_different_ways(tmp_path, usual):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_text(HALVES[0].write_csv(separator=";"))
    (tmp_path / "logs" / "b.csv.gz").write_bytes(gzip.compress(HALVES[1].write_csv().encode()))
    assert prepared(tmp_path / "logs", tmp_path)[:2] == usual


def test_whole_numbers_of_one_part_and_floats_of_the_next_are_read(tmp_path, usual):
    """csv-parts-int-then-float: pandas writes 1.0 where a gap made the column float."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_text(HALVES[0].write_csv())
    (tmp_path / "logs" / "b.csv").write_text(HALVES[1].cast({"user_id": pl.Float64}).write_csv())
    assert prepared(tmp_path / "logs", tmp_path)[0] == usual[0]


@pytest.mark.parametrize("pattern", ["", "*/*", "**/*.parquet", "dt=2026-03-*/*"])
def test_folders_by_date_are_a_column(tmp_path, usual, pattern):  # hive-by-date
    by_date = LOG.with_columns(dt=pl.col("ts").dt.strftime("%Y-%m-%d"))
    for (date,), rows in by_date.partition_by("dt", as_dict=True).items():
        folder = tmp_path / "logs" / f"dt={date}"
        folder.mkdir(parents=True)
        rows.drop("ts", "dt").write_parquet(folder / "part-0.snappy.parquet")
        (folder / ".part-0.crc").write_bytes(b"1234")
    (tmp_path / "logs" / "_SUCCESS").touch()
    split = {
        "kind": "temporal",
        "column": "dt",
        "validation_from": "2026-03-12",
        "test_from": "2026-03-13",
    }
    path = tmp_path / "logs" / pattern
    fields = ["user_id", "dt"]
    assert prepared(path, tmp_path, split=split, fields=fields)[0] == usual[0]
    vocabulary = open_prepared(tmp_path / "out").encoders.vocabularies["dt"].values
    assert vocabulary.len() == LOG["ts"].dt.date().n_unique() - 3  # the last days do not train


def test_a_bare_field_means_the_same_in_both_formats(tmp_path):  # bare-field-csv-vs-parquet
    LOG.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "log.csv").write_text(CSV)
    fields = ["user_id", "item_id", "price"]
    sizes = []
    for name in ("log.parquet", "log.csv"):
        *_, said = prepared(tmp_path / name, tmp_path, fields=fields)
        assert (
            "fields read as numbers, since they have fractions and say no `kind`: 'price'" in said
        )
        schema = open_prepared(tmp_path / "out").schema
        sizes.append([(field.kind, field.size) for field in schema.fields])
    assert sizes[0] == sizes[1]
    assert sizes[0][2] == ("numerical", 0)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("blank", ["", "  "])
@pytest.mark.parametrize("place", [0, 1, 5, 601])
def test_a_blank_line_changes_no_kind(tmp_path, usual, end, blank, place):
    lines = CSV.splitlines()
    lines[place:place] = [blank, blank]
    (tmp_path / "log.csv").write_bytes((end.join(lines) + end).encode())
    fields = ["user_id", "price"]
    assert prepared(tmp_path / "log.csv", tmp_path, fields=fields)[:2] == usual
    assert [field.kind for field in open_prepared(tmp_path / "out").schema.fields[:2]] == [
        "categorical",
        "numerical",
    ]


@pytest.mark.parametrize("above", [["sep=,"], ["", "  "], ["sep=,", ""]])
def test_lines_above_the_header_are_counted(tmp_path, above):
    lines = [*above, *CSV.splitlines()]
    lines[len(above) + 5] += ",more"
    (tmp_path / "log.csv").write_text("\n".join(lines))
    assert f"line {len(above) + 6}: " in refused(tmp_path / "log.csv", tmp_path)
    (tmp_path / "log.csv").write_text("\n".join([*above, CSV.replace("price", "shop", 1)]))
    assert f"line {len(above) + 1}: the header names" in refused(tmp_path / "log.csv", tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_field_is_of_the_kind_of_its_own_column(tmp_path, kind):
    log = LOG.select("click", "shop", "user_id", a="shop", b="price")
    getattr(log, f"write_{kind}")(tmp_path / f"log.{kind}")
    fields = [
        {"name": "a", "column": "b"},
        {"name": "b", "column": "a"},
        {"name": "price", "column": "b"},
        {"name": "hashed", "column": "b", "hash_buckets": 10},
        "user_id",
    ]
    prepared(tmp_path / f"log.{kind}", tmp_path, fields=fields)
    found = open_prepared(tmp_path / "out").schema.fields
    assert {field.name: (field.kind, field.source_column) for field in found} == {
        "a": ("numerical", "b"),
        "b": ("categorical", "a"),
        "price": ("numerical", "b"),
        "hashed": ("categorical", "b"),
        "user_id": ("categorical", "user_id"),
        "domain_shop": ("categorical", "domain_shop"),
    }


def test_init_reads_what_prepare_reads(tmp_path):
    for name, content in {
        "semicolon.csv": CSV.replace(",", ";").encode(),
        "index.csv": ("," + CSV.replace("\n", "\n0,")).encode()[:-2],
        "packed.csv": gzip.compress(CSV.encode()),
        "wide.csv": CSV.encode("utf-16"),
        "parquet.csv": parquet(),
    }.items():
        (tmp_path / name).write_bytes(content)
        proposed, _ = proposal(tmp_path / name)
        assert kinds(proposed).keys() == {"user_id", "item_id", "price"}, name


def test_init_names_the_line_that_is_not_utf_8(tmp_path):  # traceback-header-latin-1
    (tmp_path / "log.csv").write_bytes(CSV.replace("price", "größe").encode("latin-1"))
    result = loractr("init", tmp_path / "log.csv")
    assert result.exit_code == 1
    assert "log.csv, line 1: the text is not UTF-8" in result.stderr


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """A model of the log."""
    folder = tmp_path_factory.mktemp("run")
    LOG.write_parquet(folder / "log.parquet")
    file = write_config(config(folder / "log.parquet"), folder / "config.yaml")
    result = loractr("train", file, "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run" / "artifact"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_rows_in_no_rows_out(tmp_path, artifact, kind):  # predict-empty
    data, out = tmp_path / f"new.{kind}", tmp_path / f"scores.{kind}"
    getattr(LOG.head(0), f"write_{kind}")(data)
    result = loractr("predict", artifact, data, "--out", out)
    assert result.exit_code == 0, result.stderr
    scores = getattr(pl, f"read_{kind}")(out)
    assert (scores.columns, scores.height) == ([*LOG.columns, "probability"], 0)


@pytest.mark.parametrize("label", ["NA", "", "not known yet"])
def test_predict_does_not_care_what_the_label_holds(tmp_path, artifact, label):  # predict-label-NA
    rows = LOG.head(20).with_columns(click=pl.lit(label))
    rows.write_csv(tmp_path / "new.csv")
    out = tmp_path / "scores.csv"
    result = loractr("predict", artifact, tmp_path / "new.csv", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert pl.read_csv(out).height == 20
    refusal = loractr("evaluate", artifact, tmp_path / "new.csv")
    assert refusal.exit_code == 1
    assert "label" in refusal.stderr


def test_threads_share_the_folder_of_temporary_copies(tmp_path):
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"{number}.csv")
        paths[-1].write_bytes(CSV.encode("utf-16"))
    program = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from loractr.data.sources.table import scan
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as pool:
    print([len(f.collect()) for f in pool.map(scan, map(Path, {list(map(str, paths))}))])
"""
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True
    )
    assert ran.stdout.decode().strip() == str([600] * 8)


def test_temporary_copies_go_when_the_program_ends(tmp_path):
    (tmp_path / "log.csv").write_bytes(CSV.encode("utf-16"))
    (tmp_path / "temporary").mkdir()
    temporary = tmp_path / "temporary"
    program = f"""
import os
from pathlib import Path
from loractr.data.sources.table import scan
scan(Path({str(tmp_path / "log.csv")!r}))
print(sum(len(files) for _, _, files in os.walk({str(temporary)!r})))
"""
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "1"
    assert list(temporary.iterdir()) == []


def test_ids_with_a_decimal_comma_are_the_ids_without(tmp_path):
    """pandas' `to_csv(decimal=",")` of whole numbers with a gap: 52,0 is 52."""
    log = shop_log().to_pandas()
    log["user_id"] = log["user_id"].astype(float)
    log.loc[5, "user_id"] = None
    log.to_csv(tmp_path / "log.csv", sep=";", decimal=",", index=False)
    log.to_parquet(tmp_path / "log.parquet", index=False)
    found = [
        prepare(parse_config(config(path, decimal=",")).data, tmp_path / path.suffix[1:])
        for path in (tmp_path / "log.csv", tmp_path / "log.parquet")
    ]
    assert found[0].schema == found[1].schema
    assert (found[0].train.ids == found[1].train.ids).all()
    assert (found[0].train.numbers == found[1].train.numbers).all()


def test_small_and_large_floats_of_two_parts_are_the_same_numbers(tmp_path, caplog):
    (tmp_path / "logs").mkdir()
    log = shop_log().with_columns(x=pl.Series([3.7, 0.1] * 300))
    small = log.head(300).with_columns(pl.col("x").cast(pl.Float32))
    small.write_parquet(tmp_path / "logs" / "a.parquet")
    log.tail(300).write_parquet(tmp_path / "logs" / "b.parquet")
    fields = ["user_id", {"name": "x", "kind": "categorical"}]
    prepared = prepare(parse_config(config(tmp_path / "logs", fields=fields)).data, tmp_path / "p")
    assert set(prepared.encoders.vocabularies["x"].values) == {"3.7", "0.1"}
    assert "Float32 in some files only" in caplog.text


def test_utf_8_that_is_said_to_be_latin_1_is_read_as_what_it_is(tmp_path, caplog):
    (tmp_path / "logs").mkdir()
    log = shop_log().with_columns(pl.col("shop").replace("c", "Café"))
    (tmp_path / "logs" / "a.csv").write_bytes(log.head(300).write_csv().encode("latin-1"))
    (tmp_path / "logs" / "b.csv").write_bytes(log.tail(300).write_csv().encode())
    values = config(tmp_path / "logs", encoding="latin-1")
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    assert prepared.schema.divisions[0].domains == ("Café", "a", "b")
    assert "b.csv is not latin-1 but UTF-8: read as such" in caplog.text


def test_blanks_after_separators_are_no_part_of_names_and_values(tmp_path):
    text = shop_log().write_csv().replace(",", ", ")
    (tmp_path / "log.csv").write_text(text)
    prepared = prepare(parse_config(config(tmp_path / "log.csv")).data, tmp_path / "p")
    assert prepared.schema.divisions[0].domains == ("a", "b", "c")
    assert prepared.schema.fields[0].id_type == "integer"


def test_sub_folders_that_are_not_read_are_named(tmp_path, caplog):
    for place in ("dt=1", "more"):
        (tmp_path / "logs" / place).mkdir(parents=True)
        shop_log().write_parquet(tmp_path / "logs" / place / "p.parquet")
    prepare(parse_config(config(tmp_path / "logs")).data, tmp_path / "p")
    assert "sub-folders that are not key=value are not read: 'more'" in caplog.text
