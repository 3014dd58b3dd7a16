"""What `loractr init` proposes for logs as people have them, and what it says about its guesses."""

import subprocess
import sys
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from cases.shop_log import kinds, loractr, proposal, shop_log, write_config
from loractr.config import parse_config
from loractr.data.infer import infer
from loractr.data.prepare import prepare

INPUTS = {"user_id": "categorical", "item_id": "categorical", "price": "numerical"}
ROW = pl.int_range(pl.len())
BY_TS = {"kind": "temporal", "column": "ts", "fractions": [0.8, 0.1, 0.1]}
LISTS = [[103, 107], [], [109], [107, 132, 103]]
VECTORS = [[0.25, -1.5, 0.125], [1.0, 2.5, -0.75], [3.5, 0.5, 1e-7]]


def written(frame: pl.DataFrame, folder: Path, kind: str) -> Path:
    """`frame` as a CSV file, a Parquet file, or a Parquet file with nothing but text."""
    path = folder / f"log.{kind.removeprefix('text.')}"
    if kind == "csv":
        frame.write_csv(path)
    else:
        frame = frame.select(pl.all().cast(pl.String)) if kind == "text.parquet" else frame
        frame.write_parquet(path)
    return path


def proposed(frame: pl.DataFrame, folder: Path, kind: str = "parquet") -> tuple[dict, str]:
    return proposal(written(frame, folder, kind))


def prepares(proposal: dict[str, Any], folder: Path) -> bool:
    config = write_config(proposal, folder / "i.yaml")
    done = loractr("prepare", config, "--out", folder / "prepared")
    assert done.exit_code == 0, done.stderr
    return True


def cycled(values: list[Any], rows: int = 600, **options: Any) -> pl.Series:
    return pl.Series([values[n % len(values)] for n in range(rows)], **options)


@pytest.mark.parametrize("kind", ["csv", "parquet", "text.parquet"])
def test_the_proposal_does_not_depend_on_the_format_of_the_file(tmp_path, kind):
    log = shop_log().with_columns(
        is_new=pl.col("user_id") % 2 == 0, code=pl.format("00{}", ROW % 7), level=ROW % 5 * 1.0
    )
    config, _ = proposed(log, tmp_path, kind)
    assert kinds(config) == INPUTS | {
        "is_new": "categorical",
        "code": "categorical",
        "level": "categorical",
    }
    assert config["data"]["split"] == BY_TS
    assert config["data"]["divisions"] == {"shop": {"column": "shop"}}
    assert config["data"]["label"] == {"column": "click"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S+00:00",
        "%Y-%m-%d %H:%M:%S UTC",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%d %H:%M",
        "%Y/%m/%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%S.123",
        "%Y-%m-%dT%H:%M:%S+0200",
    ],
)
def test_a_time_in_text_orders_the_rows_and_is_no_input(tmp_path, kind, form):
    config, notes = proposed(
        shop_log().with_columns(pl.col("ts").dt.strftime(form)), tmp_path, kind
    )
    assert kinds(config) == INPUTS
    assert config["data"]["split"] == BY_TS
    assert "Split by ts" in notes


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64])
def test_seconds_since_1970_are_a_time_whatever_their_unit(tmp_path, unit, dtype):
    log = shop_log().with_columns(pl.col("ts").dt.epoch(unit).cast(dtype)).rename({"ts": "x"})
    config, _ = proposed(log.sample(fraction=1, shuffle=True, seed=0), tmp_path)
    assert kinds(config) == INPUTS
    assert config["data"]["split"]["column"] == "x"


@pytest.mark.parametrize(
    "form", ["%d.%m.%Y", "%m/%d/%Y %H:%M", "%d %b %Y", "%Y-%m", "%d/%b/%Y:%H:%M:%S +0000"]
)
def test_a_date_that_cannot_be_read_is_no_input_and_says_so(tmp_path, form):
    config, notes = proposed(shop_log().with_columns(pl.col("ts").dt.strftime(form)), tmp_path)
    assert kinds(config) == INPUTS
    assert "dates in a form that is not read" in notes
    assert config["data"]["split"]["kind"] == "stratified"


