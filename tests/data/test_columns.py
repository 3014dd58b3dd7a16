"""What a column is, by its values, whatever the type that a file gives them."""

from datetime import datetime

import polars as pl
import pytest

from loractr.data import column_names
from loractr.data.columns import examine


@pytest.mark.parametrize(
    "values",
    [
        pl.Series("n", [3, 1, None, 2]),
        pl.Series("n", [3.0, 1.0, None, 2.0]),
        pl.Series("n", [3.0, 1.0, float("nan"), 2.0]),
        pl.Series("n", ["3", "1", None, "2"]),
        pl.Series("n", ["3.0", " 1 ", "NULL", "2"]),
        pl.Series("n", ["3", "1", "NA", "2"], dtype=pl.Categorical),
        pl.Series("n", [3, 1, None, 2]).cast(pl.Decimal(9, 2)),
    ],
)
def test_whole_numbers_in_any_type(values):
    column = examine(values)
    assert (column.type, column.distinct, column.missing, column.known) == ("whole", 3, 1, 3)
    assert (column.low, column.median, column.high) == (1, 2, 3)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["007", "12"], "text"),
        (["+4930123", "+4930124"], "text"),
        (["1.5", "+2"], "number"),
        (["1e-3", ".5"], "number"),
        (["18446744073709551615", "9223372036854775808"], "whole"),
        (["2026-03-01", "2026/3/2 10:00"], "time"),
        (["10.0.0.1", "10.0.0.2"], "text"),
        (["1.2.10", "1.3.11"], "text"),
        (["5 Market St", "3 May Rd"], "text"),
        (["1234-56", "1234-57"], "text"),
        (["31.12.2026", "1.1.2027"], "unfit"),
        (["Thu, 31 Dec 2026", "Fri, 01 Jan 2027"], "unfit"),
        (["[1, 2]", "[]"], "list"),
        (["(0,10]", "[10,100)"], "text"),
        (["500+", "[10,100)"], "text"),
        ([None, "NULL"], "text"),
    ],
)
def test_text_is_what_its_values_are(texts, kind):
    assert examine(pl.Series("x", texts, dtype=pl.String)).type == kind


def test_a_few_mistakes_do_not_make_numbers_text_but_letters_make_ids_text():
    prices = [f"{n}.5" for n in range(30)]
    column = examine(pl.Series("price", [*prices, "?", "?"]))
    assert (column.type, column.odd, column.missing) == ("number", {"?": 2}, 2)
    ids = [str(n) for n in range(30)]
    assert examine(pl.Series("item", [*ids, "A7"])).type == "text"
    assert examine(pl.Series("amount", [*ids, "A7"])).odd == {"A7": 1}


def test_texts_that_stand_for_a_missing_value_are_counted():
    column = examine(pl.Series("shop", ["a", "NA", "NA", "", None, "-"]))
    assert column.gaps == {"NA": 2, "": 1, "-": 1}
    assert (column.distinct, column.missing) == (1, 5)


def test_two_ids_with_a_comma_are_no_decimal_numbers():
    assert examine(pl.Series("x", ["103,107", "107", "110,103", "110"] * 9)).separator == ","
    assert examine(pl.Series("x", ["1,05", "17,5", "3,99"] * 9)).decimal == ","
    assert examine(pl.Series("x", ["1.05", "17", "3.99"] * 9)).decimal == "."
    assert examine(pl.Series("x", ["1.0", "17", None] * 9)).decimal == "."
    assert examine(pl.Series("x", ["1", "17", "3e5"] * 9)).decimal is None
    assert examine(pl.Series("price", ["1", "17", "3"] * 9 + ["n. a."])).decimal is None


def test_lists_are_cut_as_they_are_when_they_are_read():
    brackets = examine(pl.Series("x", ["['it''s', 7]", '["a, b"]', "[]", "['a' 'b']"] * 9))
    assert (brackets.type, brackets.separator, brackets.odd) == ("list", None, {})
    mixed = examine(pl.Series("x", ["[1|2]", "2|3", "3", "1"] * 9))
    assert (mixed.type, mixed.separator) == ("list", "|")
    many = examine(pl.Series("x", ["[1]", "[1, 2]"] * 95 + ["?"] * 10))
    assert (many.type, many.odd, many.missing) == ("list", {"?": 10}, 10)
    assert examine(pl.Series("x", ["[0.5, nan, 1]", "[1, 2, None]", "[]"] * 9)).type == "unfit"


def test_a_name_like_a_pattern_is_a_name():
    assert examine(pl.Series("^x.*$", ["a|b", "b", "a"] * 9)).separator == "|"
    assert examine(pl.Series("*", [1.5, float("nan")])).missing == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("isLike_2", column_names.is_outcome),
        ("balance_after", column_names.is_outcome),
        ("propensityScore", column_names.is_score),
        ("unixReviewTime", column_names.is_time),
        ("created_at", column_names.is_time),
        ("upload_dt", column_names.is_time_of_item),
        ("period", column_names.is_step),
        ("reviewerID", column_names.is_user),
        ("AdGroup_id", column_names.is_id),
        ("price", column_names.is_amount),
    ],
)
def test_names_say_what_they_say(name, says):
    assert says(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("day_of_week", column_names.is_step),
        ("item_index", column_names.is_step),
        ("user_count_id", column_names.is_amount),
        ("afternoon", column_names.is_outcome),
        ("clickhouse", column_names.is_outcome),
        ("probe", column_names.is_score),
    ],
)
def test_names_do_not_say_more(name, says):
    assert not says(name)


def test_moments_and_their_text_are_one_column():
    moments = pl.Series("at", [datetime(2026, 3, 1, 10), datetime(2026, 3, 2)])
    typed, text = examine(moments), examine(moments.dt.strftime("%Y-%m-%dT%H:%MZ"))
    assert typed.type == text.type == "time"
    assert typed.values.to_list() == text.values.to_list()
