"""The same log as CSV and as Parquet is the same data, and makes the same model."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from safetensors.torch import load_file

from cases.shop_log import config, loractr, shop_log, write_config
from loractr.artifact import load
from loractr.config import parse_config
from loractr.data.prepare import prepare
from loractr.errors import ConfigError, DataError

TEMPORAL = {"kind": "temporal", "column": "ts", "fractions": [0.8, 0.1, 0.1]}
PER_USER = {"kind": "per_user", "column": "user_id", "order": "ts"}
STRATIFIED = {"kind": "stratified"}


def with_gaps(frame: pl.DataFrame, seed: int = 0) -> pd.DataFrame:
    """As pandas holds it: whole numbers with a gap are floats, booleans with one are objects."""
    log = frame.to_pandas()
    rng = np.random.default_rng(seed)
    log["user_id"] = log["user_id"].astype(float)
    log.loc[rng.random(len(log)) < 0.05, "user_id"] = np.nan
    log["member"] = pd.Series(rng.random(len(log)) < 0.5, dtype=object)
    log.loc[rng.random(len(log)) < 0.05, "member"] = None
    log["hour"] = log["ts"].dt.floor("h")
    log["zip"] = [f"0{user}" if user < 30 else str(user) for user in frame["user_id"].to_list()]
    return log


FIELDS = [
    "user_id",
    {"name": "user_hash", "column": "user_id", "hash_buckets": 1000},
    {"name": "item_id", "min_count": 3},
    {"name": "member", "kind": "categorical"},
    {"name": "hour", "kind": "categorical"},
    {"name": "zip", "kind": "categorical"},
    {"name": "price", "kind": "numerical", "scaling": "log1p"},
]
DIVISIONS = {
    "shop": {"column": "shop"},
    "by_item": {"column": "item_id", "groups": {"one": [*range(100, 120)]}, "rest": "two"},
    "often": {"column": "user_id", "activeness": [6]},
    "cheap": {"column": "price", "thresholds": [20]},
}


@pytest.fixture
def both(tmp_path):
    """The same rows as CSV and as Parquet, written by pandas."""
    log = with_gaps(shop_log())
    log.to_csv(tmp_path / "log.csv", index=False)
    log.to_parquet(tmp_path / "log.parquet", index=False)
    return tmp_path / "log.csv", tmp_path / "log.parquet"


@pytest.mark.parametrize("split", [STRATIFIED, PER_USER, TEMPORAL])
def test_csv_and_parquet_give_the_same_vocabularies_domains_and_split(both, split, tmp_path):
    prepared = []
    for number, path in enumerate(both):
        values = config(path, fields=FIELDS, divisions=DIVISIONS, split=split, group="user_id")
        prepared.append(prepare(parse_config(values).data, tmp_path / f"p{number}"))
    csv, parquet = prepared
    assert csv.schema == parquet.schema
    types = {field.name: field.id_type for field in csv.schema.fields}
    assert types == {
        **dict.fromkeys(["user_id", "user_hash", "item_id"], "integer"),
        "member": "boolean",
        "hour": "time",
        "zip": "text",
        "price": None,
        "domain_shop": None,
    }
    for name, vocabulary in csv.encoders.vocabularies.items():
        assert vocabulary.values.equals(parquet.encoders.vocabularies[name].values)
    for name in ("train", "validation", "test"):
        there, here = csv.rows(name), parquet.rows(name)
        for column in ("ids", "numbers", "domains", "row", "label", "group"):
            assert (getattr(there, column) == getattr(here, column)).all(), (name, column)


def test_csv_and_parquet_train_the_same_weights_and_score_the_same(both, tmp_path):
    for path, run in zip(both, ("csv", "parquet"), strict=True):
        values = config(path, fields=FIELDS, split=TEMPORAL)
        file = write_config(values, tmp_path / f"{run}.yaml")
        assert loractr("train", file, "--out", tmp_path / run).exit_code == 0
    weights = [
        load_file(tmp_path / run / "artifact" / "base" / "model.safetensors")
        for run in ("csv", "parquet")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    new = with_gaps(shop_log(seed=1), seed=1)
    new.to_csv(tmp_path / "new.csv", index=False)
    new.to_parquet(tmp_path / "new.parquet", index=False)
    scores = []
    for kind in ("csv", "parquet"):
        out = tmp_path / f"scores-{kind}.parquet"
        assert (
            loractr(
                "predict", tmp_path / "parquet" / "artifact", tmp_path / f"new.{kind}", "--out", out
            ).exit_code
            == 0
        )
        scores.append(pl.read_parquet(out)["probability"].to_numpy())
    assert (scores[0] == scores[1]).all()
    assert (scores[0] == load(tmp_path / "csv" / "artifact").predict(pl.from_pandas(new))).all()


def test_ids_that_pandas_wrote_as_floats_are_the_ids_of_training(tmp_path):
    log = shop_log()
    log.write_parquet(tmp_path / "log.parquet")
    prepared = prepare(parse_config(config(tmp_path / "log.parquet")).data, tmp_path / "p")
    floats = log.with_columns(pl.col("user_id").cast(pl.Float64).cast(pl.String))
    assert floats["user_id"].str.ends_with(".0").all()
    there, here = (prepared.encoders.encode(rows).ids for rows in (log, floats))
    assert (there == here).all()


def test_parts_of_which_one_has_floats_hold_the_same_users(tmp_path):
    (tmp_path / "logs").mkdir()
    log = shop_log()
    log.head(300).write_csv(tmp_path / "logs" / "a.csv")
    log.tail(300).with_columns(pl.col("user_id").cast(pl.Float64)).write_csv(
        tmp_path / "logs" / "b.csv"
    )
    prepared = prepare(parse_config(config(tmp_path / "logs")).data, tmp_path / "p")
    train = log[prepared.train.row.tolist()]
    values = prepared.encoders.vocabularies["user_id"].values
    assert values.dtype == pl.Int64
    assert set(values.to_list()) == set(train["user_id"].to_list())


@pytest.mark.parametrize("token", ["None", "NULL", "NA", "\\N", "—"])
def test_a_text_that_stands_for_missing_is_no_id_and_that_is_said(token, tmp_path, caplog):
    log = shop_log().with_columns(
        pl.when(pl.int_range(pl.len()) % 3 == 0)
        .then(pl.lit(token))
        .otherwise(pl.col("user_id").cast(pl.String))
        .alias("user_id")
    )
    log.write_csv(tmp_path / "log.csv")
    caplog.set_level("INFO", logger="loractr")
    prepared = prepare(parse_config(config(tmp_path / "log.csv")).data, tmp_path / "p")
    values = prepared.encoders.vocabularies["user_id"].values
    assert values[0] is None  # the most frequent
    assert values.dtype == pl.Int64
    count = int((prepared.train.row % 3 == 0).sum())
    assert f"field 'user_id': read as missing, by data.missing_values: '{token} ({count})'" in (
        caplog.text.replace("\\\\", "\\")
    )
    kept = config(tmp_path / "log.csv", missing_values=[""])
    names = prepare(parse_config(kept).data, tmp_path / "kept").encoders.vocabularies["user_id"]
    assert names.values[0] == token


def test_repeats_are_found_whatever_the_spelling(tmp_path):
    log = shop_log(200).with_columns(pl.col("user_id").cast(pl.String))
    again = log.with_columns(pl.col("user_id") + ".0")
    pl.concat([log, again]).write_csv(tmp_path / "log.csv")
    values = config(tmp_path / "log.csv", deduplicate=["user_id", "item_id", "ts"])
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    distinct = log.unique(["user_id", "item_id", "ts"]).height
    assert sum(len(prepared.rows(name)) for name in ("train", "validation", "test")) == distinct


def test_a_column_says_the_split_in_either_spelling(tmp_path):
    log = shop_log().with_columns(part=pl.int_range(pl.len()) % 3)
    split = {"kind": "column", "column": "part", "train": [0], "validation": [1], "test": [2]}
    rows = []
    for number, column in enumerate((pl.col("part"), pl.col("part").cast(pl.Float64))):
        log.with_columns(column).write_csv(tmp_path / f"{number}.csv")
        values = config(tmp_path / f"{number}.csv", split=split)
        rows.append(prepare(parse_config(values).data, tmp_path / f"p{number}").test.row.tolist())
    assert rows[0] == rows[1] == list(range(2, 600, 3))


@pytest.mark.parametrize(
    ("vector", "file"),
    [
        ([0.5, -1.25], "log.parquet"),
        ("[0.5, -1.25]", "log.csv"),
    ],
)
def test_lists_of_amounts_are_no_sequence_of_ids(vector, file, tmp_path):
    log = shop_log(100).with_columns(emb=pl.Series([vector] * 100))
    getattr(log, "write_" + file.partition(".")[2])(tmp_path / file)
    fields = ["user_id", {"name": "emb", "kind": "sequence"}]
    with pytest.raises(DataError, match="look like vectors and not like ids"):
        prepare(parse_config(config(tmp_path / file, fields=fields)).data, tmp_path / "p")
    fields[1]["id_type"] = "text"
    prepared = prepare(parse_config(config(tmp_path / file, fields=fields)).data, tmp_path / "p")
    assert prepared.encoders.vocabularies["emb"].values.to_list() == ["-1.25", "0.5"]


def test_lists_as_text_are_the_ids_of_a_list_column(tmp_path):
    rng = np.random.default_rng(0)
    lists = [rng.integers(100, 140, rng.integers(0, 5)).tolist() for _ in range(600)]
    log = shop_log()
    log.with_columns(history=pl.Series(lists, dtype=pl.List(pl.Int64))).write_parquet(
        tmp_path / "log.parquet"
    )
    log.with_columns(history=pl.Series([str(one) for one in lists])).write_csv(tmp_path / "log.csv")
    found = []
    for number, (file, more) in enumerate(
        [("log.parquet", {}), ("log.csv", {}), ("log.csv", {"separator": ","})]
    ):
        fields = ["user_id", {"name": "history", "kind": "sequence", **more}]
        values = config(tmp_path / file, fields=fields)
        found.append(prepare(parse_config(values).data, tmp_path / f"p{number}"))
    expected = found[0].encoders.vocabularies["history"].values
    assert set(expected.to_list()) == {None, *range(100, 140)}
    for other in found[1:]:
        assert other.encoders.vocabularies["history"].values.equals(expected)
        for there, here in zip(
            other.train.sequences["history"], found[0].train.sequences["history"], strict=True
        ):
            assert (there == here).all()


def test_names_of_any_length_and_form_are_columns(tmp_path):
    names = {"user_id": "用户" * 17, "item_id": "^id$", "price": "*", "shop": "地" * 60}
    log = shop_log().rename(names).with_columns(tags=pl.Series([["a", "b"]] * 600))
    log = log.rename({"tags": "标签" * 17})
    log.write_parquet(tmp_path / "log.parquet")
    fields = [
        names["user_id"],
        names["item_id"],
        {"name": names["price"], "kind": "numerical"},
        {"name": "标签" * 17, "kind": "sequence"},
    ]
    divisions = {names["shop"]: {"column": names["shop"]}}
    values = config(tmp_path / "log.parquet", fields=fields, divisions=divisions)
    file = write_config(values, tmp_path / "config.yaml")
    result = loractr("train", file, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    scores = load(tmp_path / "run" / "artifact").predict(log.head(5))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_split_by_numbers_finds_their_texts(kind, tmp_path):
    """0.0, 1.0, 2.5: a column of text ids, in which 0 of the configuration is 0.0."""
    log = shop_log().with_columns(part=pl.Series([0.0, 1.0, 2.5] * 200))
    getattr(log, f"write_{kind}")(tmp_path / f"log.{kind}")
    split = {"kind": "column", "column": "part", "train": [0], "validation": [1], "test": ["2.5"]}
    values = config(tmp_path / f"log.{kind}", split=split)
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    assert prepared.test.row.tolist() == list(range(2, 600, 3))


def test_the_empty_text_is_missing_whatever_the_list_says(tmp_path):
    log = shop_log(200).with_columns(
        pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.lit("")).otherwise("shop").alias("shop")
    )
    log.write_csv(tmp_path / "log.csv", quote_style="always")
    log.write_parquet(tmp_path / "log.parquet")
    domains = []
    for kind in ("csv", "parquet"):
        values = config(tmp_path / f"log.{kind}", missing_values=["NA"])
        prepared = prepare(parse_config(values).data, tmp_path / kind)
        domains.append(prepared.schema.divisions[0].domains)
    assert domains[0] == domains[1] == ("a", "b", "c", "(missing)")


def test_repeats_of_whole_rows_are_found_among_amounts_too(tmp_path):
    log = shop_log(100).with_columns(big=pl.lit("1.5e+20"))
    pl.concat([log, log]).write_csv(tmp_path / "log.csv")
    values = config(tmp_path / "log.csv", deduplicate=True)
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    rows = sum(len(prepared.rows(name)) for name in ("train", "validation", "test"))
    assert rows == log.unique().height


def test_an_amount_that_is_missing_in_two_ways_is_one_row(tmp_path):
    log = shop_log(100).with_columns(x=pl.lit(None, dtype=pl.Float64))
    again = log.with_columns(x=pl.lit(float("nan")))
    pl.concat([log, again]).write_parquet(tmp_path / "log.parquet")
    values = config(tmp_path / "log.parquet", deduplicate=True)
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    rows = sum(len(prepared.rows(name)) for name in ("train", "validation", "test"))
    assert rows == log.unique().height


def test_a_group_cannot_list_what_is_missing(tmp_path):
    division = {"column": "shop", "groups": {"A": ["a"], "B": ["b", "NULL"]}, "rest": "C"}
    with pytest.raises(ConfigError, match="groups list 'NULL', which missing_values says"):
        parse_config(config(tmp_path / "log.csv", divisions={"shop": division}))


def test_clicks_and_negatives_agree_on_who_is_who(tmp_path):
    """Parts with 1 and with 1.0, and blanks before ids: no pair is both, as with clean ids."""
    rng = np.random.default_rng(0)
    clicks = pl.DataFrame(
        {
            "user_id": rng.integers(1, 40, 400),
            "item_id": rng.integers(95, 135, 400),
            "shop": rng.choice(["a", "b"], 400),
        }
    )
    (tmp_path / "logs").mkdir()
    floats = clicks.tail(200).with_columns(pl.col("user_id", "item_id").cast(pl.Float64))
    clicks.head(200).write_csv(tmp_path / "logs" / "a.csv")
    floats.with_columns(shop=" " + pl.col("shop")).write_csv(tmp_path / "logs" / "b.csv")
    clicks.write_parquet(tmp_path / "log.parquet")
    drawn = []
    for path in (tmp_path / "logs", tmp_path / "log.parquet"):
        values = config(
            path,
            fields=["user_id", "item_id"],
            negatives={"user": "user_id", "item": "item_id"},
            split={"kind": "column", "column": "split"},
        )
        del values["data"]["label"]
        prepared = prepare(parse_config(values).data, tmp_path / f"p{len(drawn)}")
        drawn.append(prepared)
    for name in ("train", "validation", "test"):
        there, here = drawn[0].rows(name), drawn[1].rows(name)
        for column in ("ids", "domains", "label"):
            assert (getattr(there, column) == getattr(here, column)).all()
    rows = np.concatenate(
        [np.c_[p.ids, p.label] for p in (drawn[0].rows(n) for n in ("train", "validation", "test"))]
    )
    pairs = {(*row[:3],) for row in rows.astype(int).tolist()}
    assert len(pairs) == len(rows)
