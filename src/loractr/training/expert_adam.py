"""The optimiser of a stage of independent experts: Adam for each by itself."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from loractr.errors import TrainingError
from loractr.layers.lookup import RowGradient
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
        t = self.updates[experts].double()
        factors = [rate_factor(self.stage, float(epoch)) for epoch in epochs]
        rates = self.stage.learning_rate * torch.tensor(factors, dtype=torch.float64)
        gradients = {name: self._gradient(name, experts) for name in self.trained}
        clip = self._clip(gradients.values())
        for name, parameter in self.trained.items():
            shape = (-1,) + (1,) * (parameter.dim() - 1)

            def per_expert(
                values: Tensor, like: Tensor = parameter, to: tuple[int, ...] = shape
            ) -> Tensor:
                return values.to(like.dtype).view(to)

            grad, weight = gradients[name], parameter[experts]
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

    def _clip(self, gradients: Iterable[Tensor]) -> Tensor | None:
        if self.stage.clip_norm is None:
            return None
        squares = [g.flatten(1).double().square().sum(1) for g in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
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
