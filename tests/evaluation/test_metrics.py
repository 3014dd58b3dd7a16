import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from loractr.errors import DataError, UsageError
from loractr.evaluation import gauc, log_loss, mean_auc, score, wauc


def click_log(rows, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=rows) - 1
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return labels, logits, rng.integers(-1, 6, rows), rng.random(rows)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_loss_is_scikit_learns(dtype):
    labels, logits, _, weight = click_log(2_000, seed=0)
    p = sigmoid(4 * logits).astype(dtype)
    assert log_loss(labels, p) == pytest.approx(sklearn.log_loss(labels, p), rel=1e-6)
    expected = sklearn.log_loss(labels, p, sample_weight=weight)
    assert log_loss(labels, p, weight) == pytest.approx(expected, rel=1e-6)


def test_a_certain_and_wrong_prediction_costs_the_log_of_the_clip():
    assert log_loss([0], np.array([1.0])) == pytest.approx(-math.log(2.0**-52))
    assert log_loss([1], np.array([0.0], np.float32)) == pytest.approx(-math.log(2.0**-23))
    assert log_loss([1, 0], np.array([1.0, 0.0])) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan, math.inf])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(DataError, match="at row 1"):
        log_loss([0, 1], [0.5, wrong])


def test_averages_run_over_defined_domains():
    per_domain = np.array([0.6, np.nan, 0.9])
    assert mean_auc(per_domain) == pytest.approx(0.75)
    assert wauc(per_domain, [2, 100, 1]) == pytest.approx((2 * 0.6 + 0.9) / 3)


def test_averages_of_nothing_are_undefined():
    assert math.isnan(mean_auc(np.array([np.nan, np.nan])))
    assert math.isnan(wauc(np.array([]), []))
    assert math.isnan(log_loss([], []))


def test_grouped_auc_weighs_each_group_by_its_rows_and_skips_one_class():
    #        user 7: AUC 1, 2 rows   user 3: AUC ½, 4 rows        user 5: one class
    groups = [7, 7, 3, 3, 3, 3, 5]
    labels = [1, 0, 1, 0, 1, 0, 1]
    scores = [0.9, 0.1, 0.8, 0.5, 0.2, 0.5, 0.3]
    assert gauc(labels, scores, groups) == pytest.approx((2 * 1 + 4 * 0.5) / 6)
    weight = [3, 3, 1, 1, 1, 1, 50]
    assert gauc(labels, scores, groups, weight) == pytest.approx((6 * 1 + 4 * 0.5) / 10)
    assert math.isnan(gauc([1, 1], [0.1, 0.2], [0, 0]))


def test_grouped_auc_of_named_groups():
    assert gauc([1, 0, 1, 0], [0.9, 0.1, 0.1, 0.9], ["a", "a", "b", "b"]) == 0.5


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_logits", [False, True])
def test_score_is_scikit_learn_domain_by_domain(weighted, as_logits):
    labels, logits, domains, weight = click_log(4_000, seed=1)
    p = sigmoid(logits)
    found = score(
        labels,
        logits if as_logits else p,
        domains,
        7,
        weight if weighted else None,
        logits=as_logits,
    )
    weight = weight if weighted else np.ones(4_000)
    aucs, masses = [], []
    for d in range(6):
        rows = domains == d
        kwargs = {"sample_weight": weight[rows]}
        aucs.append(sklearn.roc_auc_score(labels[rows], p[rows], **kwargs))
        masses.append(weight[rows].sum())
        assert found.domain_auc[d] == pytest.approx(aucs[d], abs=1e-12)
        expected = sklearn.log_loss(labels[rows], p[rows], **kwargs)
        assert found.domain_log_loss[d] == pytest.approx(expected, rel=1e-12)
        assert found.rows[d] == rows.sum()
        assert found.positives[d] == labels[rows].sum()
    assert np.isnan([found.domain_auc[6], found.domain_log_loss[6]]).all()  # no row is of domain 6
    assert found.mean_auc == pytest.approx(np.mean(aucs))
    assert found.wauc == pytest.approx(np.average(aucs, weights=masses))
    pooled = sklearn.roc_auc_score(labels, p, sample_weight=weight)
    assert found.pooled_auc == pytest.approx(pooled, abs=1e-12)
    assert found.log_loss == pytest.approx(sklearn.log_loss(labels, p, sample_weight=weight))


def test_log_loss_of_extreme_logits_is_finite_and_exact():
    found = score(
        [0, 1, 1, 0], np.array([800.0, -900.0, 800.0, -2.0]), [0, 0, 0, 0], 1, logits=True
    )
    assert found.log_loss == pytest.approx((800 + 900 + 0 + math.log1p(math.exp(-2))) / 4)


def test_logits_taken_for_probabilities_are_noticed():
    with pytest.raises(DataError, match=r"probability -2\.0 at row 1 is outside .*\n.*logits"):
        score([0, 1], [0.5, -2.0], [0, 0], 1)


def test_score_of_no_rows_is_undefined():
    found = score([], [], np.zeros(0, np.int64), 2)
    assert np.isnan([found.mean_auc, found.wauc, found.pooled_auc, found.log_loss]).all()
    assert found.rows.tolist() == [0, 0]


def test_score_refuses_a_domain_out_of_range():
    with pytest.raises(UsageError, match="from -1 to 1"):
        score([0, 1], [0.5, 0.5], [0, 2], 2)
