"""A table of your own, in Python: a frame and a schema in, probabilities out, step by step.

    python examples/02_own_data.py              # under a minute; writes into a temporary folder

`run` does all of this in one call from a configuration; here each step stands by itself.
"""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from loractr import (
    Division,
    Field,
    Label,
    RunConfig,
    Schema,
    build,
    evaluate,
    fit,
    load,
    predict,
    prepare,
    save,
)

rng = np.random.default_rng(0)
rows = 40_000
user, item, shop = (rng.integers(size, size=rows) for size in (300, 100, 3))
taste, trait, look = (rng.normal(size=(size, 4)) for size in (300, 100, 3))
logit = (taste[user] * trait[item] * (1 + look[shop])).sum(axis=1) - 1
frame = pl.DataFrame(
    {
        "user": user,
        "item": item,
        "shop": np.array(["books", "games", "music"])[shop],
        "click": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
    }
)

schema = Schema(
    fields=(Field(name="user"), Field(name="item"), Field(name="domain_shop")),
    divisions=(Division(name="shop", column="shop"),),
    label=Label(column="click"),
)
config = RunConfig.model_validate(
    {
        "data": {"source": "table", "split": {"kind": "stratified"}},
        "model": {"backbone": "mlp", "embedding_size": 8, "hidden_sizes": [32, 16]},
        "method": {"name": "mlora", "rank": {"fixed": 4}},
        "training": {"batch_size": 256, "epochs": 8, "learning_rate": 3e-3},
    }
)

with tempfile.TemporaryDirectory() as folder:
    prepared = prepare(config.data, Path(folder) / "prepared", frame=frame, schema=schema)
    model = build(config, prepared.schema)
    history = fit(model, prepared, config.stages(), seed=config.seed)
    best = max(history.validations, key=lambda told: told.value)
    print(f"kept: epoch {best.epoch}, validation {best.metric} {best.value:.4f}")

    predictions = predict(model, prepared.test, prepared.schema)
    metrics = evaluate(predictions, ["shop"])
    for name, domain in metrics.divisions["shop"].domains.items():
        print(f"{name:6} {domain.rows:5} rows   AUC {domain.auc:.4f}")

    artifact = Path(folder) / "artifact"
    save(model, prepared.schema, prepared.encoders, artifact, config=config)
    print("the first three rows:", load(artifact).predict(frame.head(3)))
