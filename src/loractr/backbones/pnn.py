"""PNN: a tower on all inputs and on the products of all pairs of fields."""

import torch
from torch import Tensor

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower, field_vectors
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.product import Bilinear, inner_products, pair_count


class PNN(Backbone):
    """logit = head(tower([flat, p_01, p_02, …])), with one number p_ij for each pair of fields.

        products: inner   p_ij = ⟨e_i, e_j⟩                            (IPNN)
        products: outer   p_ij = e_jᵀ W_ij e_i, a K x K matrix a pair   (OPNN)
        products: both    the inner ones, then the outer ones

    There is no linear term. The paper's OPNN sums the fields first, for speed; a matrix per pair is
    DeepCTR's (`kernel_type="mat"`).

    Raises: ConfigError: fewer than two fields take part in interactions.
    Source: Qu et al., Product-based Neural Networks, ICDM 2016.
    """

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.pairwise = field_vectors(config, widths, generator)
        fields = self.pairwise.fields
        pairs = pair_count(fields, wanted_by=config.backbone)
        self.inner = config.products != "outer"
        outer = config.products != "inner"
        self.tower = deep_tower(config, widths.flat + (self.inner + outer) * pairs, generator)
        self.products = Bilinear(fields, widths.size, generator=generator) if outer else None
        self.out_features = self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """The tower's last hidden layer."""
        vectors = self.pairwise(features, route)
        parts: list[Tensor] = [features.flat()]
        if self.inner:
            parts.append(inner_products(vectors))
        if self.products is not None:
            parts.append(self.products(vectors, route).sum(2))
        return Hidden(self.tower(torch.cat(parts, 1), route))
