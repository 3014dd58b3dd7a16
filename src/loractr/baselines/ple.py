"""PLE: experts of each domain's own beside shared ones, level upon level.

Source: Tang et al., Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations, RecSys 2020; one level is its CGC.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from loractr.baselines.multi_task import DomainGate, DomainTower, Gated, Plan, SharedGate, mix
from loractr.batch import Route
from loractr.layers.domain import DomainMLP, groups_of


class PLE(Gated):
    """logit = head_d(tower_d(o_d)) for domain d, where on every level, from o_d = s = x on,

        o_d ← Σ_e softmax(W_d o_d)_e E_e       E: d's own experts on o_d, the shared ones on s
        s   ← Σ_e softmax(W_s s)_e E_e         E: all domains' experts, the shared ones

    and the last level has no s. So on every level but the last a domain's own experts see the rows
    of all domains, and learn from them and normalise by them.
    """

    name: Literal["ple"]
    levels: PositiveInt = 2
    """Levels of extraction; 1 is CGC."""
    specific: PositiveInt = 1
    """Experts of each domain's own on each level."""
    shared: PositiveInt = 1
    """Experts of all domains on each level."""

    def tower(self, plan: Plan) -> DomainTower:
        """The levels and the towers."""
        return PLETower(plan, self)


class Level(nn.Module):
    """One level: its experts and its gates."""

    def __init__(self, plan: Plan, in_features: int, options: PLE, *, last: bool) -> None:
        super().__init__()
        own, shared = options.specific, options.shared
        sizes, _ = options.sizes(plan)
        self.specific = nn.ModuleList(plan.own(in_features, sizes) for _ in range(own))
        self.shared = nn.ModuleList(plan.shared(in_features, sizes) for _ in range(shared))
        self.gate = DomainGate(plan, in_features, own + shared, options.gate_sizes)
        self.shared_gate: SharedGate | None = None
        if not last:
            total = plan.domains * own + shared
            self.shared_gate = SharedGate(plan, in_features, total, options.gate_sizes)

    def forward(self, own: Tensor, shared: Tensor, route: Route | None = None) -> Tensor:
        """The last level: each row's o_d (N, in) and s (N, in) → its new o_d (N, out)."""
        experts = [expert(own, route) for expert in self.specific]
        experts += [expert(shared, route) for expert in self.shared]
        return mix(self.gate(own, route), torch.stack(experts, 1))

    def every(
        self, own: Tensor, shared: Tensor, route: Route | None = None
    ) -> tuple[Tensor, Tensor]:
        """Any other level, which needs of each row all domains' o and not its own alone: s mixes
        the experts of all. The average domain's o stands first, for rows of no domain.

        Args:
            own: All o_d (N, D + 1, in), or (N, in) where they are the same.
            shared: s (N, in).
            route: Where the rows go.

        Returns: the new o_d (N, D + 1, out) and s (N, out).
        """
        specific = torch.stack([_every(expert, own) for expert in self.specific], 2)
        common = torch.stack([expert(shared, route) for expert in self.shared], 1)
        weights = self.gate.every(own)
        first, second = weights[:, :, : len(self.specific)], weights[:, :, len(self.specific) :]
        own = (first[:, :, None] @ specific)[:, :, 0] + second @ common
        assert self.shared_gate is not None
        everything = torch.cat([specific[:, 1:].flatten(1, 2), common], 1)
        return own, mix(self.shared_gate(shared, route), everything)


class PLETower(DomainTower):
    """tower_d(o_d), o_d of the last level."""

    def __init__(self, plan: Plan, options: PLE) -> None:
        super().__init__()
        expert_sizes, tower_sizes = options.sizes(plan)
        width, out = plan.plain.in_features, expert_sizes[-1]
        self.levels = nn.ModuleList(
            Level(plan, out if level else width, options, last=False)
            for level in range(options.levels - 1)
        )
        self.last = Level(plan, out if len(self.levels) else width, options, last=True)
        self.towers = plan.own(out, tower_sizes)
        self.domains = plan.domains
        self.out_features = self.towers.out_features

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Each row through the levels, then by its own domain's tower."""
        own = shared = x
        for level in self.levels:
            assert isinstance(level, Level)
            own, shared = level.every(own, shared, route)
        if own.dim() == 3:
            place = groups_of(route, x, self.domains).expert + 1
            own = own.gather(1, place[:, None, None].expand(-1, 1, own.shape[2]))[:, 0]
        y: Tensor = self.towers(self.last(own, shared, route), route)
        return y


def _every(expert: nn.Module, own: Tensor) -> Tensor:
    assert isinstance(expert, DomainMLP)
    return expert.every(own)
