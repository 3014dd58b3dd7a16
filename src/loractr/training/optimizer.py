"""The optimiser of a stage: Adam on whole tensors, by rows on embedding tables, or per expert.

All follow Kingma and Ba (ICLR 2015) with torch's defaults (0.9, 0.999, 1e-8). Coupled weight
decay adds `weight_decay * w` to the gradient as the papers do; decoupled is AdamW's.
"""

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from loractr.errors import CheckpointError, TrainingError
from loractr.layers.lookup import RowGradient
from loractr.native import library_for
from loractr.stage import Settings, Stage
from loractr.training.rows import (
    BETA1,
    BETA2,
    EPS,
    MEMORY,
    ExactAdam,
    History,
    LazyAdam,
    RowAverage,
    RowOptimizer,
    RowwiseAdagrad,
)

log = logging.getLogger(__name__)

LARGE = 50_000
"""From so many rows on, Adam by rows is faster than Adam on the whole table; both are the same."""


def rate_factor(settings: Settings, epoch: float) -> float:
    """Factor of the learning rate after `epoch` epochs: linear warm-up, then the decay's course."""
    if epoch < settings.warmup:
        return epoch / settings.warmup
    if settings.decay == "constant":
        return 1.0
    done = min((epoch - settings.warmup) / max(settings.epochs - settings.warmup, 1e-12), 1.0)
    return 1.0 - done if settings.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def average_decay(ema: float, updates: int) -> float:
    """Decay of the weight average after `updates` updates: min(ema, (1 + t) / (10 + t))."""
    return min(ema, (1.0 + updates) / (10.0 + updates))


def tables_by_rows(stage: Stage, trained: dict[str, nn.Parameter]) -> list[str]:
    """Names of the tensors of embedding tables that are updated by rows in this stage: all of them
    by an optimiser that works so; the large ones by Adam, to the same weights, where there are
    compiled kernels for it."""
    tables = [name for name in trained if name.startswith("embedding.tables.")]
    if stage.embedding_optimizer != "adam":
        return tables
    large = [name for name in tables if len(trained[name]) >= LARGE]
    if stage.decoupled and stage.table_learning_rate * stage.table_weight_decay >= 1.0:
        return []  # no weight is left: nothing that a row could catch up with
    missed = [name for name in large if library_for(trained[name]) is None]
    if missed:
        log.info(
            "Adam moves all %s rows of %s in every step; with compiled kernels (`loractr kernels"
            " build`) it does so only for those of the batch, to the same weights",
            f"{len(trained[missed[0]]):,}",
            missed[0],
        )
    return [name for name in large if name not in missed]


