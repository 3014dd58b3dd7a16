"""Too few labels are told with the error that follows, and only where they are too few."""

import numpy as np
import pytest

from loractr.evaluation import auc, label_remarks


def told(rows, positives, name="validation", select="mean_auc"):
    return label_remarks({name: {"rows": rows, "positives": positives}}, select)


def test_the_error_is_that_of_an_auc_of_noise():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) < 12
    spread = np.std([auc(labels, rng.random(1000)) for _ in range(500)])
    (only,) = told(1000, 12)
    assert only.startswith("validation: 12 positives in 1,000 rows: the AUC that chooses the best")
    assert f"about {spread:.2f};" in only
    assert "training.select: log_loss" in only


def test_few_negatives_are_as_bad():
    assert told(1000, 988)[0].startswith("validation: 12 negatives in 1,000 rows")
    assert told(1000, 999, "test")[0].startswith("test: 1 negative in 1,000 rows: an AUC has a")


def test_who_chooses_by_log_loss_is_not_told_to():
    assert told(1000, 12, select="log_loss") == [
        "validation: 12 positives in 1,000 rows: an AUC has a standard error of about 0.08"
    ]


@pytest.mark.parametrize(
    ("name", "positives", "expected"),
    [
        ("train", 0, "train: none of 500 rows is positive: there is nothing to learn"),
        ("train", 500, "train: each of 500 rows is positive: there is nothing to learn"),
        ("test", 0, "test: none of 500 rows is positive: no AUC is defined"),
        (
            "validation",
            500,
            "validation: each of 500 rows is positive: no AUC is defined; the best epoch is chosen"
            " by log loss instead",
        ),
    ],
)
def test_one_class_is_told(name, positives, expected):
    assert told(500, positives, name) == [expected]


@pytest.mark.parametrize(
    ("name", "rows", "positives"),
    [("test", 1000, 100), ("test", 1000, 900), ("test", 0, 0), ("train", 1000, 5)],
)
def test_enough_labels_or_no_rows_are_not_remarked_on(name, rows, positives):
    assert told(rows, positives, name) == []
