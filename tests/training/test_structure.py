"""Planted structure: domains of opposite taste, which a shared model cannot hold and MLoRA can."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loractr.adapters.mlora import Rank
from loractr.predict import logits
from loractr.stage import Stage
from loractr.training import fit

BASE = Stage(name="", epochs=12, batch_size=64, learning_rate=0.01, patience=4)


@pytest.fixture
def opposite(make_data):
    """What clicks in domains a and c is what does not in b; the domain itself is no input. With it
    a perfect model has the AUC of the true logits, without it every model has one half."""
    data = make_data(train=(500, 500, 500), validation=(500, 500, 500), seed=3)
    random = np.random.default_rng(0)

    def planted(rows):
        taste = np.array([1.0, -1.0, 1.0])[rows.domains[:, 0]]
        click = 1 / (1 + np.exp(-4 * taste * rows.numbers[:, 0]))
        return replace(rows, label=(random.random(len(rows)) < click).astype(np.float32))

    return replace(data, train=planted(data.train), validation=planted(data.validation))


def auc_of(model, data, domain):
    rows = data.validation.take(np.flatnonzero(data.validation.domains[:, 0] == domain))
    return roc_auc_score(rows.label, logits(model, rows, data.schema))


def best_possible(data, domain):
    rows = data.validation.take(np.flatnonzero(data.validation.domains[:, 0] == domain))
    return roc_auc_score(rows.label, rows.numbers[:, 0] * (-1.0 if domain == 1 else 1.0))


def test_mix_cannot_serve_both_tastes(opposite, make_model):
    model = make_model(opposite, hidden_sizes=(16, 8))
    fit(model, opposite, [BASE.model_copy(update={"name": "train"})], seed=0)
    found = [auc_of(model, opposite, domain) for domain in range(3)]
    assert found[0] + found[1] == pytest.approx(1.0, abs=0.1)  # what one wins the other loses


@pytest.mark.parametrize("recipe", ["joint", "two_stage"])
def test_mlora_finds_the_taste_of_every_domain(opposite, make_model, mlora, recipe):
    method = mlora(recipe=recipe, rank=Rank(fixed=4))
    model = make_model(opposite, method, hidden_sizes=(16, 8))
    fit(model, opposite, method.stages(BASE, norm=False), seed=0)
    for domain in range(3):
        best = best_possible(opposite, domain)
        assert best > 0.9
        assert auc_of(model, opposite, domain) > best - 0.03
