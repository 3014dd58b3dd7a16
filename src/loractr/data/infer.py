"""Data of which nothing is known → a configuration that trains as it is, and notes on what was
guessed. What `loractr init` writes; every guess is meant to be read and corrected.
"""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from loractr.data.catalogue import DATASETS
from loractr.data.config import DataConfig
from loractr.data.infer_table import TableGuess
from loractr.data.sources import open_source

Proposal = tuple[dict[str, Any], list[str]]
"""A configuration as plain values, and notes on it."""


def infer(path: Path) -> Proposal:
    """Propose a whole configuration for the data at `path`.

    Args:
        path: Parquet or CSV files (a file, folder or pattern), or the folder of a known data set.

    Raises:
        DataError: nothing readable is there, or no column looks like a label.
    """
    source = _known_source(path)
    if source is not None:
        data, notes = _known(source, path)
        return {"data": data, **_rest(data, "wauc")}, notes
    guess = TableGuess(path)
    data, select = guess.proposal()
    return {"data": data, **_rest(data, select)}, guess.notes


def to_yaml(config: dict[str, Any], notes: list[str]) -> str:
    """The configuration as YAML, under its notes as comments."""
    lines = []
    for note in notes:
        lines += textwrap.wrap(
            note, 78, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False
        )
    head = "\n".join(["# Proposed by `loractr init`; read it before you trust it.", *lines])
    body = yaml.safe_dump(
        config, sort_keys=False, default_flow_style=None, allow_unicode=True, width=60
    )
    return f"{head}\n{body}"


def _rest(data: dict[str, Any], select: str) -> dict[str, Any]:
    """Model, method and training: moderate in size, the same for all data."""
    method: dict[str, Any] = {"name": "mix"}
    if data["divisions"]:
        natural = next(iter(data["divisions"]))
        method = {"name": "mlora", "divisions": [natural], "rank": {"fixed": 8}, "recipe": "joint"}
    return {
        "model": {"backbone": "mlp", "embedding_size": 16, "hidden_sizes": [128, 64]},
        "method": method,
        "training": {
            "batch_size": 1024,
            "epochs": 20,
            "patience": 2,
            "validate_every": 0.5,
            "learning_rate": 0.001,
            "select": select,
        },
        "seed": 0,
    }


def _known_source(path: Path) -> str | None:
    """The source whose official files lie in the folder `path`."""
    if not path.is_dir():
        return None
    for name, dataset in DATASETS.items():
        if all(any(path.glob(pattern)) for pattern in dataset.files):
            return name
    return None


def _known(source: str, path: Path) -> Proposal:
    """The source knows its columns; only a split has to be chosen."""
    own = _OF_SOURCE.get(source, {})
    opened = open_source(DataConfig.model_validate({"source": source, "path": path, **own}))
    data = {
        "source": source,
        "path": str(path),
        "label": opened.label.model_dump(exclude_none=True),
        "fields": list(opened.default_fields),
        "divisions": {d.name: {"column": d.column} for d in opened.divisions},
        "domain_as_field": True,
        "split": {"kind": "stratified", "fractions": [0.6, 0.2, 0.2], "seed": 123},
        **own,
    }
    others = [name for name in opened.fields if name not in opened.default_fields]
    notes = [f"Further columns that may be inputs: {', '.join(others)}."] if others else []
    after = [name for name in opened.post_outcome if name != opened.label.column]
    if after:
        notes.append(f"Only known after the click, so never inputs: {', '.join(after)}.")
    if "negatives" in own:
        notes.append("The source holds clicks only: negatives are drawn, and split with them.")
    return data, notes


_BY_COLUMN = {"kind": "column", "column": "split"}
_OF_SOURCE: dict[str, dict[str, Any]] = {
    "kuairand-pure": {
        "split": {"kind": "temporal", "column": "time_ms", "fractions": [0.8, 0.1, 0.1]}
    },
    "amazon-2018": {"split": _BY_COLUMN, "negatives": {"seed": 0}},
    "taobao-theme": {"split": _BY_COLUMN, "negatives": {"seed": 0}},
    "ali-ccp": {"split": _BY_COLUMN},
}
"""What a source's own protocol asks for."""
