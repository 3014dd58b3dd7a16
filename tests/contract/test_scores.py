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
from loractr.errors import AdapterError
from loractr.layers.norm import DomainNorm
from loractr.model import build, build_plain

pytestmark = pytest.mark.parametrize("backbone", BACKBONES)

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
FUSED = ("multilora", "multilora_add", "multilora_avg")
"""Adapters that mix the experts of a row's domains row by row."""
MERGED = sorted(ADAPTERS.difference(FUSED, {"shared_adapter"}))
"""Adapters whose experts of one domain fold into plain weights."""

PRECISIONS = {"float64": (torch.double, 1e-10), "float32": (torch.float, 1e-5)}
"""Logits agree so in float64, probabilities in float32."""


def assert_agree(found, expected, precision):
    dtype, tolerance = PRECISIONS[precision]
    if dtype is torch.float:
        found, expected = (
            {n: 1 / (1 + np.exp(-z)) for n, z in each.items()} for each in (found, expected)
        )
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("method", sorted(ADAPTERS | PLAIN))
def test_a_fresh_model_is_the_plain_backbone_to_the_bit(method, backbone):
    """Before the first step nothing that an adapter adds has any effect. Rows stand as the model
    sorts them: where a row stands in a batch may move its last bit on some processors."""
    config = config_of(method, backbone)
    plain = build_plain(config.model, SCHEMA, torch.Generator().manual_seed(config.seed)).eval()
    model = build(config, SCHEMA).eval()
    rows = rows_of()
    rows = rows.take(batch_of(model, rows).row.numpy())
    assert batch_of(model, rows).row.equal(batch_of(plain, rows).row)
    assert scores(model, rows) == scores(plain, rows)


@pytest.mark.parametrize("method", sorted(ADAPTERS))
def test_adapters_on_a_finished_backbone_leave_its_scores_as_they_are(method, backbone):
    """Step 0 of an adapter stage, in eval mode: norms of domains and cells are copies as well."""
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


@EVERY_METHOD
def test_the_seed_decides_the_fresh_weights(method, backbone):
    config = config_of(method, backbone)
    one, again = (build(config, SCHEMA).state_dict() for _ in range(2))
    other = build(config.model_copy(update={"seed": 7}), SCHEMA).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


@EVERY_METHOD
def test_the_state_carries_all_that_scores_depend_on(method, backbone):
    model = moved(method, backbone, batch_norm=True)
    other = moved(method, backbone, seed=2, batch_norm=True)
    assert scores(other, rows_of()) != scores(model, rows_of())
    other.load_state_dict(model.state_dict())
    assert scores(other, rows_of()) == scores(model, rows_of())


@EVERY_METHOD
@pytest.mark.parametrize("training", [False, True])
def test_no_rows_have_no_scores_and_no_gradient(method, backbone, training):
    model = moved(method, backbone, batch_norm=True).train(training)
    output = model(batch_of(model, rows_of(), []))
    output.sum().backward()
    assert output.shape == (0,)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(not gradient.any() for gradient in gradients)


@EVERY_METHOD
def test_the_order_of_the_rows_does_not_matter(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    shuffled = np.random.default_rng(1).permutation(ROWS)
    assert_close(scores(model, rows, shuffled), scores(model, rows))


@EVERY_METHOD
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_mixed_batch_is_one_batch_per_domain(method, backbone, precision):
    model = moved(method, backbone, batch_norm=True).to(PRECISIONS[precision][0])
    rows, apart = rows_of(), {}
    for place in itertools.product([-1, 0, 1, 2], [-1, 0, 1]):
        apart |= scores(model, rows, np.flatnonzero((rows.domains == place).all(1)))
    assert_agree(apart, scores(model, rows), precision)


@EVERY_METHOD
def test_a_row_does_not_feel_its_batch_mates(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    together, alone = scores(model, rows), {}
    for n in range(ROWS):
        alone |= scores(model, rows, [n])
    assert_close(alone, together)
    others = scores(model, rows_of(seed=9))
    assert others.keys() == together.keys()
    assert sum(others[n] != together[n] for n in together) > 0.5 * ROWS  # some ReLUs are all dead


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", MERGED)
def test_merged_is_routed(method, backbone, precision):
    """One domain's experts folded into plain weights; no route is read any more."""
    model, rows = moved(method, backbone, batch_norm=True), rows_of(200)
    model.to(PRECISIONS[precision][0])
    (division,) = model.routing.divisions
    for domain in range(len(SCHEMA.divisions[division].domains)):
        one, index = copy.deepcopy(model), np.flatnonzero(rows.domains[:, division] == domain)
        expected = scores(one, rows, index)
        merge(one, domain)
        one.routing = Routing()
        assert len(expected) > 5
        assert_agree(scores(one, rows, index), expected, precision)
        assert not list(adapted(one))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_one_adapter_of_all_rows_merges_for_all_rows(backbone, precision):
    model = moved("shared_adapter", backbone, batch_norm=True).to(PRECISIONS[precision][0])
    assert model.routing.divisions == (EVERY,)
    expected = scores(model, rows_of(200))
    merge(model, 0)
    model.routing = Routing()
    assert_agree(scores(model, rows_of(200)), expected, precision)
    assert not list(adapted(model))


@pytest.mark.parametrize("method", FUSED)
def test_experts_that_are_mixed_row_by_row_refuse_to_merge(method, backbone):
    """And nothing is changed."""
    model = moved(method, backbone, batch_norm=True)
    before = scores(model, rows_of())
    with pytest.raises(AdapterError, match="mixes the experts of several divisions row by row"):
        merge(model, 0)
    assert scores(model, rows_of()) == before


@EVERY_METHOD
def test_scores_have_the_models_precision(method, backbone):
    model, rows = moved(method, backbone), rows_of()
    exact = scores(model, rows)
    assert model(batch_of(model, rows)).dtype == torch.double
    assert_close(scores(model.float(), rows), exact, 1e-4)
    assert model(batch_of(model, rows)).dtype == torch.float
