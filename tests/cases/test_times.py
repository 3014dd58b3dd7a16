"""A column that says when: the split reads it as a time, fields and divisions as they always do."""

import polars as pl
import pytest

from cases.shop_log import config, loractr, shop_log, write_config
from loractr.config import parse_config
from loractr.data.prepare import prepare
from loractr.data.sources.table import number_columns, scan
from loractr.data.sources.text_form import TextForm

NAMES = ("train", "validation", "test")
TEMPORAL = {"kind": "temporal", "column": "day", "fractions": [0.8, 0.1, 0.1]}
PER_USER = {"kind": "per_user", "column": "user_id", "order": "day"}
STEP = pl.int_range(pl.len()) * 20 // pl.len()
DAYS = {
    "padded": (1 + STEP).cast(pl.String).str.zfill(2),
    "whole": 1 + STEP,
    "seconds": 1_700_000_000.5 + STEP,
    "dates": pl.date(2026, 3, 1) + pl.duration(days=STEP),
    "midnights": pl.format("2026-03-{}T00:00:00Z", (1 + STEP).cast(pl.String).str.zfill(2)),
    "moments": pl.datetime(2026, 3, 1, 9) + pl.duration(hours=STEP),
    "slashes": pl.format("2026/3/{} 9:30", 1 + STEP),
}


@pytest.mark.parametrize("split", [TEMPORAL, PER_USER])
@pytest.mark.parametrize("written", DAYS)
def test_training_and_scoring_read_a_time_as_the_same_id(tmp_path, split, written):
    path = tmp_path / "log.csv"
    shop_log(200).with_columns(day=DAYS[written]).write_csv(path)
    said = {
        "fields": ["user_id", {"name": "day", "kind": "categorical"}],
        "divisions": {"day": {"column": "day"}, "shop": {"column": "shop"}},
        "split": split,
    }
    data = parse_config(config(path, **said)).data
    found = prepare(data, tmp_path / "prepared")
    schema = found.schema
    frame = scan(
        path,
        numbers=number_columns(schema.fields, schema.divisions, None),
        form=TextForm.of(data),
    ).collect()
    again = found.encoders.encode(frame)
    assert found.train.ids.all()
    for rows in map(found.rows, NAMES):
        assert (rows.ids == again.ids[rows.row]).all()
        assert (rows.domains == again.domains[rows.row]).all()


@pytest.mark.parametrize("split", [TEMPORAL, PER_USER])
@pytest.mark.parametrize("written", DAYS)
def test_a_split_by_time_is_the_same_in_both_formats(tmp_path, split, written):
    log = shop_log(200).with_columns(day=DAYS[written])
    log.write_csv(tmp_path / "log.csv")
    log.write_parquet(tmp_path / "log.parquet")
    places = []
    for kind in ("csv", "parquet"):
        path = tmp_path / f"log.{kind}"
        found = prepare(parse_config(config(path, split=split)).data, tmp_path / f"prepared-{kind}")
        places.append([sorted(found.rows(name).row.tolist()) for name in NAMES])
    assert places[0] == places[1]
    if split is TEMPORAL:  # the log is in the order of its days, ten rows each
        assert places[0] == [[*range(160)], [*range(160, 180)], [*range(180, 200)]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("good", ["2026-03-01", "17000"])
def test_a_bad_time_is_shown(tmp_path, kind, good):
    log = shop_log(50).with_columns(day=pl.when(pl.int_range(50) == 30).then(pl.lit("soon")))
    log = log.with_columns(pl.col("day").fill_null(good))
    getattr(log, f"write_{kind}")(tmp_path / f"log.{kind}")
    file = write_config(config(tmp_path / f"log.{kind}", split=TEMPORAL), tmp_path / "config.yaml")
    refusal = loractr("prepare", file, "--out", tmp_path / "out")
    assert refusal.exit_code == 1
    assert "time column 'day' holds text such as 'soon', which is not always" in refusal.stderr
    assert "Fix: write times like 2026-03-01" in refusal.stderr


@pytest.mark.parametrize("gap", ["", "NA", " "])
def test_a_row_without_a_time_is_named(tmp_path, gap):
    log = shop_log(50).with_columns(day=pl.when(pl.int_range(50) != 30).then(pl.lit("01")))
    log.write_csv(tmp_path / "log.csv", null_value=gap)
    file = write_config(config(tmp_path / "log.csv", split=TEMPORAL), tmp_path / "config.yaml")
    refusal = loractr("prepare", file, "--out", tmp_path / "out")
    assert refusal.exit_code == 1
    assert "1 rows have no time (row 30, counted from 0)" in refusal.stderr
