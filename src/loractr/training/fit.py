"""`fit`: run a recipe of stages on a model. No files, no prints: callbacks see what happens."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from loractr.batch import EVERY
from loractr.data.rows import Rows
from loractr.environment import environment, has_bfloat16
from loractr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    UnknownDomainError,
    UsageError,
    some,
)
from loractr.layers.norm import DomainNorm
from loractr.model import CTRModel
from loractr.schema import Schema
from loractr.stage import Stage
from loractr.training.checkpoint import Checkpoint, CheckpointFolder
from loractr.training.events import Callback, Event, StageResult, Validated
from loractr.training.independent import IndependentLoop
from loractr.training.loop import Loop, Surroundings, part, routing_of
from loractr.training.shared import SharedLoop
from loractr.training.validate import Validator

log = logging.getLogger(__name__)


class Data(Protocol):
    """What `fit` reads of a prepared data set."""

    @property
    def schema(self) -> Schema:
        """The fitted schema."""
        ...

    @property
    def train(self) -> Rows:
        """Training rows."""
        ...

    @property
    def validation(self) -> Rows:
        """Validation rows."""
        ...


@dataclass
class History:
    """What happened: every validation, and what each stage ended with."""

    validations: list[Validated] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "validations": [validation.dump() for validation in self.validations],
            "stages": [stage.dump() for stage in self.stages],
        }

    def restore(self, values: dict[str, Any]) -> None:
        """What `dump` returned."""
        self.validations = [Validated(**v) for v in values["validations"]]
        self.stages = [StageResult(**s) for s in values["stages"]]


def fit(
    model: CTRModel,
    data: Data,
    stages: Sequence[Stage],
    *,
    seed: int,
    callbacks: Sequence[Callback] = (),
    checkpoints: CheckpointFolder | None = None,
    division: str | None = None,
    first: int = 0,
) -> History:
    """Train `model` in place, stage by stage, and leave the best weights in it.

    The same model, data, stages, seed, threads and versions give the same weights to the bit; so
    does a run that was killed at any moment and continued from its checkpoints.

    Args:
        model: The model; its weights change in place, its buffers only where a stage trains them.
        data: Prepared data: `schema`, `train` and `validation`.
        stages: The recipe, run in order; each begins with the best weights of the one before.
        seed: Order of rows and dropout.
        callbacks: Called with each event (`training.events`).
        checkpoints: Where to keep checkpoints; a newest one found there is continued.
        division: Division whose domains `select` averages over; by default the model's own first
            one, else the schema's first.
        first: Place of the first stage to run; `model` holds what those before it would have made.
            Every stage is seeded by its place, so that it makes the same either way.

    Raises:
        TrainingError: the loss is no longer finite, or a stage trains nothing.
        ConfigError: a stage's settings cannot be had together, or not on this processor.
        DataError: a stage has no training rows.
        UsageError: there is no such division.
        UnknownDomainError: a stage's rows are of a domain that the division does not have.
        CheckpointError: the checkpoint is damaged, of another recipe, seed or model.
    """
    conflicts = [f"stage {stage.name!r}: {c}" for stage in stages for c in stage.conflicts()]
    if conflicts:
        raise ConfigError(conflicts)
    check_precision(stages, model.device)
    return _Fit(
        model=model,
        data=data,
        stages=tuple(stages),
        seed=seed,
        callbacks=callbacks,
        checkpoints=checkpoints,
        division=_division(model, data.schema, division),
        first=first,
    ).run()


def check_precision(stages: Iterable[Stage], device: torch.device) -> None:
    """Check that the device has what the stages ask for.

    Raises:
        ConfigError: a stage asks for bfloat16, which would be slower here than float32.
    """
    asking = [stage.name for stage in stages if stage.precision == "bfloat16"]
    if asking and not has_bfloat16(device):
        here = environment()["processor"] if device.type == "cpu" else device
        raise ConfigError(
            [f"precision: stage {asking[0]!r} asks for bfloat16, which {here} does not multiply"],
            fix="use training.precision: float32, or a processor with AVX512-BF16, AMX or Arm's"
            " BF16.",
        )


@dataclass
class _Fit:
    model: CTRModel
    data: Data
    stages: tuple[Stage, ...]
    seed: int
    callbacks: Sequence[Callback]
    checkpoints: CheckpointFolder | None
    division: int | None
    first: int
    history: History = field(default_factory=History)

    def run(self) -> History:
        saved = self.checkpoints.read() if self.checkpoints else None
        with torch.random.fork_rng(devices=[]):
            for place, stage in enumerate(self.stages):
                if place < self.first:
                    continue
                if saved is None or place >= saved.values["stage"]:
                    self._stage(place, stage, saved)
                    saved = None
            if saved is not None:  # every stage is done
                self._restore(saved)
        self.model.requires_grad_(True)
        self.model.eval()
        return self.history

    def _stage(self, place: int, stage: Stage, saved: Checkpoint | None) -> None:
        if saved is not None:
            self._restore(saved)
        if saved is None or saved.values["loop"] is None:
            torch.manual_seed(int(np.random.SeedSequence((self.seed, place)).generate_state(1)[0]))
        train, validation = self._rows(stage)
        if saved is None or saved.values["loop"] is None:
            self._inherit(stage)
        around = Surroundings(
            model=self.model,
            schema=self.data.schema,
            train=train,
            validator=Validator(self.data.schema, validation, self.division),
            seed=(self.seed, place),
            emit=self._emit,
            checkpoint=lambda loop: self._save(place, loop),
            checkpoint_seconds=60 * self.checkpoints.minutes if self.checkpoints else float("inf"),
        )
        loop: Loop = (IndependentLoop if stage.independent else SharedLoop)(around, stage)
        if saved is not None and saved.values["loop"] is not None:
            loop.restore(saved.values["loop"], part(saved.tensors, "loop."))
        self._emit(loop.run())
        self._save(place + 1, None)

    def _inherit(self, stage: Stage) -> None:
        """Start the norms that the stage asks for as copies of what they come from."""
        if stage.inherits == "none":
            return
        place = routing_of(self.model, self.data.schema, stage).only
        for module in self.model.modules():
            if isinstance(module, DomainNorm):
                module.inherit(place if stage.inherits == "domains" else None)

    def _rows(self, stage: Stage) -> tuple[Rows, Rows]:
        train, validation = self.data.train, self.data.validation
        if stage.rows is not None:
            train, validation = (
                _only(rows, self.data.schema, stage.rows) for rows in (train, validation)
            )
        if not len(train):
            raise DataError(f"stage {stage.name!r} has no training rows (rows={stage.rows}).")
        if not len(validation) and not stage.independent:  # that one speaks for itself
            log.warning(
                "stage %s has no validation rows: nothing can tell when to stop or which weights"
                " are best; it trains for %g epochs and keeps the last",
                stage.name,
                stage.epochs,
            )
        return train, validation

    def _emit(self, event: Event) -> None:
        if isinstance(event, Validated):
            self.history.validations.append(event)
        elif isinstance(event, StageResult):
            self.history.stages.append(event)
        for callback in self.callbacks:
            callback(event)

    def _save(self, place: int, loop: Loop | None) -> None:
        if self.checkpoints is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if loop is not None:
            tensors |= {f"loop.{name}": value for name, value in loop.tensors().items()}
        tensors["random"] = torch.get_rng_state()
        values = {
            "recipe": [stage.model_dump(mode="json") for stage in self.stages],
            "seed": self.seed,
            "stage": place,
            "loop": None if loop is None else loop.values(),
            "mixed": self.model.routing.mixed,
            "history": self.history.dump(),
        }
        self.checkpoints.write(Checkpoint(values, tensors))

    def _restore(self, saved: Checkpoint) -> None:
        recipe = [stage.model_dump(mode="json") for stage in self.stages]
        if saved.values["recipe"] != recipe or saved.values["seed"] != self.seed:
            raise CheckpointError(
                "the checkpoint belongs to a run with another recipe or seed.",
                fix="train into a new folder, or resume with the settings that the run began with.",
            )
        try:
            self.model.load_state_dict(part(saved.tensors, "model."))
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint belongs to another model: {error}",
                fix="train into a new folder, or resume with the model that the run began with.",
            ) from error
        self.model.routing = replace(self.model.routing, mixed=saved.values["mixed"])
        torch.set_rng_state(saved.tensors["random"])
        self.history.restore(saved.values["history"])


def _division(model: CTRModel, schema: Schema, name: str | None) -> int | None:
    if name is not None:
        return _place(schema, name)
    if model.routing.divisions and model.routing.divisions[0] != EVERY:
        return model.routing.divisions[0]
    return 0 if schema.divisions else None


def _only(rows: Rows, schema: Schema, where: tuple[str, str]) -> Rows:
    division, name = _place(schema, where[0]), where[1]
    known = schema.divisions[division].domains
    if name not in known:
        raise UnknownDomainError(where[0], [name], known)
    return rows.take(np.flatnonzero(rows.domains[:, division] == known.index(name)))


def _place(schema: Schema, name: str) -> int:
    names = [division.name for division in schema.divisions]
    if name not in names:
        raise UsageError(f"there is no division {name!r}; the schema has {some(names)}.")
    return names.index(name)
