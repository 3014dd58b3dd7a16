"""Expected values: scikit-learn, pairs counted in plain Python, and numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from loractr.errors import DataError, UsageError
from loractr.evaluation import auc, domain_auc

TYPES = ["float16", "float32", "float64", "int64"]


def by_pairs(labels, scores, weight=None):
    """The definition: every pair of a positive and a negative, one after the other."""
    weight = [1.0] * len(labels) if weight is None else weight
    rows = list(zip(labels, scores, weight, strict=True))
    pairs = [(p, n) for p, n in itertools.product(rows, rows) if p[0] == 1 and n[0] == 0]
    total = math.fsum(p[2] * n[2] for p, n in pairs)
    wins = math.fsum(p[2] * n[2] * (1 if p[1] > n[1] else 0.5 * (p[1] == n[1])) for p, n in pairs)
    return wins / total if total else float("nan")


def click_log(rows, seed, *, levels=None, dtype="float32"):
    """Labels, scores that say something about them, domains of uneven size, weights."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.3).astype(np.float32)
    scores = rng.normal(size=rows) + labels
    if levels:
        scores = np.round(scores * levels)
    domain = rng.geometric(0.4, size=rows) - 1
    return labels, scores.astype(dtype), np.minimum(domain, 4), rng.integers(0, 4, rows) / 2


def test_an_auc_worked_by_hand():
    # Positives .8 and .4 against negatives .6, .4 and .1: wins 3 of 3, and 1 + ½ of 3.
    assert auc([1, 0, 1, 0, 0], [0.8, 0.6, 0.4, 0.4, 0.1]) == 4.5 / 6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("levels", [None, 1, 5])
