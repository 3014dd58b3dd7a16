"""The plain deep tower."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths


class MLPBackbone(Backbone):
    """Embeddings and numbers side by side, then the tower; no interactions, no linear term.

    logit = head(tower(flat))

    Source: the DNN of Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016,
        section 3.2, by itself; the MLP of Song et al., MultiLoRA, CIKM 2024, table 3.
    """

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.tower = deep_tower(config, widths.flat, generator)
        self.out_features = self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """The tower's last hidden layer."""
        return Hidden(self.tower(features.flat(), route))
