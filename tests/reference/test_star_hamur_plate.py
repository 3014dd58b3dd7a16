"""STAR, HAMUR and PLATE as whole models, against the papers' formulas row by row.

Every expected logit is a float64 loop over the model's tensors that knows only their names and the
embedded rows. Sheng et al., CIKM 2021; Li et al., CIKM 2023; Wang et al., SIGIR 2023.
"""

import numpy as np
import pytest
import torch

from loractr.batch import Route
from reference.world import (
    BACKBONES,
    BATCH_NORM,
    DOMAINS,
    TRAINING,
    assert_logits,
    batch_of,
    model_of,
)

OPTIONS = {
    "star": {"auxiliary_sizes": (4, 3), "domain_embedding_size": 2},
    "hamur": {"k": 3, "width": 4, "hyper_sizes": (5,)},
    "plate": {"user_field": "user", "prompts": 4, "prompt_sizes": (5, 4), "temperature": 0.7},
}


def star(r, backbone):
    """Star layers on the partitioned norm of x, plus an auxiliary network on [x ; domain]."""

    def norm(name, h):
        found = []
        for x, t, (mean, variance) in zip(h, r.domain, r.statistics(name, h), strict=True):
            weight, bias = r.p[f"{name}.weight"], r.p[f"{name}.bias"]
            if t >= 0:
                weight = weight * r.p[f"{name}.own_weight"][t]
                bias = bias + r.p[f"{name}.own_bias"][t]
            found.append(weight * (x - mean) / np.sqrt(variance + 1e-5) + bias)
        return found

    def linear(name, x, t):
        weight, bias = r.p[f"{name}.weight"], r.p[f"{name}.bias"]
        if t >= 0:
            weight = weight * r.p[f"{name}.own_weight"][t]
            bias = bias + r.p[f"{name}.own_bias"][t]
        return weight @ x + bias

    inputs = r.flat()
    h = norm("backbone.tower.norm", inputs)
    for layer in range(2):
        at = f"backbone.tower.main.{layer}"
        h = [linear(f"{at}.linear", x, t) for x, t in zip(h, r.domain, strict=True)]
        if f"{at}.norm.weight" in r.p:
            h = norm(f"{at}.norm", h)
        h = [np.maximum(0, x) for x in h]
    embedded = [np.zeros(2) if t < 0 else r.p["backbone.tower.domains"][t] for t in r.domain]
    seen = [np.concatenate(pair) for pair in zip(inputs, embedded, strict=True)]
    auxiliary = r.layers("backbone.tower.auxiliary", seen)
    crosses, logits = r.beside(backbone)
    return [
        linear("head.main", np.concatenate([crosses[n], h[n]]), t)[0]
        + r.affine("head.auxiliary", auxiliary[n])[0]
        + logits[n]
        for n, t in enumerate(r.domain)
    ]


def adapter(r, name, h, cores):
    """DN(sigmoid(h W_down + b_1) W_up + b_2) + h with whole matrices W = U I V of each row."""
    updates = []
    for x, core, t in zip(h, cores, r.domain, strict=True):
        u, v = r.own(f"{name}.down_u.weight", t).T, r.own(f"{name}.down_v.weight", t).T
        inside = x @ (u @ core @ v) + r.own(f"{name}.down_v.bias", t)
        inside = 1 / (1 + np.exp(-inside))
        u, v = r.own(f"{name}.up_u.weight", t).T, r.own(f"{name}.up_v.weight", t).T
        updates.append(inside @ (u @ core @ v) + r.own(f"{name}.up_v.bias", t))
    normed = r.domain_norm(f"{name}.norm", updates)
    return [update + x for update, x in zip(normed, h, strict=True)]


def hamur(r, backbone, *, adapters, shared):
    """Hidden layers, of the domain's own or shared, the last few with an adapter behind."""
    inputs = r.flat()
    hidden = r.layers("backbone.tower.hyper.hidden", inputs)
    cores = [r.affine("backbone.tower.hyper.out", x).reshape(3, 3) for x in hidden]
    h = inputs
    for layer in range(2):
        at = f"backbone.tower.blocks.{layer}"
        whose = [None] * len(h) if shared else r.domain
        h = [r.affine(f"{at}.linear", x, t) for x, t in zip(h, whose, strict=True)]
        if f"{at}.norm.weight" in r.p:
            h = r.shared_norm(f"{at}.norm", h) if shared else r.domain_norm(f"{at}.norm", h)
        h = [np.maximum(0, x) for x in h]
        if layer >= 2 - adapters:
            h = adapter(r, f"backbone.tower.adapters.{layer - (2 - adapters)}", h, cores)
    crosses, logits = r.beside(backbone)
    return [
        r.affine("head", np.concatenate([crosses[n], h[n]]), None if shared else t)[0] + logits[n]
        for n, t in enumerate(r.domain)
    ]


def plate(r, backbone):
    """The plain backbone on two fields more: [e_1 … e_n, p_t, p_user]."""
    for n, t in enumerate(r.domain):
        user = r.vectors[n][1]  # item, user, then the sequence
        (hidden,) = r.layers("front.hidden", [user])
        odds = np.exp(r.affine("front.scores", hidden) / 0.7)
        personal = sum(
            odd / odds.sum() * row for odd, row in zip(odds, r.p["front.memory"], strict=True)
        )
        own = np.zeros(3) if t < 0 else r.p["front.domains"][t]
        r.vectors[n] += [own, personal]
    h = r.layers("backbone.tower", r.flat())
    crosses, logits = r.beside(backbone)
    return [
        r.affine("head", np.concatenate([crosses[n], h[n]]))[0] + logits[n] for n in range(len(h))
    ]


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("backbone", BACKBONES)
def test_stars_logit_is_the_papers_formula(backbone, batch_norm, training):
    model = model_of("star", backbone, batch_norm=batch_norm, training=training, **OPTIONS["star"])
    assert_logits(model, lambda r: star(r, backbone))


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("towers", ["domain", "shared"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_hamurs_logit_is_the_papers_formula(backbone, towers, adapters, batch_norm, training):
    options = {**OPTIONS["hamur"], "towers": towers, "adapters": adapters}
    model = model_of("hamur", backbone, batch_norm=batch_norm, training=training, **options)
    shared = towers == "shared"
    assert_logits(model, lambda r: hamur(r, backbone, adapters=adapters, shared=shared))


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("backbone", BACKBONES)
def test_plates_logit_is_the_papers_formula(backbone, batch_norm, training):
    model = model_of(
        "plate", backbone, batch_norm=batch_norm, training=training, **OPTIONS["plate"]
    )
    assert_logits(model, lambda r: plate(r, backbone))


@pytest.mark.parametrize("method", OPTIONS)
def test_without_a_route_every_row_is_of_no_domain(method):
    model = model_of(method, "deepfm", batch_norm=True, **OPTIONS[method])
    batch = batch_of(model)
    order = batch.row.numpy()
    unseen = batch_of(model, np.full_like(DOMAINS, -1))
    expected = model(unseen)[order]
    batch = type(batch)(**{**vars(batch), "route": Route.none()})
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-12)
