"""An ordinary stage: some parameters of the one model, trained on all its rows."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loractr.batch import Batch
from loractr.data.loader import collate, sizes_of
from loractr.data.order import Epoch, Index, balanced, clustered, domain_sequential, shuffled
from loractr.errors import TrainingError, some
from loractr.layers.lookup import set_row_gradients
from loractr.stage import Stage
from loractr.training.events import StageResult, StageStarted, Validated
from loractr.training.freeze import freeze_all_but, moving_tensors
from loractr.training.loop import (
    Meter,
    Surroundings,
    copies,
    copy_into,
    crosses,
    domain_means,
    mean_loss,
    part,
    plain_scores,
    routing_of,
    steps_of,
)
from loractr.training.optimizer import WholeAdam, stacks_by_rows, tables_by_rows
from loractr.training.stopping import Stopper
from loractr.training.validate import chosen


class SharedLoop:
    """Steps, validations, best weights and stopping of one stage."""

    def __init__(self, around: Surroundings, stage: Stage) -> None:
        self.around, self.stage = around, stage
        self.trained = freeze_all_but(around.model, stage.trains)
        self.moving = moving_tensors(around.model, self.trained)
        self.trainable = sum(p.numel() for p in self.trained.values())
        by_rows = tables_by_rows(stage, self.trained)
        by_rows += stacks_by_rows(stage, around.model, self.trained)
        self.adam = WholeAdam(stage, self.trained, by_rows)
        set_row_gradients(around.model, self.adam.row_gradients)
        self.optimizer = _describe(stage, list(self.adam.rows))
        self.routing = routing_of(around.model, around.schema, stage)
        self.sizes = sizes_of(around.schema, self.routing)
        self.train = around.train
        if stage.loss == "domain_mean":  # batches regroup the rows: know where each one stands
            self.train = replace(around.train, row=np.arange(len(around.train)))
        self.meter = Meter(stage.name, stage.epochs, around.emit)
        self.stopper = Stopper(stage.patience)
        self.metric: str = stage.select
        self.best: dict[str, Tensor] | None = None
        self.before: float | None = None
        self.batches = len(self._epoch(0))
        self.step = 0
        self.started = False

    def run(self) -> StageResult:
        """Train until patience or epochs run out, then put the best weights back."""
        stage, model = self.stage, self.around.model
        self.around.emit(
            StageStarted(stage.name, len(self.around.train), self.trainable, self.optimizer)
        )
        model.set_dropout(stage.dropout, stage.embedding_dropout)
        model.set_precision(stage.precision)
        if not self.started:
            self.started = True
            if stage.keep_start:
                self.before = self._value_without_mixers()
                self._validate()
        epoch, held, batches = None, -1, self.batches
        last = steps_of(stage.epochs, batches)
        saved = time.monotonic()
        model.train()
        self.meter.start()
        while self.step < last and not self.stopper.stopped:
            number, batch = divmod(self.step, batches)
            if epoch is None or held != number:
                epoch, held = self._epoch(number), number
            self._train(epoch[batch], self.step / batches)
            if crosses(self.step, batches * stage.validate_every) or self.step == last:
                self.meter.pause()
                self._validate()
                self.around.checkpoint(self)
                saved = time.monotonic()
                model.train()
                self.meter.start()
            elif time.monotonic() - saved > self.around.checkpoint_seconds:
                self.meter.pause()
                self.around.checkpoint(self)
                saved = time.monotonic()
                self.meter.start()
        self.meter.pause()
        return self._finish()

    def _train(self, index: Index, epoch: float) -> None:
        batch = self._batch(index)
        self.adam.zero_grad()
        loss = self._loss(batch)
        torch.autograd.backward(loss)
        self.adam.step(epoch)
        self.step += 1
        self.meter.saw(len(index), float(loss.detach()), epoch)

    def _loss(self, batch: Batch) -> Tensor:
        assert batch.label is not None
        logit: Tensor = self.around.model(batch)
        if self.stage.loss == "row_mean":
            return mean_loss(logit, batch.label, batch.weight)
        natural = self.around.validator.division
        if natural is None:
            raise TrainingError(
                f"stage {self.stage.name!r} has loss: domain_mean, but the schema has no division.",
                fix="use loss: row_mean, or set data.divisions.",
            )
        domain = torch.from_numpy(self.train.domains[batch.row.cpu().numpy(), natural])
        return domain_means(logit, batch.label, batch.weight, domain.to(logit.device))

    def _batch(self, index: Index) -> Batch:
        return collate(self.train, index, self.routing, self.sizes).to(self.around.device)

    def _epoch(self, number: int) -> Epoch:
        """Order of the rows in one epoch: a function of seed and number alone."""
        train, stage = self.around.train, self.stage
        seed = (*self.around.seed, number)
        natural = self.around.validator.division
        if not (stage.domain_sequential or stage.domains_per_batch or stage.sampling):
            on_disk = isinstance(train.row, np.memmap)
            return shuffled(len(train), stage.batch_size, seed, on_disk=on_disk)
        if natural is None:
            raise TrainingError(
                f"stage {stage.name!r} orders the rows by domain, but the schema has no division.",
                fix="leave out training.sampling, domain_sequential and domains_per_batch, or set"
                " data.divisions.",
            )
        domains, size = train.domains[:, natural], stage.batch_size
        if stage.domain_sequential:
            return domain_sequential(domains, size, seed)
        if stage.sampling is not None:
            return balanced(domains, size, seed, temperature=stage.sampling.temperature)
        assert stage.domains_per_batch is not None
        return clustered(domains, size, seed, together=stage.domains_per_batch)

    def _validate(self) -> None:
        model, stage = self.around.model, self.stage
        epoch = self.step / self.batches
        self.adam.catch_up()
        self.adam.swap_average()
        model.embedding.fill_unknown()
        scores = self.around.validator.scores(model, self.routing)
        value, self.metric = chosen(scores, stage.select)
        better = self.stopper.see(value, epoch)
        if better or value is None:
            self.best = copies(self.moving)
        self.adam.swap_average()
        self.around.emit(
            Validated(
                stage=stage.name,
                epoch=epoch,
                step=self.step,
                rows=self.meter.rows,
                loss=self.meter.mean_loss,
                metric=self.metric,
                value=value,
                best=better,
                scores=plain_scores(scores),
                domain=None if stage.rows is None else stage.rows[1],
            )
        )
        self.meter.forget_loss()
        if value is None:
            self.stopper.stopped = False  # nothing to judge by: the epochs asked for are the rule

    def _value_without_mixers(self) -> float | None:
        """What mixers have to beat: each row by its own expert of the first division alone."""
        if not self.routing.mixed:
            return None
        unmixed = replace(self.routing, mixed=False)
        scores = self.around.validator.scores(self.around.model, unmixed)
        return chosen(scores, self.stage.select)[0]

    def _finish(self) -> StageResult:
        """Put the best weights back; mixers that are no better than none do not act."""
        model, best = self.around.model, self.stopper.best
        self.adam.catch_up()
        set_row_gradients(model, {})
        if self.best is not None:
            copy_into(self.moving, self.best)
        model.set_dropout(None, None)
        model.set_precision("float32")
        judged = best is not None
        unmixed = best is not None and self.before is not None and best <= self.before
        if self.routing.mixed:
            model.routing = replace(self.routing, mixed=not unmixed)
        return StageResult(
            stage=self.stage.name,
            metric=self.metric,
            value=self.before if unmixed else best,
            epoch=self.stopper.best_epoch if judged else self.step / self.batches,
            kept_start=unmixed or (judged and self.stopper.best_epoch == 0.0),
            trainable=self.trainable,
            optimizer=self.optimizer,
            rows_per_second=self.meter.speed(),
            domains={},
        )

    def values(self) -> dict[str, Any]:
        """Plain values of the state."""
        return {
            "step": self.step,
            "stopper": self.stopper.dump(),
            "metric": self.metric,
            "before": self.before,
            "meter": self.meter.values(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the state, the model's own aside."""
        best = {} if self.best is None else self.best
        return {f"best.{name}": value for name, value in best.items()} | {
            f"optimizer.{name}": value for name, value in self.adam.state().items()
        }

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.started = True
        self.step, self.metric, self.before = values["step"], values["metric"], values["before"]
        self.stopper = Stopper.load(values["stopper"])
        self.meter.restore(values["meter"])
        self.best = part(tensors, "best.") or None
        self.adam.restore(part(tensors, "optimizer."))


def _describe(stage: Stage, by_rows: list[str]) -> str:
    text = f"{'AdamW' if stage.decoupled else 'Adam'}, fused"
    tables = [name for name in by_rows if name.startswith("embedding.")]
    caught_up = [name for name in by_rows if name not in tables]
    if stage.embedding_optimizer == "adam":
        caught_up, tables = by_rows, []
    if caught_up:
        text += f"; by rows, caught up, on {some(caught_up)}"
    return f"{text}; {stage.embedding_optimizer} on {some(tables)}" if tables else text
