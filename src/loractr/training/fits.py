"""The fits of one run: the shared model's recipe, then each domain's own model where it has one."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loractr.config import RunConfig
from loractr.data.pretrained import load_pretrained
from loractr.data.rows import Rows
from loractr.data.store import Prepared
from loractr.errors import ArtifactError, TrainingError, some
from loractr.layers.linear import Linear
from loractr.model import CTRModel, build
from loractr.schema import Schema
from loractr.stage import Stage
from loractr.training.checkpoint import CheckpointFolder
from loractr.training.events import Callback, StageResult
from loractr.training.fit import History, fit
from loractr.training.freeze import freeze_all_but, moving_tensors
from loractr.training.history import HistoryFile

log = logging.getLogger(__name__)

IN_MEMORY = 4 * 2**30
"""Prepared rows of up to this many bytes are held in memory; larger ones stay memory-mapped."""


@dataclass(frozen=True)
class Trained:
    """What the fits of one run made."""

    model: CTRModel
    domain_models: dict[str, CTRModel]
    """Domain of the method's division → its whole model (single, finetune)."""
    base: History
    domains: dict[str, History]

    @property
    def results(self) -> list[StageResult]:
        """What every stage of every fit ended with."""
        return [s for told in (self.base, *self.domains.values()) for s in told.stages]


@dataclass(frozen=True)
class Data:
    """A prepared data set as `fit` reads it, in memory where it is small enough."""

    prepared: Prepared
    train: Rows
    validation: Rows
    test: Rows

    @property
    def schema(self) -> Schema:
        """The fitted schema."""
        return self.prepared.schema

    @staticmethod
    def of(prepared: Prepared) -> "Data":
        """Read the rows, or leave them on disk."""
        size = sum(file.stat().st_size for file in prepared.path.rglob("*.npy"))
        if size > IN_MEMORY:
            return Data(prepared, prepared.train, prepared.validation, prepared.test)
        splits = (prepared.train, prepared.validation, prepared.test)
        return Data(prepared, *(rows.take(np.arange(len(rows))) for rows in splits))