class WholeAdam:
    """The optimiser of ordinary parameters and tables, with clipping, schedule and a moving average
    of weights.

    Args:
        stage: Its settings.
        trained: The parameters by name.
        by_rows: The names of those that are updated by rows, see `tables_by_rows`. Their gradients
            are expected in `row_gradients`, those of all others in `.grad`.
    """

    def __init__(self, stage: Stage, trained: dict[str, nn.Parameter], by_rows: list[str]) -> None:
        self.stage, self.trained = stage, trained
        self.updates = 0
        self.average = (
            None if stage.ema is None else {n: p.detach().clone() for n, p in trained.items()}
        )
        self.whole = {n: p for n, p in trained.items() if n not in by_rows}
        tables = [n for n in self.whole if n.startswith("embedding.")]
        others = [n for n in self.whole if n not in tables]
        own, shared = stage.table_learning_rate, stage.learning_rate
        groups = [(others, shared, stage.weight_decay), (tables, own, stage.table_weight_decay)]
        if groups[0][1:] == groups[1][1:]:
            groups = [(others + tables, *groups[0][1:])]
        self.dense = [
            _Fused({n: trained[n] for n in names}, rate, decay, decoupled=stage.decoupled)
            for names, rate, decay in groups
        ]
        self.history: History | None = None
        if by_rows and stage.embedding_optimizer == "adam":
            memory = max(MEMORY[trained[n].dtype] for n in by_rows)
            self.history = History(memory, stage.table_weight_decay * stage.decoupled)
        self.rows = {name: self._by_rows(name) for name in by_rows}

    def _by_rows(self, name: str) -> RowOptimizer:
        weight = self.trained[name]
        average = None if self.average is None else self.average[name]
        if self.history is not None:
            coupled = 0.0 if self.stage.decoupled else self.stage.table_weight_decay
            return ExactAdam(weight, average, self.history, coupled)
        own = None if average is None else RowAverage(weight, average)
        lazy = self.stage.embedding_optimizer == "lazy_adam"
        return LazyAdam(weight, own) if lazy else RowwiseAdagrad(weight, own)

    @property
    def row_gradients(self) -> dict[str, RowGradient]:
        """Where the gradients of tables by rows are expected, by name."""
        return {name: rows.gradient for name, rows in self.rows.items()}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.trained.values():
            parameter.grad = None
        for rows in self.rows.values():
            rows.gradient.clear()

    def step(self, epoch: float) -> None:
        """One update with the gradients at hand, `epoch` epochs into the stage."""
        scale = self._clip()
        factor = rate_factor(self.stage, epoch)
        for group in self.dense:
            group.step(factor)
        self.updates += 1
        keep = 1.0 if self.stage.ema is None else average_decay(self.stage.ema, self.updates)
        if self.rows:
            self._step_rows(self.stage.table_learning_rate * factor, scale, keep)
        if self.average is not None and self.whole:
            with torch.no_grad():
                averages = [self.average[name] for name in self.whole]
                torch._foreach_lerp_(averages, list(self.whole.values()), 1.0 - keep)

    def _step_rows(self, rate: float, scale: float, keep: float) -> None:
        if self.history is not None:
            self.history.add(rate, keep)
        for rows in self.rows.values():
            rows.step(self.updates, rate, scale)
            if isinstance(rows, LazyAdam | RowwiseAdagrad) and rows.average is not None:
                rows.average.add(keep)

    def _clip(self) -> float:
        """Clip the gradients at hand by their norm over all weights; returns what is left to
        multiply those by rows with."""
        most = self.stage.clip_norm
        if most is None:
            return 1.0
        if not self.rows:
            nn.utils.clip_grad_norm_(self.trained.values(), most)
            return 1.0
        given = [p.grad for p in self.whole.values() if p.grad is not None]
        summed = [rows.gradient.sum_up() for rows in self.rows.values()]
        norms = [g.norm() for g in (*given, *(s for s in summed if s is not None))]
        scale = min(1.0, most / (float(torch.stack(norms).norm()) + 1e-6))
        for gradient in given:
            gradient.mul_(scale)
        return scale

    def catch_up(self) -> None:
        """Bring every row of every table to the last update: to be called before weights are read
        otherwise than by a training batch."""
        for rows in self.rows.values():
            rows.catch_up()
        if self.history is not None:
            self.history.forget()

    def swap_average(self) -> None:
        """Exchange the weights and their moving average (nothing without one)."""
        if self.average is not None:
            self.catch_up()
            exchange(self.average, self.trained)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, by name. Rows stand as they are: catching them up
        at moments that the clock chooses would change the bits of what follows."""
        tensors = dict(self._held())
        if self.history is not None:
            tensors |= self.history.state()
        tensors["updates"] = torch.tensor(self.updates)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: other tables were updated by rows.
        """
        held = dict(self._held())
        if not held.keys() <= tensors.keys() or (self.history is None) == (
            "history.base" in tensors
        ):
            raise CheckpointError(
                "the checkpoint's tables were updated with other kernels than this run's.",
                fix="resume with the kernels that the run began with: see `loractr kernels`, and"
                " `kernels` in the configuration.",
            )
        self.updates = int(tensors["updates"])
        for key, value in held.items():
            value.copy_(tensors[key])
        if self.history is not None:
            self.history.restore(tensors)

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the state that are changed in place, by name: the tensors themselves."""
        for group in self.dense:
            yield from group.state()
        for name, rows in self.rows.items():
            for key, value in rows.state():
                yield f"adam.{key}.{name}", value
        for name, value in (self.average or {}).items():
            yield f"average.{name}", value


class _Fused:
    """Adam over whole tensors of one learning rate and weight decay.

    Calls torch's fused kernel through `torch.optim.adam.adam`: what torch.optim.Adam does around it
    in each step costs a small model as much as the kernel. Same results, to the bit.
    """

    def __init__(
        self, weights: dict[str, nn.Parameter], rate: float, decay: float, *, decoupled: bool
    ) -> None:
        self.rate, self.decay, self.decoupled = rate, decay, decoupled
        self.held = {
            name: (
                weight,
                torch.zeros_like(weight, requires_grad=False),
                torch.zeros_like(weight, requires_grad=False),
                torch.zeros((), device=weight.device),
            )
            for name, weight in weights.items()
        }

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update of the weights that have a gradient, with `factor` times the learning rate."""
        ready = [held for held in self.held.values() if held[0].grad is not None]
        adam(
            [weight for weight, _, _, _ in ready],
            [weight.grad for weight, _, _, _ in ready if weight.grad is not None],
            [first for _, first, _, _ in ready],
            [second for _, _, second, _ in ready],
            [],
            [steps for _, _, _, steps in ready],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=self.rate * factor,
            weight_decay=self.decay,
            eps=EPS,
            maximize=False,
            decoupled_weight_decay=self.decoupled,
        )

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Moments and numbers of steps by name: the tensors themselves."""
        for name, (_, first, second, steps) in self.held.items():
            yield f"adam.exp_avg.{name}", first
            yield f"adam.exp_avg_sq.{name}", second
            yield f"adam.step.{name}", steps


class ExpertAdam:
    """Adam over stacked experts: every slice along the first axis is an optimisation of its own,
    with its own step count, moments, clip norm, schedule and moving average. A step moves only the
    experts named in it; stepping one expert alone gives what `WholeAdam` gives for its weights.
    """

    def __init__(self, stage: Stage, trained: dict[str, nn.Parameter], experts: int) -> None:
        wrong = [name for name, p in trained.items() if p.shape[:1] != (experts,)]
        if wrong:
            raise TrainingError(
                f"stage {stage.name!r} trains experts independently, but {wrong[0]!r} is shared:"
                f" its first axis is not the {experts} experts."
            )
        self.stage, self.trained = stage, trained
        self.updates = torch.zeros(experts, dtype=torch.int64)
        self.first = {name: torch.zeros_like(p) for name, p in trained.items()}
        self.second = {name: torch.zeros_like(p) for name, p in trained.items()}
        self.average = (
            None if stage.ema is None else {n: p.detach().clone() for n, p in trained.items()}
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.trained.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, experts: Tensor, epochs: Tensor) -> None:
        """One update of `experts` (A,), each `epochs` (A,) of its own epochs into the stage."""
        self.updates[experts] += 1
        t = self.updates[experts].double()
        factors = [rate_factor(self.stage, float(epoch)) for epoch in epochs]
        rates = self.stage.learning_rate * torch.tensor(factors, dtype=torch.float64)
        clip = self._clip(experts)
        for name, parameter in self.trained.items():
            assert parameter.grad is not None
            shape = (-1,) + (1,) * (parameter.dim() - 1)

            def per_expert(
                values: Tensor, like: Tensor = parameter, to: tuple[int, ...] = shape
            ) -> Tensor:
                return values.to(like.dtype).view(to)

            grad, weight = parameter.grad[experts], parameter[experts]
            if clip is not None:
                grad = grad * per_expert(clip)
            if self.stage.decoupled:
                weight = weight * per_expert(1.0 - rates * self.stage.weight_decay)
            elif self.stage.weight_decay:
                grad = grad + self.stage.weight_decay * weight
            first = torch.lerp(self.first[name][experts], grad, 1.0 - BETA1)
            second = (self.second[name][experts] * BETA2).addcmul_(grad, grad, value=1.0 - BETA2)
            size = per_expert(rates / (1.0 - BETA1**t))
            scale = second.sqrt() / per_expert((1.0 - BETA2**t).sqrt()) + EPS
            parameter[experts] = weight - size * first / scale
            self.first[name][experts], self.second[name][experts] = first, second
            if self.average is not None and self.stage.ema is not None:
                decays = [average_decay(self.stage.ema, int(u)) for u in t]
                weights = per_expert(1.0 - torch.tensor(decays, dtype=torch.float64))
                averaged = self.average[name]
                averaged[experts] = torch.lerp(averaged[experts], parameter[experts], weights)

    def _clip(self, experts: Tensor) -> Tensor | None:
        if self.stage.clip_norm is None:
            return None
        grads = [p.grad[experts].flatten(1) for p in self.trained.values() if p.grad is not None]
        norms = torch.stack([g.double().square().sum(1) for g in grads]).sum(0).sqrt()
        return (self.stage.clip_norm / (norms + 1e-6)).clamp(max=1.0)

    def swap_average(self) -> None:
        """Exchange the weights and their moving average (nothing without one)."""
        if self.average is not None:
            exchange(self.average, self.trained)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, by name."""
        tensors = {f"first.{name}": value for name, value in self.first.items()}
        tensors |= {f"second.{name}": value for name, value in self.second.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.items()}
        return tensors | {"updates": self.updates}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.updates.copy_(tensors["updates"])
        for kind, held in (("first", self.first), ("second", self.second)):
            for name, value in held.items():
                value.copy_(tensors[f"{kind}.{name}"])
        if self.average is not None:
            for name, value in self.average.items():
                value.copy_(tensors[f"average.{name}"])


@torch.no_grad()
def exchange(one: dict[str, Tensor], other: dict[str, nn.Parameter]) -> None:
    """Swap the values of two sets of tensors of the same names, in place."""
    for name, value in one.items():
        held = value.clone()
        value.copy_(other[name])
        other[name].copy_(held)
