import json
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from loractr.errors import DataError, MissingColumnError, UnknownDomainError, UsageError
from loractr.evaluation import evaluate
from loractr.evaluation.predictions import RESERVED
from loractr.schema import Division


def predictions(**columns):
    """Three domains of a `tab`: home (3 rows), feed (one class), and two rows that are unseen."""
    table = {
        "row": [0, 1, 2, 3, 4, 5, 6],
        "tab": ["home", "feed", "home", None, "home", "feed", None],
        "label": [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        "probability": [0.7, 0.5, 0.7, 0.2, 0.1, 0.9, 0.4],
    }
    types = {"label": pl.Float32, "probability": pl.Float32}
    return pl.DataFrame(table | columns, schema_overrides=types)


TABS = {"tab": ["home", "feed", "kids"]}


def test_the_dictionary_is_that_of_metrics_json():
    result = evaluate(predictions(), TABS).as_dict()
    pooled = predictions()
    auc = roc_auc_score(pooled["label"], pooled["probability"])
    loss = log_loss(pooled["label"], pooled["probability"])
    assert result == {
        "pooled": {
            "auc": pytest.approx(auc),
            "log_loss": pytest.approx(loss),
            "gauc": None,
            "rows": 7,
            # shares won: 5/6, 2/3, 1, 2/3 of the positives; 3/8, 1, 1 of the negatives
            "auc_se": pytest.approx(np.sqrt(11 / 1728 + 25 / 576)),
        },
        "divisions": {
            "tab": {
                "wauc": 0.75,
                "mean_auc": 0.75,
                "undefined": 2,
                "domains": {
                    "home": {
                        "auc": 0.75,
                        "log_loss": pytest.approx(-np.log([0.7, 0.3, 0.9]).mean()),
                        "rows": 3,
                        "positives": 1,
                        "undefined": None,
                        "auc_se": None,  # of one positive
                    },
                    "feed": {
                        "auc": None,
                        "log_loss": pytest.approx(-np.log([0.5, 0.9]).mean()),
                        "rows": 2,
                        "positives": 2,
                        "undefined": "one class",
                        "auc_se": None,
                    },
                    "kids": {
                        "auc": None,
                        "log_loss": None,
                        "rows": 0,
                        "positives": 0,
                        "undefined": "no rows",
                        "auc_se": None,
                    },
                },
                "unseen": {
                    "auc": 1.0,
                    "log_loss": pytest.approx(-np.log([0.8, 0.4]).mean()),
                    "rows": 2,
                    "positives": 1,
                    "undefined": None,
                    "auc_se": None,
                },
                "wauc_se": 0.5,  # the most there is, as `home` has one positive
                "mean_auc_se": 0.5,
            }
        },
        "best_possible": None,
    }
    json.dumps(result, allow_nan=False)


def test_unseen_is_named_only_where_there_are_such_rows():
    seen = predictions().drop_nulls("tab")
    assert "unseen" not in evaluate(seen, TABS).as_dict()["divisions"]["tab"]


def test_divisions_by_name_have_the_domains_that_occur():
    named = evaluate(predictions(), ["tab"])
    assert list(named.divisions["tab"].domains) == ["feed", "home"]
    assert evaluate(predictions()) == named


def test_without_divisions_the_pooled_numbers_remain():
    result = evaluate(predictions(), [])
    assert result.divisions == {}
    assert result.pooled.rows == 7


def test_the_order_of_the_rows_changes_nothing():
    table = predictions(group=[1, 1, 1, 2, 2, 2, 2])
    turned, straight = evaluate(table.reverse(), TABS), evaluate(table, TABS)
    assert turned.divisions["tab"].domains == straight.divisions["tab"].domains
    assert asdict(turned.pooled) == pytest.approx(asdict(straight.pooled), rel=1e-14)


def test_two_divisions_are_measured_apart():
    table = predictions(age=["old", "old", "old", "young", "young", "young", "young"])
    result = evaluate(table, {**TABS, "age": ["young", "old"]})
    assert result.divisions["tab"] == evaluate(predictions(), TABS).divisions["tab"]
    young = table.filter(age="young")
    expected = roc_auc_score(young["label"], young["probability"])
    assert result.divisions["age"].domains["young"].auc == pytest.approx(expected)


def test_weights_count_everywhere():
    weight = [2.0, 1.0, 0.0, 3.0, 1.0, 1.0, 1.0]
    table = predictions(weight=weight)
    result = evaluate(table, {"tab": ["home", "feed"]})
    expected = roc_auc_score(table["label"], table["probability"], sample_weight=weight)
    assert result.pooled.auc == pytest.approx(expected)
    home = result.divisions["tab"].domains["home"]
    assert (home.auc, home.rows) == (1.0, 3)  # the tie has weight 0
    assert home.log_loss == pytest.approx(-(2 * np.log(0.7) + np.log(0.9)) / 3)


def test_rows_of_weight_zero_make_no_class():
    table = predictions(weight=[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    domains = evaluate(table, TABS).divisions["tab"].domains
    assert domains["home"].undefined == "one class"
    assert domains["feed"].undefined == "no rows"
    assert domains["feed"].rows == 2


@pytest.mark.parametrize("groups", [[5, 5, 9, 9, 9, 5, 9], list("aabbbab")])
def test_grouped_auc_needs_a_group_column(groups):
    # 5: labels 1 1 1, one class.   9: labels 0 0 0 1, scores .7 .2 .1 .4, AUC 2/3.
    assert evaluate(predictions(group=groups), TABS).pooled.gauc == pytest.approx(2 / 3)


def test_the_best_possible_is_that_of_the_true_probability():
    truth = [0.9, 0.6, 0.5, 0.1, 0.2, 0.8, 0.3]
    result = evaluate(predictions(true_probability=truth), TABS)
    alone = predictions().with_columns(probability=pl.Series(truth))
    assert result.best_possible == evaluate(alone, TABS)
    written = result.as_dict()["best_possible"]
    assert set(written) == {"pooled", "divisions"}
    assert "unseen" in written["divisions"]["tab"]


def test_no_rows_at_all_are_reported_not_raised():
    result = evaluate(predictions().clear(), TABS)
    assert (result.pooled.auc, result.pooled.rows) == (None, 0)
    assert {d.undefined for d in result.divisions["tab"].domains.values()} == {"no rows"}


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["feed", "home"])])
def test_domains_may_be_categories(kind):
    table = predictions().with_columns(pl.col("tab").cast(kind))
    assert evaluate(table, TABS) == evaluate(predictions(), TABS)


