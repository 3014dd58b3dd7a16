"""Log loss and the averages of AUC over domains and groups. Arrays in, numbers out.

An undefined number is NaN, and an average runs over what is defined.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loractr.errors import DataError
from loractr.evaluation.auc import (
    Flags,
    Floats,
    Integers,
    auc,
    check_domains,
    check_rows,
    domain_auc,
    domain_auc_se,
)


def log_loss(labels: ArrayLike, probabilities: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean of -log P(label), in nats; NaN without rows (or without weight).

        -Σ w[n] (y[n] log p[n] + (1 - y[n]) log(1 - p[n])) / Σ w[n]

    Probabilities are clipped to [ε, 1 - ε], ε the spacing of their type at 1 (float32: 1.2e-7,
    float64: 2.2e-16), as scikit-learn does.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) in [0, 1].
        weight: (N,) row weights ≥ 0; every row counts 1 when absent.

    Raises:
        DataError: a label outside {0, 1}, a probability outside [0, 1], a weight that is negative.
        UsageError: arrays that differ in length.
    """
    positive, probabilities, weights = check_rows(labels, probabilities, weight)
    return _mean(_losses(positive, probabilities), weights)


def mean_auc(per_domain: Floats) -> float:
    """Plain mean of the defined AUCs (D,); NaN when none is defined."""
    return _mean(per_domain[~np.isnan(per_domain)], None)


def wauc(per_domain: Floats, weight: ArrayLike) -> float:
    """Mean of the defined AUCs (D,), weighted by each domain's rows (or their total weight) (D,).

    Source: Yang et al., MLoRA, RecSys 2024, doi:10.1145/3640457.3688134.
    """
    defined = ~np.isnan(per_domain)
    return _mean(per_domain[defined], np.asarray(weight, dtype=np.float64)[defined])


def wauc_se(per_domain: Floats, errors: Floats, weight: ArrayLike) -> float:
    """Standard error of `wauc`, and with equal weights of `mean_auc`, from those of the domains'
    AUCs (D,): domains have no rows in common.

        sqrt(Σ w_d² error_d²) / Σ w_d, over the defined AUCs

    A defined AUC without an error, of one positive or one negative, counts with ½, the largest
    error that an AUC can have.
    """
    defined = ~np.isnan(per_domain)
    weights = np.asarray(weight, dtype=np.float64)[defined]
    total = float(weights.sum())
    known = np.nan_to_num(errors[defined], nan=0.5)
    return float(np.sqrt(((weights * known) ** 2).sum()) / total) if total > 0 else float("nan")


def gauc(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weight: ArrayLike | None = None
) -> float:
    """Grouped AUC: AUC within each group (usually a user), averaged by the groups' rows.

    Groups with one class are left out; NaN when none is left.

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) real numbers.
        groups: (N,) values of any type that sorts; equal values are one group.
        weight: (N,) row weights ≥ 0; a group then weighs as much as its rows together.

    Raises:
        DataError, UsageError: as `auc`.
    """
    keys, codes = np.unique(np.asarray(groups), return_inverse=True)
    per_group = domain_auc(labels, scores, codes, len(keys), weight)
    weights = None if weight is None else np.asarray(weight, dtype=np.float64)
    return wauc(per_group, np.bincount(codes, weights=weights, minlength=len(keys)))


@dataclass(frozen=True)
class DomainScores:
    """What `score` finds; the first four carry the names of the `select` option."""

    mean_auc: float
    wauc: float
    pooled_auc: float
    log_loss: float
    """Over all rows, those of no domain included."""
    domain_auc: Floats  # (D,)
    domain_log_loss: Floats  # (D,)
    rows: Integers  # (D,)
    positives: Integers  # (D,)
    mass: Floats  # (D,), total weight of the domain's rows; their number without weights
    domain_auc_se: Floats | None = None  # (D,), standard errors, where they were asked for


def score(
    labels: ArrayLike,
    scores: ArrayLike,
    domains: ArrayLike,
    n_domains: int,
    weight: ArrayLike | None = None,
    *,
    logits: bool = False,
    errors: bool = False,
) -> DomainScores:
    """All numbers of one division in one pass: the validation of a training epoch.

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) probabilities, or logits with `logits`.
        domains: (N,) integers in [-1, n_domains); -1 counts in the pooled numbers only.
        n_domains: Number of domains, D.
        weight: (N,) row weights ≥ 0, for every number.
        logits: Whether `scores` are logits: their log loss needs no clipping.
        errors: Whether to find the standard errors of the domains' AUC as well.

    Raises:
        DataError, UsageError: as `domain_auc` and `log_loss`.
    """
    positive, scores, weights = check_rows(labels, scores, weight)
    domains = check_domains(domains, len(scores), n_domains)
    losses = _logit_losses(positive, scores) if logits else _losses(positive, scores)
    error = None
    if errors:
        per_domain, error = domain_auc_se(positive, scores, domains, n_domains, weights)
    else:
        per_domain = domain_auc(positive, scores, domains, n_domains, weights)
    mass = _sums(domains, n_domains, weights)
    loss = _sums(domains, n_domains, losses if weights is None else losses * weights)
    return DomainScores(
        mean_auc=mean_auc(per_domain),
        wauc=wauc(per_domain, mass),
        pooled_auc=auc(positive, scores, weights),
        log_loss=_mean(losses, weights),
        domain_auc=per_domain,
        domain_log_loss=np.divide(loss, mass, out=np.full(n_domains, np.nan), where=mass > 0),
        rows=_sums(domains, n_domains, None).astype(np.int64),
        positives=_sums(domains[positive], n_domains, None).astype(np.int64),
        mass=mass,
        domain_auc_se=error,
    )


def _losses(positive: Flags, probabilities: NDArray[Any]) -> Floats:
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"probability {probabilities[row]!s} at row {row} is outside [0, 1].",
            fix="apply the sigmoid first, or say that these are logits.",
        )
    exact = probabilities.dtype if probabilities.dtype.kind == "f" else np.dtype(np.float64)
    epsilon = float(np.finfo(exact).eps)
    p = probabilities.astype(np.float64)
    result: Floats = -np.log(np.clip(np.where(positive, p, 1 - p), epsilon, 1 - epsilon))
    return result


def _logit_losses(positive: Flags, logits: NDArray[Any]) -> Floats:
    margin = np.where(positive, logits, -logits).astype(np.float64)
    # log(1 + exp(-margin)), without overflow for either sign
    result: Floats = np.log1p(np.exp(-np.abs(margin))) + np.maximum(-margin, 0)
    return result


def _mean(values: Floats, weights: Floats | None) -> float:
    total = len(values) if weights is None else float(weights.sum())
    if total == 0:
        return float("nan")
    return float((values.sum() if weights is None else values @ weights) / total)


def _sums(domains: Integers, n_domains: int, values: Floats | None) -> Floats:
    """Sum of `values` (1 when absent) of each domain's rows; rows of -1 are left out."""
    return np.bincount(domains + 1, weights=values, minlength=n_domains + 1)[1:].astype(np.float64)
