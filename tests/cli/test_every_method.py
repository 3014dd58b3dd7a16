"""Every method through the commands: train, inspect, evaluate, predict."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

from loractr.cli import app
from loractr.config import METHODS, load_config
from loractr.data.sources.synthetic import generate

CONFIG = """
data:
  source: synthetic
  synthetic: {rows: 1500, users: 60, items: 40, domains: 3}
  divisions: {domain: {column: domain}, device: {column: device}}
model: {backbone: mlp, embedding_size: 4, hidden_sizes: [8, 4], batch_norm: true}
training: {epochs: 1, batch_size: 128, select: log_loss}
"""
OPTIONS = {
    name: {"divisions": ["domain", "device"]}
    for name in ("multilora", "multilora_add", "multilora_avg")
}


def loractr(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_the_whole_way(method, tmp_path):
    config, out = tmp_path / "config.yaml", tmp_path / "run"
    chosen = {"name": method, **OPTIONS.get(method, {})}
    config.write_text(CONFIG + f"method: {json.dumps(chosen)}")
    loractr("train", config, "--out", out, "--threads", 1)
    artifact = out / "artifact"
    seen = json.loads(loractr("inspect", artifact, "--json"))
    assert seen["method"] == method
    metrics = json.loads((out / "metrics.json").read_text())
    assert f"method\t{method}\n" in loractr("inspect", artifact, "--plain")
    rows = tmp_path / "rows.parquet"
    scored = pl.read_parquet(out / "predictions.parquet")
    generate(load_config(config).data.synthetic)[scored["row"].to_list()].write_parquet(rows)
    evaluated = json.loads(loractr("evaluate", artifact, rows, "--json"))
    assert evaluated["pooled"]["auc"] == pytest.approx(metrics["test"]["pooled"]["auc"], abs=1e-6)
    loractr("predict", artifact, rows, "--out", tmp_path / "scored.parquet")
    found = pl.read_parquet(tmp_path / "scored.parquet")["probability"]
    assert found.to_list() == pytest.approx(scored["probability"].to_list(), abs=1e-6)
