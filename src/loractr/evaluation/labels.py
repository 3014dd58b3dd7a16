"""Whether rows have labels enough to choose and to measure by."""

from collections.abc import Mapping
from typing import Any

FEW = 100
"""From so many positives and negatives on, the error of an AUC is below about .03."""


def label_remarks(counts: Mapping[str, Mapping[str, Any]], select: str | None = None) -> list[str]:
    """A sentence for each set of rows whose labels are all of one class, or that has fewer than 100
    positives or negatives, with what follows from it. Sets without rows have none.

    Args:
        counts: Name of the rows, such as a split → numbers of `rows` and of `positives`. `train`
            is only looked at for a class that is not there.
        select: What chooses the best epoch on rows called `validation`, where they do.
    """
    return [
        sentence
        for name, told in counts.items()
        if (rows := told["rows"]) and (sentence := _of_one(name, rows, told["positives"], select))
    ]


def _of_one(name: str, rows: int, positives: int, select: str | None) -> str | None:
    by_auc = name == "validation" and select not in (None, "log_loss")
    negatives = rows - positives
    if not positives or not negatives:
        which = "none" if not positives else "each"
        head = f"{name}: {which} of {rows:,} rows is positive"
        if name == "train":
            return f"{head}: there is nothing to learn"
        chooses = "; the best epoch is chosen by log loss instead" if by_auc else ""
        return f"{head}: no AUC is defined{chooses}"
    few = min(positives, negatives)
    if name == "train" or few >= FEW:
        return None
    what = "positive" if positives == few else "negative"
    # of an AUC of one half, by Mann and Whitney
    error = ((rows + 1) / (12 * positives * negatives)) ** 0.5
    which = "the AUC that chooses the best epoch" if by_auc else "an AUC"
    advice = "; more rows would mend that, training.select: log_loss would help" if by_auc else ""
    return (
        f"{name}: {few} {what}{'s' * (few > 1)} in {rows:,} rows: {which} has a standard error of"
        f" about {error:.2f}{advice}"
    )
