"""DCN and DCN-V2: a cross network beside a tower."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower
from loractr.batch import Route
from loractr.layers.cross import Cross
from loractr.layers.embedding import Embedded, Widths


class DCN(Backbone):
    """logit = head([cross(flat), tower(flat)]) + linear.

    Source: Wang et al., Deep & Cross Network, ADKDD 2017 (`cross: vector`); DCN V2, WWW 2021, in
    its parallel form (`cross: matrix`). The linear term is DeepCTR's.
    """

    uses_first_order = True

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.tower = deep_tower(config, widths.flat, generator)
        self.cross = Cross(widths.flat, config.cross_layers, kind=config.cross, generator=generator)
        self.out_features = widths.flat + self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """Crosses and tower side by side; the linear term as a finished part of the logit."""
        flat = features.flat()
        vector = torch.cat([self.cross(flat, route), self.tower(flat, route)], 1)
        return Hidden(vector=vector, logit=features.first_order)