def test_domains_may_be_numbers():
    table = predictions(tab=[7, 10, 7, None, 7, 10, None])
    assert list(evaluate(table, ["tab"]).divisions["tab"].domains) == ["10", "7"]


@pytest.mark.parametrize("column", ["label", "probability", "tab"])
def test_a_missing_column_is_named(column):
    with pytest.raises(MissingColumnError, match=f"column '{column}', wanted by evaluate"):
        evaluate(predictions().drop(column), TABS)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"label": [1, 0, 1, 0, 1, None, 1]}, DataError, "'label' has 1 null"),
        ({"probability": [None] * 7}, DataError, "'probability' has 7 null"),
        ({"label": [1, 0, 3, 0, 1, 0, 1]}, DataError, "label 3.0 at row 2"),
        ({"probability": [0.1] * 6 + [1.25]}, DataError, "1.25 at row 6 is outside"),
        ({"group": [1, 2, 3, 4, 5, 6, None]}, DataError, "'group' has 1 null"),
        ({"weight": ["heavy"] * 7}, DataError, "'weight' must hold numbers"),
        ({"weight": [-1.0] * 7}, DataError, "weight -1.0 at row 0"),
        ({"true_probability": [2.0] * 7}, DataError, "2.0 at row 0 is outside"),
        ({"tab": ["shop"] * 7}, UnknownDomainError, "'tab' has no domain 'shop'"),
    ],
)
def test_bad_columns_are_refused_by_name(columns, error, message):
    with pytest.raises(error, match=message):
        evaluate(predictions(**columns), TABS)


@pytest.mark.parametrize("name", RESERVED)
def test_no_division_can_take_the_name_of_a_column_of_predictions(name):
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        Division(name=name, column="tab")


def test_a_domain_listed_twice_is_refused():
    with pytest.raises(UsageError, match="'tab' lists 'home' twice"):
        evaluate(predictions(), {"tab": ["home", "feed", "home"]})
