"""A table of predictions → `Metrics`: the `test` and `validation` parts of metrics.json."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.errors import DataError, MissingColumnError, UnknownDomainError, UsageError, some
from loractr.evaluation.auc import Floats, Integers
from loractr.evaluation.metrics import DomainScores, gauc, mean_auc, score, wauc, wauc_se

RESERVED = ("row", "label", "probability", "weight", "group", "true_probability")
"""Columns of a table of predictions; every other column is a division."""

Undefined = Literal["no rows", "one class"]


@dataclass(frozen=True)
class PooledMetrics:
    """All rows together, those of unseen domains included."""

    auc: float | None
    log_loss: float | None
    gauc: float | None
    """None without a `group` column."""
    rows: int
    auc_se: float | None
    """Standard error of `auc`, as `domain_auc_se`; None where it is undefined."""


@dataclass(frozen=True)
class DomainMetrics:
    """The rows of one domain. With weights, `auc` and `log_loss` are weighted; rows are counted."""

    auc: float | None
    log_loss: float | None
    rows: int
    positives: int
    undefined: Undefined | None
    """Why `auc` is None. Rows of weight 0 count for nothing here."""
    auc_se: float | None
    """Standard error of `auc`; None also where it comes from one positive or one negative."""


@dataclass(frozen=True)
class DivisionMetrics:
    """One division: each of its domains, and their averages over those with a defined AUC."""

    wauc: float | None
    """Weighted by the rows of each domain (with weights: by their sum)."""
    mean_auc: float | None
    undefined: int
    """How many domains have no AUC."""
    domains: dict[str, DomainMetrics]
    unseen: DomainMetrics | None
    """Rows of domains that the model was not fitted on, where there are any."""
    wauc_se: float | None
    """Standard error of `wauc`, from those of the domains."""
    mean_auc_se: float | None
    """Standard error of `mean_auc`."""


@dataclass(frozen=True)
class Metrics:
    """Everything that is measured on one split."""

    pooled: PooledMetrics
    divisions: dict[str, DivisionMetrics]
    best_possible: "Metrics | None"
    """The same numbers of the true probabilities, where they are known (synthetic data)."""

    def as_dict(self) -> dict[str, Any]:
        """As in metrics.json. `unseen` is left out of a division that has no such rows."""
        result = asdict(self)
        _drop_absent(result)
        return result


def _drop_absent(metrics: dict[str, Any]) -> None:
    for division in metrics["divisions"].values():
        if division["unseen"] is None:
            del division["unseen"]
    if metrics["best_possible"] is not None:
        _drop_absent(metrics["best_possible"])
        del metrics["best_possible"]["best_possible"]


def evaluate(
    predictions: pl.DataFrame,
    divisions: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
) -> Metrics:
    """Measure a table of predictions, whatever system made it.

    Args:
        predictions: Columns `label` (0 and 1) and `probability`; a column per division with the
            domain's name, null where it is unseen; optionally `weight`, `group` (for GAUC) and
            `true_probability` (for the best possible).
        divisions: Division → all its domains, so that a domain without rows is reported as such;
            or names of divisions, whose domains are those that occur, in alphabetical order.
            Every column that is none of the above when absent.

    Raises:
        MissingColumnError: a column that is needed is not there.
        DataError: labels outside {0, 1}, probabilities outside [0, 1], nulls, or a domain that
            `divisions` does not list.
    """
    if divisions is None:
        divisions = [name for name in predictions.columns if name not in RESERVED]
    for column in ("label", "probability", *divisions):
        if column not in predictions.columns:
            raise MissingColumnError(column, predictions.columns, wanted_by="evaluate")
    if not isinstance(divisions, Mapping):
        divisions = {name: _occurring(predictions[name]) for name in divisions}
    codes = {name: _codes(predictions[name], domains) for name, domains in divisions.items()}
    best = None
    if "true_probability" in predictions.columns:
        best = _measure(predictions, "true_probability", divisions, codes, best_possible=None)
    return _measure(predictions, "probability", divisions, codes, best_possible=best)


def _measure(
    predictions: pl.DataFrame,
    column: str,
    divisions: Mapping[str, Sequence[str]],
    codes: Mapping[str, Integers],
    *,
    best_possible: Metrics | None,
) -> Metrics:
    labels, probabilities = _numbers(predictions, "label"), _numbers(predictions, column)
    weight = _numbers(predictions, "weight") if "weight" in predictions.columns else None
    one = np.zeros(len(labels), np.int64)
    everything = score(labels, probabilities, one, 1, weight, errors=True)
    assert everything.domain_auc_se is not None
    return Metrics(
        pooled=PooledMetrics(
            auc=_known(everything.pooled_auc),
            log_loss=_known(everything.log_loss),
            gauc=_grouped(predictions, labels, probabilities, weight),
            rows=len(labels),
            auc_se=_known(everything.domain_auc_se[0]),
        ),
        divisions={
            name: _division(labels, probabilities, codes[name], domains, weight)
            for name, domains in divisions.items()
        },
        best_possible=best_possible,
    )


def _division(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    codes: Integers,
    domains: Sequence[str],
    weight: NDArray[Any] | None,
) -> DivisionMetrics:
    # Unseen rows (-1) are scored as one more domain, which no average counts.
    places = np.where(codes < 0, len(domains), codes)
    scores = score(labels, probabilities, places, len(domains) + 1, weight, errors=True)
    assert scores.domain_auc_se is not None
    *seen, unseen = _domains(scores, scores.domain_auc_se)
    aucs, mass, errors = scores.domain_auc[:-1], scores.mass[:-1], scores.domain_auc_se[:-1]
    return DivisionMetrics(
        wauc=_known(wauc(aucs, mass)),
        mean_auc=_known(mean_auc(aucs)),
        undefined=sum(domain.undefined is not None for domain in seen),
        domains=dict(zip(domains, seen, strict=True)),
        unseen=unseen if unseen.rows else None,
        wauc_se=_known(wauc_se(aucs, errors, mass)),
        mean_auc_se=_known(wauc_se(aucs, errors, np.ones_like(mass))),
    )


def _domains(scores: DomainScores, errors: Floats) -> Iterator[DomainMetrics]:
    for d, mass in enumerate(scores.mass):
        auc = _known(scores.domain_auc[d])
        reason: Undefined = "no rows" if mass == 0 else "one class"
        yield DomainMetrics(
            auc=auc,
            log_loss=_known(scores.domain_log_loss[d]),
            rows=int(scores.rows[d]),
            positives=int(scores.positives[d]),
            undefined=reason if auc is None else None,
            auc_se=_known(errors[d]),
        )


def _grouped(
    predictions: pl.DataFrame,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    weight: NDArray[Any] | None,
) -> float | None:
    if "group" not in predictions.columns:
        return None
    nulls = predictions["group"].null_count()
    if nulls:
        raise DataError(f"column 'group' has {nulls} null(s); every row must belong to a group.")
    codes = predictions["group"].rank("dense").to_numpy()
    return _known(gauc(labels, probabilities, codes, weight))


def _numbers(predictions: pl.DataFrame, column: str) -> NDArray[Any]:
    series = predictions[column]
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        raise DataError(f"column {column!r} must hold numbers, not {series.dtype}.")
    if series.null_count():
        raise DataError(f"column {column!r} has {series.null_count()} null(s); it must have none.")
    return series.to_numpy()


def _occurring(column: pl.Series) -> list[str]:
    return column.cast(pl.String).unique().drop_nulls().sort().to_list()


def _codes(column: pl.Series, domains: Sequence[str]) -> Integers:
    """Index of each row's domain in `domains` (N,); -1 where it is null."""
    twice = [domain for domain, count in Counter(domains).items() if count > 1]
    if twice:
        raise UsageError(f"division {column.name!r} lists {some(twice)} twice.")
    unknown = sorted(set(_occurring(column)) - set(domains))
    if unknown:
        raise UnknownDomainError(column.name, unknown, domains)
    codes = column.cast(pl.String).cast(pl.Enum(domains)).to_physical().cast(pl.Int64)
    return codes.fill_null(-1).to_numpy()


def _known(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
