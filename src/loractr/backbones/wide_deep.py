"""Wide & Deep: a tower and a linear term."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths


class WideDeep(Backbone):
    """logit = head(tower(flat)) + linear.

    The wide part is a weight per id and per number. The paper's also reads crossed features; to
    have them, cross the columns in the data: a crossed column is one more categorical field.

    Source: Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016.
    """

    uses_first_order = True

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.tower = deep_tower(config, widths.flat, generator)
        self.out_features = self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """The tower's last hidden layer; the linear term as a finished part of the logit."""
        return Hidden(vector=self.tower(features.flat(), route), logit=features.first_order)
