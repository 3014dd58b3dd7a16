"""Exact area under the ROC curve, for one set of rows or for all domains at once.

    AUC = P(score of a positive > score of a negative) + 1/2 P(they are equal)

Positives and negatives are sorted apart, and each positive finds, by binary search, the negatives
below it. For all domains at once, each score becomes a 32-bit integer of the same order that
stands below the row's domain in one 64-bit key, so the same two sorts order every domain.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loractr.errors import DataError, UsageError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]


def auc(labels: ArrayLike, scores: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve; NaN where it is undefined (one class, or no rows).

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) real numbers, infinities included: only their order matters.
        weight: (N,) row weights ≥ 0; every row counts 1 when absent.

    Raises:
        DataError: a label outside {0, 1}, a score that is NaN, a weight that is negative or NaN.
        UsageError: arrays that differ in length.
    """
    positive, scores, weights = check_rows(labels, scores, weight)
    ones, one_weight = _sorted(scores, weights, positive)
    zeros, zero_weight = _sorted(scores, weights, ~positive)
    wins = _weighted(_twice_below(ones, zeros, zero_weight), one_weight).sum()
    pairs = _mass(ones, one_weight) * _mass(zeros, zero_weight)
    return float(wins / (2 * pairs)) if pairs > 0 else float("nan")


def domain_auc(
    labels: ArrayLike,
    scores: ArrayLike,
    domain: ArrayLike,
    n_domains: int,
    weight: ArrayLike | None = None,
) -> Floats:
    """AUC of each domain, (n_domains,); NaN where a domain has one class or no rows.

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) real numbers; other types than float32 cost one more sort.
        domain: (N,) integers in [-1, n_domains); rows of -1 belong to none and are left out.
        n_domains: Number of domains, below 2 ** 31.
        weight: (N,) row weights ≥ 0; every row counts 1 when absent.

    Raises:
        DataError: a label outside {0, 1}, a score that is NaN, a weight that is negative or NaN.
        UsageError: arrays that differ in length, a domain out of range.
    """
    positive, scores, weights = check_rows(labels, scores, weight)
    domains = check_domains(domain, len(scores), n_domains)
    keys = (domains.astype(np.uint64) << np.uint64(32)) | _rising(scores)
    inside = domains >= 0
    ones, one_weight = _sorted(keys, weights, positive & inside)
    zeros, zero_weight = _sorted(keys, weights, ~positive & inside)

    home = _domain_of(ones)
    one_mass = np.bincount(home, weights=one_weight, minlength=n_domains)
    zero_mass = np.bincount(_domain_of(zeros), weights=zero_weight, minlength=n_domains)
    of_earlier_domains = np.cumsum(zero_mass) - zero_mass
    twice = _twice_below(ones, zeros, zero_weight) - 2 * of_earlier_domains[home]
    wins = np.bincount(home, weights=_weighted(twice, one_weight), minlength=n_domains)

    pairs = one_mass * zero_mass
    result = np.full(n_domains, np.nan)
    np.divide(wins, 2 * pairs, out=result, where=pairs > 0)
    return result


def _twice_below(
    ones: NDArray[Any], zeros: NDArray[Any], zero_weight: Floats | None
) -> NDArray[Any]:
    """Twice the weight of the (rising) zeros below each of `ones`; an equal one counts half."""
    low = np.searchsorted(zeros, ones, side="left")
    high = np.searchsorted(zeros, ones, side="right")
    if zero_weight is None:
        return low + high
    mass = np.concatenate([[0.0], np.cumsum(zero_weight)])  # of the first k zeros
    result: Floats = mass[low] + mass[high]
    return result


def _sorted(
    keys: NDArray[Any], weights: Floats | None, rows: Flags
) -> tuple[NDArray[Any], Floats | None]:
    """The keys of `rows`, rising, with their weights."""
    if weights is None:  # the plain sort is several times faster than argsort
        return np.sort(keys[rows]), None
    chosen, of_chosen = keys[rows], weights[rows]
    order = np.argsort(chosen)
    return chosen[order], of_chosen[order]


def _weighted(values: NDArray[Any], weights: Floats | None) -> NDArray[Any]:
    return values if weights is None else values * weights


def _mass(keys: NDArray[Any], weights: Floats | None) -> float:
    return len(keys) if weights is None else float(weights.sum())


def _domain_of(keys: NDArray[np.uint64]) -> Integers:
    return (keys >> np.uint64(32)).astype(np.int64)


def _rising(scores: NDArray[Any]) -> NDArray[np.uint64]:
    """Integers below 2 ** 32 in the order of the scores, equal where the scores are equal."""
    if scores.dtype == np.float16:
        scores = scores.astype(np.float32)
    if scores.dtype != np.float32:
        return np.unique(scores, return_inverse=True)[1].astype(np.uint64)
    bits = (scores + np.float32(0.0)).view(np.uint32)  # + 0.0 turns -0.0 into 0.0
    sign = np.uint32(1 << 31)
    # Bit patterns of floats rise with the magnitude: flip all bits of the negative ones.
    return np.where(bits & sign, ~bits, bits | sign).astype(np.uint64)


def check_rows(
    labels: ArrayLike, scores: ArrayLike, weight: ArrayLike | None
) -> tuple[Flags, NDArray[Any], Floats | None]:
    """(positive (N,), scores (N,), float64 weights (N,) or None), or an error that says why not."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise UsageError(
            f"labels {labels.shape} and scores {scores.shape} must be one-dimensional and of equal"
            " length."
        )
    positive = labels == 1
    _refuse(~(positive | (labels == 0)), labels, "label", "0 or 1")
    _refuse(np.isnan(scores), scores, "score", "a number")
    if weight is None:
        return positive, scores, None
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != scores.shape:
        raise UsageError(f"weight {weights.shape} must be as long as scores {scores.shape}.")
    _refuse(~((weights >= 0) & (weights < np.inf)), weights, "weight", "finite and at least 0")
    return positive, scores, weights


def check_domains(domain: ArrayLike, rows: int, n_domains: int) -> Integers:
    """`domain` as (N,) int64, or an error that says why not."""
    domains = np.asarray(domain)
    if domains.shape != (rows,) or domains.dtype.kind not in "iu":
        raise UsageError(
            f"domain must be {rows} integers, one a row, not {domains.dtype} {domains.shape}."
        )
    if rows and not (domains.min() >= -1 and domains.max() < n_domains):
        raise UsageError(
            f"domain must be from -1 to {n_domains - 1};"
            f" it goes from {domains.min()} to {domains.max()}."
        )
    return domains.astype(np.int64)


def _refuse(wrong: Flags, values: NDArray[Any], what: str, right: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{what} {values[row]!s} at row {row} must be {right}; {int(wrong.sum())} such row(s)."
        )
