"""Standard errors of AUCs against the definition pair by pair, a bootstrap, and sampling itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractr.errors import DataError
from loractr.evaluation import auc, domain_auc, domain_auc_se, wauc_se


def by_components(labels, scores, weight=None):
    """DeLong's structural components, pair by pair in float64: (AUC, standard error)."""
    weight = [1.0] * len(labels) if weight is None else [float(w) for w in weight]
    rows = [(y, float(s), w) for y, s, w in zip(labels, scores, weight, strict=True) if w > 0]
    ones, zeros = [r for r in rows if r[0] == 1], [r for r in rows if r[0] == 0]
    if not ones or not zeros:
        return math.nan, math.nan

    def won(one, zero):
        return 1.0 if one[1] > zero[1] else 0.5 * (one[1] == zero[1])

    w1, w0 = sum(r[2] for r in ones), sum(r[2] for r in zeros)
    of_ones = [sum(z[2] * won(o, z) for z in zeros) / w0 for o in ones]
    of_zeros = [sum(o[2] * won(o, z) for o in ones) / w1 for z in zeros]
    area = sum(o[2] * v for o, v in zip(ones, of_ones, strict=True)) / w1
    if len(ones) == 1 or len(zeros) == 1:
        return area, math.nan
    variance = 0.0
    for chosen, values, total in ((ones, of_ones, w1), (zeros, of_zeros, w0)):
        spread = sum((r[2] * (v - area)) ** 2 for r, v in zip(chosen, values, strict=True))
        variance += spread / total**2 * len(chosen) / (len(chosen) - 1)
    return area, math.sqrt(variance)


def one_domain(labels, scores, weight=None):
    area, error = domain_auc_se(labels, scores, np.zeros(len(labels), np.int64), 1, weight)
    return area[0], error[0]


def test_an_error_worked_by_hand():
    # Positives .8 and .4, negatives .6, .4, .1. Shares won: 1 and 1/2 of the negatives; lost to by
    # 1/2, 3/4 and 1 of the positives. AUC 3/4; S10 = 1/8, S01 = 1/16; 1/16 + 1/48 = 1/12.
    area, error = one_domain([1, 0, 1, 0, 0], [0.8, 0.6, 0.4, 0.4, 0.1])
    assert area == 0.75
    assert error == pytest.approx(math.sqrt(1 / 12), rel=1e-14)


values = st.sampled_from([-math.inf, -1.0, 0.0, 0.25, 0.5, 1.0]) | st.floats(
    allow_nan=False, width=32
)
rows_of = st.lists(
    st.tuples(st.integers(0, 1), values, st.integers(-1, 2), st.integers(0, 3)), max_size=30
)


@given(rows_of, st.sampled_from(["float32", "float64"]))
def test_any_scores_and_weights_count_component_by_component(rows, dtype):
    labels, scores, domain, weight = zip(*rows, strict=True) if rows else ((),) * 4
    scores, domain = np.array(scores, dtype), np.array(domain, np.int64)
    for w in (None, np.array(weight) / 2):
        area, error = domain_auc_se(labels, scores, domain, 3, w)
        np.testing.assert_array_equal(area, domain_auc(labels, scores, domain, 3, w))
        for d in range(3):
            inside = np.flatnonzero(domain == d)
            expected = by_components(
                [labels[i] for i in inside], scores[inside], None if w is None else w[inside]
            )
            np.testing.assert_allclose((area[d], error[d]), expected, rtol=1e-9, atol=1e-12)


def click_log(rows, seed, lift=1.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.2).astype(int)
    scores = np.round(rng.normal(size=rows) + lift * labels, 1).astype(np.float32)
    return labels, scores, rng.gamma(2.0, size=rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_is_that_of_a_bootstrap(weighted):
    labels, scores, weight = click_log(600, seed=1)
    chosen = weight if weighted else None
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(1000):
        at = rng.integers(0, len(labels), len(labels))
        drawn.append(auc(labels[at], scores[at], None if chosen is None else chosen[at]))
    assert one_domain(labels, scores, chosen)[1] == pytest.approx(np.std(drawn), rel=0.1)


def test_the_error_is_how_much_fresh_rows_differ():
    logs = [click_log(300, seed) for seed in range(400)]
    found = np.array([one_domain(labels, scores) for labels, scores, _ in logs])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.1)


def test_the_scale_of_the_weights_says_nothing():
    labels, scores, weight = click_log(400, seed=3)
    for factor in (1e-6, 1e6):
        expected = one_domain(labels, scores, weight)
        np.testing.assert_allclose(one_domain(labels, scores, weight * factor), expected, rtol=1e-9)
    np.testing.assert_allclose(
        one_domain(labels, scores, np.full(400, 7.0)), one_domain(labels, scores), rtol=1e-12
    )


def test_many_rows_are_sorted_not_paired():
    labels, scores, _ = click_log(400_000, seed=4)  # 2.5 * 10 ** 10 pairs
    area, error = one_domain(labels, scores)
    # binormal with unit shift: AUC Φ(1/√2) = .7602; the error of n rows falls as 1 / √n
    assert area == pytest.approx(0.7602, abs=4 * error)
    assert error == pytest.approx(one_domain(*click_log(4_000, seed=5)[:2])[1] / 10, rel=0.1)


@pytest.mark.parametrize(
    ("labels", "defined"), [([], False), ([1, 1], False), ([1, 0, 0], True), ([0, 1, 1], True)]
)
def test_one_row_of_a_class_says_nothing_about_its_spread(labels, defined):
    area, error = one_domain(labels, np.linspace(0, 1, len(labels)))
    assert math.isnan(error)
    assert math.isnan(area) != defined


def test_wrong_values_are_refused_as_for_the_auc():
    with pytest.raises(DataError, match="label 2 at row 1"):
        domain_auc_se([1, 2], [0.1, 0.2], [0, 0], 1)


def test_the_error_of_an_average_is_that_of_independent_parts():
    aucs, errors = np.array([0.7, 0.8, math.nan]), np.array([0.03, 0.04, math.nan])
    # (1 * .03, 3 * .04) / 4, then (.03, .04) / 2
    assert wauc_se(aucs, errors, [10, 30, 99]) == pytest.approx(math.hypot(0.03, 0.12) / 4)
    assert wauc_se(aucs, errors, np.ones(3)) == pytest.approx(0.05 / 2)


def test_a_domain_with_one_positive_counts_with_the_largest_error_there_is():
    aucs, errors = np.array([0.7, 1.0]), np.array([0.03, math.nan])
    assert wauc_se(aucs, errors, [98, 2]) == pytest.approx(math.hypot(0.98 * 0.03, 0.02 / 2))


def test_averages_of_nothing_have_no_error():
    nothing = np.array([math.nan])
    assert math.isnan(wauc_se(nothing, nothing, [5]))
    assert math.isnan(wauc_se(np.zeros(0), np.zeros(0), []))
