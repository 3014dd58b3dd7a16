"""The optimiser of a stage of independent experts: Adam for each by itself."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from loractr.errors import TrainingError
from loractr.layers.lookup import RowGradient
from loractr.native import library_for
from loractr.stage import Stage
from loractr.training.optimizer import average_decay, exchange, rate_factor
from loractr.training.rows import BETA1, BETA2, EPS


class ExpertAdam:
    """Adam over stacked experts: every slice along the first axis is an optimisation of its own,
    with its own step count, moments, clip norm, schedule and moving average. A step moves only the
    experts named in it; stepping one expert alone gives what `WholeAdam` gives for its weights.

    Args:
        stage: Its settings.
        trained: The parameters by name.
        experts: Number of experts.
        by_rows: The names of those whose gradients are expected in `row_gradients`, of the experts
            of a step only. Those of all others are expected in `.grad`, as large as they are.

    Raises:
        TrainingError: a parameter is shared by experts.
    """

    def __init__(
        self,
        stage: Stage,
        trained: dict[str, nn.Parameter],
        experts: int,
        by_rows: Sequence[str] = (),
    ) -> None:
        wrong = [name for name, p in trained.items() if p.shape[:1] != (experts,)]
        if wrong:
            raise TrainingError(
                f"stage {stage.name!r} trains experts independently, but {wrong[0]!r} is shared:"
                f" its first axis is not the {experts} experts."
            )
        self.stage, self.trained = stage, trained
        self.row_gradients = {name: RowGradient() for name in by_rows}
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
        for gradient in self.row_gradients.values():
            gradient.clear()

    @torch.no_grad()
    def step(self, experts: Tensor, epochs: Tensor) -> None:
        """One update of `experts` (A,), rising, each `epochs` (A,) of its own epochs into the
        stage."""
        self.updates[experts] += 1
        device = next(iter(self.trained.values())).device
        here = experts.to(device)
        gradients = {name: self._gradient(name, here) for name in self.trained}
        scales = self._scales(experts, epochs, gradients.values())
        experts, scales = here, scales.to(device)
        for name, gradient in gradients.items():
            self._move(name, experts, gradient, scales)

    def _scales(self, experts: Tensor, epochs: Tensor, gradients: Iterable[Tensor]) -> Tensor:
        """(A, 5): what each expert's gradient is multiplied with, its step size, what the root of
        its second moment is multiplied with, what is left of its weights, and of their average."""
        stage, t = self.stage, self.updates[experts].double()
        factors = [rate_factor(stage, float(epoch)) for epoch in epochs]
        rates = stage.learning_rate * torch.tensor(factors, dtype=torch.float64)
        one = torch.ones_like(t)
        columns = [
            one if stage.clip_norm is None else _clipped(stage.clip_norm, gradients).cpu(),
            rates / (1.0 - BETA1**t),
            (1.0 - BETA2**t).rsqrt(),
            1.0 - rates * stage.weight_decay if stage.decoupled else one,
            one
            if stage.ema is None
            else one.new_tensor([average_decay(stage.ema, int(u)) for u in t]),
        ]
        return torch.stack(columns, 1)

    def _move(self, name: str, experts: Tensor, gradient: Tensor, scales: Tensor) -> None:
        weight, first, second = self.trained[name], self.first[name], self.second[name]
        average = None if self.average is None else self.average[name]
        decay = 0.0 if self.stage.decoupled else float(self.stage.weight_decay)
        kernels = library_for(weight, gradient)
        if kernels is not None:
            own = (experts, len(experts), weight[0].numel(), gradient, scales)
            options = (decay, BETA1, BETA2, EPS)
            kernels.call("expert_adam", weight, first, second, average, *own, *options)
            return
        shape = (-1,) + (1,) * (weight.dim() - 1)
        columns = scales.to(weight.dtype).unbind(1)
        clip, size, bias, shrink, keep = (column.view(shape) for column in columns)
        gradient = gradient * clip + decay * weight[experts]
        first[experts] = m = torch.lerp(first[experts], gradient, 1.0 - BETA1)
        second[experts] = v = BETA2 * second[experts] + (1.0 - BETA2) * gradient * gradient
        weight[experts] = w = weight[experts] * shrink - size * m / (v.sqrt() * bias + EPS)
        if average is not None:
            average[experts] = torch.lerp(w, average[experts], keep)

    def _gradient(self, name: str, experts: Tensor) -> Tensor:
        """That of `experts`, (A, …)."""
        parameter = self.trained[name]
        if name not in self.row_gradients:
            assert parameter.grad is not None
            return parameter.grad[experts]
        found = self.row_gradients[name].get()
        assert found is not None
        touched, values = found
        assert torch.equal(touched.rows, experts)
        return touched.sums(values).view(-1, *parameter.shape[1:])

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


def _clipped(most: float, gradients: Iterable[Tensor]) -> Tensor:
    """What is left of each expert's gradients when their norm is at most `most`, (A,)."""
    squares = [g.flatten(1).double().square().sum(1) for g in gradients]
    norms = torch.stack(squares).sum(0).sqrt()
    return (most / (norms + 1e-6)).clamp(max=1.0)