def test_one_auc_is_scikit_learns(dtype, levels):
    labels, scores, _, weight = click_log(3_001, seed=1, levels=levels, dtype=dtype)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-13)
    expected = roc_auc_score(labels, scores, sample_weight=weight)
    assert auc(labels, scores, weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("levels", [None, 1, 5])
def test_all_domains_at_once_are_scikit_learns_one_by_one(dtype, levels):
    labels, scores, domain, weight = click_log(3_001, seed=2, levels=levels, dtype=dtype)
    plain, weighted = (domain_auc(labels, scores, domain, 5, w) for w in (None, weight))
    for d in range(5):
        rows = domain == d
        expected = roc_auc_score(labels[rows], scores[rows])
        assert plain[d] == pytest.approx(expected, abs=1e-13)
        expected = roc_auc_score(labels[rows], scores[rows], sample_weight=weight[rows])
        assert weighted[d] == pytest.approx(expected, abs=1e-12)


finite = st.floats(allow_nan=False, width=32)
few = st.sampled_from([-math.inf, -1e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1.0, math.inf])
rows_of = st.lists(
    st.tuples(st.integers(0, 1), finite | few, st.integers(-1, 2), st.integers(0, 3)), max_size=30
)


@given(rows_of, st.sampled_from(["float32", "float64"]))
def test_any_scores_and_weights_count_pair_by_pair(rows, dtype):
    labels, scores, domain, weight = (
        (list(c) for c in zip(*rows, strict=True)) if rows else [[]] * 4
    )
    scores, domain = np.array(scores, dtype), np.array(domain, np.int64)
    np.testing.assert_allclose(auc(labels, scores), by_pairs(labels, scores), rtol=1e-12)
    np.testing.assert_allclose(
        auc(labels, scores, weight), by_pairs(labels, scores, weight), rtol=1e-12
    )
    for w in (None, weight):
        found = domain_auc(labels, scores, domain, 3, w)
        for d in range(3):
            inside = [row for row in rows if row[2] == d]
            y, s, _, v = zip(*inside, strict=True) if inside else [()] * 4
            expected = by_pairs(y, np.array(s, dtype), None if w is None else v)
            np.testing.assert_allclose(found[d], expected, rtol=1e-12)


def test_only_the_order_of_the_scores_counts():
    labels, scores, domain, _ = click_log(500, seed=3, dtype="float64")
    squashed = 1 / (1 + np.exp(-scores))
    assert auc(labels, squashed) == auc(labels, scores)
    np.testing.assert_array_equal(
        domain_auc(labels, squashed, domain, 5), domain_auc(labels, scores, domain, 5)
    )


def test_neighbouring_floats_are_not_ties():
    low = np.float32(0.3)
    scores = np.array([low, np.nextafter(low, np.float32(1))])
    assert domain_auc([0, 1], scores, [0, 0], 1)[0] == 1.0
    assert domain_auc([1, 0], -scores, [0, 0], 1)[0] == 1.0


def test_minus_zero_is_zero():
    scores = np.array([0.0, -0.0], dtype=np.float32)
    assert domain_auc([1, 0], scores, [0, 0], 1)[0] == 0.5


def test_counts_of_many_ties_are_exact():
    labels = np.arange(300_000) % 3 == 0  # 100 000 positives, 200 000 negatives: 2 * 10 ** 10 pairs
    scores = np.zeros(300_000, dtype=np.float32)
    scores[0] = 1  # one positive wins all its pairs, the others half of theirs
    assert auc(labels, scores) == (100_000 + 1) / 200_000


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_one_class_or_no_rows_has_no_auc(labels):
    scores = np.linspace(0, 1, len(labels))
    assert math.isnan(auc(labels, scores))
    assert np.isnan(domain_auc(labels, scores, np.zeros(len(labels), np.int64), 2)).all()


def test_rows_of_weight_zero_do_not_count():
    assert math.isnan(auc([1, 0, 0], [0.5, 0.4, 0.6], [1, 0, 0]))
    assert auc([1, 0, 0], [0.5, 0.4, 0.6], [2, 3, 0]) == 1.0


def test_no_domains_is_an_empty_answer():
    assert domain_auc([], [], np.zeros(0, np.int32), 0).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "scores", "weight", "message"),
    [
        ([1, 0, 0], [0.1, float("nan"), 0.2], None, "score nan at row 1 must be a number"),
        ([1, 2, 0], [0.1, 0.2, 0.3], None, "label 2 at row 1 must be 0 or 1"),
        ([1, 0, float("nan")], [0.1, 0.2, 0.3], None, "label nan at row 2"),
        ([1, 0, 0], [0.1, 0.2, 0.3], [1, 1, -0.5], "weight -0.5 at row 2 must be finite"),
        ([1, 0, 0], [0.1, 0.2, 0.3], [1, math.inf, 1], "weight inf at row 1"),
        ([1, 0, 0], [0.1, 0.2, 0.3], [math.nan, 1, 1], "weight nan at row 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(labels, scores, weight, message):
    with pytest.raises(DataError, match=message):
        auc(labels, scores, weight)
    with pytest.raises(DataError, match=message):
        domain_auc(labels, scores, [0, 0, 0], 1, weight)


@pytest.mark.parametrize(
    ("labels", "scores", "domain", "weight", "message"),
    [
        ([1, 0], [0.1], [0, 0], None, "equal length"),
        ([[1, 0]], [[0.1, 0.2]], [0, 0], None, "one-dimensional"),
        ([1, 0], [0.1, 0.2], [0, 0], [1], "as long as scores"),
        ([1, 0], [0.1, 0.2], [0], None, "2 integers"),
        ([1, 0], [0.1, 0.2], [0.0, 1.0], None, "2 integers"),
        ([1, 0], [0.1, 0.2], [0, 2], None, "from -1 to 1"),
        ([1, 0], [0.1, 0.2], [-2, 0], None, "from -1 to 1"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(labels, scores, domain, weight, message):
    with pytest.raises(UsageError, match=message):
        domain_auc(labels, scores, domain, 2, weight)
