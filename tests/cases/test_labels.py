"""Labels as people have them: words, booleans, ±1, 1 and 2, decimals."""

import polars as pl
import pytest

from cases.shop_log import config, shop_log
from loractr.config import parse_config
from loractr.data.prepare import prepare
from loractr.errors import DataError


def positives(prepared):
    return sum(float(prepared.rows(name).label.sum()) for name in ("train", "validation", "test"))


WRITTEN = {
    "True/False as text": (("False", "True"), None),
    "true/false as text": (("false", " true"), None),
    "yes/no": (("no", "Yes"), "== yes"),
    "Y/N": (("N", "Y"), "!= n"),
    "±1": ((-1, 1), "== 1"),
    "±1, above": ((-1, 1), "> 0"),
    "1/2": ((1, 2), "== 2"),
    "0.0/1.0": ((0.0, 1.0), None),
    "booleans": ((False, True), None),
    "booleans by rule": ((False, True), "== true"),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_label_is_read(name, kind, tmp_path):
    (no, yes), rule = WRITTEN[name]
    log = shop_log(200)
    written = log.with_columns(click=pl.Series([yes if c else no for c in log["click"].to_list()]))
    getattr(written, f"write_{kind}")(tmp_path / f"log.{kind}")
    label = {"column": "click"} | ({"positive": rule} if rule else {})
    values = config(tmp_path / f"log.{kind}", label=label)
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    assert positives(prepared) == log["click"].sum()


def test_decimals_of_0_and_1_are_a_label(tmp_path):
    log = shop_log(200)
    log.with_columns(pl.col("click").cast(pl.Decimal(3, 1))).write_parquet(tmp_path / "log.parquet")
    prepared = prepare(parse_config(config(tmp_path / "log.parquet")).data, tmp_path / "p")
    assert positives(prepared) == log["click"].sum()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("pair", "rule"),
    [(("no", "yes"), "== yes"), ((1, 2), "== 2"), ((-1, 1), "== 1"), (("N", "Y"), "== Y")],
)
def test_without_a_rule_the_message_shows_the_one_to_write(pair, rule, kind, tmp_path):
    log = shop_log(200)
    column = pl.Series([pair[c] for c in log["click"].to_list()])
    getattr(log.with_columns(click=column), f"write_{kind}")(tmp_path / f"log.{kind}")
    with pytest.raises(DataError, match="label") as raised:
        prepare(parse_config(config(tmp_path / f"log.{kind}")).data, tmp_path / "p")
    assert f'label: {{column: click, positive: "{rule}"}}' in str(raised.value)
    assert "categorical" not in str(raised.value)


@pytest.mark.parametrize("rule", [None, "== yes", "> 0"])
def test_a_missing_label_is_refused_whatever_the_rule(rule, tmp_path):
    log = shop_log(100).with_columns(pl.col("click").cast(pl.String))
    log = log.with_columns(click=pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise("click"))
    log.write_parquet(tmp_path / "log.parquet")
    label = {"column": "click"} | ({"positive": rule} if rule else {})
    values = config(tmp_path / "log.parquet", label=label)
    with pytest.raises(DataError, match=r"1 labels are missing \(row 7"):
        prepare(parse_config(values).data, tmp_path / "p")


@pytest.mark.parametrize("rule", ["> yes", "yes", "=="])
def test_a_rule_compares_text_for_equality_only(rule):
    with pytest.raises(ValueError, match=r"compar"):
        parse_config(config("log.csv", label={"column": "click", "positive": rule}))


@pytest.mark.parametrize("rule", [">= 0.7", "== 0.3", "> 0.3", "<= 0.6"])
def test_small_floats_are_compared_as_they_are_written(rule, tmp_path):
    """0.7 as a Float32 is not 0.699999988: as pandas reads the same log from text."""
    scores = [round(0.1 * (n % 10), 1) for n in range(200)]
    log = shop_log(200).with_columns(click=pl.Series(scores, dtype=pl.Float32))
    log.write_parquet(tmp_path / "log.parquet")
    values = config(tmp_path / "log.parquet", label={"column": "click", "positive": rule})
    prepared = prepare(parse_config(values).data, tmp_path / "p")
    sign, bound = rule.split()
    asked = {">=": float.__ge__, "==": float.__eq__, ">": float.__gt__, "<=": float.__le__}[sign]
    assert positives(prepared) == sum(asked(score, float(bound)) for score in scores)
