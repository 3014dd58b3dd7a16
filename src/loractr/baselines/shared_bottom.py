"""Shared-bottom: the lower layers for all domains, the upper ones for each.

Source: Caruana, Multitask Learning, Machine Learning 28, 1997.
"""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from loractr.baselines.multi_task import DomainTower, MultiTask, Plan
from loractr.batch import Route


class SharedBottom(MultiTask):
    """logit = head_d(tower_d(bottom(x))) for a row of domain d."""

    name: Literal["shared_bottom"]
    bottom_sizes: tuple[PositiveInt, ...] = ()
    """Hidden layers for all domains; by default the embeddings alone are shared, as in MultiLoRA's
    comparison."""
    tower_sizes: tuple[PositiveInt, ...] | None = None
    """Hidden layers of each domain's tower; the model's `hidden_sizes` when absent."""

    def tower(self, plan: Plan) -> DomainTower:
        """The bottom and the towers."""
        sizes = plan.plain.hidden_sizes if self.tower_sizes is None else self.tower_sizes
        return SharedBottomTower(plan, self.bottom_sizes, sizes)


class SharedBottomTower(DomainTower):
    """tower_d(bottom(x)), without bottom tower_d(x)."""

    def __init__(
        self, plan: Plan, bottom_sizes: tuple[int, ...], tower_sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        width = plan.plain.in_features
        self.bottom = plan.shared(width, bottom_sizes) if bottom_sizes else None
        width = width if self.bottom is None else self.bottom.out_features
        self.towers = plan.own(width, tower_sizes)
        self.out_features = self.towers.out_features

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Each row by its own domain's tower."""
        h = x if self.bottom is None else self.bottom(x, route)
        y: Tensor = self.towers(h, route)
        return y
