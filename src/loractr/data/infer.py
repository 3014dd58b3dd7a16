"""Data of which nothing is known → a configuration that trains as it is, and notes on what was
guessed. What `loractr init` writes; every guess is meant to be read and corrected.
"""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from loractr.data.catalogue import DATASETS
from loractr.data.columns import Column, examine
from loractr.data.config import DataConfig
from loractr.data.sources import open_source, table
from loractr.errors import DataError, some

SAMPLE_ROWS = 200_000
"""Rows, from the start of the data, that guesses are made from."""

Proposal = tuple[dict[str, Any], list[str]]
"""A configuration as plain values, and notes on it."""

_LABELS = ("label", "click", "is_click", "clicked", "is_clicked", "clk", "target", "y")
_RATINGS = ("rating", "overall", "stars")
_DOMAINS = (
    *("domain", "scenario", "scene", "tab", "surface", "channel", "site", "market", "country"),
    *("region", "platform", "page", "category", "segment", "device", "gender"),
)
_MOST_DOMAINS, _MOST_DIVISIONS = 50, 3
_LEAST_MOMENTS = 50


def infer(path: Path) -> Proposal:
    """Propose a whole configuration for the data at `path`.

    Args:
        path: Parquet or CSV files (a file, folder or pattern), or the folder of a known data set.

    Raises:
        DataError: nothing readable is there, or no column looks like a label.
    """
    source = _known_source(path)
    data, notes = _known(source, path) if source else _Guess(path).proposal()
    return {"data": data, **_rest(data)}, notes


def to_yaml(config: dict[str, Any], notes: list[str]) -> str:
    """The configuration as YAML, under its notes as comments."""
    lines = []
    for note in notes:
        lines += textwrap.wrap(
            note, 98, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False
        )
    head = "\n".join(["# Proposed by `loractr init`; read it before you trust it.", *lines])
    body = yaml.safe_dump(
        config, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )
    return f"{head}\n{body}"


def _rest(data: dict[str, Any]) -> dict[str, Any]:
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
            "select": "wauc",
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


class _Guess:
    """Guesses about the table at `path`, one decision after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        frame = table.scan(path)
        sample = frame.head(SAMPLE_ROWS + 1).collect()
        self.is_whole = len(sample) <= SAMPLE_ROWS
        sample = sample.head(SAMPLE_ROWS)
        if not self.is_whole:
            self.notes.append(f"Guessed from the first {SAMPLE_ROWS:,} rows.")
        text = table.kind_of(table.files(path)[0]) != ".parquet"
        columns = [examine(values, as_text=text) for values in sample.get_columns()]
        self.columns = {column.name: column for column in columns}

    def proposal(self) -> Proposal:
        """The `data` section, and notes."""
        label = self._label()
        time = self._time(label["column"])
        inputs = self._inputs({label["column"]})
        divisions = self._divisions(inputs)
        natural = next(iter(divisions.values()), {}).get("column")
        data = {
            "source": "table",
            "path": str(self.path),
            "label": label,
            "fields": [self._field(column) for column in inputs if column.name != natural],
            "divisions": divisions,
            "domain_as_field": True,
            "split": self._split(time, bool(divisions)),
        }
        if not data["fields"]:
            raise DataError(
                f"{self.path} has no column that could be an input, besides label and domain.",
                fix="add columns of users, items or context.",
            )
        return data, self.notes

    def _label(self) -> dict[str, str]:
        binary = [column.name for column in self.columns.values() if column.is_binary]
        lower = {name.lower(): name for name in self.columns}
        for name in _LABELS:
            if lower.get(name) in binary:
                return {"column": lower[name]}
        for name in _RATINGS:
            column = self.columns.get(lower.get(name, ""))
            if column is not None and column.type in ("whole", "number"):
                self.notes.append(f"Label: {column.name} above 3 counts as a click; is that right?")
                return {"column": column.name, "positive": "> 3"}
        if len(binary) == 1:
            self.notes.append(f"Label: {binary[0]} is the only column of 0 and 1; is it the click?")
            return {"column": binary[0]}
        raise DataError(
            f"{self.path} has no column that is surely the label: of 0 and 1, named like a click."
            f" It has {some(self.columns)}; of 0 and 1 are {some(binary)}.",
            fix=f"name the label's column one of {some(_LABELS)}, or write data.label by hand.",
        )

    def _time(self, label: str) -> Column | None:
        """The finest column that says when a row happened."""
        times = [c for c in self.columns.values() if c.is_time and c.name != label]
        return max(times, key=lambda column: column.distinct, default=None)

    def _inputs(self, taken: set[str]) -> list[Column]:
        """Columns that may be inputs; why the others may not is noted."""
        reasons: dict[str, list[str]] = {}
        inputs = []
        for column in self.columns.values():
            reason = _not_an_input(column)
            if column.name in taken:
                continue
            if reason is None:
                inputs.append(column)
            else:
                reasons.setdefault(reason, []).append(column.name)
        self.notes += [f"Left out, {why}: {', '.join(names)}." for why, names in reasons.items()]
        return inputs

    def _divisions(self, inputs: list[Column]) -> dict[str, dict[str, str]]:
        few = [c for c in inputs if _makes_domains(c)]
        telling = [c for word in _DOMAINS for c in few if word in c.words]
        chosen = list(dict.fromkeys(c.name for c in telling))[:_MOST_DIVISIONS]
        if not chosen and few:
            fewest = min(few, key=lambda column: column.distinct)
            chosen = [fewest.name]
            self.notes.append(f"Domains: no column is named like one; {fewest.name} was taken.")
        if not chosen:
            self.notes.append("No column has few enough values to be a domain: one model for all.")
        return {name: {"column": name} for name in chosen}

    def _field(self, column: Column) -> str | dict[str, Any]:
        field: dict[str, Any] = {"name": column.name}
        if column.type == "list":
            return field | {"kind": "sequence"}
        if column.separator is not None:
            return field | {"kind": "sequence", "separator": column.separator}
        if not column.is_amount:
            return field | {"kind": "categorical"}
        field |= {"kind": "numerical", "scaling": "log1p" if column.is_lopsided else "standard"}
        if column.missing or not self.is_whole:
            field["missing"] = "mean"
        return field

    def _split(self, time: Column | None, has_domains: bool) -> dict[str, Any]:
        if time is not None and time.distinct >= _LEAST_MOMENTS and not time.missing:
            return {"kind": "temporal", "column": time.name, "fractions": [0.8, 0.1, 0.1]}
        if time is not None:
            self.notes.append(f"{time.name} is too coarse or has gaps: rows are split at random.")
        kind = "stratified" if has_domains else "random"
        return {"kind": kind, "fractions": [0.8, 0.1, 0.1], "seed": 123}


def _not_an_input(column: Column) -> str | None:
    """Why a column is no input, if so."""
    if column.is_time:
        return "it says when, and later rows have times never seen"
    if column.is_outcome:
        return "probably only known after the click (put it back if it is not)"
    if column.is_constant:
        return "the same in every row"
    if column.is_row_id:
        return "different in every row"
    if column.is_prose:
        return "prose"
    return None


def _makes_domains(column: Column) -> bool:
    ids = column.type in ("whole", "text") and column.separator is None and not column.is_amount
    return ids and 2 <= column.distinct <= _MOST_DOMAINS
