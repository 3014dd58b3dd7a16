"""What the two kinds of stage share: their surroundings, the clock, one training step's loss."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from loractr.batch import EVERY, Routing
from loractr.data.rows import Rows
from loractr.errors import TrainingError, UsageError, some
from loractr.evaluation.metrics import DomainScores
from loractr.model import CTRModel
from loractr.schema import Schema
from loractr.stage import Stage
from loractr.training.events import Event, StageResult, Stepped
from loractr.training.validate import Validator


@dataclass(frozen=True)
class Surroundings:
    """All that a stage needs besides its own settings."""

    model: CTRModel
    schema: Schema
    train: Rows
    validator: Validator
    seed: tuple[int, ...]
    """Seeds the order of rows; differs from stage to stage."""
    emit: Callable[[Event], None]
    checkpoint: Callable[["Loop"], None]
    """Called every few minutes; of a stage with one stopper, after each validation as well."""
    checkpoint_seconds: float

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device


class Loop(Protocol):
    """One stage under way; its state can be saved at any step and restored into a new loop."""

    def run(self) -> StageResult:
        """Train to the end and leave the kept weights in the model."""
        ...

    def values(self) -> dict[str, Any]:
        """Plain values of the state."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the state, the model's own aside."""
        ...

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        ...


@dataclass
class Meter:
    """Training rows, seconds and loss of a stage; tells the callbacks now and then."""

    stage: str
    epochs: float
    emit: Callable[[Event], None]
    rows: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    _since: float = field(default=0.0, repr=False)
    _told: float = field(default=0.0, repr=False)

    def start(self) -> None:
        """The clock runs from here."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """The clock stops (validation and checkpoints are not training)."""
        self.seconds += time.perf_counter() - self._since

    def saw(self, rows: int, loss: float, epoch: float) -> None:
        """One step is done.

        Raises:
            TrainingError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"stage {self.stage!r}: the loss is {loss} at epoch {epoch:.3f}.",
                fix="lower training.learning_rate, set training.clip_norm, or scale large numbers.",
            )
        self.rows += rows
        self.loss_sum += loss
        self.loss_steps += 1
        now = time.perf_counter()
        if now - self._told > 0.2:
            self._told = now
            self.emit(
                Stepped(self.stage, epoch, self.epochs, self.mean_loss or loss, self.speed(now))
            )

    def speed(self, now: float | None = None) -> float:
        """Training rows per second."""
        running = 0.0 if now is None else now - self._since
        return self.rows / max(self.seconds + running, 1e-9)

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of the steps since the last validation."""
        return self.loss_sum / self.loss_steps if self.loss_steps else None

    def forget_loss(self) -> None:
        """Begin a new mean."""
        self.loss_sum, self.loss_steps = 0.0, 0

    def values(self) -> dict[str, float]:
        """Plain values for a checkpoint."""
        names = ("rows", "seconds", "loss_sum", "loss_steps")
        return {name: getattr(self, name) for name in names}

    def restore(self, values: dict[str, Any]) -> None:
        """What `values` returned."""
        for name, value in values.items():
            setattr(self, name, value)


def row_losses(logit: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of each row, in nats."""
    return F.binary_cross_entropy_with_logits(logit, label.to(logit.dtype), reduction="none")


def mean_loss(logit: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """sum_n w[n] BCE(logit[n], label[n]) / sum_n w[n] (MultiLoRA eq. 6, with row weights)."""
    if weight is None:
        return F.binary_cross_entropy_with_logits(logit, label.to(logit.dtype))
    weight = weight.to(logit.dtype)
    return (row_losses(logit, label) * weight).sum() / weight.sum().clamp(min=1e-12)


def domain_means(logit: Tensor, label: Tensor, weight: Tensor | None, domain: Tensor) -> Tensor:
    """Mean over the domains of a batch of their own mean losses (MultiLoRA, eq. 2); rows of no
    domain (-1) count as one more. `domain`: (N,)."""
    _, place = torch.unique(domain, return_inverse=True)
    weight = torch.ones_like(logit) if weight is None else weight.to(logit.dtype)
    sums = logit.new_zeros(2, int(place.max()) + 1 if len(place) else 0)
    sums = sums.index_add(1, place, torch.stack([row_losses(logit, label) * weight, weight]))
    return (sums[0] / sums[1].clamp(min=1e-12)).mean()


def routing_of(model: CTRModel, schema: Schema, stage: Stage) -> Routing:
    """What acts on a row in a stage.

    Raises:
        UsageError: the stage's division is not one that the model reads.
    """
    if stage.route == "none":
        return Routing()
    if stage.division is None or stage.route == "mixed":
        return replace(model.routing, mixed=stage.route == "mixed", only=0)
    names = ["*" if d == EVERY else schema.divisions[d].name for d in model.routing.divisions]
    if stage.division not in names:
        raise UsageError(
            f"stage {stage.name!r} is about division {stage.division!r}; the model reads"
            f" {some(names)}."
        )
    return replace(model.routing, mixed=False, only=names.index(stage.division))


def plain_scores(scores: DomainScores | None) -> dict[str, float | None]:
    """The four averages as JSON values."""
    if scores is None:
        return {}
    names = ("mean_auc", "wauc", "pooled_auc", "log_loss")
    found = {name: float(getattr(scores, name)) for name in names}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def copy_into(model_tensors: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Write kept values back, in place."""
    with torch.no_grad():
        for name, value in kept.items():
            model_tensors[name].copy_(value)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values as they are now."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def steps_of(epochs: float, batches: int) -> int:
    """Steps in so many epochs, a begun one included; 1.1 epochs of 10 batches are 11, not 12."""
    return math.ceil(epochs * batches - 1e-9)


def crosses(step: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (step - 1, step]."""
    return math.floor(step / every + 1e-9) > math.floor((step - 1) / every + 1e-9)
