"""Shared-bottom, MMoE and PLE in training and evaluation, on several backbones, against loops.

In training a norm's statistics are of the rows that go through it: a domain's own tower sees its
rows, what all share sees all rows; and so do all domains' experts on every level of PLE but the
last, since the shared gate mixes them for every row. One of fewer than two rows keeps its running
ones, and the average domain, of rows of no domain, has the mean of all domains' running ones.
"""

import itertools

import numpy as np
import pytest

from reference.world import BACKBONES, BATCH_NORM, TRAINING, assert_logits, model_of

T = "backbone.tower"
PATHS = (-1, 0, 1, 2, 3)
"""The average domain and the four of the schema, one of them without rows."""


def own_layers(r, name, h):
    """Hidden layers of each row's own domain."""
    for layer in itertools.count():
        at = f"{name}.{layer}"
        if f"{at}.linear.weight" not in r.p:
            return h
        h = [r.affine(f"{at}.linear", x, t) for x, t in zip(h, r.domain, strict=True)]
        if f"{at}.norm.weight" in r.p:
            h = r.domain_norm(f"{at}.norm", h)
        h = [np.maximum(0, x) for x in h]
    raise AssertionError


def layers_of(r, name, h, t):
    """Hidden layers of one domain, for all rows."""
    for layer in itertools.count():
        at = f"{name}.{layer}"
        if f"{at}.linear.weight" not in r.p:
            return h
        h = [r.affine(f"{at}.linear", x, t) for x in h]
        if f"{at}.norm.weight" in r.p:
            mean, variance = (r.own(f"{at}.norm.running_{what}", t) for what in ("mean", "var"))
            if r.training and t >= 0:
                mean = sum(h) / len(h)
                variance = sum((x - mean) ** 2 for x in h) / len(h)
            scale = r.own(f"{at}.norm.weight", t) / np.sqrt(variance + 1e-5)
            h = [scale * (x - mean) + r.own(f"{at}.norm.bias", t) for x in h]
        h = [np.maximum(0, x) for x in h]
    raise AssertionError


def softmax(scores):
    powers = np.exp(scores)
    return powers / powers.sum()


def mixed(weights, experts):
    """Σ_e weights[n][e] experts[e][n], for each row n."""
    assert {len(row) for row in weights} == {len(experts)}
    rows = range(len(weights))
    return [sum(w * expert[n] for w, expert in zip(weights[n], experts, strict=True)) for n in rows]


def own_gate(r, name, h):
    hidden = own_layers(r, f"{name}.hidden", h)
    pairs = zip(hidden, r.domain, strict=True)
    return [softmax(r.own(f"{name}.linear.weight", t) @ x) for x, t in pairs]


def modules(r, name):
    """name.0, name.1, …, as far as there are some."""
    count = len({key[len(name) + 1 :].split(".")[0] for key in r.p if key.startswith(f"{name}.")})
    return [f"{name}.{place}" for place in range(count)]


def shared_bottom(r):
    return own_layers(r, f"{T}.towers", r.layers(f"{T}.bottom", r.flat()))


def mmoe(r):
    x = r.flat()
    experts = [r.layers(expert, x) for expert in modules(r, f"{T}.experts")]
    return own_layers(r, f"{T}.towers", mixed(own_gate(r, f"{T}.gate", x), experts))


def ple_level(r, at, own, shared):
    """A level but the last: every domain's path for every row, and the shared one."""
    specific = {t: [layers_of(r, e, own[t], t) for e in modules(r, f"{at}.specific")] for t in own}
    common = [r.layers(expert, shared) for expert in modules(r, f"{at}.shared")]
    paths = {}
    for t in own:
        hidden = layers_of(r, f"{at}.gate.hidden", own[t], t)
        weights = [softmax(r.own(f"{at}.gate.linear.weight", t) @ x) for x in hidden]
        paths[t] = mixed(weights, [*specific[t], *common])
    hidden = r.layers(f"{at}.shared_gate.hidden", shared)
    weights = [softmax(r.p[f"{at}.shared_gate.linear.weight"] @ x) for x in hidden]
    everything = [*(expert for t in PATHS[1:] for expert in specific[t]), *common]
    return paths, mixed(weights, everything)


def ple(r):
    paths, shared = dict.fromkeys(PATHS, r.flat()), r.flat()
    for at in modules(r, f"{T}.levels"):
        paths, shared = ple_level(r, at, paths, shared)
    own = [paths[t][n] for n, t in enumerate(r.domain)]
    at = f"{T}.last"
    experts = [own_layers(r, expert, own) for expert in modules(r, f"{at}.specific")]
    experts += [r.layers(expert, shared) for expert in modules(r, f"{at}.shared")]
    return own_layers(r, f"{T}.towers", mixed(own_gate(r, f"{at}.gate", own), experts))


def logits(r, backbone, tower):
    h = tower(r)
    crosses, terms = r.beside(backbone)
    return [
        r.affine("head", np.concatenate([crosses[n], h[n]]), t)[0] + terms[n]
        for n, t in enumerate(r.domain)
    ]


CASES = [
    (shared_bottom, {"bottom_sizes": (7, 4)}),
    (mmoe, {"experts": 3, "expert_sizes": (7, 4), "gate_sizes": (4,)}),
    (ple, {"levels": 3, "specific": 2, "shared": 2, "expert_sizes": (7, 4), "gate_sizes": (4,)}),
]


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize(("tower", "options"), CASES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_logit_is_the_papers_formula(backbone, tower, options, batch_norm, training):
    name = tower.__name__
    model = model_of(name, backbone, batch_norm=batch_norm, training=training, **options)
    assert_logits(model, lambda r: logits(r, backbone, tower))
