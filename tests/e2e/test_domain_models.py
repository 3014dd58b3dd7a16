"""Runs that fit a whole model per domain: what an interruption leaves, and divisions not there."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from loractr.artifact import load
from loractr.config import RunConfig, parse_config
from loractr.errors import UsageError
from loractr.run import dry_run, run
from loractr.training.events import Event, Validated


def config(data: dict[str, Any], method: dict[str, Any]) -> RunConfig:
    return parse_config(
        {
            "data": data,
            "model": {"backbone": "mlp", "embedding_size": 3, "hidden_sizes": [5]},
            "method": method,
            "training": {"batch_size": 128, "epochs": 2},
        }
    )


SYNTHETIC = {
    "source": "synthetic",
    "synthetic": {"rows": 1500, "users": 40, "items": 20, "domains": 3},
}


@pytest.mark.parametrize("method", ["single", "finetune"])
def test_an_interrupted_run_has_the_history_of_all_its_fits(method, tmp_path):
    asked, seen = config(SYNTHETIC, {"name": method}), []

    def interrupt(event: Event) -> None:
        if isinstance(event, Validated) and event.domain == "domain_02":
            seen.append(event)
            if len(seen) == 2:
                raise KeyboardInterrupt

    run(asked, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "cut", callbacks=[interrupt])
    run(asked, tmp_path / "cut", resume=True)
    whole, cut = ((tmp_path / name / "history.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole
    assert whole.count('"domain_00"') == whole.count('"domain_01"') == 3  # start and two epochs


def log_without_domains(path: Path) -> Path:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 20, 600)
    click = (rng.random(600) < np.where(user % 2, 0.8, 0.2)).astype(int)
    pl.DataFrame({"user": user, "click": click}).write_parquet(path)
    return path


def without_domains(path: Path) -> dict[str, Any]:
    data = {"source": "table", "path": str(log_without_domains(path / "log.parquet"))}
    return {**data, "label": {"column": "click"}, "fields": ["user"]}


def test_a_table_without_divisions_goes_the_whole_way(tmp_path):
    metrics = run(config(without_domains(tmp_path), {"name": "mix"}), tmp_path / "run")
    assert metrics.divisions == {}
    assert metrics.pooled.auc > 0.6
    predictions = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    raw = pl.read_parquet(tmp_path / "log.parquet")[predictions["row"].to_list()]
    scored = load(tmp_path / "run" / "artifact").predict(raw.drop("click"))
    assert np.array_equal(scored, predictions["probability"])


@pytest.mark.parametrize("name", ["mlora", "single", "finetune"])
def test_a_method_that_needs_domains_says_so_before_it_trains(name, tmp_path):
    asked = config(without_domains(tmp_path), {"name": name})
    with pytest.raises(UsageError, match=r"the data has none.\nFix: set data.divisions"):
        run(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="the data has none"):
        dry_run(asked)


@pytest.mark.parametrize("name", ["mix", "mlora", "single", "finetune"])
def test_a_division_that_the_source_does_not_have_is_refused_by_name(name, tmp_path):
    asked = config(SYNTHETIC, {"name": name, "divisions": ["domian"]})
    with pytest.raises(UsageError, match=r"names 'domian'; the data's divisions are 'domain'"):
        run(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
