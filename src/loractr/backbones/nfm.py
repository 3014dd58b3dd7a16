"""NFM: a tower on the pooled products of all pairs of fields."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower, field_vectors
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.product import bi_interaction, pair_count


class NFM(Backbone):
    """logit = head(tower(Σ_{i<j} e_i ⊙ e_j)) + linear.

    The tower sees the pairs alone: numbers that take no part in them
    (`numbers_in_interactions: false`) reach the logit through the linear term only.

    Raises: ConfigError: fewer than two fields take part in interactions.
    Source: He and Chua, Neural Factorization Machines, SIGIR 2017. Its dropout and batch
        normalisation of the pooled vector are left out, as in DeepCTR's defaults.
    """

    uses_first_order = True

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.tower = deep_tower(config, widths.size, generator)
        self.pairwise = field_vectors(config, widths, generator)
        pair_count(self.pairwise.fields, wanted_by=config.backbone)
        self.out_features = self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """The tower's last hidden layer; the linear term as a finished part of the logit."""
        pooled = bi_interaction(self.pairwise(features, route))
        return Hidden(vector=self.tower(pooled, route), logit=features.first_order)
