"""Normalising constants of a numerical field, fitted on training rows, batch by batch."""

import numpy as np
from numpy.typing import NDArray

from loractr.data.canonical import Positions, at
from loractr.errors import DataError
from loractr.schema import Field

Floats = NDArray[np.float64]


def scaled(values: Floats, field: Field, rows: Positions) -> NDArray[np.float32]:
    """Normalised numbers (N,); a missing one, NaN, becomes `field.fill` where that is allowed.

    Raises:
        DataError: A missing number where `missing: error` holds.
    """
    missing = np.isnan(values)
    if field.missing == "error" and missing.any():
        raise _missing_numbers(field, int(missing.sum()), rows[missing])
    x = (transformed(values, field) - field.center) / field.scale
    return np.where(missing, field.fill, x).astype(np.float32)


def transformed(values: Floats, field: Field) -> Floats:
    """sign(x) log(1 + |x|) for `log1p`, x else."""
    return np.sign(values) * np.log1p(np.abs(values)) if field.scaling == "log1p" else values


def raw(values: NDArray[np.float32], field: Field) -> Floats:
    """The numbers that normalised ones come from, up to rounding."""
    x = values.astype(np.float64) * field.scale + field.center
    return np.sign(x) * np.expm1(np.abs(x)) if field.scaling == "log1p" else x


class Moments:
    """Mean, variance and range of the training rows, and what is missing anywhere.

    Batches are combined as by Chan, Golub and LeVeque (1979): no digits are lost to a large mean.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.count = 0
        self.mean = self.square = self.raw_mean = 0.0  # square: sum of (x - mean) ** 2
        self.low, self.high = np.inf, -np.inf
        self.missing = 0
        self.missing_rows = np.zeros(0, dtype=np.int64)

    def observe(self, values: Floats, train: NDArray[np.bool_], rows: Positions) -> None:
        """Take in a batch (N,), NaN where missing; `train` says which rows count."""
        missing = np.isnan(values)
        self.missing += int(missing.sum())
        self.missing_rows = np.concatenate([self.missing_rows, rows[missing]])[:6]
        raw = values[train & ~missing]
        if not len(raw):
            return
        self.count += len(raw)
        self.raw_mean += (raw - self.raw_mean).sum() / self.count
        x = transformed(raw, self.field)
        center = x.mean()
        delta, share = center - self.mean, len(x) / self.count
        self.square += ((x - center) ** 2).sum() + delta**2 * share * (self.count - len(x))
        self.mean += delta * share
        self.low, self.high = min(self.low, x.min()), max(self.high, x.max())

    def fitted(self) -> Field:
        """The field with its constants.

        Raises:
            DataError: A number is missing where `missing: error` holds, or in every training row.
        """
        if self.missing and self.field.missing == "error":
            raise _missing_numbers(self.field, self.missing, self.missing_rows)
        if not self.count:
            raise DataError(
                f"field {self.field.name!r}: no training row has a number in column"
                f" {self.field.source_column!r}.",
                fix="leave the field out.",
            )
        center, scale = 0.0, 1.0
        if self.field.scaling == "min_max":
            center, scale = self.low, self.high - self.low
        elif self.field.scaling != "none":
            center, scale = self.mean, float(np.sqrt(self.square / self.count))
        scale = scale if scale > 1e-12 * max(1.0, abs(center)) else 1.0  # a constant column
        mean = float(transformed(np.array(self.raw_mean), self.field))
        fitted = {"center": float(center), "scale": float(scale), "fill": (mean - center) / scale}
        return self.field.model_copy(update=fitted)


def _missing_numbers(field: Field, count: int, rows: Positions) -> DataError:
    return DataError(
        f"field {field.name!r}: {count} of the numbers in column {field.source_column!r} are"
        f" missing or NaN ({at(rows)}).",
        fix=f"clean the column, or set `missing: mean` in field {field.name!r}: the mean of the"
        " training rows then takes their place.",
    )
