"""DeepFM: a tower, a linear term and all pairwise inner products on shared embeddings."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower, field_vectors
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.fm import fm


class DeepFM(Backbone):
    """logit = head(tower(flat)) + linear + Σ_{i<j} ⟨e_i, e_j⟩; a field alone has no pairs to sum.

    Source: Guo et al., DeepFM, IJCAI 2017.
    """

    uses_first_order = True

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.tower = deep_tower(config, widths.flat, generator)
        self.pairwise = field_vectors(config, widths, generator)
        self.out_features = self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """The tower's last hidden layer; linear term and FM as finished parts of the logit."""
        interactions = fm(self.pairwise(features, route))
        return Hidden(
            vector=self.tower(features.flat(), route), logit=features.first_order + interactions
        )
