"""What comes back from disk is what was saved, for every method on every backbone."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from contract.world import config_of
from loractr import load
from loractr.artifact import save
from loractr.backbones import BACKBONES
from loractr.config import METHODS
from loractr.data.fit import Fit
from loractr.model import build
from loractr.predict import assembled_logits, logits, sigmoid
from loractr.schema import Division, Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="user"),
        Field(name="item"),
        Field(name="shop", embedding_size=2),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence"),
    ),
    divisions=(Division(name="tab", column="tab"), Division(name="hour", column="hour")),
)

pytestmark = [
    pytest.mark.parametrize("backbone", BACKBONES),
    pytest.mark.parametrize("method", METHODS),
]


def log(rows, seed):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 9, rows),
            "item": rng.integers(0, 7, rows),
            "shop": rng.integers(0, 5, rows),
            "age": rng.normal(30, 10, rows),
            "tags": [rng.integers(0, 6, rng.integers(0, 4)).tolist() for _ in range(rows)],
            "tab": rng.choice(["a", "b", "c"], rows),
            "hour": rng.choice(["day", "night"], rows),
        },
        schema_overrides={"tags": pl.List(pl.Int64)},
    )


@pytest.fixture(scope="module")
def encoders():
    frame = log(100, seed=0)
    fit = Fit(SCHEMA)
    fit.observe(frame, np.ones(len(frame), dtype=bool), np.arange(len(frame)))
    return fit.encoders()


def finished(config, schema, seed=1):
    """A model away from its start, its mixers, where it has some, at work."""
    model = build(config, schema)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        step = torch.randn(tensor.shape, generator=random)
        tensor.add_(step.abs() if "running_var" in name else 0.3 * step)
    mixed = any(stage.route == "mixed" for stage in config.stages()) or model.routing.mixed
    model.routing = replace(model.routing, mixed=mixed)
    return model.eval()


def test_an_artifact_scores_as_the_model_in_memory_bit_by_bit(method, backbone, encoders, tmp_path):
    config = config_of(method, backbone, batch_norm=True)
    model, frame = finished(config, encoders.schema), log(60, seed=1)
    owned = {}
    if config.method.domain_models != "none":
        owned = {"b": finished(config, encoders.schema, seed=2)}
    save(
        model,
        encoders.schema,
        encoders,
        tmp_path / "artifact",
        config=config,
        domain_models=owned,
    )
    scorer = load(tmp_path / "artifact")
    rows = encoders.encode(frame)
    expected = sigmoid(assembled_logits(model, owned, rows, encoders.schema, "tab"))
    assert len(set(expected)) > 30
    np.testing.assert_array_equal(scorer.predict(frame), expected)
    own = rows.domains[:, 0] == 1
    moved = np.abs(expected - sigmoid(logits(model, rows, encoders.schema)))
    assert moved[~own].max() < 1e-6
    assert bool(owned) == (moved[own].max() > 1e-3)
    assert scorer.domain_models.keys() == owned.keys()
    pairs = [(scorer.model, model), *((scorer.domain_models[d], owned[d]) for d in owned)]
    for loaded, saved in pairs:
        assert loaded.routing == saved.routing
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
