"""Exact area under the ROC curve, for one set of rows or for all domains at once, and its error.

    AUC = P(score of a positive > score of a negative) + 1/2 P(they are equal)

Positives and negatives are sorted apart, and each positive finds, by binary search, the negatives
below it. For all domains at once, each score becomes a 32-bit integer of the same order that
stands below the row's domain in one 64-bit key, so the same two sorts order every domain.
"""

from dataclasses import dataclass
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
    ones, zeros = _classes(labels, scores, domain, n_domains, weight)
    return _of_domains(ones, zeros, _twice_won(ones, zeros))


def domain_auc_se(
    labels: ArrayLike,
    scores: ArrayLike,
    domain: ArrayLike,
    n_domains: int,
    weight: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """AUC of each domain and its standard error, both (n_domains,), by DeLong's formula:

        error² = Σ_i w_i² (V_i - AUC)² m / ((m - 1) W²)  +  the same over the negatives

    V_i is the share of the negatives below positive i (equal ones count half), w_i its weight, W
    the weight of the m positives; for a negative, V is the share of the positives above it. Rows of
    weight 0 are left out. Without weights this is S10 / m + S01 / n of the paper. What it tells is
    how far the AUC of as many other rows would differ, rows being independent, the model the same.

    NaN where the AUC is undefined; the error also where there is one positive or one negative only.

    Args, Raises: as `domain_auc`.
    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845.
    Cost: sorting the rows, O(N log N).
    """
    ones, zeros = _classes(labels, scores, domain, n_domains, weight)
    won = _twice_won(ones, zeros)
    result = _of_domains(ones, zeros, won)
    variance = _spread(ones, zeros, won, result)
    variance += _spread(zeros, ones, _twice_won(zeros, ones), 1 - result)
    return result, np.sqrt(variance)


@dataclass(frozen=True)
class _Class:
    """The positives or the negatives, rising by domain, then by score."""

    keys: NDArray[np.uint64]
    weight: Floats | None
    home: Integers  # the domain of each
    mass: Floats  # (D,) total weight in each domain


def _classes(
    labels: ArrayLike,
    scores: ArrayLike,
    domain: ArrayLike,
    n_domains: int,
    weight: ArrayLike | None,
) -> tuple[_Class, _Class]:
    """Positives and negatives of all domains."""
    positive, scores, weights = check_rows(labels, scores, weight)
    domains = check_domains(domain, len(scores), n_domains)
    keys = (domains.astype(np.uint64) << np.uint64(32)) | _rising(scores)
    inside = domains >= 0

    def rows(chosen: Flags) -> _Class:
        mine, own = _sorted(keys, weights, chosen & inside)
        home = _domain_of(mine)
        mass = np.bincount(home, weights=own, minlength=n_domains).astype(np.float64)
        return _Class(mine, own, home, mass)

    return rows(positive), rows(~positive)


def _twice_won(rows: _Class, others: _Class) -> NDArray[Any]:
    """For each of `rows`, twice the weight of the `others` of its domain that lie below it."""
    of_earlier_domains = np.cumsum(others.mass) - others.mass
    below = _twice_below(rows.keys, others.keys, others.weight)
    return below - 2 * of_earlier_domains[rows.home]


def _of_domains(ones: _Class, zeros: _Class, won: NDArray[Any]) -> Floats:
    """AUC of each domain from what each positive has won."""
    n_domains = len(ones.mass)
    wins = np.bincount(ones.home, weights=_weighted(won, ones.weight), minlength=n_domains)
    pairs = ones.mass * zeros.mass
    result = np.full(n_domains, np.nan)
    np.divide(wins, 2 * pairs, out=result, where=pairs > 0)
    return result


def _spread(rows: _Class, others: _Class, won: NDArray[Any], mean: Floats) -> Floats:
    """What one class adds to the variance of each domain's AUC (D,); NaN where it has one row."""
    n_domains, home = len(rows.mass), rows.home
    all_pairs = 2 * others.mass[home]
    share = np.divide(won, all_pairs, out=np.zeros(len(home)), where=all_pairs > 0)
    square = _weighted(_weighted((share - mean[home]) ** 2, rows.weight), rows.weight)
    total = np.bincount(home, weights=square, minlength=n_domains)
    counted = home if rows.weight is None else home[rows.weight > 0]
    count = np.bincount(counted, minlength=n_domains)
    result = np.full(n_domains, np.nan)
    np.divide(total * count, (count - 1) * rows.mass**2, out=result, where=count > 1)
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
