"""MMoE: experts for all domains, mixed by a gate of each domain.

Source: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field as Bound
from torch import Tensor, nn

from loractr.baselines.multi_task import DomainGate, DomainTower, Gated, Plan, mix
from loractr.batch import Route


class MMoE(Gated):
    """logit = head_d(tower_d(Σ_e g_d(x)_e f_e(x))),  g_d(x) = softmax(W_d x), for domain d."""

    name: Literal["mmoe"]
    experts: Annotated[int, Bound(ge=2)] | None = None
    """Number of experts; as many as domains when absent, at least 2."""

    def tower(self, plan: Plan) -> DomainTower:
        """The experts, gates and towers."""
        return MMoETower(plan, self)


class MMoETower(DomainTower):
    """tower_d(Σ_e g_d(x)_e f_e(x))."""

    def __init__(self, plan: Plan, options: MMoE) -> None:
        super().__init__()
        width = plan.plain.in_features
        count = options.experts or max(plan.domains, 2)  # one alone would leave gates no choice
        expert_sizes, tower_sizes = options.sizes(plan)
        self.experts = nn.ModuleList(plan.shared(width, expert_sizes) for _ in range(count))
        self.gate = DomainGate(plan, width, count, options.gate_sizes)
        self.towers = plan.own(expert_sizes[-1], tower_sizes)
        self.out_features = self.towers.out_features

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """All experts on all rows, each row's mixture by its own domain's gate and tower."""
        experts = torch.stack([expert(x, route) for expert in self.experts], 1)  # (N, E, H)
        y: Tensor = self.towers(mix(self.gate(x, route), experts), route)
        return y
