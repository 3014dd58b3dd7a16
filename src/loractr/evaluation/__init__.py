"""Metrics per domain: numpy and polars in, numbers out. Usable on any system's predictions."""

from loractr.evaluation.auc import auc, domain_auc, domain_auc_se
from loractr.evaluation.labels import label_remarks
from loractr.evaluation.metrics import DomainScores, gauc, log_loss, mean_auc, score, wauc, wauc_se
from loractr.evaluation.predictions import (
    DivisionMetrics,
    DomainMetrics,
    Metrics,
    PooledMetrics,
    evaluate,
)
from loractr.evaluation.report import Table, comparison_table, division_table, runs_table

__all__ = [
    "DivisionMetrics",
    "DomainMetrics",
    "DomainScores",
    "Metrics",
    "PooledMetrics",
    "Table",
    "auc",
    "comparison_table",
    "division_table",
    "domain_auc",
    "domain_auc_se",
    "evaluate",
    "gauc",
    "label_remarks",
    "log_loss",
    "mean_auc",
    "runs_table",
    "score",
    "wauc",
    "wauc_se",
]
