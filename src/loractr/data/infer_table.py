"""A table of which nothing is known → the `data` section of a configuration, and notes.

One decision after the other: label, time, inputs, domains, split. Whatever was guessed, and what
else it could have been, is a note.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from polars import selectors

from loractr.data import column_names, infer_header, infer_label
from loractr.data.column_names import shown
from loractr.data.column_texts import Decimal
from loractr.data.columns import Column, examine
from loractr.data.config import MISSING_VALUES
from loractr.data.infer_inputs import holds_ids, makes_domains, not_an_input, quoted, telling
from loractr.data.infer_label import LabelGuess
from loractr.data.sources import table
from loractr.errors import DataError
from loractr.schema import PREDICTION_COLUMNS

SAMPLE_ROWS = 200_000
"""Rows, from the start of the data, that guesses are made from."""

_MOST_DIVISIONS = 3
_LEAST_MOMENTS, _LEAST_STRATIFIED = 50, 100
_MOST_NAMES = 20
_FEW_POSITIVES, _HARDLY_ANY = 100, 20
_LABEL_NAMES = (*column_names.LABELS, *column_names.RATINGS)
_FRACTIONS = [0.8, 0.1, 0.1]


class TableGuess:
    """Guesses about the table at `path`, one decision after the other.

    Raises:
        DataError: nothing readable is there, or a CSV file without a header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._is_text = all(table.kind_of(file) != ".parquet" for file in table.files(path))
        self._frame = infer_header.scanned(path)
        sample = self._frame.head(SAMPLE_ROWS + 1).collect()
        self.is_whole = len(sample) <= SAMPLE_ROWS
        sample = sample.head(SAMPLE_ROWS)
        if self._is_text:
            infer_header.refuse_values_as_names(path, sample)
        columns = [self._examined(values) for values in sample.get_columns()]
        self.columns = {column.name: column for column in columns}
        self._missing_values = list(MISSING_VALUES)
        if not self.is_whole:
            later = [c.name for c in columns if c.is_constant or (c.rises and not c.is_time)]
            more = f"; later rows may hold other values of {_listed(later)}" if later else ""
            self.notes.append(f"Guessed from the first {SAMPLE_ROWS:,} rows{more}.")

    def _examined(self, values: pl.Series) -> Column:
        """The column; `data.decimal` is for CSV files alone."""
        column = examine(values)
        if column.decimal != "," or self._is_text:
            return column
        why = "text of numbers with a decimal comma (write numbers)"
        return replace(column, type="unfit", unfit=why)

    @cached_property
    def rows(self) -> int:
        """Number of all rows."""
        if self.is_whole:
            return len(next(iter(self.columns.values())).values)
        return int(self._frame.select(pl.len()).collect(engine="streaming").item())

    def proposal(self) -> tuple[dict[str, Any], str]:
        """The `data` section, and the metric that chooses the kept weights.

        Raises:
            DataError: no column looks like a label, or none could be an input.
        """
        label = infer_label.label_of(self._with_all_labels())
        if label is None:
            return self._of_clicks(), "wauc"
        self.notes += label.notes
        decimal = self._one_decimal(label.column)
        inputs = self._inputs(label.column.name)
        divisions, natural = self._divisions(inputs)
        domain_field = f"domain_{next(iter(divisions), '')}"
        fields = [self._field(c, domain_field) for c in inputs if c.name != natural]
        if not fields:
            raise DataError(
                f"{self.path} has no column that could be an input, besides label and domain.",
                fix="add columns of users, items or context.",
            )
        data = {
            "source": "table",
            "path": str(self.path),
            "label": label.config,
            "fields": fields,
            "divisions": divisions,
            "domain_as_field": True,
            **self._form(decimal, label.column, inputs),
            "split": self._split(label.column.name, bool(divisions)),
        }
        return data, self._select(label)

    def _with_all_labels(self) -> list[Column]:
        """The columns; those named like a label as the whole log has them, where the sample has
        one value only."""
        if self.is_whole:
            return list(self.columns.values())
        for name, column in self.columns.items():
            if column.distinct <= 1 and column_names.place(name, column_names.LABELS) is not None:
                values = self._frame.select(selectors.by_name(name)).collect(engine="streaming")
                self.columns[name] = self._examined(values.to_series())
        return list(self.columns.values())

    def _of_clicks(self) -> dict[str, Any]:
        """A log of clicks only: negatives are drawn from users, items and domains."""
        columns = list(self.columns.values())
        clicks = infer_label.only_clicks(columns)
        users = [c for c in columns if column_names.is_user(c.name) and holds_ids(c)]
        items = [c for c in columns if column_names.is_item(c.name) and holds_ids(c)]
        domains = [c for c in telling(columns) if c not in users + items and not c.missing]
        doubtful = [c for c in columns if column_names.place(c.name, _LABEL_NAMES) is not None]
        doubtful += [c for c in columns if c.is_binary]
        if not (users and items and domains) or (clicks is None and doubtful):
            raise infer_label.no_label(self.path, columns)
        known = [min(found, key=lambda c: c.missing > 0) for found in (users, items, domains)]
        user, item, domain = (column.name for column in known)
        why = "No label" if clicks is None else f"{shown(clicks.name)} is the same in every row"
        self.notes += [
            f"{why}: every row is taken for a click, and each user gets rows of items never"
            f" clicked in the same domain (`negatives`). Drawn rows have {shown(user)},"
            f" {shown(item)} and {shown(domain)} only, so no other column is an input.",
            "If the log has rows that are no clicks, name its label in data.label instead.",
        ]
        self.notes += [
            f"{shown(c.name)}: {c.missing:,} of {len(c.values):,} rows have none; `prepare` refuses"
            " them: drop those rows first."
            for c in known
            if c.missing
        ]
        if "split" in self.columns:
            self.notes.append("`prepare` refuses a column split of the log's own: rename it first.")
        division = self._division_name(domain)
        return {
            "source": "table",
            "path": str(self.path),
            "fields": [{"name": name, "kind": "categorical"} for name in (user, item)],
            "divisions": {division: {"column": domain}},
            "domain_as_field": True,
            "negatives": {"user": user, "item": item, "seed": 0},
            "split": {"kind": "column", "column": "split"},
        }

    def _one_decimal(self, label: Column) -> Decimal:
        """The mark that all numbers are read with: the label's, or that of most columns. Columns
        with the other one become unfit."""
        read = [c for c in self.columns.values() if c.decimal and (c.is_amount or c.is_time)]
        commas = sum(c.decimal == "," for c in read)
        mark = label.decimal or ("," if 2 * commas > len(read) else ".")
        what = {",": "comma", ".": "point"}
        for column in read:
            if column.decimal not in (mark, None) and column.name != label.name:
                why = (
                    f"numbers with a decimal {what[column.decimal]}, where others have a"
                    f" {what[mark]} (write all alike)"
                )
                self.columns[column.name] = replace(column, type="unfit", unfit=why)
        return mark

    def _inputs(self, label: str) -> list[Column]:
        """Columns that may be inputs; why the others may not is noted."""
        reasons: dict[str, list[str]] = {}
        inputs = []
        for column in self.columns.values():
            if column.name == label:
                continue
            reason = not_an_input(column)
            if reason is None:
                inputs.append(column)
            else:
                reasons.setdefault(reason, []).append(column.name)
        self.notes += [f"Left out, {why}: {_listed(names)}." for why, names in reasons.items()]
        return inputs

    def _divisions(self, inputs: list[Column]) -> tuple[dict[str, dict[str, str]], str | None]:
        """Divisions, and the column of the natural one."""
        few = [c for c in inputs if makes_domains(c)]
        chosen = telling(few)[:_MOST_DIVISIONS]
        if not chosen and few:
            chosen = [min(few, key=lambda column: (column.is_binary, column.distinct))]
            what = f"Domains: no column is named like one; {shown(chosen[0].name)} was taken"
        elif chosen:
            what = f"Domains: {_listed([c.name for c in chosen])}"
        else:
            self.notes.append("No column has few enough values to be a domain: one model for all.")
            return {}, None
        others = [c.name for c in few if c not in chosen]
        more = f"; they could also be made of {_listed(others)}" if others else ""
        self.notes.append(f"{what}{more}.")
        return {self._division_name(c.name): {"column": c.name} for c in chosen}, chosen[0].name

    def _division_name(self, column: str) -> str:
        """The column's name, where predictions have no such column already."""
        if column not in PREDICTION_COLUMNS:
            return column
        name = f"{column}_domain"
        while name in self.columns:
            name += "_"
        self.notes.append(
            f"The domains of {column} are called {name}: predictions have a column {column}."
        )
        return name

    def _field(self, column: Column, domain_field: str) -> dict[str, Any]:
        field: dict[str, Any] = {"name": column.name}
        if column.name == domain_field:
            field = {"name": f"own_{column.name}", "column": column.name}
            self.notes.append(
                f"{shown(column.name)} is the name of the domain as an input: the column is the"
                f" field {shown(field['name'], 60)}."
            )
        if column.type == "list":
            separator = {} if column.separator is None else {"separator": column.separator}
            return field | {"kind": "sequence"} | separator
        if not column.is_amount:
            return field | {"kind": "categorical"}
        field |= {"kind": "numerical", "scaling": "log1p" if column.is_lopsided else "standard"}
        if column.missing or not self.is_whole:
            field["missing"] = "mean"
        return field

    def _form(self, decimal: Decimal, label: Column, inputs: list[Column]) -> dict[str, Any]:
        """How the files write numbers and missing values, where that is not the usual way."""
        form: dict[str, Any] = {}
        if decimal == ",":
            form["decimal"] = decimal
            commas = [c.name for c in self.columns.values() if c.decimal == "," and c.is_numeric]
            example = self._example(commas[0])
            self.notes.append(f"Numbers with a decimal comma ({example}): {_listed(commas)}.")
        self.notes += [note for column in inputs for note in self._gaps(column)]
        if any(set(column.gaps) - {""} or column.odd for column in (label, *inputs)):
            form["missing_values"] = self._missing_values
        return form

    def _example(self, name: str) -> str:
        values = (
            self._frame.select(selectors.by_name(name)).head(SAMPLE_ROWS).collect()[name].alias("")
        )
        return shown(str(values.filter(values.str.contains(",", literal=True)).first()))

    def _gaps(self, column: Column) -> list[str]:
        """Notes on the column's texts that stand for a missing value, or have to."""
        name, rows, notes = shown(column.name), len(column.values), []
        if column.gaps:
            what = "empty" if set(column.gaps) == {""} else quoted(column.gaps)
            start = f"{name}: {_are(column.gaps, rows)} {what}"
            if column.is_amount:
                notes.append(f"{start}: missing, so the mean stands for them.")
            elif set(column.gaps) == {""}:
                notes.append(f"{start}: missing.")
            else:
                notes.append(
                    f"{start}: missing. If one is a name, as NA is Namibia's, take it out of"
                    " `missing_values`."
                )
        if column.odd:
            one = "list" if column.type == "list" else "number"
            start = f"{name}: {_are(column.odd, rows)} no {one} ({quoted(column.odd)})"
            notes.append(f"{start}; added to `missing_values`, for every column.")
            self._missing_values += [odd for odd in column.odd if odd not in self._missing_values]
        return notes

    def _split(self, label: str, has_domains: bool) -> dict[str, Any]:
        """By time, where a column tells the time well enough."""
        times = [c for c in self.columns.values() if c.is_time and c.name != label]
        of_rows = [c for c in times if not column_names.is_time_of_item(c.name)]
        best = max(of_rows, key=_fitness_as_time, default=None)
        others = [c.name for c in times if c is not best]
        if best is not None and best.distinct >= _LEAST_MOMENTS and not best.missing:
            more = f" Other times: {_listed(others)}." if others else ""
            self.notes.append(
                f"Split by {shown(best.name)}: the first 80 % of the rows train, the last 10 %"
                f" test.{more}"
            )
            return {"kind": "temporal", "column": best.name, "fractions": list(_FRACTIONS)}
        self.notes.append(f"{self._why_not_by_time(best)}: rows are split at random.")
        steps = [c.name for c in self.columns.values() if c.is_step and not c.is_time]
        if steps and best is None:
            self.notes.append(
                f"If one of these says when, `split: {{kind: temporal, column: …, fractions:"
                f" [0.8, 0.1, 0.1]}}` is better: {_listed(steps)}."
            )
        many = not self.is_whole or self.rows >= _LEAST_STRATIFIED
        kind = "stratified" if has_domains and many else "random"
        return {"kind": kind, "fractions": list(_FRACTIONS), "seed": 123}

    def _why_not_by_time(self, best: Column | None) -> str:
        if best is None:
            return "No column surely says when"
        if best.missing:
            gaps = f"{best.missing:,} of {len(best.values):,} rows have no time"
            return f"{shown(best.name)} has gaps ({gaps}; without those rows, split by it)"
        return f"{shown(best.name)} is too coarse to cut by itself ({best.distinct} moments)"

    def _select(self, label: LabelGuess) -> str:
        """WAUC, unless validation has too few rows of one class for an AUC to choose by."""
        rarer = min(label.rate, 1 - label.rate)
        sampled = rarer * _FRACTIONS[1] * len(label.column.values)
        if sampled >= _FEW_POSITIVES:
            return "wauc"
        rows = round(_FRACTIONS[1] * self.rows)
        count, what = round(rarer * rows), "clicks" if label.rate <= 0.5 else "no clicks"
        if count >= _FEW_POSITIVES:
            return "wauc"
        advice = (
            "nothing can be concluded from so few; get more rows first"
            if count < _HARDLY_ANY
            else "too few for an AUC to choose by"
        )
        self.notes.append(
            f"Validation: about {count:,} of {rows:,} rows are {what}: {advice}. So log loss"
            " chooses the weights (`select: log_loss`)."
        )
        return "log_loss"


def _fitness_as_time(column: Column) -> tuple[bool, bool, int]:
    return not column.missing, not column.is_outcome, column.distinct


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(shown(name) or "''" for name in names[:_MOST_NAMES]) + more


def _are(counts: dict[str, int], rows: int) -> str:
    count = sum(counts.values())
    return f"{count:,} of {rows:,} values {'is' if count == 1 else 'are'}"
