"""Small models of every method on every backbone, and the rows that the contract is checked on."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from loractr.backbones import BACKBONES
from loractr.config import METHODS, parse_config
from loractr.data.loader import collate, sizes_of
from loractr.data.rows import Rows
from loractr.model import build
from loractr.schema import Division, Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="user", size=9, unknown_rows=1),
        Field(name="item", size=7, unknown_rows=1),
        Field(name="shop", size=5, unknown_rows=1, embedding_size=2),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence", size=6, unknown_rows=1),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=("a", "b", "c")),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)
ROWS = 40


OPTIONS = {
    name: {"divisions": ["tab", "hour"]} for name in ("multilora", "multilora_add", "multilora_avg")
}
"""What a method needs said besides its name."""

ADAPTERS = {name for name, kind in METHODS.items() if "adapters" in kind.__module__}
PLAIN = {"mix", "single", "finetune", "retune"}
"""Methods whose fresh model is the backbone, besides the adapters."""


THOROUGH = ("mlp", "dcn")
"""Backbones that every method is trained on; the others train one method of each kind, slowly."""

TRAINED = [
    pytest.param(method, backbone, marks=() if backbone in THOROUGH else pytest.mark.slow)
    for backbone in BACKBONES
    for method in METHODS
    if backbone in THOROUGH or method in ("mlora", "multilora", "moe_mlora")
]


def config_of(method, backbone, **options):
    return parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {
                "backbone": backbone,
                "embedding_size": 3,
                "hidden_sizes": [8, 5],
                "embedding_std": 0.3,
                **options,
            },
            "method": {"name": method, **OPTIONS.get(method, {})},
            "training": {"batch_size": 16, "epochs": 2, "patience": 2, "learning_rate": 0.02},
        }
    )


def fresh(method, backbone, **options):
    return build(config_of(method, backbone, **options), SCHEMA).double()


def moved(method, backbone, seed=1, **options):
    """A model away from its start, so that everything in it counts."""
    return moved_of(config_of(method, backbone, **options), seed)


def moved_of(config, seed=1):
    model = build(config, SCHEMA).double()
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.double)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.add_(torch.rand(buffer.shape, generator=random, dtype=torch.double))
    if any(stage.route == "mixed" for stage in config.stages()):
        model.routing = replace(model.routing, mixed=True)
    return model.eval()


def stages_of(method, backbone):
    """Every stage of every recipe: the shared model's, then that of one domain's own model."""
    field = METHODS[method].model_fields.get("recipe")
    for recipe in get_args(field.annotation) if field else [None]:
        config = config_of(method, backbone, batch_norm=True)
        if recipe:
            chosen = config.method.model_copy(update={"recipe": recipe})
            config = config.model_copy(update={"method": chosen})
        yield from (*config.stages(), *config.domain_stages("tab", "b"))


def rows_of(count=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sizes = [(9, 7, 5), (3, 2)]
    return Rows(
        ids=np.stack([rng.integers(0, n, count) for n in sizes[0]], 1).astype(np.int32),
        numbers=rng.normal(size=(count, 1)).astype(np.float32),
        domains=np.stack([rng.integers(-1, n, count) for n in sizes[1]], 1).astype(np.int32),
        row=np.arange(count),
        label=rng.integers(0, 2, count).astype(np.float32),
        sequences={"tags": (rng.integers(0, 6, offsets[-1]).astype(np.int32), offsets)},
    )


def batch_of(model, rows, index=None):
    index = np.arange(len(rows)) if index is None else np.asarray(index, dtype=np.int64)
    return collate(rows, index, model.routing, sizes_of(SCHEMA, model.routing))


def scores(model, rows, index=None):
    """Logits by row position, of one batch of the rows at `index`."""
    batch = batch_of(model, rows, index)
    with torch.no_grad():
        return dict(zip(batch.row.tolist(), model(batch).tolist(), strict=True))


def assert_close(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for row, value in expected.items():
        assert found[row] == pytest.approx(value, abs=tolerance, rel=0)


def only(rows, division, domain):
    """The rows of one domain."""
    place = [known.name for known in SCHEMA.divisions].index(division)
    number = SCHEMA.divisions[place].domains.index(domain)
    return rows.take(np.flatnonzero(rows.domains[:, place] == number))


class Data:
    """What `fit` reads of a prepared data set."""

    schema = SCHEMA
    train = rows_of(90, seed=1)
    validation = rows_of(60, seed=2)
