"""What the cases share: a click log of three shops, its configuration, and the command line."""

import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from typer.testing import CliRunner, Result

from loractr.cli import app

START = datetime(2026, 3, 1)


def shop_log(rows: int = 600, seed: int = 0) -> pl.DataFrame:
    """user_id and item_id (whole), shop (text), price (float), ts (a time), click (0 or 1)."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(1, 60, rows), rng.integers(100, 140, rows)
    minutes = np.sort(rng.integers(0, 14 * 24 * 60, rows))
    taste = rng.normal(size=60)[user] + rng.normal(size=40)[item - 100] - 0.5
    return pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "shop": rng.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1]),
            "price": np.exp(rng.normal(3, 1, rows)).round(2),
            "ts": [START + timedelta(minutes=int(m)) for m in minutes],
            "click": (rng.random(rows) < 1 / (1 + np.exp(-taste))).astype(int),
        }
    )


def config(path: Path, **data: Any) -> dict[str, Any]:
    """A small run over the log at `path`, as plain values; `data` replaces keys of that section."""
    return {
        "data": {
            "source": "table",
            "path": str(path),
            "label": {"column": "click"},
            "fields": [
                "user_id",
                "item_id",
                {"name": "price", "kind": "numerical", "scaling": "log1p"},
            ],
            "divisions": {"shop": {"column": "shop"}},
            "split": {"kind": "random", "fractions": [0.8, 0.1, 0.1], "seed": 123},
            **data,
        },
        "model": {"backbone": "mlp", "embedding_size": 4, "hidden_sizes": [8]},
        "method": {"name": "mlora", "rank": {"fixed": 2}, "recipe": "joint"},
        "training": {"batch_size": 256, "epochs": 1, "patience": 1, "learning_rate": 0.003},
    }


def write_config(values: dict[str, Any], file: Path) -> Path:
    """`values` as YAML at `file`, which is returned."""
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


def loractr(*arguments: object) -> Result:
    """The command's standard output, standard error and exit status."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def proposal(path: Path) -> tuple[dict[str, Any], str]:
    """What `loractr init` proposes for `path`: the configuration, and its notes as one text."""
    result = loractr("init", path)
    assert result.exit_code == 0, result.stderr
    notes = [line.lstrip("# ") for line in result.stdout.splitlines() if line.startswith("#")]
    return yaml.safe_load(io.StringIO(result.stdout)), " ".join(notes)


def kinds(proposed: dict[str, Any]) -> dict[str, str]:
    """Kind of each proposed field, by name; a bare one is `bare`."""
    fields = proposed["data"]["fields"]
    return {
        (one if isinstance(one, str) else one["name"]): (
            "bare" if isinstance(one, str) else one.get("kind", "categorical")
        )
        for one in fields
    }


def metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a run."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return found
