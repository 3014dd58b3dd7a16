"""A stage of independent experts, trained stacked: what D separate fits would do, in one.

With everything shared frozen, the experts' problems do not touch. Each step takes the next batch
of up to `domains_per_step` domains; the loss is the sum of the domains' mean losses; each expert
has its own Adam, order of rows, validations, patience and best weights. Only the experts in a step
move, and a domain that has stopped leaves the queue.
"""

import logging
import math
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loractr.batch import EVERY, Batch, Route
from loractr.data.loader import BACKBONE_ALONE, collate, domains_of
from loractr.data.order import Epoch, Index, shuffled
from loractr.data.rows import Rows
from loractr.errors import TrainingError, some
from loractr.layers.lookup import set_row_gradients
from loractr.stage import Stage
from loractr.training.events import StageResult, StageStarted, Validated
from loractr.training.expert_adam import ExpertAdam
from loractr.training.freeze import freeze_all_but, moving_tensors
from loractr.training.loop import (
    Meter,
    Surroundings,
    copies,
    copy_into,
    crosses,
    part,
    plain_scores,
    routing_of,
    row_losses,
    steps_of,
)
from loractr.training.optimizer import stacks_of
from loractr.training.stopping import Stopper
from loractr.training.validate import chosen, chosen_for_domain

log = logging.getLogger(__name__)


