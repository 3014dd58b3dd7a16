"""Adam for a stage: fused on whole tensors, lazy on the rows of large tables, or per expert.

All three follow Kingma and Ba (ICLR 2015) with torch's defaults (0.9, 0.999, 1e-8). Coupled weight
decay adds `weight_decay * w` to the gradient as the papers do; decoupled is AdamW.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from loractr.errors import TrainingError
from loractr.stage import Settings, Stage

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

SPARSE_ROWS = 500_000
"""`embedding_updates: auto` updates lazily the tables with more rows than this."""


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


def lazy_tables(stage: Stage, trained: dict[str, nn.Parameter]) -> list[str]:
    """Names of the embedding tables that are updated lazily, row by row, in this stage.

    `auto` never chooses them beside weight decay, clipping or a weight average, which need every
    row of a table in every step.
    """
    tables = [name for name in trained if name.startswith("embedding.tables.")]
    if stage.embedding_updates == "sparse":
        return tables
    if stage.embedding_updates == "dense" or stage.table_weight_decay or stage.clip_norm:
        return []
    if stage.ema is not None:
        return []
    return [name for name in tables if len(trained[name]) > SPARSE_ROWS]


class WholeAdam:
    """Adam over ordinary parameters, with clipping, schedule and a moving average of weights."""

    def __init__(self, stage: Stage, trained: dict[str, nn.Parameter], lazy: list[str]) -> None:
        self.stage, self.trained, self.lazy = stage, trained, lazy
        self.updates = 0
        self.average = (
            None if stage.ema is None else {n: p.detach().clone() for n, p in trained.items()}
        )
        tables = [n for n in trained if n.startswith("embedding.") and n not in lazy]
        others = [n for n in trained if n not in tables and n not in lazy]
        own, shared = stage.table_learning_rate, stage.learning_rate
        groups = [(others, shared, stage.weight_decay), (tables, own, stage.table_weight_decay)]
        if groups[0][1:] == groups[1][1:]:
            groups = [(others + tables, *groups[0][1:])]
        self.dense = [
            _Fused({n: trained[n] for n in names}, rate, decay, decoupled=stage.decoupled)
            for names, rate, decay in groups
        ]
        self.sparse = (
            torch.optim.SparseAdam(
                [trained[n] for n in lazy], lr=own, betas=(BETA1, BETA2), eps=EPS
            )
            if lazy
            else None
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.trained.values():
            parameter.grad = None

    def step(self, epoch: float) -> None:
        """One update with the gradients at hand, `epoch` epochs into the stage."""
        if self.stage.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.stage.clip_norm)
        factor = rate_factor(self.stage, epoch)
        for group in self.dense:
            group.step(factor)
        if self.sparse is not None:
            self.sparse.param_groups[0]["lr"] = self.stage.table_learning_rate * factor
            self.sparse.step()  # type: ignore[no-untyped-call]
        self.updates += 1
        if self.average is not None and self.stage.ema is not None:
            weight = 1.0 - average_decay(self.stage.ema, self.updates)
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.values()), list(self.trained.values()), weight
                )

    def swap_average(self) -> None:
        """Exchange the weights and their moving average (nothing without one)."""
        if self.average is not None:
            exchange(self.average, self.trained)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, by name."""
        tensors = {key: value for group in self.dense for key, value in group.state()}
        if self.sparse is not None:
            for name in self.lazy:
                for key, value in self.sparse.state.get(self.trained[name], {}).items():
                    tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors["updates"] = torch.tensor(self.updates)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.updates = int(tensors["updates"])
        for group in self.dense:
            for key, value in group.state():
                value.copy_(tensors[key])
        if self.sparse is not None and self.updates:
            for name in self.lazy:
                weight, state = self.trained[name], f"adam.{{}}.{name}".format
                self.sparse.state[weight] = {
                    "step": int(tensors[state("step")]),
                    "exp_avg": tensors[state("exp_avg")].to(weight.device, copy=True),
                    "exp_avg_sq": tensors[state("exp_avg_sq")].to(weight.device, copy=True),
                }
        if self.average is not None:
            for name, value in self.average.items():
                value.copy_(tensors[f"average.{name}"])


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