def test_a_time_with_gaps_is_no_input_and_the_note_counts_them(tmp_path):
    gaps = pl.when(ROW % 100 == 0).then(None).otherwise(pl.col("ts")).alias("ts")
    config, notes = proposed(shop_log().with_columns(gaps), tmp_path)
    assert kinds(config) == INPUTS
    assert "ts has gaps (6 of 600 rows have no time" in notes


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "step",
    [
        ROW.alias("counter"),
        (ROW // 30).alias("counter"),
        (ROW * -0.25).alias("counter"),
        (ROW * 7 % 600 // 50).alias("period"),
        (ROW * 7 % 600).alias("ts_number"),
    ],
    ids=["rising", "in steps", "falling float", "period", "not in order"],
)
def test_a_time_step_or_counter_is_no_input(tmp_path, kind, step):
    config, notes = proposed(shop_log().drop("ts").with_columns(step), tmp_path, kind)
    assert kinds(config) == INPUTS
    name = step.meta.output_name()
    assert f": {name}" in notes
    assert config["data"]["split"]["kind"] == "stratified"


def test_a_log_sorted_by_user_keeps_its_users(tmp_path):
    config, _ = proposed(shop_log().sort("user_id"), tmp_path)
    assert kinds(config) == INPUTS


def test_nearly_unique_values_are_no_input_but_users_are(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20_000, 600)
    config, notes = proposed(
        shop_log().with_columns(user_id=ids, session=ids, request=pl.Series(ids).cast(pl.String)),
        tmp_path,
    )
    assert kinds(config) == INPUTS
    assert "nearly every row has another value: session, request" in notes


@pytest.mark.parametrize("token", ["NULL", "NA", "\\N", "—", "-", "", "None"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_number_with_null_tokens_stays_a_number(tmp_path, kind, token):
    price = pl.when(ROW % 10 == 0).then(pl.lit(token)).otherwise(pl.col("price").cast(pl.String))
    config, notes = proposed(shop_log().with_columns(price=price), tmp_path, kind)
    assert kinds(config) == INPUTS
    field = next(f for f in config["data"]["fields"] if f["name"] == "price")
    assert field["missing"] == "mean"
    assert f"price: 60 of 600 values are {f'{token!r}' if token else 'empty'}: missing" in notes
    assert not token or token in config["data"]["missing_values"]


@pytest.mark.parametrize("odd", ["n/a?", "12 EUR", "inf"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_value_that_is_no_number_is_named_and_becomes_missing(tmp_path, kind, odd):
    price = pl.when(ROW == 7).then(pl.lit(odd)).otherwise(pl.col("price").cast(pl.String))
    config, notes = proposed(shop_log().with_columns(price=price), tmp_path, kind)
    assert kinds(config) == INPUTS
    assert f"price: 1 of 600 values is no number ({odd!r})" in notes
    assert odd in config["data"]["missing_values"]
    assert "NULL" in config["data"]["missing_values"]


def test_numbers_among_much_other_text_are_left_out_with_examples(tmp_path):
    text = pl.col("price").cast(pl.String)
    price = pl.when(ROW % 20 == 0).then(text + " kg").otherwise(text)
    config, notes = proposed(shop_log().with_columns(price=price), tmp_path)
    assert "price" not in kinds(config)
    assert " kg'" in notes


@pytest.mark.parametrize("dress", ["{} EUR", "€{}", "{}%", "1,{}"])
def test_numbers_with_signs_are_left_out_with_a_note(tmp_path, dress):
    hundreds = (pl.col("price") % 900 + 100).round(2)
    config, notes = proposed(shop_log().with_columns(price=pl.format(dress, hundreds)), tmp_path)
    assert "price" not in kinds(config)
    assert "numbers with signs that no number has (write them as 1234.5): price" in notes


def test_an_id_column_says_how_many_of_its_rows_are_missing(tmp_path):
    shop = pl.when(ROW % 3 == 0).then(pl.lit("NA")).otherwise("shop")
    config, notes = proposed(shop_log().with_columns(country=shop), tmp_path)
    assert "country: 200 of 600 values are 'NA': missing. If one is a name" in notes
    assert "NA" in config["data"]["missing_values"]


def test_a_decimal_comma_is_proposed_with_a_note(tmp_path):
    log = shop_log().with_columns(
        pl.col("price").cast(pl.String).str.replace(".", ",", literal=True)
    )
    config, notes = proposed(log, tmp_path, "csv")
    assert kinds(config) == INPUTS
    assert config["data"]["decimal"] == ","
    assert "Numbers with a decimal comma" in notes
    config, notes = proposed(log, tmp_path, "parquet")  # `decimal` is for CSV files
    assert "price" not in kinds(config)
    assert "decimal comma (write numbers): price" in notes


def commas(name: str, digits: int = 2) -> pl.Expr:
    number = pl.col(name).cast(pl.Float64).round(digits).cast(pl.String)
    return number.str.replace(".", ",", literal=True).alias(name)


def test_a_label_with_a_decimal_comma_is_read_so(tmp_path):
    rating = (ROW % 9 * 0.5 + 1).alias("rating")
    log = shop_log().drop("click", "price").with_columns(rating).with_columns(commas("rating"))
    config, notes = proposed(log, tmp_path, "csv")
    assert config["data"]["label"] == {"column": "rating", "positive": "> 3"}
    assert config["data"]["decimal"] == ","
    assert "Numbers with a decimal comma (1,0): rating" in notes
    assert prepares(config, tmp_path)


def test_zeros_and_ones_with_a_decimal_comma_are_a_label(tmp_path):
    config, _ = proposed(shop_log().with_columns(commas("click"), commas("price")), tmp_path, "csv")
    assert config["data"]["label"] == {"column": "click"}
    assert kinds(config) == INPUTS
    assert prepares(config, tmp_path)


@pytest.mark.parametrize(
    ("with_comma", "left_out", "decimal"),
    [
        (["price"], "comma, where others have a point (write all alike): price", None),
        (["price", "weight"], "point, where others have a comma (write all alike): width", ","),
        (["rating"], "point, where others have a comma (write all alike): price, width", ","),
    ],
    ids=["tie", "most", "label"],
)
def test_numbers_with_two_decimal_marks_are_not_read_together(
    tmp_path, with_comma, left_out, decimal
):
    log = shop_log().with_columns(width=(ROW % 97) / 8)
    if "rating" in with_comma:
        log = log.drop("click").with_columns(rating=ROW % 9 * 0.5 + 1)
    if "weight" in with_comma:
        log = log.with_columns(weight=(ROW % 89) / 8)
    config, notes = proposed(log.with_columns(map(commas, with_comma)), tmp_path, "csv")
    assert config["data"].get("decimal") == decimal
    assert f"Left out, numbers with a decimal {left_out}." in notes
    assert prepares(config, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_first_file_of_a_folder_may_be_empty(tmp_path, kind):
    folder = tmp_path / "logs"
    folder.mkdir()
    written(shop_log(), folder, kind)
    (folder / f"empty.{kind}").touch()
    config, _ = proposal(folder)
    assert kinds(config) == INPUTS
    assert prepares(config, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "spell",
    [
        str,
        lambda ids: str([f"i{i}" for i in ids]),
        lambda ids: str([f"i{i}" for i in ids]).replace("'", '"'),
        lambda ids: str(np.array([f"i{i}" for i in ids], dtype=str)),
        lambda ids: str(np.array(ids, dtype=int)),
    ],
    ids=["numbers", "python", "json", "numpy text", "numpy"],
)
def test_text_of_lists_is_a_sequence_without_a_separator(tmp_path, kind, spell):
    log = shop_log().with_columns(history=cycled([spell(ids) for ids in LISTS]))
    config, _ = proposed(log, tmp_path, kind)
    assert {"name": "history", "kind": "sequence"} in config["data"]["fields"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_few_texts_that_are_no_list_become_missing(tmp_path, kind):
    texts = pl.when(ROW % 25 == 0).then(pl.lit("unknown")).otherwise(cycled(list(map(str, LISTS))))
    config, notes = proposed(shop_log().with_columns(history=texts), tmp_path, kind)
    assert {"name": "history", "kind": "sequence"} in config["data"]["fields"]
    assert "history: 24 of 600 values are no list ('unknown')" in notes
    assert "unknown" in config["data"]["missing_values"]
    assert prepares(config, tmp_path)


@pytest.mark.parametrize("separator", [", ", ",", "|", ";", " "])
def test_what_stands_between_ids_is_found_blanks_aside(tmp_path, separator):
    texts = [separator.join(str(i) for i in ids) for ids in [*LISTS, [109, 132], [132, 107, 109]]]
    config, _ = proposed(shop_log().with_columns(tags=cycled(texts)), tmp_path, "csv")
    field = {"name": "tags", "kind": "sequence", "separator": separator.strip() or " "}
    assert field in config["data"]["fields"]
    assert prepares(config, tmp_path)


@pytest.mark.parametrize(
    "column",
    [
        cycled(VECTORS),
        cycled(VECTORS, dtype=pl.Array(pl.Float32, 3)),
        cycled([str(v) for v in VECTORS]),
        cycled([" ".join(map(str, v)) for v in VECTORS]),
        cycled([",".join(map(str, v)) for v in VECTORS]),
        cycled([str(np.array(v)) for v in VECTORS]),
    ],
    ids=["list", "array", "python", "blanks", "commas", "numpy"],
)
def test_a_vector_is_no_list_of_ids(tmp_path, column):
    config, notes = proposed(shop_log().with_columns(emb=column), tmp_path)
    assert kinds(config) == INPUTS
    assert "a vector, not ids" in notes
    assert "pretrained" in notes
    assert prepares(config, tmp_path)


def test_floats_that_are_all_whole_are_a_list_of_ids(tmp_path):
    lists = cycled(LISTS, dtype=pl.List(pl.Float64))
    config, _ = proposed(shop_log().with_columns(history=lists), tmp_path)
    assert kinds(config)["history"] == "sequence"
    assert prepares(config, tmp_path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"a", "Binary"),
        (b"\xff\x00", "Binary"),
        ([{"k": 1}], "Struct"),
        ({"k": 1}, "Struct"),
        ([[1, 2], [3]], "List"),
        ([b"x"], "Binary"),
        (timedelta(1), "Duration"),
        (time(1, 2), "a time of day"),
        (None, "without any value"),
        ('{"k": 1}', "objects"),
        ("[[1, 2], [3]]", "lists in lists"),
    ],
)
def test_a_column_of_another_type_is_left_out_with_a_note(tmp_path, value, kind):
    config, notes = proposed(shop_log().with_columns(m=cycled([value])), tmp_path)
    assert kinds(config) == INPUTS
    assert kind in notes
    assert ": m." in notes
    assert prepares(config, tmp_path)


def test_a_domain_of_binary_values_is_left_out(tmp_path):
    config, _ = proposed(shop_log().with_columns(pl.col("shop").cast(pl.Binary)), tmp_path)
    assert kinds(config) == INPUTS
    assert config["data"]["divisions"] == {}  # 40 items are no domains
    assert prepares(config, tmp_path)


@pytest.mark.parametrize("name", ["^id$", "*", "a \"b\" 'c'", "a\nb", "😀", "x" * 300, "名" * 34])
def test_names_of_columns_may_be_anything(tmp_path, name):
    config, notes = proposed(shop_log().rename({"item_id": name, "shop": f"{name}2"}), tmp_path)
    assert kinds(config) == {"user_id": "categorical", name: "categorical", "price": "numerical"}
    assert config["data"]["divisions"] == {f"{name}2": {"column": f"{name}2"}}
    assert len(notes) < 1_000


def test_a_column_without_a_name_is_left_out(tmp_path):
    config, notes = proposed(shop_log().with_columns(pl.lit(3).alias("")), tmp_path)
    assert kinds(config) == INPUTS
    assert "without a name" in notes


@pytest.mark.parametrize(
    "name",
    ["votes", "upvotes", "num_helpful", "comment_count", "likes", "refund", "balance_after"],
)
def test_what_is_known_only_later_is_left_out(tmp_path, name):
    config, notes = proposed(shop_log().with_columns((ROW % 9 * 0.5).alias(name)), tmp_path)
    assert kinds(config) == INPUTS
    assert f"only known after the click (put it back if it is not): {name}" in notes


@pytest.mark.parametrize("name", ["propensity_score", "pred", "predictions", "click_prob", "ctr"])
def test_scores_of_another_model_are_left_out(tmp_path, name):
    config, notes = proposed(shop_log().with_columns((ROW % 9 * 0.5).alias(name)), tmp_path)
    assert kinds(config) == INPUTS
    assert name in notes


@pytest.mark.parametrize(
    "dtype", [pl.Int8, pl.Float64, pl.Decimal(20, 0), pl.Decimal(9, 2), pl.Boolean]
)
def test_zeros_and_ones_of_any_type_are_a_label(tmp_path, dtype):
    config, _ = proposed(shop_log().with_columns(pl.col("click").cast(dtype)), tmp_path)
    assert config["data"]["label"] == {"column": "click"}
    assert prepares(config, tmp_path)


@pytest.mark.parametrize(
    ("no", "yes", "rule"),
    [
        ("False", "True", None),
        ("false", "true", None),
        ("no", "yes", "== yes"),
        ("N", "Y", "== Y"),
        ("f", "t", "== t"),
        ("not clicked", "clicked", "== clicked"),
        (1, 2, "== 2"),
        (-1, 1, "> 0"),
        (0, 5, "> 0"),
        (0.1234567, 0.7654321, "== 0.7654321"),
        (1e-9, 2e-9, "== 2e-09"),
        (-0.25, 0.5, "> 0"),
        ("no", "01", "!= no"),
        ("no", "1", "!= no"),
        ("00", "yes", "== yes"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_label_of_two_other_values_gets_a_rule_and_a_note(tmp_path, kind, no, yes, rule):
    click = pl.when(pl.col("click") == 1).then(pl.lit(yes)).otherwise(pl.lit(no))
    config, notes = proposed(shop_log().with_columns(click=click), tmp_path, kind)
    assert config["data"]["label"] == {"column": "click"} | ({"positive": rule} if rule else {})
    assert rule is None or f"`{rule}` counts as a click" in notes


@pytest.mark.parametrize(
    ("no", "yes"), [("no", "01"), ("0", "y"), (0.1234567, 0.7654321), (1e-9, 2e-9), (-0.25, 0.5)]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_clicks_by_a_proposed_rule_are_those_of_the_log(tmp_path, kind, no, yes):
    log = shop_log()
    click = pl.when(pl.col("click") == 1).then(pl.lit(yes)).otherwise(pl.lit(no))
    config, _ = proposed(log.with_columns(click=click), tmp_path, kind)
    data = prepare(parse_config(config).data, tmp_path / "prepared")
    clicks = sum(part.label.sum() for part in (data.train, data.validation, data.test))
    assert clicks == log["click"].sum()


@pytest.mark.parametrize(("no", "yes"), [("02", "1"), ("NO", "no"), ("a\nb", "1")])
def test_two_words_that_no_rule_tells_apart_are_unclear(tmp_path, no, yes):
    click = pl.when(pl.col("click") == 1).then(pl.lit(yes)).otherwise(pl.lit(no))
    done = loractr("init", written(shop_log().with_columns(click=click), tmp_path, "parquet"))
    assert done.exit_code == 1
    assert "column 'click' is named like the label" in done.stderr


def test_a_label_whose_clicks_are_unclear_is_told_with_its_values(tmp_path):
    click = pl.when(pl.col("click") == 1).then(pl.lit("B")).otherwise(pl.lit("A"))
    path = written(shop_log().with_columns(click=click), tmp_path, "csv")
    done = loractr("init", path)
    assert done.exit_code == 1
    assert "column 'click' is named like the label" in done.stderr
    assert "it holds A, B" in done.stderr
    assert 'label: {column: click, positive: "== B"}' in done.stderr
    assert "name the label's column" not in done.stderr


def test_a_label_with_gaps_says_how_many_rows_have_none(tmp_path):
    click = pl.when(ROW % 6 == 0).then(None).otherwise("click")
    config, notes = proposed(shop_log().with_columns(click=click), tmp_path)
    assert config["data"]["label"] == {"column": "click"}
    assert "click: 100 of 600 rows have no label" in notes


def test_other_columns_that_could_be_the_label_are_named(tmp_path):
    config, notes = proposed(shop_log().with_columns(is_like=ROW % 2, target=ROW % 2), tmp_path)
    assert config["data"]["label"] == {"column": "click"}
    assert "Label: click was taken; it could also be is_like, target." in notes


@pytest.mark.parametrize("label", [pl.lit(1), pl.lit("yes"), None], ids=["one", "yes", "none"])
def test_a_log_of_clicks_only_gets_negatives(tmp_path, label):
    log = shop_log().drop("click")
    log = log if label is None else log.with_columns(click=label)
    config, notes = proposed(log, tmp_path)
    assert config["data"]["negatives"] == {"user": "user_id", "item": "item_id", "seed": 0}
    assert config["data"]["split"] == {"kind": "column", "column": "split"}
    assert "every row is taken for a click" in notes
    assert prepares(config, tmp_path)


def test_what_hinders_the_drawing_of_negatives_is_told(tmp_path):
    gaps = pl.when(ROW % 6 == 0).then(None).otherwise("user_id").alias("user_id")
    log = shop_log().with_columns(gaps, click=1, split=pl.lit("x"))
    _, notes = proposed(log, tmp_path)
    assert "user_id: 100 of 600 rows have none; `prepare` refuses them" in notes
    assert "`prepare` refuses a column split of the log's own: rename it first." in notes
    config, notes = proposed(log.drop("split").with_columns(account=pl.col("item_id")), tmp_path)
    assert config["data"]["negatives"]["user"] == "account"
    assert "refuses" not in notes
    assert prepares(config, tmp_path)


def test_a_log_without_clicks_is_refused(tmp_path):
    done = loractr("init", written(shop_log().with_columns(click=0), tmp_path, "parquet"))
    assert done.exit_code == 1
    assert "it holds 0 and nothing else" in done.stderr


@pytest.mark.parametrize(
    ("every", "select", "said"),
    [
        (2, "wauc", None),
        (40, "log_loss", "about 50 of 2,000 rows are clicks: too few for an AUC to choose by"),
        (500, "log_loss", "about 4 of 2,000 rows are clicks: nothing can be concluded"),
    ],
)
def test_few_clicks_are_no_ground_for_an_auc(tmp_path, every, select, said):
    log = shop_log(20_000).with_columns(click=(ROW % every == 0).cast(pl.Int64))
    config, notes = proposed(log, tmp_path)
    assert config["training"]["select"] == select
    assert said is None or said in notes


def test_few_rows_without_a_click_are_none_either(tmp_path):
    log = shop_log(6_000).with_columns(click=(ROW % 40 != 0).cast(pl.Int64))
    config, notes = proposed(log, tmp_path)
    assert config["training"]["select"] == "log_loss"
    assert "about 15 of 600 rows are no clicks" in notes


@pytest.mark.parametrize("name", ["group", "row", "weight"])
def test_a_domain_column_named_like_one_of_the_predictions_is_called_otherwise(tmp_path, name):
    config, notes = proposed(shop_log().rename({"shop": name}), tmp_path)
    assert config["data"]["divisions"] == {f"{name}_domain": {"column": name}}
    assert config["method"]["divisions"] == [f"{name}_domain"]
    assert f"called {name}_domain: predictions have a column {name}" in notes
    assert prepares(config, tmp_path)


def test_a_column_named_like_the_domain_as_a_field_is_called_otherwise(tmp_path):
    log = shop_log().with_columns(domain_shop=(ROW % 97).cast(pl.Float64) / 8)
    config, _ = proposed(log, tmp_path)
    assert kinds(config) == INPUTS | {"own_domain_shop": "numerical"}
    assert prepares(config, tmp_path)


def test_other_columns_that_could_be_domains_are_named(tmp_path):
    config, notes = proposed(shop_log().with_columns(colour=ROW % 4), tmp_path)
    assert list(config["data"]["divisions"]) == ["shop"]
    assert "Domains: shop; they could also be made of colour." in notes


@pytest.mark.parametrize(
    "columns",
    [["user_id", "item_id", "shop", "price", "ts", "click"], ["item_id", "shop", "click"]],
)
@pytest.mark.parametrize("twice", [False, True])
def test_a_csv_without_a_header_is_told_so(tmp_path, columns, twice):
    log = shop_log().select(columns)
    log = log.with_columns(again=pl.col(columns[0])) if twice else log  # its name is there twice
    log.write_csv(tmp_path / "log.csv", include_header=False)
    done = loractr("init", tmp_path / "log.csv")
    assert done.exit_code == 1
    assert "put a line of names before it" in done.stderr
    assert twice or "the first line of" in done.stderr


def test_the_numbers_that_pandas_names_columns_by_are_names(tmp_path):
    log = shop_log().rename({"user_id": "0", "item_id": "1", "shop": "2", "price": "3", "ts": "4"})
    config, _ = proposed(log, tmp_path, "csv")
    assert list(kinds(config)) == ["0", "1", "3"]


def test_a_header_among_the_rows_is_told(tmp_path):
    log = shop_log().select(pl.all().cast(pl.String))
    pl.concat([log, pl.DataFrame({name: [name] for name in log.columns}), log]).write_csv(
        tmp_path / "log.csv"
    )
    done = loractr("init", tmp_path / "log.csv")
    assert done.exit_code == 1
    assert "the header of" in done.stderr


def test_ids_that_a_float_has_rounded_are_left_out(tmp_path):
    log = shop_log().with_columns(item_id=(pl.col("item_id") + 2**60).cast(pl.Float64) + ROW * 512)
    config, notes = proposed(log.sort("price"), tmp_path)
    assert "item_id" not in kinds(config)
    assert "lost their last digits" in notes


def test_a_sample_says_so(tmp_path):
    rows = 200_001
    log = pl.DataFrame(
        {
            "user_id": np.arange(rows) % 50,
            "is_rand": [0] * (rows - 1) + [1],
            "site": np.arange(rows) % 3,
            "click": [1] * (rows - 1) + [0],
        }
    )
    config, notes = proposed(log, tmp_path)
    assert (
        "Guessed from the first 200,000 rows; later rows may hold other values of is_rand" in notes
    )
    assert config["data"]["label"] == {"column": "click"}  # which needs the last row
    assert config["training"]["select"] == "log_loss"


def test_lines_fit_eighty_columns(tmp_path):
    log = shop_log().with_columns(cycled(["NA", "b"]).alias(f"c{n}") for n in range(40))
    result = loractr("init", written(log, tmp_path, "parquet"))
    assert result.exit_code == 0, result.stderr
    assert max(len(line) for line in result.stdout.splitlines()) <= 80 + len(str(tmp_path))
    notes = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert max(len(line) for line in notes) <= 78
    assert yaml.safe_load(result.stdout)["data"]["missing_values"]


def test_out_is_written_whole_and_overwrites_nothing(tmp_path):
    path = written(shop_log(), tmp_path, "parquet")
    done = loractr("init", path, "--out", tmp_path / "i.yaml")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    first = (tmp_path / "i.yaml").read_text()
    assert first == loractr("init", path).stdout
    again = loractr("init", path, "--out", tmp_path / "i.yaml")
    assert again.exit_code == 2
    assert "is not overwritten" in again.stderr
    failed = loractr("init", tmp_path / "none.csv", "--out", tmp_path / "j.yaml")
    assert failed.exit_code == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["i.yaml", "log.parquet"]


def test_a_failure_leaves_no_empty_file_of_the_shell(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    command = f"{sys.executable} -m loractr init none.csv"
    taken = f"{command} --out mine.yaml"  # fails as well, and sooner
    script = (
        f"{command} > config.yaml; {command} > b.YML 2> job.err; {taken} >> mine.yaml;"
        f" {command} > job.log; {taken} > both.yaml 2>&1"
    )
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"none.csv does not exist" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("both.yaml", "job.err", "job.log", "mine.yaml")
    ]
    assert (tmp_path / "mine.yaml").read_text() == "seed: 1\n"
    assert "mine.yaml exists" in (tmp_path / "both.yaml").read_text()


NULLS = pl.when(ROW % 10 == 0).then(pl.lit("NULL"))
LOGS: dict[str, tuple[str, list[Any]]] = {
    "times in text": ("csv", [pl.col("ts").dt.strftime("%Y-%m-%d %H:%M:%S UTC")]),
    "seconds with a fraction": ("csv", [(pl.col("ts").dt.epoch("s") + 0.25).alias("ts")]),
    "seconds with a comma": ("csv", [pl.format("{},25", pl.col("ts").dt.epoch("s")).alias("ts")]),
    "times with gaps": ("csv", [NULLS.otherwise(pl.col("ts").cast(pl.String)).alias("ts")]),
    "lists as text": ("csv", [cycled(list(map(str, LISTS))).alias("history")]),
    "lists of both kinds": ("csv", [cycled(["[1|2]", "2|3", "1", ""]).alias("history")]),
    "null tokens": (
        "csv",
        [
            NULLS.otherwise(pl.col(name).cast(pl.String)).alias(name)
            for name in ("user_id", "item_id", "shop", "price")
        ],
    ),
    "yes and no": ("csv", [pl.col("click").replace_strict({0: "no", 1: "yes"})]),
    "plus and minus 1": ("csv", [pl.col("click") * 2 - 1]),
    "plus and minus 1.0": ("text.parquet", [pl.col("click") * 2.0 - 1]),
    "clicks as words": ("parquet", [pl.lit(1).alias("click"), cycled(["b"]).alias("group")]),
    "decimal comma": ("csv", [commas("price"), commas("click")]),
    "group": ("parquet", [pl.col("shop").alias("group"), pl.col("shop").alias("row")]),
    "a name like a pattern": ("csv", [pl.col("item_id").alias("^id$"), ROW.alias("*") % 9]),
    "a long name": ("csv", [pl.col("item_id").alias("名" * 34)]),
    "true and false": ("text.parquet", [pl.col("click") == 1, (ROW % 3 == 0).alias("is_new")]),
    "decimals": (
        "parquet",
        [pl.col("click").cast(pl.Decimal(9, 2)), pl.col("price").cast(pl.Decimal(9, 2))],
    ),
    "vectors": ("parquet", [cycled(VECTORS).alias("emb"), cycled(["[0.5, 1]"]).alias("emb_2")]),
    "ids in floats": (
        "csv",
        [pl.when(ROW % 7 > 0).then(pl.col("item_id") * 1.0).alias("item_id")],
    ),
    "categories": ("parquet", [pl.col("shop").cast(pl.Categorical), pl.col("ts").cast(pl.Date)]),
    "odd values": (
        "csv",
        [pl.when(ROW != 5).then(pl.col("price").cast(pl.String)).otherwise(pl.lit("?"))],
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_what_is_proposed_can_be_prepared(tmp_path, name):
    kind, columns = LOGS[name]
    log = shop_log().with_columns(columns)
    config = parse_config(infer(written(log, tmp_path, kind))[0])
    data = prepare(config.data, tmp_path / "prepared")
    assert len(data.train) + len(data.validation) + len(data.test) >= len(log)
    assert 0 < data.train.label.mean() < 1
