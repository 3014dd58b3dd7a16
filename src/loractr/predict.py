"""Model and rows → logits, or a table of predictions. The only sigmoid is here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from loractr.batch import Batch, Route, Routing
from loractr.data.loader import BACKBONE_ALONE, iterate
from loractr.data.rows import Rows
from loractr.errors import DataError, UnknownDomainError
from loractr.model import CTRModel
from loractr.schema import Division, Schema

BATCH_SIZE = 8192
"""Rows scored at once: what a layer makes of more does not stay in a processor's cache."""


def logits(
    model: CTRModel,
    rows: Rows,
    schema: Schema,
    *,
    batch_size: int = BATCH_SIZE,
    routing: Routing | None = None,
    expert: int | None = None,
) -> NDArray[np.floating]:
    """Logit of each row (N,), in the order of `rows` and in the model's own precision.

    The model is in eval mode meanwhile; every module is then put back into the mode it was in.

    Args:
        model: Any model; `rows.domains` gives each row's domain in the divisions that it reads.
        rows: Encoded rows, in memory or memory-mapped.
        schema: The fitted schema they were encoded with.
        batch_size: Rows scored at once; it changes the result by rounding at most.
        routing: What acts; the model's own when absent. `Routing()` is the backbone alone.
        expert: All rows go to this expert of the acting division, whatever their domain.
    """
    routing = model.routing if routing is None else routing
    device = model.device
    places = replace(rows, row=np.arange(len(rows)))  # batches regroup the rows: know where to
    result = torch.empty(len(rows), dtype=next(model.parameters()).dtype)
    with _evaluating(model), torch.inference_mode():
        read = routing if expert is None else BACKBONE_ALONE
        for batch in iterate(places, schema, batch_size=batch_size, routing=read):
            ready = batch if expert is None else _all_to(expert, batch, routing.only)
            result[batch.row] = model(ready.to(device)).cpu()
    return result.numpy()


def _all_to(expert: int, batch: Batch, place: int) -> Batch:
    everyone = torch.full((len(batch),), expert)
    return replace(batch, route=Route.to(everyone, expert + 1, place))


def assembled_logits(
    model: CTRModel,
    domain_models: Mapping[str, CTRModel],
    rows: Rows,
    schema: Schema,
    division: str | None,
    *,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.floating]:
    """Logit of each row (N,), in the order of `rows`, from its domain's own model where it has one.

    Args:
        model: Scores the rows of all other domains and of none.
        domain_models: Domain of `division` → its whole model.
        rows: Encoded rows, in memory or memory-mapped.
        schema: The fitted schema they were encoded with.
        division: Division of the domain models; read only where there are some.
        batch_size: Rows scored at once.

    Raises:
        UnknownDomainError: `domain_models` names a domain that the division does not have.
    """
    if not domain_models or division is None:
        return logits(model, rows, schema, batch_size=batch_size)
    place = [d.name for d in schema.divisions].index(division)
    known, domains = schema.divisions[place].domains, rows.domains[:, place]
    unknown = [name for name in domain_models if name not in known]
    if unknown:
        raise UnknownDomainError(division, unknown, known)
    owned = [known.index(name) for name in domain_models]
    indices = [np.flatnonzero(~np.isin(domains, owned))]
    indices += [np.flatnonzero(domains == domain) for domain in owned]
    scored = np.concatenate(
        [
            logits(scorer, rows.take(index), schema, batch_size=batch_size)
            for scorer, index in zip([model, *domain_models.values()], indices, strict=True)
        ]
    )
    result = np.empty_like(scored)
    result[np.concatenate(indices)] = scored
    return result


def sigmoid(logit: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / (1 + exp(-logit)), in the precision given, without overflow."""
    small = np.exp(-np.abs(logit))  # in (0, 1] for either sign
    result: NDArray[np.floating] = np.where(logit >= 0, 1, small) / (1 + small)
    return result


def predict(
    model: CTRModel,
    rows: Rows,
    schema: Schema,
    *,
    domain_models: Mapping[str, CTRModel] | None = None,
    division: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> pl.DataFrame:
    """Score `rows`: the table that `tabulate` describes.

    Args:
        model: Scores all rows, but for those of `domain_models`.
        rows: Encoded rows, in memory or memory-mapped.
        schema: The fitted schema they were encoded with.
        domain_models: Domain of `division` → its whole model.
        division: Division of the domain models.
        batch_size: Rows scored at once.

    Raises:
        DataError: a model gave a logit that is not a number.
        UnknownDomainError: `domain_models` names a domain that the division does not have.
    """
    owned = domain_models or {}
    logit = assembled_logits(model, owned, rows, schema, division, batch_size=batch_size)
    return tabulate(logit, rows, schema)


def tabulate(logit: NDArray[np.floating], rows: Rows, schema: Schema) -> pl.DataFrame:
    """A table with one line a row, in the order of the source, from logits (N,) in that of `rows`.

    Columns: `row` (position in the source); one per division with the name of the row's domain,
    null where it is unseen; `label`, where it is known; `probability`, in the logits' precision;
    `weight`, `group` and `true_probability`, where the rows have them.

    Raises:
        DataError: a logit is not a number.
    """
    lost = np.isnan(logit)
    if lost.any():
        raise DataError(
            f"the model gives no number for {int(lost.sum())} of {len(rows)} rows; the first of"
            f" them is row {int(rows.row[lost.argmax()])}.",
            fix="look for numbers out of all proportion in that row, or train the model again.",
        )
    columns = {
        "row": rows.row,
        **{d.name: _names(d, rows.domains[:, v]) for v, d in enumerate(schema.divisions)},
        "label": rows.label,
        "probability": sigmoid(logit),
        "weight": rows.weight,
        "group": rows.group,
        "true_probability": rows.oracle,
    }
    present = {name: column for name, column in columns.items() if column is not None}
    return pl.DataFrame(present).sort("row", maintain_order=True)


def _names(division: Division, domains: NDArray[np.int32]) -> pl.Series:
    """Name of each row's domain; null for -1."""
    names = pl.Series([*division.domains, None], dtype=pl.String)
    return names.gather(np.where(domains < 0, len(division.domains), domains))


@contextmanager
def _evaluating(model: CTRModel) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