class IndependentLoop:
    """One stage that trains the experts of the domains of one division, each by itself."""

    def __init__(self, around: Surroundings, stage: Stage) -> None:
        model = around.model
        self.routing = routing_of(model, around.schema, stage)
        if not self.routing.divisions:
            raise TrainingError(
                f"stage {stage.name!r} trains independent experts, which need a model that is"
                " routed by a division; this one reads none."
            )
        self.division = self.routing.divisions[self.routing.only]
        self.around, self.stage = around, stage
        domains = ["*"]
        if self.division != EVERY:
            domains = list(around.schema.divisions[self.division].domains)
        self.domains = len(domains)
        self.names = [
            domain if k == 0 else f"{domain} #{k + 1}"
            for k in range(stage.experts_per_domain)
            for domain in domains
        ]
        self.trained = freeze_all_but(model, stage.trains)
        self.moving = moving_tensors(model, self.trained)
        self.trainable = sum(p.numel() for p in self.trained.values())
        by_rows = stacks_of(model, self.trained, stage.domains_per_step)
        self.adam = ExpertAdam(stage, self.trained, len(self.names), by_rows)
        set_row_gradients(model, self.adam.row_gradients)
        self.rows = self._rows_of(around.train)
        self.batches = [math.ceil(len(rows) / stage.batch_size) for rows in self.rows]
        self.step = [0] * len(self.names)
        self.stoppers = [Stopper(stage.patience) for _ in self.names]
        self.metrics: list[str] = [stage.select] * len(self.names)
        self.meter = Meter(stage.name, stage.epochs, around.emit)
        self.best = copies(self.moving)
        self.start = copies(self.moving)
        self.queue: deque[int] = deque()
        self.orders: dict[int, tuple[int, Epoch]] = {}
        self.validation = [
            around.validator.of(
                around.validator.rows.take(rows), None if self.division == EVERY else self.division
            )
            for rows in self._rows_of(around.validator.rows)
        ]
        self.started = False

    def run(self) -> StageResult:
        """Train every expert to its own end, then put each one's best weights together."""
        stage, model = self.stage, self.around.model
        rows = sum(len(rows) for rows in self.rows)
        self.around.emit(StageStarted(stage.name, rows, self.trainable, "Adam per expert, stacked"))
        model.set_dropout(stage.dropout, stage.embedding_dropout)
        model.set_precision(stage.precision)
        if not self.started:
            self.started = True
            self._begin()
        saved = time.monotonic()
        model.train()
        self.meter.start()
        while self.queue:
            turn = [
                self.queue.popleft() for _ in range(min(len(self.queue), stage.domains_per_step))
            ]
            self._train(turn)
            due = [d for d in turn if self._is_due(d)]
            # by the clock alone: with many domains some validation is due at almost every step
            saves = time.monotonic() - saved > self.around.checkpoint_seconds
            if due or saves:
                self.meter.pause()
            if due:
                self._validate(due)
            self.queue.extend(d for d in turn if not self._is_done(d))
            if saves:
                self.around.checkpoint(self)
                saved = time.monotonic()
            if due or saves:
                self.meter.start()
        return self._finish()

    def _rows_of(self, rows: Rows) -> list[Index]:
        """Row positions of each expert: those of its domain."""
        domain = domains_of(rows, np.arange(len(rows)), [self.division])[:, 0]
        own = [np.flatnonzero(domain == d) for d in range(self.domains)]
        return own * self.stage.experts_per_domain

    def _begin(self) -> None:
        """Fill the queue: an expert without training rows has nothing to learn, and one without
        validation rows nothing to be judged by, so with `keep_start` it stays as it is."""
        if self.stage.keep_start:
            self._validate(list(range(len(self.names))))
        trained = [domain for domain, rows in enumerate(self.rows) if len(rows)]
        unjudged = {domain for domain in trained if not len(self.validation[domain].rows)}
        if unjudged:
            log.warning(
                "stage %s: no validation rows of %s: %s",
                self.stage.name,
                some(self.names[domain] for domain in sorted(unjudged)),
                "their experts stay as they are, as keep_start asks for what is not judged better"
                if self.stage.keep_start
                else "their experts train for one epoch at most and keep the last weights",
            )
        left_alone = unjudged if self.stage.keep_start else set()
        self.queue.extend(domain for domain in trained if domain not in left_alone)

    def _train(self, turn: list[int]) -> None:
        turn = sorted(turn)
        parts = [self._next_rows(domain) for domain in turn]
        batch, share = self._batch(np.concatenate(parts), np.repeat(turn, [len(p) for p in parts]))
        self.adam.zero_grad()
        assert batch.label is not None
        losses = row_losses(self.around.model(batch), batch.label)
        loss = (losses * share.to(losses.dtype)).sum()
        torch.autograd.backward(loss)
        epochs = torch.tensor([self._epoch(d) for d in turn], dtype=torch.float64)
        self.adam.step(torch.tensor(turn), epochs)
        for domain in turn:
            self.step[domain] += 1
        epoch = min(self._epoch(d) for d in turn)
        self.meter.saw(len(batch), float(loss.detach()) / len(turn), epoch)

    def _next_rows(self, domain: int) -> Index:
        number, batch = divmod(self.step[domain], self.batches[domain])
        rows = self.rows[domain]
        if self.orders.get(domain, (-1,))[0] != number:
            seed = (*self.around.seed, domain, number)
            self.orders[domain] = number, shuffled(len(rows), self.stage.batch_size, seed)
        return rows[self.orders[domain][1][batch]]

    def _batch(self, index: Index, experts: Index) -> tuple[Batch, Tensor]:
        """The rows at `index`, of rising `experts`, and each row's share of its expert's loss."""
        batch = collate(self.around.train, index, BACKBONE_ALONE, ())
        route = Route.to(torch.from_numpy(experts), len(self.names), self.routing.only)
        batch = replace(batch, route=route).to(self.around.device)
        expert = torch.from_numpy(experts).to(self.around.device)
        weight = torch.ones_like(expert) if batch.weight is None else batch.weight
        weight = weight.double()
        total = weight.new_zeros(len(self.names)).index_add_(0, expert, weight)
        return batch, weight / total[expert].clamp(min=1e-12)

    def _epoch(self, domain: int) -> float:
        return self.step[domain] / max(self.batches[domain], 1)  # no batch: no training rows

    def _most(self, domain: int) -> int:
        """Steps after which a domain's epochs are used up; one epoch where nothing judges it."""
        judged = len(self.validation[domain].rows) > 0
        epochs = self.stage.epochs if judged else min(self.stage.epochs, 1.0)
        return steps_of(epochs, self.batches[domain])

    def _is_due(self, domain: int) -> bool:
        every = self.batches[domain] * self.stage.validate_every
        return crosses(self.step[domain], every) or self.step[domain] >= self._most(domain)

    def _is_done(self, domain: int) -> bool:
        return self.stoppers[domain].stopped or self.step[domain] >= self._most(domain)

    def _validate(self, domains: list[int]) -> None:
        self.adam.swap_average()
        for domain in domains:
            scores = self.validation[domain].scores(self.around.model, self.routing, domain)
            value: float | None = None
            if scores is not None:
                place = 0 if self.division == EVERY else domain % self.domains
                value, self.metrics[domain] = chosen_for_domain(scores, place, self.stage.select)
            better = self.stoppers[domain].see(value, self._epoch(domain))
            if value is None:
                self.stoppers[domain].stopped = False  # nothing to judge by: `_most` is the rule
            if better or value is None:
                for name, value_now in self.moving.items():
                    self.best[name][domain] = value_now[domain]
            self.around.emit(
                Validated(
                    stage=self.stage.name,
                    epoch=self._epoch(domain),
                    step=self.step[domain],
                    rows=self.meter.rows,
                    loss=self.meter.mean_loss,
                    metric=self.metrics[domain],
                    value=value,
                    best=better,
                    scores=plain_scores(scores),
                    domain=self.names[domain],
                )
            )
        self.adam.swap_average()
        self.meter.forget_loss()

    def _finish(self) -> StageResult:
        """Assemble the experts; with `keep_start` the whole must not be worse than its start."""
        model, stage, validator = self.around.model, self.stage, self.around.validator
        copy_into(self.moving, self.start)
        before, _ = chosen(validator.scores(model, self.routing), stage.select)
        copy_into(self.moving, self.best)
        after, metric = chosen(validator.scores(model, self.routing), stage.select)
        kept_start = (
            stage.keep_start and before is not None and after is not None and after <= before
        )
        if kept_start:
            copy_into(self.moving, self.start)
        model.set_dropout(None, None)
        model.set_precision("float32")
        set_row_gradients(model, {})
        domains = {
            name: {"epoch": s.best_epoch, "value": s.best, "metric": self.metrics[d]}
            for d, (name, s) in enumerate(zip(self.names, self.stoppers, strict=True))
        }
        return StageResult(
            stage=stage.name,
            metric=metric,
            value=before if kept_start else after,
            epoch=0.0 if kept_start else max(s.best_epoch for s in self.stoppers),
            kept_start=kept_start,
            trainable=self.trainable,
            optimizer="Adam per expert, stacked",
            rows_per_second=self.meter.speed(),
            domains=domains,
        )

    def values(self) -> dict[str, Any]:
        """Plain values of the state."""
        return {
            "step": self.step,
            "queue": list(self.queue),
            "stoppers": [stopper.dump() for stopper in self.stoppers],
            "metrics": self.metrics,
            "meter": self.meter.values(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the state, the model's own aside."""
        kept = {f"best.{name}": value for name, value in self.best.items()}
        kept |= {f"start.{name}": value for name, value in self.start.items()}
        return kept | {f"optimizer.{name}": value for name, value in self.adam.state().items()}

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.started = True
        self.step, self.metrics = values["step"], values["metrics"]
        self.queue = deque(values["queue"])
        self.stoppers = [Stopper.load(dump) for dump in values["stoppers"]]
        self.meter.restore(values["meter"])
        self.best, self.start = part(tensors, "best."), part(tensors, "start.")
        self.adam.restore(part(tensors, "optimizer."))
