"""MLoRA as a whole model, against the paper's formula row by row, in float64.

Yang et al., RecSys 2024: beside each layer of the tower, and nowhere else, the row's own domain has
up_d down_d x + offset_d; a row of no domain has the backbone alone.
"""

import numpy as np
import pytest

from reference.world import BACKBONES, BATCH_NORM, TRAINING, assert_logits, model_of


def adapted(r, name, x, t):
    """W x + b + s_t ⊙ (up_t down_t x) + c_t; s and c where the method has them."""
    y = r.affine(f"{name}.base", x)
    if t < 0:
        return y
    update = r.p[f"{name}.up"][t] @ (r.p[f"{name}.down"][t] @ x)
    if f"{name}.row_scale" in r.p:
        update = r.p[f"{name}.row_scale"][t] * update
    if f"{name}.offset" in r.p:
        update = update + r.p[f"{name}.offset"][t]
    return y + update


def mlora(r, backbone):
    h = r.flat()
    for layer, rank in enumerate((3, 2)):
        at = f"backbone.tower.{layer}"
        assert r.p[f"{at}.linear.down"].shape == (4, rank, len(h[0]))
        h = [adapted(r, f"{at}.linear", x, t) for x, t in zip(h, r.domain, strict=True)]
        if f"{at}.norm.weight" in r.p:
            h = r.shared_norm(f"{at}.norm", h)
        h = [np.maximum(0, x) for x in h]
    crosses, logits = r.beside(backbone)
    return [
        r.affine("head", np.concatenate([crosses[n], h[n]]))[0] + logits[n] for n in range(len(h))
    ]


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("options", [{}, {"row_scale": True}, {"offset": False}], ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_mloras_logit_is_the_papers_formula(backbone, options, batch_norm, training):
    ranks = {"rank": {"fixed": (3, 2)}}
    model = model_of(
        "mlora", backbone, batch_norm=batch_norm, training=training, **ranks, **options
    )
    parameters = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    assert ("row_scale" in parameters) == options.get("row_scale", False)
    assert ("offset" in parameters) == options.get("offset", True)
    assert_logits(model, lambda r: mlora(r, backbone), spread=0.1)
