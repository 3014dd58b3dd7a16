"""The optimiser of a stage: Adam on whole tensors, by rows on large tables and stacks of experts.

All follow Kingma and Ba (ICLR 2015) with torch's defaults (0.9, 0.999, 1e-8). Coupled weight
decay adds `weight_decay * w` to the gradient as the papers do; decoupled is AdamW's.
"""

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from loractr.errors import CheckpointError
from loractr.layers.lookup import ByRows, RowGradient
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
        _say_what_is_faster("rows", missed[0], trained)
    return [name for name in large if name not in missed]


def stacks_of(model: nn.Module, trained: dict[str, nn.Parameter], together: int) -> list[str]:
    """Names of the trained stacks of at least twice as many experts as a step has domains
    (`together`): what is done to all of them would cost more than the step."""
    return [
        name
        for prefix, module in model.named_modules()
        if isinstance(module, ByRows) and not _is_table(prefix)
        for name, stack in module.named_parameters(prefix, recurse=False)
        if name in trained and len(stack) >= 2 * together
    ]


def stacks_by_rows(stage: Stage, model: nn.Module, trained: dict[str, nn.Parameter]) -> list[str]:
    """Names of the stacks of experts that Adam moves by experts in this stage, to the same weights
    as all at once: where batches have few domains, with compiled kernels."""
    if stage.domains_per_batch is None:
        return []
    if stage.decoupled and stage.learning_rate * stage.weight_decay >= 1.0:
        return []  # as for tables
    stacks = stacks_of(model, trained, stage.domains_per_batch)
    if stacks and library_for(*(trained[name] for name in stacks)) is None:
        _say_what_is_faster("experts", stacks[0], trained)
        return []
    return stacks


def _say_what_is_faster(what: str, name: str, trained: dict[str, nn.Parameter]) -> None:
    log.info(
        "Adam moves all %s %s of %s in every step; with compiled kernels (`loractr kernels build`)"
        " it does so only for those of the batch, to the same weights",
        f"{len(trained[name]):,}",
        what,
        name,
    )


def _is_table(name: str) -> bool:
    return name.startswith("embedding.")


def _kind(name: str) -> str:
    return "tables" if _is_table(name) else "experts"


class WholeAdam:
    """The optimiser of ordinary parameters and tables, with clipping, schedule and a moving average
    of weights.

    Args:
        stage: Its settings.
        trained: The parameters by name.
        by_rows: The names of those that are updated by rows, see `tables_by_rows` and
            `stacks_by_rows`. Their gradients are expected in `row_gradients`, those of all others
            in `.grad`.
    """

    def __init__(self, stage: Stage, trained: dict[str, nn.Parameter], by_rows: list[str]) -> None:
        self.stage, self.trained = stage, trained
        self.updates = 0
        self.average = (
            None if stage.ema is None else {n: p.detach().clone() for n, p in trained.items()}
        )
        self.whole = {n: p for n, p in trained.items() if n not in by_rows}
        tables = [n for n in self.whole if _is_table(n)]
        others = [n for n in self.whole if n not in tables]
        own, shared = stage.table_learning_rate, stage.learning_rate
        groups = [(others, shared, stage.weight_decay), (tables, own, stage.table_weight_decay)]
        if groups[0][1:] == groups[1][1:]:
            groups = [(others + tables, *groups[0][1:])]
        self.dense = [
            _Fused({n: trained[n] for n in names}, rate, decay, decoupled=stage.decoupled)
            for names, rate, decay in groups
        ]
        self.histories: dict[str, History] = {}
        for kind in ("experts", "tables"):
            names = [name for name in by_rows if _kind(name) == kind]
            if names and (kind == "experts" or stage.embedding_optimizer == "adam"):
                memory = max(MEMORY[trained[name].dtype] for name in names)
                decay = self._rate_and_decay(kind)[1]
                self.histories[kind] = History(memory, decay * stage.decoupled)
        self.rows = {name: self._by_rows(name) for name in by_rows}

    def _rate_and_decay(self, kind: str) -> tuple[float, float]:
        stage = self.stage
        if kind == "experts":
            return stage.learning_rate, stage.weight_decay
        return stage.table_learning_rate, stage.table_weight_decay

    def _by_rows(self, name: str) -> RowOptimizer:
        stage, weight = self.stage, self.trained[name].detach().flatten(1)
        average = None if self.average is None else self.average[name].flatten(1)
        history = self.histories.get(_kind(name))
        if history is not None:
            coupled = 0.0 if stage.decoupled else self._rate_and_decay(_kind(name))[1]
            return ExactAdam(weight, average, history, coupled)
        own = None if average is None else RowAverage(weight, average)
        lazy = stage.embedding_optimizer == "lazy_adam"
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
            self._step_rows(factor, scale, keep)
        if self.average is not None and self.whole:
            with torch.no_grad():
                averages = [self.average[name] for name in self.whole]
                torch._foreach_lerp_(averages, list(self.whole.values()), 1.0 - keep)

    def _step_rows(self, factor: float, scale: float, keep: float) -> None:
        for kind, history in self.histories.items():
            history.add(self._rate_and_decay(kind)[0] * factor, keep)
        for name, rows in self.rows.items():
            rows.step(self.updates, self._rate_and_decay(_kind(name))[0] * factor, scale)
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
        """Bring every row to the last update: to be called before weights are read otherwise than
        by a training batch."""
        for rows in self.rows.values():
            rows.catch_up()
        for history in self.histories.values():
            history.forget()

    def swap_average(self) -> None:
        """Exchange the weights and their moving average (nothing without one)."""
        if self.average is not None:
            self.catch_up()
            exchange(self.average, self.trained)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, by name. Rows stand as they are: catching them up
        at moments that the clock chooses would change the bits of what follows."""
        tensors = dict(self._held())
        for kind, history in self.histories.items():
            tensors |= {f"{kind}.{name}": value for name, value in history.state().items()}
        tensors["updates"] = torch.tensor(self.updates)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: other weights were updated by rows.
        """
        held = dict(self._held())
        known = {key.partition(".")[0] for key in tensors if key.endswith(".history.base")}
        if not held.keys() <= tensors.keys() or known != self.histories.keys():
            raise CheckpointError(
                "the checkpoint's weights were updated with other kernels than this run's.",
                fix="resume with the kernels that the run began with: see `loractr kernels`, and"
                " `kernels` in the configuration.",
            )
        self.updates = int(tensors["updates"])
        for key, value in held.items():
            value.copy_(tensors[key])
        for kind, history in self.histories.items():
            own = {name: tensors[f"{kind}.{name}"] for name in history.state()}
            history.restore(own)

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


@torch.no_grad()
def exchange(one: dict[str, Tensor], other: dict[str, nn.Parameter]) -> None:
    """Swap the values of two sets of tensors of the same names, in place."""
    for name, value in one.items():
        held = value.clone()
        value.copy_(other[name])
        other[name].copy_(held)
