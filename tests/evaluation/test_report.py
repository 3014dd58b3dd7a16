import polars as pl
import pytest

from loractr.evaluation import comparison_table, division_table, evaluate


@pytest.fixture
def table():
    return pl.DataFrame(
        {
            "tab": ["home", "home", "feed", None],
            "label": [1, 0, 1, 0],
            "probability": [0.75, 0.5, 0.5, 0.25],
        }
    )


TABS = {"tab": ["home", "feed"]}


def test_a_division_has_a_row_per_domain_then_the_averages(table):
    shown = division_table(evaluate(table, TABS), "tab")
    assert shown.title == "by tab"
    assert shown.columns == ("domain", "rows", "positives", "AUC", "log loss", "undefined")
    assert shown.rows == (
        ("home", "2", "1", "1.0000", "0.4904", ""),  # (ln 4/3 + ln 2) / 2
        ("feed", "1", "1", "–", "0.6931", "one class"),
        ("(unseen)", "1", "0", "–", "0.2877", "one class"),
        ("mean", "", "", "1.0000", "", ""),
        ("weighted (WAUC)", "", "", "1.0000", "", ""),
        ("all rows", "4", "", "0.8750", "0.4904", ""),
    )


def test_the_best_possible_stands_beside(table):
    known = table.with_columns(true_probability=pl.Series([0.9, 0.1, 0.4, 0.6]))
    shown = division_table(evaluate(known, TABS), "tab")
    assert shown.columns[-1] == "best AUC"
    assert [row[-1] for row in shown.rows] == ["1.0000", "–", "–", "1.0000", "1.0000", "0.7500"]


def test_results_stand_side_by_side_with_the_best_possible_last(table):
    known = table.with_columns(true_probability=pl.Series([0.9, 0.1, 0.4, 0.6]))
    worse = known.with_columns(probability=pl.Series([0.1, 0.2, 0.3, 0.4]))
    results = {"mix": evaluate(worse, TABS), "mlora": evaluate(known, TABS)}
    shown = comparison_table(results, "tab")
    assert shown.columns == ("domain", "rows", "mix", "mlora", "best possible")
    assert shown.rows == (
        ("home", "2", "0.0000", "1.0000", "1.0000"),
        ("feed", "1", "–", "–", "–"),
        ("(unseen)", "1", "–", "–", "–"),
        ("mean", "", "0.0000", "1.0000", "1.0000"),
        ("weighted (WAUC)", "", "0.0000", "1.0000", "1.0000"),
        ("all rows", "4", "0.2500", "0.8750", "0.7500"),
    )


def test_every_row_is_as_long_as_the_header(table):
    for shown in (
        division_table(evaluate(table, TABS), "tab"),
        comparison_table({"one": evaluate(table, TABS)}, "tab"),
    ):
        assert {len(row) for row in shown.rows} == {len(shown.columns)}
