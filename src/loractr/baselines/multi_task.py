"""What the multi-task baselines share: each domain is a task, with a tower and an output."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field as Bound
from pydantic import PositiveInt
from torch import Tensor, nn

from loractr.batch import Route
from loractr.layers.domain import DomainLinear, DomainMLP
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP
from loractr.method import Attached, Network, TrainedOnAllRows
from loractr.schema import Schema

Sizes = Annotated[tuple[PositiveInt, ...], Bound(min_length=1)]


@dataclass(frozen=True)
class Plan:
    """What a tower with domains is made from: the plain tower in whose place it comes."""

    plain: MLP
    domains: int
    generator: torch.Generator

    def shared(self, in_features: int, hidden_sizes: Sequence[int]) -> MLP:
        """An MLP for all domains, with the plain tower's dropout and norms."""
        return MLP(
            in_features,
            hidden_sizes,
            dropout=self.plain.dropout,
            batch_norm=self.plain.batch_norm,
            dropout_position=self.plain.dropout_position,
            generator=self.generator,
        )

    def own(self, in_features: int, hidden_sizes: Sequence[int]) -> DomainMLP:
        """An MLP per domain, with the plain tower's dropout and norms."""
        return DomainMLP(
            in_features,
            hidden_sizes,
            self.domains,
            dropout=self.plain.dropout,
            batch_norm=self.plain.batch_norm,
            dropout_position=self.plain.dropout_position,
            generator=self.generator,
        )


class DomainTower(nn.Module):
    """What comes in the place of a backbone's tower.

    Shapes: x (N, in) and a route of one division → (N, out_features); rows of no domain are the
        average domain's, see `DomainLinear`.
    """

    out_features: int
    """Width of the output."""

    @abstractmethod
    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Each row as one of its own domain."""


class MultiTask(TrainedOnAllRows):
    """Base of the methods that replace the backbone's tower, and give each domain an output layer.

    Linear and interaction terms of the backbone stay shared.
    """

    @abstractmethod
    def tower(self, plan: Plan) -> DomainTower:
        """The tower, fresh."""

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """A tower that knows domains in the place of the plain one, and a head per domain."""
        division = self.natural(schema)
        domains = len(schema.division(division).domains)
        backbone, plain = network.backbone, network.backbone.tower
        assert isinstance(plain, MLP)
        tower = self.tower(Plan(plain=plain, domains=domains, generator=generator))
        backbone.tower = tower
        backbone.out_features += tower.out_features - plain.out_features
        network.head = DomainLinear(backbone.out_features, 1, domains, generator=generator)
        return Attached((division,))


class Gated(MultiTask):
    """Base of those that mix experts by gates."""

    expert_sizes: Sizes | None = None
    """Hidden layers of each expert; the model's `hidden_sizes` but for the last when absent (all
    of them where there is one)."""
    gate_sizes: tuple[PositiveInt, ...] = ()
    """Hidden layers of each gate; none in the papers."""
    tower_sizes: tuple[PositiveInt, ...] | None = None
    """Hidden layers of each domain's tower; the last of `hidden_sizes` when absent."""

    def sizes(self, plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Hidden layers of each expert, and of each tower."""
        hidden = plan.plain.hidden_sizes
        experts = self.expert_sizes or hidden[:-1] or hidden
        return experts, hidden[-1:] if self.tower_sizes is None else self.tower_sizes


class DomainGate(nn.Module):
    """Weights of experts, by a gate per domain: g_d(x) = softmax(W_d MLP_d(x)), without bias.

    Shapes: x (N, in) → (N, experts), each row by its own domain's gate.
    """

    def __init__(self, plan: Plan, in_features: int, experts: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.hidden = plan.own(in_features, sizes)
        self.linear = DomainLinear(
            self.hidden.out_features, experts, plan.domains, bias=False, generator=plan.generator
        )

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """The weights, of sum 1."""
        y: Tensor = self.linear(self.hidden(x, route), route)
        return y.softmax(-1)

    def every(self, x: Tensor) -> Tensor:
        """Each row's weights by all gates, (N, D + 1, experts); see `DomainLinear.every`."""
        return self.linear.every(self.hidden.every(x)).softmax(-1)


class SharedGate(nn.Module):
    """Weights of experts, by one gate for all domains: g(x) = softmax(W MLP(x)), without bias.

    Shapes: x (N, in) → (N, experts).
    """

    def __init__(self, plan: Plan, in_features: int, experts: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.hidden = plan.shared(in_features, sizes) if sizes else None
        width = in_features if self.hidden is None else self.hidden.out_features
        self.linear = Linear(width, experts, bias=False, generator=plan.generator)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """The weights, of sum 1."""
        h = x if self.hidden is None else self.hidden(x, route)
        y: Tensor = self.linear(h, route).softmax(-1)
        return y


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    """Σ_e weights[n, e] experts[n, e]: (N, E), (N, E, H) → (N, H)."""
    return torch.bmm(weights[:, None], experts)[:, 0]
