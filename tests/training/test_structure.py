"""Planted structure: domains of opposite taste, which a shared model cannot hold. Every method that
gives domains something of their own finds it, but for one that leaves the shared model as it is."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from loractr.adapters.mlora import Rank
from loractr.config import METHODS
from loractr.predict import assembled_logits
from loractr.stage import Stage
from loractr.training import fit

BASE = Stage(name="", epochs=8, batch_size=64, learning_rate=0.015, patience=2)
LOW_RANK = {"rank": Rank(fixed=4)}
TASTES = np.array([1.0, -1.0, 1.0])

SHARED = {"mix": {}, "retune": {}, "shared_adapter": LOW_RANK}
"""Methods that give a domain nothing of its own."""

OWN = [
    ("single", {}),
    ("finetune", {}),
    ("mlora", LOW_RANK | {"recipe": "joint"}),
    ("mlora", LOW_RANK | {"recipe": "two_stage"}),
    ("singlelora", LOW_RANK),
    ("multilora", LOW_RANK | {"divisions": ("tab",)}),
    ("multilora_add", LOW_RANK | {"divisions": ("tab",)}),
    ("multilora_avg", LOW_RANK | {"divisions": ("tab",)}),
    ("moe_mlora", LOW_RANK),
    ("shared_bottom", {}),
    ("mmoe", {}),
    ("ple", {}),
    ("star", {}),
    ("hamur", {"k": 4, "width": 4, "hyper_sizes": (8,)}),
]
"""Methods that give it weights behind the embeddings, in which a taste can be turned around."""


def with_clicks(data, logit_of, seed):
    """The same rows with labels drawn anew."""
    random = np.random.default_rng(seed)

    def planted(rows):
        click = 1 / (1 + np.exp(-logit_of(rows.numbers[:, 0], rows.domains[:, 0])))
        return replace(rows, label=(random.random(len(rows)) < click).astype(np.float32))

    return replace(data, train=planted(data.train), validation=planted(data.validation))


@pytest.fixture
def three_domains(make_data):
    return make_data(train=(500, 500, 500), validation=(500, 500, 500), seed=3)


@pytest.fixture
def opposite(three_domains):
    """What clicks in domains a and c is what does not in b; the domain itself is no input. With it
    a perfect model has the AUC of the true logits, without it every model has one half."""
    return with_clicks(three_domains, lambda number, domain: 4 * TASTES[domain] * number, 0)


@pytest.fixture
def trained_logits(make_model):
    """Logits of the validation rows by a method, after its whole recipe."""

    def logits_of(data, name, options, base=BASE):
        method = METHODS[name](name=name, **options)

        def fresh():
            return make_model(data, method, hidden_sizes=(16, 8))

        model = fresh()
        if stages := method.stages(base, norm=False):
            fit(model, data, stages, seed=0)
        own = {}
        if method.domain_models != "none":
            for domain in data.schema.division("tab").domains:
                own[domain] = fresh() if method.domain_models == "fresh" else copy.deepcopy(model)
                fit(own[domain], data, method.domain_stages(base, "tab", domain), seed=0)
        return assembled_logits(model, own, data.validation, data.schema, "tab")

    return logits_of


def aucs(data, scores):
    """AUC within each domain."""
    rows = data.validation
    own = [np.flatnonzero(rows.domains[:, 0] == domain) for domain in range(3)]
    return np.array([roc_auc_score(rows.label[index], scores[index]) for index in own])


def best_possible(data):
    rows = data.validation
    return aucs(data, rows.numbers[:, 0] * TASTES[rows.domains[:, 0]])


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_by_all_cannot_serve_both_tastes(opposite, trained_logits, name):
    found = aucs(opposite, trained_logits(opposite, name, SHARED[name]))
    assert found[0] + found[1] == pytest.approx(1.0, abs=0.1)  # what one wins the other loses


@pytest.mark.parametrize(
    ("name", "options"), OWN, ids=[f"{n}-{o['recipe']}" if "recipe" in o else n for n, o in OWN]
)
def test_every_domain_gets_its_taste(opposite, trained_logits, name, options):
    """Short of the best possible AUC by .028 at most, over three seeds of clicks and weights; what
    is shared by all is short by .85 in domain b."""
    best = best_possible(opposite)
    assert best.min() > 0.9
    found = aucs(opposite, trained_logits(opposite, name, options))
    assert (found > best - 0.05).all()


def test_plate_does_not_turn_a_frozen_backbones_taste_around(opposite, trained_logits):
    """Its domains own inputs of the backbone, none of its weights: where that learnt one taste
    only, prompts do not find the other. Short by .31 to .87 in domain b, over three seeds; not
    always by .85, as the frozen prompts' random starts are inputs too while it is trained. Where a
    field made it learn both tastes, prompts choose between them: tests/baselines/test_plate.py."""
    found = aucs(opposite, trained_logits(opposite, "plate", {}))
    short = best_possible(opposite) - found
    assert short[1] > 0.2
    assert short[[0, 2]].max() < 0.05


@pytest.mark.parametrize("per_domain", [True, False])
def test_plate_does_find_how_often_a_domain_clicks(three_domains, trained_logits, per_domain):
    """One taste, base rates of about 25%, 52% and 77%, no domain among the inputs."""
    shift = np.array([-2.0, 0.0, 2.0])
    data = with_clicks(three_domains, lambda number, domain: 2 * number + shift[domain], 0)
    base = BASE.model_copy(update={"select": "log_loss"})

    def rates(clicks):
        domain = data.validation.domains[:, 0]
        return np.bincount(domain, clicks) / np.bincount(domain)

    def gap(name, options):
        found = rates(1 / (1 + np.exp(-trained_logits(data, name, options, base))))
        return np.abs(found - rates(data.validation.label)).max()

    assert gap("mix", {}) > 0.15
    assert gap("plate", {"per_domain": per_domain}) < 0.08  # measured: .05 at most, over 3 seeds


def test_every_method_is_among_them():
    """Two controls share all, as mix does; plate has tests of its own."""
    assert {name for name, _ in OWN} | SHARED.keys() | {"plate"} == METHODS.keys()
