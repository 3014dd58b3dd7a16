"""What every method promises of its scores on every backbone. New ones join by being registered."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.world import (
    ADAPTERS,
    PLAIN,
    ROWS,
    SCHEMA,
    assert_close,
    batch_of,
    config_of,
    fresh,
    moved,
    rows_of,
    scores,
)
from loractr.adapters import adapted, detach, merge
from loractr.artifact.tensors import base_tensors
from loractr.backbones import BACKBONES
from loractr.batch import EVERY, Routing
from loractr.config import METHODS
from loractr.layers.norm import DomainNorm
from loractr.model import build, build_plain

pytestmark = [
    pytest.mark.parametrize("backbone", BACKBONES),
    pytest.mark.parametrize("method", METHODS),
]


def test_a_fresh_model_is_the_plain_backbone_to_the_bit(method, backbone):
    """Before the first step nothing that an adapter adds has any effect."""
    if method not in ADAPTERS | PLAIN:
        return
    config = config_of(method, backbone)
    plain = build_plain(config.model, SCHEMA, torch.Generator().manual_seed(config.seed)).eval()
    model = build(config, SCHEMA).eval()
    assert scores(model, rows_of()) == scores(plain, rows_of())


def test_adapters_on_a_finished_backbone_leave_its_scores_as_they_are(method, backbone):
    """Step 0 of an adapter stage, in eval mode: norms of domains and cells are copies as well."""
    if method not in ADAPTERS:
        return
    model, rows = fresh(method, backbone, batch_norm=True).eval(), rows_of()
    random = torch.Generator().manual_seed(1)
    shared = base_tensors(model)
    for name, tensor in shared.items():
        step = torch.randn(tensor.shape, generator=random, dtype=torch.double)
        tensor.add_(step.abs() if "running_var" in name else 0.3 * step)
    for module in model.modules():
        if isinstance(module, DomainNorm):
            for place in (*range(len(module.sizes)), None):
                module.inherit(place)
    plain = copy.deepcopy(model)
    detach(plain)
    plain.front, plain.routing = None, Routing()
    expected = scores(plain, rows)
    for mixed, only in ((False, 0), (False, len(model.routing.divisions) - 1), (True, 0)):
        model.routing = replace(model.routing, mixed=mixed, only=only)
        assert_close(scores(model, rows), expected, 1e-12)
    assert plain.state_dict().keys() == shared.keys()


def test_the_seed_decides_the_fresh_weights(method, backbone):
    config = config_of(method, backbone)
    one, again = (build(config, SCHEMA).state_dict() for _ in range(2))
    other = build(config.model_copy(update={"seed": 7}), SCHEMA).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_state_carries_all_that_scores_depend_on(method, backbone):
    model = moved(method, backbone, batch_norm=True)
    other = moved(method, backbone, seed=2, batch_norm=True)
    assert scores(other, rows_of()) != scores(model, rows_of())
    other.load_state_dict(model.state_dict())
    assert scores(other, rows_of()) == scores(model, rows_of())


@pytest.mark.parametrize("training", [False, True])
def test_no_rows_have_no_scores_and_no_gradient(method, backbone, training):
    model = moved(method, backbone, batch_norm=True).train(training)
    output = model(batch_of(model, rows_of(), []))
    output.sum().backward()
    assert output.shape == (0,)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(not gradient.any() for gradient in gradients)


def test_the_order_of_the_rows_does_not_matter(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    shuffled = np.random.default_rng(1).permutation(ROWS)
    assert_close(scores(model, rows, shuffled), scores(model, rows))


def test_a_mixed_batch_is_one_batch_per_domain(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    apart = {}
    for place in itertools.product([-1, 0, 1, 2], [-1, 0, 1]):
        apart |= scores(model, rows, np.flatnonzero((rows.domains == place).all(1)))
    assert_close(apart, scores(model, rows))


def test_a_row_does_not_feel_its_batch_mates(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    together, alone = scores(model, rows), {}
    for n in range(ROWS):
        alone |= scores(model, rows, [n])
    assert_close(alone, together)
    others = scores(model, rows_of(seed=9))
    assert others.keys() == together.keys()
    assert sum(others[n] != together[n] for n in together) > 0.5 * ROWS  # some ReLUs are all dead


def test_merged_is_routed(method, backbone):
    """One domain's experts folded into plain weights; no route is read any more."""
    model, rows = moved(method, backbone, batch_norm=True), rows_of(200)
    if not list(adapted(model)):
        return  # nothing to merge; what cannot be merged refuses, see tests/adapters
    if model.routing.divisions == (EVERY,):
        rows = replace(rows, domains=np.zeros_like(rows.domains))
        expected = scores(model, rows)
        merge(model, 0)
        model.routing = Routing()
        assert_close(scores(model, rows), expected)
        return
    for domain in range(len(SCHEMA.divisions[model.routing.divisions[0]].domains)):
        index = np.flatnonzero(rows.domains[:, model.routing.divisions[0]] == domain)
        for dtype, tolerance in ((torch.double, 1e-10), (torch.float, 1e-5)):
            one = copy.deepcopy(model).to(dtype)
            expected = scores(one, rows, index)
            merge(one, domain)
            one.routing = Routing()
            found = scores(one, rows, index)
            if dtype is torch.float:
                found, expected = (
                    {n: 1 / (1 + np.exp(-z)) for n, z in each.items()} for each in (found, expected)
                )
            assert len(found) > 5
            assert_close(found, expected, tolerance)
            assert not list(adapted(one))


def test_scores_have_the_models_precision(method, backbone):
    model, rows = moved(method, backbone), rows_of()
    exact = scores(model, rows)
    assert model(batch_of(model, rows)).dtype == torch.double
    assert_close(scores(model.float(), rows), exact, 1e-4)
    assert model(batch_of(model, rows)).dtype == torch.float
