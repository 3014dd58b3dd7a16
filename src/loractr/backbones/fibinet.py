"""FiBiNET: a tower on bilinear products of plain and of reweighted field vectors."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower, field_vectors
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.product import Bilinear, pair_count
from loractr.layers.senet import SENET


class FiBiNET(Backbone):
    """logit = head(tower([bilinear(e), senet_bilinear(SENET(e))])) + linear.

    The two sets of products have matrices of their own, as in DeepCTR. The tower sees the pairs
    alone: numbers that take no part in them (`numbers_in_interactions: false`) reach the logit
    through the linear term only.

    Raises: ConfigError: fewer than two fields take part in interactions.
    Source: Huang et al., FiBiNET, RecSys 2019.
    """

    uses_first_order = True

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.pairwise = field_vectors(config, widths, generator)
        fields, size, kind = self.pairwise.fields, widths.size, config.bilinear
        pairs = pair_count(fields, wanted_by=config.backbone)
        self.tower = deep_tower(config, 2 * pairs * size, generator)
        self.senet = SENET(fields, reduction=config.senet_reduction, generator=generator)
        self.bilinear = Bilinear(fields, size, kind=kind, generator=generator)
        self.senet_bilinear = Bilinear(fields, size, kind=kind, generator=generator)
        self.out_features = self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """The tower's last hidden layer; the linear term as a finished part of the logit."""
        plain = self.pairwise(features, route)
        weighted = self.senet(plain, route)
        pairs = [self.bilinear(plain, route), self.senet_bilinear(weighted, route)]
        return Hidden(
            vector=self.tower(torch.cat(pairs, 1).flatten(1), route), logit=features.first_order
        )