def train(
    config: RunConfig,
    data: Data,
    out: Path,
    *,
    start: Mapping[str, Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    device: str = "cpu",
) -> Trained:
    """The fits of one run: the shared model's recipe, then each domain's own where it has one.

    Args:
        config: The run.
        data: Its rows.
        out: The run's folder.
        start: Tensors of a finished model by name, where the run starts from one: they take the
            place of what the first stage would make.
        callbacks: Called with each event of the training loop.
        device: Where models train.

    Raises:
        ArtifactError: `start` does not hold what the first stage would make.
        TrainingError: as `fit`, or nothing was trained at all.
    """
    history = HistoryFile(out / "history.jsonl")
    fits = _Fits(config, data, out / "checkpoint", history, (history, *callbacks), device)
    model, base = fits.base(start)
    domains = dict(fits.domains(model))
    if not base.stages and not domains:
        raise TrainingError(
            f"method {config.method.name!r} trained nothing: no domain has validation rows.",
            fix="give the split validation rows, or train without start_from.",
        )
    return Trained(
        model=model.cpu(),
        domain_models={name: one.cpu() for name, (one, _) in domains.items()},
        base=base,
        domains={name: told for name, (_, told) in domains.items()},
    )


@dataclass(frozen=True)
class _Fits:
    """The fits of a run, each with its own checkpoints."""

    config: RunConfig
    data: Data
    checkpoints: Path
    history: HistoryFile
    callbacks: Sequence[Callback]
    device: str

    def base(self, start: Mapping[str, Tensor] | None) -> tuple[CTRModel, History]:
        """The shared model. Where nothing is shared, a model that knows the click rate alone."""
        model = build_model(self.config, self.data)
        stages = self.config.stages()
        if not stages:
            return _click_rate_only(model, self.data.train).to(self.device), History()
        if start is None:
            model = model.to(self.device)
            return model, self._fit(model, stages, "base")
        _start(model, stages[0], start)
        model = model.to(self.device)
        if len(stages) == 1:  # all that is left are the domains' own fits
            return model.eval(), History()
        return model, self._fit(model, stages, "base", first=1)

    def domains(self, base: CTRModel) -> Iterator[tuple[str, tuple[CTRModel, History]]]:
        """The whole models of single domains."""
        kind = self.config.method.domain_models
        if kind == "none":
            return
        schema = self.data.schema
        name = self.config.method.natural(schema)
        place = [division.name for division in schema.divisions].index(name)
        for number, domain in enumerate(self.config.method.owners(schema)):
            stages = self.config.domain_stages(name, domain)
            judged = bool((self.data.validation.domains[:, place] == number).any())
            if not judged:
                log.warning(
                    "domain %s has no validation rows: %s",
                    domain,
                    "it keeps the shared model" if kind == "from_base" else "it trains one epoch",
                )
                if kind == "from_base":
                    continue
                stages = tuple(s.model_copy(update={"epochs": min(s.epochs, 1.0)}) for s in stages)
            fresh = kind == "fresh"
            model = build_model(self.config, self.data) if fresh else copy.deepcopy(base)
            model = model.to(self.device)
            yield domain, (model, self._fit(model, stages, f"domain-{number}"))

    def _fit(
        self, model: CTRModel, stages: tuple[Stage, ...], name: str, *, first: int = 0
    ) -> History:
        folder = CheckpointFolder(
            self.checkpoints / name, minutes=self.config.training.checkpoint_minutes
        )
        saved = folder.read()
        told = len(saved.values["history"]["validations"]) if saved else 0
        self.history.fit = name
        if saved is not None and saved.values["stage"] == len(stages):
            self.history.skip(told)  # this fit is finished; lines of later ones may follow
        else:
            self.history.cut(self.history.lines + told)
        return fit(
            model,
            self.data,
            stages,
            seed=self.config.seed,
            callbacks=self.callbacks,
            checkpoints=folder,
            division=self._division(),
            first=first,
        )

    def _division(self) -> str | None:
        schema = self.data.schema
        return self.config.method.natural(schema) if schema.divisions else None


def build_model(config: RunConfig, data: Data) -> CTRModel:
    """A fresh model, with the ready embeddings that its fields ask for.

    Raises:
        UsageError: the method wants a division that the data does not have.
        LoractrError: as `load_pretrained` and `build`.
    """
    if config.method.divisions or config.method.domain_models != "none":
        config.method.chosen(data.schema)  # else some would fail hours later
    return build(config, data.schema, pretrained=ready_vectors(data.prepared))


def ready_vectors(prepared: Prepared) -> dict[str, Tensor]:
    """Field name → the ready embeddings that it asks for; errors as `load_pretrained`."""
    return {
        field.name: torch.from_numpy(
            load_pretrained(field, prepared.encoders.vocabularies[field.name])
        )
        for field in prepared.schema.fields
        if field.pretrained is not None
    }


def _start(model: CTRModel, skipped: Stage, start: Mapping[str, Tensor]) -> None:
    """Put into a fresh model what `skipped` would have made of it.

    Raises:
        ArtifactError: `start` lacks some of it, or has it in another shape.
    """
    moving = moving_tensors(model, freeze_all_but(model, skipped.trains))
    model.requires_grad_(True)
    found = {name: start.get(plain_name(name)) for name in moving}
    odd = [
        f"{name} is {'absent' if other is None else list(other.shape)} there and"
        f" {list(moving[name].shape)} here"
        for name, other in found.items()
        if other is None or other.shape != moving[name].shape
    ]
    if odd:
        raise ArtifactError(
            f"start_from does not hold what stage {skipped.name!r} would train: {some(odd, 4)}.",
            fix="start from a run whose recipe begins with the same stage, such as a mix run.",
        )
    for name, other in found.items():
        assert other is not None
        moving[name].copy_(other)


def plain_name(name: str) -> str:
    """A tensor's name in the model without adapters: what wraps a layer keeps it as its `base`."""
    return name.replace(".base.", ".")


def _click_rate_only(model: CTRModel, train: Rows) -> CTRModel:
    """Every weight zero but the last bias: each row gets the click rate of the training rows."""
    assert train.label is not None
    assert isinstance(model.head, Linear)
    rate = float(np.average(train.label, weights=train.weight).clip(1e-6, 1 - 1e-6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert model.head.bias is not None
        model.head.bias.fill_(math.log(rate / (1 - rate)))
    return model.eval()
