"""`Metrics` → a table of text, for whatever shows it: a terminal, Markdown, HTML."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from loractr.evaluation.predictions import DivisionMetrics, DomainMetrics, Metrics

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and rows of as many cells; the first column is text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def division_table(metrics: Metrics, division: str) -> Table:
    """One row a domain, then the averages over domains, then all rows together.

    `s.e.` is the standard error of the AUC: what other rows alone would change. Why an AUC is
    undefined stands in a column of its own, where one is.
    """
    measured = metrics.divisions[division]
    rows = [_domain_row(name, domain) for name, domain in _with_unseen(measured)]
    rows += [
        ("mean", "", "", number(measured.mean_auc), number(measured.mean_auc_se), ""),
        ("weighted (WAUC)", "", "", number(measured.wauc), number(measured.wauc_se), ""),
        _pooled_row(metrics),
    ]
    columns: tuple[str, ...] = ("domain", "rows", "positives", "AUC", "s.e.", "log loss")
    reasons = [domain.undefined or "" for _, domain in _with_unseen(measured)] + [""] * 3
    if any(reasons):
        columns, rows = _with_column("undefined", reasons, columns, rows)
    if metrics.best_possible is not None:
        limits = map(number, _aucs(metrics.best_possible, division))
        columns, rows = _with_column("best AUC", limits, columns, rows)
    return Table(title=f"by {division}", columns=columns, rows=tuple(rows))


def comparison_table(results: Mapping[str, Metrics], division: str) -> Table:
    """AUC per domain, one column for each of `results` (name → metrics on the same rows)."""
    first = next(iter(results.values()))
    domains = list(_with_unseen(first.divisions[division]))
    names = [name for name, _ in domains] + ["mean", "weighted (WAUC)", "all rows"]
    sizes = [f"{domain.rows:,}" for _, domain in domains] + ["", "", f"{first.pooled.rows:,}"]
    columns = {name: _aucs(metrics, division) for name, metrics in results.items()}
    if first.best_possible is not None:
        columns["best possible"] = _aucs(first.best_possible, division)
    cells = (map(number, column) for column in columns.values())
    return Table(
        title=f"AUC by {division}",
        columns=("domain", "rows", *columns),
        rows=tuple(zip(names, sizes, *cells, strict=True)),
    )


def runs_table(results: Mapping[str, Metrics]) -> Table:
    """One line a run (name → metrics), e.g. one a seed; then mean and standard deviation (n - 1).

    WAUC and mean AUC are those of the natural (first) division.
    """
    lines = {name: _headline(metrics) for name, metrics in results.items()}
    columns = list(zip(*lines.values(), strict=True))
    if len(lines) > 1:
        lines["mean"] = [_statistic(mean, column) for column in columns]
        lines["standard deviation"] = [_statistic(stdev, column) for column in columns]
    return Table(
        title="runs",
        columns=("run", "WAUC", "mean AUC", "pooled AUC", "log loss"),
        rows=tuple((name, *map(number, line)) for name, line in lines.items()),
    )


def number(value: float | None) -> str:
    """Four places, or a dash."""
    return ABSENT if value is None else f"{value:.4f}"


def _headline(metrics: Metrics) -> list[float | None]:
    natural = next(iter(metrics.divisions.values()), None)
    of_domains = [natural.wauc, natural.mean_auc] if natural else [None, None]
    return [*of_domains, metrics.pooled.auc, metrics.pooled.log_loss]


def _statistic(
    of: Callable[[Sequence[float]], float], values: Sequence[float | None]
) -> float | None:
    known = [value for value in values if value is not None]
    return of(known) if len(known) == len(values) else None


def _aucs(metrics: Metrics, division: str) -> list[float | None]:
    measured = metrics.divisions[division]
    each = [domain.auc for _, domain in _with_unseen(measured)]
    return [*each, measured.mean_auc, measured.wauc, metrics.pooled.auc]


def _with_unseen(division: DivisionMetrics) -> Iterator[tuple[str, DomainMetrics]]:
    yield from division.domains.items()
    if division.unseen:
        yield "(unseen)", division.unseen


def _domain_row(name: str, domain: DomainMetrics) -> tuple[str, ...]:
    numbers = map(number, (domain.auc, domain.auc_se, domain.log_loss))
    return (name, f"{domain.rows:,}", f"{domain.positives:,}", *numbers)


def _pooled_row(metrics: Metrics) -> tuple[str, ...]:
    pooled = metrics.pooled
    numbers = map(number, (pooled.auc, pooled.auc_se, pooled.log_loss))
    return ("all rows", f"{pooled.rows:,}", "", *numbers)


def _with_column(
    name: str, cells: Iterable[str], columns: tuple[str, ...], rows: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and rows of a table with one more column."""
    return (*columns, name), [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
