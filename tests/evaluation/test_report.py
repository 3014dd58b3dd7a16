import polars as pl
import pytest

from loractr.evaluation import comparison_table, division_table, evaluate, runs_table


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
    assert shown.columns == ("domain", "rows", "positives", "AUC", "s.e.", "log loss", "undefined")
    assert shown.rows == (
        ("home", "2", "1", "1.0000", "–", "0.4904", ""),  # (ln 4/3 + ln 2) / 2
        ("feed", "1", "1", "–", "–", "0.6931", "one class"),
        ("(unseen)", "1", "0", "–", "–", "0.2877", "one class"),
        ("mean", "", "", "1.0000", "0.5000", "", ""),
        ("weighted (WAUC)", "", "", "1.0000", "0.5000", "", ""),
        # shares won: 1 and 3/4 of the positives, 3/4 and 1 of the negatives: 1/64 + 1/64
        ("all rows", "4", "", "0.8750", "0.1768", "0.4904", ""),
    )


def test_reasons_have_a_column_only_where_there_are_some(table):
    shown = division_table(evaluate(table.filter(tab="home"), ["tab"]), "tab")
    assert shown.columns == ("domain", "rows", "positives", "AUC", "s.e.", "log loss")


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


def test_runs_have_a_line_each_then_mean_and_deviation(table):
    def run(*probabilities):
        return evaluate(table.with_columns(probability=pl.Series(probabilities)), TABS)

    shown = runs_table({"seed-0": run(0.75, 0.5, 0.5, 0.25), "seed-1": run(0.1, 0.2, 0.3, 0.4)})
    assert shown.columns == ("run", "WAUC", "mean AUC", "pooled AUC", "log loss")
    assert [row[:4] for row in shown.rows] == [
        ("seed-0", "1.0000", "1.0000", "0.8750"),
        ("seed-1", "0.0000", "0.0000", "0.2500"),
        ("mean", "0.5000", "0.5000", "0.5625"),
        ("standard deviation", "0.7071", "0.7071", "0.4419"),  # 1 / √2, 0.625 / √2
    ]


def test_one_run_has_no_deviation_and_no_divisions_no_wauc(table):
    shown = runs_table({"seed-0": evaluate(table, [])})
    assert [row[:4] for row in shown.rows] == [("seed-0", "–", "–", "0.8750")]


def test_the_mean_of_an_undefined_number_is_undefined(table):
    one_class = table.filter(label=1)
    shown = runs_table({"a": evaluate(table, TABS), "b": evaluate(one_class, TABS)})
    assert shown.rows[2][:4] == ("mean", "–", "–", "–")
