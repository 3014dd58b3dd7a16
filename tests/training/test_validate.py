"""What the loop reads off validation rows, against scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from loractr.batch import Routing
from loractr.errors import TrainingError
from loractr.evaluation.metrics import DomainScores
from loractr.predict import logits
from loractr.training.validate import Validator, chosen, chosen_for_domain


@pytest.fixture
def model(make_data, make_model, mlora):
    model = make_model(make_data(), mlora())
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.double)
    return model


@pytest.mark.parametrize("routing", [None, Routing()])
def test_scores_are_scikit_learns(make_data, model, routing):
    data = make_data()
    rows = data.validation
    found = Validator(data.schema, rows, 0).scores(model, routing)
    scores = logits(model, rows, data.schema, routing=routing)
    domain = rows.domains[:, 0]
    per = [roc_auc_score(rows.label[domain == d], scores[domain == d]) for d in range(3)]
    np.testing.assert_allclose(found.domain_auc, per)
    assert found.mean_auc == pytest.approx(np.mean(per))
    assert found.wauc == pytest.approx(np.average(per, weights=np.bincount(domain)))
    assert found.pooled_auc == pytest.approx(roc_auc_score(rows.label, scores))
    assert found.log_loss == pytest.approx(log_loss(rows.label, 1 / (1 + np.exp(-scores))))


def test_routed_and_not_routed_differ(make_data, model):
    data = make_data()
    validator = Validator(data.schema, data.validation, 0)
    assert validator.scores(model).log_loss != validator.scores(model, Routing()).log_loss


def test_a_model_that_gives_no_numbers_is_named_as_the_cause(make_data, model):
    data = make_data()
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"for 90 of 90 validation rows.\nFix: lower"):
        Validator(data.schema, data.validation, 0).scores(model)


def test_row_weights_count(make_data, model):
    data = make_data()
    weight = np.random.default_rng(0).random(len(data.validation), dtype=np.float32)
    rows = replace(data.validation, weight=weight)
    found = Validator(data.schema, rows, 0).scores(model)
    scores = logits(model, rows, data.schema)
    assert found.pooled_auc == pytest.approx(
        roc_auc_score(rows.label, scores, sample_weight=weight)
    )


def test_without_a_division_the_rows_are_one_domain(make_data, make_model):
    data = make_data()
    validator = Validator(data.schema, data.validation, None)
    found = validator.scores(make_model(data))
    assert validator.domains == 1
    assert found.mean_auc == found.pooled_auc == pytest.approx(found.wauc)


def test_no_rows_have_no_scores(make_data, model):
    data = make_data()
    assert Validator(data.schema, data.validation.take(np.arange(0)), 0).scores(model) is None


def scores(**changed):
    values = {"mean_auc": 0.6, "wauc": 0.7, "pooled_auc": 0.8, "log_loss": 0.5}
    values |= {
        "domain_auc": np.array([0.55, math.nan, math.nan]),
        "domain_log_loss": np.array([0.4, 0.3, math.nan]),
        "rows": np.array([5, 5, 0]),
        "positives": np.array([2, 5, 0]),
        "mass": np.array([5.0, 5.0, 0.0]),
    }
    return DomainScores(**(values | changed))


@pytest.mark.parametrize(
    ("select", "expected"),
    [("mean_auc", 0.6), ("wauc", 0.7), ("pooled_auc", 0.8), ("log_loss", -0.5)],
)
def test_select_names_the_value_and_larger_is_better(select, expected):
    assert chosen(scores(), select) == (expected, select)


@pytest.mark.parametrize("select", ["mean_auc", "wauc", "pooled_auc"])
def test_an_undefined_auc_gives_way_to_the_log_loss(select):
    assert chosen(scores(**{select: math.nan}), select) == (-0.5, "log_loss")


@pytest.mark.parametrize("select", ["mean_auc", "log_loss"])
def test_without_rows_or_weight_there_is_no_value(select):
    """Not a NaN: that would be the best there ever was, as nothing compares with it."""
    assert chosen(None, select) == (None, select)
    nothing = scores(mean_auc=math.nan, log_loss=math.nan)
    assert chosen(nothing, select) == (None, select)


@pytest.mark.parametrize(
    ("domain", "select", "expected"),
    [
        (0, "mean_auc", (0.55, "mean_auc")),
        (0, "pooled_auc", (0.55, "pooled_auc")),
        (0, "log_loss", (-0.4, "log_loss")),
        (1, "mean_auc", (-0.3, "log_loss")),  # one class
        (2, "mean_auc", (None, "mean_auc")),  # no rows
        (2, "log_loss", (None, "log_loss")),
    ],
)
def test_one_domain_is_judged_by_its_own_auc_or_log_loss(domain, select, expected):
    assert chosen_for_domain(scores(), domain, select) == expected
